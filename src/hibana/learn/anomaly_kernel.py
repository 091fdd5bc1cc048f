"""The loops of :class:`hibana.learn.AnomalyDetector`, which run natively and are printed as C."""

import math
from typing import Any

from hibana.runtime.kernels import FLOAT, INT, LONG, Bytes, Code, Floats, Shorts, Value, kernel

__all__ = ["ARRAYS", "GROUPS", "NEURONS", "TIMES", "WINDOW", "score_steps", "step"]

WINDOW = 64
"""Steps that the neurons of the first half of the groups see."""
TIMES = tuple(2.0**k for k in range(7))
"""Time constants of the leaky sums in steps."""
WINDOWED, SUMMED, NEURONS = 192, 64, 6
"""Groups of neurons that see the last steps; groups that see leaky sums; neurons in each."""
GROUPS = WINDOWED + SUMMED
SUMS = 2 * len(TIMES)
BINS, LOWEST, PER_OCTAVE = 160, 2.0**-4, 8
"""Bins of a histogram, its lower end, and bins in an octave."""
RARE = 0.1
"""Count of a pattern that never occurred."""
TAIL = 0.01
"""Share of steps from which the tail is estimated."""
PRIOR_STEPS, PRIOR_EXCESS = 5.0, 0.1
"""The tail's prior: number of excesses, and their mean in octaves."""
WARM_UP = 128
"""Steps of a series without a score."""
LARGEST = 1000.0
"""Largest standardized value."""
LARGEST_SUMMED = 20.0
"""Largest value that leaky neurons sum."""
ADAPTATION, ADAPTATION_TIME = 0.5, 400.0
"""Share of an earlier surprise that is subtracted, and its time constant in steps."""
ARRAYS = {
    "moments": 6,
    "features": WINDOW + 1 + SUMS,
    "sums": 3 * SUMS,
    "tails": 2 * BINS,
    "counts": GROUPS << NEURONS,
}
"""Length of each array of a column's state: float32, counts are 16-bit integers.

Moments are the number of learned steps and of steps since the reset, mean and variance, adaptation, and the
last value. Features are the last values, a zero, and the standardized sums; sums are followed by their means
and variances.
"""
_COUNT, _AGE, _MEAN, _VARIANCE, _ADAPTATION, _LAST = range(6)
_LOG10_OF_2 = math.log10(2)


@kernel
def score_steps(
    code: Code,
    begin: Value,
    end: Value,
    *,
    inputs: Floats,
    scores: Floats,
    moments: Floats,
    features: Floats,
    sums: Floats,
    tails: Floats,
    counts: Shorts,
    first: Bytes,
    second: Bytes,
    cuts: Floats,
    steps: Value,
    columns: Value,
    learn: Value,
    memory: Value,
) -> None:
    """Writes the score of each step of `inputs`, ``[steps, columns]``, to `scores`.

    Args:
        code: the function under construction.
        begin: unused; a call has one work item.
        end: unused.
        inputs: values, ``[steps, columns]``.
        scores: ``[steps]``.
        moments: see :data:`ARRAYS`, ``[columns, ...]``; so are `features`, `sums`, `tails` and `counts`.
        features: last values and standardized sums.
        sums: leaky sums with their moments.
        tails: histograms of values and of surprises.
        counts: counts of the patterns of each group.
        first: index of the feature that a neuron adds.
        second: index of the feature that it subtracts.
        cuts: its threshold.
        steps: number of steps.
        columns: number of columns.
        learn: 1 to learn, else 0.
        memory: number of steps at which counts are halved.
    """
    state: dict[str, Any] = {"moments": moments, "features": features, "sums": sums, "tails": tails}
    state["counts"] = counts
    tables = first, second, cuts
    with code.loop(0, steps, name="t") as t:
        row = (inputs + t * columns).named("row")
        step(code, row, scores + t, columns, learn.differs(0), memory.real(FLOAT), tables, state)


def step(
    code: Code,
    inputs: Floats,
    score: Floats,
    columns: Value | int,
    learn: Value,
    memory: Value | float,
    tables: tuple[Bytes, Bytes, Floats],
    state: dict[str, Any],
) -> None:
    """Adds a step of all columns: writes the largest score to `score`.

    Args:
        code: the function under construction.
        inputs: values, ``[columns]``.
        score: a number.
        columns: number of columns.
        learn: whether to learn.
        memory: number of steps at which counts are halved.
        tables: the two features and the threshold of each neuron.
        state: addresses of :data:`ARRAYS`, ``[columns, ...]``.
    """
    score[0] = -1e30
    with code.loop(0, columns, name="column") as column:
        arrays: dict[str, Any] = {
            name: (state[name] + column * size).named(f"its_{name}") for name, size in ARRAYS.items()
        }
        moments, features, sums, tails, counts = arrays.values()
        count = moments[_COUNT].named("count")
        value = _standardize(code, inputs[column].named("x"), moments, learn, count, _MEAN, _VARIANCE)
        value = _clipped(value, LARGEST).named("z")
        _add_features(code, value, moments, features, sums, learn, count)
        surprise = _surprise(code, features, counts, tables, learn, count)
        level = _tail(code, tails, abs(value).named("distance"), learn, count).named("level")
        pattern = _tail(code, tails + BINS, surprise, learn, count).named("pattern")
        with code.when(learn):
            moments[_COUNT] = count + 1
            with code.when(moments[_COUNT] >= memory):
                moments[_COUNT] = moments[_COUNT] * 0.5
                with code.loop(0, ARRAYS["tails"], name="i") as i:
                    tails[i] = tails[i] * 0.5
                with code.loop(0, ARRAYS["counts"], name="i") as i:
                    counts[i] = counts[i] >> 1
        age = moments[_AGE].named("age")
        moments[_AGE] = (age < WARM_UP).select(age + 1, age)
        both = _larger(level, pattern) + (level + pattern) * 0.5
        result = (age < WARM_UP).select(0.0, both).named("surprise")
        decay = math.exp(-1 / ADAPTATION_TIME)
        adaptation = (moments[_ADAPTATION] * (age > 0).select(code.constant(decay, FLOAT), 0.0)).named(
            "adaptation"
        )
        moments[_ADAPTATION] = _larger(adaptation, result)
        adapted = (result - adaptation * ADAPTATION).named("adapted")
        with code.when(adapted > score[0]):
            score[0] = adapted


