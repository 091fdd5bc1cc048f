"""The backward of a step, and of a run, where some gradients are None and can't be replaced by zeros.

See :mod:`hibana.compiler.graph.bounds`. Which states have a gradient differs from step to step: at the last
step those that the loss uses, a step earlier those that lead there, and so on until it stays the same.
PyTorch computes the last steps, until then, one by one; a kernel without the missing gradients the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hibana.compiler.backend import BackwardArguments
from hibana.compiler.draws import numbers
from hibana.compiler.eager import in_torch
from hibana.compiler.graph.part import Part, filled, places_in
from hibana.compiler.graph.plan import gradients, reachable
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.strides import unpacked

Given = frozenset[int]
"""The states after a step that have a gradient."""


class Found(NamedTuple):
    """The gradients of a run, of its input, initial states and `grad_sums`; None where autograd has none."""

    input: Tensor | None
    first: list[Tensor | None]
    sums: list[Tensor | None]


class Reached(NamedTuple):
    """What has a gradient in autograd."""

    input: bool
    first: frozenset[int]
    """The initial states."""
    sums: frozenset[int]


class Left(NamedTuple):
    """A step whose backward lacks some gradients; its `grad_sums` are zero where `sums` are None."""

    step: Step
    sums: tuple[Value | None, ...]


def without(step: Step, given: Given) -> Left:
    """`step` with a backward of the gradients of the states `given` alone.

    What is computed from a missing gradient is missing; a sum is that of its terms that exist.
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
    """The backward of one step for each set of states that have a gradient; `kernels` serve where all do."""

    step: Step
    kernels: Any
    _left: dict[Given, Left] = field(default_factory=dict)
    _kernels: dict[Given, Any] = field(default_factory=dict)
    _reached: dict[tuple[Given, bool, int], Reached] = field(default_factory=dict)

    def backward(self, given: BackwardArguments) -> Found:
        """:meth:`hibana.compiler.backend.Kernels.backward`, None for missing gradients.

        Its `last_grads` may include the emitted state's.
        """
        grads = [*given.last_grads, *[None] * (len(self.step.states) - len(given.last_grads))]
        run = _Run(self.step, given, self.kernels.dtype)
        sums: list[Tensor | None] = [None] * len(self.step.grad_sums)
        last: list[Tensor | None] = []  # gradients of the input at the steps of PyTorch's, last first
        begin: Tensor | None = None  # and at all steps before them
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
            sums = [_sum_of(a, b) for a, b in zip(sums, more, strict=True)]
        return Found(run.joined(begin, last) if given.wants_input else None, grads, sums)

    def reached(self, given: Given, emits: bool, steps: int) -> Reached:
        """What has a gradient in autograd if the states `given` have one after the last of the `steps`.

        The output has one at each step if it `emits`.
        """
        place = (given, emits, steps)
        found = self._reached.get(place)
        if found is None:
            found = self._reached[place] = self._found_reached(given, emits, steps)
        return found

    def _found_reached(self, given: Given, emits: bool, steps: int) -> Reached:
        emitted = frozenset([len(self.step.states) - 1] if emits else [])
        sums: set[int] = set()
        seen: set[Given] = set()
        input_ = False
        for _ in range(steps):
            after = given | emitted
            left = self._without(after)
            given = _before(left.step, emits=False)
            if after not in seen:
                seen.add(after)
                sums |= {i for i, value in enumerate(left.sums) if value is not None}
                input_ = input_ or left.step.grad_input is not None
            elif given | emitted == after:
                break
        return Reached(input_, given, frozenset(sums))

    def there(self, sums: Sequence[Tensor], reached: Reached) -> list[Tensor | None]:
        """`sums`, None for those that are not `reached`."""
        # the outer products of matrices come after the sums
        count = len(self.step.grad_sums)
        return [value if i in reached.sums or i >= count else None for i, value in enumerate(sums)]

    def epilogue(
        self, cell_tensors: Sequence[Tensor], sums: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the cell's tensors, from the kernels' sums over time; a sum is None if no gradient
        reached it, and so is what depends on it alone.
        """
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
        self, run: "_Run", steps: int, there: Given, grads: list[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
        """The backward of the first `steps`, by one kernel."""
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
    """The states that have a gradient a step earlier; `emits` is whether the output has one."""
    there = {i for i, grad in enumerate(step.grad_states) if grad is not None}
    return frozenset(there | ({len(step.states) - 1} if emits else set()))


def _of_what_is_there(part: Part, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """`part` of `tensors`: missing where it depends on a missing one; a sum is of its terms that exist."""
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


@dataclass(frozen=True)
class _Run:
    """A run's backward in PyTorch, one step at a time."""

    step: Step
    given: BackwardArguments
    dtype: torch.dtype

    def arrived(self, t: int, grads: list[Tensor | None]) -> list[Tensor | None]:
        """The gradients of the states after step `t`: `grads` from later steps, and that of the output."""
        if self.given.grad_outputs is None:
            return grads
        return [*grads[:-1], _sum_of(grads[-1], self.given.grad_outputs[t].to(self.dtype))]

    def arriving(self, steps: int, fed_back: Tensor | None) -> Tensor | None:
        """The gradients of the first `steps` outputs, with `fed_back` added to the last of them."""
        given = None if self.given.grad_outputs is None else self.given.grad_outputs[:steps]
        if fed_back is None:
            return given
        shape = (steps, *self.given.shape[1:])
        arriving = (
            fed_back.new_zeros(shape) if given is None else given.to(self.dtype, copy=True).contiguous()
        )
        arriving[-1] += fed_back
        return arriving

    def back(
        self, t: int, left: Left, grads: list[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
        """Step `t` back: the gradients of its input and of the states before it, and its sums."""
        known = self._at(t)
        if t:
            before = [self.step.nexts[i] for i in self.given.plan.before]
            states = in_torch(before, self._at(t - 1), partial(self._leaf, t - 1), self.dtype)
        else:
            zero = torch.zeros((), dtype=self.dtype, device=_like(grads).device)
            firsts = [self.given.first[i] for i in self.given.plan.before]
            states = [zero if value is None else value for value in firsts]
        previous = dict(zip(self.given.plan.before, states, strict=True))

        def leaf(value: Value) -> Tensor:
            if value.op not in ("previous", "gradient"):
                return self._leaf(t, value)
            found = (previous if value.op == "previous" else grads)[int(value.data)]
            assert isinstance(found, Tensor)
            return found

        wanted = [left.step.grad_input, *left.step.grad_states, *left.sums]
        there = [value for value in wanted if value is not None]
        made = dict(zip(there, in_torch(there, known, leaf, self.dtype), strict=True))
        found = [None if v is None else made[v].expand(self.given.shape[1:]).contiguous() for v in wanted]
        count = 1 + len(grads)
        return found[0], found[1:count], found[count:]

    def joined(self, begin: Tensor | None, last: list[Tensor | None]) -> Tensor | None:
        """The gradient of the input, from that at the first steps and at the `last`; zero in between."""
        found = [one for one in (begin, *last) if one is not None]
        if not found:
            return None
        dtype = self.dtype if self.given.grad_outputs is None else self.given.grad_outputs.dtype
        if begin is not None and len(begin) == self.given.shape[0]:
            return begin.to(dtype)
        grad = torch.zeros(self.given.shape, dtype=dtype, device=found[0].device)
        if begin is not None:
            grad[: len(begin)] = begin
        for i, one in enumerate(last):
            if one is not None:
                grad[self.given.shape[0] - 1 - i] = one
        return grad

    def _at(self, t: int) -> dict[Value, Tensor]:
        """The residuals of step `t`."""
        known = dict(zip(self.given.plan.stored, (value[t] for value in self.given.residuals), strict=True))
        one = self.given.shape[1:]
        for value, found in known.items():
            known[value] = unpacked(found, one.numel()).view(one).bool() if value.boolean else found
        for value in self.given.plan.residuals:
            if value.op == "input":
                assert self.given.inputs is not None
                known[value] = self.given.inputs[t].to(self.dtype)
        return known

    def _leaf(self, t: int, value: Value) -> Tensor:
        """A leaf that no state and no gradient is, at step `t`."""
        device = _like([*self.given.residuals, self.given.grad_outputs, *self.given.parameters]).device
        if value.op == "draw":
            like = torch.empty(self.given.shape[1:], dtype=self.dtype, device=device)
            return numbers(str(value.data), self.given.seed, t, like)
        if value.op == "parameter":
            found = self.given.parameters[int(value.data)]
            return found.reshape(()) if found.numel() == 1 else found
        number = self.step.constants[int(value.data)] if value.op == "constant" else value.data
        return torch.tensor(float(number), dtype=self.dtype, device=device)


def _like(tensors: Sequence[Tensor | None]) -> Tensor:
    return next(
        (tensor for tensor in tensors if tensor is not None),
        torch.empty(0, dtype=torch.float32, device="cpu"),
    )


def _sum_of(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of what there is."""
    return b if a is None else a if b is None else a + b
