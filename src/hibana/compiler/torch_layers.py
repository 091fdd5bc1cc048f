"""Roles of the layers of ``torch.nn``, the layers that :func:`hibana.optimize` would change, notes at errors.

Nothing here changes a network.
"""

from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    *(
        "TORCH_LAYERS",
        "ORIGINAL_CLASS",
        "add_hint",
        "faster_layers",
        "is_user_class",
        "layer_list",
        "role_of",
        "spatial_dims",
    ),
    "has_channel_axis",
]

CALL = nn.Module._call_impl.__code__
"""Code of the frame in which torch calls a module."""
ORIGINAL_CLASS = "_hibana_was"
"""Key, in the ``__dict__`` of a module that :func:`hibana.optimize` has changed, of its class before."""
TORCH_LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "convolution": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "transposed convolution": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    "maximum": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    "average": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    "batch normalization": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "normalization": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm),
    "upsampling": (nn.Upsample,),
    "reshape": (nn.Flatten, nn.Unflatten, nn.Identity),
    "dropout": (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    "rectifier": (nn.ReLU, nn.ReLU6),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "sequence": (nn.Sequential,),
}
"""The role of each class of torch's layers that hibana distinguishes. This is the only such table."""


def role_of(module: object) -> str:
    """The role of a module whose class is, or inherits from, one of torch's; empty if it has none."""
    return next((role for role, classes in TORCH_LAYERS.items() if isinstance(module, classes)), "")


def is_user_class(module: nn.Module) -> bool:
    """Whether the class of `module` is neither torch's nor hibana's, so that its role may mislead."""
    return not type(module).__module__.startswith(("torch.nn.", "hibana."))


def spatial_dims(module: nn.Module) -> int:
    """Dimensions of a sample of `module` besides channels, by the name of torch's class; 2 if it has none."""
    classes = TORCH_LAYERS[role_of(module)]
    digits = next(kind for kind in classes if isinstance(module, kind)).__name__[-2:-1]
    return int(digits) if digits.isdigit() else 2


def has_channel_axis(module: object) -> bool:
    """Whether `module` takes axis 1 for channels, and so knows no time."""
    roles = (
        "convolution",
        "transposed convolution",
        "maximum",
        "average",
        "batch normalization",
        "normalization",
    )
    return role_of(module) in roles


def faster_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The layers of torch's own in `net` that have a form per spike or in the neurons' pass, by name.

    There are none if the network was optimised, or if a functional call has replaced its parameters.
    """
    if any(ORIGINAL_CLASS in vars(module) for module in net.modules()):
        return {}
    whole = [m for m in net.modules() if hasattr(m, "explain") or getattr(m, "holds_step", False)]
    described = {inner for module in whole for inner in module.modules()}
    found = {}
    weighted = 0
    for name, module in net.named_modules():
        has_weights = role_of(module) in ("linear", "convolution")
        if has_weights:
            weighted += 1  # the first one mostly takes numbers that are no spikes
        if module in described or not isinstance(module._parameters.get("weight"), nn.Parameter):
            continue
        plain = type(module).__module__.startswith("torch.nn.")
        norm = role_of(module) == "batch normalization" and spatial_dims(module) == 2
        if plain and (norm or (has_weights and weighted > 1 and spatial_dims(module) < 3)):
            found[name] = module
    return found


def layer_list(layers: dict[str, nn.Module], most: int = 4) -> str:
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
    if has_channel_axis(module) and given.ndim == spatial_dims(module) + 3:
        error.add_note(no_time_axis_message(net, module, given.shape))
    elif name:
        error.add_note(f"layer {name!r} ({type(module).__name__}) was given the shape {list(given.shape)}")


def no_time_axis_message(net: nn.Module, layer: nn.Module, shape: torch.Size) -> str:
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
