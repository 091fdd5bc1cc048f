"""``hb.convert.to_verilog``: an integer network as one Verilog file, from the statements of its C program."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hibana.compiler.graph.ops import Unsupported
from hibana.network.c.program import build_unit
from hibana.network.c.unit import Unit
from hibana.network.integer_network import Quantized
from hibana.network.lowering import Activations, times
from hibana.network.verilog.expressions import INDEX_BITS
from hibana.network.verilog.schedule import Array, Machine
from hibana.network.verilog.testbench import testbench
from hibana.runtime import files
from hibana.runtime.kernels import Pointer

__all__ = ["VerilogProgram", "to_verilog"]

_BITS = {"int8_t": 8, "uint8_t": 8, "int16_t": 16, "uint16_t": 16, "int32_t": 32, "uint32_t": 32}


@dataclass(frozen=True)
class VerilogProgram:
    """A network as a circuit."""

    source: str
    """The module ``net``."""
    testbench: str
    """The module ``net_tb``, which plays samples and compares all spikes."""
    weight_bits: int
    """Bits of constants."""
    state_bits: int
    """Bits of memory that changes."""
    states: int
    """States of the state machine."""

    def write(self, path: Path | str) -> tuple[Path, Path]:
        """Writes the module to `path`, which ends in ``.v``, and the testbench beside it as ``*_tb.v``."""
        target = Path(path)
        bench = target.with_name(f"{target.stem}_tb.v")
        files.write(target, self.source.encode())
        files.write(bench, self.testbench.encode())
        return target, bench


class _Unit(Unit):
    """The C statements of a network in a form for circuits, which add one row of weights at a time."""

    target = "Verilog"

    def add_rows(self, inputs: Activations, rows: Pointer, size: int, out: Pointer) -> None:
        """``out += sum_i x_i rows[i]`` over nonzero inputs x, for `rows` ``[inputs, size]``."""
        with self.each_nonzero(inputs) as (i, x):
            row = (rows + i * size).named("row")
            with self.code.loop(0, size, name="o") as o:
                out[o] = out[o] + times(row[o], x)


def to_verilog(net: Quantized, example: Tensor, *, scores: str = "sum", samples: int = 20) -> VerilogProgram:
    """`net` as one self-contained, synthesizable Verilog file, and a testbench.

    The circuit is a state machine that runs the statements of :func:`to_c`, with one memory per array. For
    each spike, it adds one weight per cycle. Its states, sums and spikes equal those of the C program and of
    `net` in PyTorch.

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

    Raises:
        TypeError: if `net` does not compute in integers.
        Unsupported: naming the layer, if it has no form in C, or more than 2^20 outputs.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), hb.IF())
    >>> x = torch.rand(8, 2, 4)
    >>> program = hb.convert.to_verilog(hb.quantize(net, x)[0], x)
    >>> "module net" in program.source
    True
    """
    if not isinstance(net, Quantized):
        raise TypeError(f"net must be the result of hb.quantize, got {type(net).__name__}")
    unit = build_unit(net, example, "net", scores, _Unit)
    for node in unit.network.nodes:
        if node.size > 1 << INDEX_BITS:
            raise Unsupported(
                f"layer {node.name!r}: {node.size:,} numbers; circuits index {1 << INDEX_BITS:,}"
            )
    machine, entries = _machine(unit)
    arrays = list(machine.arrays.values())
    constants = sum(a.bits * a.count for a in arrays if a.values is not None)
    changing = sum(a.bits * a.count for a in arrays if a.values is None)
    source = _module(unit, machine, entries, str(net))
    bench = testbench(unit, net, example[:, :samples])
    return VerilogProgram(source, bench, constants, changing, len(machine.states))


def _machine(unit: Unit) -> tuple[Machine, dict[str, int]]:
    """The state machine of the statements of `unit`, and the first state of each program."""
    from pycparser import CParser, c_ast

    index = "int i"
    ranking = [
        "net->best = 0;",
        f"for ({index} = 1; i < {unit.network.output.size}; i++) {{",
        "    const int32_t largest = net->scores[net->best];",
        "    if (net->scores[i] > largest) {",
        "        net->best = i;",
        "    }",
        "}",
    ]
    send = [
        f"for ({index} = 0; i < {unit.network.output.size}; i++) {{",
        f"    net->sent[i] = {unit.output('i')};",
        "}",
    ]
    programs = {
        "rest": [*unit.resets, "const int count = 0;", *unit.from_events, *unit.static_lines],
        "read": [*unit.from_numbers, *unit.static_lines],
        "step": [*unit.step_lines, *ranking, *send],
    }
    types = "".join(f"typedef int {kind};\n" for kind in (*_BITS, "int64_t", "size_t"))
    functions = "".join(
        f"void {name}(void) {{\n{chr(10).join(lines)}\n}}\n" for name, lines in programs.items()
    )
    tree: Any = CParser().parse(types + re.sub(r"/\*.*?\*/", "", functions, flags=re.DOTALL))
    arrays, scalars = _memory(unit)
    machine = Machine(arrays, [*scalars, "best"])
    entries: dict[str, int] = {}
    for function in tree.ext:
        if isinstance(function, c_ast.FuncDef):
            name = function.decl.name
            entries[name] = machine.run(function.body.block_items or [])
            entries[f"{name}_end"] = len(machine.states) - 1
    return machine, entries


def _memory(unit: Unit) -> tuple[list[Array], list[str]]:
    """The arrays of the program, and the names of its variables that are numbers."""
    arrays, scalars = [], []
    for name, kind, values in unit.constants:
        numbers = tuple(int(number) for number in values.flatten().tolist())
        arrays.append(Array(name, _BITS[kind], len(numbers), not kind.startswith("u"), numbers))
    for name, kind, count in unit.memory.fields():
        if count:
            arrays.append(Array(name, _BITS[kind], count, not kind.startswith("u")))
        else:
            scalars.append(name)
    kind = unit.arithmetic.input
    if not any(array.name == "input" for array in arrays):
        arrays.append(Array("input", _BITS[kind], unit.network.input.size, kind == "int8_t"))
    arrays.append(Array("sent", 32, unit.network.output.size, signed=True))
    return arrays, scalars


def _module(unit: Unit, machine: Machine, entries: dict[str, int], description: str) -> str:
    """The text of the module ``net``."""
    inputs, outputs, count = unit.network.input.size, unit.network.output.size, len(machine.states)
    bits = (count + 2).bit_length()
    idle, send, show = (f"{bits}'d{count + k}" for k in range(3))
    ends = {
        entries["rest_end"]: f"state <= {idle};",
        entries["read_end"]: f"state <= {bits}'d{entries['step']}; fresh <= 1'b0;",
        entries["step_end"]: f"state <= {send}; place <= 32'sd0;",
    }
    cases = []
    for number, state in enumerate(machine.states):
        jump = ends.get(number)
        if jump is None:
            jump = f"state <= {bits}'d{state.next};"
            if state.condition:
                jump = f"state <= {state.condition} ? {bits}'d{state.next} : {bits}'d{state.otherwise};"
        cases.append(f"{bits}'d{number}: begin {' '.join([*state.assignments, jump])} end")
    machine.arrays["sent"].reads.append((count + 1, f"place[{machine.arrays['sent'].address_bits - 1}:0]"))
    received = f"received[{machine.arrays['input'].address_bits - 1}:0]"
    machine.arrays["input"].writes.append((count, received, "s_axis_tdata", "s_axis_tvalid"))
    title = "\n".join(
        f"// {line}"
        for line in ["net: a spiking network in integers, written by hibana", "", *description.splitlines()]
    )
    widths = {name: 64 if name.endswith("_64") else 32 for name in machine.registers}
    memories = [line for array in machine.arrays.values() for line in _array(array, bits)]
    return f"""\
{title}

