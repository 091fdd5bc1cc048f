"""``hb.Linear``: a linear layer that adds a row of weights per spike."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.spikes.checks import is_constant_over_time, kernels_accept, shape_error
from hibana.spikes.layer import SMALL_PRODUCT, SMALLEST_WORK, SpikeLayer, check_mode
from hibana.spikes.linear.autograd import Product, linear_key, multiply
from hibana.spikes.provenance import lookup
from hibana.spikes.select import is_promising

__all__ = ["Linear"]


class Linear(SpikeLayer, nn.Linear):
    """``torch.nn.Linear``, which for an input of spikes adds a row of weights per spike.

    Has the same arguments and parameters, and computes ``x W^T + b`` and its gradients, with sums in another
    order. Small whole numbers times one factor (sums of spikes, averages of spikes) are added bit by bit.
    Torch multiplies any other input ``[..., in_features]`` densely, also tensors that are not float32 on the
    CPU, and calls that are compiled or transformed. An input that does not change over time (expanded, with
    stride zero) costs one product, and the result is expanded. The backward saves the bits of the spikes, not
    the spikes.

    If a layer of hibana emitted the input, the input gradient is computed only where the derivative of that
    layer's surrogate is not zero, unless a hook, ``retain_grad`` or ``torch.autograd.grad`` may read it. In a
    step that hibana compiles, such as the synapses of :class:`hibana.Recurrent`, the layer is compiled like
    ``torch.nn.Linear``.

    `mode` is ``"auto"``, or forces ``"dense"`` or (wherever possible) ``"events"``. With events a second
    derivative raises ``RuntimeError``: set ``mode = "dense"`` to compute it.

    >>> import torch, hibana as hb
    >>> layer = hb.Linear(784, 512)
    >>> spikes = (torch.rand(25, 128, 784) < 0.05).float()
    >>> torch.allclose(layer(spikes), torch.nn.functional.linear(spikes, layer.weight, layer.bias), atol=1e-5)
    True
    >>> print(layer.explain())  # doctest: +ELLIPSIS
    events: ...% of the input spiked; added one by one, as up to ...%...
    """

    traced_as: ClassVar[type[nn.Module]] = nn.Linear
    """The class that a trace of a step sees instead: :func:`hibana.compiler.graph.objects.traced_kind`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Linear's name for it
        """``input @ weight.T + bias``, per spike if possible and faster, else by torch."""
        if torch.compiler.is_compiling():
            return self._forward_compiling(input)
        if (
            type(input) is Tensor
            and self.mode == "auto"
            and self._is_small(input.numel())
            and not (input.ndim > 1 and input.stride(0) == 0)
        ):  # tested first: any other test takes longer than such a product
            self.__dict__["_reason"] = SMALL_PRODUCT
            return functional.linear(input, *self._tensors())
        return self._product(input, *self._tensors())

    def _is_small(self, numbers: int) -> bool:
        """Whether torch computes the product for an input of `numbers` elements without a look at it."""
        if numbers * self.out_features < SMALLEST_WORK:
            return True
        key = linear_key(numbers, self.in_features, self.out_features)
        return not is_promising(key, torch.is_grad_enabled())

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """``input @ weight.T + bias`` of any input; an input that is constant over time is one step."""
        if not kernels_accept(input, weight, bias):
            return self._forward_unsupported(input, weight, bias)
        if input.ndim > 1 and is_constant_over_time(input):
            step = input[0]
            if self.mode == "auto" and self._is_small(step.numel()):
                self._reason, out = SMALL_PRODUCT, functional.linear(step, weight, bias)
            else:
                out = self._product(step, weight, bias)
            self._reason = f"one step for all {input.shape[0]}: {self._reason}"
            expanded: Tensor = out.expand(input.shape[0], *out.shape)
            return expanded
        return self._spike_product(input, weight, bias)

    def _spike_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """``input @ weight.T + bias`` per spike if possible and not slower, else by torch."""
        check_mode(self.mode)
        if self.mode == "dense":
            return self._dense_product(input, weight, bias, "asked for")
        bias_shape, channels = None if bias is None else bias.shape, input.shape[-1] if input.ndim else 0
        if reason := shape_error(weight.shape, bias_shape, channels, 2):
            return self._dense_product(input, weight, bias, reason)
        if input.numel() == 0 or weight.numel() == 0:
            return self._dense_product(input, weight, bias, "nothing to add")
        linear = Product.linear(input.shape, weight)
        result = multiply(linear, input, weight, bias, lookup(input), input.is_contiguous(), self.mode)
        if isinstance(result, str):
            return self._dense_product(input, weight, bias, result)
        out, self.__dict__["_reason"] = result
        return out

    def _torch_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """``input @ weight.T + bias`` by torch."""
        return functional.linear(input, weight, bias)
