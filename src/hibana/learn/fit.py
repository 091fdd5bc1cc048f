"""``hb.learn.fit_cell``: the parameters of a neuron from a recording of currents, potentials and spikes."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.cells.base import check_cell
from hibana.compiler import unroll
from hibana.learn.likelihood import SCALING, Likelihood, Recording, ScaledCell
from hibana.learn.quasi_newton import minimize, newton

__all__ = ["Fit", "fit_cell", "gamma_factor"]

NEWTON_STEPS = 5
"""Newton's steps of the best start."""
TIE = 0.5
"""Starts whose loss is at most so far above the lowest are compared by their gamma factors."""
ROUNDS, DRAWS = 3, 96
"""Rounds, and draws per round, of candidates near the maximum of the likelihood."""
MOST_DRAWN = 0.2
"""Largest standard deviation of a draw, in the unbounded parameters."""
PENALTY = 0.001
"""Gamma factor that a candidate must gain for each squared standard deviation from the best likelihood."""


@dataclass(frozen=True)
class Fit:
    """The result of :func:`fit_cell`; as text, its table.

    Args:
        cell: the cell with the fitted values.
        values: the fitted values by name, with `gain`, `bias` and `offset`.
        starts: the values at which the best start began.
        errors: standard error of each value, by the curvature of the likelihood. The recording
            does not determine a value whose error is a large part of its bounds.
        bounds: lowest and highest value.
        recording: the recording, from `step` on not used for the fit.
        step: the first held-out step.
        precision: largest distance of coinciding spikes, in ms.
    """

    cell: Cell
    values: dict[str, float]
    starts: dict[str, float]
    errors: dict[str, float]
    bounds: dict[str, tuple[float, float]]
    recording: Recording
    step: int
    precision: float

    def simulate(self, currents: Any) -> tuple[Tensor, Tensor]:
        """Potential (in the recording's units) and spikes of the fitted cell, which starts from its rest.

        Args:
            currents: ``[T]`` or ``[T, trials]``, in the unit of the fit.
        """
        inputs = torch.as_tensor(currents, dtype=torch.float64, device="cpu")
        select = torch.tensor([[1.0], [0.0]], dtype=torch.float64, device="cpu")
        outputs = _simulate(self.cell, self.values, inputs[:, None], select)
        return outputs[:, 0] + self.values.get("offset", 0.0), outputs[:, 1]

    def scores(self) -> dict[str, float]:
        """Gamma factors, and root mean square errors of the potential, of both parts of the recording.

        The fitted cell runs over the currents alone. Potentials near recorded or simulated spikes count, too.
        """
        scores, (voltage, spikes) = {}, self.simulate(self.recording.currents)
        for name, part in ("fitted", slice(0, self.step)), ("held out", slice(self.step, None)):
            data = self.recording.spikes[part]
            if bool(data.any()):
                steps = self.precision / self.recording.dt
                scores[f"gamma factor, {name}"] = gamma_factor(spikes[part], data, steps).mean().item()
            if self.recording.voltage is not None and len(data):
                error = voltage[part] - self.recording.voltage[part]
                scores[f"voltage error, {name}"] = error.square().mean().sqrt().item()
        return scores

    def __str__(self) -> str:
        rows = [f"{'value':<18}{'fitted':>10}{'error':>10}{'start':>10}{'bounds':>20}"]
        for name, (low, high) in self.bounds.items():
            numbers = self.values[name], self.errors[name], self.starts[name]
            cells = "".join(f"{number:>10.4g}" for number in numbers)
            rows.append(f"{name:<18}{cells}{f'{low:g} to {high:g}':>20}")
        return "\n".join(rows + [f"{name:<28}{score:>10.3f}" for name, score in self.scores().items()])


