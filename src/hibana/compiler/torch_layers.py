"""The roles of the layers of ``torch.nn``, the layers that :func:`hibana.optimize` would change, error notes.

Nothing here changes a network.
"""

from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hibana.runtime import torch_internals

ORIGINAL_CLASS = "_hibana_was"
"""The key of a module's original class in its ``__dict__``, after :func:`hibana.optimize` changed the
class."""
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
"""The classes of torch's layers that hibana distinguishes, by role. No other table lists classes of
layers."""


def role_of(module: object) -> str:
    """The role of a module by its class or a base class in :data:`TORCH_LAYERS`, or ``""``."""
    return next((role for role, classes in TORCH_LAYERS.items() if isinstance(module, classes)), "")


def is_user_class(module: nn.Module) -> bool:
    """Whether the user wrote the class of `module`; then it may not do what its role says."""
    return not type(module).__module__.startswith(("torch.nn.", "hibana."))


def spatial_dims(module: nn.Module) -> int:
    """Dimensions of a sample besides channels: the number in the name of the module's class, else 2."""
    classes = TORCH_LAYERS[role_of(module)]
    digits = next(kind for kind in classes if isinstance(module, kind)).__name__[-2:-1]
    return int(digits) if digits.isdigit() else 2


def has_channel_axis(module: object) -> bool:
    """Whether `module` takes single images, with channels in axis 1, instead of sequences."""
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
    """The layers of torch's own in `net` that :func:`hibana.optimize` would make faster, by name.

    The result is empty for an optimized network. Layers whose parameters a functional call replaced are left
    out.
    """
    if any(ORIGINAL_CLASS in vars(module) for module in net.modules()):
        return {}
    fast_modules = [m for m in net.modules() if hasattr(m, "explain") or getattr(m, "holds_step", False)]
    parts_of_fast_modules = {inner for module in fast_modules for inner in module.modules()}
    layers = {}
    weighted_count = 0
    for name, module in net.named_modules():
        has_weights = role_of(module) in ("linear", "convolution")
        if has_weights:
            weighted_count += 1  # the inputs of the first layer with weights are usually not spikes
        if module in parts_of_fast_modules or not isinstance(module._parameters.get("weight"), nn.Parameter):
            continue
        is_torch_class = type(module).__module__.startswith("torch.nn.")
        is_norm = role_of(module) == "batch normalization" and spatial_dims(module) == 2
        if is_torch_class and (is_norm or (has_weights and weighted_count > 1 and spatial_dims(module) < 3)):
            layers[name] = module
    return layers


def layer_list(layers: dict[str, nn.Module], max_count: int = 4) -> str:
    """The names and classes of the first `max_count` layers, and the number of further layers, as text."""
    texts = [f"{name or '-'} ({type(module).__name__})" for name, module in layers.items()]
    remainder = f" and {len(texts) - max_count} more" if len(texts) > max_count else ""
    return ", ".join(texts[:max_count]) + remainder


def add_hint(net: nn.Module, error: BaseException) -> None:
    """Adds a note to an `error` of torch's: the layer of `net` that raised it, and the shape of its input."""
    module, inputs = _innermost_call(error.__traceback__)
    name = next((name for name, inner in net.named_modules() if inner is module), "")
    if not isinstance(inputs, Tensor):
        return
    if has_channel_axis(module) and inputs.ndim == spatial_dims(module) + 3:
        error.add_note(no_time_axis_message(net, module, inputs.shape))
    elif name:
        error.add_note(f"layer {name!r} ({type(module).__name__}) was given the shape {list(inputs.shape)}")


def no_time_axis_message(net: nn.Module, layer: nn.Module, shape: torch.Size) -> str:
    """An error message: `layer`, a part of `net`, takes single images and got a sequence of this `shape`."""
    name = next((name for name, inner in net.named_modules() if inner is layer), "")
    kind = type(layer).__name__
    return (
        f"layer {name!r} ({kind}) was given [T, batch, ...], shape {list(shape)}, and takes no time: "
        f"wrap it in hibana.EachStep({kind}(...)), or call hibana.optimize(net, x), which makes a network of "
        "torch.nn take time"
    )


def _innermost_call(trace: TracebackType | None) -> tuple[Any, Any]:
    """The module of the innermost call in `trace`, and its first argument; None without a call."""
    call: tuple[Any, Any] = None, None
    while trace is not None:
        frame: FrameType = trace.tb_frame
        if frame.f_code is torch_internals.MODULE_CALL:
            arguments = frame.f_locals.get("args") or (None,)
            call = frame.f_locals.get("self"), arguments[0]
        trace = trace.tb_next
    return call
