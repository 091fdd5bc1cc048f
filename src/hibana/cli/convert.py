"""The command ``convert``: a network to other platforms, or from NIR."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibana.cli.common import Integer, Trust, allow_local_imports, progress, refuse_errors
from hibana.cli.options import check_options

if TYPE_CHECKING:
    from torch import Tensor

    from hibana.train import Network


def convert(
    source: Path,
    target: Path,
    /,
    *,
    dt: float | None = None,
    steps: Integer | None = None,
    bits: Integer | None = None,
    ram: Integer | None = None,
    flash: Integer | None = None,
    arduino: bool = False,
    samples: Integer | None = None,
    adders: Integer | None = None,
    top: str | None = None,
    report: bool = False,
    trust: Trust = (),
) -> None:
    """Converts a network to NIR, C, Verilog, ONNX, a web page or a PyTorch program, or from NIR.

    Prints a line for each property of the network that the target can't represent.

    Args:
        source: a checkpoint of hibana train, a run's folder, or a NIR file (.nir).
        target: a NIR file (.nir), C code (.c), a circuit in Verilog (.v), a web page to draw inputs on
            (.html), ONNX (.onnx), a program that runs in PyTorch without hibana (.pt2), or, with --arduino,
            a folder.
        dt: time step in seconds; by default that of the source, else 1e-4.
        steps: number of time steps of a program, by default as in training; of the input of zeros on which
            firing rates of C code from NIR are measured, by default 1.
        bits: use integers, with weights of 2 to 8 bits, in C, ONNX or a page; by default C and ONNX use
            floating point, pages, circuits and --arduino 8 bits.
        ram: largest number of bytes for variables in C; larger programs are not written.
        flash: largest number of bytes for constants in C; larger programs are not written.
        arduino: write an Arduino and PlatformIO library, which is also an ESP-IDF component.
        samples: number of test samples in the testbench of a circuit, by default 20.
        adders: number of weights that a circuit adds in one cycle: 1, 2, 4, 8, 16 or 32, by default 1.
        top: FPGA for which the top level and constraints of a board are written beside a circuit: ice40-up5k
            (iCEBreaker) or ecp5-85k (ULX3S); the host sends inputs over the serial port.
        report: run yosys, nextpnr and iverilog on a circuit, and print its size, speed, time and energy.
        trust: MODULE:FUNCTION of yours that the file may name and that is then executed; may be repeated.
    """
    passed = {**locals()}
    allow_local_imports(trust)
    with refuse_errors(), warnings.catch_warnings(record=True) as losses:
        warnings.simplefilter("always", UserWarning)
        _check_target(target, arduino=arduino)
        kind = "--arduino" if arduino else target.suffix
        origin = "sources in NIR" if source.suffix == ".nir" else "checkpoints"
        uses = (kind, origin, f"{kind} from {origin}", f"{kind} with --top" if top else "")
        check_options("convert", uses, f"from {source} to {target}", passed)
        with progress(f"reading {source}"):
            network = _Source(source, dt, trust)
        integer_bits = 8 if bits is None else bits
        if arduino or target.suffix == ".c":
            bits = integer_bits if arduino else bits
            _write_c(network, target, steps, bits, ram, flash, arduino=arduino)
        elif target.suffix == ".html":
            _write_page(network, target, integer_bits)
        elif target.suffix == ".nir":
            from hibana.network import nir

            nir.write(network.net, target, dt=dt, input_shape=network.shape)
        elif target.suffix == ".onnx":
            _write_onnx(network, target, bits)
        elif target.suffix == ".pt2":
            _write_program(network, target, steps)
        else:
            samples, adders = 20 if samples is None else samples, 1 if adders is None else adders
            _write_circuit(network, target, integer_bits, samples, adders, top, report=report)
    for loss in losses:
        print(f"lost: {loss.message}")
    size = sum(path.stat().st_size for path in (target, *target.rglob("*")) if path.is_file())
    print(f"{target}  {size:,} bytes")


_SUFFIXES = (".c", ".html", ".nir", ".onnx", ".pt2", ".v")
"""Targets that are files."""


def _check_target(target: Path, *, arduino: bool) -> None:
    """Raises ValueError if `target` can't be written: it must be a folder for `arduino`, else a file."""
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"target must be in a folder that can be written, got {target}")
    if arduino and (target.suffix in _SUFFIXES or target.is_file()):
        raise ValueError(f"target must be a folder with --arduino, such as {target.stem}, got {target}")
    if not arduino and target.suffix not in _SUFFIXES:
        raise ValueError(f"target must end in {', '.join(_SUFFIXES)}, or --arduino be given, got {target}")


