"""One cell under one current: its potential, spikes, F-I curve, surrogate and gradient.

Everything is computed from the cell's behaviour (its named states, its steps, autograd), so pasted cells work
like built-in ones. Arguments are plain values, results NumPy arrays.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.cli.play.source import Trouble, describe_error, make_cell
from hibana.compiler import unroll

__all__ = ["SHAPES", "STEPS", "answer", "input_range"]

STEPS = 200
"""Time steps."""
CURRENTS, COPIES = 49, 16
"""Points of the F-I curve, and neurons with independent noise at each."""
SHAPES = ("constant", "pulse", "ramp", "sine")
"""The input's course over time, before noise."""
LARGEST = 1e30
"""Larger values are not drawn."""

Answer = dict[str, Any]


def input_range(kind: type[Cell]) -> tuple[float, float]:
    """The first strength and the range of the input of a cell; see :func:`_range`.

    Raises:
        Trouble: if the cell can't be made with its defaults, or fails.
    """
    try:
        return _range(make_cell(kind, {}))
    except Trouble:
        raise
    except Exception as error:  # of a pasted cell
        raise Trouble(describe_error(error)) from error


def answer(
    kind: type[Cell],
    values: dict[str, Any],
    *,
    strength: float,
    noise: float,
    top: float,
    shape: str = "constant",
) -> Answer:
    """One neuron at rest, then :data:`STEPS` steps of ``input_t = strength * shape_t + noise * N(0, 1)``.

    Args:
        kind: the class of the cell.
        values: its hyper-parameters; of a surrogate ``(name, {parameter: value})``.
        strength: of the input.
        noise: standard deviation of the noise; the draw is always the same.
        top: the largest current of the F-I curve.
        shape: one of :data:`SHAPES`.

    Returns:
        ``time, input, potential, emitted``, ``[STEPS]``; ``others``, the further states by name;
        ``gradient``, d(sum of the outputs)/d(input_t); ``spiking``; ``spikes``, their steps; ``rate``;
        ``currents, rates``: the F-I curve, the mean output per step under a constant current with that noise;
        ``threshold``, ``step``: see :func:`_one_step`; ``name`` of the potential; and ``note``, a warning or
        an empty text.

    Raises:
        Trouble: if a value is refused, or the cell fails.
    """
    for name, value in (("input strength", strength), ("input noise", noise)):
        if not math.isfinite(value):
            raise Trouble(f"{name} must be finite, got {value!r}")
    if noise < 0:
        raise Trouble(f"input noise must be at least 0, got {noise!r}")
    made = make_cell(kind, values)
    try:
        return _answer(made, strength, noise, top, shape)
    except (Trouble, KeyboardInterrupt):
        raise
    except Exception as error:  # of a pasted cell
        raise Trouble(describe_error(error)) from error


def _answer(made: Cell, strength: float, noise: float, top: float, shape: str) -> Answer:
    draw = _draw()
    currents = torch.linspace(0, top, CURRENTS, dtype=torch.float32, device="cpu")
    constant = currents.repeat_interleave(COPIES) + noise * draw[:, 1:]
    inputs = (strength * _shape(shape)[:, None] + noise * draw[:, :1]).requires_grad_()

    with torch.no_grad():
        states = _states(made, inputs)
    emitted = _emitted(made, inputs)
    gradient = _gradient(emitted.sum(), inputs)[:, 0]
    with torch.no_grad():
        responses = _emitted(made, constant)
    threshold, step = _one_step(made)
    potential = _potential(made)
    shown = emitted.detach()[:, 0]
    fires = all(bool(((each == 0) | (each == 1)).all()) for each in (shown, responses))
    spiking = step is not None or (fires and bool(shown.any() or responses.any()))
    return {
        "time": np.arange(STEPS),
        "input": _array(inputs[:, 0]),
        "name": potential,
        "potential": _array(states[potential][:, 0]),
        "emitted": _array(shown),
        "others": {n: _array(v[:, 0]) for n, v in list(states.items())[:-1] if n != potential},
        "gradient": _array(gradient),
        "spiking": spiking,
        "spikes": shown.nonzero().flatten().numpy() if spiking else np.zeros(0, int),
        "rate": float(shown.mean()),
        "currents": _array(currents),
        "rates": _array(responses.reshape(STEPS, CURRENTS, COPIES).mean(dim=(0, 2))),
        "threshold": threshold,
        "step": step,
        "note": _note(states, gradient),
    }


def _one_step(cell: Cell) -> tuple[float, Answer] | tuple[None, None]:
    """The threshold, and ``v``, ``s`` and ``derivative``, ds/dv, in one step from rest; None without spikes.

    The threshold is the potential after the smallest single input that makes the cell spike, found on a
    geometric grid that is refined twice. For inputs up to twice as large, ``(ds/dinput) / (dv/dinput)`` is
    the surrogate, ``ds/dv``.
    """
    grid = torch.from_numpy(np.concatenate([[0.0], np.logspace(-3, 4, 141)]))
    for _ in range(3):
        with torch.no_grad():
            s = _stepped(cell, grid)[-1]
        on = ((s != 0) & s.isfinite()).nonzero().flatten()
        if not bool(((s == 0) | (s == 1)).all()) or not len(on) or on[0] == 0:
            return None, None
        first = int(on[0])
        lower, upper = grid[first - 1 : first + 1].tolist()
        grid = torch.linspace(lower, upper, 257, dtype=torch.float64, device="cpu")
    onset = float(grid[-1])
    index = cell.state_names().index(_potential(cell))
    inputs = torch.linspace(0, 2 * onset, 401, dtype=torch.float64, device="cpu").requires_grad_()
    states = _stepped(cell, inputs)
    dv, ds = (_gradient(states[each].sum(), inputs) for each in (index, -1))
    if not bool(dv.any()):
        return None, None
    with torch.no_grad():
        threshold = float(_stepped(cell, grid[-1:])[index])
    return threshold, {"v": _array(states[index]), "s": _array(states[-1]), "derivative": _array(ds / dv)}


