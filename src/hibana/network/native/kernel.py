"""A network as one native function: all layers of a step, over the steps and samples that a call has."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Network, Node
from hibana.network.lowering import Activations, in_order
from hibana.network.native.blocks import Array
from hibana.network.native.emitter import Emitter
from hibana.network.native.static_layers import KINDS, Still
from hibana.runtime import available
from hibana.runtime.functions import source
from hibana.runtime.kernels import (
    BYTE,
    LONG,
    Bytes,
    Code,
    Function,
    Kernel,
    Longs,
    Pointer,
    Value,
    assemble,
    function,
)

__all__ = ["ARGUMENTS", "CHECK", "NAN", "OUT_OF_RANGE", "RUN", "Native", "build"]

ARGUMENTS = (
    *("mode", "steps", "samples", "inputs", "outputs", "events", "count", "stride"),
    *("status", "state", "weights", "functions"),
)
"""What a call is given, eight bytes each, in this order; ``stride`` is the number of numbers from a step's
inputs to the next one's, 0 where all are the same.
"""
CHECK, RUN = 1, 2
"""Bits of ``mode``: whether a call checks its input first, and whether it goes on to run the network."""
NAN, OUT_OF_RANGE = 1, 2
"""What ``status`` is after a call whose input was refused; the state is then as it was."""


@dataclass(frozen=True, eq=False)
class Native:
    """A network compiled: its function, the constants that it reads, and the state that it begins with."""

    network: Network
    kernel: Kernel
    weights: Tensor
    """All constants, as bytes."""
    rest: Tensor
    """A sample's state at rest, as bytes."""
    arrays: tuple[Array, ...]
    """What the state holds."""
    functions: Tensor
    """Addresses of the vector functions that it calls."""


def build(network: Network) -> Native:
    """Compiles `network`.

    Raises:
        Unsupported: naming the layer, if one can't be compiled; or if nothing can be in this process.
    """
    if network.dtype not in (torch.float32, torch.float64):
        raise Unsupported(f"numbers of {network.dtype} are none that a native step computes in")
    if reason := available.unavailable_reason():
        raise Unsupported(reason)
    still = Still(network, _write)
    made: list[Emitter] = []
    number = Emitter.number_of(network.dtype)

    def body(code: Code, inputs: Any, results: Any, outputs: Any, **blocks: Any) -> None:
        emitter = Emitter(code, network.dtype, blocks, still.emitter)
        made.append(emitter)
        emitter.activations = still.activations(results, number)
        for node in network.nodes:
            if node not in emitter.activations:
                _write(emitter, node, inputs)
        _give(emitter, network, outputs)

    kinds = {"inputs": number, "results": Bytes, "outputs": number, **KINDS}
    step = function("sample", body, kinds)
    (emitter,) = made
    rest = emitter.state.packed()
    code = Code()
    _calls(code, network, still, step, len(rest), emitter.scratch.size)
    head = "define void @network(i64 %begin, i64 %end, ptr noalias readonly %args) nounwind"
    (kernel,) = assemble(source([*code.texts, code.text(head)]), ("network",))
    functions = torch.tensor(emitter.functions, dtype=torch.int64, device="cpu")
    return Native(network, kernel, emitter.weights.packed(), rest, tuple(emitter.arrays), functions)


def _write(emitter: Emitter, node: Node, inputs: Pointer) -> None:
    """Writes the layer `node`."""
    if node.kind == "input":
        held = Activations(node, in_order(node.size), inputs)
    else:
        held = node.layer.lower(node, emitter)
    emitter.activations[node] = held


def _give(emitter: Emitter, network: Network, outputs: Pointer) -> None:
    """What the last layer gives goes to `outputs`, in PyTorch's order."""
    held = emitter.activations[network.output]
    size, order = held.node.size, in_order(held.node.size)
    if held.bits is not None and torch.equal(held.order, order):
        emitter.expand(held, outputs)
    else:
        outputs.copy(emitter.numbers(emitter.ordered(held, order)), size)


def _calls(code: Code, network: Network, still: Still, step: Function, state: int, scratch: int) -> None:
    """The function that a call runs: checks, then each sample of its range through all steps."""
    size, out_size, number = network.input.size, network.output.size, still.emitter.number
    addresses = {"inputs": number, "outputs": number, "events": Longs, "status": Longs}
    blocks = {"state": Bytes, "weights": Bytes, "functions": Longs}
    kinds = {name: {**addresses, **blocks}.get(name, LONG) for name in ARGUMENTS}
    at = code.arguments(kinds)
    begin, end = (Value(code.writer, LONG, text) for text in ("%begin", "%end"))
    by_events = at["events"].is_not_null()
    with code.scratch((number, size), (Bytes, still.size * still.steps), (Bytes, scratch)) as (
        given,
        results,
        memory,
    ):
        refused = code.variable(0)
        with code.when(by_events):
            given.clear(size)
            with code.loop(0, at["count"]) as k:
                place = at["events"][k]
                inside = (place >= 0) & (place < size)
                given[inside.select(place, 0)] = 1
                refused.value = inside.select(refused.value, OUT_OF_RANGE)
        moves = at["stride"].differs(0)
        with code.when((at["mode"] & CHECK).differs(0) & by_events.equals(0)):
            different = moves.select(at["steps"], code.constant(1).smaller(at["steps"]))
            with code.loop(0, different) as t:
                row = at["inputs"] + (t * at["stride"] + begin * size)
                _find_nan(code, row, (end - begin) * size, refused)
        wrong = refused.value
        with code.when(wrong.differs(0)):
            at["status"].store(wrong)
        runs = wrong.equals(0) & (at["mode"] & RUN).differs(0)
        with code.loop(begin, runs.select(end, begin)) as sample:
            own = {**at, "state": at["state"] + sample * state}
            first = (at["inputs"] + sample * size).replace_if(by_events, given)
            with code.loop(0, at["steps"], still.steps) as t:
                count = (at["steps"] - t).smaller(code.constant(still.steps))
                row = first + t * at["stride"]
                if still.size:
                    once = t.equals(0).select(1, code.constant(0))  # of an input that stays the same
                    still.compute(code, row, at["stride"], moves.select(count, once), own, results)
                with code.loop(0, count) as k:
                    kept = results + moves.select(k * still.size, 0)
                    outputs = at["outputs"] + ((t + k) * at["samples"] + sample) * out_size
                    blocks_ = [own["state"], at["weights"], memory, at["functions"]]
                    step.do(code, row + k * at["stride"], kept, outputs, *blocks_)


def _find_nan(code: Code, row: Pointer, count: Value, refused: Any) -> None:
    """Sets `refused` if one of `count` numbers is NaN."""
    vector_width = 32
    found = code.variable(0, BYTE.of(vector_width))
    for at, there in code.vectors(count, vector_width):
        x = (row + at).load(vector_width, there)
        one = code.constant(1, BYTE.of(vector_width))
        found.value = found.value | x.differs(x).select(one, 0)
    zero = code.constant(0, BYTE.of(vector_width))
    bits = found.value.differs(zero).word()
    refused.value = bits.equals(0).select(refused.value, NAN)
