"""Chooses the residuals of a step: forward values that are stored for the backward pass.

The backward pass computes all other values that it needs again, from residuals of the same step and the step
before. Storing a value costs its bits, computing it again an effort in the same unit. A local search from
several starts minimizes the total.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import inf

from hibana.compiler.graph.analysis import dependents, evaluation_order
from hibana.compiler.graph.step import Step, Value

DRAW_EFFORT = 4.0
"""The effort of drawing a random number again, in bits: more than storing a boolean that depends on it, less
than storing a number. Numbers that depend only on draws are never stored."""

SEARCH_LIMIT = 1 << 16
"""Maximum values that a local search visits: about 200 sets of a step with 300 values."""

Residuals = tuple[Value, ...]


def cost_in_bits(value: Value, number_bits: int = 32) -> int:
    """The cost of storing `value` for one neuron and step."""
    return 1 if value.boolean else number_bits


def cheapest_residuals(step: Step, roots: Sequence[Value], required: Sequence[Value] = ()) -> Residuals:
    """The values to store for a backward pass with results `roots`: `required`, then the cheapest others."""
    search = Search(step, roots, required)
    chosen = min(map(search.improve, search.starts()), key=search.cost)
    return (*required, *(value for value in sorted(chosen, key=cost_in_bits) if value not in required))


class Search:
    """The candidates for the residuals of a step, and the costs of sets of them."""

    def __init__(self, step: Step, roots: Sequence[Value], required: Sequence[Value] = ()) -> None:
        self.nexts = step.nexts
        self.required = frozenset(required)
        self.roots = _forward_roots(roots)
        order = evaluation_order(self.roots, ())
        used = {*order, *evaluation_order(self._sources(order), ())}
        drawn = _drawn_numbers(used)
        last_first = reversed(evaluation_order([*step.nexts, *roots], ()))
        self.candidates = [v for v in last_first if v in used and v not in drawn and self._is_candidate(v)]

    def _is_candidate(self, value: Value) -> bool:
        """Whether storing `value` can help: a step computes it, and no kernel can read it anyway."""
        return not value.is_available and (not value.is_previous or value in self.nexts)

    def _sources(self, values: Iterable[Value]) -> list[Value]:
        """The expressions with which the step before computed the previous states in `values`."""
        indices = sorted({value.data for value in values if value.is_previous})
        return [self.nexts[i] for i in indices]

    def cost(self, residuals: Residuals) -> float:
        """The bits of the stored `residuals` and the effort of recomputing all other values from them.

        Infinite if the backward pass needs a value that cannot be recomputed from them.
        """
        stored = self.required.union(residuals)
        now = [value for value in evaluation_order(self.roots, stored) if not value.is_available]
        before = evaluation_order(self._sources(now), stored)
        if any(map(_must_be_stored, now)) or any(v.is_previous or _must_be_stored(v) for v in before):
            return inf
        return self.bits(residuals) + sum(map(_effort, (*now, *before)))

    def bits(self, residuals: Iterable[Value]) -> int:
        """Bits per neuron and step to store `residuals`, without the required ones.

        The input costs one bit less than other numbers, since the forward pass need not write it.
        """
        chosen = [value for value in residuals if value not in self.required]
        return sum(map(cost_in_bits, chosen)) - any(value.is_input for value in chosen)

    def starts(self) -> Iterator[Residuals]:
        """Three sets of values from which the search starts.

        They are the states, the values that the backward pass uses, and all booleans.
        """
        for values in (self.nexts, self.roots, [v for v in self.candidates if v.boolean]):
            yield tuple(v for v in self.candidates if v in values or _must_be_stored(v))

    def improve(self, residuals: Residuals) -> Residuals:
        """`residuals` after removing, adding and replacing values as long as that lowers the cost."""
        least, budget = self.cost(residuals), SEARCH_LIMIT
        while True:
            for neighbour in self._neighbours(residuals):
                budget -= len(self.candidates)
                if self.bits(neighbour) < least and (cost := self.cost(neighbour)) < least:
                    residuals, least = neighbour, cost
                    break
                if budget < 0:
                    return residuals
            else:
                return residuals

    def _neighbours(self, residuals: Residuals) -> Iterator[Residuals]:
        """All sets that differ from `residuals` by one value removed, added or replaced."""
        for value in sorted(residuals, key=cost_in_bits, reverse=True):
            yield tuple(v for v in residuals if v is not value)
        unused = [value for value in self.candidates if value not in residuals]
        for value in unused:
            yield (*residuals, value)
        for new in unused:
            for old in residuals:
                yield tuple(new if v is old else v for v in residuals)


def _must_be_stored(value: Value) -> bool:
    """Whether `value` cannot be computed again: the input, and products, which are too expensive."""
    return bool(value.is_input or value.is_product)


def _forward_roots(roots: Sequence[Value]) -> list[Value]:
    """The forward values that the backward pass with the results `roots` uses."""
    values = evaluation_order(roots, ())
    backward = dependents(values, (value for value in values if value.is_gradient))
    used = [*roots, *(argument for value in values if value in backward for argument in value.args)]
    return list(dict.fromkeys(v for v in used if v not in backward and not v.is_available))


def _drawn_numbers(values: Iterable[Value]) -> set[Value]:
    """The numbers in `values` that depend only on draws and available values."""
    drawn: set[Value] = set()
    for value in evaluation_order(values, ()):
        is_function_of_draws = any(argument in drawn for argument in value.args)
        is_function_of_draws &= all(argument in drawn or argument.is_available for argument in value.args)
        if value.is_draw or (is_function_of_draws and not value.boolean):
            drawn.add(value)
    return drawn


def _effort(value: Value) -> float:
    """The effort of computing `value` again, in bits."""
    if not value.args:
        return DRAW_EFFORT if value.is_draw else 0.0
    return 0.1 if value.operation is None else value.operation.effort
