"""The two files of a C program: its layers, the functions that run them, and the header."""

import re
from dataclasses import dataclass
from textwrap import indent

from hibana.network.c.arithmetic import Arithmetic
from hibana.network.c.code import array, block, comment_text, each
from hibana.network.c.emitter import Emitter, Spiking
from hibana.network.graph import Network
from hibana.network.layers import LAYERS
from hibana.network.lowering import Activations
from hibana.network.node import Node, in_order

__all__ = ["SCORES", "Cost", "Unit"]

SCORES = {
    "sum": "The sum of the outputs",
    "max": "The largest outputs",
    "last": "The last outputs",
    "first": "Minus the steps before the first spike",
}
"""Reductions of the outputs over time, with their descriptions in the header."""


@dataclass(frozen=True)
class Cost:
    """The cost of one layer in a step."""

    name: str
    what: str
    """The kind of the layer."""
    numbers: int
    """Number of outputs."""
    additions: int
    """Of weights, if no input is zero; of neurons, all operations."""
    at_rates: float
    """The same at the rates of the example."""
    multiplies: bool
    """Whether each weight is multiplied by a number before it is added."""
    dense: int
    """Multiplications of the dense layer of this shape."""
    source: str
    """The layer whose outputs are multiplied: the neurons before it, or itself if it is recurrent."""
    size: int
    """Number of those outputs."""


class Unit(Emitter):
    """The C program of a network, whose layers are written by the constructor."""

    def __init__(self, network: Network, arithmetic: Arithmetic, name: str, scores: str, steps: int) -> None:
        super().__init__(network, arithmetic, name)
        self.scores, self.steps = scores, steps
        self.costs: list[Cost] = []
        self.from_numbers: list[str] = []
        """Statements that read an array of inputs."""
        self.from_events: list[str] = []
        """Statements that read a list of the inputs that are 1."""
        self.static_lines: list[str] = []
        """Statements whose results change only with the input."""
        self.step_lines: list[str] = []
        """Statements of every step."""
        self._add_input()
        for node in network.nodes[1:]:
            self._add_layer(node)
        self.step_lines += self._score_lines()

    def _add_input(self) -> None:
        """Copies the input to the struct, unless layers before the first neurons alone read it."""
        node, kind = self.network.input, self.arithmetic.input
        direct = [LAYERS[user.kind].weighted and user in self.static_nodes for user in node.users]
        self._copies_input = not (direct and all(direct)) or node is self.network.output
        array = "input"
        if self._copies_input:
            array = self.memory.add("input", kind, node.size)
            self.from_numbers += each("i", node.size, [f"{array}[i] = input[i];"])
            self.from_events += each("i", node.size, [f"{array}[i] = 0;"])
            set_input = [f"if (events[k] < {node.size})", f"    {array}[events[k]] = 1;"]
            self.from_events += each("k", "count", set_input)
        pointer = self.pointer(array, kind if self._copies_input else f"const {kind}")
        self.activations[node] = Activations(node, in_order(node.size), pointer)

    def _add_layer(self, node: Node) -> None:
        """Writes the statements of a layer.

        A layer that reads the caller's input has two forms: for an array of numbers, and for a list of the
        ones.
        """
        if node in self.static_nodes and self.network.input in node.inputs and not self._copies_input:
            self.from_numbers += self._layer_lines(node)
            self.reads_events = True
            self.from_events += self._layer_lines(node)
            self.reads_events = False
        else:
            lines = self.static_lines if node in self.static_nodes else self.step_lines
            lines += self._layer_lines(node)
        if node.kind != "delay":
            self.costs.append(self._cost(node))

    def _cost(self, node: Node) -> Cost:
        """The number of operations of `node`, and the layer whose spikes decide how many are needed."""
        kind = LAYERS[node.kind]
        additions, at_rates, dense = kind.operations(node, self.dtype)
        source = node if node.kind == "neurons" else node.inputs[0]
        while source.kind not in ("neurons", "input"):
            source = source.inputs[0]
        size = node.size if source is node else node.inputs[0].size
        multiplies = kind.weighted and not self.activations[node.inputs[0]].binary
        title = kind.title(node)
        return Cost(node.name, title, node.size, additions, at_rates, multiplies, dense, source.name, size)

    def _layer_lines(self, node: Node) -> list[str]:
        """The C block that computes the layer of `node`, with a title as comment."""
        self._node, self._temporaries = node, 0
        kind = LAYERS[node.kind]
        outputs = self.activations[node] = kind.lower(node, self)
        if outputs.binary and node.kind == "neurons":
            array = self.array(self.numbers(outputs)).name
            self.spiking.append(Spiking(node.name, node.size, array))
        title = comment_text(f"{node.name}: {kind.title(node)}")
        comment = f"/* {title}, gives {'x'.join(map(str, node.shape))} */"
        return block("", [comment, *self.printer.lines(self.code.builder.take())])

    def _score_lines(self) -> list[str]:
        """Statements that update the scores with the output of a step."""
        size, out = self.network.output.size, self.output("i")
        scores = self.memory.add("scores", self.arithmetic.kind, size)
        lowest = self.printer.expression(self.lowest().term) if self.scores == "max" else "0"
        self.resets += each("i", size, [f"{scores}[i] = {lowest};"])
        if self.scores == "first":
            spiked = self.memory.add("seen", "uint8_t", size)
            self.resets += each("i", size, [f"{spiked}[i] = 0;"])
            set_spiked = [f"if ({out} != 0)", f"    {spiked}[i] = 1;"]
            return each("i", size, [*set_spiked, f"if (!{spiked}[i])", f"    {scores}[i] -= 1;"])
        if self.scores == "max":
            return each("i", size, [f"if ({out} > {scores}[i])", f"    {scores}[i] = {out};"])
        return each("i", size, [f"{scores}[i] {'+=' if self.scores == 'sum' else '='} {out};"])

    def source(self, description: str) -> str:
        """The ``.c`` file, with the `description` of the network in a comment."""
        name, kind, index, input_kind = self.name, self.arithmetic.kind, self.index, self.arithmetic.input
        inputs, outputs = f"{name.upper()}_INPUTS", f"{name.upper()}_OUTPUTS"
        statements = [
            *(self.from_numbers + self.from_events),
            *(self.static_lines + self.step_lines + self.resets),
        ]
        constants = [line for constant in self.constants for line in array(*constant)]
        includes = ["#include <math.h>"] if any(map(_OF_MATH.search, [*constants, *statements])) else []
        static_function, static_call = [], []
        if self.static_lines:
            static_function = [*block(f"static void {name}_still({name}_state *net)", self.static_lines), ""]
            static_call = [f"{name}_still(net);"]
        arguments = f"{name}_state *net, const {index} *events, size_t count"
        return f"""\
{self._comment(description)}

{_lines([f'#include "{name}.h"', *includes, *self.arithmetic.guards])}
{_lines(constants)}
{_lines([*static_function, f"static void {name}_read_events({arguments}) {{"])}\
{_lines([*self.from_events, *static_call], 1)}}}

static void {name}_go({name}_state *net) {{
{_lines(self.step_lines, 1)}}}

void {name}_reset({name}_state *net) {{
{_lines(self.resets, 1)}    {name}_read_events(net, 0, 0);
}}

void {name}_step({name}_state *net, const {input_kind} input[{inputs}]) {{
    if (input) {{
{_lines([*self.from_numbers, *static_call], 2)}    }}
    {name}_go(net);
}}

void {name}_step_events({arguments}) {{
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

    def header(self, description: str) -> str:
        """The header, with the `description` of the network in a comment."""
        name, upper, kind, index = self.name, self.name.upper(), self.arithmetic.kind, self.index
        return f"""\
{self._comment(description)}

