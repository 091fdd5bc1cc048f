"""A row of weights in the kernel of a pair rule: how it takes events, and a spike of its input."""

from typing import ClassVar

from hibana.learn.plasticity.neurons import VECTOR
from hibana.runtime.kernels import (
    FLOAT,
    LONG,
    Code,
    Floats,
    Function,
    Ints,
    Kind,
    Longs,
    Pointer,
    Shorts,
    Value,
    function,
)

__all__ = ["BLOCK", "Events", "Rule", "RuleNumbers", "catch_up_of", "spiked_of"]

BLOCK = 2 * VECTOR
"""Outputs whose sums are taken at once; a row of weights is padded to a multiple of it."""


class Rule:
    """How a vector of weights changes: written into both functions that change weights."""

    def __init__(self, clipped: bool, soft: bool, nearest: bool) -> None:
        self.clipped, self.soft, self.nearest = clipped, soft, nearest

    def traced(self, faded: Value, spikes: Value) -> Value:
        """The trace after a step, of what is left of it and the spikes."""
        if self.nearest:
            return (spikes > faded).select(spikes, faded)
        return faded + spikes

    def changed(self, weight: Value, plus: Value, minus: Value | None, numbers: "RuleNumbers") -> Value:
        """The weights after a step, from the two sums over pairs."""
        lanes = weight.type.width
        lower, upper = numbers.lower.spread(lanes), numbers.upper.spread(lanes)
        plus = plus * numbers.a_plus.spread(lanes)
        total = weight + (plus * (upper - weight) if self.soft else plus)
        if minus is not None:
            minus = minus * numbers.a_minus.spread(lanes)
            total = total - (minus * (weight - lower) if self.soft else minus)
        if not self.clipped:
            return total
        total = (total < lower).select(lower, total)
        return (total > upper).select(upper, total)


class RuleNumbers:
    """The parameters of a pair rule as float32 scalars of a kernel."""

    NAMES = ("decay_pre", "decay_post", "a_plus", "a_minus", "lower", "upper")

    def __init__(self, *values: Value) -> None:
        self.all = values
        self.decay_pre, self.decay_post, self.a_plus, self.a_minus, self.lower, self.upper = values


class Events:
    """The events of a chunk, and the traces of an input at the steps that its row has missed."""

    KINDS: ClassVar[dict[str, type[Pointer]]] = {
        "tiles": Ints,
        "at_step": Ints,
        "bits": Shorts,
        "first": Longs,
        "table": Floats,
    }

    def __init__(self, tiles: Ints, at_step: Ints, bits: Shorts, first: Longs, table: Floats) -> None:
        self.tiles = tiles
        """Of each event, which 16 outputs."""
        self.at_step = at_step
        """Of each event, its step in the chunk."""
        self.bits = bits
        """Of each event and sample, which of the 16 spiked."""
        self.first = first
        """Of each step, its first event."""
        self.table = table
        """Of each step missed, the trace of each sample."""

    @property
    def all(self) -> tuple[Pointer, ...]:
        return self.tiles, self.at_step, self.bits, self.first, self.table


def catch_up_of(rule: Rule) -> Function:
    """Brings a row of weights and the traces of its input from `done` steps of the chunk to `until`."""

    def body(
        code: Code, row: Floats, trace: Floats, done: Value, until: Value, batch: Value, **rest: Value
    ) -> None:
        events = Events(**{name: rest.pop(name) for name in Events.KINDS})  # type: ignore[arg-type] # pointers
        numbers = RuleNumbers(*rest.values())
        with code.loop(done, until) as step, code.loop(0, batch) as b:
            value = trace[b] * numbers.decay_pre
            trace[b] = value
            events.table[(step - done) * batch + b] = value
        with code.loop(events.first[done], events.first[until]) as event:
            values = events.table + (events.at_step[event].to(LONG) - done) * batch
            plus = _of_event(code, events.bits + event * batch, values, batch)
            at = row + events.tiles[event].to(LONG) * VECTOR
            at.store(rule.changed(at.load(VECTOR), plus, None, numbers))

    kinds: dict[str, Kind] = {
        "row": Floats,
        "trace": Floats,
        **Events.KINDS,
        **dict.fromkeys(("done", "until", "batch"), LONG),
    }
    return function("catch_up", body, {**kinds, **dict.fromkeys(RuleNumbers.NAMES, FLOAT)})


def spiked_of(rule: Rule) -> Function:
    """One step of a row whose input spiked in a sample: both sums over pairs, at the same weights."""

    def body(
        code: Code,
        row: Floats,
        trace: Floats,
        sent: Floats,
        post: Floats,
        plus: Floats,
        minus: Floats,
        step: Value,
        batch: Value,
        ins: Value,
        stride: Value,
        **rest: Value,
    ) -> None:
        events = Events(**{name: rest.pop(name) for name in Events.KINDS})  # type: ignore[arg-type] # pointers
        numbers = RuleNumbers(*rest.values())
        minus.clear(stride)
        with code.loop(0, batch) as b:
            spike = sent[b * ins]
            trace[b] = rule.traced(trace[b] * numbers.decay_pre, spike)
            with code.when(spike.differs(0)), code.loop(0, stride, BLOCK) as j:
                (minus + j).store((minus + j).load(BLOCK) + (post + (b * stride + j)).load(BLOCK))
        with code.loop(events.first[step], events.first[step + 1]) as event:
            total = _of_event(code, events.bits + event * batch, trace, batch)
            (plus + events.tiles[event].to(LONG) * VECTOR).store(total)
        with code.loop(0, stride, VECTOR) as j:
            at = row + j
            changed = rule.changed(
                at.load(VECTOR), (plus + j).load(VECTOR), (minus + j).load(VECTOR), numbers
            )
            at.store(changed)
            (plus + j).store(code.constant(0, FLOAT.of(VECTOR)))

    rows: dict[str, Kind] = dict.fromkeys(("row", "trace", "sent", "post", "plus", "minus"), Floats)
    sizes = dict.fromkeys(("step", "batch", "ins", "stride"), LONG)
    return function(
        "spiked", body, {**rows, **Events.KINDS, **sizes, **dict.fromkeys(RuleNumbers.NAMES, FLOAT)}
    )


def _of_event(code: Code, bits: Shorts, traces: Floats, batch: Value) -> Value:
    """The sum over samples of an input's trace, at those of 16 outputs that spiked in the sample."""
    total = code.variable(0, FLOAT.of(VECTOR))
    with code.loop(0, batch) as b:
        total.value = total.value + bits[b].mask(VECTOR).select(traces[b].spread(VECTOR), 0)
    return total.value
