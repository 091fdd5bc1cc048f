"""A linear layer on dense inputs of several steps at once, which reads each weight once for all of them.

The order of sums is that of single steps.
"""

from hibana.network.lowering import spread, vector_parts
from hibana.network.native.emitter import PackedRows
from hibana.runtime.kernels import LONG, Bytes, Code, Function, Kind, Pointer, Value, function

__all__ = ["dense_product", "group_size", "is_dense"]

STEPS = 5
"""Steps of a dense input that are multiplied at once: their sums, a row of weights and an input take 13 of
the 16 registers of AVX2. On Zen 3 and for T=25, 4 and 6 steps take 1.2 and 1.05 times as long.
"""
MAX_GROUPS, MAX_RESULT_BYTES = 5, 96 << 10
"""Bounds of the groups of `STEPS` that are computed together, and of the bytes of their results. All groups
read the weights of a few outputs, which stay in L2, before the weights of the next outputs.
"""
REGISTER_BYTES = 64
"""Bytes of sums of a step: one register of AVX-512, two of AVX2; more do not fit for all steps."""
MIN_STEPS = 3
"""Fewest steps for which a product of `STEPS`, with the last steps repeated, is faster than single steps."""


def group_size(result_bytes: int) -> int:
    """The number of steps that are multiplied in one call, if the result of a step has `result_bytes`."""
    return STEPS * max(1, min(MAX_GROUPS, MAX_RESULT_BYTES // (STEPS * result_bytes)))


def is_dense(code: Code, inputs: Pointer, stride: Value, count: Value, size: int) -> Value:
    """Whether there are at least :data:`MIN_STEPS` steps, and most of their inputs are not zero.

    Args:
        code: the code of the calling function.
        inputs: the input of the first step, of `size` numbers.
        stride: numbers from the input of one step to that of the next.
        count: the number of steps.
        size: numbers of an input.
    """
    width, nonzero = 32, code.variable(0)
    with code.loop(0, (count >= MIN_STEPS).select(count, 0)) as k:
        for offset, mask in code.vectors(code.constant(size), width):
            differs = (inputs + k * stride + offset).load(width, mask).differs(0)
            nonzero.value = nonzero.value + differs.word().popcount().to(LONG)
    return nonzero.value * 2 > count * size


def dense_product(packed: PackedRows, offset: int, result_bytes: int) -> Function:
    """A function that multiplies `count` inputs, `stride` numbers apart, with the weights `packed`.

    It computes :data:`STEPS` steps at once; the last input is repeated to complete a group. The sums of a
    step begin at `offset` in its results, which take `result_bytes`.
    """
    number = packed.number
    per_register = REGISTER_BYTES // number.element.size

    def body(
        code: Code, inputs: Pointer, stride: Value, count: Value, weights: Bytes, results: Bytes
    ) -> None:
        """Writes the product, for one vector of outputs after the other."""
        zero = code.constant(0, number.element)
        # a chunk is its first output, its number of outputs and the byte offset of its rows; a part is a
        # chunk with the first output and the width of one vector in it
        parts = [(chunk, *part) for chunk in packed.chunks for part in vector_parts(chunk[1], per_register)]
        for (first, width, place), begin, n in parts:
            rows = (weights + place).of(number)
            with code.loop(0, count, STEPS) as t:
                steps = [inputs + (count - 1).smaller(t + s) * stride for s in range(STEPS)]
                totals = [code.variable(spread(zero, n)) for _ in range(STEPS)]
                with code.loop(0, packed.inputs) as i:
                    row = (rows + (i * width + begin)).load(n)
                    for x, total in zip(steps, totals, strict=True):
                        total.value = total.value + spread(x[i], n) * row
                for s, total in enumerate(totals):
                    out = (results + ((t + s) * result_bytes + offset)).of(number)
                    (out + (first + begin)).store(packed.with_bias(total.value, weights, first + begin))

    kinds: dict[str, Kind] = {"inputs": number, "stride": LONG, "count": LONG}
    return function("dense_product", body, kinds | {"weights": Bytes, "results": Bytes})
