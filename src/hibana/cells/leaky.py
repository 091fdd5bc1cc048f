"""Leaky integrate-and-fire, what is learnt of it, what drives it and what holds it back; the readout."""

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from hibana.cells.base import BuiltIn
from hibana.cells.ranges import AtLeast
from hibana.cells.spiking import Spiking, bounded_below, decay
from hibana.cells.surrogate import Step, Surrogate
from hibana.cells.values import Learn, Reset, Value, finite, time_constant


@final
class LIFCell(Spiking):
    """Leaky integrate-and-fire.

        v = (1 - 1/tau) * rested(v_previous) + input_,   rested(v) = v * (1 - s_previous)
        s = H(v - threshold)

    The options after `learn` are what neurons of other libraries do.

    Args:
        tau: membrane time constant in time steps, at least 1; infinite is :class:`IFCell`.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.
        rest: the potential that `v` leaks to, ``v = rest + (1 - 1/tau) * (rested - rest) + input_``:
            SpikingJelly's `v_reset` is `rest` and `reset`.
        decay_input: the input counts ``input_/tau``, as SpikingJelly's does by default.
        leak_first: the threshold is subtracted after the leak and the input, ``v = (1 - 1/tau) * v_previous +
            input_ - s_previous * threshold``: snnTorch's delayed reset; only with ``reset="subtract"``.
        lower_bound: what the potential after the reset does not fall below, as sinabs' `min_v_mem`.
        most_spikes: in one step, ``s = sum_(k <= most_spikes) H(v - k * threshold)``: sinabs' multi-spike, of
            which each takes one threshold; only with ``reset="subtract"``.

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
        """The potential at `rest`, and no spike."""
        spikes = torch.zeros_like(input_)
        return spikes + self.rest, spikes

    def rests_at_zero(self) -> bool:
        return not isinstance(self.rest, Tensor) and self.rest == 0

    def _leaked(self, v: Tensor) -> Tensor:
        if not isinstance(self.rest, Tensor) and self.rest == 0:
            return v * decay(self.tau)
        return (v - self.rest) * decay(self.tau) + self.rest


@final
class PLIFCell(Spiking):
    """Leaky integrate-and-fire with a learnable time constant, for the layer or for each neuron.

        v = (1 - k) * rested(v_previous) + k * input_,   k = 1/tau = sigmoid(w)
        s = H(v - threshold)

    Args:
        tau: membrane time constant in time steps to start from, above 1; `w` is the parameter, of as many
            elements as `tau` has: a number is one for the layer, a tensor one for each neuron.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.

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
        begun = torch.as_tensor(tau, dtype=torch.float64, device="cpu").detach()
        if not bool((begun.isfinite() & (begun > 1)).all()):
            raise ValueError(f"tau must be finite and above 1, got {tau!r}")
        start = -(begun - 1.0).log()
        self.start = start.item() if start.ndim == 0 else start.tolist()
        size = start.shape or (1,)  # what shards parameters takes no scalars
        blank = torch.empty(size, dtype=torch.get_default_dtype(), device=torch.get_default_device())
        self.w = nn.Parameter(blank)
        self.reset_parameters()
        self._learn(learn)

    @property
    def tau(self) -> Tensor:
        """The time constant that `w` stands for, in time steps: ``1/sigmoid(w)``, above 1."""
        return 1 / self._k()

    def reset_parameters(self) -> None:
        """Sets `w` to what it was made with; for parameters that were made without memory."""
        with torch.no_grad():
            self.w.copy_(torch.tensor(self.start, dtype=self.w.dtype, device=self.w.device))

    def _k(self) -> Tensor:
        k = torch.sigmoid(self.w)  # whose size no step may ask for, or it is one for that size
        alone = not isinstance(self.start, list) or len(self.start) == 1
        return k.squeeze(0) if alone else k

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (w := state_dict.get(f"{prefix}w")) is not None and w.ndim == 0:
            state_dict[f"{prefix}w"] = w.reshape(1)  # as checkpoints had it once
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, input_: Tensor, v_previous: Tensor, s_previous: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
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
        period: refractory period, in whole time steps; 0 is :class:`LIFCell`.
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
        period: float = 2.0,
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
        r = torch.where(s_previous > 0, self.period, torch.clamp(r_previous - 1, min=0))
        awake = (r == 0).to(input_.dtype)
        v = self._rested(v_previous, s_previous) * decay(self.tau) + input_ * awake
        return r, v, self.surrogate(v - self.threshold) * awake


@final
class LICell(BuiltIn):
    """Leaky integrator: a readout that emits its membrane potential and never spikes.

        v = (1 - 1/tau) * v_previous + input_

    Args:
        tau: membrane time constant, in time steps; infinite (the default) sums its input.
        learn: ``"tau"`` makes a parameter of it; a tensor is one per neuron.

    Source: Gerstner et al. (2014), *Neuronal dynamics*, section 1.3, without a threshold.
    """

    tau = AtLeast(1.0)

    def __init__(self, tau: Value = math.inf, *, learn: Learn = ()) -> None:
        super().__init__()
        self.tau = time_constant("tau", tau)
        self._learn(learn)

    def forward(self, input_: Tensor, v_previous: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (v_previous * decay(self.tau) + input_,)
