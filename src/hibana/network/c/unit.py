"""The two files of a program: its layers, the functions that run them, and the header."""

import re
from textwrap import indent

from hibana.network.c.arithmetic import Arithmetic
from hibana.network.c.costs import Cost, neurons_below
from hibana.network.c.emitter import Emitter
from hibana.network.c.text import block, commented, each
from hibana.network.graph import Network, Node
from hibana.network.lowering import Activations, in_order

__all__ = ["Unit"]


class Unit(Emitter):
    """The layers of a network, written in C."""

    def __init__(self, network: Network, numbers: Arithmetic, name: str, scores: str, steps: int) -> None:
        super().__init__(network, numbers, name)
        self.scores, self.steps = scores, steps
        self.costs: list[Cost] = []
        self.from_numbers: list[str] = []
        """Statements that read an array of inputs."""
        self.from_events: list[str] = []
        """Statements that read a list of the inputs that are 1."""
        self.still_lines: list[str] = []
        """Statements whose results change only with the input."""
        self.every_step: list[str] = []
        """Statements of every step."""
        self._add_input()
        for node in network.nodes[1:]:
            self._add_layer(node)
        self.every_step += self._add_scores()

    def _add_input(self) -> None:
        node, kind = self.network.input, self.arithmetic.input
        users = [user.kind in ("linear", "convolution") and user in self.static_nodes for user in node.users]
        self._keeps_input = not (users and all(users)) or node is self.network.output
        """Whether the input must lie in the struct."""
        array = "input"
        if self._keeps_input:
            array = self.memory.lasting("input", kind, node.size)
            self.from_numbers += each("i", node.size, [f"{array}[i] = input[i];"])
            self.from_events += each("i", node.size, [f"{array}[i] = 0;"])
            set_one = [f"if (events[k] < {node.size})", f"    {array}[events[k]] = 1;"]
            self.from_events += each("k", "count", set_one)
        pointer = self.pointer(array, kind if self._keeps_input else f"const {kind}")
        self.activations[node] = Activations(node, in_order(node.size), pointer)

    def _add_layer(self, node: Node) -> None:
        """Writes a layer; one that reads the input directly has two forms."""
        if node in self.static_nodes and self.network.input in node.inputs and not self._keeps_input:
            self.from_numbers += self._layer(node)
            self.events = True
            self.from_events += self._layer(node)
            self.events = False
        else:
            (self.still_lines if node in self.static_nodes else self.every_step).extend(self._layer(node))
        if node.kind == "delay":
            return
        most, at_rates, dense = node.layer.operations(node, self.dtype)
        source = node if node.kind in ("neurons", "delayed recurrent") else neurons_below(node)
        size = node.size if source is node else node.inputs[0].size
        multiplies = node.layer.weighted and not self.activations[node.inputs[0]].binary
        title = node.layer.title(node)
        self.costs.append(
            Cost(node.name, title, node.size, most, at_rates, multiplies, dense, source.name, size)
        )

    def _layer(self, node: Node) -> list[str]:
        self.begin(node)
        held = self.activations[node] = node.layer.lower(node, self)
        if held.binary and node.kind not in ("neurons", "delayed recurrent"):
            self.allocate_list(held)
        self.list_spikes(held)
        title = commented(f"{node.name}: {node.layer.title(node)}")
        comment = f"/* {title}, gives {'x'.join(map(str, node.shape))} */"
        return block("", [comment, *self.writer.take()])

    def _add_scores(self) -> list[str]:
        """Statements that add the output to the scores."""
        size, out = self.network.output.size, self.output("i")
        scores = self.memory.lasting("scores", self.arithmetic.kind, size)
        lowest = self.arithmetic.lowest if self.scores == "max" else "0"
        self.resets += each("i", size, [f"{scores}[i] = {lowest};"])
        if self.scores == "first":
            seen = self.memory.lasting("seen", "uint8_t", size)
            self.resets += each("i", size, [f"{seen}[i] = 0;"])
            later = [f"if ({out} != 0)", f"    {seen}[i] = 1;", f"if (!{seen}[i])", f"    {scores}[i] -= 1;"]
            return each("i", size, later)
        if self.scores == "max":
            return each("i", size, [f"if ({out} > {scores}[i])", f"    {scores}[i] = {out};"])
        return each("i", size, [f"{scores}[i] {'+=' if self.scores == 'sum' else '='} {out};"])

    def source(self, about: str) -> str:
        """The file of C."""
        name, kind, index, given = self.name, self.arithmetic.kind, self.index, self.arithmetic.input
        inputs, outputs = f"{name.upper()}_INPUTS", f"{name.upper()}_OUTPUTS"
        statements = [
            *self.from_numbers,
            *self.from_events,
            *self.still_lines,
            *self.every_step,
            *self.resets,
        ]
        library = ["#include <math.h>"] if any(map(_OF_MATH.search, [*self.constants, *statements])) else []
        helpers, call = self.helpers, [f"{name}_still(net);"] if self.still_lines else []
        if self.still_lines:
            helpers = [*helpers, *block(f"static void {name}_still({name}_state *net)", self.still_lines)]
        return f"""\
{self._comment(about)}

{_lines([f'#include "{name}.h"', *library, *self.arithmetic.guards])}
{_lines(self.constants)}
{_lines(helpers)}
static void {name}_read_events({name}_state *net, const {index} *events, size_t count) {{
{_lines([*self.from_events, *call], 1)}}}

static void {name}_go({name}_state *net) {{
{_lines(self.every_step, 1)}}}

void {name}_reset({name}_state *net) {{
{_lines(self.resets, 1)}    {name}_read_events(net, 0, 0);
}}

void {name}_step({name}_state *net, const {given} input[{inputs}]) {{
    if (input) {{
{_lines([*self.from_numbers, *call], 2)}    }}
    {name}_go(net);
}}

void {name}_step_events({name}_state *net, const {index} *events, size_t count) {{
    {name}_read_events(net, events, count);
    {name}_go(net);
}}

void {name}_output(const {name}_state *net, {kind} output[{outputs}]) {{
    for (size_t i = 0; i < {outputs}; i++)
        output[i] = {self.output("i")};
}}

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

    def header(self, about: str) -> str:
        """The header."""
        name, upper, kind, index = self.name, self.name.upper(), self.arithmetic.kind, self.index
        return f"""\
{self._comment(about)}

