"""A row of weights in the kernel of a pair rule: how it takes events, and a spike of its input.

Of an input's traces in three samples all eight sums are written down, once for a step. What a neuron adds for
them is then one lookup by the three bits that say in which of the samples it spiked.
"""

from typing import ClassVar

from hibana.learn.plasticity.neurons import VECTOR
from hibana.runtime.kernels import (
    BYTE,
    FLOAT,
    INT,
    LONG,
    Bytes,
    Code,
    Floats,
    Function,
    Ints,
    Kind,
    Longs,
    Pointer,
    Value,
    function,
)

__all__ = ["BLOCK", "GROUP", "Events", "Rule", "RuleNumbers", "catch_up_of", "spiked_of"]

BLOCK = 2 * VECTOR
"""Outputs whose sums are taken at once; a row of weights is padded to a multiple of it."""
GROUP = 3
"""Samples whose bits choose one of eight sums, which are a vector that AVX2 permutes at once."""
_SUMS = 2**GROUP


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
        width = weight.type.width
        lower, upper = numbers.lower.spread(width), numbers.upper.spread(width)
        plus = plus * numbers.a_plus.spread(width)
        total = weight + (plus * (upper - weight) if self.soft else plus)
        if minus is not None:
            minus = minus * numbers.a_minus.spread(width)
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
        "bits": Bytes,
        "first": Longs,
        "table": Floats,
    }

    def __init__(self, tiles: Ints, at_step: Ints, bits: Bytes, first: Longs, table: Floats) -> None:
        self.tiles = tiles
        """Of each event, which block of outputs."""
        self.at_step = at_step
        """Of each event, its step in the chunk."""
        self.bits = bits
        """Of each event, each group of samples and each output of the block, in which samples it spiked."""
        self.first = first
        """Of each step, its first event."""
        self.table = table
        """Of each step missed and each group of samples, the sums of the traces of its subsets."""

    @property
    def all(self) -> tuple[Pointer, ...]:
        return self.tiles, self.at_step, self.bits, self.first, self.table


def catch_up_of(rule: Rule) -> Function:
    """Brings a row of weights and the traces of its input from `done` steps of the chunk to `until`."""

    def body(
        code: Code, row: Floats, trace: Floats, done: Value, until: Value, groups: Value, **rest: Value
    ) -> None:
        events = Events(**{name: rest.pop(name) for name in Events.KINDS})  # type: ignore[arg-type] # pointers
        numbers = RuleNumbers(*rest.values())
        with code.loop(done, until) as step:
            table = events.table + (step - done) * groups * _SUMS
            _write_sums(code, trace, table, groups, numbers.decay_pre)
        with code.loop(events.first[done], events.first[until]) as event:
            sums = events.table + (events.at_step[event].to(LONG) - done) * groups * _SUMS
            plus = _of_event(code, events.bits, event, sums, groups)
            at = row + events.tiles[event].to(LONG) * BLOCK
            at.store(rule.changed(at.load(BLOCK), plus, None, numbers))

    kinds: dict[str, Kind] = {
        "row": Floats,
        "trace": Floats,
        **Events.KINDS,
        **dict.fromkeys(("done", "until", "groups"), LONG),
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
        groups: Value,
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
        _write_sums(code, trace, events.table, groups)
        with code.loop(events.first[step], events.first[step + 1]) as event:
            total = _of_event(code, events.bits, event, events.table, groups)
            (plus + events.tiles[event].to(LONG) * BLOCK).store(total)
        with code.loop(0, stride, VECTOR) as j:
            at = row + j
            changed = rule.changed(
                at.load(VECTOR), (plus + j).load(VECTOR), (minus + j).load(VECTOR), numbers
            )
            at.store(changed)
            (plus + j).store(code.constant(0, FLOAT.of(VECTOR)))

    rows: dict[str, Kind] = dict.fromkeys(("row", "trace", "sent", "post", "plus", "minus"), Floats)
    sizes = dict.fromkeys(("step", "batch", "groups", "ins", "stride"), LONG)
    return function(
        "spiked", body, {**rows, **Events.KINDS, **sizes, **dict.fromkeys(RuleNumbers.NAMES, FLOAT)}
    )


def _write_sums(code: Code, trace: Floats, table: Floats, groups: Value, decay: Value | None = None) -> None:
    """Writes the sums of all subsets of each group of traces, which `decay` is multiplied with before."""
    with code.loop(0, groups) as group:
        sums = code.constant(0, FLOAT.of(_SUMS))
        for i in range(GROUP):
            value = trace[group * GROUP + i]
            if decay is not None:
                value = value * decay
                trace[group * GROUP + i] = value
            has = code.constant(sum(1 << place for place in range(_SUMS) if place >> i & 1), BYTE).mask(_SUMS)
            sums = sums + has.select(value.spread(_SUMS), 0)
        (table + group * _SUMS).store(sums)


def _of_event(code: Code, bits: Bytes, event: Value, sums: Floats, groups: Value) -> Value:
    """The sum over samples of an input's trace, at those of a block of outputs that spiked in the sample."""
    total = code.variable(0, FLOAT.of(BLOCK))
    with code.loop(0, groups) as group:
        index = (bits + (event * groups + group) * BLOCK).load(BLOCK).to(INT)
        each = (sums + group * _SUMS).load(_SUMS)
        found = [each.looked_up(index.part(i, _SUMS)) for i in range(0, BLOCK, _SUMS)]
        while len(found) > 1:
            found = [a.shuffled(b, range(2 * a.type.width)) for a, b in zip(*[iter(found)] * 2, strict=True)]
        total.value = total.value + found[0]
    return total.value
