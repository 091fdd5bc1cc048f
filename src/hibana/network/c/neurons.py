"""A layer of neurons in C: its states, and a loop over neurons for each stage of its step."""

from torch import Tensor

from hibana.compiler.c.source import Product
from hibana.compiler.graph.passes import Stores, leaves
from hibana.network.c.layers import numbers
from hibana.network.c.memory import Held, Memory
from hibana.network.c.numbers import Numbers
from hibana.network.c.rows import Active
from hibana.network.c.text import array, block, each
from hibana.network.neurons import Layer

__all__ = ["Writer"]


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
            name: (value.converted or value) if j in made.known else value
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
            elif leaf.is_row:
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
