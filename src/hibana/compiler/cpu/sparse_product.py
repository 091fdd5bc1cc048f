"""Products of several samples with a sparse matrix inside a kernel, in proportion to spikes and synapses.

A sparse matrix is three arrays (:mod:`hibana.compiler.graph.sparse`): the synapses of source j have the
weights and targets from ``row_starts[j]`` to ``row_starts[j + 1]``. ``y = x M`` adds the row of each source j
with a non-zero ``x[j]``. ``y = g M^T`` under a mask sums over the row of each source j whose bit is set.
"""

from hibana.compiler.cpu.row_function import LINE
from hibana.runtime.kernels import LONG, Bytes, Code, Function, Ints, Kind, Longs, Pointer, Value, function

SUMS = 4
"""Partial sums of a row: an addition that waits for the one before would take several times as long."""


def sparse_product(number: type[Pointer]) -> Function:
    """A function that computes ``y = x M`` for each sample.

    Its arguments ``x_step`` and ``y_step`` are the strides between samples; all `y_step` numbers of a sample
    are written.
    """
    kinds: dict[str, Kind] = {"x": number, "x_step": LONG, **_matrix(number), "y": number}
    return function("sparse_product", _product, kinds | _SIZES)


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
) -> None:
    """Writes the function :func:`sparse_product`."""
    width = LINE // x.element.size
    with code.loop(0, samples) as s:
        sources, out = x + s * x_step, y + s * y_step
        out.clear(y_step)
        for offset, valid in code.vectors(neurons, width):
            nonzero = (sources + offset).load(width, valid).differs(0)
            with code.each_bit(nonzero.word()) as bit:
                source = offset + bit.to(LONG)
                factor = sources[source]
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
