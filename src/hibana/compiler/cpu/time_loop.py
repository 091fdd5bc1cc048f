"""A loop over time on the CPU: the passes that compute one or several of its steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from hibana.compiler.cpu.row_pass import Pass, row_pass
from hibana.compiler.graph.analysis import Rewriting
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

    @property
    def earlier(self) -> int:
        """The position, in order of execution, of the previous step in time: -1, or 1 in a backward."""
        return -1 if self.forwards else 1

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
        rows = frozenset(r for r in (*leaves(stores), *stores) if r.rpartition(".")[0] in self.sequences)
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

        The row of a sequence is called ``{name}.0`` at the step that runs first, ``{name}.1`` at the second.
        """
        renamed: dict[tuple[str, str], Value] = {}
        unrolled: Stores = {}
        results: Stores = {}
        states: Stores = {}
        for i in range(count):
            before = _AtStep(self, i, {}, renamed).rewrite(self.before)
            if i == count - 1 and not self.forwards:  # no other step can be the first step in time
                before |= {name: self._initial_or(before[name], name, i) for name in self.initial}
            results = _AtStep(self, i, states | before, renamed).rewrite(self.stores)
            unrolled |= {f"{name}.{i}": v for name, v in results.items() if name in self.sequences}
            states = {name: results[name] for name in self.states if name in results}
        return unrolled | {name: v for name, v in results.items() if name not in self.sequences}

    def _initial_or(self, value: Value, name: str, position: int) -> Value:
        """`value` of the state `name`; the initial state if the step at `position` is the first in time."""
        is_first = Value("to_bool", (Value("scalar", data=f"is_first.{position}"),))
        return Value("where", (is_first, Value("row", data=f"{self.initial[name]}.{position}"), value))


class _AtStep(Rewriting):
    """Renames the leaves of a step that runs `index` steps after the first, or replaces them by `values`.

    A draw is named by how many steps of time it is made after the first step's draw.
    """

    def __init__(
        self, loop: TimeLoop, index: int, values: Mapping[str, Value], renamed: dict[tuple[str, str], Value]
    ) -> None:
        """`renamed` holds the new leaves by operation and name; all steps share the dictionary."""
        super().__init__()
        self.loop, self.index, self.values, self.renamed = loop, index, values, renamed

    def on_row(self, value: Value) -> Value:
        """The value that replaces the leaf `value` in this step, or the leaf under another name.

        A leaf that is read from a sequence, such as ``x``, gets the step's position in its name: ``x.2``.
        """
        name = str(value.data)
        is_sequence = name.removesuffix("_earlier") in self.loop.sequences
        return self.values.get(name) or self._renamed(value, self._position(name) if is_sequence else None)

    on_bits = on_row

    def on_draw(self, value: Value) -> Value:
        """The random number `value`, with its distance in time from the first step in its name."""
        return self._renamed(value, -self.loop.earlier * self._position(str(value.data)))

    def _position(self, name: str) -> int:
        """The position in the pass of the step that the leaf `name` belongs to; the first step has 0."""
        return self.index + (self.loop.earlier if name.endswith("_earlier") else 0)

    def _renamed(self, value: Value, position: int | None) -> Value:
        """The leaf `value`, with the step's `position` in its name; None: under its own name."""
        name = str(value.data)
        name = name if position is None else f"{name.removesuffix('_earlier')}.{position}"
        return self.renamed.setdefault((value.op, name), Value(value.op, data=name))
