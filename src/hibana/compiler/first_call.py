"""Checks of a layer's first call with a gradient and of its first backward: each mistake is warned of once.

Later calls of the layer pay nothing. :func:`hibana.check` looks at all modules of a network.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import programs, reference
from hibana.compiler.derivatives import are_batched
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import (
    CALL,
    first_of_images,
    made_of_channels,
    refuse_next,
    suggest,
)

__all__ = [
    "NO_DERIVATIVE",
    "NetworkWarning",
    "axis_mistake",
    "check_first_call",
    "check_neighbours",
    "features_first",
    "forget",
]


class NetworkWarning(RuntimeWarning):
    """A network that can't learn, or whose axes are not ``[T, batch, ...]``, as one of its layers saw."""


NO_DERIVATIVE = (
    "the step compares without a derivative; let it spike by hb.Heaviside.apply(v - threshold) "
    "or by a surrogate, such as hb.surrogate.ATan()(v - threshold)"
)
ENOUGH_STEPS = 4
"""Minimum steps for a layer to be reported as silent: networks train on 4 and more."""
_CHECKED: "WeakSet[Cell]" = WeakSet()
"""The cells whose first call was checked, also as part of another cell."""
_BETWEEN: dict[int, "WeakSet[Cell]"] = {dimensions: WeakSet() for dimensions in (3, 4, 5)}
"""The cells of layers whose neighbours take such an input, by its dimensions."""


def forget(net: nn.Module) -> None:
    """Lets the next call of each layer in `net` be checked again."""
    for module in net.modules():
        if isinstance(module, Cell):
            for cells in (_CHECKED, *_BETWEEN.values()):
                cells.discard(module)
            module._enter()  # as when it was made: no call of it is known


def check_neighbours(cell: Cell, inputs: Tensor) -> None:
    """Checks the layers of ``torch.nn`` around that of `cell`, which may know no time.

    Warns once where the one before it takes axis 1 for channels and no gradient shows which it is
    (:func:`check_first_call` knows from the graph), and where a batch normalisation behind it takes the batch
    for features, of which there are as many.

    Raises:
        ValueError: if the one behind it takes no time.
    """
    passed = _BETWEEN.get(inputs.ndim)
    if passed is None or cell in passed:
        return
    called = _being_called()
    if called and getattr(called[0], "is_cell_alone", bool)():
        if said := refuse_next(called, inputs.shape):
            _warn(said)
        maker = made_of_channels(called, inputs) if inputs.grad_fn is None else ""
        if maker:
            _warn(f"{_layer_called(cell, called)}: {features_first(maker, inputs, called[-1])}")
            passed.update(module for module in called[-1].modules() if isinstance(module, Cell))
    passed.add(cell)


def check_first_call(cell: Cell, inputs: Tensor, outputs: Tensor, backend: str) -> None:
    """Checks the first call of `cell` that wants the gradient of `inputs` and has more than one step."""
    inner = cell._modules.get("cell")  # of one that was made around it, perhaps for this call
    checked = inner if isinstance(inner, Cell) else cell
    if inputs.shape[0] < 2 or checked in _CHECKED or not inputs.numel():
        return
    if inputs.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    _CHECKED.add(checked)
    called = _being_called()
    layer = _layer_called(cell, called)
    suggest(called, layer, inputs)
    if mistake := axis_mistake(inputs, called[-1] if called else None):
        _warn(f"{layer}: {mistake}")
    node: Any = outputs.grad_fn
    if node is None:  # of the reference loop, whose backward never comes to this layer
        _warn(f"{layer} passes no gradient on: {NO_DERIVATIVE}")
        return
    if node.name() == "ToCopyBackward0":  # of half precision
        node = node.next_functions[0][0]
    if hasattr(node, "support"):  # compiled
        node.register_hook(_first_backward(layer, cell, inputs, backend, node.support))


