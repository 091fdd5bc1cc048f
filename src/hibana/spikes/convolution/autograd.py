"""The node of autograd of a convolution of spikes: which kernels compute the sums and both gradients."""

from typing import Any

import torch
from torch import Tensor

from hibana.compiler.derivatives import unwrapped_apply, without_autocast
from hibana.spikes import select
from hibana.spikes.checks import check_saved, dense_for_more
from hibana.spikes.convolution import dense, kernels, pixels
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.layer import Found, numbers_as_bits
from hibana.spikes.linear import product
from hibana.spikes.planes import Planes, joined
from hibana.spikes.provenance import Provenance, probe
from hibana.spikes.select import ALL, Call, Choice
from hibana.spikes.simd.rows import panel

__all__ = [
    "as_kernel",
    "chosen",
    "convolution",
    "forward",
    "input_gradient",
    "rows_of",
    "windows_of",
]


def rows_of(images: Tensor) -> Tensor:
    """``[N * height, width * channels]`` of images ``[N, channels, height, width]``, channels last."""
    last = images.permute(0, 2, 3, 1).contiguous()
    return last.view(last.shape[0] * last.shape[1], last.shape[2] * last.shape[3])


def windows_of(planes: Tensor, geometry: Geometry) -> Tensor:
    """The input's bits under the window of each output pixel, as rows of 64-bit words.

    ``[N * height * width, planes * words]``, height and width of the output.
    """
    return joined([_plane_windows(bits, geometry) for bits in planes])


