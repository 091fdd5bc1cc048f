"""Layers of ``torch.nn`` that :func:`hibana.optimize` would change: what is said of them, and where.

Nothing here changes a network; this is a hint to an error of torch's, a warning, and a list of names.
"""

import itertools
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hibana.compiler.checks import warn_once

__all__ = [
    "CALL",
    "MANY",
    "OF_IMAGES",
    "SMALLEST_WORK",
    "WAS",
    "add_hint",
    "faster_layers",
    "first_of_images",
    "made_of_channels",
    "named",
    "refuse_next",
    "suggest",
]

CALL = nn.Module._call_impl.__code__
"""Code of the frame in which torch calls a module."""
MANY = 1 << 20
"""Numbers of a layer's input, over all steps, from which on a call takes milliseconds."""
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
SMALLEST_WORK = 12_000_000
"""Multiplications below which a product always goes to torch: packing bits alone would take longer."""
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
    if not found:
        return
    warn_once(
        "hibana.optimize",
        f"{layer} takes {inputs.numel():,} numbers over time beside {named(found)} of torch.nn, which "
        "multiply zeros too and normalise in a pass of their own. Before training, write "
        "hibana.optimize(net, x): it changes them in place to layers that add weights per spike and "
        "normalise in the neurons' pass",
    )


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


def refuse_next(called: list[nn.Module], shape: torch.Size) -> str:
    """Raises if the layer behind neurons takes no time, as torch would without naming the way out.

    Of a batch normalisation that torch takes, since there are as many samples as features, it returns what
    to warn of; else "".

    Which layer follows is known in an ``nn.Sequential``. In a ``forward`` of one's own it is not.

    Args:
        called: the modules that are being called, the innermost first: the neurons.
        shape: of what the neurons emit, ``[T, batch, ...]``.

    Raises:
        ValueError: naming the layer.
    """
    following = next(_following(called), None)
    if following is None or type(following) not in OF_IMAGES or _may_reshape(called[0], following):
        return ""
    said = takes_no_time(called[-1], following, shape)
    if not _fits(following, shape):
        raise ValueError(said)
    as_many = type(following) is nn.BatchNorm1d and shape[1:] == (following.num_features,) * 2
    return said if as_many else ""


def _may_reshape(before: nn.Module, after: nn.Module) -> bool:
    """Whether a hook, or a ``forward`` set on an object, may change what `before` gives and `after` takes."""
    return bool(
        before._forward_hooks
        or after._forward_pre_hooks
        or torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call] # torch's own
        or "forward" in vars(before)
        or "forward" in vars(after)
    )


def made_of_channels(called: list[nn.Module], inputs: Tensor) -> str:
    """What gave neurons the `inputs` with channels on axis 1, as modules beside the neurons show; or "".

    It is the layer before them in an ``nn.Sequential``. In another module, it is a convolution or
    normalisation of two-dimensional images with as many channels.
    """
    if len(called) < 2 or inputs.ndim not in (3, 4):
        return ""
    siblings = [module for module in called[1]._modules.values() if module is not None]
    if type(called[1]) is nn.Sequential:
        before = siblings[: _place(siblings, called[0]) or 0]
        siblings = [module for module in before if not isinstance(module, _SHAPELESS)][-1:]
    elif inputs.ndim == 3:
        return ""
    for layer in siblings:
        what = _MAKERS.get(type(layer))
        if what and _dimensions(layer) == inputs.ndim and _channels(layer, "out_channels") == inputs.shape[1]:
            return what
    return ""


_MAKERS: dict[type[nn.Module], str] = {
    nn.Conv1d: "a convolution",
    nn.Conv2d: "a convolution",
    nn.BatchNorm1d: "a batch normalisation",
    nn.BatchNorm2d: "a batch normalisation",
}
_SHAPELESS = (nn.Dropout, nn.Identity, nn.ReLU)
"""Modules that give back the shape that they take, whatever it is."""


def _following(called: list[nn.Module]) -> Iterator[nn.Module]:
    """What ``nn.Sequential`` calls after ``called[0]``, without modules that leave shapes alone."""
    for inner, outer in itertools.pairwise(called):
        if type(outer) is not nn.Sequential:
            return
        modules = list(outer._modules.values())
        place = _place(modules, inner)
        if place is None:
            return
        for module in modules[place + 1 :]:
            first: Any = module
            while type(first) is nn.Sequential and len(first):
                first = first[0]
            if not isinstance(first, _SHAPELESS):
                yield first


def _place(modules: list[Any], module: nn.Module) -> int | None:
    """Where `module` stands; None if it does so more than once, or not at all."""
    places = [place for place, each in enumerate(modules) if each is module]
    return places[0] if len(places) == 1 else None


def _channels(layer: Any, of_convolution: str) -> int | None:
    """Channels that a convolution takes or gives, or a normalisation has; None of others."""
    found = (getattr(layer, name, None) for name in (of_convolution, "num_features", "num_channels"))
    return next((count for count in found if isinstance(count, int)), None)


def _fits(layer: nn.Module, shape: torch.Size) -> bool:
    """Whether torch's `layer` of images takes an input of this `shape`."""
    if isinstance(layer, nn.GroupNorm):
        return len(shape) > 1 and shape[1] == layer.num_channels
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return len(shape) > 1  # a mean over the last two dimensions
    dimensions, channels = _dimensions(layer), _channels(layer, "in_channels")
    if len(shape) == dimensions or (len(shape) == 2 and isinstance(layer, nn.BatchNorm1d)):
        return channels is None or shape[1] == channels
    one = len(shape) == dimensions - 1 and not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    return one and (channels is None or shape[0] == channels)


def first_of_images(net: nn.Module) -> str:
    """The first layer of images of torch's own in `net`, by name and class; or ""."""
    for name, module in net.named_modules():
        if type(module) in OF_IMAGES:
            return f"{name!r} ({type(module).__name__})"
    return ""


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
