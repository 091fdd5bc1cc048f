"""The text of the module ``net``: its ports, memories, registers, wires, and the state machine."""

from collections.abc import Iterable
from itertools import islice

from hibana.network.c.unit import Unit
from hibana.network.verilog.circuit import Array, Expression, Signal
from hibana.network.verilog.statements import Machine

__all__ = ["module_text"]


def module_text(unit: Unit, machine: Machine, programs: dict[str, tuple[int, int]], description: str) -> str:
    """The text of the module ``net``, with three more states: to wait for inputs, and to send an output.

    `programs` are the first and the last state of each program.
    """
    inputs, outputs = unit.network.input.size, unit.network.output.size
    circuit = machine.circuit
    waits = circuit.start_state()
    circuit.write_port("input", "s_axis_tvalid", "received", "s_axis_tdata")
    sends = circuit.start_state()
    circuit.read_port("sent", "place")
    bits = circuit.start_state().bit_length()
    idle, send, show = (f"{bits}'d{state}" for state in (waits, sends, circuit.state))
    start = {name: f"{bits}'d{first}" for name, (first, _) in programs.items()}
    following = {number: f"{bits}'d{number + 1}" for number in range(waits)}
    for number, (condition, target) in circuit.jumps.items():
        following[number] = f"{condition} ? {following[number]} : {bits}'d{target}"
    ends = {"rest": idle, "read": start["step"], "step": send}
    following |= {last: ends[name] for name, (_, last) in programs.items()}
    processes = [line for name, signal in circuit.signals.items() for line in _process(name, signal, bits)]
    sent = circuit.arrays["sent"]
    input_bits, place_bits = circuit.arrays["input"].address_bits, sent.address_bits
    title = ["net: a spiking network in integers, written by hibana", "", *description.splitlines()]
    return f"""\
{_lines(f"// {line}" for line in title)}
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
reg fresh;  // the inputs have changed since the last step
reg [{input_bits - 1}:0] received;  // numbers of the next input
reg [{place_bits - 1}:0] place;  // number of outputs that were sent
integer n;
{_lines(f"reg [{width - 1}:0] {name};" for name, width in circuit.registers.items())}
{_lines(line for array in circuit.arrays.values() for line in _array(array, circuit.signals))}
{_lines(_wire(wire, text) for (text, *_), wire in circuit.wires.items())}
wire is_last = received == {input_bits}'d{inputs - 1};
assign ready = state == {idle};
assign s_axis_tready = ready;
assign m_axis_tvalid = state == {show};
assign m_axis_tdata = {sent.result().low_bits(32)};
assign m_axis_tlast = place == {place_bits}'d{outputs - 1};
assign class_index = {{{32 - circuit.registers["r_best"]}'d0, r_best}};

always @(posedge clk) begin
    if (rst) begin
        state <= {start["rest"]};
        fresh <= 1'b1;
        received <= {input_bits}'d0;
    end else case (state)
        {idle}: begin
            place <= {place_bits}'d0;
            if (s_axis_tvalid) begin
                received <= is_last ? {input_bits}'d0 : received + {input_bits}'d1;
                if (is_last) fresh <= 1'b1;
            end else if (clear) begin
                state <= {start["rest"]};
                fresh <= 1'b1;
            end else if (start) begin
                state <= fresh ? {start["read"]} : {start["step"]};
                fresh <= 1'b0;
            end
        end
        {send}: state <= {show};
        {show}: if (m_axis_tready) begin
            place <= place + {place_bits}'d1;
            state <= m_axis_tlast ? {idle} : {send};
        end
{_lines(f"        {bits}'d{number}: state <= {state};" for number, state in following.items())}\
        default: state <= {idle};
    endcase
end

{_lines(processes)}
endmodule
"""


def _wire(wire: Expression, text: str) -> str:
    """The line that defines a wire with the value `text`."""
    return f"wire signed [{wire.bits - 1}:0] {wire.text} = {text};"


def _array(array: Array, signals: Iterable[str]) -> list[str]:
    """The lines of a memory: its words, its ports, and the elements that were read."""
    name, bits, lanes = array.name, array.bits, array.lanes
    word, index = f"[{bits * lanes - 1}:0]", f"[{array.address_bits - 1}:0]"
    address = f"[{array.address_bits - 1}:{array.lane_bits}]"
    lines = [f"reg {word} m_{name} [0:{array.words - 1}];", *_constants(array)]
    if f"r_{name}_e" in signals:
        lines += [
            f"reg r_{name}_e;",
            f"reg {index} r_{name}_a, i_{name};",
            f"reg {word} o_{name};",
            f"always @(posedge clk) if (r_{name}_e) o_{name} <= m_{name}[r_{name}_a{address}];",
            f"always @(posedge clk) if (r_{name}_e) i_{name} <= r_{name}_a;",
        ]
        last = f"{bits} * i_{name}[{array.lane_bits - 1}:0]" if lanes > 1 else "0"
        elements = [(None, last), *((lane, f"{bits * lane}") for lane in range(lanes) if lanes > 1)]
        sign = "1'b0, " if array.low >= 0 else ""
        for lane, first in elements:
            lines.append(_wire(array.result(lane), f"{{{sign}o_{name}[{first} +: {bits}]}}"))
    if f"w_{name}_e" in signals:
        lines += [f"reg [{lanes - 1}:0] w_{name}_e;", f"reg {index} w_{name}_a;", f"reg {word} w_{name}_d;"]
        for lane in range(lanes):
            part = f"[{bits * lane} +: {bits}]"
            lines.append(
                f"always @(posedge clk) if (w_{name}_e[{lane}]) "
                f"m_{name}[w_{name}_a{address}]{part} <= w_{name}_d{part};"
            )
    return [*lines, ""]


CHUNK = 256
"""Words of a constant array in one literal: simulators and yosys are slow with longer ones."""


def _constants(array: Array) -> list[str]:
    """The lines that initialize a constant array, from literals of CHUNK words."""
    lines, name, width = [], array.name, array.bits * array.lanes
    values = iter(array.values or ())
    for first in range(0, array.words if array.values else 0, CHUNK):
        count = min(CHUNK, array.words - first)
        numbers = islice(values, count * array.lanes)
        literal = sum((number % (1 << array.bits)) << (array.bits * i) for i, number in enumerate(numbers))
        lines += [
            f"localparam [{width * count - 1}:0] C_{name}_{first} = {width * count}'h{literal:x};",
            f"initial for (n = 0; n < {count}; n = n + 1) "
            f"m_{name}[{first} + n] = C_{name}_{first}[{width} * n +: {width}];",
        ]
    return lines


def _process(name: str, signal: Signal, bits: int) -> list[str]:
    """The process with the assignments to the signal `name` in each state, a number of `bits` bits."""
    operator = "=" if signal.at_once else "<="
    lines = [(state, f"{name}{part} {operator} {value}") for state, part, value in signal.assignments]
    default = {"register": "", "enable": f"{name} {operator} 0"}.get(signal.kind)
    if default is None:
        _, default = lines.pop()
    return [
        f"always @({'*' if signal.at_once else 'posedge clk'}) case (state)",
        *(f"    {bits}'d{state}: {assignment};" for state, assignment in lines),
        f"    default: {default};",
        "endcase",
    ]


def _lines(lines: Iterable[str]) -> str:
    """Lines of text."""
    return "".join(f"{line}\n" for line in lines)