def _first_backward(
    layer: str, cell: Cell, inputs: Tensor, backend: str, support: Tensor | None
) -> Callable[[Any, Any], None]:
    """A hook of the node of a layer's call, which warns if its backward passes no gradient on."""
    from hibana.compiler.graph.plan import passes_gradient  # loaded with the first step that is compiled

    shape, dtype = inputs.shape, reference.carried(inputs.dtype)
    emits = cell.state_names()[-1]
    waiting = [True]

    def check(to_inputs: Sequence[Tensor | None], of_outputs: Sequence[Tensor | None]) -> None:
        if are_batched(to_inputs):
            return  # of is_grads_batched: a batch of gradients has no one truth value
        first = bool(waiting)
        waiting.clear()
        if not first or _any(to_inputs):
            return
        try:
            learns = passes_gradient(programs.program(cell, backend, shape[1:], dtype).step)
        except Unsupported:  # changed since
            return
        if not learns:
            _warn(f"{layer} passes no gradient on: {NO_DERIVATIVE}")
        elif shape[0] >= ENOUGH_STEPS and (_any(of_outputs) if support is None else not _any([support])):
            _warn(
                f"{layer} passed no gradient on in its first backward: in {shape[0]} steps no neuron came to "
                f"where the surrogate of {emits} has a slope; lower the threshold, scale the weights with "
                "hibana.train.scale_to_rate, or take a surrogate with a slope below the threshold too, such "
                "as hb.surrogate.ATan()"
            )

    return check


def _any(tensors: Sequence[Tensor | None]) -> bool:
    return any(tensor is not None and bool(tensor.any()) for tensor in tensors)


def _warn(text: str) -> None:
    warnings.warn(text, NetworkWarning, stacklevel=2)


def _being_called() -> list[nn.Module]:
    """The modules that are being called, the innermost first."""
    called: list[nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is CALL and isinstance(module := frame.f_locals.get("self"), nn.Module):
            called.append(module)
        frame = frame.f_back
    return called


def _layer_called(cell: Cell, called: list[nn.Module]) -> str:
    """The layer that calls `cell`, as the outermost module that is being `called` names it."""
    if not called:
        return type(cell).__name__
    kind = type(called[0]).__name__
    names = (name for name, module in called[-1].named_modules() if module is called[0])
    return f"layer {name!r} ({kind})" if (name := next(names, "")) else f"layer {kind}"


_OF_FEATURES = {
    "AddmmBackward0": ("a linear layer", (2,)),
    "NativeBatchNormBackward0": ("a batch normalisation", (2, 3, 4, 5)),
    "CudnnBatchNormBackward0": ("a batch normalisation", (3, 4, 5)),
    "NativeGroupNormBackward0": ("a group normalisation", (3, 4, 5)),
    "ConvolutionBackward0": ("a convolution", (3, 4, 5)),
    "_ConvolutionBackward": ("a convolution", (4,)),
    "MaxPool2DWithIndicesBackward0": ("a pooling", (4,)),
    "AvgPool2DBackward0": ("a pooling", (4,)),
    "AdaptiveAvgPool2DBackward0": ("a pooling", (4,)),
    "_MaxPoolBackward": ("a pooling", (4,)),
}
"""By node of autograd: the operation, and for how many dimensions axis 1 of its result is features or
channels, where a layer over time has the batch. :class:`hibana.EachStep` ends in a view."""


def axis_mistake(inputs: Tensor, net: nn.Module | None = None) -> str:
    """Why `inputs` of a layer over time are not ``[T, batch, ...]``, by the node that made them; or ""."""
    made = _OF_FEATURES.get(inputs.grad_fn.name()) if inputs.grad_fn is not None else None
    return "" if made is None or inputs.ndim not in made[1] else features_first(made[0], inputs, net)


def features_first(maker: str, inputs: Tensor, net: nn.Module | None = None) -> str:
    """The sentence for `inputs` of a layer over time, in `net`, whose `maker` takes axis 1 for features."""
    what = "features" if inputs.ndim == 2 else "channels"
    first = "" if net is None or inputs.ndim == 2 else first_of_images(net)
    modules = (
        f"modules that know no time, the first of which is {first}," if first else "modules that know no time"
    )
    return (
        f"its input {list(inputs.shape)} comes from {maker} whose axis 1 is {what}, where a layer over time "
        f"takes [T, batch, ...]; call {modules} by hb.EachStep(module), or change the network "
        "by hb.optimize(net, x), and give it [T, batch, ...]: hb.encode.constant(x, T) shows samples without "
        "time for T steps, x[:, None] is a batch of one sample over time"
    )
