"""The likelihood of a recording under a cell, for many parameter sets at once, and its gradient.

The likelihood conditions on the recording: the cell's spikes are the recorded spikes, and its potential
follows the recorded potential. So gradients through many thousands of steps neither explode nor vanish.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from hibana.cells import Cell
from hibana.cells.surrogate import Surrogate
from hibana.compiler import unroll
from hibana.nn.layers import WrapperCell

SCALING = {"gain": 1.0, "bias": 0.0, "offset": 0.0, "correction": 0.0}
"""Values that relate a recording to a cell: ``input = gain * current + bias``, ``voltage = v + offset``; and
the correction of the potential in :class:`_FollowingCell`."""
LEVELS = 2**20
"""Number of levels to which recorded potentials are rounded where they correct the cell's potential."""
WIDTH = 0.3
"""Initial width of the soft threshold, in standard deviations of the potential."""


@dataclass(frozen=True)
class Recording:
    """Currents, potentials (or None) and spikes (0 and 1), each ``[T, trials]`` in float64; `dt` in ms."""

    currents: Tensor
    voltage: Tensor | None
    spikes: Tensor
    dt: float

    def before(self, step: int) -> "Recording":
        """The steps before `step`."""
        voltage = None if self.voltage is None else self.voltage[:step]
        return Recording(self.currents[:step], voltage, self.spikes[:step], self.dt)


