"""Synaptic operations of a layer, and hooks that report the inputs and outputs of each layer that runs.

A spike causes additions, any other value multiplications. Layers are hooked instead of read into a graph, so
that dense networks and networks that cannot be traced are counted too.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hibana.compiler.analysis.binary import is_binary
from hibana.compiler.torch_layers import role_of
from hibana.nn import lengths as padding
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.sparse_linear import SparseLinear
from hibana.nn.window import LooksBack, Window

__all__ = ["Neurons", "Weighted", "operations", "watch_layers"]

Neurons = OverTime | Recurrent
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | Window | DelayedLinear | SparseLinear


@torch.no_grad()
def operations(
    layer: Weighted, inputs: Tensor, lengths: Tensor | None = None
) -> tuple[Literal["acs", "macs"], Tensor]:
    """The kind and the number of operations of `layer`: ``"acs"`` if `inputs` are 0 and 1, else ``"macs"``.

    `lengths` are the lengths of padded samples ``[T, batch, ...]``, for a layer over time.

    Raises:
        TypeError: if `layer` is not ``nn.Linear``, a convolution, or a weighted layer over time.
        ValueError: if a convolution pads with anything but zeros.
    """
    if not isinstance(layer, Weighted):
        raise TypeError(f"layer must be a linear layer or a convolution, got {type(layer).__name__}")
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"padding_mode must be 'zeros', got {layer.padding_mode!r}")
    spiking = is_binary(inputs)
    kind: Literal["acs", "macs"] = "acs" if spiking else "macs"
    if isinstance(layer, LooksBack):
        return kind, _operations_over_time(layer, inputs, lengths, spiking)
    if not spiking and inputs.stride(0) == 0:
        inputs = inputs[:1]  # equal steps are computed once
    weighted: Any = layer
    active = inputs.ne(0) if spiking else inputs.new_ones(()).expand(inputs.shape)
    if isinstance(layer, SparseLinear):
        return kind, (active.reshape(-1, layer.in_features).sum(0) * layer.row_starts.diff()).sum().long()
    if role_of(layer) == "linear":
        return kind, active.count_nonzero() * weighted.out_features
    # one product per pair of input and weight that meet; all output channels of a group have equally many
    rank = len(weighted.kernel_size)
    total = active.reshape(-1, *inputs.shape[-rank - 1 :]).sum(0, keepdim=True, dtype=torch.float64)
    ones = torch.ones_like(weighted.weight[: weighted.groups], dtype=torch.float64)
    settings = weighted.stride, weighted.padding, weighted.dilation, weighted.groups
    products = getattr(nn.functional, f"conv{rank}d")(total, ones, None, *settings).sum()
    return kind, products.round().to(torch.int64) * (len(weighted.weight) // weighted.groups)


def _operations_over_time(layer: Any, inputs: Tensor, lengths: Tensor | None, spiking: bool) -> Tensor:
    """The number of products of weights and values of ``[T, batch, channels, ...]`` before each sample ends.

    If `spiking`, zeros have no products.
    """
    steps, batch = inputs.shape[:2]
    remaining = torch.arange(steps, 0, -1, dtype=torch.int64, device=inputs.device)
    remaining = remaining[:, None].expand(steps, batch)
    if lengths is not None:
        remaining = (remaining - steps + padding.checked(lengths, inputs)).clamp(min=0)
    lags: Tensor
    channels = torch.arange(inputs.shape[2], dtype=torch.int64, device=inputs.device)
    if isinstance(layer, SparseLinear):
        assert layer.delays is not None
        channels, lags = layer.sources, layer.delays
    elif isinstance(layer, DelayedLinear):
        lags = layer.steps  # [outputs, channels]
    else:
        taps = torch.arange(layer.weight.shape[2], dtype=torch.int64, device=inputs.device) * layer.dilation
        lags = taps.repeat(layer.weight.shape[0] // layer.groups)[:, None].expand(-1, inputs.shape[2])
    places = (channels * steps + lags.long())[lags < steps]
    per_lag = torch.bincount(places, minlength=inputs.shape[2] * steps).view(-1, steps)  # [channels, lags]
    before = nn.functional.pad(per_lag.cumsum(1), (1, 0)).T  # products at lags below n, [n, channels]
    counts = before[remaining]  # [T, batch, channels]
    counts = counts.view(*counts.shape, *[1] * (inputs.ndim - 3)).expand(inputs.shape)
    return (counts * (inputs != 0)).sum() if spiking else counts.sum()


@contextmanager
def watch_layers(
    net: nn.Module,
    on_synapses: Callable[[str, Any, Tensor, Tensor], None],
    on_other: Callable[[str, nn.Module, Tensor], None] | None = None,
) -> Iterator[None]:
    """Calls `on_synapses(name, layer, inputs, outputs)` for each weighted layer that runs in `net`.

    The recurrent weights of a layer of neurons are reported when the layer has run, with its spikes one step
    later as inputs; no other product within a step is reported. Modules without submodules and parameters,
    and layers of neurons, are reported to `on_other(name, layer, outputs)`.
    """
    neurons = [module for module in net.modules() if isinstance(module, Neurons)]
    inside_neurons = {inner for layer in neurons for inner in layer.modules() if inner is not layer}

    def hook(name: str) -> Any:
        """A forward hook that reports the layer `name`."""

        def report(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], outputs: Tensor) -> None:
            """Passes one call of `module` to `on_synapses` or `on_other`."""
            if isinstance(module, Weighted):
                (inputs,) = *args, *named.values()
                on_synapses(name, module, inputs, outputs)
            elif on_other is not None:
                on_other(name, module, outputs)
            if isinstance(module, Recurrent) and isinstance(module.recurrent, Weighted):
                previous = torch.cat([torch.zeros_like(outputs[:1]), outputs[:-1]])
                on_synapses(f"{name}.recurrent", module.recurrent, previous, outputs)

        return report

    with ExitStack() as hooks:
        for name, module in net.named_modules():
            has_parameters = any(parameter is not None for parameter in module._parameters.values())
            is_inner = module in inside_neurons or (module._modules and not has_parameters)
            is_other = on_other is not None and (isinstance(module, Neurons) or not is_inner)
            is_weighted = isinstance(module, Weighted) and module not in inside_neurons
            if is_weighted or is_other or isinstance(module, Recurrent):
                hooks.callback(module.register_forward_hook(hook(name), with_kwargs=True).remove)
        yield
