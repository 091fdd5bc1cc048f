"""A checkpoint as C in whole numbers: its accuracy on the test set, its memory, and its time beside others.

    hibana train --data fashion-mnist --layers 800,800 ...
    python examples/in_c.py hibana-runs/fashion-mnist-0

It takes networks of still images, shown as a constant current. The test set goes through the network in
floats and in whole numbers in PyTorch, and through the program that `cc -O2` makes of the file of C; the last
two must name the same classes. Beside it, a ReLU network of the same fully connected shape is shown one image
by torch, and by what is installed of TensorFlow Lite Micro (`tflite-micro`), LiteRT (`ai-edge-litert`) and
emlearn. Times are processor time of one thread, medians of rounds that take turns.
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
from hibana.convert import to_c
from torch import Tensor, nn

import hibana as hb
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
    clock_t begun = clock();
    for (int i = 0; i < {count}; i++) {{
        net_reset(&net);
        for (int t = 0; t < NET_STEPS; t++)
            net_step(&net, t ? 0 : images[i]);
        printf("%d\\n", (int)net_class(&net));
    }}
    printf("%.3f us\\n", (double)(clock() - begun) / CLOCKS_PER_SEC / {count} * 1e6);
    return 0;
}}
"""


def tested(net: hb.convert.Quantized, model: nn.Module, test: list) -> tuple[Tensor, Tensor, list[int]]:
    """Inputs as bytes and labels of the test set, and how many are right in floats and in whole numbers."""
    inputs, labels, named = [], [], []
    with torch.no_grad():
        for at in range(0, len(test), 500):
            images, classes = zip(*(test[i] for i in range(at, min(at + 500, len(test)))), strict=True)
            x = model.encode(torch.stack(images))
            whole = net.integer_input(x)
            if not torch.equal(whole[:1].expand_as(whole), whole):
                raise ValueError("inputs change from step to step; this script shows still images")
            labels.append(torch.tensor([int(label) for label in classes]))
            floats = model.net(x).sum(0).argmax(1)
            named.append(torch.stack([floats, net.net(whole).sum(0).argmax(1)]))
            inputs.append(whole[0].flatten(1).to(torch.uint8))
    found, right = torch.cat(named, 1), torch.cat(labels)
    return torch.cat(inputs), found[1], [int((row == right).sum()) for row in found]


def processor_time(call: Callable[[], object], calls: int = 200) -> float:
    """Of one call, in microseconds."""
    call()
    begun = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - begun) / calls * 1e6


def in_c(folder: Path, flags: list[str]) -> Callable[[], float]:
    """Makes a program of the files in `folder`; what is returned runs it and gives its time."""
    binary = folder / "".join(["run", *flags])
    command = ["cc", "-std=c99", *flags, "-o", binary, folder / "net.c", folder / "main.c"]
    subprocess.run(command, check=True)

    def run() -> float:
        ran = subprocess.run([binary, folder / "images"], capture_output=True, text=True, check=True)
        *classes, timed = ran.stdout.split("\n")[:-1]
        if classes != (folder / "classes").read_text().split():
            raise AssertionError("the program names other classes than PyTorch")
        return float(timed.removesuffix(" us"))

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
    shown = model.encode(torch.stack([samples.training[i][0] for i in range(64)]))
    small, report = hb.quantize(model.net, shown, args.bits)
    program = to_c(small, shown)
    print(report)
    print("\n".join(re.findall(r"^   (?:layer|\S+ .*\d$|\S+ .*products$|together).*", program.header, re.M)))
    inputs, classes, right = tested(small, model, samples.test)
    for name, count in zip(("floats", f"{args.bits} bits"), right, strict=True):
        print(f"{name}: {count} of {len(inputs)} test images right, {count / len(inputs):.2%}")
    print(f"{program.constant_bytes:,} bytes of constants, {program.changing_bytes:,} that change")

    sizes = [inputs.shape[1], *(m.out_features for m in model.net.modules() if isinstance(m, nn.Linear))]
    with TemporaryDirectory() as kept:
        folder = Path(kept)
        program.write(folder / "net.c")
        (folder / "main.c").write_text(MAIN.format(count=len(inputs)))
        (folder / "images").write_bytes(inputs.numpy().tobytes())
        (folder / "classes").write_text("\n".join(map(str, classes.tolist())))
        timed = {
            f"cc {' '.join(flags)}": in_c(folder, flags) for flags in (["-O2"], ["-O2", "-march=native"])
        }
        dense = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        relu, image = nn.Sequential(*dense[:-1]).eval(), torch.rand(1, sizes[0])
        with torch.inference_mode():
            timed["torch, ReLU"] = lambda: processor_time(lambda: relu(image))
            for peer, make in dense_peers.PEERS.items():
                if importlib.util.find_spec(peer):
                    made = make(sizes, folder).items()
                    timed |= {name: (lambda call=call: processor_time(call)) for name, call in made}
            rounds = [{name: run() for name, run in timed.items()} for _ in range(args.rounds)]
    for name in timed:
        took = [each[name] for each in rounds]
        print(f"{name:36} {statistics.median(took):8.1f} us an image ({min(took):.1f} to {max(took):.1f})")


if __name__ == "__main__":
    main()
