"""Layers of ``torch.nn`` whose work follows the spikes."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from hibana.events import convolution, passing, product
from hibana.events.bits import bits_of, share_of
from hibana.events.checks import misfit, pair, plain
from hibana.events.support import Support, support_of
from hibana.loop.leaf import as_leaf, is_name

__all__ = ["Conv2d", "Flatten", "Linear", "MaxPool2d", "adopt"]

Mode = Literal["auto", "dense", "events"]

SMALLEST_ROWS = 256
"""Fewer rows than this do not pay for packing the weights."""
SAMPLE = 64


class _BySpikes(nn.Module):
    """What layers of weights share: how a call is computed is chosen, and said."""

    mode: Mode = "auto"
    _reason = "not called yet"

    def _densely(self, input: Tensor, reason: str) -> Tensor:  # noqa: A002
        self._reason = f"dense: {reason}"
        out: Tensor = super().forward(input)
        return out

    def _left_to_torch(self, input: Tensor) -> Tensor:  # noqa: A002
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        return self._densely(input, "compiled, transformed, under autocast, or not float32 on the CPU")

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return self._reason


class Linear(_BySpikes, nn.Linear):
    """``torch.nn.Linear``, which for an input of spikes adds a row of weights per spike.

    Takes the same arguments, holds the same parameters, and computes ``x W^T + b`` and its gradients, sums
    in another order. An input ``[..., in_features]`` that is not all 0 and 1 is multiplied densely, by
    torch; so is any but float32 on the CPU, and a call that is being compiled or transformed. An input
    that does not change over time (expanded: zero stride) costs one product, and its result is expanded.
    Of spikes only bits are kept for the backward. Where the input comes from a layer of hibana, the bits
    that it kept are used, unless the spikes were written to since; of writes that autograd does not see, by
    ``.data`` or NumPy, a sample of the spikes is looked through. Its gradient is computed only where that
    layer's surrogate can let it through, if nobody else looks at it.

    `mode` is ``"auto"``, or forces ``"dense"`` or (wherever they are possible) ``"events"``. With events a
    second derivative raises ``RuntimeError``: set ``mode = "dense"`` for it.

    >>> import torch, hibana as hb
    >>> layer = hb.Linear(784, 512)
    >>> spikes = (torch.rand(25, 128, 784) < 0.05).float()
    >>> torch.allclose(layer(spikes), torch.nn.functional.linear(spikes, layer.weight, layer.bias), atol=1e-5)
    True
    >>> layer.explain()  # doctest: +ELLIPSIS
    'events: 5% of the input spiked; added one by one, as up to ...%'
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Linear's name for it
        if torch.compiler.is_compiling() or not plain(input, self.weight, self.bias):
            return self._left_to_torch(input)
        if input.ndim > 1 and input.shape[0] > 1 and input.stride(0) == 0 and input.numel():
            once = self.forward(input[0])  # not a call of its own: hooks run once
            self._reason = f"one step for all {input.shape[0]}: {self._reason}"
            spread: Tensor = once.expand(input.shape[0], *once.shape)
            return spread
        return self._of_spikes(input)

    def _of_spikes(self, input: Tensor) -> Tensor:  # noqa: A002
        _check_mode(self.mode)
        if self.mode == "dense":
            return self._densely(input, "asked for")
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if reason := misfit(weight, bias, input.shape[-1] if input.ndim else 0, 2):
            return self._densely(input, reason)
        outputs, inputs = weight.shape
        count = input.numel() // max(1, inputs)
        if count == 0 or outputs == 0 or inputs == 0:
            return self._densely(input, "nothing to add")
        if self.mode == "auto" and count < SMALLEST_ROWS:
            return self._densely(input, f"{count} rows do not pay for packing the weights")
        rows = input.reshape(count, inputs).contiguous()
        weight, bias = weight.contiguous(), bias if bias is None else bias.contiguous()
        below = support_of(input) if input.requires_grad else None
        in_order = input.is_contiguous()
        found = _known_bits(below, inputs, in_order) or _bits_of(rows.detach())
        if found is None:
            return self._densely(input, "the input is not all 0 and 1")
        bits, share = found
        self._reason = _events(share, outputs)
        if _learns(rows, weight, bias):
            support = _usable(below, inputs, in_order)
            out = product.linear(rows, weight, bias, bits, share, support)
        else:
            out = product.forward(bits, share, weight.detach(), bias)[0]
        return out.view(*input.shape[:-1], outputs)


