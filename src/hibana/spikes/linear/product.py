"""The linear product of bits and weights, and its gradients: allocates the results and calls the kernels."""

from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.runtime.kernels import float_bits, is_amd
from hibana.runtime.torch_internals import onednn_linear
from hibana.spikes.bits import ONE, Planes, density_of
from hibana.spikes.linear import kernels, weights
from hibana.spikes.provenance import Provenance
from hibana.spikes.select import ALL, Choice
from hibana.spikes.simd.lists import PLACES, WORD
from hibana.spikes.simd.rows import Row, compresses, panel

__all__ = ["GradientMask", "Parts", "crossover", "dense_product", "explanation", "forward"]
__all__ += ["gradient_crossover", "gradient_mask", "input_gradient", "pack_weights", "parts"]
__all__ += ["product_with_bits", "sum_planes", "weight_gradient", "words_per_block"]

Scales = tuple[float, ...]
"""The factor of each bit plane."""

BLOCKED_FROM = 0.06
"""Density from which on the forward processes the weights in blocks that fit into the L1 cache."""
BLOCK_WORDS = 192
"""Words of 64 inputs in such a block, times the floats in a row of weights."""
LISTED = 512
"""Input rows that are processed at a time: weights that exceed the L2 cache are read once for all of these
rows. Half as many rows if the weights are processed in blocks, since each block reads and writes the sums."""
DOT_WEIGHTS = 1 << 18
"""Most weights in a block of the input gradient."""
DOT_WORDS = 8
"""Most words of 64 inputs in a block of the input gradient."""
DOTS = 4
"""Fewest set bits per row in a block of the input gradient: four or eight dot products are computed at a
time."""
GRAIN = 32
"""Smallest number of rows per thread."""
PARTS = 8
"""Parts of the rows for a weight gradient with few sums. The number is fixed, so that the results do not
depend on the number of threads."""
PART_ROWS = 1024
"""Fewest rows of such a part."""
FEW_SUMS = 64
"""A weight gradient has few sums up to this product of panels of outputs and words of inputs."""


def crossover(outputs: int) -> float:
    """The density above which looking up sums of four weight rows in tables is faster than adding each row.

    Cost model: a spike costs one listing and one addition per panel of outputs; a table costs one look-up per
    panel. The constants were measured with 784 x 512, 288 x 64 and 288 x 32 weights (Zen 4, with and without
    ``vpcompressw``).
    """
    panels = _ceil_div(outputs, panel(outputs).floats)
    return 0.29 * panels / (panels + 0.1) if compresses() else 0.30 * panels / (panels + 0.69)


def explanation(input_: Planes, outputs: int, choice: Choice = ALL) -> str:
    """The text of ``layer.explain()`` for a call with bits `input_` and this `choice` of products."""
    limit, density, planes = crossover(outputs), input_.density, input_.bits.shape[0]
    method = "looked up in fours, as above" if density > limit else "added one by one, as up to"
    method += f" {limit:.0%}"
    text = f"{density:.0%} of the input spiked"
    if input_.scales != ONE:
        times = "" if input_.factor == 1.0 else f" times {input_.factor:g}"
        text = f"whole numbers to {(1 << planes) - 1}{times}, {density:.0%} of their bits set"
    text = f"events: {text}; {method}" if choice.forward else f"dense forward: {text}"
    if choice.weights is False and choice.forward:
        text += ", the weights' gradient densely"
    return f"{text}; {choice.times}" if choice.times else text


def gradient_crossover() -> float:
    """:func:`crossover` for the weight gradient, where one listing serves many rows of the gradient."""
    return 0.25 if compresses() else 0.18