def _larger(left: Value, right: Value) -> Value:
    """The larger of two floats."""
    return (left > right).select(left, right)


def _clipped(value: Value, limit: float) -> Value:
    """`value` within ± `limit`."""
    low = (value < -limit).select(-limit, value)
    return (low > limit).select(limit, low)


def _standardize(
    code: Code, x: Value, moments: Floats, learn: Value, count: Value, mean: int, variance: int
) -> Value:
    """`x` in deviations from the mean of the steps before, which are then updated."""
    difference = (x - moments[mean]).named("difference")
    deviation = moments[variance].call("sqrt") + 1e-30
    result = (count > 1).select(difference / deviation, 0.0).named("standardized")
    with code.when(learn):
        share = (1.0 / (count + 1)).named("share")
        moments[mean] = moments[mean] + difference * share
        step = difference * difference * (1.0 - share)
        moments[variance] = moments[variance] + (step - moments[variance]) * share
    return result


def _add_features(
    code: Code, value: Value, moments: Floats, features: Floats, sums: Floats, learn: Value, count: Value
) -> None:
    """Updates the features with a new value; the first one of a series counts for all before it."""
    is_first = moments[_AGE].equals(0).named("is_first")
    with code.loop(0, WINDOW - 1, name="i") as i:
        features[(WINDOW - 1) - i] = is_first.select(value, features[(WINDOW - 2) - i])
    features[0] = value
    clipped = _clipped(value, LARGEST_SUMMED).named("clipped")
    last = is_first.select(clipped, moments[_LAST])
    change = abs(clipped - last).named("change")
    moments[_LAST] = clipped
    for part, number in enumerate((clipped, change)):
        rate = code.variable(1.0, FLOAT)
        with code.loop(part * len(TIMES), (part + 1) * len(TIMES), name="k") as k:
            old = is_first.select(number, sums[k]).named("old")
            new = (old + (number - old) * rate.value).named("sum")
            sums[k] = new
            rate.value = rate.value * 0.5
            its_moments = (sums + k + SUMS).named("its_moments")
            features[k + (WINDOW + 1)] = _clipped(
                _standardize(code, new, its_moments, learn, count, 0, SUMS), LARGEST
            )


def _surprise(
    code: Code,
    features: Floats,
    counts: Shorts,
    tables: tuple[Bytes, Bytes, Floats],
    learn: Value,
    count: Value,
) -> Value:
    """The mean surprise of the patterns of spikes, in bits."""
    total = code.variable(0.0, FLOAT)
    with code.loop(0, GROUPS, name="g") as g:
        pattern = code.variable(0)
        with code.loop(0, NEURONS, name="i") as i:
            k = (g * NEURONS + i).named("k")
            first, second, cuts = tables
            is_spike = features[first[k].to(LONG)] - features[second[k].to(LONG)] > cuts[k]
            pattern.value = pattern.value * 2 + is_spike.select(code.constant(1), 0)
        place = (counts + (g << NEURONS) + pattern.value).named("its_count")
        number = place[0].named("number")
        share = (number.to(INT).real(FLOAT) + RARE) / (count + 1)
        total.value = total.value - share.call("log2")
        with code.when(learn):
            place[0] = number + 1
    return (total.value * (1 / GROUPS)).named("bits")


def _tail(code: Code, histogram: Floats, y: Value, learn: Value, count: Value) -> Value:
    """Minus the decadic logarithm of the tail's probability at `y`, which is then added to the histogram."""
    ratio = 2 ** (1 / PER_OCTAVE)
    edge, above = code.variable(LOWEST, FLOAT), code.variable(count)
    quantile = code.variable(LOWEST * 2 ** (BINS / PER_OCTAVE), FLOAT)
    tail, excess, larger = (code.variable(0.0, FLOAT) for _ in range(3))
    bin_ = code.variable(0)
    with code.loop(0, BINS, name="i") as i:
        here, left, rest = histogram[i].named("here"), edge.value.named("left"), above.value.named("rest")
        right = (left * ratio).named("right")
        with code.when(rest <= count * TAIL):
            with code.when(excess.value.equals(0)):
                quantile.value = left
                tail.value = rest
            excess.value = excess.value + rest
        with code.when(right <= y):
            bin_.value = (i + 1).smaller(code.constant(BINS - 1))
        share = (right <= y).select(0.0, (left <= y).select(here * 0.5, here))
        larger.value = larger.value + share
        above.value = rest - here
        edge.value = right
    with code.when(learn):
        place = (histogram + bin_.value).named("place")
        place[0] = place[0] + 1
    bins = excess.value - tail.value * 0.5 + PRIOR_STEPS * PRIOR_EXCESS * PER_OCTAVE
    slope = ((tail.value + PRIOR_STEPS) / bins).named("slope")
    octaves = (y / quantile.value).call("log2")
    extended = octaves * slope * (PER_OCTAVE / math.log(10))
    is_tail = (y > quantile.value).named("is_tail")
    share = (is_tail.select(tail.value, larger.value) + 0.5) / (count + 1)
    return is_tail.select(extended, 0.0) - share.call("log2") * _LOG10_OF_2
