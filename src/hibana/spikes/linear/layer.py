"""``hb.Linear``."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.spikes import select
from hibana.spikes.checks import is_constant_over_time, kernels_accept, shape_error
from hibana.spikes.layer import (
    LEFT,
    SMALLEST_WORK,
    BySpikes,
    Found,
    as_bits,
    check_mode,
    needs_gradient,
    numbers_as_bits,
    usable,
)
from hibana.spikes.linear import autograd, product
from hibana.spikes.provenance import lookup
from hibana.spikes.select import Call, Choice

__all__ = ["Linear"]


class Linear(BySpikes, nn.Linear):
    """``torch.nn.Linear``, which for an input of spikes adds a row of weights per spike.

    Takes the same arguments, holds the same parameters, and computes ``x W^T + b`` and its gradients, sums
    in another order. Small whole numbers times one factor (sums of spikes, averages of them) are added bit
    by bit. Any other input ``[..., in_features]`` is multiplied densely, by torch; so is any but float32 on
    the CPU, and a call that is being compiled or transformed. An input that does not change over time
    (expanded: zero stride) costs one product, and its result is expanded. Of spikes only bits are kept for
    the backward. Where the input comes from a layer of hibana, the bits that it kept are used, if all of the
    spikes still are what these say: whatever was written to them counts. Its gradient is computed only where
    that layer's surrogate can let it through, if nobody else looks at it. Within a step that is compiled, as
    the synapses of :class:`hibana.Recurrent` are, it is compiled as ``torch.nn.Linear`` is.

    `mode` is ``"auto"``, or forces ``"dense"`` or (wherever they are possible) ``"events"``. With events a
    second derivative raises ``RuntimeError``: set ``mode = "dense"`` for it.

    >>> import torch, hibana as hb
    >>> layer = hb.Linear(784, 512)
    >>> spikes = (torch.rand(25, 128, 784) < 0.05).float()
    >>> torch.allclose(layer(spikes), torch.nn.functional.linear(spikes, layer.weight, layer.bias), atol=1e-5)
    True
    >>> print(layer.explain())  # doctest: +ELLIPSIS
    events: ...% of the input spiked; added one by one, as up to ...%...
    """

    traced_as: ClassVar[type[nn.Module]] = nn.Linear
    """What a trace of a step takes it for: see :func:`hibana.compiler.graph.objects.traced_kind`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Linear's name for it
        if torch.compiler.is_compiling():
            return self._compiled(input)
        if (
            type(input) is Tensor
            and self.mode == "auto"
            and self._is_small(input.numel())
            and not (input.ndim > 1 and input.stride(0) == 0)
        ):  # tested first: any other test takes longer than such a product
            self.__dict__["_reason"] = LEFT
            return functional.linear(input, *self._tensors())
        return self._product(input, *self._tensors())

    def _is_small(self, numbers: int) -> bool:
        """Whether torch is faster with so many `numbers` at any density."""
        return numbers * self.out_features < SMALLEST_WORK

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if not kernels_accept(input, weight, bias):
            return self._left_to_torch(input, weight, bias)
        if input.ndim > 1 and is_constant_over_time(input):
            one = input[0]
            if self.mode == "auto" and self._is_small(one.numel()):
                self._reason, once = LEFT, functional.linear(one, weight, bias)
            else:
                once = self._product(one, weight, bias)
            self._reason = f"one step for all {input.shape[0]}: {self._reason}"
            spread: Tensor = once.expand(input.shape[0], *once.shape)
            return spread
        return self._of_spikes(input, weight, bias)

    def _of_spikes(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        check_mode(self.mode)
        if self.mode == "dense":
            return self._densely(input, weight, bias, "asked for")
        of_bias, channels = None if bias is None else bias.shape, input.shape[-1] if input.ndim else 0
        if reason := shape_error(weight.shape, of_bias, channels, 2):
            return self._densely(input, weight, bias, reason)
        outputs, inputs = weight.shape
        count = input.numel() // max(1, inputs)
        if count == 0 or outputs == 0 or inputs == 0:
            return self._densely(input, weight, bias, "nothing to add")
        learning, auto = needs_gradient(weight), self.mode == "auto"
        under, in_order = lookup(input), input.is_contiguous()
        numbers = input.detach() if input.requires_grad else input

        def rows() -> Tensor:
            return numbers.reshape(count, inputs).contiguous()

        key = select.Key("linear", (), count, inputs, outputs, learning=learning)
        found = as_bits(under, inputs, in_order, numbers, rows, key, auto)
        if not isinstance(found, Found):
            return self._densely(input, weight, bias, found)
        planes = found.planes
        choice = select.ALL
        if auto:
            choice = _choice(found, rows, weight.detach(), bias if bias is None else bias.detach())
            if not choice.any:
                return self._densely(input, weight, bias, choice.refused(planes.density))
        bias = bias if bias is None else bias.contiguous()
        self.__dict__["_reason"] = product.explained(planes, outputs, choice)
        if learning or needs_gradient(input, bias):
            support = usable(under, inputs, in_order, planes) if input.requires_grad else None
            return autograd.linear(input, weight, bias, planes, support, choice)
        given = planes.joint, planes.density, weight, bias, planes.scales
        return product.forward(*given, input.shape[:-1])[0]

    def _torchs(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return functional.linear(input, weight, bias)


def _choice(found: Found, rows: Callable[[], Tensor], weight: Tensor, bias: Tensor | None) -> Choice:
    """Which products of `rows` are computed per spike."""
    planes, scanned = found.planes, found.key.scanned
    inputs = weight.shape[1]

    def calls() -> list[Call]:
        bits, numbers = planes.joint, rows()
        density, scales = planes.density, planes.scales
        outputs = functional.linear(numbers, weight, bias)
        ready = None if bias is None else bias.contiguous()
        candidates: list[Call] = [
            lambda: product.forward(bits, density, weight, ready, scales),
            lambda: functional.linear(numbers, weight, bias),
        ]
        if found.key.learning:
            with_bias = bias is not None
            candidates += [
                lambda: product.weight_gradient(bits, density, outputs, inputs, with_bias, scales),
                lambda: outputs.T @ numbers,
            ]
        return [*candidates, lambda: numbers_as_bits(numbers)] if scanned else candidates

    return select.choose(found.key, planes.density * planes.bits.shape[0], calls)
