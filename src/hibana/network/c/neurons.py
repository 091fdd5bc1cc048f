"""A layer of neurons in C: its states, and a loop over neurons for each stage of its step."""

from typing import TYPE_CHECKING

from torch import Tensor

from hibana.compiler.c.source import Product
from hibana.compiler.graph.passes import Stores, leaves
from hibana.network.c.text import each
from hibana.network.lowering import Activations
from hibana.network.neurons import NeuronLayer
from hibana.runtime.kernels import Pointer

if TYPE_CHECKING:
    from hibana.network.c.emitter import Emitter

__all__ = ["neurons"]


def neurons(to: "Emitter", made: NeuronLayer, read: Activations) -> Activations:
    """Writes a step of the layer `made` on `read`."""
    writer = _Writer(to, made, read)
    held = Activations(made.node, read.order, writer.states[-1], binary=made.emits_spikes)
    if made.emits_spikes:
        to.allocate_list(held, always=made.reads_spike_list)
    for i, product in enumerate(made.products):
        writer.product(i, product, held)
    writer.step()
    return held


class _Writer:
    """The code of one layer."""

    def __init__(self, to: "Emitter", made: NeuronLayer, read: Activations) -> None:
        self.to, self.made, self.read = to, made, read
        self.kind, self.size = to.arithmetic.kind, made.node.size
        self.states = [
            to.state(made.state_name(i), begun, binary=i in made.binary_states)
            for i, begun in enumerate(made.initial_state)
        ]

    def _lasting(self, name: str, binary: bool) -> Pointer:
        kind = "uint8_t" if binary else self.kind
        return self.to.pointer(self.to.memory.lasting(name, kind, self.size), kind)

    def _array(self, name: str, values: Tensor) -> Pointer:
        """A constant array."""
        kind = self.to.arithmetic.of(self.made.node.name, values)
        return self.to.array(f"{self.to.name}_{name}_{self.made.index}", kind, values)

    def step(self) -> None:
        """The loop over neurons that computes the next states."""
        made = self.made
        stores = {
            name: (value.as_boolean or value) if j in made.binary_states else value
            for j, (name, value) in enumerate(made.stores.items())
        }
        lines = []
        body, results = self.to.arithmetic.statements(made, stores)
        for j, (state, value) in enumerate(zip(self.states, stores.values(), strict=True)):
            result = results[made.step.states[j]]
            truth = j in made.binary_states and not value.boolean
            lines.append(f"{self.to.element(state, 'j')} = {f'({result}) != 0' if truth else result};")
        self.to.writer.write(each("j", self.size, [*self._reads(stores), *body, *lines]))

    def _reads(self, stores: Stores) -> list[str]:
        """Declares what is read at neuron j."""
        made, element, kind = self.made, self.to.element, self.kind
        names = {name: i for i, name in enumerate(made.step.states)}
        names["emitted_before"] = len(names) - 1
        found = {}
        for name, leaf in leaves(stores).items():
            if name == "x":
                found[name] = element(self.to.numbers(self.read), "j", kind)
            elif name in names:
                found[name] = element(self.states[names[name]], "j", kind)
            elif name.startswith("product"):
                found[name] = f"net->{name}_{made.index}[j]"
            elif leaf.is_row:
                values = made.parameters[int(name[1:])]
                found[name] = element(self._array(name, values), made.parameter_index(name), kind)
        return [f"const {kind} {name} = {read};" for name, read in found.items()]

    def product(self, i: int, product: Product, before: Activations) -> None:
        """The product `i` of the step, into an array of its own; `before` are the last step's spikes."""
        made, to = self.made, self.to
        out = self._lasting(f"product{i}_{made.index}", False)
        if product.state is None:
            operand = self._lasting(f"operand{i}_{made.index}", product.is_binary)
            body, results = to.arithmetic.statements(made, {"operand": product.operand})
            value = f"({results['operand']}) != 0" if product.is_binary else results["operand"]
            lines = [*self._reads({"operand": product.operand}), *body]
            to.writer.write(each("j", self.size, [*lines, f"{to.element(operand, 'j')} = {value};"]))
        else:
            operand = self.states[product.state]
        source = before
        if product.state != len(made.step.states) - 1 or not made.reads_spike_list:
            source = Activations(made.node, before.order, operand, binary=product.is_binary)
        name = f"m{product.matrix}{'t' * product.transposed}"
        out.clear(self.size)
        to.add_rows(source, self._array(name, made.weights(product)), self.size, out)
