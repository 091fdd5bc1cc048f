"""A forward fused with what computes its inputs: the outputs of the two one after the other, to the bit."""

import pytest
import torch

import hibana as hb
from hibana.compiler import emitted_around
from hibana.compiler.backend import Producer
from hibana.nn.normalized import autograd as of_normalized
from hibana.nn.normalized.autograd import moments
from hibana.nn.normalized.layer import Scaled
from hibana.runtime.kernels import Code, Floats, Value, kernel

STEPS, BATCH = 5, 3


@kernel
def doubled(code: Code, begin: Value, end: Value, *, source: Floats, target: Floats, length: Value) -> None:
    """Twice the numbers of pieces of so many."""
    with code.loop(begin * length, end * length) as i:
        target[i] = source[i] * 2.0


def channels_last(channels, height, width, steps=STEPS):
    return torch.randn(steps * BATCH, height, width, channels).permute(0, 3, 1, 2)


def over_time(images, steps=STEPS):
    return images.view(steps, -1, *images.shape[1:])


def producer(source, pieces, into):
    length = source.numel() // pieces // STEPS
    call = doubled.sized(length=length).call(source=source, target=into)
    return Producer(call, doubled.place("target"), pieces, length, into)


CELLS = {
    "IF": lambda channels: hb.IFCell(),
    "LIF, one threshold a channel": lambda channels: hb.LIFCell(threshold=torch.rand(channels, 1, 1) + 0.5),
    "ALIF": lambda channels: hb.ALIFCell(),
    "LIF, a learned time constant": lambda channels: hb.LIFCell(learn="tau"),
    "EIF, whose step calls a library": lambda channels: hb.EIFCell(),
}


@pytest.mark.cover(2)
@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    ("size", "pieces", "fits"),
    [
        ((16, 8, 16), 3, True),  # an image a piece
        ((16, 8, 16), 12, True),  # two rows of pixels
        ((64, 4, 128), 6, True),  # more than a row of neurons
        ((64, 1, 1), 3, True),
        ((5, 3, 7), 3, False),  # rows that are no whole words
        ((48, 4, 4), 3, True),  # channels that are no whole words, but rows are
        ((1, 24, 24), 3, True),
    ],
)
def test_what_is_emitted_is_that_of_inputs_computed_before(name, size, pieces, fits, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        cell, source = CELLS[name](size[0]), channels_last(*size)
        each = torch.rand(size[0], 1, 1) + 0.5, torch.randn(size[0], 1, 1)
        wanted = emitted_around(cell, Scaled, each, over_time(2 * source))
        assert 0 < wanted.mean() < 1
        for _ in range(2):
            into = torch.full_like(source, float("nan"))
            found = emitted_around(cell, Scaled, each, over_time(into), producer(source, pieces, into))
            assert torch.equal(found, wanted)
            assert bool(into.isnan().all()) == fits  # it went through no memory of the sequence's
    finally:
        torch.set_num_threads(before)


def test_where_a_gradient_is_wanted_or_a_cell_was_not_seen_before_the_inputs_are_computed_first():
    cell, source = hb.LIFCell(learn="tau"), channels_last(16, 8, 8)
    each = torch.rand(16, 1, 1), torch.randn(16, 1, 1)
    wanted = emitted_around(cell, Scaled, each, over_time(2 * source))
    for again in (cell, hb.LIFCell(learn="tau")):
        into = torch.full_like(source, float("nan"))
        found = emitted_around(again, Scaled, each, over_time(into), producer(source, 3, into))
        assert torch.equal(found, wanted)
        assert found.requires_grad
        assert torch.equal(into, 2 * source)


def test_where_the_inputs_take_a_gradient_they_are_computed_first_and_get_it():
    cell, source = hb.LIFCell(surrogate=hb.surrogate.ATan()), channels_last(16, 8, 8)
    each = torch.rand(16, 1, 1), torch.randn(16, 1, 1)
    there = (2 * source).requires_grad_()
    emitted_around(cell, Scaled, each, over_time(there)).sum().backward()
    assert there.grad.count_nonzero()
    for _ in range(2):
        into = torch.full_like(source, float("nan"), requires_grad=True)
        found = emitted_around(cell, Scaled, each, over_time(into), producer(source, 3, into))
        found.sum().backward()
        assert torch.equal(into.grad, there.grad)


@pytest.mark.cover(2)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("near", [1, 1 << 19])
@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        ((16, 8, 16), 3),  # an image a piece
        ((16, 8, 16), 12),
        ((64, 24, 128), 3),  # several blocks a piece
        ((5, 3, 7), 3),
        ((1, 24, 24), 3),
        ((3, 1, 31), 3),  # a prime number of pixels
        ((64, 1, 1), 3),  # too few for a block: computed first
        ((24, 2, 3), 9),  # pieces that end within a pixel: computed first
    ],
)
def test_moments_are_those_of_what_a_producer_computes(monkeypatch, size, pieces, near, threads):
    monkeypatch.setattr(of_normalized, "NEAR", near)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        source = channels_last(*size) + 3
        weight, bias = torch.rand(size[0]) + 0.5, torch.randn(size[0])
        into = torch.full_like(source, float("nan"))
        found = moments(into, weight, bias, 1e-5, producer(source, pieces, into))
        assert torch.equal(into, 2 * source)
        for got, wanted in zip(found, moments(2 * source, weight, bias, 1e-5), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    finally:
        torch.set_num_threads(before)
