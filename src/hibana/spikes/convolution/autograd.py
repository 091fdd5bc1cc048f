"""The autograd node of a convolution of spikes: selects the kernels of the forward and of both gradients."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.derivatives import unwrapped_apply, without_autocast
from hibana.spikes import select
from hibana.spikes.checks import check_saved, dense_for_more
from hibana.spikes.convolution import dense, kernels, pixels
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.layer import (
    Mode,
    PackedInput,
    mask_provenance,
    needs_gradient,
    pack_input,
    pack_numbers,
)
from hibana.spikes.linear import product
from hibana.spikes.planes import Planes, join_planes
from hibana.spikes.provenance import Provenance, probe
from hibana.spikes.select import ALL, Call, Choice
from hibana.spikes.simd.rows import panel

__all__ = ["convolution", "forward", "input_gradient", "rows_of", "spike_convolution", "windows_of"]


def rows_of(images: Tensor) -> Tensor:
    """`images` ``[N, channels, height, width]`` as channels-last rows ``[N * height, width * channels]``."""
    last = images.permute(0, 2, 3, 1).contiguous()
    return last.view(last.shape[0] * last.shape[1], last.shape[2] * last.shape[3])


def windows_of(planes: Tensor, geometry: Geometry) -> Tensor:
    """Im2col: the bits under the window of each output pixel, ``[N * height * width, planes * words]``.

    `planes` are bits of images, ``[planes, N * image height, words]``; height and width are those of the
    output.
    """
    height, width = geometry.output
    items = planes.shape[1] // geometry.image[0] * height
    words = -(-geometry.channels * geometry.kernel[0] * geometry.kernel[1] // 64)
    windows = [torch.empty(items * width, words, dtype=torch.int64, device="cpu") for _ in planes]
    for bits, target in zip(planes, windows, strict=True):
        kernels.windows(items, GRAIN, bits=bits, target=target, **geometry.sizes)
    return join_planes(windows)


GRAIN = 4
"""Smallest number of rows of pixels per thread."""


def forward(input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution of the images `input_`: ``[N, outputs, height, width]``, channels last."""
    return _forward_and_windows(input_, weight, bias, geometry)[0]


def _forward_and_windows(
    input_: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor | None]:
    """The convolution, and the bits under each window, or None if it did not use im2col."""
    if pixels.is_pixelwise(geometry, weight.shape[0], input_.density):
        return pixels.forward(input_, weight, bias, geometry), None
    windows = windows_of(input_.bits, geometry)
    out, _ = product.forward(windows, input_.density, weight, bias, input_.scales)
    return out.view(-1, *geometry.output, weight.shape[0]).permute(0, 3, 1, 2), windows


