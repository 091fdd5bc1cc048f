"""The weights that feed neurons: their inputs and gradients as rows, and those of a convolution's windows."""

import math
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.compiler.tensors import is_parametrized
from hibana.compiler.torch_layers import role_of, spatial_dims
from hibana.runtime import available
from hibana.spikes.layer import SMALLEST_WORK

__all__ = ["Synapses", "is_synapses"]


def is_synapses(module: nn.Module) -> bool:
    """Whether :class:`Synapses` supports `module`: linear layers, Conv1d and Conv2d."""
    role = role_of(module)
    return role == "linear" or (role == "convolution" and spatial_dims(module) < 3)


@final
class Synapses:
    """A linear layer or a convolution, whose trace has a row for each sample (and pixel).

    Raises:
        ValueError: naming the layer, for what a trace can't be made of.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.module = module
        if is_parametrized(module):
            raise ValueError(
                f"layer {name!r} has parametrisations; rules know the weights of layers as they are"
            )
        if not self.is_linear:
            reason = ""
            if module.groups != 1:
                reason = f"groups={module.groups}"
            elif module.padding_mode != "zeros" or isinstance(module.padding, str):
                reason = f"padding={module.padding!r}, padding_mode={module.padding_mode!r}"
            if reason:
                raise ValueError(
                    f"layer {name!r}: a convolution must have groups=1 and a padding in numbers, of zeros, "
                    f"to be learned online; got {reason}"
                )

    def of_product(self, spikes: Tensor, signal: Tensor) -> list[Tensor]:
        """The gradients of weight and bias of a linear layer, of a `signal` at what it made of `spikes`."""
        rows, given, bias = signal.flatten(0, -2), spikes.flatten(0, -2), self.module.bias is not None
        large = rows.numel() * given.shape[1] >= SMALLEST_WORK
        if (
            large
            and rows.dtype == torch.float32
            and rows.device.type == "cpu"
            and not available.unavailable_reason()
        ):
            from hibana.spikes.bits import pack_bits
            from hibana.spikes.linear.product import weight_gradient

            bits, density = pack_bits(given.contiguous())
            if density is not None:
                weight, summed = weight_gradient(bits, density, rows.contiguous(), given.shape[1], bias)
                return [weight] if summed is None else [weight, summed]
        return [rows.T @ given, *([rows.sum(0)] if bias else [])]

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer."""
        return role_of(self.module) == "linear"

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight and bias, if they are there."""
        found = (self.module._parameters.get(name) for name in ("weight", "bias"))
        return [parameter for parameter in found if parameter is not None]

    @property
    def learns(self) -> bool:
        """Whether any of them has a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters)

    def rows(self, inputs: Tensor) -> Tensor:
        """What meets the weights of a neuron: ``[T, batch, ...]`` as ``[T, rows, inputs]``; 1 for a bias."""
        module = self.module
        if not self.is_linear:
            windows = _windows(module, inputs.flatten(0, 1))  # [T * batch, inputs, pixels]
            found = windows.transpose(1, 2).reshape(inputs.shape[0], -1, windows.shape[1])
        else:
            found = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        if module.bias is not None:
            found = torch.cat([found, found.new_ones(*found.shape[:2], 1)], 2)
        return found

    def neurons(self, values: Tensor) -> Tensor:
        """Numbers of neurons, ``[T, batch, ...]``, as ``[T, rows, outputs]``."""
        if not self.is_linear:
            moved = values.movedim(2, -1)
            return moved.reshape(values.shape[0], -1, values.shape[2])
        return values.reshape(values.shape[0], -1, values.shape[-1])

    def gradients(self, of_rows: Tensor) -> list[Tensor]:
        """Of a gradient ``[outputs, inputs]``, as of :meth:`rows`: those of weight and bias."""
        weight = self.parameters[0]
        found = [of_rows[:, : math.prod(weight.shape[1:])].reshape(weight.shape)]
        return [*found, of_rows[:, -1]] if self.module.bias is not None else found


def _windows(module: Any, images: Tensor) -> Tensor:
    """What is under each window of a convolution, ``[images, channels * window, pixels]``."""
    sizes: Any = (module.kernel_size, module.dilation, module.padding, module.stride)
    if spatial_dims(module) == 1:
        images = images.unsqueeze(2)
        sizes = tuple((neutral, *size) for neutral, size in zip((1, 1, 0, 1), sizes, strict=True))
    return functional.unfold(images, *sizes)
