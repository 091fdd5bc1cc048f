"""Calls the kernels of the linear product of spikes and weights, and of its gradients."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.runtime.kernels import BoundLauncher, float_bits
from hibana.spikes.bits import density_of
from hibana.spikes.linear import kernels, weights
from hibana.spikes.planes import ONE, Planes
from hibana.spikes.provenance import Provenance
from hibana.spikes.select import ALL, Choice
from hibana.spikes.simd.lists import PLACES, WORD
from hibana.spikes.simd.rows import Row, compresses, panel

__all__ = [
    "Explained",
    "Parts",
    "Used",
    "crossover",
    "explained",
    "forward",
    "gradient_crossover",
    "input_gradient",
    "of_numbers",
    "product_with_bits",
    "packed",
    "parts",
    "used_bits",
    "weight_gradient",
    "words_near",
]

Scales = tuple[float, ...]
"""The factor of each plane of bits."""

NEAR_FROM = 0.06
"""Density from which on the forward goes through blocks of weights that fit into the L1 cache."""
NEAR_WORDS = 192
"""Words of 64 inputs of such a block, times the floats in a row of weights."""
LISTED = 512
"""Input rows whose spikes are listed at a time: weights that exceed the L2 cache are read once for all of
them. Half as many where weights are taken in blocks, since the sums are written and read again for each
block."""
DOTS_NEAR = 1 << 18
"""Weights of a block of the input gradient, at most; it has DOTS_WORDS words of 64 inputs at most."""
DOTS_WORDS = 8
DOTS = 4
"""Set bits that a block of the input gradient has per row, at least: four or eight dot products are computed
at a time."""
GRAIN = 32
PARTS = 8
"""Parts that the rows are divided into for a weight gradient of few sums, whatever the number of threads, so
that the sums do not depend on it."""
LONG = 1024
"""Rows of such a part, at least."""
FEW_SUMS = 64
"""Panels of outputs times words of inputs up to which sums are few."""


def crossover(outputs: int) -> float:
    """The density above which tables of the sums of four rows of weights are faster than adding each row.

    A cost model: adding a spike costs one listing and, for each panel of outputs, one addition; tables cost
    the panels alone. Constants from measurements of 784 x 512, 288 x 64 and 288 x 32 weights (Zen 4, with and
    without ``vpcompressw``).
    """
    panels = _up(outputs, panel(outputs).floats)
    return 0.29 * panels / (panels + 0.1) if compresses() else 0.30 * panels / (panels + 0.69)


class Explained(NamedTuple):
    """What a call did, as text when it is asked for."""

    planes: int
    density: float
    factor: float
    outputs: int
    forward: bool
    weights: bool | None
    times: str
    """The times by which :func:`hibana.tune` decided."""

    def __str__(self) -> str:
        limit = crossover(self.outputs)
        how = "looked up in fours, as above" if self.density > limit else "added one by one, as up to"
        how += f" {limit:.0%}"
        what = f"{self.density:.0%} of the input spiked"
        if (self.planes, self.factor) != (1, 1.0):
            times = "" if self.factor == 1.0 else f" times {self.factor:g}"
            what = f"whole numbers to {(1 << self.planes) - 1}{times}, {self.density:.0%} of their bits set"
        what = f"events: {what}; {how}" if self.forward else f"dense forward: {what}"
        if self.weights is False and self.forward:
            what += ", the weights' gradient densely"
        return f"{what}; {self.times}" if self.times else what


def explained(input_: Planes, outputs: int, choice: Choice = ALL) -> Explained:
    """The record that ``layer.explain()`` prints: density and planes of `input_`, and what `choice` does."""
    about = choice.forward, choice.weights, choice.times
    return Explained(input_.bits.shape[0], input_.density, input_.factor, outputs, *about)


def gradient_crossover() -> float:
    """:func:`crossover` for rows of a gradient, of which there are many for each listing."""
    return 0.25 if compresses() else 0.18


def _up(count: int, size: int) -> int:
    return -(-count // size)


def packed(weight: Tensor, row: Row, scales: Scales = ONE) -> Tensor:
    """`weight`, ``[outputs, inputs]``, as ``[panels][scales][inputs, padded to whole words][row]``.

    The inputs of a convolution's weight, ``[outputs, channels, height, width]``, are in the order
    ``[height][width][channels]``. There is one copy of the weights, multiplied by it, for each of the
    `scales`, which are 1, 2, 4, … times the first.
    """
    places = 1
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    elif weight.ndim == 4:
        places = weight.shape[2] * weight.shape[3]
    weight = weight.contiguous()
    outputs = weight.shape[0]
    pieces, shape, pack = _packing(outputs, weight.numel() // outputs, places, row, scales)
    table = torch.empty(shape, dtype=torch.float32, device="cpu")
    pack(pieces, source=weight, target=table)
    return table


@lru_cache(maxsize=256)
def _packing(
    outputs: int, inputs: int, places: int, row: Row, scales: Scales
) -> tuple[int, tuple[int, ...], BoundLauncher]:
    """Pieces of work, the shape of the table, and the kernel for :func:`packed`."""
    words, panels, planes = _up(inputs, WORD), _up(outputs, row.floats), len(scales)
    shape = panels, planes * words * WORD, row.floats
    sizes = {"outputs": outputs, "inputs": inputs, "row": row}
    if places == 1 and scales == ONE:
        return panels * words, shape, kernels.pack.bind(**sizes)
    scaled = {"places": places, "factor": float_bits(scales[0]), "planes": planes}
    return panels * words, shape, kernels.pack_planes.bind(**sizes, **scaled)


def forward(
    bits: Tensor,
    density: float,
    weight: Tensor,
    bias: Tensor | None,
    scales: Scales = ONE,
    leading: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """The product of the planes in `bits`, ``[rows, planes * words]``, with `weight`, and the packed weights.

    The product is ``[*leading, outputs]``; the sizes in `leading` multiply to the number of rows.
    """
    outputs = weight.shape[0]
    row = panel(outputs)
    table = packed(weight, row, scales)
    inputs = weight.numel() // outputs if scales == ONE else table.shape[1]
    rows = bits.shape[0]
    leading = (rows,) if leading is None else leading
    out = torch.empty(*leading, outputs, dtype=torch.float32, device="cpu")
    given = {"bits": bits, "table": table, "bias": bias, "target": out, "inputs": inputs, "outputs": outputs}
    if density > crossover(outputs):
        kernels.forward_tables(rows, GRAIN, **given, row=row)
    else:
        near = density > NEAR_FROM
        tile = min(bits.shape[1], NEAR_WORDS // row.floats if near else PLACES // WORD)
        per_tile = min(1 << (rows - 1).bit_length(), LISTED // 2 if near else LISTED)
        kernels.forward_lists(rows, GRAIN, **given, tile=tile, per_tile=per_tile, row=row)
    return out, table


class Used(NamedTuple):
    """Where an input gradient is computed."""

    bits: Tensor
    """``[rows, words]``."""
    density: float


def input_gradient(
    used: Used, table: Tensor, grad: Tensor, inputs: int, leading: Sequence[int] | None = None
) -> Tensor:
    """``grad @ weight`` where the bits of `used` are set, zero elsewhere; `table` holds packed weights.

    The result is ``[*leading, inputs]``; the sizes in `leading` multiply to the number of rows.
    """
    rows, outputs = grad.shape
    out = torch.empty(*((rows,) if leading is None else leading), inputs, dtype=torch.float32, device="cpu")
    kernels.input_gradient(
        rows,
        GRAIN,
        bits=used.bits,
        table=table,
        gradient=grad,
        target=out,
        inputs=inputs,
        outputs=outputs,
        tile=words_near(outputs, used.bits.shape[1], used.density),
        row=panel(outputs),
    )
    return out


def words_near(outputs: int, words: int, density: float) -> int:
    """The number of words of inputs, of so many `words`, in a block of the input gradient."""
    row = panel(outputs)
    near = DOTS_NEAR // (_up(outputs, row.floats) * row.floats * WORD)
    enough = ceil(DOTS / (WORD * max(density, 1e-3)))
    return min(max(near, enough), DOTS_WORDS, words)


def weight_gradient(
    bits: Tensor, density: float, grad: Tensor, inputs: int, bias: bool, scales: Scales = ONE
) -> tuple[Tensor, Tensor | None]:
    """``[outputs, inputs]``, and the sum of `grad` over its rows if `bias`."""
    if scales == ONE:
        return _bits_gradient(bits, density, grad, inputs, bias)
    of_planes, summed = _bits_gradient(bits, density, grad, 64 * bits.shape[1], bias)
    return of_numbers(of_planes.view(len(of_planes), len(scales), -1)[:, :, :inputs], scales), summed


def of_numbers(of_planes: Tensor, scales: Scales) -> Tensor:
    """The weights' gradient ``[outputs, inputs]``, from that of each plane, ``[outputs, planes, inputs]``."""
    return torch.stack([of_planes[:, k] * scale for k, scale in enumerate(scales)]).sum(0)


