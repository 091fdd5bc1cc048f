"""The command ``convert``: a network to other platforms, or from NIR."""

import os
import re
import subprocess
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from hibana.cli.anomalies import opened, write_detector
from hibana.cli.common import Integer, Trust, allow_local_imports, progress, refuse_errors
from hibana.cli.convert_source import Source
from hibana.cli.options import check_options


def convert(
    source: Path,
    target: Path,
    /,
    *,
    dt: float | None = None,
    data: Path | None = None,
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
        data: for a NIR file, samples of its training set on which ranges and firing rates are measured: an
            .npy file or the array inputs of an .npz file [steps, samples, ...], with labels [samples] if
            there are any; or a .csv file with a row per step, and the class in the column label.
        steps: number of time steps of a program, by default as in training; of a sample of --data, if it has
            no axis of time; without --data, of the input of zeros on which firing rates of C code from NIR
            are measured, by default 1.
        bits: use integers, with weights of 2 to 8 bits, in C, ONNX or a page; by default C and ONNX use
            floating point, pages, circuits and --arduino 8 bits.
        ram: largest number of bytes for variables in C; larger programs are not written.
        flash: largest number of bytes for constants in C; larger programs are not written.
        arduino: write an Arduino and PlatformIO library, which is also an ESP-IDF component.
        samples: number of test samples in the testbench of a circuit, by default 20.
        adders: number of weights that a circuit adds in one cycle: 1, 2, 4, 8, 16 or 32, by default 1.
        top: FPGA for which the top level and constraints of a board are written beside a circuit: ice40-up5k
            (iCEBreaker) or ecp5-85k (ULX3S); the host sends inputs over the serial port.
        report: run yosys, nextpnr and iverilog on a circuit, and print its size, speed, time and energy; of a
            NIR file, print operations or cycles, and the accuracy before and after quantization on --data.
        trust: MODULE:FUNCTION of yours that the file may name and that is then executed; may be repeated.
    """
    passed = {**locals()}
    allow_local_imports(trust)
    with refuse_errors(), warnings.catch_warnings(record=True) as losses:
        warnings.simplefilter("always", UserWarning)
        _check_target(target, arduino=arduino)
        kind = "--arduino" if arduino else target.suffix
        origin = "sources in NIR" if source.suffix == ".nir" else "checkpoints"
        uses = [kind, origin, f"{kind} from {origin}", f"{kind} with --top" if top else ""]
        uses += [
            "" if bits is None else f"{kind} with --bits from {origin}",
            "" if data is None else "--data",
        ]
        if source.suffix != ".nir" and (run := opened(source)) is not None:
            check_options("convert", ["checkpoints"], f"from {source}, which finds anomalies", passed)
            write_detector(run, target)
            return
        check_options("convert", uses, f"from {source} to {target}", passed)
        with progress(f"reading {source}"):
            network = Source(source, dt, trust, data, steps)
        integer_bits = 8 if bits is None else bits
        if arduino or target.suffix == ".c":
            bits = integer_bits if arduino else bits
            _write_c(network, target, steps, bits, ram, flash, arduino=arduino, report=report)
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


def _write_c(
    network: Source,
    target: Path,
    steps: int | None,
    bits: int | None,
    ram: int | None,
    flash: int | None,
    *,
    arduino: bool,
    report: bool,
) -> None:
    """Writes C code, or a library for Arduino, to `target`; `ram` and `flash` are limits in bytes."""
    from hibana.network import to_c
    from hibana.network.c.library import write_library

    net = network.net if bits is None else network.quantized(bits)
    if network.model is None and network.data is None:
        print("firing rates are those for an input of zeros: a NIR file has no samples; --data has them")
        example = network.zeros(steps or 1)
    else:
        example = network.samples("")
    program = to_c(net, example, name=target.name if arduino else target.stem, scores=network.scores)
    program.check_memory(ram, flash)
    if arduino:
        sample = network.samples("", "test")[:, :1]
        expected = int(network.outcome(net(sample)).argmax())
        write_library(program, target, net.integer_input(sample).flatten(1), expected)
    else:
        program.write(target)
    print(f"{program.constant_bytes:,} bytes of constants, {program.changing_bytes:,} of variables")
    if not arduino:
        print(f"{target.with_suffix('.h')}  states the cost of a step")
    if report:
        at_rates = sum(cost.at_rates for cost in program.costs)
        at_most = sum(cost.additions for cost in program.costs)
        print(f"{at_rates:,.0f} operations per step at these firing rates, at most {at_most:,}")
        print(network.accuracy(net))


def _write_circuit(
    network: Source, target: Path, bits: int, samples: int, adders: int, top: str | None, *, report: bool
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
    elif report:
        with progress("running iverilog"):
            print(_simulate(target, bench))
    if report and network.model is None:
        print(network.accuracy(net))


def _simulate(target: Path, bench: Path) -> str:
    """Returns the cycles of the circuit in `target`, and how many samples of its testbench are equal."""
    with TemporaryDirectory() as folder:
        simulator = str(Path(folder) / "net")
        subprocess.run(["iverilog", "-g2005", "-o", simulator, target, bench], check=True)
        output = subprocess.run([simulator], capture_output=True, text=True, check=True).stdout
    *_, cycles, equal = re.findall(r"\d+ cycles per step|\d+ of \d+ equal", output)
    return f"{cycles}; samples in the simulator: {equal} to PyTorch"


def _write_onnx(network: Source, target: Path, bits: int | None) -> None:
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


def _write_page(network: Source, target: Path, bits: int) -> None:
    """Writes a web page to `target` that runs the network, with `bits` a weight, on samples."""
    from hibana.network.page import to_page
    from hibana.runtime import files

    samples = network.samples("a page needs samples to show")
    if len(network.shape) not in (2, 3):
        raise ValueError(
            f"a page (.html) shows images, and {network.title} has inputs of shape "
            f"{[*network.shape]}; convert it to another target, such as .onnx"
        )
    title = f"hibana: {network.title if network.model is None else network.model.settings.data}"
    page = to_page(network.net, samples, title=title, scores=network.scores, bits=bits)
    files.write(target, page.encode())


def _write_program(network: Source, target: Path, steps: int | None) -> None:
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
