"""A network as one file of C99 and a header."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hibana.convert.c import layers
from hibana.convert.c.memory import FOREVER, Held, Memory
from hibana.convert.c.neurons import Layer, Writer, layer
from hibana.convert.c.numbers import Floating, Numbers, Whole
from hibana.convert.c.ordered import ordered
from hibana.convert.c.text import array, block, each
from hibana.convert.graph import Network, Node, read
from hibana.convert.whole import Quantized
from hibana.loop.c.source import functions
from hibana.loop.graph.ops import Unsupported

__all__ = ["CProgram", "Cost", "in_order", "proved", "to_c"]

SCORES = ("sum", "max", "last", "first")


@dataclass(frozen=True)
class Cost:
    """What one layer costs at a step."""

    name: str
    what: str
    numbers: int
    """It gives so many."""
    additions: int
    """Of weights, at most; of neurons, all their operations."""
    seen: float
    """At the rates of the example."""
    multiplies: bool
    """Whether each of the additions is of a product."""
    dense: int
    """Products of the dense layer of this shape."""
    source: str
    """The layer whose numbers it goes over: the neurons below, or itself if they are recurrent."""
    size: int
    """How many numbers that has."""


@dataclass(frozen=True)
class Spiking:
    """A layer of neurons that spike, as it can be looked at after a step."""

    name: str
    what: str
    neurons: int
    array: str
    """The array of a byte for each neuron, 1 where it spiked, in the order in which they lie."""


@dataclass(frozen=True)
class CProgram:
    """A network in C: two files, and what they cost."""

    name: str
    source: str
    header: str
    kind: str
    """C's type of potentials,"""
    input: str
    """and of what goes in."""
    inputs: int
    outputs: int
    constant_bytes: int
    """Of weights and other constants."""
    changing_bytes: int
    """Of the struct: states, and what is needed between two layers."""
    costs: tuple[Cost, ...]
    spiking: tuple[Spiking, ...]
    functions: tuple[str, ...]
    """Functions of math.h whose last bit may be another than PyTorch's."""

    def write(self, path: Path | str) -> tuple[Path, Path]:
        """Writes ``NAME.c`` and ``NAME.h`` beside each other; `path` is that of the first."""
        target = Path(path)
        header = target.with_suffix(".h")
        target.write_text(self.source)
        header.write_text(self.header)
        return target, header


def to_c(net: nn.Module, example: Tensor, *, name: str = "net", scores: str = "sum") -> CProgram:
    """`net` as one file of C99 and a header, without dependencies, allocation or recursion.

    The program holds the weights as constants and the state in a struct. ``NAME_reset`` sets it to rest,
    ``NAME_step`` runs one step of one sample on numbers, ``NAME_step_events`` on a list of the inputs that
    are 1; ``NAME_output`` gives what the network put out, ``NAME_scores`` that over the steps,
    ``NAME_class`` the place of its largest. A number that is zero costs nothing: layers add a row of weights
    for each that is not.

    Spikes equal PyTorch's bit for bit where all operations are those that IEEE 754 determines, and sums are
    taken in the program's order, as :func:`in_order` does.

    Args:
        net: a network over ``[T, batch, ...]`` of linear layers, convolutions, pooling, flatten, batch
            normalisation after a linear layer or convolution, sums, and neurons; it is left as it is.
        example: inputs ``[T, batch, ...]``, on which firing rates are counted; its dtype is the program's.
        name: what the program's functions begin with.
        scores: what becomes of the outputs over time: their ``"sum"``, the ``"max"``, the ``"last"``, or
            minus the steps before the ``"first"`` that is not zero.

    Raises:
        TypeError: if `example` is no floating-point tensor.
        ValueError: if `name` is no name in C, `scores` is none of these, `example` is not
            ``[T, batch, ...]``, or weights are not finite.
        Unsupported: naming the layer, if C does not say it.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), hb.IF())
    >>> program = hb.convert.to_c(net, torch.rand(8, 2, 4))
    >>> program.constant_bytes, program.changing_bytes
    (60, 40)
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,30}", name):
        raise ValueError(f"name must be letters, digits and _, and begin with a letter, got {name!r}")
    if scores not in SCORES:
        raise ValueError(f"scores must be one of {', '.join(SCORES)}, got {scores!r}")
    return _program(net, example, name, scores).written()


def proved(net: Quantized, example: Tensor) -> torch.dtype:
    """The dtype that holds all numbers of `net` exactly, for as many steps as `example` has.

    Raises:
        Unsupported: naming the layer, if a number may not fit in 32 bits, or is no whole one.
    """
    program = _program(net, example, "net", "sum")
    program.written()
    assert isinstance(program.numbers, Whole)
    if program.numbers.largest >= 2**53:
        raise Unsupported("net computes with numbers that no dtype of PyTorch holds exactly")
    return torch.float32 if program.numbers.largest < 2**24 else torch.float64


def _program(net: nn.Module, example: Tensor, name: str, scores: str) -> "_Program":
    if isinstance(net, Quantized):
        network = read(net.net, net.whole_input(example))
        numbers: Numbers = Whole(net.input_range, len(example), net.input_scale, net.output_scale)
    else:
        network = read(net, example)
        numbers = Floating(network.dtype)
    return _Program(network, numbers, name, scores, len(example), str(net))


def in_order(net: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `net` in evaluation that takes its sums in the order of the program in C.

        y_o = ((w_o1 x_1 + w_o2 x_2) + w_o3 x_3) + ... + b_o

    One input after the other: slow, for comparisons. Linear layers and convolutions are followed, in a cell
    too; a product that a cell writes itself (``x @ w``) is not. `example` and what is raised are as in
    :func:`to_c`.

    >>> import torch, hibana as hb
    >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 3), hb.IF()), torch.rand(8, 2, 4)
    >>> hb.convert.in_order(net, x)(x).shape
    torch.Size([8, 2, 3])
    """
    network = read(net, example)
    program = _Program(network, Floating(network.dtype), "net", "sum", len(example), "")
    program.written()
    return ordered(network.net, program.held)


