"""Networks trained in other libraries, as native code, C, integers, circuits and ONNX.

``train`` runs in an environment of a library with ``nir``, ``nirtorch`` and scikit-learn, without hibana. It
trains small networks on scikit-learn's digits, exports each to NIR with the library's own exporter, and saves
200 test samples with the library's own outputs. ``compare`` runs in an environment with hibana's extras
``nir`` and ``onnx``, onnxruntime, a C compiler and Verilator, and prints a row per network:

    pip install snntorch==1.0.0 nirtorch nir scikit-learn  # or norse==1.1.0, sinabs==3.1.3, ...
    python benchmarks/libraries.py train snntorch FOLDER
    python -m benchmarks.libraries compare FOLDER
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STEPS, TRAINING, TEST = 20, 1297, 200
"""Time steps, training samples, and test samples that follow them."""
HIDDEN, CLASSES, DT = 48, 10, 1e-4
Networks = dict[str, tuple[Callable[[], nn.Module], float]]
"""For each kind of network, a function that makes one, and the seconds per step of its NIR file."""


class Steps(nn.Module):
    """Runs `net`, which takes one step and the state, over time; `net` returns outputs and state."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of all steps, ``[T, batch, classes]``."""
        state, outputs = None, []
        for step in inputs:
            output, state = self.net(step, state)
            outputs.append(output)
        return torch.stack(outputs)


def digits() -> tuple[Tensor, Tensor]:
    """Spikes ``[STEPS, 1797, 64]`` whose rates are the pixels, and the classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    rates = torch.tensor(images, dtype=torch.float32) / 16
    random = torch.rand(STEPS, *rates.shape, generator=torch.Generator().manual_seed(0))
    return (random < rates * 0.7).float(), torch.tensor(classes)


def trainable(net: Any) -> list[Tensor]:
    """The weights and biases of `net`; Rockpool's ``parameters`` are nested dictionaries."""
    return [p for name, p in nn.Module.named_parameters(net) if name.endswith(("weight", "bias"))]


def fit(run: Callable[[Tensor], Tensor], parameters: list[Tensor], inputs: Tensor, classes: Tensor) -> None:
    """Trains `run` for 12 epochs by backpropagation through time on the cross-entropy of spike counts."""
    optimizer = torch.optim.Adam(parameters, 3e-3)
    for _ in range(12):
        for batch in torch.randperm(TRAINING).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(inputs[:, batch]).sum(0), classes[batch]).backward()
            optimizer.step()


