"""Layers that look back in a native step: rings of the steps to come, or of those that were.

Windows and delayed synapses add what a spike sends to the sums of the steps at which it arrives; a layer of
delays keeps what it was given.
"""

from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.native.emitter import Emitter, Held, times
from hibana.network.native.layers import bias_of
from hibana.network.native.neurons import neurons
from hibana.network.sliding import channels_last
from hibana.runtime.kernels import LONG, Longs, Pointer

__all__ = ["delay", "delayed", "delayed_recurrent", "window"]


class _Ring:
    """Numbers of several steps in the state, of which one is the present."""

    def __init__(self, emitter: Emitter, node: Node, places: Tensor, steps: int) -> None:
        self.emitter, self.steps, self.size = emitter, steps, node.size
        rest = torch.zeros(steps * node.size, dtype=emitter.dtype, device="cpu")
        self.numbers = emitter.lasting("ring", rest, node, places, (steps, *node.shape)).of(emitter.number)
        zero = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._now = emitter.lasting("counter", zero, node, places, ()).of(Longs)
        self.now = self._now.load()

    def step(self, later: Any) -> Pointer:
        """The numbers of the step that is `later` than the present one, by fewer than there are."""
        at = self.now + later
        row: Pointer = self.numbers + (at < self.steps).select(at, at - self.steps) * self.size
        return row

    def scatter(self, held: Held, rows: Pointer, late: Pointer) -> None:
        """Adds what is not zero, times its row of weights, each at the step that its delay says."""
        with self.emitter.each_active(held) as (i, x), self.emitter.code.loop(0, self.size) as o:
            synapse = i * self.size + o
            target = self.step(late[synapse].to(LONG))
            target[o] = target[o] + times(rows[synapse], x)

    def taken(self, bias: Pointer | None, channels: int) -> Pointer:
        """The sums of the present step with a bias, which leaves the ring; then the next is the present."""
        emitter, out = self.emitter, self.emitter.temporary(self.size)
        present = self.step(0)
        out.copy(present, self.size)
        if bias is not None:
            with emitter.code.loop(0, self.size, channels) as pixel:
                emitter.accumulate(out + pixel, bias, channels, None)
        present.clear(self.size)
        self.goes_on()
        return out

    def goes_on(self) -> None:
        """Makes the next step the present one."""
        later = self.now + 1
        self.now = (later < self.steps).select(later, 0)
        self._now.store(self.now)


def window(emitter: Emitter, node: Node) -> Held:
    """A causal convolution over time."""
    module = _module(node)
    read, places = emitter.held[node.inputs[0]], channels_last(node.shape)
    weights, bias = node.layer.weights(node, read.places)
    rows, added = emitter.constant(weights), bias_of(emitter, bias)
    channels, outputs, taps = module.in_channels, module.out_channels, module.kernel_size
    of_group, pixels = outputs // module.groups, node.size // outputs
    order, last = None, False
    if pixels > 1:
        read, last = emitter.image(read, node.seen[0])
    elif not torch.equal(read.places, torch.arange(len(read.places), dtype=torch.int64, device="cpu")):
        order = emitter.indices(read.places)
    ring = _Ring(emitter, node, places, module.reach + 1)
    with emitter.each_active(read) as (i, x):
        channel, pixel = i if order is None else order[i].to(LONG), emitter.code.constant(0)
        if pixels > 1:
            channel, pixel = (i % channels, i // channels) if last else (i // pixels, i % pixels)
        first = pixel * outputs
        if module.groups > 1:
            first = first + channel // (channels // module.groups) * of_group
        of_channel = rows + channel * (taps * of_group)
        with emitter.code.loop(0, taps) as k:
            target = ring.step((emitter.code.constant(taps - 1) - k) * module.dilation) + first
            emitter.accumulate(target, of_channel + k * of_group, of_group, x)
    return Held(node, places, ring.taken(added, outputs))


def delayed(emitter: Emitter, node: Node) -> Held:
    """A linear layer with a delay for each synapse."""
    read, places = emitter.held[node.inputs[0]], torch.arange(node.size, dtype=torch.int64, device="cpu")
    weights, bias = node.layer.weights(node, read.places)
    steps = node.layer.delays(node, read.places)
    rows, added, late = emitter.constant(weights), bias_of(emitter, bias), emitter.indices(steps)
    ring = _Ring(emitter, node, places, _module(node).reach + 1)
    ring.scatter(read, rows, late)
    return Held(node, places, ring.taken(added, node.size))


def delay(emitter: Emitter, node: Node) -> Held:
    """What was given as many steps ago as each number is late."""
    read = emitter.held[node.inputs[0]]
    steps = node.layer.delays(node, read.places)
    numbers, out = emitter.numbers(read), emitter.temporary(node.size)
    late = emitter.indices(steps)
    ring = _Ring(emitter, node, read.places, _module(node).reach + 1)
    ring.step(0).copy(numbers, node.size)
    with emitter.code.loop(0, node.size) as i:
        ago = late[i].to(LONG)
        before = ago.equals(0).select(ago, ring.steps - ago)
        out[i] = ring.step(before)[i]
    ring.goes_on()
    return Held(node, read.places, out, truths=read.truths)


def delayed_recurrent(emitter: Emitter, node: Node, index: int) -> Held:
    """Neurons whose spikes come back to them through delayed synapses, a step later at the soonest."""
    source, module = emitter.held[node.inputs[0]], _module(node).recurrent
    read = emitter.ordered(source, torch.arange(node.size, dtype=torch.int64, device="cpu"))
    rows, late = emitter.constant(module.weight.T), emitter.indices(module.steps.T)
    ring = _Ring(emitter, node, read.places, module.reach + 1)
    numbers, driven = emitter.numbers(read), ring.taken(None, node.size)
    for at, vector_width in emitter.vectors(node.size):
        place = driven + at
        place.store((numbers + at).load(vector_width) + place.load(vector_width))
    kept = emitter.arrays[-2:]
    del emitter.arrays[-2:]
    held = neurons(emitter, node, index, Held(node, read.places, driven))
    emitter.arrays += kept  # the ring last, as in the state of hibana.run
    ring.scatter(held, rows, late)
    return held


def _module(node: Node) -> Any:
    return node.module