def input_gradient(mask: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """The input gradient ``[N, channels, height, width]`` at stride 1, channels last.

    It is computed where the bits of `mask`, ``[N * height, words]``, are set, and zero elsewhere.
    """
    height, width = geometry.image
    images = mask.shape[0] // height
    out = torch.empty(images, height, width, geometry.channels, dtype=torch.float32, device="cpu")
    outputs = weight.shape[0]
    row = panel(outputs)
    table = product.pack_weights(weight.reshape(outputs, -1), row)
    per_tile, tile_height, tile_width = geometry.tile(kernels.TILE)
    pieces = -(-images // per_tile) * -(-height // tile_height) * -(-width // tile_width)
    tensors = {"bits": mask, "table": table, "gradient": grad, "target": out}
    tiles = {
        "images": images,
        "per_tile": per_tile,
        "tile_height": tile_height,
        "tile_width": tile_width,
        "outputs": outputs,
    }
    unrolled = geometry.unrolled
    kernels.input_gradient(pieces, 1, **tensors, **geometry.sizes, **tiles, row=row, unrolled=unrolled)
    return out.permute(0, 3, 1, 2)


MOST_SAVED = 0.5
"""Im2col bits are saved for the backward up to this fraction of the images' bytes, and else recomputed."""


def _weight_gradient(
    input_: Planes, windows: Tensor | None, rows: Tensor, geometry: Geometry, needs_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The weight gradient ``[outputs, channels, height, width]`` and, if needed, the bias gradient.

    Args:
        input_: bits of the images.
        windows: bits under each window, if they were saved.
        rows: gradient of the output, ``[pixels, outputs]``.
        geometry: the sizes of the convolution.
        needs_bias: whether to compute the bias gradient.
    """
    if pixels.is_pixelwise_for_weights(geometry, input_.density):
        return pixels.weight_gradient(input_, rows, geometry), rows.sum(0) if needs_bias else None
    inputs = geometry.channels * geometry.kernel[0] * geometry.kernel[1]
    if windows is None:
        windows = windows_of(input_.bits, geometry)
    flat, to_bias = product.weight_gradient(windows, input_.density, rows, inputs, needs_bias, input_.scales)
    return flat.view(-1, *geometry.kernel, geometry.channels).permute(0, 3, 1, 2), to_bias


class _Convolution(torch.autograd.Function):
    """The autograd node; saves the bits of the spikes for the backward, and im2col bits if these are few."""

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
        """Returns the convolution, computed per spike or by torch; saves the tensors for the backward."""
        ctx.density, ctx.scales, ctx.support, ctx.choice = input_.density, input_.scales, support, choice
        ctx.geometry, ctx.shape, ctx.weight_shape = geometry, images.shape, weight.shape
        kernel = as_kernel(weight)
        numbers = images if choice.weights is False else None
        if not choice.forward:
            ctx.save_for_backward(input_.bits, weight, None, numbers)
            return dense.convolution(images, kernel, bias, geometry)
        out, windows = _forward_and_windows(input_, kernel, bias, geometry)
        reads_windows = choice.weights and not pixels.is_pixelwise_for_weights(geometry, input_.density)
        if windows is not None and (not reads_windows or windows.nbytes > MOST_SAVED * images.nbytes):
            windows = None
        ctx.save_for_backward(input_.bits, weight, windows, numbers)
        return out.detach()  # a view would add a node to the graph

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of images, weight and bias; None for those not needed and for all other arguments."""
        bits, weight, windows, numbers = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        check_saved(weight, ctx.weight_shape)
        weight = as_kernel(weight)
        rows = grad.resolve_neg().permute(0, 2, 3, 1).contiguous().view(-1, weight.shape[0])
        to_images = to_weight = to_bias = mask = None
        needs_images, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if needs_images:
            mask = _gradient_mask(ctx, bits, weight, rows, geometry)
        dense_gradients = needs_images and mask is None, needs_weight and numbers is not None
        if any(dense_gradients):
            to_images, to_weight = dense.gradients(
                ctx.shape, numbers, weight, rows, geometry, dense_gradients
            )
        if mask is not None:
            to_images = input_gradient(mask.bits, weight, rows, geometry)
        if needs_weight and numbers is None:
            input_ = Planes(bits, ctx.density, ctx.scales[0])
            to_weight, to_bias = _weight_gradient(input_, windows, rows, geometry, needs_bias)
        elif needs_bias:
            to_bias = rows.sum(0)
        if to_images is not None:  # not a view, so that autograd may accumulate in place
            to_images = to_images.detach()
        if to_weight is not None and len(ctx.weight_shape) == 3:
            to_weight = to_weight.reshape(ctx.weight_shape)
        return to_images, to_weight, to_bias, None, None, None, None, None


_apply = unwrapped_apply(_Convolution)


def _gradient_mask(
    ctx: Any, bits: Tensor, weight: Tensor, rows: Tensor, geometry: Geometry
) -> product.GradientMask | None:
    """Where the input gradient is computed, as bits; None if torch computes it everywhere.

    Torch does so if something may read the complete gradient, if it is faster, and at any stride but 1.
    """
    if geometry.stride != (1, 1):
        return None
    mask = product.gradient_mask(ctx.support, bits[0], geometry.channels * geometry.image[1], ctx.density)
    if mask is None:
        return None
    mask_bits: Tensor = mask.bits
    calls = (
        lambda: input_gradient(mask_bits, weight, rows, geometry),
        lambda: dense.gradients(ctx.shape, None, weight, rows, geometry, (True, False)),
    )
    bucket, sizes = select.density_bucket(mask.density), (ctx.shape[0], geometry)
    key = select.Key("convolution input", sizes, len(rows), weight[0].numel(), len(weight), bucket)
    return mask if select.restricts_gradient(ctx.choice, key, mask.density, lambda: calls) else None


def choose(
    packed: PackedInput, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Choice:
    """The products of a convolution that are computed per spike; `packed` are the bits of `images`."""
    planes, scanned = packed.planes, packed.key.scanned

    def calls() -> list[Call]:
        """The candidates that :func:`select.choose` times."""
        numbers = dense.channels_last(images.detach())
        kernel, biases = as_kernel(weight.detach()), None if bias is None else bias.detach()
        out = dense.convolution(numbers, kernel, biases, geometry)
        candidates: list[Call] = [
            lambda: forward(planes, kernel, biases, geometry),
            lambda: dense.convolution(numbers, kernel, biases, geometry),
        ]
        if packed.key.learning:
            rows = out.permute(0, 2, 3, 1).contiguous().view(-1, kernel.shape[0])
            candidates += [
                lambda: _weight_gradient(planes, None, rows, geometry, False),
                lambda: dense.gradients(numbers.shape, numbers, kernel, rows, geometry, (False, True)),
            ]
        return [*candidates, lambda: pack_numbers(rows_of(numbers))] if scanned else candidates

    return select.choose(packed.key, planes.density * planes.bits.shape[0], calls)


def spike_convolution(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    provenance: Provenance | None,
    mode: Mode,
) -> tuple[Tensor, product.Explanation] | str:
    """The convolution of `images` per spike, with gradients, and how it was computed.

    Returns the reason if torch must or should compute it.

    Args:
        images: ``[N, channels, height, width]``.
        weight: with three or four dimensions, as in :func:`as_kernel`.
        bias: ``[outputs]``, or None.
        geometry: the sizes of the convolution.
        provenance: the bits and the gradient mask that a layer attached to `images`, or None.
        mode: ``"auto"`` or ``"events"``.
    """
    bias = None if bias is None else bias.contiguous()
    auto, length, numbers = mode == "auto", geometry.channels * geometry.image[1], images.detach()
    is_ordered = images.is_contiguous(memory_format=torch.channels_last)
    sizes = images.shape[0] * prod(geometry.output), weight[0].numel(), len(weight)
    product_sizes = images.shape[0], geometry
    key = select.Key("convolution", product_sizes, *sizes, learning=needs_gradient(weight))
    packed = pack_input(provenance, length, is_ordered, numbers, lambda: rows_of(numbers), key, auto)
    if not isinstance(packed, PackedInput):
        return packed
    planes = packed.planes
    choice = choose(packed, images, weight, bias, geometry) if auto else ALL
    if not choice.any:
        return choice.dense_reason(planes.density)
    explanation = product.explanation(planes, len(weight), choice)
    if not needs_gradient(images, weight, bias):
        return forward(planes, as_kernel(weight.detach()), bias, geometry), explanation
    support = mask_provenance(provenance, length, is_ordered, planes) if images.requires_grad else None
    return convolution(images, weight, bias, planes, support, geometry, choice), explanation


def as_kernel(weight: Tensor) -> Tensor:
    """`weight` as ``[outputs, channels, height, width]``; that of a 1-d convolution has height 1.

    The autograd node saves the weight itself, not this view, so that its backward reads ``weight.data`` as
    torch's backward does.
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
    """The convolution ``[N, outputs, height, width]`` of `images` with bits `input_`, with gradients.

    `support` tells where the input gradient is needed; None: everywhere. `weight` has three or four
    dimensions, as in :func:`as_kernel`. `choice`: which products are computed per spike.
    """
    leaf = probe() if support is not None else None
    with without_autocast():
        out: Tensor = _apply(images, weight, bias, leaf, input_, support, geometry, choice)
    return out