def fit_cell(
    cell: Cell,
    currents: Any,
    voltage: Any = None,
    spikes: Any = None,
    *,
    dt: float,
    bounds: Mapping[str, tuple[float, float]],
    held_out: float = 0.3,
    starts: int = 8,
    evaluations: int = 150,
    precision: float = 4.0,
    spike_width: float = 1.0,
    within: float = 0.0,
    seed: int = 0,
) -> Fit:
    """Fits values of a cell to a recording of one neuron, by gradients through the simulation.

    The values maximize the likelihood of the recording: Gaussian errors of the potential, and a soft
    threshold for the spikes. The cell is driven by ``gain * currents + bias``; its ``v + offset`` is compared
    with `voltage`. In the likelihood, recorded spikes reset the cell, and a recorded potential corrects its
    potential by a fitted fraction in each step. Random starts within the bounds are one batch. The real gamma
    factor, of the cell that runs over the currents alone, then decides between the best starts, and random
    values around them within the precision of the fit.

    Args:
        cell: with a `voltage`, a cell that has a state `v`; with `spikes`, one whose step calls
            ``self.surrogate`` with the distance to its threshold.
        currents: ``[T]`` or ``[T, trials]``, in any unit.
        voltage: potentials, such as in mV, of the shape of `currents`.
        spikes: 0 and 1, of the shape of `currents`; or spike times in ms, for one trial; or a number, the
            `voltage` whose upward crossings are spikes. None: the recording has no spikes.
        dt: length of a step in ms.
        bounds: lowest and highest value of attributes of the cell, of ``gain`` and ``bias`` of the input, and
            of ``offset`` of the voltage. Values without bounds stay as they are: 1, 0 and 0 for these three.
        held_out: fraction of the steps, at the end, that the fit doesn't use.
        starts: number of starts; the first one starts at the cell's values.
        evaluations: number of simulations of each start.
        precision: largest distance of coinciding spikes in the gamma factor, in ms.
        spike_width: errors of the potential up to so many ms from a recorded spike have the weight `within`.
        within: weight of these errors.
        seed: of the random starts.

    Raises:
        TypeError: if `cell` is not a cell.
        ValueError: if a shape, a bound or a value is wrong, or no start has a finite likelihood.

    Source: Jolivet et al. (2008), *A benchmark test for a quantitative assessment of simple neuron models*
    (gamma factor); Paninski, Pillow & Simoncelli (2004), *Maximum likelihood estimation of a stochastic
    integrate-and-fire neural encoding model*, and Mensi et al. (2012), *Parameter extraction and
    classification of three cortical neuron types* (likelihood drive the recorded spikes).

    >>> import torch, hibana as hb
    >>> currents = 0.2 * torch.rand(2000, dtype=torch.float64)
    >>> spikes = hb.OverTime(hb.LIFCell(tau=20.0))(currents[:, None])[:, 0]
    >>> fit = hb.learn.fit_cell(hb.LIFCell(), currents, spikes=spikes, dt=1.0, bounds={"tau": (5.0, 80.0)})
    >>> bool(19 < fit.cell.tau < 21)
    True
    """
    check_cell(cell)
    for name, ends in bounds.items():
        if not -math.inf < ends[0] < ends[1] < math.inf:
            raise ValueError(f"bounds must be a lower and a higher number, got {ends!r} for {name}")
        current = SCALING.get(name, getattr(cell, name, None))
        if isinstance(current, bool) or not isinstance(current, int | float | Tensor):
            kind = type(cell).__name__
            names = f"gain, bias, offset or numbers of {kind}"
            raise ValueError(f"bounds must name {names}, got {name!r}")  # noqa: TRY004 - a wrong name
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be a fraction from 0 to below 1, got {held_out!r}")
    recording = _recording(currents, voltage, spikes, dt)
    _check_states(cell, recording)
    step = round(len(recording.currents) * (1 - held_out))
    training = recording.before(step)
    likelihood = Likelihood(cell, training, bounds, spike_width, within)
    start = _starts(cell, likelihood, starts, seed)
    q, losses = minimize(likelihood, likelihood.parameters(start), evaluations)
    if not bool(losses.isfinite().any()):
        raise ValueError("bounds must contain values with a finite likelihood; none of the starts has one")
    candidates = (losses <= losses.min() + TIE).nonzero()[:, 0]
    index = losses.argmin()
    if likelihood.has_spikes:
        index = candidates[_gamma_factors(cell, likelihood, q[:, candidates], precision).argmax()]
    best, covariance = newton(likelihood, q[:, index], NEWTON_STEPS)
    covariance = covariance / likelihood.count
    if likelihood.has_spikes:
        best = _search(cell, likelihood, best, covariance, precision, seed)
    values = {name: value.item() for name, value in likelihood.values(best[:, None]).items()}
    fraction = torch.sigmoid(best[: len(values)])
    widths = likelihood.range[:, 0]
    spread = covariance.diagonal()[: len(values)].sqrt() * fraction * (1 - fraction) * widths
    fitted = copy.deepcopy(cell)
    for name in values.keys() - SCALING.keys():
        setattr(fitted, name, values[name])
    return Fit(
        cell=fitted,
        values=values,
        starts=dict(zip(values, start[:, index].tolist(), strict=True)),
        errors=dict(zip(values, torch.minimum(spread, widths).tolist(), strict=True)),
        bounds=dict(bounds),
        recording=recording,
        step=step,
        precision=precision,
    )


