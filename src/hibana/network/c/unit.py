"""The statements of a program for one sample: its layers in the order of a step, resets and scores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from hibana.network.c.arithmetic import Arithmetic, FloatArithmetic, IntegerArithmetic
from hibana.network.c.emitter import Emitter, Spiking
from hibana.network.graph import Network
from hibana.network.integer_network import Quantized
from hibana.network.layers import LAYERS
from hibana.network.lowering import Activations
from hibana.network.node import Node, in_order
from hibana.network.reader import read
from hibana.runtime.kernels import Bytes
from hibana.runtime.loops import Array, Section, Statement

__all__ = ["SCORES", "Cost", "Unit", "build_unit"]

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
    """The program of a network, whose layers are built by the constructor."""

    def __init__(self, network: Network, arithmetic: Arithmetic, name: str, scores: str, steps: int) -> None:
        super().__init__(network, arithmetic, name)
        self.scores, self.steps = scores, steps
        self.costs: list[Cost] = []
        self.from_numbers: list[Statement] = []
        """They read an array of inputs."""
        self.from_events: list[Statement] = []
        """They read a list of the inputs that are 1."""
        self.static: list[Statement] = []
        """Their results change only with the input."""
        self.step: list[Statement] = []
        """They run in every step."""
        self._add_input()
        for node in network.nodes[1:]:
            self._add_layer(node)
        self._add_scores()

    @contextmanager
    def into(self, statements: list[Statement]) -> Iterator[None]:
        """Appends what the ``with`` block builds to `statements`."""
        with self.code.builder.inside() as built:
            yield
        statements += built

    def _add_input(self) -> None:
        """Copies the input to the struct, unless layers before the first neurons alone read it."""
        node, kind, size = self.network.input, self.arithmetic.input, self.network.input.size
        direct = [LAYERS[user.kind].weighted and user in self.static_nodes for user in node.users]
        self._copies_input = not (direct and all(direct)) or node is self.network.output
        argument = self._pointer(Array(None, name="input", kind=kind, access="read-only"))
        numbers = argument
        if self._copies_input:
            numbers = self._pointer(self.memory.add("input", kind, size))
            with self.into(self.from_numbers):
                numbers.copy(argument, size)
            with self.into(self.from_events):
                numbers.clear(size)
                with self.each_event() as i:
                    numbers[i] = 1
        self.activations[node] = Activations(node, in_order(size), numbers)

    def _add_layer(self, node: Node) -> None:
        """Builds the statements of a layer.

        A layer that reads the caller's input has two forms: for an array of numbers, and for a list of the
        ones.
        """
        if node in self.static_nodes and self.network.input in node.inputs and not self._copies_input:
            self.from_numbers.append(self._layer(node))
            self.reads_events = True
            self.from_events.append(self._layer(node))
            self.reads_events = False
        else:
            (self.static if node in self.static_nodes else self.step).append(self._layer(node))
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

    def _layer(self, node: Node) -> Section:
        """The statements that compute the layer of `node`."""
        self._node, self._temporaries = node, 0
        kind = LAYERS[node.kind]
        with self.code.builder.inside() as body:
            outputs = self.activations[node] = kind.lower(node, self)
        if outputs.binary and node.kind == "neurons":
            array = self.array(self.numbers(outputs)).expression
            self.spiking.append(Spiking(node.name, node.size, array))
        title = f"{node.name}: {kind.title(node)}, gives {'x'.join(map(str, node.shape))}"
        return Section(title, tuple(body))

    def _add_scores(self) -> None:
        """Updates the scores with the output of a step."""
        code, size = self.code, self.network.output.size
        scores = self._pointer(self.memory.add("scores", self.arithmetic.kind, size))
        with self.into(self.resets), code.loop(0, size, name="i") as i:
            scores[i] = self.lowest() if self.scores == "max" else 0
        if self.scores == "first":
            spiked = self._pointer(self.memory.add("seen", "uint8_t", size)).of(Bytes)
            with self.into(self.resets):
                spiked.clear(size)
        with self.into(self.step), code.loop(0, size, name="i") as i:
            if self.scores == "first":
                with code.when(self.output(i).differs(0)):
                    spiked[i] = 1
                with code.when(spiked[i].equals(0)):
                    scores[i] = scores[i] - 1
            elif self.scores == "max":
                with code.when(self.output(i) > scores[i]):
                    scores[i] = self.output(i)
            else:
                scores[i] = scores[i] + self.output(i) if self.scores == "sum" else self.output(i)


def build_unit(
    net: nn.Module, example: Tensor, name: str, scores: str, unit_class: Callable[..., Unit] = Unit
) -> Unit:
    """The statements of the program of `net`, which computes in integers if `net` is quantized."""
    network = read(net, example)
    arithmetic: Arithmetic
    if isinstance(net, Quantized):
        arithmetic = IntegerArithmetic(net, network, len(example), scores)
    else:
        arithmetic = FloatArithmetic(network.dtype)
    return unit_class(network, arithmetic, name, scores, len(example))
