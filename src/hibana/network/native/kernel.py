"""A network as one native function: all layers of a step, over the steps and samples of a call."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Network, Node
from hibana.network.lowering import Activations, StateArray, in_order
from hibana.network.native.emitter import Emitter
from hibana.network.native.static_layers import KINDS, StaticLayers
from hibana.runtime import available
from hibana.runtime import kernels as runtime
from hibana.runtime.kernels import BYTE, LONG, Bytes, Code, Function, Longs, Pointer, Value

__all__ = ["ARGUMENTS", "CHECK", "NAN", "OUT_OF_RANGE", "RUN", "Native", "build"]

ARGUMENTS = (
    *("mode", "steps", "samples", "inputs", "outputs", "events", "count", "stride"),
    *("status", "state", "weights", "functions"),
)
"""Arguments of a call in order, eight bytes each. ``stride`` is the distance in numbers between the inputs of
two steps, 0 if all steps have the same input.
"""
CHECK, RUN = 1, 2
"""Bits of ``mode``: check the input first; run the network."""
NAN, OUT_OF_RANGE = 1, 2
"""Values of ``status`` after a call whose input was refused. Such a call does not change the state."""


@dataclass(frozen=True, eq=False)
class Native:
    """A compiled network: its function, its constants, and its initial state."""

    network: Network
    kernel: runtime.Kernel
    weights: Tensor
    """All constants, as bytes."""
    initial_state: Tensor
    """The initial state of a sample, as bytes."""
    arrays: tuple[StateArray, ...]
    functions: Tensor
    """Addresses of the vector functions that the kernel calls."""


def build(network: Network) -> Native:
    """Compiles `network`.

    Raises:
        Unsupported: naming the layer, if it can't be compiled; or if this process can't compile.
    """
    if network.dtype not in (torch.float32, torch.float64):
        raise Unsupported(f"hb.compile supports float32 and float64, got {network.dtype}")
    if reason := available.unavailable_reason():
        raise Unsupported(reason)
    static_layers = StaticLayers(network, _write)
    number = static_layers.emitter.number
    emitters: list[Emitter] = []

    def body(code: Code, inputs: Any, results: Any, outputs: Any, **blocks: Any) -> None:
        """Writes one step of the nodes that are not static layers, and stores the outputs."""
        emitter = Emitter(code, network.dtype, blocks, static_layers.emitter)
        emitters.append(emitter)
        emitter.activations = static_layers.activations(results, number)
        for node in network.nodes:
            if node not in emitter.activations:
                _write(emitter, node, inputs)
        _write_outputs(emitter, network, outputs)

    step = runtime.function("sample", body, {"inputs": number, "results": Bytes, "outputs": number, **KINDS})
    (emitter,) = emitters
    initial_state = emitter.initial_state.packed()
    code = Code()
    _write_call(code, network, static_layers, step, len(initial_state), emitter.scratch.size)
    head = "define void @network(i64 %begin, i64 %end, ptr noalias readonly %args) nounwind"
    kernel = runtime.assemble(runtime.source([*code.texts, code.text(head)]), "network")
    functions = torch.tensor(emitter.functions, dtype=torch.int64, device="cpu")
    return Native(network, kernel, emitter.weights.packed(), initial_state, tuple(emitter.arrays), functions)


def _write(emitter: Emitter, node: Node, inputs: Pointer) -> None:
    """Writes the layer `node`; `inputs` is the input of the network."""
    is_input = node.kind == "input"
    emitter.activations[node] = (
        Activations(node, in_order(node.size), inputs) if is_input else node.layer.lower(node, emitter)
    )


def _write_outputs(emitter: Emitter, network: Network, outputs: Pointer) -> None:
    """Copies the activations of the last layer to `outputs`, in PyTorch's order."""
    last = emitter.activations[network.output]
    size, order = last.node.size, in_order(last.node.size)
    if last.bits is not None and torch.equal(last.order, order):
        emitter.expand(last, outputs)
    else:
        outputs.copy(emitter.numbers(emitter.reordered(last, order)), size)