class SnnTorch:
    """snnTorch: layers keep their state between calls, which ``reset`` clears."""

    shapes = {"convolution": (1, 8, 8)}  # noqa: RUF012 - read only

    def networks(self) -> dict[str, nn.Module]:
        """A chain of layers of each kind."""
        import snntorch

        def neurons(
            kind: Any, shape: tuple[int, ...], decays: tuple[float, ...], **settings: Any
        ) -> nn.Module:
            numbers = (
                torch.full(shape, decay) for decay in decays
            )  # the exporter infers no shape of numbers
            return kind(*numbers, threshold=torch.ones(shape), init_hidden=True, **settings)

        def chain(kind: Any, *decays: float, recurrent: bool = False, **settings: Any) -> nn.Module:
            sizes = [{"linear_features": n} if recurrent else {} for n in (HIDDEN, CLASSES)]
            hidden = neurons(kind, (HIDDEN,), decays, **settings, **sizes[0])
            out = neurons(kind, (CLASSES,), decays, output=True, **settings, **sizes[1])
            return nn.Sequential(nn.Linear(64, HIDDEN), hidden, nn.Linear(HIDDEN, CLASSES), out)

        zero = {"reset_mechanism": "zero"}
        return {
            "leaky zero": chain(snntorch.Leaky, 0.9, **zero),
            "leaky subtract": chain(snntorch.Leaky, 0.9),
            "synaptic": chain(snntorch.Synaptic, 0.5, 0.9, **zero),
            "recurrent": chain(snntorch.RLeaky, 0.9, recurrent=True, **zero),
            "convolution": nn.Sequential(
                nn.Conv2d(1, 6, 3), neurons(snntorch.Leaky, (6, 6, 6), (0.9,), **zero), nn.AvgPool2d(2),
                nn.Flatten(), nn.Linear(54, CLASSES),
                neurons(snntorch.Leaky, (CLASSES,), (0.9,), output=True, **zero),
            ),
        }  # fmt: skip

    def run(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """The spikes of the last layer."""
        from snntorch import utils

        utils.reset(net)
        return torch.stack([net(step)[0] for step in inputs])

    def export(self, net: nn.Module, inputs: Tensor) -> Any:
        """The graph that snnTorch writes."""
        from snntorch.export_nir import export_to_nir

        self.run(net, inputs[:1])
        return export_to_nir(net, inputs[0], ignore_dims=[0])


class Norse:
    """Norse: cells of one step, in a ``SequentialState``."""

    shapes: dict[str, tuple[int, ...]] = {}  # noqa: RUF012 - read only

    def networks(self) -> dict[str, nn.Module]:
        """A chain of cells of each kind."""
        import norse.torch as norse

        def chain(cell: Any, parameters: Any, **numbers: float) -> nn.Module:
            def cells(size: int) -> nn.Module:  # nir writes no number that is not an array
                values = {name: torch.full((size,), value) for name, value in numbers.items()}
                return cell(parameters(**values))

            sizes = ((64, HIDDEN), (HIDDEN, CLASSES))
            return norse.SequentialState(*(part for n in sizes for part in (nn.Linear(*n), cells(n[1]))))

        leaky = {"tau_mem_inv": 300.0, "v_leak": 0.0, "v_th": 0.2}

        return {
            "box": chain(norse.LIFBoxCell, norse.LIFBoxParameters, **leaky),
            "synaptic": chain(norse.LIFCell, norse.LIFParameters, tau_syn_inv=400.0, **leaky),
            "integrate": chain(norse.IAFCell, norse.IAFParameters, v_th=1.0),
        }

    def run(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """The spikes of the last layer."""
        return Steps(net)(inputs)

    def export(self, net: nn.Module, inputs: Tensor) -> Any:
        """The graph that Norse writes."""
        from norse.torch.utils.export_nir import to_nir

        return to_nir(net, inputs[0, 0])  # its shapes include those of a batch


class Sinabs:
    """sinabs: layers over time and batch joined, which subtract the threshold, several times a step."""

    shapes = {"convolution": (1, 8, 8)}  # noqa: RUF012 - read only

    def networks(self) -> dict[str, nn.Module]:
        """A chain of layers of each kind."""
        import sinabs.layers as layers
        from sinabs.activation import MembraneReset, SingleSpike

        def chain(kind: Any, **settings: Any) -> nn.Module:
            def neurons(size: int) -> nn.Module:
                tau = {"tau_mem": torch.full((size,), 8.0)} if kind is layers.LIFSqueeze else {}
                return kind(batch_size=1, spike_threshold=torch.ones(size), **tau, **settings)

            sizes = ((64, HIDDEN), (HIDDEN, CLASSES))
            return nn.Sequential(*(part for n in sizes for part in (nn.Linear(*n), neurons(n[1]))))

        single = {"spike_fn": SingleSpike, "reset_fn": MembraneReset()}
        return {
            "integrate": chain(layers.IAFSqueeze),
            "integrate to zero": chain(layers.IAFSqueeze, **single),
            "leaky": chain(layers.LIFSqueeze),
            "convolution": nn.Sequential(
                nn.Conv2d(1, 6, 3), layers.IAFSqueeze(batch_size=1, **single), layers.SumPool2d(2),
                nn.Flatten(),
                nn.Linear(54, CLASSES), layers.IAFSqueeze(batch_size=1, **single),
            ),
        }  # fmt: skip

    def run(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """The spikes of the last layer."""
        for layer in net:
            if hasattr(layer, "reset_states"):
                layer.batch_size = inputs.shape[1]
                if layer.is_state_initialised():
                    layer.init_state_with_shape((inputs.shape[1], *layer.v_mem.shape[1:]))
        flat = net(inputs.transpose(0, 1).flatten(0, 1))
        return flat.unflatten(0, (inputs.shape[1], len(inputs))).transpose(0, 1)

    def export(self, net: nn.Module, inputs: Tensor) -> Any:
        """The graph that sinabs writes."""
        from sinabs.nir import to_nir

        self.run(net, inputs[:1, :1])
        return to_nir(net, inputs[0, :1])


class SpikingJelly:
    """SpikingJelly in its multi-step mode."""

    shapes = {"convolution": (1, 8, 8)}  # noqa: RUF012 - read only

    def networks(self) -> dict[str, nn.Module]:
        """A chain of layers of each kind."""
        from spikingjelly.activation_based import functional, layer, neuron

        def chain(neurons: Callable[[], nn.Module]) -> nn.Module:
            linear = layer.Linear
            return nn.Sequential(linear(64, HIDDEN), neurons(), linear(HIDDEN, CLASSES), neurons())

        nets = {
            "if": chain(lambda: neuron.IFNode(v_threshold=0.5)),
            "lif": chain(lambda: neuron.LIFNode(4.0, v_threshold=0.3)),
            "parametric": chain(lambda: neuron.ParametricLIFNode(4.0, v_threshold=0.3)),
            "synaptic": chain(lambda: neuron.CUBALIFNode(c_decay=0.5, v_decay=0.75, v_threshold=0.5)),
            "convolution": nn.Sequential(
                layer.Conv2d(1, 6, 3), neuron.IFNode(v_threshold=0.5), layer.AvgPool2d(2, 2), layer.Flatten(),
                layer.Linear(54, CLASSES), neuron.IFNode(v_threshold=0.5),
            ),
        }  # fmt: skip
        for net in nets.values():
            functional.set_step_mode(net, "m")
        return nets

    def run(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """The spikes of the last layer."""
        from spikingjelly.activation_based import functional

        functional.reset_net(net)
        return net(inputs)

    def export(self, net: nn.Module, inputs: Tensor) -> Any:
        """The graph that SpikingJelly writes."""
        from spikingjelly.activation_based import functional
        from spikingjelly.activation_based.nir_exchange import export_to_nir

        functional.reset_net(net)
        return export_to_nir(net, inputs, dt=DT)


class Rockpool:
    """Rockpool: modules over ``[batch, T, ...]``, which decay by exp(-dt/tau) and subtract the threshold."""

    shapes: dict[str, tuple[int, ...]] = {}  # noqa: RUF012 - read only

    def networks(self) -> dict[str, nn.Module]:
        """A chain of modules of each kind."""
        from rockpool.nn.combinators import Sequential
        from rockpool.nn.modules import LIFNeuronTorch, LIFTorch, LinearTorch

        def chain(kind: Any, **settings: float) -> nn.Module:
            both = (kind(size, dt=1e-3, **settings) for size in (HIDDEN, CLASSES))
            sizes = ((64, HIDDEN), (HIDDEN, CLASSES))
            parts = [part for size, neurons in zip(sizes, both, strict=True)
                     for part in (LinearTorch(size, has_bias=True), neurons)]  # fmt: skip
            return Sequential(*parts)

        return {
            "synaptic": chain(LIFTorch, tau_mem=10e-3, tau_syn=5e-3),
            "leaky": chain(LIFNeuronTorch, tau_mem=10e-3),
        }

    def run(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """The spikes of the last layer."""
        net.reset_state()
        return net(inputs.transpose(0, 1))[0].transpose(0, 1)

    def export(self, net: nn.Module, inputs: Tensor) -> Any:
        """The graph that Rockpool writes."""
        from rockpool.nn.modules.torch.nir import to_nir

        return to_nir(net, inputs[:, 0][None])


LIBRARIES: dict[str, tuple[type, float]] = {
    "snntorch": (SnnTorch, DT),
    "norse": (Norse, 1e-6),  # its exporter writes tau * dt, with dt = 1e-3
    "sinabs": (Sinabs, 1.0),
    "spikingjelly": (SpikingJelly, DT),
    "rockpool": (Rockpool, 1e-3),
}
"""For each library, how to train and export its networks, and seconds per step in its NIR files."""


def train(name: str, folder: Path) -> None:
    """Trains and exports all networks of the library `name` to `folder`."""
    import nir

    folder.mkdir(parents=True, exist_ok=True)
    kind, dt = LIBRARIES[name]
    library = kind()
    flat, classes = digits()
    torch.manual_seed(0)
    for network, net in library.networks().items():
        path = folder / f"{name}-{network.replace(' ', '-')}"
        spikes = flat.reshape(STEPS, -1, *library.shapes.get(network, (64,)))
        test = spikes[:, TRAINING : TRAINING + TEST]
        fit(lambda x, net=net: library.run(net, x), trainable(net), spikes, classes)
        with torch.no_grad():
            outputs = library.run(net, test)
            labels = classes[TRAINING : TRAINING + TEST]
            accuracy = (outputs.sum(0).argmax(1) == labels).double().mean()
            print(f"{path.name}: accuracy {accuracy:.1%}, {outputs.mean():.3f} spikes per step", flush=True)
            try:
                nir.write(path.with_suffix(".nir"), library.export(net, test[:, :1]))
            except Exception as error:  # whatever an exporter raises is a result
                traceback.print_exc()
                path.with_suffix(".json").write_text(json.dumps(f"{type(error).__name__}: {error}"[:150]))
                continue
        arrays = {"test": test, "test_labels": labels, "outputs": outputs}
        data = {"inputs": spikes[:, :64], "labels": classes[:64]}
        np.savez_compressed(path.with_suffix(".test.npz"), dt=dt, **{k: v.numpy() for k, v in arrays.items()})
        np.savez_compressed(path.with_suffix(".data.npz"), **{k: v.numpy() for k, v in data.items()})


def c_outputs(program: Any, inputs: Tensor, folder: Path) -> Tensor:
    """The outputs of a `program` of :func:`hibana.convert.to_c` on `inputs`, ``[T, batch, outputs]``."""
    source, _ = program.write(folder / "net.c")
    main = folder / "main.c"
    main.write_text(f"""#include "net.h"
#include <stdio.h>
static net_state net;
static {program.input} input[NET_INPUTS];
static {program.kind} output[NET_OUTPUTS];
int main(void) {{
    while (fread(input, sizeof input, 1, stdin) == 1) {{
        static unsigned long count;
        if (count++ % {len(inputs)} == 0) net_reset(&net);
        net_step(&net, input);
        net_output(&net, output);
        for (int i = 0; i < NET_OUTPUTS; i++) printf("%.17g ", (double)output[i]);
    }}
    return 0;
}}
""")
    binary = folder / "net"
    subprocess.run(["cc", "-std=c99", "-O2", "-o", binary, source, main, "-lm"], check=True)
    types = {"float": "f4", "double": "f8", "uint8_t": "u1", "int8_t": "i1", "int16_t": "i2", "int32_t": "i4"}
    numbers = inputs.transpose(0, 1).numpy().astype(types.get(program.input, program.input))
    run = subprocess.run([binary], input=numbers.tobytes(), stdout=subprocess.PIPE, check=True)
    outputs = torch.tensor([float(number) for number in run.stdout.split()], dtype=torch.float64)
    return outputs.view(inputs.shape[1], len(inputs), -1).transpose(0, 1)


def verilator_equal(program: Any, folder: Path) -> str:
    """The line of the testbench of `program` in Verilator: ``N of N equal``."""
    source, bench = program.write(folder / "net.v")
    command = [
        "verilator",
        "--binary",
        "--timing",
        "-Wno-fatal",
        "--top",
        "net_tb",
        "-o",
        "sim",
        source,
        bench,
    ]
    subprocess.run([*command, "--Mdir", folder / "obj"], check=True, capture_output=True)
    run = subprocess.run([folder / "obj" / "sim"], check=True, capture_output=True, text=True)
    return re.findall(r"\d+ of \d+ equal", run.stdout)[0]


def onnx_outputs(net: nn.Module, inputs: Tensor) -> Tensor:
    """The outputs of `net` in onnxruntime."""
    import onnxruntime

    import hibana as hb

    model = hb.convert.to_onnx(net, inputs[:, :1]).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


@torch.no_grad()
def compare(folder: Path) -> int:
    """Prints a row for each network in `folder`; returns the number of networks with a failed target."""
    import hibana as hb

    titles = "network | accuracy: library | hibana, differing spikes | native | C | 8 bits: accuracy | C | "
    titles += "Verilator | ONNX, 8 bits"
    print(f"| {titles} |\n|{'---|' * 9}", flush=True)
    failures = 0
    for path in sorted(folder.glob("*.json")):
        print(f"| {path.stem} | not exported: {json.loads(path.read_text())} |")
    for path in sorted(p for p in folder.glob("*.nir") if not p.with_suffix(".json").exists()):
        saved = np.load(path.with_suffix(".test.npz"))
        inputs, expected, labels = (torch.from_numpy(saved[k]) for k in ("test", "outputs", "test_labels"))
        data = torch.from_numpy(np.load(path.with_suffix(".data.npz"))["inputs"])

        def accuracy(outputs: Tensor, labels: Tensor = labels) -> str:
            return f"{(outputs.sum(0).flatten(1).argmax(1) == labels).double().mean():.1%}"

        def differing(outputs: Tensor, others: Tensor) -> str:
            count = int((outputs.flatten(2) != others.flatten(2)).sum())
            return f"{count:,} of {others.numel():,}" if count else "equal"

        row = [path.stem, accuracy(expected)]
        try:
            net = hb.nir.read(path, dt=float(saved["dt"]))
            outputs = net(inputs)
            row += [f"{accuracy(outputs)}, {differing(outputs, expected)}"]
            native = hb.compile(net, inputs)(inputs)
            row += [differing(native, outputs)]
            with tempfile.TemporaryDirectory() as place:
                program = hb.convert.to_c(net, data, name="net")
                row += [differing(c_outputs(program, inputs, Path(place)).to(native), native)]
                integers, _ = hb.quantize(net, data, 8)
                whole = integers(inputs)
                row += [accuracy(whole)]
                program = hb.convert.to_c(integers, data, name="net")
                numbers = integers.integer_input(inputs)
                results = c_outputs(program, numbers, Path(place)) * integers.output_scale
                row += [differing(results.to(whole), whole)]
                circuit = hb.convert.to_verilog(integers, inputs, samples=TEST)
                row += [verilator_equal(circuit, Path(place))]
                results = onnx_outputs(integers, numbers) * integers.output_scale
                row += [differing(results.to(whole), whole)]
        except Exception as error:  # a refusal is a result; it is counted
            row += [f"{type(error).__name__}: {str(error)[:200]}"]
            failures += 1
        print(f"| {' | '.join(row)} |", flush=True)
    return failures


def main() -> int:
    """Runs the command; returns 1 if a target failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    trains = commands.add_parser("train", help="train and export networks")
    trains.add_argument("library", choices=LIBRARIES)
    trains.add_argument("folder", type=Path)
    commands.add_parser("compare", help="compare all targets").add_argument("folder", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.command == "compare":
        return int(compare(options.folder) > 0)
    train(options.library, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
