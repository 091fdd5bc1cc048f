"""One cell with one input current: its potential, spikes, F-I curve, surrogate and gradient.

Everything is computed by running the cell, so pasted cells work like built-in ones. Results are NumPy arrays.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.cli.play.source import UserError, make_cell, user_errors
from hibana.compiler import record, unroll

STEPS = 200
"""Time steps."""
CURRENTS, COPIES = 49, 16
"""Points of the F-I curve, and neurons with independent noise at each."""
COURSES: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": lambda t: torch.ones_like(t),
    "pulse": lambda t: ((t >= STEPS // 4) & (t < 3 * STEPS // 4)).float(),
    "ramp": lambda t: t / (STEPS - 1),
    "sine": lambda t: 0.5 - 0.5 * torch.cos(2 * math.pi * t / (STEPS / 2)),
}
"""Functions of the time step, at most 1: the input before noise, divided by its strength."""
MAX_VALUE = 1e30
"""Larger values are not drawn."""

Results = dict[str, Any]


@user_errors()
def input_range(kind: type[Cell]) -> tuple[float, float]:
    """Returns a suitable input strength for a cell with its defaults, and the end of the F-I curve.

    Let I be the smallest current that causes a spike every 20 steps. The strength is 1.25 I. The end is 5 I,
    or 1.25 times the current that causes half of the largest rate if that is less, rounded up. A cell that
    never fires has (0.5, 1). Raises UserError if the cell has no defaults, or fails.
    """
    cell = make_cell(kind, {})
    currents = torch.logspace(-3, 3, 121, dtype=torch.float32, device="cpu")
    inputs = currents.expand(STEPS, -1)
    with torch.no_grad():
        outputs = _outputs(cell, inputs, backend="reference")
    rates = outputs.mean(dim=0)
    fires = (rates >= 0.05) & ((outputs == 0) | (outputs == 1)).all(dim=0)
    if not bool(fires.any()):
        return 0.5, 1.0
    smallest = float(currents[fires][0])
    half = float(currents[fires & (rates >= rates[fires].max() / 2)][0])
    end = min(5 * smallest, 1.25 * half)
    power = 10.0 ** math.floor(math.log10(end))
    rounded = float(f"{min(f * power for f in (1, 2, 5, 10) if f * power >= end * 0.999):.3g}")
    return float(f"{1.25 * smallest:.2g}"), rounded


@user_errors()
def simulate(
    kind: type[Cell],
    values: dict[str, Any],
    *,
    strength: float,
    noise: float,
    top: float,
    course: str = "constant",
) -> Results:
    """Runs a cell from rest for :data:`STEPS` steps of ``input_t = strength * course_t + noise * N(0, 1)``.

    Args:
        kind: class of the cell.
        values: hyperparameters of the cell, by name; a surrogate is ``(name, {parameter: value})``.
        strength: strength of the input.
        noise: standard deviation of the noise; the random numbers are always the same.
        top: largest current of the F-I curve.
        course: one of :data:`COURSES`.

    Returns:
        ``time``, ``input`` and ``potential``, ``[STEPS]``; ``others``, further states by name; ``gradient``,
        d(sum of the outputs)/d(input_t); ``spiking``, whether the output is spikes; ``spikes``, their steps;
        ``rate``, the mean output; ``currents`` and ``rates``: the F-I curve, the mean output per step for
        constant currents with that noise; ``threshold`` and ``step``: see :func:`_single_step`; ``name`` of
        the potential; ``note``, a warning or an empty text.

    Raises:
        UserError: if a value is not accepted, or the cell fails.
    """
    cell = make_cell(kind, values)
    generator = torch.Generator().manual_seed(0)
    size = STEPS, 1 + CURRENTS * COPIES
    random = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
    time = torch.arange(STEPS, dtype=torch.float32, device="cpu")
    inputs = (strength * COURSES[course](time)[:, None] + noise * random[:, :1]).requires_grad_()
    currents = torch.linspace(0, top, CURRENTS, dtype=torch.float32, device="cpu")
    constant = currents.repeat_interleave(COPIES) + noise * random[:, 1:]

    random_state = torch.get_rng_state()
    with torch.no_grad():
        states = record(cell, inputs)
    torch.set_rng_state(random_state)  # a step with random numbers draws the same again
    outputs = _outputs(cell, inputs)
    gradient = _gradient(outputs.sum(), inputs)[:, 0]
    with torch.no_grad():
        responses = _outputs(cell, constant)
    threshold, step = _single_step(cell)
    potential = _potential_name(cell)
    output = outputs.detach()[:, 0]
    is_binary = all(bool(((values == 0) | (values == 1)).all()) for values in (output, responses))
    spiking = step is not None or (is_binary and bool(output.any() or responses.any()))
    return {
        "time": np.arange(STEPS),
        "input": _array(inputs[:, 0]),
        "name": potential,
        "potential": _array(states[potential][:, 0]),
        # all states but the potential and the last one, which is the output
        "others": {name: _array(v[:, 0]) for name, v in list(states.items())[:-1] if name != potential},
        "gradient": _array(gradient),
        "spiking": spiking,
        "spikes": output.nonzero().flatten().numpy() if spiking else np.zeros(0, int),
        "rate": float(output.mean()),
        "currents": _array(currents),
        "rates": _array(responses.reshape(STEPS, CURRENTS, COPIES).mean(dim=(0, 2))),
        "threshold": threshold,
        "step": step,
        "note": _note(states, gradient),
    }


def _single_step(cell: Cell) -> tuple[float, Results] | tuple[None, None]:
    """Returns the threshold, and ``v``, ``s`` and ``derivative``, ds/dv, after one step from rest.

    The threshold is the potential after the smallest single input that makes the cell spike, found on a
    geometric grid that is refined twice. For inputs up to twice as large, ``(ds/dinput) / (dv/dinput)`` is
    the surrogate ``ds/dv``. Both results are ``None`` for cells that do not spike.
    """
    grid = torch.from_numpy(np.concatenate([[0.0], np.logspace(-3, 4, 141)]))
    for _ in range(3):
        with torch.no_grad():
            s = cell(grid, *cell.initial_state(grid))[-1]
        spiking = ((s != 0) & s.isfinite()).nonzero().flatten()
        if not bool(((s == 0) | (s == 1)).all()) or not len(spiking) or spiking[0] == 0:
            return None, None
        first = int(spiking[0])
        lower, upper = grid[first - 1 : first + 1].tolist()  # the last input without a spike, the first with
        grid = torch.linspace(lower, upper, 257, dtype=torch.float64, device="cpu")
    smallest = float(grid[-1])
    index = cell.state_names().index(_potential_name(cell))
    inputs = torch.linspace(0, 2 * smallest, 401, dtype=torch.float64, device="cpu").requires_grad_()
    states = cell(inputs, *cell.initial_state(inputs.detach()))
    # derivatives of the potential and of the spike, the last state, by the input
    dv, ds = (_gradient(states[state].sum(), inputs) for state in (index, -1))
    if not bool(dv.any()):
        return None, None
    with torch.no_grad():
        threshold = float(cell(grid[-1:], *cell.initial_state(grid[-1:]))[index])
    return threshold, {"v": _array(states[index]), "s": _array(states[-1]), "derivative": _array(ds / dv)}


def _outputs(cell: Cell, inputs: Tensor, backend: str = "auto") -> Tensor:
    """Returns the cell's outputs for `inputs`, both ``[T, N]``."""
    outputs, _ = unroll(cell, inputs, backend=backend)
    if outputs.shape != inputs.shape:
        shapes = f"inputs {list(inputs.shape)} gave outputs {list(outputs.shape)}"
        raise UserError(f"the cell must be pointwise; {shapes}")
    return outputs