_REDUCTIONS = {
    **dict.fromkeys(("rate", "count", "membrane-mean", "tet"), "sum"),
    **{"membrane-max": "max", "membrane-last": "last", "first-spike": "first"},
}
"""For each loss, the reduction of the outputs over time that a converted program uses as scores."""
MAX_SAMPLES = 64
"""Samples of the training set on which firing rates and ranges are measured."""


class _Source:
    """A network to convert, from a checkpoint or from a NIR file, which has neither samples nor settings.

    Attributes:
        model: the trained network; ``None`` for a NIR file.
        net: the layers of the network.
        shape: shape of one step of one input.
        scores: the reduction of a program's outputs over time: ``sum``, ``max``, ``last`` or ``first``.
    """

    def __init__(self, path: Path, dt: float | None, trust: tuple[str, ...]) -> None:
        self.model: Network | None = None
        self.scores = "sum"
        if path.suffix == ".nir":
            from hibana.network import nir

            self.net: Any = nir.read(path, dt=dt)
            self.shape: tuple[int, ...] = self.net.meta["input_shape"]
            return
        from hibana.train import load

        self.model = load(path, trust=trust)
        self.net, self.shape = self.model.net, self.model.shape
        self.scores = _REDUCTIONS[self.model.settings.loss]

    def zeros(self, steps: int, batch: int = 1) -> "Tensor":
        """Returns an input of zeros, ``[steps, batch, *shape]``."""
        import torch

        return torch.zeros(steps, batch, *self.shape, dtype=torch.float32, device="cpu")

    def samples(self, purpose: str, split: str = "training", largest: int = MAX_SAMPLES) -> "Tensor":
        """Returns `largest` encoded samples of the training, validation or test set, ``[T, N, *shape]``.

        Raises ValueError if the source is a NIR file; the message starts with `purpose`.
        """
        import torch

        if self.model is None:
            raise ValueError(f"{purpose}, and a NIR file has none; pass a checkpoint")
        samples = self.model.settings.samples(self.model.description)
        samples.prepare_data()
        samples.setup()
        part = getattr(samples, split)
        count = min(largest, len(part))
        self.model.seed_evaluation()
        return self.model.encode(torch.stack([part[i][0] for i in range(count)]))

    def quantized(self, bits: int) -> Any:
        """Returns the network in integers; prints how well it agrees with the original."""
        from hibana.network import quantize

        samples = self.samples("--bits needs samples to measure the range of inputs")
        net, report = quantize(self.net, samples, bits)
        print(report)
        return net


def _write_c(
    network: _Source,
    target: Path,
    steps: int | None,
    bits: int | None,
    ram: int | None,
    flash: int | None,
    *,
    arduino: bool,
) -> None:
    """Writes C code, or a library for Arduino, to `target`; `ram` and `flash` are limits in bytes."""
    from hibana.network import to_c
    from hibana.network.c.library import write_library

    net = network.net if bits is None else network.quantized(bits)
    if network.model is None:
        print("firing rates are those for an input of zeros: a NIR file has no samples")
        example = network.zeros(steps or 1)
    else:
        example = network.samples("")
    program = to_c(net, example, name=target.name if arduino else target.stem, scores=network.scores)
    program.check_memory(ram, flash)
    if arduino:
        sample = network.samples("", "test")[:, :1]
        assert network.model is not None
        expected = int(network.model.objective.scores(net(sample)).argmax())
        write_library(program, target, net.integer_input(sample).flatten(1), expected)
    else:
        program.write(target)
    print(f"{program.constant_bytes:,} bytes of constants, {program.changing_bytes:,} of variables")
    if not arduino:
        print(f"{target.with_suffix('.h')}  states the cost of a step")


