"""A layer of neurons in a native step: the passes that the compiler makes of its cell, over one sample."""

from typing import TYPE_CHECKING

import torch

from hibana.compiler.cpu.kernel_writer import scalar_arguments, write_call
from hibana.compiler.cpu.row_pass import Pass
from hibana.compiler.cpu.vector_functions import vector_functions
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, forward_pass, leaves, substitute
from hibana.compiler.graph.step import Value as GraphValue
from hibana.network.graph import Node
from hibana.network.lowering import Activations
from hibana.network.native.blocks import pack_bits
from hibana.network.neurons import NeuronLayer, trace_layer
from hibana.runtime.kernels import Pointer

if TYPE_CHECKING:
    from hibana.network.native.emitter import Emitter

__all__ = ["neurons"]


def neurons(emitter: "Emitter", node: Node, index: int, read: Activations) -> Activations:
    """One step of the layer `node` on `read`; its states lie in the block of the state."""
    made = trace_layer(node, index, read.order, emitter.dtype)
    rings = [array for array in emitter.arrays if array.layer == node.name]
    emitter.arrays[:] = [array for array in emitter.arrays if array not in rings]
    stores, spikes = _stores(made)
    try:
        functions = vector_functions(made.step, emitter.dtype)
    except Unsupported as refused:
        raise Unsupported(f"layer {node.name!r}: {refused}") from refused
    written = Pass(f"neurons{index}", stores, emitter.number, frozenset(functions))
    rows: dict[str, Pointer] = {"x": emitter.numbers(read)} if "x" in written.leaves else {}
    *carried, emitted = made.step.states
    for name, begun in zip(carried, made.initial_state[:-1], strict=True):
        rows[name] = emitter.lasting("numbers", begun, node, read.order, node.shape).of(emitter.number)
    rest = pack_bits(made.initial_state[-1]) if spikes else made.initial_state[-1]
    last = emitter.lasting("bits" if spikes else "numbers", rest, node, read.order, node.shape)
    rows["fired" if spikes else emitted] = last if spikes else last.of(emitter.number)
    for name, leaf in written.leaves.items():
        if leaf.is_row and name not in rows:
            values = made.parameters[int(name[1:])]
            rows[name] = emitter.constant(values.repeat(node.size // len(values)))
    for name in (*written.scratch, *written.products):
        rows[name] = emitter.temporary(node.size)
    constants = emitter.constant(torch.tensor(made.step.constants, dtype=torch.float64, device="cpu"))
    scalars = scalar_arguments(
        [written],
        lambda array, i: (
            constants[i] if array == "c" else emitter.constant(made.parameters[int(array[1:])])[0]
        ),
    )
    called = sorted(written.operations & functions.keys())
    addresses = {name: emitter.function(functions[name]) for name in called}
    code = emitter.code
    for call in written.sequence:
        given = [rows[name] for name in call.rows]
        if call.function == "product":
            matrix, turned = divmod(call.matrix, 2)
            weights = made.matrices[matrix].T if turned else made.matrices[matrix]
            emitter.add_rows(Activations(node, read.order, given[0]), emitter.pack(weights), given[-1])
        else:
            write_call(code, call, given, scalars, addresses, code.constant(node.size), code.constant(0))
    emitter.arrays += rings  # of delayed synapses, last as in the state of hibana.run
    if spikes:
        return Activations(node, read.order, bits=last, binary=True)
    return Activations(node, read.order, last.of(emitter.number), binary=made.emits_spikes)


def _stores(made: NeuronLayer) -> tuple[Stores, bool]:
    """What a step stores, and whether it emits spikes, which are stored as the bits ``fired``."""
    stores, emitted = forward_pass(made.step, None), made.step.states[-1]
    bits = stores[emitted].as_boolean
    spikes = made.emits_spikes and bits is not None and bool(bits.args)
    before = leaves(stores).get("emitted_before")
    if before is not None:  # by the name that it is stored by, so that it is read before it is written
        fired = GraphValue("to_float", (GraphValue("bits", data="fired"),))
        stores = substitute(stores, {before: fired if spikes else GraphValue("row", data=emitted)})
    if spikes:
        stores["fired"] = stores.pop(emitted).args[0]
    return stores, spikes
