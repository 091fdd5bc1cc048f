"""The kernel that takes a step into the traces of synapses and sums their gradient, in one pass over them."""

from typing import NamedTuple

from hibana.runtime.kernels import Code, Floats, Value, kernel

__all__ = ["Terms", "move"]

VECTOR = 16
"""Numbers in a vector."""


class Terms(NamedTuple):
    """What a pass does."""

    parts: int
    """Numbers of a synapse."""
    moves: bool
    """Whether it takes a step into the traces."""
    reads: bool
    """Whether it sums the gradient."""

    @property
    def coefficients(self) -> int:
        """Rows of coefficients."""
        return self.parts * ((self.parts + 1) * self.moves + self.reads)


@kernel
def move(
    code: Code,
    begin: Value,
    end: Value,
    *,
    traces: Floats,
    coefficients: Floats,
    inputs: Floats,
    gradient: Floats,
    rows: Value,
    neurons: Value,
    count: Value,
    terms: Terms,
) -> None:
    """Take a step into the traces of neurons `begin` to `end`, in place, and sum their gradient over rows.

        e_i = sum_j A_ij e_j + k_i x,   gradient += sum_i b_i e_i

    Args:
        code: the function.
        begin: the first neuron.
        end: the one after the last.
        traces: e, ``[parts, rows, neurons, count]``.
        coefficients: A, k and b, those that `terms` needs, ``[terms.coefficients, rows, neurons]``.
        inputs: x, ``[rows, count]``.
        gradient: ``[neurons, count]``.
        rows: samples, or windows of a convolution.
        neurons: outputs.
        count: inputs.
        terms: what to do.
    """
    each = rows * neurons
    with code.loop(begin, end) as j, code.loop(0, rows) as row:
        at = row * neurons + j
        numbers = [coefficients[each * k + at].spread(VECTOR) for k in range(terms.coefficients)]
        here = [traces + (each * i + at) * count for i in range(terms.parts)]
        for v, there in code.vectors(count, VECTOR):
            values = [(part + v).load(VECTOR, there) for part in here]
            rest = iter(numbers)
            if terms.moves:
                x = (inputs + row * count + v).load(VECTOR, there)
                before, values = values, [next(rest) * values[0] for _ in here]
                for old in before[1:]:
                    values = [value + next(rest) * old for value in values]
                values = [value + next(rest) * x for value in values]
                for part, value in zip(here, values, strict=True):
                    (part + v).store(value, there)
            if terms.reads:
                total = (gradient + j * count + v).load(VECTOR, there)
                for value in values:
                    total = total + next(rest) * value
                (gradient + j * count + v).store(total, there)
