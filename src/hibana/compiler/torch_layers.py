"""Layers of ``torch.nn`` that :func:`hibana.optimize` would change: what is said of them, and where.

Nothing here changes a network; this is a hint to an error of torch's, a warning, and a list of names.
"""

from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hibana.compiler.checks import warn_once

__all__ = ["CALL", "OF_IMAGES", "WAS", "add_hint", "faster_layers", "suggest"]

CALL = nn.Module._call_impl.__code__
"""Code of the frame in which torch calls a module."""
MANY = 1 << 20
"""Numbers of a layer's input, over all steps, from which on a call takes milliseconds."""
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
    described = {m for module in net.modules() if hasattr(module, "explain") for m in module.modules()}
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


def suggest(called: list[nn.Module], layer: str, inputs: Tensor) -> None:
    """Warns once that the network runs beside layers of torch that have a faster form.

    Args:
        called: the modules that are being called, the innermost first.
        layer: of neurons, as it is called in a sentence.
        inputs: its own.
    """
    if not called or inputs.numel() < MANY or not inputs.is_cpu or inputs.dtype != torch.float32:
        return
    found = faster_layers(called[-1])
    if found:
        warn_once(
            "hibana.optimize",
            f"{layer} takes {inputs.numel():,} numbers over time beside {named(found)} of torch.nn, which "
            "multiply zeros too and normalise in a pass of their own. Before training, write "
            "hibana.optimize(net, x): it changes them in place to layers that add weights per spike and "
            "normalise in the neurons' pass, and a training step of four convolutions took a quarter to a "
            "third of the time",
        )


def named(layers: dict[str, nn.Module], most: int = 4) -> str:
    """Some of the `layers` by name and class, and how many there are beside those."""
    texts = [f"{name or '-'} ({type(module).__name__})" for name, module in layers.items()]
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest


def add_hint(net: nn.Module, error: BaseException) -> None:
    """Notes at an `error` of torch's, raised within `net`, that its layer of images was called with time."""
    module, given = _innermost(error.__traceback__)
    if not isinstance(module, OF_IMAGES) or not isinstance(given, Tensor):
        return
    dimensions = 3 if isinstance(module, nn.Conv1d | nn.BatchNorm1d) else 4
    if given.ndim != dimensions + 1:
        return
    name = next((name for name, inner in net.named_modules() if inner is module), "")
    kind = type(module).__name__
    error.add_note(
        f"layer {name!r} ({kind}) was given [T, batch, ...], shape {list(given.shape)}, and takes no time: "
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
