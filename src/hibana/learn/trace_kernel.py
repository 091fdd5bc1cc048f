"""The kernel that takes a step into the traces of synapses, and their gradient, in one pass over them."""

from typing import NamedTuple

from hibana.runtime.kernels import Code, Floats, Value, kernel

__all__ = ["Terms", "move"]

VECTOR = 16
"""Numbers in a vector."""


class Terms(NamedTuple):
    """Which coefficients there are, each for each row and neuron; the others are zero."""

    parts: int
    """How many numbers a synapse has."""
    moves: bool
    """Whether a step is taken into the traces; else they are read alone, for the gradient."""
    transition: tuple[tuple[int, int], ...]
    """Which part (first) has a share of which one before the step."""
    to_input: tuple[int, ...]
    """Which part the input goes into."""
    gradient: tuple[int, ...]
    """Which part, after the step, is a part of the gradient."""

    @property
    def coefficients(self) -> int:
        """How many coefficients there are."""
        return len(self.transition) + len(self.to_input) + len(self.gradient)


@kernel
def move(
    code: Code,
    begin: Value,
    end: Value,
    *,
    parts: Floats,
    coefficients: Floats,
    inputs: Floats,
    found: Floats,
    rows: Value,
    neurons: Value,
    count: Value,
    terms: Terms,
) -> None:
    """Of neurons `begin` to `end` the traces after a step, in place, and the sum over rows for the gradient.

        e_i = sum_j A_ij e_j + k_i x,   found += sum_i b_i e_i

    Args:
        code: the function.
        begin: the first neuron.
        end: the one after the last.
        parts: e, ``[parts, rows, neurons, count]``.
        coefficients: A, k and b in the order of `terms`, ``[terms.coefficients, rows, neurons]``.
        inputs: x, ``[rows, count]``.
        found: the gradient, ``[neurons, count]``; not read where `terms` has none.
        rows: samples, or windows of a convolution.
        neurons: outputs.
        count: inputs.
        terms: which coefficients there are.
    """
    each = rows * neurons
    with code.loop(begin, end) as j, code.loop(0, rows) as row:
        at = row * neurons + j
        numbers = [coefficients[each * k + at].spread(VECTOR) for k in range(terms.coefficients)]
        here = [parts + (each * i + at) * count for i in range(terms.parts)]
        for v, there in code.vectors(count, VECTOR):
            before = [(part + v).load(VECTOR, there) for part in here]
            given, after = iter(numbers), before
            if terms.moves:
                x = (inputs + row * count + v).load(VECTOR, there)
                after = [x.constant(x.type, 0.0) for _ in here]
                for i, other in terms.transition:
                    after[i] = after[i] + next(given) * before[other]
                for i in terms.to_input:
                    after[i] = after[i] + next(given) * x
                for part, value in zip(here, after, strict=True):
                    (part + v).store(value, there)
            if terms.gradient:
                total = (found + j * count + v).load(VECTOR, there)
                for i in terms.gradient:
                    total = total + next(given) * after[i]
                (found + j * count + v).store(total, there)
