"""The text of the module ``net``: its ports, memories, wires, and the state machine."""

from collections.abc import Sequence
from typing import Any

from hibana.network.c.unit import Unit
from hibana.network.verilog.schedule import Array
from hibana.network.verilog.statements import Machine

__all__ = ["module_text"]


def module_text(unit: Unit, machine: Machine, entries: dict[str, int], description: str) -> str:
    """The text of the module ``net``."""
    inputs, outputs = unit.network.input.size, unit.network.output.size
    states, arrays = machine.schedule.states, machine.schedule.arrays
    count = len(states)
    bits = (count + 2).bit_length()
    idle, send, show = (f"{bits}'d{count + k}" for k in range(3))
    ends = {
        entries["rest_end"]: f"state <= {idle};",
        entries["read_end"]: f"state <= {bits}'d{entries['step']}; fresh <= 1'b0;",
        entries["step_end"]: f"state <= {send}; place <= 32'sd0;",
    }
    cases = []
    for number, state in enumerate(states):
        jump = ends.get(number)
        if jump is None:
            jump = f"state <= {bits}'d{state.next};"
            if state.condition:
                jump = f"state <= {state.condition} ? {bits}'d{state.next} : {bits}'d{state.otherwise};"
        cases.append(f"{bits}'d{number}: begin {' '.join([*state.assignments, jump])} end")
    arrays["sent"].reads.append((count + 1, "1'b1", f"place[{arrays['sent'].address_bits - 1}:0]"))
    received = f"received[{arrays['input'].address_bits - 1}:0]"
    arrays["input"].writes.append((count, "s_axis_tvalid", received, "s_axis_tdata"))
    title = "\n".join(
        f"// {line}"
        for line in ["net: a spiking network in integers, written by hibana", "", *description.splitlines()]
    )
    widths = {name: 64 if name.endswith("_64") else 32 for name in machine.schedule.registers}
    memories = [line for array in arrays.values() for line in _array(array, bits)]
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
    """The lines of a memory: its words, its ports, and the states that use them."""
    name, bits, lanes = array.name, array.bits, array.lanes
    address, width = f"[{array.address_bits - 1}:0]", f"[{bits * lanes - 1}:0]"
    words = -(-array.count // lanes)
    lines = [f"reg {width} m_{name} [0:{words - 1}];"]
    if array.values is not None:
        lines += _constants(array, words)
    if array.reads:
        lines += [
            f"reg {width} o_{name};",
            *_port(f"r_{name}", [("e", "", "1'b0"), ("a", address, "0")], array.reads, state_bits),
            f"always @(posedge clk) if (r_{name}_e) o_{name} <= m_{name}[{_word(array, 'r')}];",
            *_results(array),
        ]
    if array.writes:
        enable = f"[{lanes - 1}:0]" if lanes > 1 else ""
        parts = [("e", enable, "0"), ("a", address, "0"), ("d", width, "0")]
        lines += _port(f"w_{name}", parts, array.writes, state_bits)
        for lane in range(lanes):
            bit, part = (f"[{lane}]", f"[{bits * lane + bits - 1}:{bits * lane}]") if lanes > 1 else ("", "")
            lines.append(
                f"always @(posedge clk) if (w_{name}_e{bit}) "
                f"m_{name}[{_word(array, 'w')}]{part} <= w_{name}_d{part};"
            )
    return [*lines, ""]


def _word(array: Array, port: str) -> str:
    """The address of a word at a port: the highest bits of the index of an element."""
    part = f"[{array.address_bits - 1}:{array.lane_bits}]" if array.lanes > 1 else ""
    return f"{port}_{array.name}_a{part}"


def _results(array: Array) -> list[str]:
    """The lines that extend the element that was read, and each element of its word, to 32 bits."""
    name, bits, lane = array.name, array.bits, f"[{array.lane_bits - 1}:0]"
    elements = [(f"q_{name}", f"o_{name}")]
    lines = []
    if array.lanes > 1:
        lines = [
            f"reg {lane} l_{name};",
            f"always @(posedge clk) if (r_{name}_e) l_{name} <= r_{name}_a{lane};",
            f"wire [{bits - 1}:0] e_{name} = o_{name}[{bits} * l_{name} +: {bits}];",
        ]
        parts = [(f"q_{name}_{k}", f"e_{name}_{k}", bits * k) for k in range(array.lanes)]
        lines += [f"wire [{bits - 1}:0] {part} = o_{name}[{low} +: {bits}];" for _, part, low in parts]
        elements = [(f"q_{name}", f"e_{name}"), *((result, part) for result, part, _ in parts)]
    for result, element in elements:
        sign = f"{{{32 - bits}{{{element}[{bits - 1}]}}}}" if array.signed else f"{32 - bits}'d0"
        value = element if bits == 32 else f"{{{sign}, {element}}}"
        lines.append(f"wire signed [31:0] {result} = {value};")
    return lines


CHUNK = 256
"""Words of a constant array in one literal: simulators and yosys are slow with longer ones."""


def _constants(array: Array, words: int) -> list[str]:
    """The lines that initialize the `words` of a constant array, from literals of CHUNK words."""
    assert array.values is not None
    bits, lanes, lines = array.bits, array.lanes, [f"integer i_{array.name};"]
    index = f"i_{array.name}"
    for first in range(0, words, CHUNK):
        numbers = array.values[first * lanes : (first + CHUNK) * lanes]
        count = min(CHUNK, words - first)
        literal = sum((number & ((1 << bits) - 1)) << (bits * i) for i, number in enumerate(numbers))
        name, width = f"C_{array.name}_{first // CHUNK}", bits * lanes
        lines += [
            f"localparam [{width * count - 1}:0] {name} = {width * count}'h{literal:x};",
            f"initial for ({index} = 0; {index} < {count}; {index} = {index} + 1) "
            f"m_{array.name}[{first} + {index}] = {name}[{width} * {index} +: {width}];",
        ]
    return lines


def _port(
    name: str, parts: list[tuple[str, str, str]], uses: Sequence[tuple[Any, ...]], state_bits: int
) -> list[str]:
    """A port of a memory: the value of each part (name, width, value of other states) in each state."""
    choices = [
        f"        {state_bits}'d{state}: begin "
        + " ".join(f"{name}_{part} = {value};" for (part, *_), value in zip(parts, values, strict=True))
        + " end"
        for state, *values in uses
    ]
    return [
        *(f"reg {width} {name}_{part};" for part, width, _ in parts),
        "always @* begin",
        *(f"    {name}_{part} = {default};" for part, _, default in parts),
        "    case (state)",
        *choices,
        "        default: ;",
        "    endcase",
        "end",
    ]


def _lines(lines: Any, indent: str = "") -> str:
    """Lines of text."""
    return "".join(f"{indent}{line}\n" for line in lines)