def _write_call(
    code: Code,
    network: Network,
    static_layers: StaticLayers,
    step: Function,
    state_bytes: int,
    scratch_bytes: int,
) -> None:
    """Writes the function that a call runs: checks of the input, then all steps of each sample of a range.

    Args:
        code: the function.
        network: the network.
        static_layers: the functions of its static layers.
        step: the function of all other layers.
        state_bytes: the size of the state of a sample.
        scratch_bytes: the size of the scratch memory of `step`.
    """
    size, out_size, number = network.input.size, network.output.size, static_layers.emitter.number
    addresses = {"inputs": number, "outputs": number, "events": Longs, "status": Longs}
    blocks = {"state": Bytes, "weights": Bytes, "functions": Longs}
    arguments = code.arguments({name: {**addresses, **blocks}.get(name, LONG) for name in ARGUMENTS})
    begin, end = (Value(code.writer, LONG, text) for text in ("%begin", "%end"))
    reads_events = arguments["events"].is_not_null()
    result_bytes = static_layers.size * static_layers.steps
    with code.scratch((number, size), (Bytes, result_bytes), (Bytes, scratch_bytes)) as memory:
        event_input, results, scratch = memory
        status = code.variable(0)
        with code.when(reads_events):
            event_input.clear(size)
            with code.loop(0, arguments["count"]) as k:
                place = arguments["events"][k]
                inside = (place >= 0) & (place < size)
                event_input[inside.select(place, 0)] = 1
                status.value = inside.select(status.value, OUT_OF_RANGE)
        input_changes = arguments["stride"].differs(0)
        with code.when((arguments["mode"] & CHECK).differs(0) & reads_events.equals(0)):
            steps = input_changes.select(arguments["steps"], code.constant(1).smaller(arguments["steps"]))
            with code.loop(0, steps) as t:
                row = arguments["inputs"] + (t * arguments["stride"] + begin * size)
                _check_nan(code, row, (end - begin) * size, status)
        error = status.value
        with code.when(error.differs(0)):
            arguments["status"].store(error)
        runs = error.equals(0) & (arguments["mode"] & RUN).differs(0)
        with code.loop(begin, runs.select(end, begin)) as sample:
            of_sample = {**arguments, "state": arguments["state"] + sample * state_bytes}
            first = (arguments["inputs"] + sample * size).replace_if(reads_events, event_input)
            with code.loop(0, arguments["steps"], static_layers.steps) as t:
                count = (arguments["steps"] - t).smaller(code.constant(static_layers.steps))
                row = first + t * arguments["stride"]
                if static_layers.size:
                    once = t.equals(0).select(1, code.constant(0))  # if all steps have the same input
                    new_inputs = input_changes.select(count, once)
                    static_layers.compute(code, row, arguments["stride"], new_inputs, of_sample, results)
                with code.loop(0, count) as k:
                    static_results = results + input_changes.select(k * static_layers.size, 0)
                    outputs = arguments["outputs"] + ((t + k) * arguments["samples"] + sample) * out_size
                    block_arguments = [
                        of_sample["state"],
                        arguments["weights"],
                        scratch,
                        arguments["functions"],
                    ]
                    inputs = row + k * arguments["stride"]
                    step.do(code, inputs, static_results, outputs, *block_arguments)


def _check_nan(code: Code, row: Pointer, count: Value, status: Any) -> None:
    """Sets the variable `status` to :data:`NAN` if one of the `count` numbers of `row` is NaN."""
    width = 32
    zero, one = (code.constant(number, BYTE.of(width)) for number in (0, 1))
    has_nan = code.variable(0, BYTE.of(width))
    for offset, mask in code.vectors(count, width):
        x = (row + offset).load(width, mask)
        has_nan.value = has_nan.value | x.differs(x).select(one, 0)
    bits = has_nan.value.differs(zero).word()
    status.value = bits.equals(0).select(status.value, NAN)
