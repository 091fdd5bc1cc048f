"""Spikes as bits, 64 to a word: made of numbers, counted, and compared with the numbers they were kept of."""

import torch
from torch import Tensor

from hibana.events.kernels.bits import scan

__all__ = ["agree", "bits_of", "share_of"]

SAMPLE = 256
"""Words of 64 numbers that are compared with the bits kept of them."""


def bits_of(rows: Tensor, step: int = 1) -> tuple[Tensor, float | None]:
    """The bits ``[rows / step, words]`` of contiguous `rows`, and the share of ones: None if not binary."""
    inputs = rows.shape[1]
    bits = torch.empty(-(-rows.shape[0] // step), -(-inputs // 64), dtype=torch.int64, device="cpu")
    spikes, strange = _scanned(rows, bits, inputs, step)
    return bits, None if strange else spikes / max(1, bits.shape[0] * inputs)


def share_of(bits: Tensor, inputs: int) -> float:
    """The share of ones in `bits`, ``[rows, words]``, of rows of `inputs`."""
    return _scanned(None, bits, inputs, 1)[0] / max(1, bits.shape[0] * inputs)


def agree(numbers: Tensor, kept: Tensor) -> bool:
    """Whether a sample of `numbers`, which fill their memory without gaps, is what the bits `kept` say.

    `kept` are ``[steps, ceil(N/8)]`` bytes of steps of N numbers, in the order of memory. What is written by
    ``.data`` or NumPy leaves no trace but this; of few numbers all are compared, of many an odd step apart.
    """
    count, steps = numbers.numel(), kept.shape[0]
    if count == 0:
        return True
    length = count // steps
    wide = 64 if length % 64 == 0 else length
    every = count // (64 * SAMPLE) * 64 // wide | 1
    found, share = bits_of(numbers.detach().as_strided((count // wide, wide), (wide, 1)), every)
    of_kept = kept.view(-1, 8) if wide == 64 else kept
    return share is not None and torch.equal(found.view(torch.uint8)[:, : of_kept.shape[1]], of_kept[::every])


def _scanned(source: Tensor | None, bits: Tensor, inputs: int, step: int) -> tuple[int, int]:
    count, parts = bits.shape[0], torch.get_num_threads()
    found = torch.zeros(parts, 2, dtype=torch.int64, device="cpu")
    given = {"source": source, "bits": bits, "counts": found}
    scan(parts, **given, inputs=inputs, rows=count, step=step, per_part=-(-count // parts))
    spikes, strange = found.sum(0).tolist()
    return spikes, strange
