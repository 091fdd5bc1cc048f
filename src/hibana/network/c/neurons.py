"""A layer of neurons in C: its states, and a loop over neurons for each stage of its step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.compiler.c.source import Product, Truths, operations, staged, truths
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, leaves
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.network.c.layers import numbers
from hibana.network.c.memory import Held, Memory
from hibana.network.c.numbers import Numbers
from hibana.network.c.rows import Active
from hibana.network.c.text import array, block, each
from hibana.network.graph import Node
from hibana.network.sliding import channels_last
from hibana.nn.layers import OverTime, Recurrent, RecurrentCell

__all__ = ["Layer", "layer"]


@dataclass
class Layer:
    """A layer of neurons, traced: what it is made of, and what it is called in C."""

    node: Node
    index: int
    step: Step
    begun: tuple[Tensor, ...]
    """The states at rest, in the order in which neurons lie."""
    parameters: tuple[Tensor, ...]
    """Numbers, or a number for each neuron in that order, or one for each channel."""
    matrices: tuple[Tensor, ...]
    """``[from, to]``, in that order."""
    known: Truths
    products: list[Product]
    stores: Stores
    places: Tensor

    @property
    def emits_spikes(self) -> bool:
        """Whether what it emits is zeros and ones at every step."""
        return len(self.step.states) - 1 in self.known

    @property
    def operations(self) -> int:
        """Operations a neuron and step."""
        return operations(self.stores)

    def state(self, at: int) -> str:
        """The name of a state in the struct."""
        return f"{self.step.states[at].removesuffix('_state')}_{self.index}"

    def standing(self, name: str, leaf: Value) -> str | float:
        """What stands for a leaf of the step: a name, or its number if it is one for all neurons."""
        if leaf.op != "scalar":
            return name
        if name[0] == "c":
            return self.step.constants[int(name[2:-1])]
        return float(self.parameters[int(name[1 : name.index("[")])])

    def place(self, name: str) -> str:
        """Where the number of neuron j lies in a parameter."""
        count = len(self.parameters[int(name[1:])])
        return "j" if count == self.node.size else f"j % {count}"

    def weights(self, product: Product) -> Tensor:
        """The matrix of a product, ``[from, to]``."""
        values = self.matrices[product.matrix]
        return values.T.contiguous() if product.turned else values

    def reads_spikes(self) -> bool:
        """Whether a product reads the list of the spikes of the step before."""
        return self.emits_spikes and any(p.state == len(self.step.states) - 1 for p in self.products)


def layer(node: Node, index: int, places: Tensor, dtype: torch.dtype) -> Layer:
    """The layer of neurons `node`, whose input lies as `places` says.

    Raises:
        Unsupported: naming the layer, if its step can't be read.
    """
    module = node.module
    assert isinstance(module, OverTime | Recurrent)
    cell = module.cell
    if isinstance(module, Recurrent):
        cell = RecurrentCell(cell, module.recurrent, 1.0)  # which scales no gradient, for there is none
    one = torch.zeros(1, *node.shape, dtype=dtype, device="cpu")
    try:
        step = trace(cell, one.shape, dtype)
    except Unsupported as refused:
        raise Unsupported(f"layer {node.name!r}: {refused}") from refused

    def lying(values: Tensor) -> Tensor:
        return values.detach().to(dtype).expand_as(one).flatten()[places]

    with torch.no_grad():
        begun = tuple(lying(state) for state in cell.initial_state(one))
        given = step.prologue(*tensors_of(cell).values())
    channels = node.shape[0] if len(node.shape) > 1 and torch.equal(places, channels_last(node.shape)) else 0

    def kept(values: Tensor) -> Tensor:
        of_channels = (
            channels and values.numel() == channels == values.shape[-min(values.ndim, len(node.shape))]
        )
        if values.numel() == 1 or of_channels:
            return values.detach().to(dtype).flatten()
        return lying(values)

    parameters = tuple(kept(values) for values in given[: step.parameters])
    matrices = tuple(m.detach().reshape(node.size, -1)[places][:, places] for m in given[step.parameters :])
    start = frozenset(i for i, state in enumerate(begun) if bool(((state == 0) | (state == 1)).all()))
    known = truths(step, start)
    products, stores = staged(step, known)
    return Layer(node, index, step, begun, parameters, matrices, known, products, stores, places)


class Writer:
    """Writes a layer: its constants, its part of the struct, its reset and its step."""

    def __init__(self, made: Layer, read: Held, numbers: Numbers, memory: Memory, prefix: str) -> None:
        self.made, self.read, self.numbers, self.prefix = made, read, numbers, prefix
        self.constants: list[str] = []
        self.constant_bytes = 0
        step, size = made.step, made.node.size
        truth, kind = "uint8_t", numbers.kind
        self.states = [
            memory.lasting(made.state(i), truth if i in made.known else kind, size)
            for i in range(len(step.states))
        ]
        self.memory = memory

    def reset(self) -> list[str]:
        """The states at rest."""
        lines = []
        for i, (state, begun) in enumerate(zip(self.states, self.made.begun, strict=True)):
            kind = "uint8_t" if i in self.made.known else self.numbers.kind
            given = self._each_neuron(f"{self.made.state(i)}_begun", kind, begun)
            lines.append(f"{state}[j] = {given};")
        return each("j", self.made.node.size, lines)

    def _each_neuron(self, name: str, kind: str, values: Tensor) -> str:
        """What stands for neuron j's number: a literal if all are the same, else an array's element."""
        if bool((values == values[0]).all()):
            return self.numbers.literal(float(values[0]), kind)
        return f"{self.array(name, values)}[j]"

    def array(self, name: str, values: Tensor) -> str:
        """A constant array; gives its name."""
        whole, kind = f"{self.prefix}_{name}", self.numbers.of(self.made.node.name, values)
        self.constants += array(whole, kind, values)
        self.constant_bytes += self.numbers.bytes(kind) * values.numel()
        return whole

    def step(self) -> list[str]:
        """One step."""
        made = self.made
        lines = [line for i, product in enumerate(made.products) for line in self._product(i, product)]
        stores = {
            name: value.args[0] if j in made.known and value.op == "to_float" else value
            for j, (name, value) in enumerate(made.stores.items())
        }
        body, results = self.numbers.statements(made, stores, made.standing)
        for j, name in enumerate(made.step.states):
            truth = j in made.known and not stores[name].boolean
            body.append(f"{self.states[j]}[j] = {f'({results[name]}) != 0' if truth else results[name]};")
        return [*lines, *each("j", made.node.size, [*self._reads(stores), *body])]

    def _reads(self, stores: Stores) -> list[str]:
        """Gives what is read at neuron j a name."""
        lines = []
        names = {name: i for i, name in enumerate(self.made.step.states)}
        names["emitted_before"] = len(names) - 1
        kind = self.numbers.kind
        for name, leaf in leaves(stores).items():
            if name == "x":
                lines.append(f"const {kind} x = {_cast(self.read.numbers, self.read.kind, kind)};")
            elif name in names:
                given = "uint8_t" if names[name] in self.made.known else kind
                lines.append(f"const {kind} {name} = {_cast(self.states[names[name]], given, kind)};")
            elif name.startswith("product"):
                lines.append(f"const {kind} {name} = net->{name}_{self.made.index}[j];")
            elif leaf.op == "row":
                array = f"{self.prefix}_{name}_{self.made.index}"
                lines.append(f"const {kind} {name} = {array}[{self.made.place(name)}];")
        return lines

    def prepare(self) -> None:
        """The parameters that are a number for each neuron, the matrices, and what its products need."""
        for i, values in enumerate(self.made.parameters):
            if values.numel() > 1:
                self.array(f"p{i}_{self.made.index}", values)
        for product in {(p.matrix, p.turned): p for p in self.made.products}.values():
            name = f"m{product.matrix}{'t' * product.turned}_{self.made.index}"
            self.array(name, self.made.weights(product))
        size, kind = self.made.node.size, self.numbers.kind
        for i, product in enumerate(self.made.products):
            self.memory.lasting(f"product{i}_{self.made.index}", kind, size)
            if product.state is None:
                given = "uint8_t" if product.truth else kind
                self.memory.lasting(f"operand{i}_{self.made.index}", given, size)

    def _product(self, i: int, product: Product) -> list[str]:
        """The product i of the step, into an array of its own."""
        made, size, kind = self.made, self.made.node.size, self.numbers.kind
        out = f"net->product{i}_{made.index}"
        lines: list[str] = []
        if product.state is None:
            name = f"operand{i}_{made.index}"
            body, results = self.numbers.statements(made, {"operand": product.operand}, made.standing)
            value = f"({results['operand']}) != 0" if product.truth else results["operand"]
            operand = f"net->{name}"
            lines += each(
                "j", size, [*self._reads({"operand": product.operand}), *body, f"{operand}[j] = {value};"]
            )
        else:
            operand = self.states[product.state]
        weights = f"{self.prefix}_m{product.matrix}{'t' * product.turned}_{made.index}"
        if made.reads_spikes() and product.state == len(made.step.states) - 1:
            begins = (f"const size_t i = net->spikes{made.index}[k];",)
            over = Active(f"for (size_t k = 0; k < net->count{made.index}; k++)", begins, False)
        elif product.truth:
            over = Active(
                f"for (size_t i = 0; i < {size}; i++)", (f"if (!{operand}[i])", "    continue;"), False
            )
        else:
            over = numbers(operand, size, kind)
        added = f"x * {weights}[i][o]" if over.valued else f"{weights}[i][o]"
        lines += each("o", size, [f"{out}[o] = 0;"])
        return lines + block(over.head, [*over.begins, *each("o", size, [f"{out}[o] += {added};"])])


def _cast(array: str, given: str, kind: str) -> str:
    return f"{array}[j]" if given == kind else f"({kind}){array}[j]"