def gamma_factor(spikes: Tensor, data: Tensor, precision: float) -> Tensor:
    """The gamma factor of simulated and recorded spikes: 1 if all coincide, 0 as many as by chance.

        gamma = (C - 2 r P n) / ((m + n) / 2) / (1 - 2 r P)

    `C` of the `n` recorded spikes have a simulated spike at most `P` steps away; `m` is the number of
    simulated spikes, and `r` their number per step.

    Args:
        spikes: simulated spikes, 0 and 1, ``[T, ...]``.
        data: recorded spikes, ``[T, ...]``, which broadcast against them.
        precision: the distance `P` in steps.

    Returns:
        The gamma factors, of the shape of a step.

    Source: Jolivet et al. (2008), *A benchmark test for a quantitative assessment of simple neuron models*.
    """
    reach, steps = round(precision), len(spikes)
    counts = torch.cat([spikes.new_zeros(1, *spikes.shape[1:]), spikes.cumsum(0)])
    first = torch.arange(steps, dtype=torch.int64, device=spikes.device)
    near = counts[(first + reach + 1).clamp(max=steps)] - counts[(first - reach).clamp(min=0)]
    coincident = ((near > 0) * data).sum(0)
    recorded, simulated = data.sum(0), spikes.sum(0)
    chance = 2 * reach * simulated / steps
    total = (recorded + simulated) / 2
    return (coincident - chance * recorded) / total / (1 - chance)


def _recording(currents: Any, voltage: Any, spikes: Any, dt: float) -> Recording:
    """The recording as tensors ``[T, trials]``; raises ValueError if shapes or values are wrong."""
    if not dt > 0:
        raise ValueError(f"dt must be the positive length of a step in milliseconds, got {dt!r}")
    drive = torch.as_tensor(currents, dtype=torch.float64, device="cpu")
    if drive.ndim not in (1, 2) or len(drive) < 2:
        raise ValueError(f"currents must be [T] or [T, trials], got shape {tuple(drive.shape)}")
    potential = None if voltage is None else torch.as_tensor(voltage, dtype=torch.float64, device="cpu")
    if isinstance(spikes, int | float):
        if potential is None:
            raise ValueError(f"spikes is the level {spikes} of the voltage, but voltage is None")
        trains = (potential > spikes).double().diff(dim=0, prepend=potential[:1] > spikes).clamp(min=0)
    elif spikes is None:
        trains = torch.zeros_like(drive)
    else:
        trains = torch.as_tensor(spikes, dtype=torch.float64, device="cpu")
        if trains.ndim == drive.ndim == 1 and len(trains) != len(drive):
            steps = (trains / dt).round().long()
            if bool((steps < 0).any()) or bool((steps >= len(drive)).any()):
                raise ValueError(f"spikes must be times from 0 to {len(drive) * dt} ms, got {trains}")
            trains = torch.zeros_like(drive).index_fill(0, steps, 1)
    for name, tensor in ("currents", drive), ("voltage", potential), ("spikes", trains):
        if tensor is not None and tensor.shape != drive.shape:
            shapes = f"{tuple(drive.shape)}, got {tuple(tensor.shape)}"
            raise ValueError(f"{name} must have the shape of currents, {shapes}")
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite; leave out the steps without a recording")
    if potential is None and not bool(trains.any()):
        raise ValueError("voltage or spikes must be recorded; there is no voltage, and no spike")
    columns = (len(drive), -1)
    return Recording(
        drive.reshape(columns),
        potential if potential is None else potential.reshape(columns),
        trains.reshape(columns),
        float(dt),
    )