def _write_circuit(
    network: _Source, target: Path, bits: int, samples: int, adders: int, top: str | None, *, report: bool
) -> None:
    """Writes a circuit with weights of `bits` bits to `target`, and its other files beside it.

    The testbench plays `samples` test samples. `top` is the FPGA of a board, or ``None``.
    """
    from hibana.network import to_verilog
    from hibana.network.verilog import board as boards

    if samples < 1:
        raise ValueError(f"--samples must be at least 1, got {samples}")
    if top is not None and top not in boards.BOARDS:
        raise ValueError(f"--top must be one of {', '.join(boards.BOARDS)}, got {top}")
    net = network.quantized(bits)
    inputs = network.samples("", "test", samples)
    program = to_verilog(net, inputs, scores=network.scores, samples=samples, adders=adders)
    _, bench = program.write(target)
    print(f"{program.weight_bits:,} bits of constants, {program.state_bits:,} of variables")
    print(f"{bench}  plays test samples and compares every spike, in one of two simulators:")
    print(f"  iverilog -o net_sim {target} {bench} && ./net_sim")
    print(f"  verilator --binary --timing --top net_tb -o net_sim {target} {bench} && obj_dir/net_sim")
    if top is not None:
        board = boards.BOARDS[top]
        module, constraints = boards.write_top(program, target, board)
        print(
            f"{module}  connects the circuit to the serial port of a board, {board.name}, with {constraints}"
        )
        if report:
            with progress("running yosys, nextpnr and iverilog"):
                print(boards.report(program, board))


def _write_onnx(network: _Source, target: Path, bits: int | None) -> None:
    """Writes an ONNX file to `target`, quantized if `bits` is not None, and prints its inputs' form."""
    from hibana.network import to_onnx
    from hibana.runtime import files

    net = network.net if bits is None else network.quantized(bits)
    files.write(target, to_onnx(net, network.zeros(1)).SerializeToString())
    values = "currents or spikes at each step"
    if bits is not None:
        low, high = net.input_range
        values = f"x / {net.input_scale:.9g}, rounded, from {low} to {high}, as {str(net.dtype)[6:]}"
    print(f"takes [T, batch, {', '.join(map(str, network.shape))}]: {values}")
    if bits is not None:
        print(f"multiply outputs by {net.output_scale:.9g} to get those of the network")


def _write_page(network: _Source, target: Path, bits: int) -> None:
    """Writes a web page to `target` that runs the network, with `bits` a weight, on samples."""
    from hibana.network.page import to_page
    from hibana.runtime import files

    samples = network.samples("a page needs samples to show")
    assert network.model is not None
    if len(network.shape) not in (2, 3):
        raise ValueError(
            f"a page (.html) shows images, and {network.model.settings.title} has inputs of shape "
            f"{[*network.shape]}; convert it to another target, such as .onnx"
        )
    title = f"hibana: {network.model.settings.data}"
    page = to_page(network.net, samples, title=title, scores=network.scores, bits=bits)
    files.write(target, page.encode())


def _write_program(network: _Source, target: Path, steps: int | None) -> None:
    """Writes a program of ``torch.export`` to `target` for `steps` time steps, and prints its inputs."""
    import torch

    from hibana.network import export

    if steps is None and network.model is not None:
        steps = network.model.settings.steps
    if steps is None or steps < 1:
        raise ValueError(f"--steps must be given, at least 1: a program runs a fixed number, got {steps}")
    torch.export.save(export(network.net, network.zeros(steps, 2), dynamic_batch=True), target)
    shape = ", ".join(map(str, network.shape))
    print(f"takes [{steps}, batch, {shape}], currents or spikes at each step")
