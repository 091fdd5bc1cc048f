"""A layer of neurons in a native step: the passes that the compiler makes of its cell, over one sample."""

import torch

from hibana.compiler.cpu.libraries import vector_functions
from hibana.compiler.cpu.rows import Call, Pass
from hibana.compiler.cpu.schedule import ACCURATE
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, forward_pass, leaves, substitute
from hibana.compiler.graph.step import Value as GraphValue
from hibana.network.graph import Node
from hibana.network.native.blocks import pack_bits
from hibana.network.native.emitter import Emitter, Held
from hibana.network.neurons import Layer, layer
from hibana.runtime.kernels import INT, LONG, Bytes, Function, Pointer, Value

__all__ = ["neurons"]


def neurons(emitter: Emitter, node: Node, index: int, read: Held) -> Held:
    """One step of the layer `node` on `read`; its states lie in the block of the state."""
    made = layer(node, index, read.places, emitter.dtype)
    stores, spikes = _stores(made)
    try:
        functions = vector_functions(made.step, emitter.dtype)
    except Unsupported as refused:
        raise Unsupported(f"layer {node.name!r}: {refused}") from refused
    written = Pass(f"neurons{index}", stores, emitter.number, frozenset(functions))
    rows: dict[str, Pointer] = {"x": emitter.numbers(read)} if "x" in written.leaves else {}
    *carried, emitted = made.step.states
    for name, begun in zip(carried, made.begun[:-1], strict=True):
        rows[name] = emitter.lasting("numbers", begun, node, read.places, node.shape).of(emitter.number)
    rest = pack_bits(made.begun[-1]) if spikes else made.begun[-1]
    last = emitter.lasting("bits" if spikes else "numbers", rest, node, read.places, node.shape)
    rows["fired" if spikes else emitted] = last if spikes else last.of(emitter.number)
    for name, leaf in written.leaves.items():
        if leaf.op == "row" and name not in rows:
            values = made.parameters[int(name[1:])]
            rows[name] = emitter.constant(values.repeat(node.size // len(values)))
    for name in (*written.scratch, *written.products):
        rows[name] = emitter.temporary(node.size)
    scalars = _Scalars(emitter, made)
    for call in written.does:
        _do(emitter, made, call, rows, scalars, functions)
    if spikes:
        return Held(node, read.places, bits=last, truths=True)
    return Held(node, read.places, last.of(emitter.number), truths=made.emits_spikes)


def _stores(made: Layer) -> tuple[Stores, bool]:
    """What a step stores, and whether it emits spikes, which are stored as the bits ``fired``."""
    stores, emitted = forward_pass(made.step, None), made.step.states[-1]
    spikes = made.emits_spikes and stores[emitted].op == "to_float" and bool(stores[emitted].args[0].args)
    before = leaves(stores).get("emitted_before")
    if before is not None:  # by the name that it is stored by, so that it is read before it is written
        bits = GraphValue("to_float", (GraphValue("bits", data="fired"),))
        stores = substitute(stores, {before: bits if spikes else GraphValue("row", data=emitted)})
    if spikes:
        stores["fired"] = stores.pop(emitted).args[0]
    return stores, spikes


class _Scalars:
    """The numbers of a layer that are the same for all of its neurons."""

    def __init__(self, emitter: Emitter, made: Layer) -> None:
        self.emitter, self.made = emitter, made
        self.array = emitter.constant(torch.tensor(made.step.constants, dtype=torch.float64, device="cpu"))
        self.found: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        if name not in self.found:
            array, _, index = name.rstrip("]").partition("[")
            if array == "c":
                self.found[name] = self.array[int(index)]
            else:
                self.found[name] = self.emitter.constant(self.made.parameters[int(array[1:])])[0]
        return self.found[name]


def _do(
    emitter: Emitter,
    made: Layer,
    call: Call,
    rows: dict[str, Pointer],
    scalars: _Scalars,
    functions: dict[str, int],
) -> None:
    """One call of a pass: a function of rows, a vector function, or a product with a matrix."""
    code, size = emitter.code, made.node.size
    given = [rows[name] for name in call.rows]
    if isinstance(call.function, Function):
        kinds = call.function.kinds[: len(given)]
        given = [row.of(Bytes) if kind is Bytes else row for row, kind in zip(given, kinds, strict=True)]
        numbers = [scalars[name] for name in call.scalars]
        call.function.do(code, *given, *numbers, code.constant(size), code.constant(0))
    elif call.function == "product":
        matrix, turned = divmod(call.matrix, 2)
        weights = made.matrices[matrix].T if turned else made.matrices[matrix]
        operand = Held(made.node, made.places, given[0])
        emitter.add_rows(operand, emitter.pack(weights), given[-1])
    else:
        address = functions[call.function]
        if address not in emitter.functions:
            emitter.functions.append(address)
        at = Pointer.at(emitter.functions_at[emitter.functions.index(address)])
        called = Function.at(at, INT, *[emitter.number] * (len(given) + 1), LONG)
        called.do(code, code.constant(size, INT), *given, given[0], code.constant(ACCURATE))
