"""Leaky integrate-and-fire, variants with a learned leak, a synaptic current or a rest; and the readout."""

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from hibana.cells.base import BuiltIn
from hibana.cells.ranges import AtLeast
from hibana.cells.spiking import Spiking, bounded_below, decay
from hibana.cells.surrogate import Step, Surrogate
from hibana.cells.values import Learn, Reset, Value, finite, time_constant

__all__ = ["CubaLIFCell", "LICell", "LIFCell", "PLIFCell", "RefractoryLIFCell"]


@final
class LIFCell(Spiking):
    """Leaky integrate-and-fire.

        v = (1 - 1/tau) * rested(v_previous) + input_,   rested(v) = v * (1 - s_previous)
        s = H(v - threshold)

    The options after `learn` reproduce neurons of other libraries.

    Args:
        tau: membrane time constant in time steps, at least 1; an infinite one gives :class:`IFCell`.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.
        rest: the potential that `v` leaks to, ``v = rest + (1 - 1/tau) * (rested - rest) + input_``:
            SpikingJelly's `v_reset` is `rest` and `reset`.
        decay_input: add ``input_/tau`` instead of ``input_``, as SpikingJelly does by default.
        leak_first: subtract the threshold after the leak and the input, ``v = (1 - 1/tau) * v_previous +
            input_ - s_previous * threshold``: snnTorch's delayed reset; only with ``reset="subtract"``.
        lower_bound: lower bound of the potential after the reset, sinabs' `min_v_mem`.
        most_spikes: most spikes in one step, ``s = sum_(k <= most_spikes) H(v - k * threshold)``: sinabs'
            multi-spike, where each spike subtracts one threshold; only with ``reset="subtract"``.

    Source: Gerstner, Kistler, Naud & Paninski (2014), *Neuronal dynamics*, section 1.3, in forward
    Euler steps, the input in units of potential per step.
    """

    tau = AtLeast(1.0)
    rare = ("rest", "decay_input", "leak_first", "lower_bound", "most_spikes")

    def __init__(
        self,
        tau: Value = 2.0,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
        learn: Learn = (),
        rest: Value = 0.0,
        decay_input: bool = False,
        leak_first: bool = False,
        lower_bound: Value | None = None,
        most_spikes: int = 1,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)
        self.rest = finite("rest", rest)
        self.decay_input, self.leak_first = decay_input, leak_first
        self.lower_bound = None if lower_bound is None else finite("lower_bound", lower_bound)
        if isinstance(most_spikes, bool) or not isinstance(most_spikes, int) or most_spikes < 1:
            raise ValueError(f"most_spikes must be a whole number of at least 1, got {most_spikes!r}")
        if most_spikes > 1 and not isinstance(reset, str):
            raise ValueError(f'reset must be "subtract" where most_spikes is above 1, got {reset!r}')
        if leak_first and (not isinstance(reset, str) or lower_bound is not None):
            raise ValueError(
                f'reset must be "subtract", without a lower_bound, where leak_first is True, got {reset!r}'
            )
        self.most_spikes = most_spikes
        self._learn(learn)

    def forward(self, input_: Tensor, v_previous: Tensor, s_previous: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The next state, by the equations of the class."""
        drive = input_ / self.tau if self.decay_input else input_
        if self.leak_first:
            v = self._rested(self._leaked(v_previous) + drive, s_previous)
        else:
            v = self._leaked(bounded_below(self._rested(v_previous, s_previous), self.lower_bound)) + drive
        spikes = self.surrogate(v - self.threshold)
        for count in range(2, self.most_spikes + 1):
            spikes = spikes + self.surrogate(v - self.threshold * count)
        return v, spikes

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The potential `rest`, and zero spikes."""
        spikes = torch.zeros_like(input_)
        return spikes + self.rest, spikes

    def rests_at_zero(self) -> bool:
        is_zero = not isinstance(self.rest, Tensor) and self.rest == 0
        return is_zero and self._starts_with(LIFCell.initial_state)

    def _leaked(self, v: Tensor) -> Tensor:
        """The potential `v` after one step of the leak towards `rest`."""
        if not isinstance(self.rest, Tensor) and self.rest == 0:
            return v * decay(self.tau)
        return (v - self.rest) * decay(self.tau) + self.rest


@final
class PLIFCell(Spiking):
    """Leaky integrate-and-fire with a learnable time constant, for the layer or for each neuron.

        v = (1 - k) * rested(v_previous) + k * input_,   k = 1/tau = sigmoid(w)
        s = H(v - threshold)

    Args:
        tau: initial membrane time constant in time steps, above 1. The parameter `w` has as many elements as
            `tau`: one for the layer if it is a number, one per neuron if it is a tensor.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.
        learn: names of values to make parameters of, such as ``"threshold"``; a tensor is one per neuron.

    Source: Fang et al. (2021), *Incorporating learnable membrane time constant to enhance learning of
    spiking neural networks*.
    """

    def __init__(
        self,
        tau: Value = 2.0,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        initial_tau = torch.as_tensor(tau, dtype=torch.float64, device="cpu").detach()
        if not bool((initial_tau.isfinite() & (initial_tau > 1)).all()):
            raise ValueError(f"tau must be finite and above 1, got {tau!r}")
        start = -(initial_tau - 1.0).log()
        self.start = start.item() if start.ndim == 0 else start.tolist()
        size = start.shape or (1,)  # FSDP shards no scalar parameters
        empty = torch.empty(size, dtype=torch.get_default_dtype(), device=torch.get_default_device())
        self.w = nn.Parameter(empty)
        self.reset_parameters()
        self._learn(learn)

    @property
    def tau(self) -> Tensor:
        """The time constant ``1/sigmoid(w)`` in time steps, above 1."""
        return 1 / self._k()

    def reset_parameters(self) -> None:
        """Sets `w` to its initial value, for parameters that were created on the meta device."""
        with torch.no_grad():
            self.w.copy_(torch.tensor(self.start, dtype=self.w.dtype, device=self.w.device))

    def _k(self) -> Tensor:
        """``1/tau``, a scalar if `tau` is one number."""
        k = torch.sigmoid(self.w)
        is_shared = not isinstance(self.start, list) or len(self.start) == 1  # a step must not read w's size
        return k.squeeze(0) if is_shared else k

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loads the parameter `w`, also from checkpoints where it is a scalar."""
        if (w := state_dict.get(f"{prefix}w")) is not None and w.ndim == 0:
            state_dict[f"{prefix}w"] = w.reshape(1)  # old checkpoints have a scalar
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, input_: Tensor, v_previous: Tensor, s_previous: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The next state, by the equations of the class."""
        k = self._k()
        v = self._rested(v_previous, s_previous) * (1 - k) + input_ * k
        return v, self.surrogate(v - self.threshold)


@final
class CubaLIFCell(Spiking):
    """Leaky integrate-and-fire driven through a synaptic current.

        i = (1 - 1/tau_synapse) * i_previous + input_
        v = (1 - 1/tau) * rested(v_previous) + i
        s = H(v - threshold)

    Args:
        tau_synapse: time constant of the synaptic current, in time steps.
        tau: membrane time constant, in time steps.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.

    Source: Gerstner et al. (2014), *Neuronal dynamics*, section 1.3, with current-based synapses
    (section 3.1).
    """

    tau_synapse = AtLeast(1.0)
    tau = AtLeast(1.0)

    def __init__(
        self,
        tau_synapse: Value = 2.0,
        tau: Value = 2.0,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau_synapse = time_constant("tau_synapse", tau_synapse)
        self.tau = time_constant("tau", tau)
        self._learn(learn)

    def forward(  # type: ignore[override]
        self, input_: Tensor, i_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next current, potential and spikes; the potential is reset after a spike, and decays."""
        i = i_previous * decay(self.tau_synapse) + input_
        v = self._rested(v_previous, s_previous) * decay(self.tau) + i
        return i, v, self.surrogate(v - self.threshold)


@final
class RefractoryLIFCell(Spiking):
    """Leaky integrate-and-fire that rests for `period` steps after each spike.

        r = period               if s_previous
            max(r_previous - 1, 0)  otherwise
        v = (1 - 1/tau) * rested(v_previous) + (input_ if r == 0 else 0)
        s = H(v - threshold)  where r == 0, else 0

    Args:
        tau: membrane time constant, in time steps.
        period: refractory period, in whole time steps; 0 gives :class:`LIFCell`.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.

    Source: Gerstner et al. (2014), *Neuronal dynamics*, section 1.3 (absolute refractoriness).
    """

    tau = AtLeast(1.0)

    def __init__(
        self,
        tau: Value = 2.0,
        period: int = 2,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)
        if isinstance(period, bool) or not (math.isfinite(period) and period >= 0 and period == int(period)):
            raise ValueError(f"period must be a whole number of steps, 0 or more, got {period!r}")
        self.period = float(period)
        self._learn(learn)

    def forward(  # type: ignore[override]
        self, input_: Tensor, r_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next state, by the equations of the class."""
        r = torch.where(s_previous > 0, self.period, torch.clamp(r_previous - 1, min=0))
        is_active = (r == 0).to(input_.dtype)
        v = self._rested(v_previous, s_previous) * decay(self.tau) + input_ * is_active
        return r, v, self.surrogate(v - self.threshold) * is_active


@final
class LICell(BuiltIn):
    """Leaky integrator: a readout that emits its membrane potential and never spikes.

        v = (1 - 1/tau) * v_previous + input_

    Args:
        tau: membrane time constant, in time steps; with the default, infinity, `v` is the sum of the input.
        learn: ``"tau"`` to learn it; a tensor is one per neuron.

    Source: Gerstner et al. (2014), *Neuronal dynamics*, section 1.3, without a threshold.
    """

    tau = AtLeast(1.0)

    def __init__(self, tau: Value = math.inf, *, learn: Learn = ()) -> None:
        super().__init__()
        self.tau = time_constant("tau", tau)
        self._learn(learn)

    def forward(self, input_: Tensor, v_previous: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        """The next state, by the equations of the class."""
        return (v_previous * decay(self.tau) + input_,)