@final
@dataclass(frozen=True)
class _Distance(Surrogate):
    """Returns its argument, the distance to the threshold, in place of a spike."""

    def derivative(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def __call__(self, x: Tensor) -> Tensor:
        return x


class ScaledCell(WrapperCell):
    """A cell driven by ``gain * input + bias``, whose output is its potential or its own output.

    Args:
        cell: the cell.
        values: values of `cell`, and the values of :data:`SCALING`.
        select: 1 for the potential, 0 for the output of `cell`; broadcasts against one step of input.
    """

    gain: Any
    bias: Any
    offset: Any
    correction: Any

    def __init__(self, cell: Cell, values: Mapping[str, Tensor | float], select: Tensor) -> None:
        super().__init__(copy.deepcopy(cell).double())
        self.select, self.emits_spikes = select, False
        self.set({**SCALING, **values})

    def set(self, values: Mapping[str, Tensor | float]) -> None:
        """Sets values of the inner cell and of :data:`SCALING`."""
        for name, value in values.items():
            setattr(self if name in SCALING else self.cell, name, value)

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # the names depend on `cell`
        return (*self.cell.state_names(), "output")

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        return (*self.cell.initial_state(input_), torch.zeros_like(input_))

    def rests_at_zero(self) -> bool:
        return False

    def forward(self, input_: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The next state of the cell, and the output."""
        new = self.cell(input_ * self.gain + self.bias, *state[:-1])
        return (*new, new[-1] + (self._potential(new) - new[-1]) * self.select)

    def _potential(self, state: tuple[Tensor, ...]) -> Tensor:
        """The potential among the states of the inner cell; its output if it has no state `v`."""
        names = self.cell.state_names()
        return state[names.index("v") if "v" in names else -1]


class _FollowingCell(ScaledCell):
    """A :class:`ScaledCell` that follows a recording: an input is a current plus `unit` times a code.

    The code of the previous step is -1 for a recorded spike, and k > 0 for a recorded potential of
    ``k * resolution``. Spikes of the cell are the recorded spikes, and its potential moves towards the
    recorded potential by the fraction `correction` of their difference, as in a Kalman filter in its steady
    state. A potential above the threshold starts from the threshold, so that it does not diverge while it
    waits for the recorded spike.
    """

    unit: float
    resolution: float

    def forward(self, input_: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The next state of the cell, from the recorded spikes and the corrected potential."""
        code = torch.floor(input_ / self.unit + 0.5)
        names, inner = self.cell.state_names(), list(state)
        if hasattr(self.cell, "surrogate"):
            inner[len(names) - 1] = (code < 0).to(input_.dtype)
        if "v" in names:
            v = state[names.index("v")]
            if (threshold := getattr(self.cell, "threshold", None)) is not None:
                v = torch.where(v > threshold, threshold, v)
            error = code * self.resolution - self.offset - v
            inner[names.index("v")] = v + error * self.correction * (code > 0).to(input_.dtype)
        return super().forward(input_ - code * self.unit, *inner)


class Likelihood:
    """Minus the log-likelihood of a recording per spike, for columns of unbounded parameters.

        L = n/2 log(mean of e^2) + sum over steps (log(1 + exp(z)) - s z)
        e = recorded potential - potential of the cell          outside of spikes, n steps
        z = (distance of the cell to its threshold) / width + hazard

    `z` is a soft threshold: ``sigmoid(z)`` is the probability of a spike in a step. The width and the
    correction of :class:`_FollowingCell` are two more parameters.

    Args:
        cell: the cell.
        recording: the recording.
        bounds: lowest and highest value by name.
        spike_width: errors of the potential up to so many milliseconds from a spike have the weight `within`.
        within: weight of these errors.
    """

    def __init__(
        self,
        cell: Cell,
        recording: Recording,
        bounds: Mapping[str, tuple[float, float]],
        spike_width: float,
        within: float,
    ) -> None:
        self.recording, self.names = recording, tuple(bounds)
        ends = torch.tensor([*bounds.values()], dtype=torch.float64, device="cpu")
        self.lowest, self.range = ends[:, :1], ends[:, 1:] - ends[:, :1]
        currents, voltage, spikes = recording.currents, recording.voltage, recording.spikes
        self.count = max(1.0, float(spikes.sum()))
        self.has_spikes = bool(spikes.any())
        steps = round(spike_width / recording.dt)
        near = F.max_pool1d(spikes.T[:, None], 2 * steps + 1, 1, steps)[:, 0].T
        self.weights = torch.where(near > 0, within, 1.0).double()[:, None]  # [T, 1, trials]
        outputs = [1.0] * (voltage is not None) + [0.0] * self.has_spikes
        self.select = torch.tensor(outputs, dtype=torch.float64, device="cpu")[:, None]
        self.follower = _FollowingCell(cell, {}, self.select)
        if hasattr(cell, "surrogate"):
            self.follower.cell.surrogate = _Distance()
        self.follower.unit = 2.0 ** math.ceil(math.log2(4 * float(currents.abs().max()) + 1e-30))
        self.lowest_voltage, self.scale, codes = 0.0, 1.0, torch.zeros_like(currents)
        # a potential that is not recorded leaves open in which of several steps it crosses the threshold
        self.hazard = math.log(recording.dt) if voltage is None else 0.0
        self.follower.resolution = 0.0
        if voltage is not None:
            self.scale = float(voltage.std())
            self.lowest_voltage = float(voltage.min()) - self.scale
            self.follower.resolution = (float(voltage.max()) - self.lowest_voltage) / LEVELS
            codes = ((voltage - self.lowest_voltage) / self.follower.resolution).round() * (near == 0)
        codes = torch.where(spikes > 0, -1.0, codes).roll(1, 0)
        codes[0] = 0
        self.inputs = (currents + self.follower.unit * codes)[:, None, None]  # [T, 1, 1, trials]

    def values(self, q: Tensor) -> dict[str, Tensor]:
        """The values, within their bounds, of the parameters `q`, ``[parameters, starts]``."""
        values = self.lowest + self.range * torch.sigmoid(q[: len(self.names)])
        return dict(zip(self.names, values, strict=True))

    def parameters(self, values: Tensor) -> Tensor:
        """The parameters of `values`, ``[values, starts]``, which lie inside their bounds."""
        q = torch.logit((values - self.lowest) / self.range)
        others = q.new_tensor([[-3.0], [math.log(WIDTH)]])  # of the correction and of the width
        return torch.cat([q, others.expand(2, q.shape[1])])

    def __call__(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each column of `q`, ``[starts]``, and its gradient, ``[parameters, starts]``."""
        q = q.detach().requires_grad_()
        values = self.values(q)
        offset = values.get("offset", 0 * q[0])
        correction = torch.sigmoid(q[-2]) * (self.recording.voltage is not None)
        tensors = {**values, "offset": offset - self.lowest_voltage, "correction": correction}
        self.follower.set({name: value[:, None, None] for name, value in tensors.items()})
        outputs, _ = unroll(
            self.follower, self.inputs.expand(-1, q.shape[1], len(self.select), -1).contiguous()
        )
        loss = self._loss(outputs, offset, q[-1])
        (gradient,) = torch.autograd.grad(loss.sum(), q)
        return loss.detach(), gradient

    def _loss(self, outputs: Tensor, offset: Tensor, log_width: Tensor) -> Tensor:
        """The loss, ``[starts]``, of the outputs ``[T, starts, potential and distance, trials]``."""
        loss, recording = torch.zeros_like(offset), self.recording
        if recording.voltage is not None:
            errors = outputs[:, :, 0] + offset[:, None] - recording.voltage[:, None]
            total = self.weights.sum()
            mean = (errors.square() * self.weights).sum((0, 2)) / total
            loss = loss + mean.log() * total / (2 * self.count)
        if self.has_spikes:
            z = outputs[:, :, -1] / (log_width.exp() * self.scale)[:, None] + self.hazard
            losses = F.softplus(z) - recording.spikes[:, None] * z
            loss = loss + losses.sum((0, 2)) / self.count
        return loss
