"""Products of several samples with a sparse matrix inside a kernel, in proportion to spikes and synapses.

A sparse matrix is three arrays (:mod:`hibana.compiler.graph.sparse`): the synapses of source j have the
weights and targets from ``row_starts[j]`` to ``row_starts[j + 1]``. ``y = x M`` adds the row of each source j
with a non-zero ``x[j]``. ``y = g M^T`` under a mask sums over the row of each source j whose bit is set.
"""

from hibana.compiler.cpu.product import list_nonzero
from hibana.compiler.cpu.row_function import LINE
from hibana.runtime.kernels import LONG, Bytes, Code, Function, Ints, Kind, Longs, Pointer, Value, function

AHEAD = 4
"""Spikes from the one whose row is added to the one whose row is prefetched."""
LINES = 2
"""Cache lines of a row that are prefetched; the processor goes on by itself."""
SUMS = 4
"""Partial sums of a row: an addition that waits for the one before would take several times as long."""


def sparse_product(number: type[Pointer]) -> Function:
    """A function that computes ``y = x M`` for each sample.

    Its arguments ``x_step`` and ``y_step`` are the strides between samples; all `y_step` numbers of a sample
    are written. ``places`` and ``values`` are memory for a list of the non-zero numbers of a sample.
    """
    kinds: dict[str, Kind] = {"x": number, "x_step": LONG, **_matrix(number), "y": number}
    return function("sparse_product", _product, {**kinds, **_SIZES, "places": Ints, "values": number})


def sparse_product_at(number: type[Pointer]) -> Function:
    """A function that computes ``y = g M^T`` for each sample at the set bits of its mask, and zero elsewhere.

    The bits of the mask from `neurons` on must be clear.
    """
    kinds: dict[str, Kind] = {"g": number, "g_step": LONG, **_matrix(number), "bits": Bytes}
    return function("sparse_product_at", _product_at, {**kinds, "bits_step": LONG, "y": number, **_SIZES})


_SIZES = dict.fromkeys(("y_step", "samples", "neurons"), LONG)


def _matrix(number: type[Pointer]) -> dict[str, Kind]:
    """The arguments that are the arrays of a sparse matrix."""
    return {"weights": number, "row_starts": Longs, "targets": Ints}


def _product(
    code: Code,
    x: Pointer,
    x_step: Value,
    weights: Pointer,
    row_starts: Longs,
    targets: Ints,
    y: Pointer,
    y_step: Value,
    samples: Value,
    neurons: Value,
    places: Ints,
    values: Pointer,
) -> None:
    """Writes the function :func:`sparse_product`."""
    list_numbers = list_nonzero(type(x))
    with code.loop(0, samples) as s:
        out = y + s * y_step
        out.clear(y_step)
        count = list_numbers(code, x + s * x_step, neurons, places, values)
        with code.loop(0, count) as e:
            later = row_starts[places[(e + AHEAD).smaller(count - 1)].to(LONG)]
            for array in (weights, targets):
                for line in range(LINES):
                    (array + (later + line * (LINE // 4))).prefetch(to_write=False)
            source, factor = places[e].to(LONG), values[e]
            with code.loop(row_starts[source], row_starts[source + 1]) as k:
                target = targets[k].to(LONG)
                out[target] = factor.fma(weights[k], out[target])


def _product_at(
    code: Code,
    g: Pointer,
    g_step: Value,
    weights: Pointer,
    row_starts: Longs,
    targets: Ints,
    bits: Bytes,
    bits_step: Value,
    y: Pointer,
    y_step: Value,
    samples: Value,
    neurons: Value,
) -> None:
    """Writes the function :func:`sparse_product_at`."""
    with code.loop(0, samples) as s:
        gradient, mask, out = g + s * g_step, bits + s * bits_step, y + s * y_step
        out.clear(y_step)
        with code.loop(0, neurons, 8) as i, code.each_bit(mask[i >> 3]) as bit:
            source = i + bit.to(LONG)
            first, last = row_starts[source], row_starts[source + 1]
            sums = [code.variable(code.constant(0, g.element)) for _ in range(SUMS)]
            grouped = first + ((last - first) & -SUMS)
            for count, begin, end in ((SUMS, first, grouped), (1, grouped, last)):
                with code.loop(begin, end, count) as k:
                    for i_sum in range(count):
                        value = gradient[targets[k + i_sum].to(LONG)]
                        sums[i_sum].value = value.fma(weights[k + i_sum], sums[i_sum].value)
            out[source] = (sums[0].value + sums[1].value) + (sums[2].value + sums[3].value)