/* verilator lint_off UNUSEDSIGNAL */
/* verilator lint_off UNUSEDPARAM */
module net (
    input wire clk,
    input wire rst,
    input wire start,
    input wire clear,
    output wire ready,
    input wire [7:0] s_axis_tdata,
    input wire s_axis_tvalid,
    output wire s_axis_tready,
    output wire [31:0] m_axis_tdata,
    output wire m_axis_tvalid,
    input wire m_axis_tready,
    output wire m_axis_tlast,
    output wire [31:0] class_index
);

reg [{bits - 1}:0] state;
reg fresh;  // new inputs have arrived since the last step
reg [31:0] received;
reg signed [31:0] place;
{_lines(f"reg signed [{width - 1}:0] {name};" for name, width in widths.items())}
assign ready = state == {idle};
assign s_axis_tready = ready;
assign m_axis_tvalid = state == {show};
assign m_axis_tdata = q_sent;
assign m_axis_tlast = place == 32'sd{outputs - 1};
assign class_index = r_best;

{_lines(memories)}
{_lines(machine.wires.lines)}
always @(posedge clk) begin
    if (rst) begin
        state <= {bits}'d{entries["rest"]};
        fresh <= 1'b0;
        received <= 32'd0;
    end else case (state)
        {idle}: begin
            if (s_axis_tvalid) begin
                received <= received == 32'd{inputs - 1} ? 32'd0 : received + 32'd1;
                if (received == 32'd{inputs - 1}) fresh <= 1'b1;
            end else if (clear) state <= {bits}'d{entries["rest"]};
            else if (start) state <= fresh ? {bits}'d{entries["read"]} : {bits}'d{entries["step"]};
        end
        {send}: state <= {show};
        {show}: if (m_axis_tready) begin
            place <= place + 32'sd1;
            state <= m_axis_tlast ? {idle} : {send};
        end
{_lines(cases, "        ")}        default: state <= {idle};
    endcase
end

endmodule
"""


def _array(array: Array, state_bits: int) -> list[str]:
    """The lines of a memory: its numbers, its ports, and the states that use them."""
    name, bits, address = array.name, array.bits, f"[{array.address_bits - 1}:0]"
    lines = [f"reg [{bits - 1}:0] m_{name} [0:{array.count - 1}];"]
    if array.values is not None:
        lines += _constants(array)
    if array.reads:
        sign = f"{{{32 - bits}{{o_{name}[{bits - 1}]}}}}" if array.signed else f"{32 - bits}'d0"
        value = f"o_{name}" if bits == 32 else f"{{{sign}, o_{name}}}"
        lines += [
            f"reg [{bits - 1}:0] o_{name};",
            f"wire signed [31:0] q_{name} = {value};",
            *_port(f"r_{name}", [("a", address)], [(s, (a,), "1'b1") for s, a in array.reads], state_bits),
            f"always @(posedge clk) if (r_{name}_e) o_{name} <= m_{name}[r_{name}_a];",
        ]
    if array.writes:
        parts = [("a", address), ("d", f"[{bits - 1}:0]")]
        writes = [(s, (a, d), enable) for s, a, d, enable in array.writes]
        lines += [
            *_port(f"w_{name}", parts, writes, state_bits),
            f"always @(posedge clk) if (w_{name}_e) m_{name}[w_{name}_a] <= w_{name}_d;",
        ]
    return [*lines, ""]


CHUNK = 256
"""Numbers of a constant array in one literal: simulators and yosys are slow with longer ones."""


def _constants(array: Array) -> list[str]:
    """The lines that initialize a constant array, from literals of CHUNK numbers."""
    assert array.values is not None
    bits, lines = array.bits, [f"integer i_{array.name};"]
    for first in range(0, array.count, CHUNK):
        numbers = array.values[first : first + CHUNK]
        literal = sum((number & ((1 << bits) - 1)) << (bits * i) for i, number in enumerate(numbers))
        name = f"C_{array.name}_{first // CHUNK}"
        index = f"i_{array.name}"
        lines += [
            f"localparam [{bits * len(numbers) - 1}:0] {name} = {bits * len(numbers)}'h{literal:x};",
            f"initial for ({index} = 0; {index} < {len(numbers)}; {index} = {index} + 1) "
            f"m_{array.name}[{first} + {index}] = {name}[{bits} * {index} +: {bits}];",
        ]
    return lines


def _port(
    name: str, parts: list[tuple[str, str]], uses: Sequence[tuple[int, tuple[str, ...], str]], state_bits: int
) -> list[str]:
    """A port of a memory: whether it is used, and the values of its `parts`, in each state."""
    choices = [
        f"        {state_bits}'d{state}: begin {name}_e = {enable}; "
        + " ".join(f"{name}_{part} = {value};" for (part, _), value in zip(parts, values, strict=True))
        + " end"
        for state, values, enable in uses
    ]
    zeros = [f"    {name}_{part} = 0;" for part, _ in parts]
    return [
        f"reg {name}_e;",
        *(f"reg {width} {name}_{part};" for part, width in parts),
        "always @* begin",
        f"    {name}_e = 1'b0;",
        *zeros,
        "    case (state)",
        *choices,
        "        default: ;",
        "    endcase",
        "end",
    ]


def _lines(lines: Any, indent: str = "") -> str:
    """Lines of text."""
    return "".join(f"{indent}{line}\n" for line in lines)
