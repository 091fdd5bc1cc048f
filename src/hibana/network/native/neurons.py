"""Neurons in a native step: the row functions that the compiler generates for a cell, over one sample."""

from typing import TYPE_CHECKING

import torch

from hibana.compiler.cpu.kernel_writer import scalar_arguments, write_call
from hibana.compiler.cpu.row_pass import Pass
from hibana.compiler.cpu.vector_functions import vector_functions
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, forward_pass, leaves, substitute
from hibana.compiler.graph.step import Value as GraphValue
from hibana.network.graph import Node
from hibana.network.lowering import Activations, StateArray
from hibana.network.native.state import pack_bits
from hibana.network.neurons import NeuronLayer, trace_layer
from hibana.network.synapses import add_synapses
from hibana.runtime.kernels import Pointer, Value
from hibana.spikes.sparse import Connections

if TYPE_CHECKING:
    from hibana.network.native.emitter import Emitter

__all__ = ["write_neurons"]


def write_neurons(emitter: "Emitter", node: Node, index: int, currents: Activations) -> Activations:
    """Adds the code of one step of the neurons of `node`, with the input `currents`; returns their output.

    `index` is the position of the layer in the network. The states are part of the network's state.
    """
    order, number, code = currents.order, emitter.number, emitter.code
    layer = trace_layer(node, order, emitter.dtype)
    rings = [array for array in emitter.arrays if array.layer == node.name]
    emitter.arrays[:] = [array for array in emitter.arrays if array not in rings]
    stores, as_bits = _stores(layer)
    try:
        functions = vector_functions(layer.step, emitter.dtype)
    except Unsupported as error:
        raise Unsupported(f"layer {node.name!r}: {error}") from error
    row_pass = Pass(f"neurons{index}", stores, number, frozenset(functions))
    rows: dict[str, Pointer] = {"x": emitter.numbers(currents)} if "x" in row_pass.leaves else {}
    *inner_states, output_state = layer.step.states
    *initial_states, initial_output = layer.initial_state
    numbers = StateArray(node.name, "numbers", node.shape, order)
    for name, initial in zip(inner_states, initial_states, strict=True):
        rows[name] = emitter.state(numbers, initial).of(number)
    if as_bits:
        bits = emitter.state(StateArray(node.name, "bits", node.shape, order), pack_bits(initial_output))
        rows["fired"] = bits
        outputs = Activations(node, order, bits=bits, binary=True)
    else:
        rows[output_state] = emitter.state(numbers, initial_output).of(number)
        outputs = Activations(node, order, rows[output_state], binary=layer.emits_spikes)
    for name, leaf in row_pass.leaves.items():
        if leaf.is_row and name not in rows:
            values = layer.parameters[int(name[1:])]
            rows[name] = emitter.constant(values.repeat(node.size // len(values)))
    for name in (*row_pass.scratch, *row_pass.products):
        rows[name] = emitter.temporary(node.size)
    constants = emitter.constant(torch.tensor(layer.step.constants, dtype=torch.float64, device="cpu"))

    def scalar(array: str, i: int) -> Value:
        """Number `i` of the step's constants (`array` is ``c``), or the only one of parameter 3 (``p3``)."""
        return constants[i] if array == "c" else emitter.constant(layer.parameters[int(array[1:])])[0]

    scalars = scalar_arguments([row_pass], scalar)
    addresses = {op: emitter.function(functions[op]) for op in sorted(row_pass.operations & functions.keys())}
    for call in row_pass.sequence:
        arguments = [rows[name] for name in call.rows]
        if call.function == "product":
            weights, out = layer.matrix(call.matrix // 2, bool(call.matrix % 2)), arguments[-1]
            operand = Activations(node, order, arguments[0])
            if isinstance(weights, Connections):
                out.clear(node.size)
                add_synapses(emitter, weights, operand, node.size, out.__add__)
            else:
                emitter.add_rows(operand, emitter.pack(weights), out)
        else:
            write_call(code, call, arguments, scalars, addresses, code.constant(node.size), code.constant(0))
    emitter.arrays += rings  # of delayed synapses; hibana.run has them last, too
    return outputs


def _stores(layer: NeuronLayer) -> tuple[Stores, bool]:
    """The values that the code of a step stores, by name, and whether output spikes are packed into bits."""
    stores, output_state = forward_pass(layer.step, None), layer.step.states[-1]
    boolean = stores[output_state].as_boolean
    as_bits = layer.emits_spikes and boolean is not None and bool(boolean.args)
    previous_output = leaves(stores).get("emitted_before")
    if previous_output is not None:  # read it from the row that the step overwrites
        fired = GraphValue("to_float", (GraphValue("bits", data="fired"),))
        stored = fired if as_bits else GraphValue("row", data=output_state)
        stores = substitute(stores, {previous_output: stored})
    if as_bits:
        stores["fired"] = stores.pop(output_state).args[0]
    return stores, as_bits
