"""When a neuron needs no update: bounds of its step without input over all later steps.

While nothing arrives at a neuron and it does not fire, its step is ``x' = M x + c`` in its affine states x,
as long as the guards of :mod:`hibana.compiler.analysis.affine` hold. In coordinates d = x - x*, with the
fixed point x*, a guard ``l · x + e <= 0`` after n steps is ``l Mⁿ d + const <= 0``. Bounds of ``l Mⁿ`` over
all n bound it for all later steps: a neuron whose guards hold by these bounds is *passive*; it takes no step
until something arrives, and then all missed steps at once, by powers of M.

Source of exact event-driven simulation: Brette (2007), *Exact simulation of integrate-and-fire models with
exponential currents*, Neural Computation 19.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.analysis.affine import Affine, Flag, Form, Guard, NotAffine, numeric_dependents
from hibana.compiler.analysis.binary import check_spikes
from hibana.compiler.analysis.real_values import RealValues
from hibana.compiler.graph.dependencies import remembered
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import evaluate_parametrizations, tensors_of

__all__ = ["BASE_BITS", "LEVELS", "PassiveForm", "grouped_form", "grouped_form_of_cell", "passive_form"]

BASE_BITS, LEVELS = 6, 6
"""Powers of M are stored for each digit, in base 64, of numbers of steps below 2^36."""
LARGEST_TABLE = 1 << 21
"""Most numbers in the table of the powers of all groups of neurons: 16 MB."""

SETTLING = 2000
"""Most steps that are run to find the rest."""
LONGEST = 1 << 16
"""Most powers of M from which bounds are derived."""
LARGEST_BLOCK = 1 << 24
"""Most numbers in the powers of a guard, of all groups."""
STRICT, CONTINUOUS = 1e-9, 1e-12
"""Relative margins: strict guards must hold by it; continuous ones may be violated by it, by rounding."""
SMALLEST = 1e-200
"""Smaller numbers in powers of M become 0."""


@dataclass(frozen=True, eq=False)
class PassiveForm:
    """The affine step of groups of neurons with equal parameters, and when they are passive.

    With d = x - `rest` of the states `free`, n steps map d to ``P · (d, 1)`` with P of :attr:`powers`. A
    neuron is passive if it does not fire, the `fixed` states have these values, and for each guard
    ``constant + Σ max(lowest * d, highest * d) <= 0``.
    """

    free: tuple[int, ...]
    """The states that vary."""
    fixed: dict[int, Tensor]
    """The states that must have these values, ``[groups]``, by their index."""
    rest: Tensor
    """The fixed point of the free states, ``[groups, free]``."""
    powers: Tensor
    """For each digit q = 1 ... 63 of level i, the map of ``q * 64^i`` steps: ``[groups, levels, 63, free,
    free + 1]``."""
    guards: Tensor
    """The lowest and highest factor of the first free state, those of the others, then the constant, of each
    guard: ``[groups, guards, 2 * free + 1]``. The constant is infinite for neurons that are never passive."""


def grouped_form(
    cell: Cell, step: Step, parameters: Sequence[Tensor], input_: Tensor, initial: Sequence[Tensor]
) -> tuple[Tensor, PassiveForm]:
    """The group of each neuron of `cell`, ``[neurons]``, and the passive form of the groups.

    The other arguments are those of :func:`passive_form`, with one number for each neuron. The form is
    remembered until the cell changes.

    Raises:
        Unsupported: if there is none, or the step does not emit spikes; the message is the reason.
    """
    groups, first = _groups_of([*parameters, input_])
    rows = [[row[first] for row in numbers] for numbers in (parameters, initial)]
    numbers = torch.stack([*rows[0], *rows[1], input_[first]]).numpy().tobytes()
    key = passive_form, len(input_), numbers
    return groups, remembered(cell, key, lambda: passive_form(step, rows[0], input_[first], rows[1]))


def grouped_form_of_cell(cell: Cell, input_: Tensor) -> tuple[Tensor, PassiveForm]:
    """As :func:`grouped_form`, of neurons of `cell` with the constant `input_`, ``[neurons]``."""
    cell, shape = evaluate_parametrizations(cell), torch.Size([1, len(input_)])
    step = trace(cell, shape, torch.float64, draws=True)
    numbers = step.prologue(*tensors_of(cell).values())[: step.parameters]
    rows = [
        [row.detach().double().expand(shape).flatten() for row in values]
        for values in (numbers, cell.initial_state(input_.double()[None]))
    ]
    return grouped_form(cell, step, rows[0], input_.double(), rows[1])


def _groups_of(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Groups of neurons with equal numbers in all `rows`, ``[neurons]`` each.

    Returns:
        The group of each neuron, ``[neurons]``, and a neuron of each group, ``[groups]``.
    """
    neurons = torch.arange(len(rows[0]), dtype=torch.int64, device="cpu")
    groups = torch.zeros_like(neurons)
    for row in rows:
        if not bool((row == row[0]).all()):
            _, values = torch.unique(row, return_inverse=True)
            _, groups = torch.unique(groups * (int(values.max()) + 1) + values, return_inverse=True)
    first = neurons.new_full((int(groups.max()) + 1,), len(neurons))
    return groups, first.scatter_reduce(0, groups, neurons, "amin")


