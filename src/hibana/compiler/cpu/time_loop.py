"""The passes of a loop over time: one step or several unrolled, at the ends of the sequence or inside."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from hibana.compiler.cpu.row_pass import Pass, is_long
from hibana.compiler.graph.analysis import Rewriting
from hibana.compiler.graph.passes import Stores, leaves
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step, Value
from hibana.runtime.kernels import Pointer

AT_ONCE = 4
"""Steps that are unrolled: each reads its input and writes its output, and the state stays in registers."""


@dataclass(frozen=True)
class Moving:
    """A row that differs at each step: the arguments that are its sequence's address and stride over time."""

    base: str
    stride: str
    bits: bool = False


def moving_forward(step: Step, once: Stores, stride: str) -> dict[str, Moving]:
    """The rows of a forward that differ at each step; `stride` is that of numbers over time."""
    moving = {"x": Moving("input", "input_step"), step.states[-1]: Moving("outputs", stride)}
    return moving | {n: _residual(n, v.boolean, stride) for n, v in once.items() if n not in step.states}


def moving_back(
    step: Step, plan: Plan, once: Stores, stride: str
) -> tuple[dict[str, Moving], dict[str, str]]:
    """The same of a backward, and by name the arguments that sums over time are written to."""
    moving = {"x": Moving("input", "input_step"), "emitted_grad": Moving("grad_outputs", "grad_outputs_step")}
    residuals = {f"residual{i}": v.boolean for i, v in enumerate(plan.residuals) if not v.is_input}
    moving |= {name: _residual(name, boolean, stride) for name, boolean in residuals.items()}
    moving |= {name: Moving(f"{name}_all", stride) for name in once if name.startswith("outer")}
    sums = {f"sum{i}": f"sum{i}_all" for i in range(len(step.grad_sums))}
    if "x_grad" in once:
        moving["x_grad"] = Moving("grad_input", stride)
    return moving, sums


def _residual(name: str, boolean: bool, stride: str) -> Moving:
    return Moving(f"{name}_all", "row_bytes" if boolean else stride, boolean)


@dataclass(frozen=True)
class Parts:
    """The passes of a loop over time: one step or several unrolled, at the edge or inside.

    The step at time 0 is the *edge*: the states before it are arguments of the run.
    """

    name: str
    once: Stores
    moving: Mapping[str, Moving]
    left: Mapping[str, str]
    """For a row of state, the store that is its next value."""
    inner: Stores
    """For each leaf that differs at the edge, its value inside."""
    number: type[Pointer]
    calls: frozenset[str]
    nontemporal: bool
    earlier: int
    """Order of execution of the step before in time: 1 (after this one) in a backward, else -1."""
    aligned: bool = True
    """Whether rows begin at neurons whose numbers are multiples of a vector's."""

    @cached_property
    def before(self) -> Pass | None:
        """For a long step, a pass that computes `inner`, so that the step itself is the same at the edge."""
        if not self.inner or not is_long(self._merged(1, edge=False)):
            return None
        inner = _AtStep(self, 0, {}, {}).rewrite(self.inner)
        made = Pass(f"{self.name}_before", inner, self.number, self.calls, aligned=self.aligned)
        made.scratch += self.inner
        return made

    @cached_property
    def step(self) -> Pass:
        """One step, inside."""
        return self._pass("step", 1, edge=self.before is not None)

    @cached_property
    def steps(self) -> Pass | None:
        """Several steps, if nothing between them passes through memory."""
        short = len(self.step.sequence) == 1 and not self.step.long
        return self._pass("steps", AT_ONCE, edge=False) if short else None

    @cached_property
    def edge_step(self) -> Pass | None:
        """One step at time 0, if that differs."""
        if self.before is not None:
            return self.step
        return self._pass("edge_step", 1, edge=True) if self.inner else None

    @cached_property
    def edge_steps(self) -> Pass | None:
        """Several steps, one of which is at time 0, if that step differs."""
        return self._pass("edge_steps", AT_ONCE, edge=True) if self.inner and self.steps else None

    def all(self) -> list[Pass]:
        """All passes."""
        parts = (self.before, self.step, self.steps, self.edge_step, self.edge_steps)
        return list(dict.fromkeys(part for part in parts if part))

    def single(self) -> list[Pass]:
        """The passes of one step."""
        return list(dict.fromkeys(part for part in (self.before, self.step, self.edge_step) if part))

    def _pass(self, name: str, count: int, *, edge: bool) -> Pass:
        stores = self._merged(count, edge=edge)
        ahead = frozenset(r for r in (*leaves(stores), *stores) if r.rpartition(".")[0] in self.moving)
        nontemporal = ahead & stores.keys() if self.nontemporal and count > 1 else frozenset()
        options = nontemporal, ahead, self.aligned
        return Pass(f"{self.name}_{name}", stores, self.number, self.calls, *options)

    def _merged(self, count: int, *, edge: bool) -> Stores:
        """`count` successive steps as one, with the state passed on as values.

        A row of a sequence is called ``{name}.0`` at the first step done, ``{name}.1`` at the second.
        """
        renamed: dict[tuple[str, str], Value] = {}
        merged: Stores = {}
        now: Stores = {}
        passed: Stores = {}
        at_edge = (0 if self.earlier < 0 else count - 1) if edge else None
        for i in range(count):
            inside = {} if i == at_edge else {k: v for k, v in self.inner.items() if k not in passed}
            known = passed | _AtStep(self, i, passed, renamed).rewrite(inside)
            now = _AtStep(self, i, known, renamed).rewrite(self.once)
            merged |= {f"{name}.{i}": v for name, v in now.items() if name in self.moving}
            passed = {leaf: now[store] for leaf, store in self.left.items() if store in now}
        return merged | {name: v for name, v in now.items() if name not in self.moving}


class _AtStep(Rewriting):
    """Renames the leaves of a step for the step done `ahead` steps after the first; some are `known` values.

    A draw is named by how many steps later in time it is made than at the first step done.
    """

    def __init__(
        self, parts: Parts, ahead: int, known: Mapping[str, Value], renamed: dict[tuple[str, str], Value]
    ) -> None:
        super().__init__()
        self.parts, self.ahead, self.known, self.renamed = parts, ahead, known, renamed

    def on_row(self, value: Value) -> Value:
        name = str(value.data)
        moves = name.removesuffix("_earlier") in self.parts.moving
        return self.known.get(name) or self._renamed(value, self._when(name) if moves else None)

    on_bits = on_row

    def on_draw(self, value: Value) -> Value:
        return self._renamed(value, -self.parts.earlier * self._when(str(value.data)))

    def _when(self, name: str) -> int:
        return self.ahead + (self.parts.earlier if name.endswith("_earlier") else 0)

    def _renamed(self, value: Value, when: int | None) -> Value:
        name = str(value.data)
        name = name if when is None else f"{name.removesuffix('_earlier')}.{when}"
        return self.renamed.setdefault((value.op, name), Value(value.op, data=name))
