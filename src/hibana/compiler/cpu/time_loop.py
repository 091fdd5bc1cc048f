"""A loop over time on the CPU: the passes that compute one or several of its steps."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from hibana.compiler.cpu.row_pass import Pass, row_pass
from hibana.compiler.graph.analysis import Rewriting
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.loops import Loop
from hibana.compiler.graph.passes import Stores, leaves
from hibana.compiler.graph.step import Value
from hibana.runtime.kernels import Pointer

UNROLLED = 4
"""Steps of an unrolled pass: each reads its input and writes its output; states stay in registers."""


@dataclass(frozen=True)
class TimeLoop(Loop):
    """A loop over time in kernels of the CPU."""

    number: type[Pointer]
    """The pointer type of numbers."""
    calls: frozenset[str]
    """The operations whose vector functions are arguments of the kernel."""
    by_rows: bool
    """Whether the kernel runs over rows of neurons; otherwise over samples, as matrix products require."""
    nontemporal: bool = False
    """Whether unrolled steps write sequences by non-temporal stores."""

    @cached_property
    def step(self) -> Pass:
        """The pass over one step."""
        return self._pass("step", 1)

    @cached_property
    def steps(self) -> Pass | None:
        """:data:`UNROLLED` steps; None if a value between them would pass through memory."""
        if not self.by_rows or self.step.long or len(self.step.sequence) != 1:
            return None
        return self._pass("steps", UNROLLED)

    def passes(self) -> list[Pass]:
        """All passes of the loop."""
        return [self.step, self.steps] if self.steps else [self.step]

    def _pass(self, name: str, count: int) -> Pass:
        """The pass `name` over `count` successive steps."""
        stores = self._unrolled(count)
        rows = frozenset(row for row in (*leaves(stores), *stores) if row.at(0) in self.sequences)
        return row_pass(
            f"{self.direction}_{name}",
            stores,
            self.number,
            self.calls,
            sequences=rows,
            nontemporal=self.nontemporal and count > 1,
            aligned=self.by_rows,
        )

    def _unrolled(self, count: int) -> Stores:
        """The stores of `count` successive steps; states pass between them as values.

        The offsets of rows of sequences, and of draws, are those from the step that runs first.
        """
        leaf_values: dict[tuple[str, Leaf], Value] = {}
        unrolled: Stores = {}
        results: Stores = {}
        states: Stores = {}
        for i in range(count):
            time = i if self.forwards else -i
            before = _AtTime(self.sequences, time, {}, leaf_values).rewrite(self.before)
            if i == count - 1 and not self.forwards:  # no other step can be the first step in time
                before |= {leaf: _initial_or(before[leaf], leaf, time) for leaf in self.initial}
            results = _AtTime(self.sequences, time, states | before, leaf_values).rewrite(self.stores)
            unrolled |= {leaf.at(time): v for leaf, v in results.items() if leaf in self.sequences}
            states = {leaf: results[leaf] for leaf in self.states if leaf in results}
        return unrolled | {leaf: v for leaf, v in results.items() if leaf not in self.sequences}


def _initial_or(value: Value, leaf: Leaf, time: int) -> Value:
    """`value` of the state `leaf`; the initial state if the step at offset `time` is the first in time."""
    is_first = Value("to_bool", (Value("scalar", leaf=Leaf("is_first", offset=time)),))
    return Value("where", (is_first, Value("row", leaf=replace(leaf, kind="initial", offset=time)), value))


class _AtTime(Rewriting):
    """Shifts the leaves of a step by `time` steps of time, or replaces them by `values`.

    Only draws and the rows of `sequences`, such as the input, differ between steps.
    """

    def __init__(
        self,
        sequences: Container[Leaf],
        time: int,
        values: Mapping[Leaf, Value],
        leaf_values: dict[tuple[str, Leaf], Value],
    ) -> None:
        """`leaf_values` holds the new leaves by operation; all steps share the dictionary."""
        super().__init__()
        self.sequences, self.time, self.values, self.leaf_values = sequences, time, values, leaf_values

    def on_row(self, value: Value) -> Value:
        """The value that replaces the leaf `value` in this step, or the leaf of this step."""
        is_sequence = value.leaf.at(0) in self.sequences
        return self.values.get(value.leaf) or self._shifted(value, self.time if is_sequence else 0)

    on_bits = on_row

    def on_draw(self, value: Value) -> Value:
        """The random number `value` of this step."""
        return self._shifted(value, self.time)

    def _shifted(self, value: Value, time: int) -> Value:
        """The leaf `value`, `time` steps later."""
        leaf = value.leaf.at(value.leaf.offset + time)
        return self.leaf_values.setdefault((value.op, leaf), Value(value.op, leaf=leaf))