def passive_form(
    step: Step, parameters: Sequence[Tensor], input_: Tensor, initial: Sequence[Tensor]
) -> PassiveForm:
    """The passive form of neurons that take `step`, in float64.

    Args:
        step: the traced step, in float64.
        parameters: the parameters of the step, ``[groups]`` each.
        input_: the constant input, ``[groups]``.
        initial: the states before the first step, ``[groups]`` each.

    Raises:
        Unsupported: if there is none; the message is the reason.
    """
    check_spikes(step, initial)
    if step.draws or step.matrices:
        raise Unsupported(
            "the step draws random numbers" if step.draws else "the step multiplies states by a matrix"
        )
    states, settled, values = _rest(step, parameters, input_, initial)
    affine, forms = _affine_forms(step, parameters, input_, states, settled, values)
    fixed = affine.fixed
    nexts = [form for form in forms if isinstance(form, Form)]
    assert len(nexts) == len(forms)  # states are numbers
    free = tuple(i for i in range(len(states) - 1) if i not in fixed)
    if nexts[-1].states:
        raise Unsupported("the output is a number, not spikes")
    if not free:
        raise Unsupported("no state is affine")
    for i, value in fixed.items():
        if nexts[i].states or not torch.equal(nexts[i].rows[:, -1], value):
            raise Unsupported(f"the state {step.states[i]} does not rest at a constant")
    groups, count = len(input_), len(free)
    if groups * LEVELS * ((1 << BASE_BITS) - 1) * count * (count + 1) > LARGEST_TABLE:
        raise Unsupported(f"neurons with {groups} different sets of parameters need too large tables")
    columns = [*free, -1]
    maps = torch.stack([nexts[i].rows[:, columns] for i in free], 1)  # [groups, free, free + 1]: M and c
    if not bool(maps.isfinite().all()):
        raise Unsupported("a coefficient of the step is not finite")
    resting = torch.stack([states[i] for i in free], 1)
    rest, drift = _fixed_point(maps[..., :-1], maps[..., -1], resting if all(settled) else None)
    map_ = torch.zeros(groups, count + 1, count + 1, dtype=torch.float64, device="cpu")
    map_[:, :-1, :-1], map_[:, :-1, -1], map_[:, -1, -1] = maps[..., :-1], drift, 1.0
    doublings = [map_]
    while len(doublings) < LEVELS * BASE_BITS:
        doublings.append(_product(doublings[-1], doublings[-1]))
    can_rest, tables = nexts[-1].rows[:, -1] == 0, []
    for i in sorted(frozenset[int]().union(*(form.guards for form in nexts))):
        guard, rows = affine.guards[i], affine.guards[i].rows[:, columns]
        rows[:, -1] += (rows[:, :-1] * rest).sum(1)
        lowest, highest, is_bounded = _hull(rows, doublings)
        can_rest &= is_bounded
        tables.append(_with_margins(guard, lowest, highest, rest))
    if not bool(can_rest.any()):
        raise Unsupported("each neuron fires by itself, or nothing bounds its states")
    guards = torch.stack(tables or [rest.new_zeros(groups, 2 * count + 1)], 1)
    guards[~can_rest, :, -1] = torch.inf
    return PassiveForm(free, dict(fixed), rest, _powers(doublings), guards)


def _affine_forms(
    step: Step,
    parameters: Sequence[Tensor],
    input_: Tensor,
    states: Sequence[Tensor],
    settled: Sequence[bool],
    values: RealValues,
) -> tuple[Affine, list[Form | Flag]]:
    """The affine forms of the next states, with as few states as needed fixed at their rest.

    States may be fixed if they are `settled` in `states` and do not depend on numbers of the input.
    """
    fixed: dict[int, Tensor] = {}
    candidates = frozenset(i for i in range(len(states)) if settled[i]) - numeric_dependents(step)
    while True:
        affine = Affine(step, parameters, input_, fixed, values.results)
        try:
            return affine, list(affine.run(step.nexts))
        except NotAffine as error:
            able = [set_ for set_ in sorted(error.sets, key=len) if set_ <= candidates]
            if not able:
                names = " and ".join("/".join(step.states[i] for i in sorted(set_)) for set_ in error.sets)
                raise Unsupported(f"{error}, of the states {names}") from None
            fixed |= {i: states[i] for i in able[0]}


def _rest(
    step: Step, parameters: Sequence[Tensor], input_: Tensor, initial: Sequence[Tensor]
) -> tuple[list[Tensor], list[bool], RealValues]:
    """Runs steps with the constant input, without spikes before, until no state changes.

    Returns:
        The states, whether each stays the same, and all values of the step from these states.
    """
    states, unchanged = [state.double() for state in initial], 0
    silent = torch.zeros_like(input_)
    for _ in range(SETTLING):
        before = [*states[:-1], silent]
        nexts = RealValues(step, parameters, input_, before).run(step.nexts)
        states = [value.expand_as(silent) for value in nexts]
        settled = [torch.equal(*pair) for pair in zip(states, before, strict=True)]
        unchanged = unchanged + 1 if all(settled[:-1]) else 0
        if unchanged > 2:
            break
    states[-1], settled[-1] = silent, True
    values = RealValues(step, parameters, input_, states)
    values.run(step.nexts)
    return states, settled, values