def _stepped(cell: Cell, input_: Tensor) -> tuple[Tensor, ...]:
    state = cell.initial_state(input_.detach())
    return cell(input_, *state)  # type: ignore[no-any-return] # nn.Module's call is untyped


def _states(cell: Cell, inputs: Tensor) -> dict[str, Tensor]:
    """Every state of the reference loop over time, each ``[T, N]``.

    Raises:
        Trouble: if the step returns a state that is not like the input.
    """
    state, steps = cell.initial_state(inputs[0]), []
    for input_ in inputs.unbind(0):
        state = cell(input_, *state)
        steps.append(state)
    names = cell.state_names()
    if not isinstance(state, tuple | list) or len(state) != len(names):
        raise Trouble(f"forward must return ({', '.join(names)})")
    for name, value in zip(names, state, strict=True):
        if not isinstance(value, Tensor) or value.shape != inputs[0].shape or not value.is_floating_point():
            raise Trouble(f"forward must return ({', '.join(names)}), each like the input; {name} is not")
    return {name: torch.stack(values) for name, values in zip(names, zip(*steps, strict=True), strict=True)}


def _emitted(cell: Cell, inputs: Tensor, backend: str = "auto") -> Tensor:
    emitted, _ = unroll(cell, inputs, backend=backend)
    if emitted.shape != inputs.shape:
        wanted, made = list(inputs.shape), list(emitted.shape)
        raise Trouble(f"the cell must be pointwise; of inputs {wanted} it made {made}")
    return emitted


def _gradient(total: Tensor, inputs: Tensor) -> Tensor:
    """d(total)/d(inputs), zero if they are not connected."""
    if not total.requires_grad:
        return torch.zeros_like(inputs)
    (gradient,) = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
    return torch.zeros_like(inputs) if gradient is None else gradient


def _potential(cell: Cell) -> str:
    """The state that is shown as the potential: ``v``, or the last but one."""
    return "v" if "v" in cell.state_names() else cell.state_names()[max(len(cell.state_names()) - 2, 0)]


def _range(cell: Cell) -> tuple[float, float]:
    """The first strength and the range of the input.

    The range is five times the current that causes a spike in 20 steps, or 1.25 times the current that causes
    half of the largest rate if that is less; the strength is 1.25 times the former current. A cell that never
    fires has (0.5, 1).
    """
    currents = torch.logspace(-3, 3, 121, dtype=torch.float32, device="cpu")
    inputs = currents.expand(STEPS, -1)
    with torch.no_grad():
        _states(cell, inputs[:1, :1])
        emitted = _emitted(cell, inputs, backend="reference")
    rates = emitted.mean(dim=0)
    firing = (rates >= 0.05) & ((emitted == 0) | (emitted == 1)).all(dim=0)
    if not bool(firing.any()):
        return 0.5, 1.0
    first = float(currents[firing][0])
    half = float(currents[firing & (rates >= rates[firing].max() / 2)][0])
    wanted = min(5 * first, 1.25 * half)
    power = 10.0 ** math.floor(math.log10(wanted))
    top = float(f"{min(f * power for f in (1, 2, 5, 10) if f * power >= wanted * 0.999):.3g}")
    return float(f"{1.25 * first:.2g}"), top


def _draw() -> Tensor:
    """The noise of the neuron, and of those of the F-I curve."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(STEPS, 1 + CURRENTS * COPIES, generator=generator, dtype=torch.float32, device="cpu")


def _shape(shape: str) -> Tensor:
    """The input's course over time, at most 1."""
    t = torch.arange(STEPS, dtype=torch.float32, device="cpu")
    match shape:
        case "constant":
            return torch.ones(STEPS, dtype=torch.float32, device="cpu")
        case "pulse":
            return ((t >= STEPS // 4) & (t < 3 * STEPS // 4)).float()
        case "ramp":
            return t / (STEPS - 1)
        case "sine":
            return 0.5 - 0.5 * torch.cos(2 * math.pi * t / (STEPS / 2))
    raise Trouble(f"course must be one of {', '.join(SHAPES)}; got {shape!r}")


def _note(states: dict[str, Tensor], gradient: Tensor) -> str:
    for name, values in states.items():
        broken = (~values.isfinite()).nonzero()
        if len(broken):
            return f"{name} leaves the finite numbers at step {int(broken[0, 0])}"
    broken = (~(gradient.abs() < LARGEST)).nonzero()
    if len(broken):
        return f"the gradient explodes: up to step {int(broken[-1, 0])} it is too large to be drawn"
    return ""


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    """`values` as floats; NaN if they are too large to draw or not finite."""
    array = values.detach().double().numpy().copy()
    array[~(np.abs(array) < LARGEST)] = np.nan
    return array