#ifndef {upper}_H
#define {upper}_H

#include <stddef.h>
#include <stdint.h>

#define {upper}_INPUTS {self.network.input.size}
#define {upper}_OUTPUTS {self.network.output.size}
#define {upper}_STEPS {self.steps} /* {self.arithmetic.steps_comment} */

typedef struct {{
{_lines(self.memory.declarations(), 1)}}} {name}_state;

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
/* {SCORES[self.scores]} since the reset, and the index of the largest. */
void {name}_scores(const {name}_state *net, {kind} scores[{upper}_OUTPUTS]);
size_t {name}_class(const {name}_state *net);

#ifdef __cplusplus
}}
#endif

#endif
"""

    def _comment(self, description: str) -> str:
        """The comment at the top of both files: the network, its memory and its operations."""
        rows = [f"{'layer':16} {'':12} {'numbers':>8} {'at most':>14} {'at rates':>14}"]
        for cost in self.costs:
            row = f"{comment_text(cost.name):16.16} {comment_text(cost.what):12} {cost.numbers:8,}"
            products = "  with as many products" if cost.multiplies else ""
            rows.append(f"{row} {cost.additions:14,} {round(cost.at_rates):14,}{products}")
        additions, at_rates = sum(c.additions for c in self.costs), sum(c.at_rates for c in self.costs)
        lines = [
            *map(comment_text, description.splitlines()),
            "",
            f"Memory: {self.constant_bytes:,} bytes of constants, {self.memory.bytes():,} that change.",
            "",
            "Operations of a step, at most, and at the rates of the example:",
            *rows,
            f"{'together':38} {additions:14,} {round(at_rates):14,}",
        ]
        if self.arithmetic.remarks:
            lines += ["", *map(comment_text, self.arithmetic.remarks)]
        if len(self.network.static_nodes) > 1:
            names = ", ".join(comment_text(node.name) for node in self.network.static_nodes[1:])
            lines += ["", f"An input that stays the same (0 given) costs nothing again in {names}."]
        if self.functions:
            lines += [
                "",
                f"{', '.join(sorted(self.functions))}: no standard defines the last bit of these, so spikes",
                "may differ from PyTorch's where a potential comes within rounding of a threshold.",
            ]
        title = f"/* {self.name}: a spiking network written by hibana, one sample, one step at a time."
        return f"{title}\n\n{indent(chr(10).join(lines), '   ')}\n*/"


def _lines(lines: list[str], depth: int = 0) -> str:
    """Lines of C, indented by `depth` levels."""
    return indent("".join(f"{line}\n" for line in lines), "    " * depth)


_OF_MATH = re.compile(r"\b(?:INFINITY|NAN|[a-z]+[a-z0-9]*\()")
"""Constants and functions of math.h; the program's own functions have an underscore in their names."""