def _fixed_point(matrix: Tensor, constant: Tensor, resting: Tensor | None) -> tuple[Tensor, Tensor]:
    """The fixed point x* of ``M x + c``, ``[groups, free]``, and ``M x* + c - x*``, 0 unless a state grows.

    It is `resting`, the rest that the step itself reaches, to the last bit, if the map keeps it.
    """

    def moved(x: Tensor) -> Tensor:
        """``M x + c``."""
        return (matrix @ x[..., None])[..., 0] + constant

    if resting is not None and torch.allclose(moved(resting), resting, rtol=1e-14, atol=1e-300):
        return resting, torch.zeros_like(resting)
    identity = torch.eye(matrix.shape[-1], dtype=torch.float64, device="cpu")
    solve = torch.linalg.pinv(identity - matrix, rtol=1e-13)
    x = (solve @ constant[..., None])[..., 0]
    x = x + (solve @ (moved(x) - x)[..., None])[..., 0]
    drift = moved(x) - x
    scale = constant.abs() + (matrix.abs() @ x.abs()[..., None])[..., 0] + x.abs()
    return x, torch.where(drift.abs() <= 1e-15 * scale, 0.0, drift)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """The matrix product, with 0 for numbers that would become denormal."""
    product = first @ second
    return torch.where(product.abs() < SMALLEST, 0.0, product)


def _powers(doublings: Sequence[Tensor]) -> Tensor:
    """The maps of each digit of each level; `doublings` are the maps of 1, 2, 4, ... steps."""
    levels = []
    for base in doublings[::BASE_BITS]:
        digits = [base]
        while len(digits) < (1 << BASE_BITS) - 1:
            digits.append(_product(base, digits[-1]))
        levels.append(torch.stack(digits, 1))
    return torch.stack(levels, 1)[..., :-1, :].contiguous()


def _hull(rows: Tensor, doublings: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of each entry of ``rows Mⁿ`` over all n >= 0, ``[groups, free + 1]``, and where they are proved.

    Bounds of the first N powers hold for all n if the interval product (bounds) M^N lies inside them, by
    induction. The constant of the guard only has to stay at most 0. `doublings` are M, M², M⁴, ...
    """
    open_ = torch.ones(len(rows), dtype=torch.bool, device="cpu")
    lowest, highest, powers = torch.zeros_like(rows), torch.zeros_like(rows), rows[None]
    for map_ in doublings:  # of len(powers) steps
        low, high = powers.amin(0), powers.amax(0)
        margin = STRICT * torch.maximum(low.abs(), high.abs())
        margin[:, -1] = 0
        for wider in (0, 1):
            for with_zero in (False, True):
                a, b = low - wider * margin, high + wider * margin
                if with_zero:
                    a = torch.cat([a[:, :-1].clamp(max=0), a[:, -1:]], 1)
                    b = torch.cat([b[:, :-1].clamp(min=0), b[:, -1:]], 1)
                ends = a[:, :-1, None] * map_[:, :-1], b[:, :-1, None] * map_[:, :-1]
                least, most = torch.minimum(*ends).sum(1), torch.maximum(*ends).sum(1)
                inside = (least >= a)[:, :-1].all(1) & (most <= b)[:, :-1].all(1) & (most[:, -1] <= 0) & open_
                lowest[inside], highest[inside] = a[inside], b[inside]
                open_ &= ~inside
        size = len(powers)
        is_long = size >= LONGEST or powers.numel() >= LARGEST_BLOCK or not bool(powers.isfinite().all())
        if size > 1 and (is_long or not bool(open_.any())):
            break
        powers = torch.cat([powers, torch.einsum("mni,nij->mnj", powers, map_)])
    return lowest, highest, ~open_


def _with_margins(guard: Guard, lowest: Tensor, highest: Tensor, rest: Tensor) -> Tensor:
    """The row of :attr:`PassiveForm.guards`, with margins for rounding that are relative to its terms."""
    low, high, constant = lowest[:, :-1], highest[:, :-1], highest[:, -1]
    largest = torch.maximum(low.abs(), high.abs())
    if guard.continuous:
        low, high = low + CONTINUOUS * largest, high - CONTINUOUS * largest
        constant = constant - CONTINUOUS * constant.abs()
    else:
        low, high = low - STRICT * largest, high + STRICT * largest
        constant = constant + STRICT * (constant.abs() + 2 * (largest * rest.abs()).sum(1))
        constant = torch.where(guard.strict & (constant == 0), SMALLEST, constant)
    return torch.cat([torch.stack([low, high], 2).flatten(1), constant[:, None]], 1)
