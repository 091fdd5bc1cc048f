"""The backward of a step, and of a run, where some of its gradients are missing.

It is run so where absent gradients can't be taken for zeros: see :mod:`hibana.compiler.graph.bounds`.

Which gradients autograd would have differs from step to step: of the last step's states those that the loss
uses, of the states before it those that lead there, and so on back, until it stays the same. So the backward
is one of the step without what is absent. The steps until then, which are few, are computed by PyTorch, one
by one; all that are left, by a kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hibana.compiler.backend import BackwardArguments
from hibana.compiler.graph.part import Part, filled, places_in
from hibana.compiler.graph.plan import gradients, reachable
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.stepwise import Left, Run, sum_of

__all__ = ["MissingGradients", "Found", "without"]

Given = frozenset[int]
"""The states after a step whose gradient there is."""


class Found(NamedTuple):
    """The gradients of a run; None where autograd has none."""

    input: Tensor | None
    """At each step."""
    first: list[Tensor | None]
    """Of the states begun with."""
    sums: list[Tensor | None]
    """Over time, as :attr:`hibana.compiler.graph.step.Step.grad_sums` has them."""


def without(step: Step, given: Given) -> Left:
    """`step`, whose backward is given the gradients of the states `given` alone.

    What is made of an absent gradient is absent, and a sum is what is there of it.
    """
    left: dict[Value, Value | None] = {}
    zero = Value("number")
    for value in reachable(gradients(step)):
        args = [left[argument] for argument in value.args]
        there = [argument for argument in args if argument is not None]
        if value.op == "gradient":
            left[value] = value if value.data in given else None
        elif len(there) == len(args):
            same = all(a is b for a, b in zip(args, value.args, strict=True))
            left[value] = value if same else Value(value.op, tuple(there), value.data, value.scalar)
        elif value.op == "add":
            left[value] = there[0] if there else None
        elif value.op == "sub":
            left[value] = None if args[0] is args[1] else args[0] or Value("neg", tuple(there))
        elif _has_gradient(there):  # of a function of several results, which gets zeros for those not used
            left[value] = Value(value.op, tuple(a or zero for a in args), value.data, value.scalar)
        else:
            left[value] = None
    sums = tuple(left[value] for value in step.grad_sums)
    states = tuple(None if value is None else left[value] for value in step.grad_states)
    input_ = None if step.grad_input is None else left[step.grad_input]
    summed = tuple(value or zero for value in sums)
    return Left(replace(step, grad_input=input_, grad_states=states, grad_sums=summed), sums)


def _has_gradient(values: Sequence[Value]) -> bool:
    return any(value.op == "gradient" for value in reachable(values))


@dataclass(frozen=True)
class MissingGradients:
    """The backward of one step, by which of its states have a gradient."""

    step: Step
    kernels: Any
    """The step's own, which serve where all gradients are there."""
    _left: dict[Given, Left] = field(default_factory=dict)
    _kernels: dict[Given, Any] = field(default_factory=dict)
    _sums: dict[tuple[Given, bool, int], frozenset[int]] = field(default_factory=dict)

    def backward(self, given: BackwardArguments) -> Found:
        """The gradients of a run: :meth:`hibana.compiler.backend.Kernels.backward`, but for what is absent.

        Its `last_grads` may have the emitted state as its last; its plan keeps what :attr:`kernels` keeps.
        """
        grads = [*given.last_grads, *[None] * (len(self.step.states) - len(given.last_grads))]
        run = Run(self.step, given, self.kernels.dtype)
        sums: list[Tensor | None] = [None] * len(self.step.grad_sums)
        last: list[Tensor | None] = []
        """Gradients of the input at the steps that PyTorch computes, the last step first."""
        begin: Tensor | None = None
        """Those at all steps before them."""
        t = given.shape[0]
        while t:
            arrived = run.arrived(t - 1, grads)
            there = frozenset(i for i, grad in enumerate(arrived) if grad is not None)
            if not there:
                grads = arrived
                break
            left = self._without(there)
            if _before(left.step, given.grad_outputs is not None) == there:
                begin, grads, more = self._rest(run, t, there, grads)
                t = 0
            else:
                t -= 1
                one, grads, more = run.back(t, left, arrived)
                last.append(one)
            sums = [sum_of(a, b) for a, b in zip(sums, more, strict=True)]
        return Found(run.joined(begin, last) if given.wants_input else None, grads, sums)

    def there(self, sums: Sequence[Tensor], given: Given, emits: bool, steps: int) -> list[Tensor | None]:
        """`sums` over `steps`, None for those that autograd would not have.

        At the last step the states `given` have a gradient; what is emitted has one at each, if it `emits`.
        """
        place = (given, emits, steps)
        if place not in self._sums:
            emitted = frozenset([len(self.step.states) - 1] if emits else [])
            found: set[int] = set()
            seen: set[Given] = set()
            while steps and given | emitted not in seen:
                seen.add(given | emitted)
                left = self._without(given | emitted)
                found |= {i for i, value in enumerate(left.sums) if value is not None}
                given = _before(left.step, emits)
                steps -= 1
            self._sums[place] = frozenset(found)
        there = self._sums[place]
        # the outer products of matrices come after the sums
        count = len(self.step.grad_sums)
        return [value if i in there or i >= count else None for i, value in enumerate(sums)]

    def epilogue(
        self, cell_tensors: Sequence[Tensor], sums: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the cell's tensors, of sums that may be absent."""
        if all(value is not None for value in sums):
            return self.step.epilogue(*cell_tensors, *sums)
        assert isinstance(self.step.epilogue, Part)
        return _of_what_is_there(self.step.epilogue, [*cell_tensors, *sums])

    def _without(self, given: Given) -> Left:
        if given not in self._left:
            self._left[given] = without(self.step, given)
        return self._left[given]

    def _kernels_of(self, given: Given) -> Any:
        if len(given) == len(self.step.states):
            return self.kernels
        if given not in self._kernels:
            left = self._without(given)
            made = type(self.kernels)(left.step, self.kernels.plan, self.kernels.dtype)
            self._kernels[given] = made
        return self._kernels[given]

    def _rest(
        self, run: Run, steps: int, there: Given, grads: list[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
        """All steps before `steps`, by one kernel."""
        left, given = self._without(there), run.given
        arguments = given._replace(
            shape=torch.Size((steps, *given.shape[1:])),
            inputs=None if given.inputs is None else given.inputs[:steps],
            residuals=[value[:steps] for value in given.residuals],
            grad_outputs=run.arriving(steps, grads[-1]),
            last_grads=grads[:-1],
            wants_first=True,
        )
        found, first, sums = self._kernels_of(there).backward(arguments)
        before = zip(first, left.step.grad_states, strict=True)
        summed = zip(sums, left.sums, strict=True)
        return (
            None if left.step.grad_input is None else found,
            [None if value is None else grad for grad, value in before],
            [None if value is None else grad for grad, value in summed],
        )


def _before(step: Step, emits: bool) -> Given:
    """The states whose gradient there is a step earlier; `emits` is whether what is emitted has one."""
    there = {i for i, grad in enumerate(step.grad_states) if grad is not None}
    return frozenset(there | ({len(step.states) - 1} if emits else set()))


def _of_what_is_there(part: Part, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What `part` makes of `tensors`: of what is absent, what is absent; of a sum, what is there of it."""
    values: list[Tensor | None] = list(tensors)
    for function, args, kwargs in part.calls:
        places = [values[place.at] for place in places_in((args, kwargs))]
        there = [value for value in places if value is not None]
        if len(there) == len(places):
            values.append(function(*filled(args, values), **filled(kwargs, values)))
        else:
            sums = function is torch.ops.aten.add.Tensor and there
            values.append(there[0] if sums else None)
    return tuple(None if end is None else values[end] for end in part.ends)