class _Program:
    """The writing of one program."""

    def __init__(
        self, network: Network, numbers: Numbers, name: str, scores: str, steps: int, about: str
    ) -> None:
        self.network, self.numbers, self.name, self.scores = network, numbers, name, scores
        self.steps, self.about = steps, about
        self.index = "uint16_t" if all(node.size < 1 << 16 for node in network.nodes) else "uint32_t"
        self.at = {node: k for k, node in enumerate(network.nodes)}
        self.still = set(network.still)
        self.held: dict[Node, Held] = {}
        self.layers: dict[Node, Layer] = {}
        self.memory = Memory()
        self.constants: list[str] = []
        self.constant_bytes = 0
        self.costs: list[Cost] = []
        self.spiking: list[Spiking] = []
        self.functions: set[str] = set()
        self.resets: list[str] = []

    def written(self) -> CProgram:
        """The program."""
        first: list[str] = []
        events: list[str] = []
        still: list[str] = []
        go: list[str] = []
        for node in self.network.nodes:
            if node.kind == "input":
                lines, others = self._input(node)
                first, events = first + lines, events + others
            elif node in self.still and self.network.input in node.inputs and not self._keeps_input():
                over = layers.numbers("input", self.network.input.size, self.numbers.input)
                lines = self._titled(node, self._layer(node, over))
                others = self._titled(node, self._layer(node, layers.events(self.network.input.size)))
                first, events = first + lines, events + others
            else:
                (still if node in self.still else go).extend(self._titled(node, self._layer(node)))
        go += self._scored()
        fields = self.memory.fields()
        return CProgram(
            self.name,
            "\n".join(self._source(first, events, still, go)) + "\n",
            "\n".join(self._header(fields)) + "\n",
            self.numbers.kind,
            self.numbers.input,
            self.network.input.size,
            self.network.output.size,
            self.constant_bytes,
            self.memory.bytes(),
            tuple(self.costs),
            tuple(self.spiking),
            tuple(sorted(self.functions)),
        )

    def _keeps_input(self) -> bool:
        """Whether the input must lie in the struct: something else than weights reads it."""
        node = self.network.input
        weighted = all(u.kind in ("linear", "convolution") and u in self.still for u in node.users)
        return not (node.users and weighted) or node is self.network.output

    def _input(self, node: Node) -> tuple[list[str], list[str]]:
        held = self.held[node] = Held(
            node, torch.arange(node.size, dtype=torch.int64, device="cpu"), self.numbers.input, "input"
        )
        if not self._keeps_input():
            return [], []
        held.numbers = self.memory.lasting("input", self.numbers.input, node.size)
        copied = each("i", node.size, [f"{held.numbers}[i] = input[i];"])
        over = layers.events(node.size)
        cleared = each("i", node.size, [f"{held.numbers}[i] = 0;"])
        return copied, [*cleared, *block(over.head, [*over.begins, f"{held.numbers}[i] = 1;"])]

    def _titled(self, node: Node, lines: list[str]) -> list[str]:
        sides = "x".join(map(str, node.shape))
        return [*block("", [f"/* {_comment(node.name)}: {_what(node)}, gives {sides} */", *lines])]

    def _last(self, node: Node) -> int:
        """The last node of a step that reads `node`."""
        later = any(user not in self.still for user in node.users)
        if node is self.network.output or (node in self.still and later):
            return FOREVER
        return max((self.at[user] for user in node.users), default=self.at[node])

    def _array(self, node: Node, name: str, kind: str, size: int) -> str:
        last = self._last(node)
        if last == FOREVER:
            return self.memory.lasting(f"{name}{self.at[node]}", kind, size)
        return self.memory.between(f"{name}{self.at[node]}", kind, size, self.at[node], last)

    def _layer(self, node: Node, over: layers.Active | None = None) -> list[str]:
        """One layer; `over` is what it goes over, if that lies not in the struct."""
        if node.kind == "neurons":
            return self._neurons(node)
        reads = [self.held[source] for source in node.inputs]
        written = self.held.get(node)
        if written is None:
            written = self.held[node] = self._blank(node, reads)
        kind = self.numbers.kind
        if node.kind in ("linear", "convolution"):
            return self._affine(node, reads[0], written, over)
        if node.kind == "sum":
            if not torch.equal(reads[0].places, reads[1].places):
                raise Unsupported(f"layer {node.name!r} adds numbers that lie in two orders")
            self._cost(node, node.size, False)
            self.numbers.passed(node, 1)
            return layers.added_up(node, reads[0], reads[1], written.numbers, kind)
        if node.kind == "scale":
            self._cost(node, node.size, False)
            factor = self.numbers.literal(node.factor, kind)
            return layers.scaled(node, reads[0], written.numbers, kind, factor)
        channels = layers.image_of(node.shape)[0]
        self._cost(node, layers.window_of(node).taps * channels, False)
        average = node.kind == "average"
        self.numbers.passed(node, math.prod(layers.window_of(node).kernel) if average else 1)
        if average:
            return layers.average(node, reads[0], written.numbers, kind)
        lines = layers.maximum(node, reads[0], written.numbers, written.kind, self.numbers.lowest)
        return [*lines, *self._listed(written)]

    def _blank(self, node: Node, reads: list[Held]) -> Held:
        """Where a layer without state writes."""
        spikes = node.kind == "maximum" and bool(reads[0].spikes)
        kind = "uint8_t" if spikes else self.numbers.kind
        places = torch.arange(node.size, dtype=torch.int64, device="cpu")
        if node.kind in ("sum", "scale"):
            places = reads[0].places
        elif node.kind == "convolution" or (node.kind != "linear" and reads[0].channels_last(node.seen[0])):
            places = layers.whole_image(node.shape)
        held = Held(node, places, kind, self._array(node, "flags" if spikes else "current", kind, node.size))
        if spikes:
            self._list(held)
        return held

    def _list(self, held: Held, always: bool = False) -> None:
        """Gives `held` a list of its spikes, if a layer reads one."""
        node = held.node
        if always:
            held.spikes = self.memory.lasting(f"spikes{self.at[node]}", self.index, node.size)
            held.count = self.memory.counter(f"count{self.at[node]}", self.index)
        elif any(user.kind in ("linear", "convolution", "maximum") for user in node.users):
            held.spikes = self._array(node, "spikes", self.index, node.size)
            held.count = self.memory.counter(f"count{self.at[node]}", self.index)

    def _listed(self, held: Held) -> list[str]:
        """Makes the list of the spikes whose flags are set."""
        if not held.spikes:
            return []
        kept = [f"if ({held.numbers}[j])", f"    {held.spikes}[{held.count}++] = ({self.index})j;"]
        return [f"{held.count} = 0;", *each("j", held.node.size, kept)]

    def _affine(self, node: Node, read: Held, written: Held, over: layers.Active | None) -> list[str]:
        weights, bias = layers.weights_of(node, read)
        names = f"{self.name}_w{self.at[node]}", "" if bias is None else f"{self.name}_b{self.at[node]}"
        again = any(cost.name == node.name for cost in self.costs)
        over = over or layers.active(read, self.numbers.kind if not read.kind else read.kind)
        if not again:
            self._constant(names[0], self.numbers.of(node.name, weights), weights)
            if bias is not None:
                self._constant(names[1], self.numbers.of(node.name, bias), bias)
            self.numbers.added(node, node.inputs[0], weights, bias)
            if node.kind == "linear":
                products = read.node.size * node.size
            else:
                module: Any = node.module
                inner = module.in_channels // module.groups
                products = layers.window_of(node).taps * inner * module.out_channels
            self._cost(node, products, over.valued, node.inputs[0].density, products)
        return layers.affine(node, read, over, written.numbers, *names, self.numbers.kind)

    def _constant(self, name: str, kind: str, values: Tensor) -> None:
        self.constants += array(name, kind, values)
        self.constant_bytes += self.numbers.bytes(kind) * values.numel()

    def _neurons(self, node: Node) -> list[str]:
        read = self.held[node.inputs[0]]
        made = layer(node, self.at[node], read.places, self.network.dtype)
        self.numbers.settle(made)
        writer = Writer(made, read, self.numbers, self.memory, self.name)
        held = self.held[node] = Held(node, read.places, self.numbers.kind, writer.states[-1])
        if made.emits_spikes:
            held.kind = "uint8_t"
            self.spiking.append(Spiking(node.name, _what(node), node.size, held.numbers))
            self._list(held, made.reads_spikes())
        writer.prepare()
        self.resets += writer.reset()
        if made.reads_spikes():
            self.resets.append(f"{held.count} = 0;")
        lines = [*writer.step(), *self._listed(held)]
        self.constants += writer.constants
        self.constant_bytes += writer.constant_bytes
        self.functions |= functions(made.stores)
        products = len(made.products) * node.size * node.size
        rate = node.density if made.emits_spikes else 1.0
        own = made.operations * node.size
        self.costs.append(
            Cost(
                node.name,
                _what(node),
                node.size,
                own + products,
                own + rate * products,
                False,
                products,
                node.name,
                node.size,
            )
        )
        return lines

    def _cost(self, node: Node, additions: int, valued: bool, density: float = 1.0, dense: int = 0) -> None:
        self.costs.append(
            Cost(
                node.name,
                _what(node),
                node.size,
                additions,
                density * additions,
                valued,
                dense,
                _neurons_below(node).name,
                node.inputs[0].size,
            )
        )

    def _scored(self) -> list[str]:
        """Adds what the network put out to the scores."""
        size, out = self.network.output.size, self._out("i")
        scores = self.memory.lasting("scores", self.numbers.kind, size)
        self.numbers.summed(self.network.output, self.steps if self.scores == "sum" else 1)
        lowest = self.numbers.lowest if self.scores == "max" else "0"
        self.resets += each("i", size, [f"{scores}[i] = {lowest};"])
        if self.scores == "first":
            seen = self.memory.lasting("seen", "uint8_t", size)
            self.resets += each("i", size, [f"{seen}[i] = 0;"])
            later = [f"if ({out} != 0)", f"    {seen}[i] = 1;", f"if (!{seen}[i])", f"    {scores}[i] -= 1;"]
            return each("i", size, later)
        if self.scores == "max":
            return each("i", size, [f"if ({out} > {scores}[i])", f"    {scores}[i] = {out};"])
        return each("i", size, [f"{scores}[i] {'+=' if self.scores == 'sum' else '='} {out};"])

    def _out(self, place: str) -> str:
        """The number that the network put out at a place of PyTorch's."""
        held = self.held[self.network.output]
        order = torch.arange(held.node.size, dtype=torch.int64, device="cpu")
        if not torch.equal(held.places, order):
            name = f"{self.name}_order"
            if not any(line.startswith(f"static const {self.index} {name}[") for line in self.constants):
                self._constant(name, self.index, torch.argsort(held.places))
            place = f"{name}[{place}]"
        number = f"{held.numbers}[{place}]"
        return number if held.kind == self.numbers.kind else f"({self.numbers.kind}){number}"

    def _source(self, first: list[str], events: list[str], still: list[str], go: list[str]) -> list[str]:
        name, state, kind = self.name, f"{self.name}_state *net", self.numbers.kind
        inputs, outputs = f"{name.upper()}_INPUTS", f"{name.upper()}_OUTPUTS"
        body = [*self.constants, *first, *events, *still, *go, *self.resets]
        library = ["#include <math.h>"] if any(_OF_MATH.search(line) for line in body) else []
        included = [f'#include "{name}.h"', *library, *self.numbers.guards]
        lines = [*self._comment(), "", *included, "", *self.constants, ""]
        if still:
            lines += [*block(f"static void {name}_still({state})", still), ""]
            first, events = [*first, f"{name}_still(net);"], [*events, f"{name}_still(net);"]
        read_events = f"static void {name}_read_events({state}, const {self.index} *events, size_t count)"
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
            *block(f"void {name}_reset({state})", [*self.resets, f"{name}_read_events(net, 0, 0);"]),
            "",
            *block(
                f"void {name}_step({state}, const {self.numbers.input} input[{inputs}])",
                [*block("if (input)", first), f"{name}_go(net);"],
            ),
            "",
            *block(
                f"void {name}_step_events({state}, const {self.index} *events, size_t count)",
                [f"{name}_read_events(net, events, count);", f"{name}_go(net);"],
            ),
            "",
            *block(
                f"void {name}_output(const {state}, {kind} output[{outputs}])",
                each("i", outputs, [f"output[i] = {self._out('i')};"]),
            ),
            "",
            *block(
                f"void {name}_scores(const {state}, {kind} scores[{outputs}])",
                each("i", outputs, ["scores[i] = net->scores[i];"]),
            ),
            "",
            *block(f"size_t {name}_class(const {state})", [*best, "return best;"]),
        ]

    def _header(self, fields: list[str]) -> list[str]:
        name, kind, scores = self.name, self.numbers.kind, _SCORED[self.scores]
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
            f"#define {upper}_STEPS {self.steps} /* {self.numbers.runs} */",
            "",
            *block("typedef struct", fields)[:-1],
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
            f"void {name}_step_events({state} *net, const {self.index} *events, size_t count);",
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
            f"{_comment(c.name):16.16} {c.what:12} {c.numbers:8,} {c.additions:14,} {round(c.seen):14,}"
            f"{'  with as many products' if c.multiplies else ''}"
            for c in self.costs
        ]
        at_most, seen = sum(c.additions for c in self.costs), round(sum(c.seen for c in self.costs))
        return [
            f"/* {self.name}: a spiking network as hibana writes it, one sample, one step at a time.",
            "",
            *(f"   {_comment(line)}" for line in self.about.splitlines()),
            "",
            f"   Memory: {self.constant_bytes:,} bytes of constants, {self.memory.bytes():,} that change.",
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
            lines += ["", *(f"   {_comment(remark)}" for remark in self.numbers.remarks)]
        if self.still and len(self.still) > 1:
            names = ", ".join(_comment(node.name) for node in self.network.still[1:])
            lines += ["", f"   An input that stays the same (0 given) costs nothing again in {names}."]
        if self.functions:
            lines += [
                "",
                f"   {', '.join(sorted(self.functions))}: no standard says the last bit of these, so spikes",
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


def _neurons_below(node: Node) -> Node:
    """The nearest neurons, or the input, that `node` reads."""
    below = node.inputs[0]
    return below if below.kind in ("neurons", "input") else _neurons_below(below)


def _what(node: Node) -> str:
    """What a layer is, for people."""
    module: Any = node.module
    if node.kind == "neurons":
        return type(module.cell).__name__.removesuffix("Cell")
    return {"maximum": "max-pooling", "average": "avg-pooling"}.get(node.kind, node.kind)


def _comment(text: str) -> str:
    """`text` as it may stand in a comment."""
    plain = text.encode("ascii", "replace").decode()
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")
