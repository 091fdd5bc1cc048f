"""Measures a checkpoint as integer C code: test accuracy, memory, and time next to other libraries.

    hibana train --data fashion-mnist --layers 800,800 ...
    python examples/in_c.py hibana-runs/fashion-mnist-0

The network must classify still images that are encoded as a constant current. The script evaluates the test
set with the float network and the integer network in PyTorch, and with the C program compiled by ``cc -O2``.
The last two must return the same classes. For comparison it measures a ReLU network with the same fully
connected layers in torch, and in TensorFlow Lite Micro (`tflite-micro`), LiteRT (`ai-edge-litert`) and
emlearn if they are installed. Times are processor time of one thread per image, medians of interleaved
rounds.
"""

import argparse
import importlib.util
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import dense_peers
import torch
from torch import Tensor, nn

import hibana as hb
from hibana.convert import to_c
from hibana.train import load

MAIN = """
#include "net.h"
#include <stdio.h>
#include <time.h>

static net_state net;
static uint8_t images[{count}][NET_INPUTS];

int main(int argc, char **argv) {{
    FILE *read = fopen(argv[1], "rb");
    if (argc != 2 || !read || fread(images, NET_INPUTS, {count}, read) != {count})
        return 1;
    clock_t start = clock();
    for (int i = 0; i < {count}; i++) {{
        net_reset(&net);
        for (int t = 0; t < NET_STEPS; t++)
            net_step(&net, t ? 0 : images[i]);
        printf("%d\\n", (int)net_class(&net));
    }}
    printf("%.3f us\\n", (double)(clock() - start) / CLOCKS_PER_SEC / {count} * 1e6);
    return 0;
}}
"""


def evaluate(net: hb.convert.Quantized, model: nn.Module, test: list) -> tuple[Tensor, Tensor, list[int]]:
    """Evaluates the test set in PyTorch.

    Returns:
        The inputs as bytes ``[N, features]``, the classes of the integer network ``[N]``, and the number of
        correct classes of the float network and of the integer network.
    """
    inputs, labels, classes = [], [], []
    with torch.no_grad():
        for start in range(0, len(test), 500):
            samples = (test[i] for i in range(start, min(start + 500, len(test))))
            images, targets = zip(*samples, strict=True)
            x = model.encode(torch.stack(images))
            integers = net.integer_input(x)
            if not torch.equal(integers[:1].expand_as(integers), integers):
                raise ValueError("the input must be the same in all steps")
            labels.append(torch.tensor([int(label) for label in targets]))
            floats = model.net(x).sum(0).argmax(1)
            classes.append(torch.stack([floats, net.net(integers).sum(0).argmax(1)]))
            inputs.append(integers[0].flatten(1).to(torch.uint8))
    results, expected = torch.cat(classes, 1), torch.cat(labels)
    return torch.cat(inputs), results[1], [int((row == expected).sum()) for row in results]


def processor_time(call: Callable[[], object], calls: int = 200) -> float:
    """Returns the processor time of one call in microseconds."""
    call()
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls * 1e6


def compile_c(folder: Path, flags: list[str]) -> Callable[[], float]:
    """Compiles the C files in `folder`.

    Returns:
        A function that runs the program, checks its classes, and returns the microseconds per image.
    """
    binary = folder / "".join(["run", *flags])
    command = ["cc", "-std=c99", *flags, "-o", binary, folder / "net.c", folder / "main.c"]
    subprocess.run(command, check=True)

    def run() -> float:
        process = subprocess.run([binary, folder / "images"], capture_output=True, text=True, check=True)
        *classes, duration = process.stdout.split("\n")[:-1]
        if classes != (folder / "classes").read_text().split():
            raise AssertionError("the classes of the C program differ from those of PyTorch")
        return float(duration.removesuffix(" us"))

    return run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("checkpoint", type=Path)
    options.add_argument("--bits", type=int, default=8)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    torch.set_num_threads(1)

    model = load(args.checkpoint)
    samples = model.settings.samples(model.description)
    samples.prepare_data()
    samples.setup()
    example = model.encode(torch.stack([samples.training[i][0] for i in range(64)]))
    small, report = hb.quantize(model.net, example, args.bits)
    program = to_c(small, example)
    print(report)
    print("\n".join(re.findall(r"^   (?:layer|\S+ .*\d$|\S+ .*products$|together).*", program.header, re.M)))
    inputs, classes, correct = evaluate(small, model, samples.test)
    for name, count in zip(("floats", f"{args.bits} bits"), correct, strict=True):
        print(f"{name}: {count} of {len(inputs)} test images correct, {count / len(inputs):.2%}")
    print(f"{program.constant_bytes:,} bytes of constants, {program.changing_bytes:,} bytes of variables")

    sizes = [inputs.shape[1], *(m.out_features for m in model.net.modules() if isinstance(m, nn.Linear))]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        program.write(folder / "net.c")
        (folder / "main.c").write_text(MAIN.format(count=len(inputs)))
        (folder / "images").write_bytes(inputs.numpy().tobytes())
        (folder / "classes").write_text("\n".join(map(str, classes.tolist())))
        runs = {
            f"cc {' '.join(flags)}": compile_c(folder, flags) for flags in (["-O2"], ["-O2", "-march=native"])
        }
        dense = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        relu, image = nn.Sequential(*dense[:-1]).eval(), torch.rand(1, sizes[0])
        with torch.inference_mode():
            runs["torch, ReLU"] = lambda: processor_time(lambda: relu(image))
            for peer, make in dense_peers.PEERS.items():
                if importlib.util.find_spec(peer):
                    calls = make(sizes, folder).items()
                    runs |= {name: (lambda call=call: processor_time(call)) for name, call in calls}
            rounds = [{name: run() for name, run in runs.items()} for _ in range(args.rounds)]
    for name in runs:
        times = [each[name] for each in rounds]
        print(
            f"{name:36} {statistics.median(times):8.1f} us per image ({min(times):.1f} to {max(times):.1f})"
        )


if __name__ == "__main__":
    main()
