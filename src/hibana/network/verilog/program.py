"""``hb.convert.to_verilog``: an integer network as one Verilog file, from the statements of its program."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hibana.network.c.arithmetic import IntegerArithmetic
from hibana.network.c.memory import SIZES
from hibana.network.c.unit import Unit, build_unit
from hibana.network.integer_network import Quantized
from hibana.network.lowering import Activations, times
from hibana.network.verilog.circuit import Array
from hibana.network.verilog.module import module_text
from hibana.network.verilog.statements import Machine
from hibana.network.verilog.testbench import testbench
from hibana.runtime import files
from hibana.runtime.kernels import Longs, Pointer
from hibana.runtime.loops import Array as ProgramArray
from hibana.runtime.loops import Statement

__all__ = ["VerilogProgram", "to_verilog"]

ADDERS = (1, 2, 4, 8, 16, 32)
"""Numbers of weights that a circuit can add in one cycle."""


@dataclass(frozen=True)
class VerilogProgram:
    """A network as a circuit."""

    source: str
    """The module ``net``."""
    testbench: str
    """The module ``net_tb``, which plays samples and compares all spikes."""
    recording: str
    """The file that the testbench reads: a line for each step, with its inputs, spikes and outputs."""
    weight_bits: int
    """Bits of constants."""
    state_bits: int
    """Bits of memory that changes."""
    states: int
    """States of the state machine."""
    inputs: int
    """Inputs of a step."""
    steps: int
    """Steps of a sample."""

    def write(self, path: Path | str) -> tuple[Path, Path]:
        """Writes the module to `path`, which ends in ``.v``, and the testbench beside it as ``*_tb.v``.

        The testbench reads ``*_tb.hex`` beside it, with `path` as it is here: relative to the current folder.
        """
        target = Path(path)
        bench = target.with_name(f"{target.stem}_tb.v")
        recording = bench.with_suffix(".hex")
        files.write(target, self.source.encode())
        files.write(bench, self.testbench.replace("net_tb.hex", str(recording)).encode())
        files.write(recording, self.recording.encode())
        return target, bench


class _Unit(Unit):
    """The statements of a network in a form for circuits, which add one row of weights at a time."""

    target = "Verilog"

    def __init__(self, *arguments: Any, adders: int) -> None:
        self.adders = adders
        self.strides: dict[str, tuple[int, int]] = {}
        """For each array of rows of weights, the length of a row without and with zeros at its end."""
        super().__init__(*arguments)

    @property
    def largest(self) -> int:
        """2^n - 1, at least the largest absolute value of an index, a variable or an element of an array."""
        assert isinstance(self.arithmetic, IntegerArithmetic)
        sizes = max(node.size for node in self.network.nodes)
        largest = max(self.arithmetic.largest, sizes, self.steps, 255)
        return min((1 << largest.bit_length()) - 1, 2**31 - 1)

    def add_rows(self, inputs: Activations, rows: Pointer, size: int, out: Pointer) -> None:
        """``out += sum_i x_i rows[i]`` over nonzero inputs x, for `rows` ``[inputs, size]``.

        Zeros fill each row up to a multiple of the number of adders, so that each row starts with a word.
        """
        lanes = min(self.adders, 1 << (size - 1).bit_length())
        stride = -(-size // lanes) * lanes
        self.strides[self.array(rows).name] = size, stride
        with self.each_nonzero(inputs) as (i, x):
            row = (rows + i * stride).named("row")
            with self.code.loop(0, size, name="o") as o:
                out[o] = out[o] + times(row[o], x)

    def spike_arrays(self) -> dict[str, str]:
        """For each layer of spiking neurons, the name of its array of spikes."""
        spiking = {layer.name for layer in self.spiking}
        outputs = {node.name: outputs for node, outputs in self.activations.items() if node.name in spiking}
        return {name: self.array(self.numbers(each)).name for name, each in outputs.items()}

    def programs(self) -> dict[str, list[Statement]]:
        """The statements of a reset, of reading the input, and of a step, which chooses the class."""
        code, outputs = self.code, self.network.output.size
        best = Longs(code.builder, ProgramArray(None, name="best", is_number=True))
        sent, input_, scores = (
            self._pointer(ProgramArray(None, name=name)) for name in ("sent", "input", "scores")
        )
        rest, ranking = list[Statement](), list[Statement]()
        with self.into(rest):
            best.store(0)
        rest += self.resets
        with self.into(rest):
            input_.clear(self.network.input.size)
        with self.into(ranking):
            best.store(0)
            if outputs > 1:
                with code.loop(1, outputs, name="i") as i:
                    largest = scores[best.load()].named("largest")
                    with code.when(scores[i] > largest):
                        best.store(i)
            with code.loop(0, outputs, name="i") as i:
                sent[i] = self.output(i)
        return {"rest": rest, "read": [*self.from_numbers, *self.static], "step": [*self.step, *ranking]}


def to_verilog(
    net: Quantized, example: Tensor, *, scores: str = "sum", samples: int = 20, adders: int = 1
) -> VerilogProgram:
    """`net` as one self-contained, synthesizable Verilog file, and a testbench.

    The circuit is a state machine that runs the statements of :func:`to_c`, with one memory per array. For
    each spike, it adds `adders` weights per cycle. Its states, sums and spikes equal those of the C program
    and of `net` in PyTorch.

    ============================  ====================================================================
    ``clk``, ``rst``              clock; a reset, after which the network is at rest
    ``s_axis_t{data,valid,...}``  the inputs of a step as bytes, in PyTorch's order, while ``ready``
    ``start``                     runs a step; without new inputs, on those of the step before
    ``clear``                     sets the network to rest
    ``ready``                     1 while the circuit waits
    ``m_axis_t{data,valid,...}``  the outputs of the step, 32 bits each; ``tlast`` with the last one
    ``class_index``               the index of the largest score
    ============================  ====================================================================

    Args:
        net: the result of :func:`quantize`.
        example: inputs ``[T, batch, ...]``; the testbench plays the first `samples` of the batch.
        scores: the reduction of the outputs over time, as of :func:`to_c`.
        samples: the number of samples in the testbench.
        adders: the number of weights of a row that are added in one cycle: 1, 2, 4, 8, 16 or 32. Rows of
            convolutions, a weight per output channel, use the largest of these numbers that divides the
            channels and is not larger than `adders`.

    Raises:
        TypeError: if `net` does not compute in integers, or `example` is not floating-point.
        ValueError: if `adders` is another number, or `example` has another shape.
        Unsupported: naming the layer, if it has no form in C.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), hb.IF())
    >>> x = torch.rand(8, 2, 4)
    >>> program = hb.convert.to_verilog(hb.quantize(net, x)[0], x)
    >>> "module net" in program.source
    True
    """
    if not isinstance(net, Quantized):
        raise TypeError(f"net must be the result of hb.quantize, got {type(net).__name__}")
    if adders not in ADDERS:
        raise ValueError(f"adders must be one of {', '.join(map(str, ADDERS))}, got {adders}")
    unit = build_unit(net, example, "net", scores, partial(_Unit, adders=adders))
    assert isinstance(unit, _Unit)
    machine, state_ranges = _machine(unit)
    arrays = list(machine.circuit.arrays.values())
    constants = sum(a.bits * a.count for a in arrays if a.values is not None)
    changing = sum(a.bits * a.count for a in arrays if a.values is None)
    source = module_text(unit, machine, state_ranges, str(net))
    bench, recording = testbench(unit, net, example[:, :samples], unit.spike_arrays())
    count, inputs = machine.circuit.state + 1, unit.network.input.size
    return VerilogProgram(source, bench, recording, constants, changing, count, inputs, len(example))


def _machine(unit: _Unit) -> tuple[Machine, dict[str, tuple[int, int]]]:
    """The state machine of the statements of `unit`, and the first and last state of each program.

    Each pass limits the words of an array to the elements that loops of the previous pass handle together.
    """
    bodies = unit.programs()
    unit.drop_unused_constants(map(tuple, bodies.values()))
    names = [name for name, *_ in (*unit.constants, *unit.memory.fields())]
    fixed = {*unit.spike_arrays().values(), "input"}
    lanes = {name: unit.adders for name in names if name not in fixed and unit.adders > 1}
    while True:
        machine = Machine(*_memory(unit, lanes), unit.largest)
        programs = {name: machine.run(body) for name, body in bodies.items()}
        if machine.lanes == lanes:
            return machine, programs
        lanes = machine.lanes


def _memory(unit: _Unit, lanes: dict[str, int]) -> tuple[list[Array], dict[str, int]]:
    """The arrays of the program, with words of `lanes` elements, and the largest value of each counter."""
    arrays, counters = list[Array](), {"best": unit.network.output.size}
    for name, _, numbers in unit.constants:
        size, stride = unit.strides.get(name, (1, 1))
        padded = nn.functional.pad(numbers.reshape(-1, size), (0, stride - size))
        values = tuple(int(number) for number in padded.flatten().tolist())
        low, high = min(0, *values), max(1, *values)
        arrays.append(Array(name, low, high, len(values), values, lanes.get(name, 1)))
    ranges = {
        "int32_t": (-unit.largest - 1, unit.largest),
        "uint8_t": (0, 1),  # of binary numbers; the inputs have another range
        unit.index: (0, max(node.size for node in unit.network.nodes)),
    }
    inputs = (0, 255) if unit.arithmetic.input == "uint8_t" else (-128, 127)
    fields = {name: (kind, count) for name, kind, count in unit.memory.fields()}
    fields["input"] = unit.arithmetic.input, unit.network.input.size
    fields["sent"] = "int32_t", unit.network.output.size
    for name, (kind, count) in fields.items():
        if count:
            range_ = inputs if name == "input" else ranges[kind]
            arrays.append(Array(name, *range_, count, lanes=lanes.get(name, 1)))
        else:
            counters[name] = (1 << 8 * SIZES[kind]) - 1
    return arrays, counters
