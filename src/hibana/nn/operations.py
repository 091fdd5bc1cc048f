"""The synaptic operations of a layer, and where in a running network its inputs are.

Spikes cause additions, values multiplications. Nothing here knows what an operation costs. Layers are found
by hooks rather than in a graph, because networks that can't be traced, and dense ones, are counted too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hibana.compiler.torch_layers import role_of
from hibana.nn import lengths as padding
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.window import Window

__all__ = ["Neurons", "Weighted", "are_spikes", "operations", "watch_layers"]

Neurons = OverTime | Recurrent | DelayedRecurrent
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | Window | DelayedLinear


@torch.no_grad()
def operations(
    layer: Weighted, inputs: Tensor, lengths: Tensor | None = None
) -> tuple[Literal["acs", "macs"], Tensor]:
    """The operations of `layer` on `inputs`: ``"acs"`` if they are all zeros and ones, else ``"macs"``.

    `lengths` are those of padded samples ``[T, batch, ...]``, for a layer over time.

    Raises:
        TypeError: if `layer` is not ``nn.Linear``, a convolution, or one over time.
        ValueError: if a convolution pads with anything but zeros.
    """
    if not isinstance(layer, Weighted):
        raise TypeError(f"layer must be a linear layer or a convolution, got {type(layer).__name__}")
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"padding_mode must be 'zeros', got {layer.padding_mode!r}")
    spiking = are_spikes(inputs)
    if isinstance(layer, Window | DelayedLinear):
        return ("acs" if spiking else "macs"), _reached_later(layer, inputs, lengths, spiking)
    if not spiking and inputs.stride(0) == 0:
        inputs = inputs[:1]
    weighted: Any = layer
    if role_of(layer) == "linear":
        reached = inputs.count_nonzero() if spiking else inputs.new_tensor(inputs.numel(), dtype=torch.int64)
        return (
            ("acs", reached * weighted.out_features) if spiking else ("macs", reached * weighted.out_features)
        )
    # a product for each input and weight that meet, over an output channel of each group
    rank = len(weighted.kernel_size)
    seen = inputs.ne(0) if spiking else inputs.new_ones(()).expand(inputs.shape)
    total = seen.reshape(-1, *inputs.shape[-rank - 1 :]).sum(0, keepdim=True, dtype=torch.float64)
    ones = torch.ones_like(weighted.weight[: weighted.groups], dtype=torch.float64)
    convolution = getattr(nn.functional, f"conv{rank}d")
    met = convolution(
        total, ones, None, weighted.stride, weighted.padding, weighted.dilation, weighted.groups
    )
    count = met.sum().round().to(torch.int64) * (len(weighted.weight) // weighted.groups)
    return ("acs" if spiking else "macs"), count


@contextmanager
def watch_layers(
    net: nn.Module,
    synapses: Callable[[str, Any, Tensor, Tensor], None],
    others: Callable[[str, nn.Module, Tensor], None] | None = None,
) -> Iterator[None]:
    """Within it, calls `synapses(name, layer, inputs, outputs)` for each layer of weights that runs in `net`.

    Weights by which the spikes of a layer come back to it get these, one step later, when the layer has run;
    nothing else is seen of a step that is compiled. Other modules that run, and hold no modules or parameters
    of their own, go to `others(name, layer, outputs)`.
    """
    back = {module: _feedback(module) for module in net.modules()}
    inside = {i for m in back if isinstance(m, Neurons) for i in m.modules() if i is not m}

    def hook(name: str) -> Any:
        def ran(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], outputs: Tensor) -> None:
            if isinstance(module, Weighted):
                (inputs,) = *args, *named.values()
                synapses(name, module, inputs, outputs)
            elif others is not None:
                others(name, module, outputs)
            if (within := back[module]) is not None:
                earlier = torch.cat([torch.zeros_like(outputs[:1]), outputs[:-1]])
                synapses(f"{name}.recurrent", within, earlier, outputs)

        return ran

    hooks = []
    for name, module in net.named_modules():
        has_own = any(parameter is not None for parameter in module._parameters.values())
        is_layer = isinstance(module, Neurons) or not (module in inside or (module._modules and not has_own))
        is_counted = isinstance(module, Weighted) and module not in back.values()
        if is_counted or back[module] is not None or (others is not None and is_layer):
            hooks.append(module.register_forward_hook(hook(name), with_kwargs=True))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _feedback(layer: nn.Module) -> Weighted | None:
    """The synapses by which the spikes of `layer` come back to it, if they are a layer of weights."""
    recurrent = layer.recurrent if isinstance(layer, DelayedRecurrent | Recurrent) else None
    return recurrent if isinstance(recurrent, Weighted) else None


def are_spikes(inputs: Tensor) -> bool:
    """Whether all of `inputs` are zeros and ones."""
    return bool(((inputs == 0) | (inputs == 1)).all())


def _reached_later(
    layer: Window | DelayedLinear, inputs: Tensor, lengths: Tensor | None, spiking: bool
) -> Tensor:
    """How many outputs each value of ``[T, batch, channels, ...]`` reaches before its sample ends, summed."""
    steps, batch = inputs.shape[:2]
    left = torch.arange(steps, 0, -1, dtype=torch.int64, device=inputs.device)[:, None].expand(steps, batch)
    if lengths is not None:
        left = (left - steps + padding.checked(lengths, inputs)).clamp(min=0)
    if isinstance(layer, DelayedLinear):
        lags = layer.steps  # [outputs, channels]
    else:
        each = torch.arange(layer.weight.shape[2], dtype=torch.int64, device=inputs.device) * layer.dilation
        taps = each.repeat(layer.weight.shape[0] // layer.groups)
        lags = taps[:, None].expand(-1, inputs.shape[2])  # [outputs * K, channels]
    reached = torch.stack([(lags < n).sum(0) for n in range(steps + 1)])[left]  # [T, batch, channels]
    reached = reached.view(*reached.shape, *[1] * (inputs.ndim - 3)).expand(inputs.shape)
    return (reached * (inputs != 0)).sum() if spiking else reached.sum()
