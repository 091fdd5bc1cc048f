"""The two files of a program as text: what was written of its layers, in functions, and the header."""

import re

from hibana.network.c.text import block, commented, each
from hibana.network.c.writing import Writing

__all__ = ["Unit"]


class Unit:
    """The header and the file of C of a network whose layers are written."""

    def __init__(self, written: Writing, about: str) -> None:
        self.written, self.about = written, about
        self.name, self.numbers, self.network = written.name, written.numbers, written.network

    def source(self) -> list[str]:
        """The lines of the file of C."""
        written = self.written
        first, events, still, go = written.first, written.events, written.still_lines, written.go
        name, state, kind = self.name, f"{self.name}_state *net", self.numbers.kind
        inputs, outputs = f"{name.upper()}_INPUTS", f"{name.upper()}_OUTPUTS"
        body = [*self.written.parts.constants, *first, *events, *still, *go, *self.written.parts.resets]
        library = ["#include <math.h>"] if any(_OF_MATH.search(line) for line in body) else []
        included = [f'#include "{name}.h"', *library, *self.numbers.guards]
        lines = [*self._comment(), "", *included, "", *self.written.parts.constants, "", *self._helpers()]
        if still:
            lines += [*block(f"static void {name}_still({state})", still), ""]
            first, events = [*first, f"{name}_still(net);"], [*events, f"{name}_still(net);"]
        read_events = (
            f"static void {name}_read_events({state}, const {self.written.parts.index} *events, size_t count)"
        )
        best = [
            "size_t best = 0;",
            *each("i", outputs, ["if (net->scores[i] > net->scores[best])", "    best = i;"]),
        ]
        return [
            *lines,
            *block(read_events, events),
            "",
            *block(f"static void {name}_go({state})", go),
            "",
            *block(
                f"void {name}_reset({state})", [*self.written.parts.resets, f"{name}_read_events(net, 0, 0);"]
            ),
            "",
            *block(
                f"void {name}_step({state}, const {self.numbers.input} input[{inputs}])",
                [*block("if (input)", first), f"{name}_go(net);"],
            ),
            "",
            *block(
                f"void {name}_step_events({state}, const {self.written.parts.index} *events, size_t count)",
                [f"{name}_read_events(net, events, count);", f"{name}_go(net);"],
            ),
            "",
            *block(
                f"void {name}_output(const {state}, {kind} output[{outputs}])",
                each("i", outputs, [f"output[i] = {self.written.parts.output('i')};"]),
            ),
            "",
            *block(
                f"void {name}_scores(const {state}, {kind} scores[{outputs}])",
                each("i", outputs, ["scores[i] = net->scores[i];"]),
            ),
            "",
            *block(f"size_t {name}_class(const {state})", [*best, "return best;"]),
        ]

    def _helpers(self) -> list[str]:
        return [*self.written.parts.helpers, ""] if self.written.parts.helpers else []

    def header(self) -> list[str]:
        """The lines of the header."""
        name, kind, scores = self.name, self.numbers.kind, _SCORED[self.written.scores]
        state, upper = f"{name}_state", self.name.upper()
        inputs, outputs = f"{upper}_INPUTS", f"{upper}_OUTPUTS"
        return [
            *self._comment(),
            "",
            f"#ifndef {upper}_H",
            f"#define {upper}_H",
            "",
            "#include <stddef.h>",
            "#include <stdint.h>",
            "",
            f"#define {inputs} {self.network.input.size}",
            f"#define {outputs} {self.network.output.size}",
            f"#define {upper}_STEPS {self.written.steps} /* {self.numbers.runs} */",
            "",
            *block("typedef struct", self.written.parts.memory.fields())[:-1],
            f"}} {state};",
            "",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            "/* To rest; call it first. */",
            f"void {name}_reset({state} *net);",
            "/* One step on numbers, in PyTorch's order; 0 is the input of the step before again. */",
            f"void {name}_step({state} *net, const {self.numbers.input} input[{inputs}]);",
            "/* One step on the inputs that are 1, as a list of their places. In rising order sums are the",
            "   same to the last bit; places beyond the inputs are left out. */",
            f"void {name}_step_events({state} *net, const {self.written.parts.index} *events, size_t count);",
            "/* What the network put out in the last step. */",
            f"void {name}_output(const {state} *net, {kind} output[{outputs}]);",
            f"/* {scores} since the reset, and the place of the largest. */",
            f"void {name}_scores(const {state} *net, {kind} scores[{outputs}]);",
            f"size_t {name}_class(const {state} *net);",
            "",
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "",
            "#endif",
        ]

    def _comment(self) -> list[str]:
        """What network it is, and what it costs."""
        rows = [
            f"{commented(c.name):16.16} {commented(c.what):12} "
            f"{c.numbers:8,} {c.additions:14,} {round(c.seen):14,}"
            f"{'  with as many products' if c.multiplies else ''}"
            for c in self.written.costs
        ]
        at_most, seen = (
            sum(c.additions for c in self.written.costs),
            round(sum(c.seen for c in self.written.costs)),
        )
        constant, changing = self.written.parts.constant_bytes, self.written.parts.memory.bytes()
        return [
            f"/* {self.name}: a spiking network as hibana writes it, one sample, one step at a time.",
            "",
            *(f"   {commented(line)}" for line in self.about.splitlines()),
            "",
            f"   Memory: {constant:,} bytes of constants, {changing:,} that change.",
            "",
            "   Operations a step, at most, and at the rates seen on the example:",
            *(
                f"   {row}"
                for row in [f"{'layer':16} {'':12} {'numbers':>8} {'at most':>14} {'seen':>14}", *rows]
            ),
            f"   {'together':38} {at_most:14,} {seen:14,}",
            *self._remarks(),
            "*/",
        ]

    def _remarks(self) -> list[str]:
        lines = []
        if self.numbers.remarks:
            lines += ["", *(f"   {commented(remark)}" for remark in self.numbers.remarks)]
        if len(self.network.still) > 1:
            names = ", ".join(commented(node.name) for node in self.network.still[1:])
            lines += ["", f"   An input that stays the same (0 given) costs nothing again in {names}."]
        if self.written.parts.functions:
            names = ", ".join(sorted(self.written.parts.functions))
            lines += [
                "",
                f"   {names}: no standard says the last bit of these, so spikes",
                "   may differ from PyTorch's where a potential comes within rounding of a threshold.",
            ]
        return lines


_OF_MATH = re.compile(r"\b(?:INFINITY|NAN|[a-z]+[a-z0-9]*\()")
"""What of a line math.h has: its numbers, and all calls but those of the program's own."""
_SCORED = {
    "sum": "The sum of what was put out",
    "max": "The most that was put out",
    "last": "What was put out last",
    "first": "Minus the steps before the first spike",
}
