"""A loop over time: the rows that it reads and writes, and the passes that compute one or several steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hibana.compiler.cpu.row_pass import Pass
from hibana.compiler.graph.analysis import Rewriting
from hibana.compiler.graph.passes import Stores, backward_pass, before_pass, forward_pass, leaves
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.synapses import with_masks
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
    """The address that receives its last values; an empty name or a null address if nothing receives them."""


def forward_loop(
    step: Step, plan: Plan | None, number: type[Pointer], calls: frozenset[str], nontemporal: bool = False
) -> "TimeLoop":
    """The loop that runs `step` over time: over samples for a step with matrix products, else over rows.

    Args:
        step: the step of the cell.
        plan: the residuals that the kernel writes; None for none.
        number: the pointer type of all numbers.
        calls: the operations that vector functions compute.
        nontemporal: whether sequences are written by non-temporal stores.
    """
    stores = forward_pass(step, plan)
    *carried, emitted = step.states
    states = {name: StateRow(f"{name}_first", f"{name}_last") for name in carried}
    before: Stores = {}
    initial: dict[str, str] = {}
    if "emitted_before" in leaves(stores):
        if step.matrices:  # reads the output of the step before
            before["emitted_before"] = Value("row", data=f"{emitted}_earlier")
            initial["emitted_before"] = f"{emitted}_first"
        else:  # outputs may bypass the cache: a copy of the last one is a state
            stores["emitted_before"] = stores[emitted]
            states["emitted_before"] = StateRow(f"{emitted}_first", "")
    sequences = _sequence_rows(step, stores, plan, "forward")
    rest = number, calls, not step.matrices, nontemporal
    return TimeLoop("forward", stores, sequences, states, before, initial, *rest)


def backward_loop(
    step: Step,
    plan: Plan,
    number: type[Pointer],
    calls: frozenset[str],
    wants_input: bool,
    nontemporal: bool = False,
) -> "TimeLoop":
    """The loop that runs the gradient of `step` back over time.

    Args:
        step: the step of the cell.
        plan: the residuals that the forward wrote.
        number: the pointer type of all numbers.
        calls: the operations that vector functions compute.
        wants_input: whether the kernel computes the gradient of the input.
        nontemporal: whether sequences are written by non-temporal stores.
    """
    masks: dict[int, Value] = {}
    if step.matrices:
        step, masks = with_masks(step)
    stores = backward_pass(step, plan, wants_input=wants_input)
    before = before_pass(step, plan)
    *carried, emitted = step.states
    sequences = _sequence_rows(step, stores, plan, "backward")
    states = {f"{name}_grad": StateRow(f"{name}_last_grad", f"{name}_first_grad") for name in carried}
    states[f"{emitted}_grad"] = StateRow("", f"{emitted}_first_grad")
    states |= {f"sum{i}": StateRow("", f"sum{i}_all") for i in range(len(step.grad_sums))}
    gates = {
        f"gate{state}": Value("bits", data=f"residual{plan.residuals.index(mask)}_earlier")
        for state, mask in masks.items()
    }
    initial = {name: f"{name.removesuffix('_before')}_first" for name in before}
    rest = before | gates, initial, number, calls, not step.matrices, nontemporal
    return TimeLoop("backward", stores, sequences, states, *rest)


def _sequence_rows(step: Step, stores: Stores, plan: Plan | None, direction: str) -> dict[str, SequenceRow]:
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
    """A loop over time, forward or backward."""

    direction: str
    """``"forward"`` or ``"backward"``; a backward runs from the last step to the first."""
    stores: Stores
    """The results of one step, by row."""
    sequences: Mapping[str, SequenceRow]
    states: Mapping[str, StateRow]
    """The rows that pass from step to step: the leaf and the result of a step have the same name."""
    before: Stores
    """For each leaf that belongs to the step before, its value: a state, or the mask of a gradient."""
    initial: Mapping[str, str]
    """For each state in `before`, the kernel argument with its values before the first step."""
    number: type[Pointer]
    """The pointer type of numbers."""
    calls: frozenset[str]
    """The operations whose vector functions are arguments of the kernel."""
    by_rows: bool
    """Whether the kernel runs over rows of neurons; otherwise over samples, as matrix products require."""
    nontemporal: bool = False
    """Whether unrolled steps write sequences by non-temporal stores."""

    @property
    def forwards(self) -> bool:
        """Whether the loop runs from the first step to the last."""
        return self.direction == "forward"

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
        nontemporal = self.nontemporal and count > 1
        return Pass(
            f"{self.direction}_{name}", stores, self.number, self.calls, rows, nontemporal, self.by_rows
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
