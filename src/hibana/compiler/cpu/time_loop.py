"""A loop over time: the rows that it reads and writes, and the passes that compute one or several steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hibana.compiler.cpu.row_pass import Pass, is_long
from hibana.compiler.graph.analysis import Rewriting
from hibana.compiler.graph.passes import Stores, leaves
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step, Value
from hibana.runtime.kernels import Pointer

UNROLLED = 4
"""Steps of an unrolled pass: each reads its input and writes its output; states stay in registers."""


class SequenceRow(NamedTuple):
    """A row of a sequence ``[T, ...]``: it has another address at each step."""

    base: str
    """The kernel argument that is the sequence's address."""
    stride: str
    """The integer that is its stride over time, in numbers or, for bits, in bytes."""
    bits: bool = False


class StateRow(NamedTuple):
    """A row that the loop carries from step to step, by the names of two kernel arguments."""

    start: str
    """The address of its initial values; an empty name or a null address stands for zeros."""
    end: str
    """The address that receives its last values, or null."""


def sequence_rows(step: Step, stores: Stores, plan: Plan | None, direction: str) -> dict[str, SequenceRow]:
    """The sequences ``[T, ...]`` that a loop over time reads or writes, by the names of their rows.

    Args:
        step: the step of the cell.
        stores: the results of a step's pass in this `direction`.
        plan: the residuals that a forward writes or a backward reads.
        direction: ``"forward"`` or ``"backward"``.
    """
    stride = "step_size" if step.matrices else "neurons"
    rows = {"x": SequenceRow("input", "input_step")}
    if direction == "forward":
        rows[step.states[-1]] = SequenceRow("outputs", stride)
    else:
        rows["emitted_grad"] = SequenceRow("grad_outputs", "grad_outputs_step")
    for i, value in enumerate(plan.residuals if plan else ()):
        if not value.is_input:
            base = f"residual{i}_all"
            rows[f"residual{i}"] = SequenceRow(base, "row_bytes" if value.boolean else stride, value.boolean)
    rows |= {name: SequenceRow(f"{name}_all", stride) for name in stores if name.startswith("outer")}
    if "x_grad" in stores:
        rows["x_grad"] = SequenceRow("grad_input", stride)
    return rows


@dataclass(frozen=True)
class TimeLoop:
    """A loop over time, forward or backward.

    The step at time 0 is the *edge*: it reads the states before it from arguments of the kernel.
    """

    direction: str
    """``"forward"`` or ``"backward"``; a backward runs from the last step to the first."""
    stores: Stores
    """The results of one step, by row."""
    sequences: Mapping[str, SequenceRow]
    states: Mapping[str, StateRow]
    next_values: Mapping[str, str]
    """For each row of state, the store that is its value at the step that runs next."""
    inner: Stores
    """For each leaf that differs at the edge, its value at all other steps."""
    edge: Mapping[str, str]
    """For each leaf that is an argument of the kernel at the edge, that argument."""
    number: type[Pointer]
    """The pointer type of numbers."""
    calls: frozenset[str]
    """The operations whose vector functions are arguments of the kernel."""
    nontemporal: bool = False
    """Whether unrolled steps write sequences by non-temporal stores."""
    aligned: bool = True
    """Whether rows begin at neurons whose numbers are multiples of a vector's."""

    @property
    def forwards(self) -> bool:
        """Whether the loop runs from the first step to the last."""
        return self.direction == "forward"

    @property
    def earlier(self) -> int:
        """The position, in order of execution, of the previous step in time: -1, or 1 in a backward."""
        return -1 if self.forwards else 1

    @cached_property
    def before(self) -> Pass | None:
        """A pass that computes :attr:`inner` before a step with much code, which the edge can then share.

        None for short steps: the edge then has code of its own.
        """
        if not self.inner or not is_long(self._unrolled(1, edge=False)):
            return None
        inner = _AtStep(self, 0, {}, {}).rewrite(self.inner)
        before = Pass(f"{self.direction}_before", inner, self.number, self.calls, aligned=self.aligned)
        before.scratch += self.inner
        return before

    @cached_property
    def step(self) -> Pass:
        """The pass over one step; with :attr:`before` also over the edge, the step at time 0."""
        return self._pass("step", 1, edge=self.before is not None)

    @cached_property
    def steps(self) -> Pass | None:
        """:data:`UNROLLED` steps; None if a value between them would pass through memory."""
        if not self.next_values or self.step.long or len(self.step.sequence) != 1:
            return None
        return self._pass("steps", UNROLLED, edge=False)

    @cached_property
    def edge_step(self) -> Pass | None:
        """The edge, if it differs from other steps."""
        if self.before is not None:
            return self.step
        return self._pass("edge_step", 1, edge=True) if self.inner else None

    @cached_property
    def edge_steps(self) -> Pass | None:
        """:data:`UNROLLED` steps with the edge among them, if it differs from other steps."""
        return self._pass("edge_steps", UNROLLED, edge=True) if self.inner and self.steps else None

    def passes(self) -> list[Pass]:
        """All passes of the loop."""
        passes = (self.before, self.step, self.steps, self.edge_step, self.edge_steps)
        return list(dict.fromkeys(pass_ for pass_ in passes if pass_))

    def _pass(self, name: str, count: int, *, edge: bool) -> Pass:
        """The pass `name` over `count` successive steps; `edge`: whether the edge is one of the steps."""
        stores = self._unrolled(count, edge=edge)
        rows = frozenset(r for r in (*leaves(stores), *stores) if r.rpartition(".")[0] in self.sequences)
        nontemporal = rows & stores.keys() if self.nontemporal and count > 1 else frozenset()
        options = nontemporal, rows, self.aligned
        return Pass(f"{self.direction}_{name}", stores, self.number, self.calls, *options)

    def _unrolled(self, count: int, *, edge: bool) -> Stores:
        """The stores of `count` successive steps; states pass between them as values.

        The row of a sequence is called ``{name}.0`` at the step that runs first, ``{name}.1`` at the second.
        `edge`: whether the edge is one of the steps, the first of a forward or the last of a backward.
        """
        renamed: dict[tuple[str, str], Value] = {}
        unrolled: Stores = {}
        results: Stores = {}
        states: Stores = {}
        edge_index = (0 if self.forwards else count - 1) if edge else None
        for i in range(count):
            inner = {} if i == edge_index else {k: v for k, v in self.inner.items() if k not in states}
            values = states | _AtStep(self, i, states, renamed).rewrite(inner)
            results = _AtStep(self, i, values, renamed).rewrite(self.stores)
            unrolled |= {f"{name}.{i}": v for name, v in results.items() if name in self.sequences}
            states = {leaf: results[store] for leaf, store in self.next_values.items() if store in results}
        return unrolled | {name: v for name, v in results.items() if name not in self.sequences}


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