def _check_states(cell: Cell, recording: Recording) -> None:
    """Raises ValueError if `cell` lacks what the recording needs: a potential, or a soft threshold."""
    names, kind = cell.state_names(), type(cell).__name__
    if recording.voltage is not None and "v" not in names:
        raise ValueError(f"voltage needs a cell with a state v; the states of {kind} are {', '.join(names)}")
    if bool(recording.spikes.any()) and not callable(getattr(cell, "surrogate", None)):
        raise ValueError(
            f"spikes need a cell whose step calls self.surrogate(v - threshold); {kind} has no such attribute"
        )


def _starts(cell: Cell, likelihood: Likelihood, count: int, seed: int) -> Tensor:
    """Random values, ``[values, count]``; the first column has those of the cell, moved inside the bounds."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(likelihood.names), count
    fractions = 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    for row, name in enumerate(likelihood.names):
        if name not in SCALING:
            value = torch.as_tensor(getattr(cell, name), dtype=torch.float64, device="cpu").mean().detach()
            fractions[row, 0] = ((value - likelihood.lowest[row]) / likelihood.range[row]).clamp(0.1, 0.9)
    return likelihood.lowest + likelihood.range * fractions


def _simulate(cell: Cell, values: Mapping[str, Any], inputs: Tensor, select: Tensor) -> Tensor:
    """The outputs of the cell with `values`, which runs over `inputs` alone, ``[T, outputs, trials]``."""
    tensors = [select, *(value for value in values.values() if isinstance(value, Tensor))]
    shape = sum(tensors, inputs[0]).shape  # the broadcast shape
    with torch.no_grad():
        return unroll(ScaledCell(cell, values, select), inputs.expand(-1, *shape).contiguous())[0]


def _gamma_factors(cell: Cell, likelihood: Likelihood, q: Tensor, precision: float) -> Tensor:
    """The mean gamma factor over trials of each column of `q`, ``[candidates]``."""
    recording = likelihood.recording
    values = {name: value[:, None] for name, value in likelihood.values(q).items()}
    select = torch.zeros(1, dtype=torch.float64, device="cpu")
    spikes = _simulate(cell, values, recording.currents[:, None], select)
    gammas = gamma_factor(spikes, recording.spikes[:, None], precision / recording.dt)
    return gammas.nan_to_num(-1.0).mean(1)


def _search(
    cell: Cell, likelihood: Likelihood, q: Tensor, covariance: Tensor, precision: float, seed: int
) -> Tensor:
    """The point near `q` with the highest gamma factor, less a penalty for its distance from `q`."""
    generator = torch.Generator().manual_seed(seed)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    axes = vectors * eigenvalues.clamp(0, MOST_DRAWN**2).sqrt()
    deviations = torch.zeros(len(q), 1, dtype=q.dtype, device=q.device)
    for _ in range(ROUNDS):
        noise = torch.randn(len(q), DRAWS, generator=generator, dtype=q.dtype, device="cpu")
        draws: Tensor = torch.cat([deviations, deviations + 2 * noise], 1)
        scores = _gamma_factors(cell, likelihood, q[:, None] + axes @ draws, precision)
        deviations = draws[:, [(scores - PENALTY * draws.square().sum(0)).argmax()]]
    best: Tensor = q + (axes @ deviations)[:, 0]
    return best
