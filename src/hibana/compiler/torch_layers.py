"""Layers of ``torch.nn`` that :func:`hibana.optimize` would change, and notes at errors of torch.

Nothing here changes a network.
"""

from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "OF_IMAGES",
    "WAS",
    "add_hint",
    "faster_layers",
    "named",
]

CALL = nn.Module._call_impl.__code__
"""Code of the frame in which torch calls a module."""
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
WAS = "_hibana_was"
"""Key, in the ``__dict__`` of a module that :func:`hibana.optimize` has changed, of its class before."""
OF_IMAGES: tuple[Any, ...] = (
    *(nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
"""Layers that take images without a time axis."""


def faster_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The layers of torch's own in `net` that have a form per spike or in the neurons' pass, by name.

    There are none if the network was optimised, or if a functional call has replaced its parameters.
    """
    if any(WAS in vars(module) for module in net.modules()):
        return {}
    whole = [m for m in net.modules() if hasattr(m, "explain") or getattr(m, "holds_step", False)]
    described = {inner for module in whole for inner in module.modules()}
    found = {}
    weighted = 0
    for name, module in net.named_modules():
        if isinstance(module, _WEIGHTED):
            weighted += 1  # the first one mostly takes numbers that are no spikes
        if module in described or not isinstance(module._parameters.get("weight"), nn.Parameter):
            continue
        if (type(module) in _WEIGHTED and weighted > 1) or type(module) is nn.BatchNorm2d:
            found[name] = module
    return found


def named(layers: dict[str, nn.Module], most: int = 4) -> str:
    """Some of the `layers` by name and class, and how many there are beside those."""
    texts = [f"{name or '-'} ({type(module).__name__})" for name, module in layers.items()]
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest


def add_hint(net: nn.Module, error: BaseException) -> None:
    """Notes at an `error` of torch's which layer of `net` raised it, or that this one takes no time."""
    module, given = _innermost(error.__traceback__)
    name = next((name for name, inner in net.named_modules() if inner is module), "")
    if not isinstance(given, Tensor):
        return
    if isinstance(module, OF_IMAGES) and given.ndim == _dimensions(module) + 1:
        error.add_note(takes_no_time(net, module, given.shape))
    elif name:
        error.add_note(f"layer {name!r} ({type(module).__name__}) was given the shape {list(given.shape)}")


def _dimensions(layer: nn.Module) -> int:
    """Of a batch of what the layer of images `layer` takes."""
    return 3 if isinstance(layer, nn.Conv1d | nn.BatchNorm1d) else 4


def takes_no_time(net: nn.Module, layer: nn.Module, shape: torch.Size) -> str:
    """An error message: `layer`, one of images in `net`, was given a sequence and takes single images."""
    name = next((name for name, inner in net.named_modules() if inner is layer), "")
    kind = type(layer).__name__
    return (
        f"layer {name!r} ({kind}) was given [T, batch, ...], shape {list(shape)}, and takes no time: "
        f"wrap it in hibana.EachStep({kind}(...)), or call hibana.optimize(net, x), which makes a network of "
        "torch.nn take time"
    )


def _innermost(trace: TracebackType | None) -> tuple[Any, Any]:
    """The module whose call is the last in `trace`, and its first argument."""
    found: tuple[Any, Any] = None, None
    while trace is not None:
        frame: FrameType = trace.tb_frame
        if frame.f_code is CALL:
            arguments = frame.f_locals.get("args") or (None,)
            found = frame.f_locals.get("self"), arguments[0]
        trace = trace.tb_next
    return found
