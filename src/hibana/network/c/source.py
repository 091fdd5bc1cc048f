"""The two files of a C program: the functions that run a network, and the header."""

from textwrap import indent

from hibana.network.c.code import array, block, comment_text
from hibana.network.c.printer import CONSTANT, CPrinter
from hibana.network.c.unit import SCORES, Unit
from hibana.runtime.loops import Array, Statement

__all__ = ["header", "source"]


def source(unit: Unit, description: str) -> str:
    """The ``.c`` file of the program `unit`, with the `description` of the network in a comment."""
    name, kind, index, input_kind = unit.name, unit.arithmetic.kind, unit.index, unit.arithmetic.input
    inputs, outputs = f"{name.upper()}_INPUTS", f"{name.upper()}_OUTPUTS"
    programs = unit.from_numbers, unit.from_events, unit.static, unit.step, unit.resets, _output(unit)
    bodies = [tuple(statements) for statements in programs]
    unit.drop_unused_constants(bodies)
    printer = CPrinter()
    from_numbers, from_events, static, step, resets, output = map(printer.lines, bodies)
    constants = [line for constant in unit.constants for line in array(*constant, CONSTANT)]
    is_finite = all(bool(values.isfinite().all()) for _, _, values in unit.constants)
    includes = [] if is_finite and not printer.uses_math else ["#include <math.h>"]
    static_function, static_call = [], []
    if static:
        static_function = [*block(f"static void {name}_still({name}_state *net)", static), ""]
        static_call = [f"{name}_still(net);"]
    arguments = f"{name}_state *net, const {index} *events, size_t count"
    return f"""\
{_comment(unit, description)}

{_lines([f'#include "{name}.h"', *includes, *unit.arithmetic.guards, *FLASH * bool(constants)])}
{_lines(constants)}
{_lines([*static_function, f"static void {name}_read_events({arguments}) {{"])}\
{_lines([*from_events, *static_call], 1)}}}

static void {name}_go({name}_state *net) {{
{_lines(step, 1)}}}

void {name}_reset({name}_state *net) {{
{_lines(resets, 1)}    {name}_read_events(net, 0, 0);
}}

void {name}_step({name}_state *net, const {input_kind} input[{inputs}]) {{
    if (input) {{
{_lines([*from_numbers, *static_call], 2)}    }}
    {name}_go(net);
}}

void {name}_step_events({arguments}) {{
    {name}_read_events(net, events, count);
    {name}_go(net);
}}

void {name}_output(const {name}_state *net, {kind} output[{outputs}]) {{
{_lines(output, 1)}}}

void {name}_scores(const {name}_state *net, {kind} scores[{outputs}]) {{
    for (size_t i = 0; i < {outputs}; i++)
        scores[i] = net->scores[i];
}}

size_t {name}_class(const {name}_state *net) {{
    size_t best = 0;
    for (size_t i = 0; i < {outputs}; i++)
        if (net->scores[i] > net->scores[best])
            best = i;
    return best;
}}
"""


def _output(unit: Unit) -> list[Statement]:
    """The statements that copy the output of the last step to the caller's array ``output``."""
    code, statements = unit.code, list[Statement]()
    output = unit.number(code.builder, Array(None, name="output", kind=unit.arithmetic.kind))
    with unit.into(statements), code.loop(0, unit.network.output.size, name="i") as i:
        output[i] = unit.output(i)
    return statements


def header(unit: Unit, description: str) -> str:
    """The header of the program `unit`, with the `description` of the network in a comment."""
    name, upper, kind, index = unit.name, unit.name.upper(), unit.arithmetic.kind, unit.index
    return f"""\
{_comment(unit, description)}

#ifndef {upper}_H
#define {upper}_H

#include <stddef.h>
#include <stdint.h>

#define {upper}_INPUTS {unit.network.input.size}
#define {upper}_OUTPUTS {unit.network.output.size}
#define {upper}_STEPS {unit.steps} /* {unit.arithmetic.steps_comment} */

typedef struct {{
{_lines(unit.memory.declarations(), 1)}}} {name}_state;

#ifdef __cplusplus
extern "C" {{
#endif

/* Sets the network to rest; call it first. */
void {name}_reset({name}_state *net);
/* One step on numbers, in PyTorch's order; 0 repeats the input of the step before. */
void {name}_step({name}_state *net, const {unit.arithmetic.input} input[{upper}_INPUTS]);
/* One step on the indices of the inputs that are 1. In rising order, sums are the same to the last bit;
   indices beyond the inputs are left out. */
void {name}_step_events({name}_state *net, const {index} *events, size_t count);
/* The output of the last step. */
void {name}_output(const {name}_state *net, {kind} output[{upper}_OUTPUTS]);
/* {SCORES[unit.scores]} since the reset, and the index of the largest. */
void {name}_scores(const {name}_state *net, {kind} scores[{upper}_OUTPUTS]);
size_t {name}_class(const {name}_state *net);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _comment(unit: Unit, description: str) -> str:
    """The comment at the top of both files: the network, its memory and its operations."""
    rows = [f"{'layer':16} {'':12} {'numbers':>8} {'at most':>14} {'at rates':>14}"]
    for cost in unit.costs:
        row = f"{comment_text(cost.name):16.16} {comment_text(cost.what):12} {cost.numbers:8,}"
        products = "  with as many products" if cost.multiplies else ""
        rows.append(f"{row} {cost.additions:14,} {round(cost.at_rates):14,}{products}")
    additions, at_rates = sum(c.additions for c in unit.costs), sum(c.at_rates for c in unit.costs)
    lines = [
        *map(comment_text, description.splitlines()),
        "",
        f"Memory: {unit.constant_bytes:,} bytes of constants, {unit.memory.bytes():,} that change.",
        "",
        "Operations of a step, at most, and at the rates of the example:",
        *rows,
        f"{'together':38} {additions:14,} {round(at_rates):14,}",
    ]
    if unit.arithmetic.remarks:
        lines += ["", *map(comment_text, unit.arithmetic.remarks)]
    if len(unit.network.static_nodes) > 1:
        names = ", ".join(comment_text(node.name) for node in unit.network.static_nodes[1:])
        lines += ["", f"An input that stays the same (0 given) costs nothing again in {names}."]
    if unit.functions:
        lines += [
            "",
            f"{', '.join(sorted(unit.functions))}: no standard defines the last bit of these, so spikes",
            "may differ from PyTorch's where a potential comes within rounding of a threshold.",
        ]
    title = f"/* {unit.name}: a spiking network written by hibana, one sample, one step at a time."
    return f"{title}\n\n{indent(chr(10).join(lines), '   ')}\n*/"


def _lines(lines: list[str], depth: int = 0) -> str:
    """Lines of C, indented by `depth` levels."""
    return indent("".join(f"{line}\n" for line in lines), "    " * depth)


FLASH = (
    "",
    "#ifdef __FLASH /* AVR: without it, constants would be copied to RAM */",
    "#define IN_FLASH __flash",
    "#else",
    "#define IN_FLASH",
    "#endif",
)
"""Preprocessor lines that define where constants are."""