class Conv2d(_BySpikes, nn.Conv2d):
    """``torch.nn.Conv2d``, which for an input of spikes adds a row of weights per spike under its window.

    Takes the same arguments, holds the same parameters, and computes the same sums and gradients, in
    another order; ``[N, channels, height, width]`` comes out channels last in memory, which torch's own
    convolution, normalisation and pooling are several times faster in too. Multiplied densely, by
    torch: an input that is not all 0 and 1, groups, padding other than zeros, and what
    :class:`hibana.Linear` leaves to torch. The input's gradient is torch's too, unless the stride is 1 and
    either the output's gradient is mostly zero, and gone through value by value, or the input's is needed
    only where the surrogate of the layer below can let it through.

    `mode`, and the bits that a layer below kept, are as in :class:`hibana.Linear`.

    >>> import torch, hibana as hb
    >>> layer = hb.Conv2d(2, 8, 3, padding=1)
    >>> spikes = (torch.rand(4, 2, 16, 16) < 0.05).float()
    >>> torch.allclose(layer(spikes), layer._conv_forward(spikes, layer.weight, layer.bias), atol=1e-5)
    True
    >>> layer.explain()  # doctest: +ELLIPSIS
    'events: 5% of the input spiked; added one by one, as up to ...%'
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Conv2d's name for it
        if torch.compiler.is_compiling() or not plain(input, self.weight, self.bias):
            return self._left_to_torch(input)
        _check_mode(self.mode)
        if reason := self._unserved(input):
            return self._densely(input, reason)
        geometry, weight = self._geometry(input), self.weight
        bias = self.bias if self.bias is None else self.bias.contiguous()
        count = input.shape[0] * geometry.output[0] * geometry.output[1]
        if min(geometry.output) <= 0 or count == 0 or weight.numel() == 0:
            return self._densely(input, "nothing to add")
        if self.mode == "auto" and count < SMALLEST_ROWS:
            return self._densely(input, f"{count} output pixels do not pay for packing the weights")
        below = support_of(input) if input.requires_grad else None
        length = geometry.channels * geometry.image[1]
        in_order = input.is_contiguous(memory_format=torch.channels_last)
        found = _known_bits(below, length, in_order) or _bits_of(convolution.rows_of(input.detach()))
        if found is None:
            return self._densely(input, "the input is not all 0 and 1")
        bits, share = found
        self._reason = _events(share, len(weight))
        if not _learns(input, weight, bias):
            return convolution.forward(bits, share, weight.detach(), bias, geometry)
        support = _usable(below, length, in_order)
        return convolution.convolution(input, weight, bias, bits, share, support, geometry)

    def _densely(self, input: Tensor, reason: str) -> Tensor:  # noqa: A002
        return super()._densely(_channels_last(input) if input.ndim == 4 else input, reason)

    def _unserved(self, input: Tensor) -> str | None:  # noqa: A002
        """Why this call is torch's, if it is whatever the input holds."""
        if self.mode == "dense":
            return "asked for"
        if input.ndim != 4:
            return "the input is not [N, channels, height, width]"
        if self.groups != 1:
            return "groups"
        if reason := misfit(self.weight, self.bias, input.shape[1], 4):
            return reason
        if self.padding_mode != "zeros":
            return f"padding by {self.padding_mode}"
        kernel, stride, dilation = self.weight.shape[2:], pair(self.stride), pair(self.dilation)
        odd = (d * (k - 1) % 2 for d, k in zip(dilation, kernel, strict=True))
        if self.padding == "same" and (stride != (1, 1) or any(odd)):
            return "padding on one side only"
        sizes = self.stride, self.dilation, () if isinstance(self.padding, str) else self.padding
        if min(*stride, *dilation) <= 0 or any(isinstance(size, tuple) and len(size) > 2 for size in sizes):
            return "sizes that there are not"
        return None

    def _geometry(self, input: Tensor) -> convolution.Geometry:  # noqa: A002
        channels, *kernel = self.weight.shape[1:]
        dilation = pair(self.dilation)
        if self.padding == "valid":
            padding = 0, 0
        elif self.padding == "same":
            padding = dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2
        else:
            padding = pair(self.padding)
        image = input.shape[2], input.shape[3]
        return convolution.Geometry(
            channels, image, (kernel[0], kernel[1]), pair(self.stride), padding, dilation
        )


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d``; pooled spikes are spikes, and a layer above knows what stands below.

    Without overlap, padding or dilation, over spikes that lie channels last, of each output only the
    place that it came from is kept, in one byte. All else is torch's.

    >>> import torch, hibana as hb
    >>> hb.events.MaxPool2d(2)(torch.ones(1, 8, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.MaxPool2d's name for it
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        window = pair(self.kernel_size)
        if (
            not torch.compiler.is_compiling()
            and plain(input)
            and input.ndim == 4
            and input.numel()
            and input.is_contiguous(memory_format=torch.channels_last)
            and (self.stride is None or pair(self.stride) == window)
            and pair(self.padding) == (0, 0)
            and pair(self.dilation) == (1, 1)
            and not (self.ceil_mode or self.return_indices)
            and window[0] * window[1] <= 256
            and 0 < window[0] <= input.shape[2]
            and 0 < window[1] <= input.shape[3]
        ):
            pooled = passing.max_pooled(input, window)
            if pooled is not None:
                return pooled
        out: Tensor = super().forward(input)
        return out


class Flatten(nn.Flatten):
    """``torch.nn.Flatten``, over which a layer still knows what spiking layer stands below it.

    >>> import torch, hibana as hb
    >>> hb.events.Flatten()(torch.ones(5, 2, 3)).shape
    torch.Size([5, 6])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Flatten's name for it
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        if (
            not torch.compiler.is_compiling()
            and plain(input)
            and not input.is_contiguous()
            and input.requires_grad
            and torch.is_grad_enabled()
        ):
            flat = passing.flattened(input, self.start_dim, self.end_dim)
            if flat is not None:
                return flat
        return super().forward(input)


def _channels_last(images: Tensor) -> Tensor:
    """`images` channels last in memory, and with strides that say so where there is one channel only."""
    last = images.permute(0, 2, 3, 1)
    return last.flatten().view(last.shape).permute(0, 3, 1, 2)


def _check_mode(mode: str) -> None:
    if mode not in ("auto", "dense", "events"):
        raise ValueError(f'mode must be "auto", "dense" or "events", got {mode!r}')


def _known_bits(below: Support | None, length: int, in_order: bool) -> tuple[Tensor, float] | None:
    """The bits that the spiking layer `below` kept, as rows of `length` elements, and the share of ones.

    None if there are none, or the input does not lie `in_order`, as rows do.
    """
    if below is None or below.spikes is None or not in_order:
        return None
    rows = below.rows(below.spikes, length)
    return None if rows is None else (rows, share_of(rows, length))


def _bits_of(rows: Tensor) -> tuple[Tensor, float] | None:
    """The bits of contiguous `rows` and the share of ones; None if not all are 0 and 1."""
    count = rows.shape[0]
    if count > 2 * SAMPLE and bits_of(rows, count // SAMPLE)[1] is None:
        return None
    bits, share = bits_of(rows)
    return None if share is None else (bits, share)


def _events(share: float, outputs: int) -> str:
    """What is done with so many spikes, and from where on something else would be."""
    limit = product.crossover(outputs)
    how = "looked up in fours, as above" if share > limit else "added one by one, as up to"
    return f"events: {share:.0%} of the input spiked; {how} {limit:.0%}"


def _learns(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _usable(below: Support | None, length: int, in_order: bool) -> Support | None:
    """`below`, unless rows of `length` elements of it can't be told for an input that lies `in_order`."""
    if below is None or below.bits is None:
        return below
    return below if in_order and below.rows(below.bits, length) is not None else None


_ADOPTED: dict[type, type] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    nn.MaxPool2d: MaxPool2d,
    nn.Flatten: Flatten,
}


def adopt(module: nn.Module) -> nn.Module:
    """Makes every layer of ``torch.nn`` in `module` that has one the layer of this room, in place.

    ``Linear``, ``Conv2d``, ``MaxPool2d`` and ``Flatten``; their subclasses are left alone. Parameters,
    buffers and hooks stay the same objects. Returns `module`.

    >>> import torch, hibana as hb
    >>> hb.events.adopt(torch.nn.Sequential(torch.nn.Linear(2, 3), hb.IF()))[0]
    Linear(in_features=2, out_features=3, bias=True)
    """
    for inner in module.modules():
        if type(inner) in _ADOPTED:
            inner.__class__ = _ADOPTED[type(inner)]
    return module