def _plane_windows(bits: Tensor, geometry: Geometry) -> Tensor:
    height, width = geometry.output
    items = bits.shape[0] // geometry.image[0] * height
    inputs = geometry.channels * geometry.kernel[0] * geometry.kernel[1]
    out = torch.empty(items * width, -(-inputs // 64), dtype=torch.int64, device="cpu")
    kernels.windows(items, GRAIN, bits=bits, target=out, **geometry.sizes)
    return out


GRAIN = 4
"""Rows of pixels per thread, at least."""


def forward(
    input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry, choice: Choice = ALL
) -> Tensor:
    """``[N, outputs, height, width]``, channels last."""
    return _sums(input_, weight, bias, geometry, choice)[0]


def _sums(
    input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry, choice: Choice
) -> tuple[Tensor, Tensor | None]:
    """The convolution, and the bits under each window, if im2col was used."""
    if pixels.is_pixelwise(geometry, weight.shape[0], input_.density):
        return pixels.forward(input_, weight, bias, geometry), None
    windows = windows_of(input_.bits, geometry)
    return _under_windows(windows, input_, weight, bias, geometry), windows


def _under_windows(
    windows: Tensor, input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    out, _ = product.forward(windows, input_.density, weight, bias, input_.scales)
    return out.view(-1, *geometry.output, weight.shape[0]).permute(0, 3, 1, 2)


def input_gradient(support: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """The gradient ``[N, channels, height, width]`` at stride 1, channels last, where `support` has bits; 0
    elsewhere.
    """
    height, width = geometry.image
    images = support.shape[0] // height
    out = torch.empty(images, height, width, geometry.channels, dtype=torch.float32, device="cpu")
    outputs = weight.shape[0]
    row = panel(outputs)
    table = product.packed(weight.reshape(outputs, -1), row)
    per_tile, deep, wide = geometry.tile(kernels.TILE)
    pieces = -(-images // per_tile) * -(-height // deep) * -(-width // wide)
    given = {"bits": support, "table": table, "gradient": grad, "target": out, "outputs": outputs}
    tiles = {"images": images, "per_tile": per_tile, "deep": deep, "wide": wide}
    kernels.input_gradient(pieces, 1, **given, **geometry.sizes, **tiles, row=row, unrolled=geometry.unrolled)
    return out.permute(0, 3, 1, 2)


KEPT = 0.5
"""Im2col bits are saved for the backward up to this share of the images' bytes, and else recomputed."""


def _weight_gradient(
    input_: Planes,
    windows: Tensor | None,
    rows: Tensor,
    geometry: Geometry,
    biases: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of the weight, and if asked for that of the `biases`.

    From `rows`, the gradient of the output; `windows` are the bits under each, if they were kept.
    """
    if pixels.is_pixelwise_for_weights(geometry, input_.density):
        found = pixels.weight_gradient(input_, rows, geometry)
        return found, rows.sum(0) if biases else None
    inputs = geometry.channels * geometry.kernel[0] * geometry.kernel[1]
    if windows is None:
        windows = windows_of(input_.bits, geometry)
    flat, to_biases = product.weight_gradient(windows, input_.density, rows, inputs, biases, input_.scales)
    return flat.view(-1, *geometry.kernel, geometry.channels).permute(0, 3, 1, 2), to_biases


class _Convolution(torch.autograd.Function):
    """Saves the bits of the spikes for the backward, not the spikes; im2col bits too where they are few."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        leaf: Tensor | None,
        input_: Planes,
        support: Provenance | None,
        geometry: Geometry,
        choice: Choice,
    ) -> Tensor:
        ctx.density, ctx.scales, ctx.below = input_.density, input_.scales, support
        ctx.geometry, ctx.shape, ctx.choice, ctx.of_weight = geometry, images.shape, choice, weight.shape
        kernel = as_kernel(weight)
        numbers = images if choice.weights is False else None
        if not choice.forward:
            ctx.save_for_backward(input_.bits, weight, None, numbers)
            return dense.convolution(images, kernel, bias, geometry)
        out, windows = _sums(input_, kernel, bias, geometry, choice)
        used = choice.weights and not pixels.is_pixelwise_for_weights(geometry, input_.density)
        if windows is not None and (not used or windows.nbytes > KEPT * images.nbytes):
            windows = None
        ctx.save_for_backward(input_.bits, weight, windows, numbers)
        return out.detach()  # a view would add a node to the graph

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        bits, weight, windows, numbers = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        check_saved(weight, ctx.of_weight)
        weight = as_kernel(weight)
        rows = grad.resolve_neg().permute(0, 2, 3, 1).contiguous().view(-1, weight.shape[0])
        to_images = to_weight = to_bias = used = None
        to_inputs, to_weights, to_biases = ctx.needs_input_grad[:3]
        if to_inputs:
            used = _used(ctx, bits, weight, rows, geometry)
        densely = to_inputs and used is None, to_weights and numbers is not None
        if any(densely):
            to_images, to_weight = dense.gradients(ctx.shape, numbers, weight, rows, geometry, densely)
        if used is not None:
            to_images = input_gradient(used.bits, weight, rows, geometry)
        if to_weights and numbers is None:
            input_ = Planes(bits, ctx.density, ctx.scales[0])
            to_weight, to_bias = _weight_gradient(input_, windows, rows, geometry, to_biases)
        elif to_biases:
            to_bias = rows.sum(0)
        if to_images is not None:  # not a view, so that autograd may accumulate in place
            to_images = to_images.detach()
        if to_weight is not None and len(ctx.of_weight) == 3:
            to_weight = to_weight.reshape(ctx.of_weight)
        return to_images, to_weight, to_bias, None, None, None, None, None


_apply = unwrapped_apply(_Convolution)


def _used(ctx: Any, bits: Tensor, weight: Tensor, rows: Tensor, geometry: Geometry) -> product.Used | None:
    """Where the input gradient is computed; None if everywhere, by torch, as at any stride but 1."""
    if geometry.stride != (1, 1):
        return None
    used = product.used_bits(ctx.below, bits[0], geometry.channels * geometry.image[1], ctx.density)
    if used is None:
        return None
    wanted: Tensor = used.bits
    calls = (
        lambda: input_gradient(wanted, weight, rows, geometry),
        lambda: dense.gradients(ctx.shape, None, weight, rows, geometry, (True, False)),
    )
    density, sizes = select.density_bucket(used.density), (ctx.shape[0], geometry)
    key = select.Key("convolution input", sizes, len(rows), weight[0].numel(), len(weight), density)
    return used if select.restricts_gradient(ctx.choice, key, used.density, lambda: calls) else None


def chosen(found: Found, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Choice:
    """Which products of `images`, ``[N, channels, height, width]``, are computed per spike."""
    planes, scanned = found.planes, found.key.scanned

    def calls() -> list[Call]:
        numbers = dense.channels_last(images.detach())
        kernel = as_kernel(weight.detach())
        out = dense.convolution(numbers, kernel, bias, geometry)
        candidates: list[Call] = [
            lambda: forward(planes, kernel, bias, geometry),
            lambda: dense.convolution(numbers, kernel, bias, geometry),
        ]
        if found.key.learning:
            rows = out.permute(0, 2, 3, 1).contiguous().view(-1, kernel.shape[0])
            candidates += [
                lambda: _weight_gradient(planes, None, rows, geometry, False),
                lambda: dense.gradients(numbers.shape, numbers, kernel, rows, geometry, (False, True)),
            ]
        return [*candidates, lambda: numbers_as_bits(rows_of(numbers))] if scanned else candidates

    return select.choose(found.key, planes.density * planes.bits.shape[0], calls)


def as_kernel(weight: Tensor) -> Tensor:
    """`weight` as ``[outputs, channels, down, across]``, one pixel high if it has one dimension.

    Autograd is given the weight itself: what ``weight.data`` is set to, a backward sees, as torch's does.
    """
    return weight if weight.ndim == 4 else weight.unsqueeze(2)


def convolution(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_: Planes,
    support: Provenance | None,
    geometry: Geometry,
    choice: Choice = ALL,
) -> Tensor:
    """The convolution of images whose planes of bits are known, ``[N, outputs, height, width]``.

    `weight` is as :func:`as_kernel` takes it.
    """
    leaf = probe() if support is not None else None
    with without_autocast():
        out: Tensor = _apply(images, weight, bias, leaf, input_, support, geometry, choice)
    return out