def _ceil_div(count: int, size: int) -> int:
    """``count / size``, rounded up."""
    return -(-count // size)


def dense_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left right^T + bias`` by torch: by oneDNN on AMD's processors, where MKL takes twice as long."""
    if onednn_linear is not None and is_amd():
        product: Tensor = onednn_linear(left, right, bias, "none", [], "")
        return product
    return left @ right.T if bias is None else torch.addmm(bias, left, right.T)


def pack_weights(weight: Tensor, row: Row, scales: Scales = ONE) -> Tensor:
    """`weight`, ``[outputs, inputs]``, as ``[panels][scales][inputs, padded to full words][row]``.

    The inputs of a convolution's weight, ``[outputs, channels, height, width]``, are in the order
    ``[height][width][channels]``. The table holds one multiple of the weights for each of the `scales`, which
    must be 1, 2, 4, … times the first.
    """
    places = 1
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    elif weight.ndim == 4:
        places = weight.shape[2] * weight.shape[3]
    weight = weight.contiguous()
    outputs, inputs = weight.shape[0], weight[0].numel()
    words, panels = _ceil_div(inputs, WORD), _ceil_div(outputs, row.floats)
    shape = panels, len(scales) * words * WORD, row.floats
    table = torch.empty(shape, dtype=torch.float32, device="cpu")
    kernels.pack(
        panels * words,
        source=weight,
        target=table,
        outputs=outputs,
        inputs=inputs,
        places=places,
        factor=float_bits(scales[0]),
        row=row,
        planes=len(scales),
    )
    return table


def forward(
    bits: Tensor,
    density: float,
    weight: Tensor,
    bias: Tensor | None,
    scales: Scales = ONE,
    table: Tensor | None = None,
) -> Tensor:
    """The product ``[rows, outputs]`` of the planes in `bits`, ``[rows, planes * words]``, with `weight`.

    `table` is the packed weight, if it is packed already.
    """
    outputs = weight.shape[0]
    row = panel(outputs)
    table = pack_weights(weight, row, scales) if table is None else table
    inputs = weight.numel() // outputs if scales == ONE else table.shape[1]
    rows = bits.shape[0]
    out = torch.empty(rows, outputs, dtype=torch.float32, device="cpu")
    by_table = density > crossover(outputs)
    in_blocks = density > BLOCKED_FROM and not by_table
    kernels.forward(
        rows,
        GRAIN,
        bits=bits,
        table=table,
        bias=bias,
        target=out,
        inputs=inputs,
        outputs=outputs,
        tile=min(bits.shape[1], BLOCK_WORDS // row.floats if in_blocks else PLACES // WORD),
        per_tile=min(1 << (rows - 1).bit_length(), LISTED // 2 if in_blocks else LISTED),
        row=row,
        by_table=by_table,
    )
    return out


class GradientMask(NamedTuple):
    """Bits that are set where an input gradient is computed, and their density."""

    bits: Tensor
    """``[rows, words]``."""
    density: float


def input_gradient(mask: GradientMask, table: Tensor, grad: Tensor, inputs: int) -> Tensor:
    """``grad @ weight`` where the bits of `mask` are set, zero elsewhere; `table` holds packed weights."""
    rows, outputs = grad.shape
    out = torch.empty(rows, inputs, dtype=torch.float32, device="cpu")
    kernels.input_gradient(
        rows,
        GRAIN,
        bits=mask.bits,
        table=table,
        gradient=grad,
        target=out,
        inputs=inputs,
        outputs=outputs,
        tile=words_per_block(outputs, mask.bits.shape[1], mask.density),
        row=panel(outputs),
    )
    return out


def words_per_block(outputs: int, words: int, density: float) -> int:
    """Words of inputs in a block of the input gradient; `words` in total, at this `density` of set bits."""
    row = panel(outputs)
    cached = DOT_WEIGHTS // (_ceil_div(outputs, row.floats) * row.floats * WORD)
    fewest = ceil(DOTS / (WORD * max(density, 1e-3)))
    return min(max(cached, fewest), DOT_WORDS, words)


def weight_gradient(bits: Tensor, density: float, grad: Tensor, inputs: int, scales: Scales = ONE) -> Tensor:
    """The weight gradient ``[outputs, inputs]``.

    Args:
        bits: planes of the input, ``[rows, planes * words]``.
        density: the density of `bits`.
        grad: gradient of the output, ``[rows, outputs]``.
        inputs: number of inputs.
        scales: factor of each plane.
    """
    columns = inputs if scales == ONE else WORD * bits.shape[1]
    rows, outputs = grad.shape
    row = panel(outputs)
    split = parts(rows, outputs, bits.shape[1], torch.get_num_threads())
    leading = (split.rows,) if split.rows > 1 else ()
    out = torch.empty(*leading, outputs, columns, dtype=torch.float32, device="cpu")
    weights.weight_gradient(
        split.number,
        bits=bits,
        gradient=grad,
        targets=out,
        total=rows,
        inputs=columns,
        outputs=outputs,
        by_table=density > gradient_crossover(),
        parts_across=split.across,
        parts_down=split.down,
        per_part=_ceil_div(rows, split.rows),
        row=row,
    )
    total = out.sum(0) if leading else out
    if scales != ONE:
        total = sum_planes(total.view(outputs, len(scales), -1)[:, :, :inputs], scales)
    return total


def sum_planes(plane_gradients: Tensor, scales: Scales) -> Tensor:
    """The weight gradient ``[outputs, inputs]``: the scaled sum over ``[outputs, planes, inputs]``."""
    return torch.stack([plane_gradients[:, k] * scale for k, scale in enumerate(scales)]).sum(0)


class Parts(NamedTuple):
    """Numbers of parallel parts of a weight gradient; the results of different `rows` are added."""

    rows: int
    across: int
    """Parts of the panels of outputs."""
    down: int
    """Parts of the words of inputs."""

    @property
    def number(self) -> int:
        """Number of all parts; each runs on one thread."""
        return self.rows * self.across * self.down


def parts(rows: int, outputs: int, words: int, threads: int, most: int = PARTS) -> Parts:
    """Splits a weight gradient into parallel parts; at most `most` of them divide the rows.

    The sizes are rows, outputs, and 64-bit words of inputs.
    """
    panels = _ceil_div(outputs, panel(outputs).floats)
    if rows >= PARTS * PART_ROWS and panels * words <= FEW_SUMS and most >= PARTS:
        return Parts(PARTS, 1, 1)
    across = min(threads, panels)
    return Parts(1, across, min(_ceil_div(threads, across), words))


def product_with_bits(rows: Tensor, bits: Tensor) -> Tensor:
    """``rows^T B``, ``[N, N]``, of numbers ``[rows, N]`` and `bits` ``[rows, words]`` with N bits a row."""
    neurons = rows.shape[1]
    return weight_gradient(bits, density_of(bits, neurons), rows, neurons)


def gradient_mask(support: Provenance | None, length: int) -> GradientMask | None:
    """The mask of inputs, in rows of `length`, that need a gradient in the backward that is running.

    None if all do. `support` tells where the gradient of the input is needed, and who may read it.
    """
    mask = support.rows(length) if support is not None and support.has_no_observer() else None
    return None if mask is None else GradientMask(mask, density_of(mask, length))
