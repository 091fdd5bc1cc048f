"""The building blocks of the event kernels."""

import pytest
import torch

from hibana.runtime.kernels import Code, Longs, Value, kernel
from hibana.spikes.simd.lists import WORD, transpose_bits

PLACES = torch.arange(WORD)


@kernel
def transpose_words(code: Code, begin: Value, end: Value, *, words: Longs) -> None:
    with code.loop(begin, end) as k:
        transpose_bits(code, words + k * WORD)


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_bit_j_of_word_i_becomes_bit_i_of_word_j(density):
    bits = torch.rand(5, WORD, WORD) < density
    words = (bits.long() << PLACES).sum(-1)
    transpose_words(5, words=words)
    assert torch.equal((words[..., None] >> PLACES & 1).bool(), bits.mT)