def _bits_gradient(
    bits: Tensor, density: float, grad: Tensor, inputs: int, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """``grad^T bits``, the gradient of weights ``[outputs, inputs]``, and with `bias` that of the bias."""
    rows, outputs = grad.shape
    row = panel(outputs)
    split = parts(rows, outputs, bits.shape[1], torch.get_num_threads())
    several = (split.rows,) if split.rows > 1 else ()
    out = torch.empty(*several, outputs, inputs, dtype=torch.float32, device="cpu")
    summed = torch.empty(*several, outputs, dtype=torch.float32, device="cpu") if bias else None
    weights.weight_gradient(
        split.number,
        bits=bits,
        gradient=grad,
        targets=out,
        biases=summed,
        total=rows,
        inputs=inputs,
        outputs=outputs,
        by_table=density > gradient_crossover(),
        parts_across=split.across,
        parts_down=split.down,
        per_part=_up(rows, split.rows),
        row=row,
    )
    if not several:
        return out, summed
    return out.sum(0), None if summed is None else summed.sum(0)


class Parts(NamedTuple):
    """How a weight gradient is divided into parallel parts: by rows (whose sums are added up), outputs and
    inputs.
    """

    rows: int
    across: int
    down: int

    @property
    def number(self) -> int:
        """How many parts there are, each of which one thread may compute."""
        return self.rows * self.across * self.down


def parts(rows: int, outputs: int, words: int, threads: int, most: int = PARTS) -> Parts:
    """The parts of a weight gradient of `words` of inputs, by rows at most `most`."""
    panels = _up(outputs, panel(outputs).floats)
    if rows >= PARTS * LONG and panels * words <= FEW_SUMS and most >= PARTS:
        return Parts(PARTS, 1, 1)
    across = min(threads, panels)
    return Parts(1, across, min(_up(threads, across), words))


def product_with_bits(rows: Tensor, bits: Tensor) -> Tensor:
    """``rows^T B``, ``[N, N]``, for ``[rows, N]`` numbers and as many bits in each row of `bits`."""
    neurons = rows.shape[1]
    return _bits_gradient(bits, density_of(bits, neurons), rows, neurons, bias=False)[0]


def used_bits(support: Provenance | None, bits: Tensor, length: int, density: float) -> Used | None:
    """Where the input gradient is to be computed, from the producer's mask; None if everywhere.

    Args:
        support: the provenance of the input.
        bits: the spikes, which are the mask where the provenance has no other.
        length: elements of a row.
        density: of the spikes.
    """
    if support is None or not support.has_no_observer():
        return None
    if support.mask is None:
        return Used(bits, density)
    found = support.rows(support.mask, length)
    return None if found is None else Used(found, density_of(found, length))