#ifndef {upper}_H
#define {upper}_H

#include <stddef.h>
#include <stdint.h>

#define {upper}_INPUTS {self.network.input.size}
#define {upper}_OUTPUTS {self.network.output.size}
#define {upper}_STEPS {self.steps} /* {self.arithmetic.runs} */

typedef struct {{
{_lines(self.memory.fields(), 1)}}} {name}_state;

#ifdef __cplusplus
extern "C" {{
#endif

/* Sets the network to rest; call it first. */
void {name}_reset({name}_state *net);
/* One step on numbers, in PyTorch's order; 0 repeats the input of the step before. */
void {name}_step({name}_state *net, const {self.arithmetic.input} input[{upper}_INPUTS]);
/* One step on the indices of the inputs that are 1. In rising order, sums are the same to the last bit;
   indices beyond the inputs are left out. */
void {name}_step_events({name}_state *net, const {index} *events, size_t count);
/* The output of the last step. */
void {name}_output(const {name}_state *net, {kind} output[{upper}_OUTPUTS]);
/* {_SCORES[self.scores]} since the reset, and the index of the largest. */
void {name}_scores(const {name}_state *net, {kind} scores[{upper}_OUTPUTS]);
size_t {name}_class(const {name}_state *net);

#ifdef __cplusplus
}}
#endif

#endif
"""

    def _comment(self, about: str) -> str:
        """A description of the network, its memory and its operations."""
        rows = [f"{'layer':16} {'':12} {'numbers':>8} {'at most':>14} {'seen':>14}"]
        for cost in self.costs:
            row = f"{commented(cost.name):16.16} {commented(cost.what):12} {cost.numbers:8,}"
            products = "  with as many products" if cost.multiplies else ""
            rows.append(f"{row} {cost.additions:14,} {round(cost.seen):14,}{products}")
        most, at_rates = sum(cost.additions for cost in self.costs), sum(cost.seen for cost in self.costs)
        lines = [
            *map(commented, about.splitlines()),
            "",
            f"Memory: {self.constant_bytes:,} bytes of constants, {self.memory.bytes():,} that change.",
            "",
            "Operations of a step, at most, and at the rates of the example:",
            *rows,
            f"{'together':38} {most:14,} {round(at_rates):14,}",
        ]
        lines += ["", *map(commented, self.arithmetic.remarks)] if self.arithmetic.remarks else []
        if len(self.network.static_nodes) > 1:
            names = ", ".join(commented(node.name) for node in self.network.static_nodes[1:])
            lines += ["", f"An input that stays the same (0 given) costs nothing again in {names}."]
        if self.functions:
            lines += [
                "",
                f"{', '.join(sorted(self.functions))}: no standard defines the last bit of these, so spikes",
                "may differ from PyTorch's where a potential comes within rounding of a threshold.",
            ]
        head = f"/* {self.name}: a spiking network written by hibana, one sample, one step at a time."
        return f"{head}\n\n{indent(chr(10).join(lines), '   ')}\n*/"


def _lines(lines: list[str], depth: int = 0) -> str:
    """Lines of C, indented."""
    return indent("".join(f"{line}\n" for line in lines), "    " * depth)


_OF_MATH = re.compile(r"\b(?:INFINITY|NAN|[a-z]+[a-z0-9]*\()")
"""Constants and functions of math.h; the program's own functions have an underscore in their names."""
_SCORES = {
    "sum": "The sum of the outputs",
    "max": "The largest outputs",
    "last": "The last outputs",
    "first": "Minus the steps before the first spike",
}
