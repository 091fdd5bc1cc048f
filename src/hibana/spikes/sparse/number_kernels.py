"""Kernel of the product of any numbers and sparse synapses without delays, and of its input gradient.

Blocks of rows are transposed, so that a synapse multiplies vectors with the numbers of 16 rows.
"""

from hibana.runtime.kernels import FLOAT, LONG, Code, Floats, Ints, Longs, Pointer, Value, kernel
from hibana.spikes.simd.lists import WORD
from hibana.spikes.simd.rows import VECTOR, transpose

__all__ = ["LANES", "multiply"]

LANES = 32
"""Rows that :func:`multiply` multiplies at a time: their sums for 2048 outputs take 256 KiB."""


@kernel
def multiply(
    code: Code,
    begin: Value,
    end: Value,
    *,
    row_starts: Longs,
    targets: Ints,
    weight: Floats,
    source: Floats,
    target: Floats,
    rows: Value,
    inputs: Value,
    outputs: Value,
    transposed: bool,
) -> None:
    """Writes the output ``[rows, outputs]`` of the input `source`, ``[rows, inputs]``.

    If `transposed`, `source` is an output gradient, and the result is the input gradient. A work item is a
    block of LANES rows.
    """
    with (
        code.scratch((Floats, outputs * LANES), (Floats, WORD * LANES)) as (output_block, input_block),
        code.loop(begin, end) as item,
    ):
        first, lanes = item * LANES, code.constant(LANES)
        count = (rows - first).smaller(LANES)
        output_block.clear(outputs * LANES)
        if transposed:
            transpose(code, output_block, lanes, source + first * outputs, outputs, count, outputs)
        else:
            input_block.clear(WORD * LANES)
        with code.loop(0, inputs, WORD) as word:
            sources, offset = (inputs - word).smaller(WORD), first * inputs + word
            if not transposed:
                transpose(code, input_block, lanes, source + offset, inputs, count, sources)
            with code.loop(0, sources) as k:
                at_input = input_block + k * LANES
                factors = [
                    code.constant(0.0, FLOAT.of(VECTOR)) if transposed else factor
                    for factor in _load(at_input, LANES)
                ]
                totals = [code.variable(factor) for factor in factors]
                with code.loop(row_starts[word + k], row_starts[word + k + 1]) as synapse:
                    at_output = output_block + targets[synapse].to(LONG) * LANES
                    spread_weight = weight[synapse].spread(VECTOR)
                    for v, (total, sums) in enumerate(zip(totals, _load(at_output, LANES), strict=True)):
                        if transposed:
                            total.value = spread_weight.fused(sums, total.value)
                        else:
                            (at_output + VECTOR * v).store(spread_weight.fused(factors[v], sums))
                if transposed:
                    for v, total in enumerate(totals):
                        (at_input + VECTOR * v).store(total.value)
            if transposed:
                transpose(code, target + offset, inputs, input_block, lanes, sources, count)
        if not transposed:
            transpose(code, target + first * outputs, outputs, output_block, lanes, outputs, count)


def _load(at: Pointer, count: int) -> list[Value]:
    """The vectors of `count` floats at an address."""
    return [(at + k).load(VECTOR) for k in range(0, count, VECTOR)]
