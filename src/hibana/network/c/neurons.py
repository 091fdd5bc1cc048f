"""The C form of a layer of neurons: its states, and a loop over neurons for each stage of its step."""

from typing import TYPE_CHECKING

from hibana.compiler.c.source import Product
from hibana.compiler.graph.passes import Stores, leaves
from hibana.network.c.code import each
from hibana.network.lowering import Activations
from hibana.network.neurons import NeuronLayer
from hibana.network.synapses import add_synapses
from hibana.runtime.kernels import Pointer
from hibana.spikes.sparse import Connections

if TYPE_CHECKING:
    from hibana.network.c.emitter import Emitter

__all__ = ["NeuronWriter"]


class NeuronWriter:
    """The code of one step of `layer`, whose input is `currents`."""

    def __init__(self, to: "Emitter", layer: NeuronLayer, currents: Activations) -> None:
        self.to, self.layer, self.currents = to, layer, currents
        self.kind, self.size = to.arithmetic.kind, layer.node.size
        self.index = to.position[layer.node]
        names = [f"{name.removesuffix('_state')}_{self.index}" for name in layer.step.states]
        self.states = [
            to.state_array(name, initial, binary=i in layer.binary_states)
            for i, (name, initial) in enumerate(zip(names, layer.initial_state, strict=True))
        ]

    def write(self) -> Activations:
        """Writes the loops of a step; returns the neurons' output, the last state."""
        layer, order = self.layer, self.currents.order
        outputs = Activations(layer.node, order, self.states[-1], binary=layer.emits_spikes)
        if layer.emits_spikes:
            self.to.allocate_list(outputs, always=layer.reads_spike_list)
        for i, product in enumerate(layer.products):
            self._product(i, product, outputs)
        self._next_states()
        self.to.list_spikes(outputs)
        return outputs

    def _array(self, name: str, binary: bool = False) -> Pointer:
        """A new array of the struct with one number per neuron."""
        kind = "uint8_t" if binary else self.kind
        return self.to.pointer(self.to.memory.add(f"{name}_{self.index}", kind, self.size), kind)

    def _next_states(self) -> None:
        """Writes the loop over neurons that computes the next states."""
        names, binary = self.layer.step.states, self.layer.binary_states
        stores = {
            name: (value.as_boolean or value) if j in binary else value
            for j, (name, value) in enumerate(self.layer.stores.items())
        }
        body, results = self.to.arithmetic.statements(self.layer, stores)
        for j, (state, value) in enumerate(zip(self.states, stores.values(), strict=True)):
            result = results[names[j]]
            needs_comparison = j in binary and not value.boolean
            body.append(
                f"{self.to.element(state, 'j')} = {f'({result}) != 0' if needs_comparison else result};"
            )
        self.to.writer.write(each("j", self.size, [*self._declarations(stores), *body]))

    def _declarations(self, stores: Stores) -> list[str]:
        """Declarations of the values of neuron ``j`` that `stores` read."""
        layer, element, kind = self.layer, self.to.element, self.kind
        states = {name: i for i, name in enumerate(layer.step.states)}
        states["emitted_before"] = len(states) - 1
        values = {}
        for name, leaf in leaves(stores).items():
            if name == "x":
                values[name] = element(self.to.numbers(self.currents), "j", kind)
            elif name in states:
                values[name] = element(self.states[states[name]], "j", kind)
            elif name.startswith("product"):
                values[name] = f"net->{name}_{self.index}[j]"
            elif leaf.is_row:
                numbers = layer.parameters[int(name[1:])]
                place = "j" if len(numbers) == self.size else f"j % {len(numbers)}"
                values[name] = element(self.to.constant(numbers, f"{name}_"), place, kind)
        return [f"const {kind} {name} = {value};" for name, value in values.items()]

    def _product(self, i: int, product: Product, spikes: Activations) -> None:
        """Writes matrix product number `i` of the step into an array; `spikes` are the last step's output."""
        layer, to = self.layer, self.to
        out = self._array(f"product{i}")
        if product.state is None:
            operand = self._array(f"operand{i}", product.is_binary)
            stores = {"operand": product.operand}
            body, results = to.arithmetic.statements(layer, stores)
            value = f"({results['operand']}) != 0" if product.is_binary else results["operand"]
            store = f"{to.element(operand, 'j')} = {value};"
            to.writer.write(each("j", self.size, [*self._declarations(stores), *body, store]))
        else:
            operand = self.states[product.state]
        inputs = spikes
        if product.state != len(layer.step.states) - 1 or not layer.reads_spike_list:
            inputs = Activations(layer.node, spikes.order, operand, binary=product.is_binary)
        weights = layer.matrix(product.matrix, product.transposed)
        name = f"m{product.matrix}{'t' * product.transposed}_"
        out.clear(self.size)
        if isinstance(weights, Connections):
            add_synapses(to, weights, inputs, self.size, lambda target: out + target, name)
        else:
            to.add_rows(inputs, to.constant(weights, name), self.size, out)
