"""A network as one native function: all layers of a step, over the steps and samples of a call."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.cpu.row_function import NUMBERS
from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Network
from hibana.network.layers import LAYERS
from hibana.network.lowering import Activations, StateArray
from hibana.network.native.dense_steps import dense_product, group_size, is_dense
from hibana.network.native.emitter import Emitter
from hibana.network.node import in_order
from hibana.runtime import available
from hibana.runtime import kernels as runtime
from hibana.runtime.kernels import INT, LONG, Bytes, Code, Function, Kind, Longs

__all__ = ["ARGUMENTS", "Native", "build"]

ARGUMENTS = ("inputs", "outputs", "steps", "stride", "samples", "status", "state", "weights", "functions")
"""Arguments of a call in order, eight bytes each. ``stride`` is the distance in numbers between the inputs of
two steps, 0 if all steps have the same input. ``status`` becomes 1 if an input is NaN. Such a call does not
change the state.
"""


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
    """The arrays of the state by layer; a ring comes last, as in :func:`hibana.run`."""
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
    emitters: list[Emitter] = []

    def body(code: Code, inputs: Any, outputs: Any, is_new: Any, **blocks: Any) -> None:
        """Writes one step of all layers, static ones only if the input `is_new`, and stores the outputs."""
        emitter = Emitter(code, network.dtype, blocks)
        emitters.append(emitter)
        activations, input_ = emitter.activations, network.input
        activations[input_] = Activations(input_, in_order(input_.size), inputs)
        with code.loop(0, is_new):  # once or not at all
            for node in network.static_nodes[1:]:
                activations[node] = LAYERS[node.kind].lower(node, emitter)
        emitter.is_static = False
        for activation in activations.values():
            activation.nonzero = None  # listed in the loop
        for node in network.nodes:
            if node not in activations:
                activations[node] = LAYERS[node.kind].lower(node, emitter)
        last, size = activations[network.output], network.output.size
        outputs.copy(emitter.numbers(emitter.reordered(last, in_order(size))), size)

    number = NUMBERS[network.dtype]
    kinds: dict[str, Kind] = {"inputs": number, "outputs": number, "is_new": LONG, "state": Bytes}
    kinds |= {"weights": Bytes, "results": Bytes, "scratch": Bytes, "functions": Longs}
    step = runtime.function("step", body, kinds)
    (emitter,) = emitters
    initial_state = emitter.initial_state.packed()
    code = Code()
    _write_call(code, network, emitter, step, len(initial_state))
    kernel = runtime.assemble(runtime.module(code.kernel("network")), "network")
    functions = torch.tensor(emitter.functions, dtype=torch.int64, device="cpu")
    layers = [array.layer for array in emitter.arrays]
    arrays = sorted(emitter.arrays, key=lambda array: (layers.index(array.layer), array.kind == "ring"))
    return Native(network, kernel, emitter.weights.packed(), initial_state, tuple(arrays), functions)


def _write_call(code: Code, network: Network, emitter: Emitter, step: Function, state_bytes: int) -> None:
    """Writes the function that a call runs: checks of the input, then all steps of each sample of a range.

    If the only static layer is linear, it is computed for a group of steps at once if their inputs are dense.

    Args:
        code: the function.
        network: the network.
        emitter: the emitter of `step`.
        step: the function of one step of one sample.
        state_bytes: the size of the state of a sample.
    """
    size, number, result_bytes = network.input.size, emitter.number, emitter.results.size
    kinds: dict[str, Kind] = {"inputs": number, "outputs": number, "status": Longs}
    kinds |= {"state": Bytes, "weights": Bytes, "functions": Longs}
    a = code.arguments({name: kinds.get(name, LONG) for name in ARGUMENTS})
    begin, end = code.begin, code.end
    group, multiply, static_nodes = 1, None, network.static_nodes
    if [node.kind for node in static_nodes] == ["input", "linear"]:
        linear = static_nodes[1]
        offset = emitter.offset(emitter.numbers(emitter.activations[linear]))
        group = group_size(result_bytes)
        multiply = dense_product(emitter.packed[linear], offset, result_bytes)
    with code.scratch((Bytes, result_bytes * group), (Bytes, emitter.scratch.size)) as (results, scratch):
        input_changes = a["stride"].differs(0)
        has_nan = code.variable(0, INT)
        with code.loop(0, input_changes.select(a["steps"], 1)) as t:
            row = a["inputs"] + (t * a["stride"] + begin * size)
            for place, mask in code.vectors((end - begin) * size, 32):
                x = (row + place).load(32, mask)
                has_nan.value = has_nan.value | x.differs(x).word()
        with code.when(has_nan.value.differs(0)):
            a["status"].store(1)
        with (
            code.loop(begin, has_nan.value.equals(0).select(end, begin)) as sample,
            code.loop(0, a["steps"], group) as t,
        ):
            count = (a["steps"] - t).smaller(code.constant(group))
            row = a["inputs"] + (sample * size + t * a["stride"])
            is_new = code.constant(1)
            if multiply is not None:
                dense = is_dense(code, row, a["stride"], input_changes.select(count, 0), size)
                with code.when(dense):
                    multiply.do(code, row, a["stride"], count, a["weights"], results)
                is_new = dense.select(0, is_new)
            with code.loop(0, count) as k:
                outputs = a["outputs"] + ((t + k) * a["samples"] + sample) * network.output.size
                is_first = input_changes | (t + k).equals(0)  # at this input
                arguments = [row + k * a["stride"], outputs, is_first.select(is_new, 0)]
                arguments += [a["state"] + sample * state_bytes, a["weights"]]
                arguments += [results + input_changes.select(k * result_bytes, 0), scratch, a["functions"]]
                step.do(code, *arguments)
