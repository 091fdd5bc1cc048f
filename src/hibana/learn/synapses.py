"""The weights in front of neurons: a linear layer, dense or sparse, or a convolution as a product of rows."""

import math
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.compiler.tensors import is_parametrized
from hibana.compiler.torch_layers import role_of, spatial_dims
from hibana.nn.sparse_linear import SparseLinear
from hibana.runtime import available
from hibana.runtime.synapses import SynapseIndex
from hibana.spikes.layer import SMALLEST_WORK
from hibana.spikes.sparse.product import sums_per_synapse

__all__ = ["Synapses", "is_sparse", "is_synapses"]


def is_sparse(module: nn.Module) -> bool:
    """Whether `module` is a :class:`hibana.SparseLinear` without delays."""
    return isinstance(module, SparseLinear) and module.delays is None


def is_synapses(module: nn.Module) -> bool:
    """Whether :class:`Synapses` supports `module`: a linear layer without delays, Conv1d or Conv2d."""
    role = role_of(module)
    return is_sparse(module) or role == "linear" or (role == "convolution" and spatial_dims(module) < 3)


@final
class Synapses:
    """A linear layer or a convolution as ``[rows, inputs] @ [inputs, outputs]``.

    A row is a sample of a linear layer, or an output pixel of a sample of a convolution; its inputs are then
    the numbers in the window of the pixel.

    Raises:
        ValueError: naming the layer, if it has parametrizations, groups, or padding other than zeros.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.module = module
        if is_parametrized(module):
            raise ValueError(
                f"layer {name!r} has parametrizations; learning rules need the weights as plain parameters"
            )
        if role_of(module) == "convolution":
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

    def linear_gradients(self, inputs: Tensor, grad: Tensor) -> list[Tensor]:
        """The gradients of weight and bias (if present) of a linear layer.

        Args:
            inputs: spikes or numbers, ``[T, batch, inputs]``.
            grad: the gradient of the layer's output, ``[T, batch, outputs]``.
        """
        if (stored := self.stored) is not None:
            rows = self.rows(inputs).flatten(0, 1)
            return self.split_gradient(sums_per_synapse(stored, rows, grad.flatten(0, -2)))
        grads, rows, has_bias = grad.flatten(0, -2), inputs.flatten(0, -2), self.module.bias is not None
        is_large = grads.numel() * rows.shape[1] >= SMALLEST_WORK and grads.dtype == torch.float32
        if is_large and grads.is_cpu and not available.unavailable_reason():
            from hibana.spikes.bits import pack_bits
            from hibana.spikes.linear.product import weight_gradient

            bits, density = pack_bits(rows.contiguous())
            if density is not None:
                weight = weight_gradient(bits, density, grads.contiguous(), rows.shape[1])
                return [weight, *([grads.sum(0)] if has_bias else [])]
        return [grads.T @ rows, *([grads.sum(0)] if has_bias else [])]

    @property
    def is_linear(self) -> bool:
        """Whether the module is a linear layer with a weight matrix."""
        return role_of(self.module) == "linear"

    @property
    def stored(self) -> SynapseIndex | None:
        """The stored synapses of a sparse layer, then one synapse per bias from an input of 1; else None."""
        if not isinstance(self.module, SparseLinear):
            return None
        index = self.module.index
        if self.module.bias is None:
            return index
        row_starts, targets = index.row_starts, index.offsets
        outputs = torch.arange(index.outputs, dtype=targets.dtype, device=targets.device)
        row_starts = torch.cat([row_starts, row_starts[-1:] + index.outputs])
        return SynapseIndex(row_starts, torch.cat([targets, outputs]), index.inputs + 1, index.outputs, 0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weight, and the bias if present."""
        parameters = (self.module._parameters.get(name) for name in ("weight", "bias"))
        return [parameter for parameter in parameters if parameter is not None]

    @property
    def is_learned(self) -> bool:
        """Whether the weight or the bias requires a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters)

    def self_weights(self) -> Tensor:
        """The weight of the synapse of each neuron to itself, ``[neurons]``; for a linear layer."""
        weight = self.parameters[0].detach()
        if not isinstance(self.module, SparseLinear):
            return weight.diagonal().clone()
        sources, targets = self.module.sources, self.module.targets.long()
        zeros = weight.new_zeros(self.module.out_features)
        return zeros.index_add_(0, targets, weight * (sources == targets))

    def rows(self, inputs: Tensor) -> Tensor:
        """Inputs ``[T, batch, ...]`` as ``[T, rows, inputs]``; if there is a bias, a last column of 1."""
        module = self.module
        if role_of(module) == "convolution":
            windows = _windows(module, inputs.flatten(0, 1))  # [T * batch, inputs, pixels]
            rows = windows.transpose(1, 2).reshape(inputs.shape[0], -1, windows.shape[1])
        else:
            rows = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        if module.bias is not None:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
        return rows

    def output_rows(self, values: Tensor) -> Tensor:
        """Values of the layer's output shape ``[T, batch, ...]`` as ``[T, rows, outputs]``."""
        if role_of(self.module) == "convolution":
            values = values.movedim(2, -1)
        return values.reshape(values.shape[0], -1, values.shape[-1])

    def split_gradient(self, grad: Tensor) -> list[Tensor]:
        """The gradients of weight and bias, from the gradient of all synapses.

        Its shape is ``[outputs, inputs]``, whose last column is the bias's; for a sparse layer it is
        ``[synapses]``, with the synapses of :attr:`stored`.
        """
        weight = self.parameters[0]
        if is_sparse(self.module):
            return list(torch.split(grad, [p.numel() for p in self.parameters]))
        grads = [grad[:, : math.prod(weight.shape[1:])].reshape(weight.shape)]
        return [*grads, grad[:, -1]] if self.module.bias is not None else grads


def _windows(module: Any, images: Tensor) -> Tensor:
    """The numbers in each window of a convolution, ``[images, channels * window, pixels]``."""
    sizes: Any = (module.kernel_size, module.dilation, module.padding, module.stride)
    if spatial_dims(module) == 1:
        images = images.unsqueeze(2)
        sizes = tuple((neutral, *size) for neutral, size in zip((1, 1, 0, 1), sizes, strict=True))
    return functional.unfold(images, *sizes)