def _gradient(total: Tensor, inputs: Tensor) -> Tensor:
    """Returns d(total)/d(inputs); zeros if `total` does not depend on `inputs`."""
    if not total.requires_grad:
        return torch.zeros_like(inputs)
    (gradient,) = torch.autograd.grad(total, inputs, retain_graph=True, materialize_grads=True)
    return gradient


def _potential_name(cell: Cell) -> str:
    """Returns the name of the state that is drawn as the potential: ``v``, else the last but one."""
    names = cell.state_names()
    return "v" if "v" in names else names[max(len(names) - 2, 0)]


def _note(states: dict[str, Tensor], gradient: Tensor) -> str:
    """Returns a warning about states or gradients that are not finite; an empty text if all are."""
    for name, values in states.items():
        infinite = (~values.isfinite()).nonzero()
        if len(infinite):
            return f"{name} is not finite from step {int(infinite[0, 0])} on"
    too_large = (~(gradient.abs() < MAX_VALUE)).nonzero()
    if len(too_large):
        return f"the gradient explodes: up to step {int(too_large[-1, 0])} it is too large to be drawn"
    return ""


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    """Returns `values` as floats, with NaN for values that are too large to draw or not finite."""
    array = values.detach().double().numpy().copy()
    array[~(np.abs(array) < MAX_VALUE)] = np.nan
    return array
