"""Leaky integrate-and-fire, what is learnt of it, what drives it and what holds it back; the readout."""

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from hibana.cells.base import AtLeast, BuiltIn
from hibana.cells.spiking import Spiking, decay
from hibana.cells.values import Reset, Value, time_constant
from hibana.surrogate import Step, Surrogate

__all__ = ["CubaLIFCell", "LICell", "LIFCell", "PLIFCell", "RefractoryLIFCell"]


@final
class LIFCell(Spiking):
    """Leaky integrate-and-fire.

        v = (1 - 1/tau) * rested(v_previous) + input_,   rested(v) = v * (1 - s_previous)
        s = H(v - threshold)

    Args:
        tau: membrane time constant in time steps, at least 1; infinite is :class:`IFCell`.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.

    Source: Gerstner, Kistler, Naud & Paninski (2014), *Neuronal dynamics*, section 1.3, in forward
    Euler steps, the input in units of potential per step.
    """

    tau = AtLeast(1.0)

    def __init__(
        self,
        tau: Value = 2.0,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        v = self._rested(v_previous, s_previous) * decay(self.tau) + input_
        return v, self.surrogate(v - self.threshold)


@final
class PLIFCell(Spiking):
    """Leaky integrate-and-fire with a learnable time constant, one for the layer.

        v = (1 - k) * rested(v_previous) + k * input_,   k = 1/tau = sigmoid(w)
        s = H(v - threshold)

    Args:
        tau: membrane time constant in time steps to start from, above 1; `w` is the parameter.
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.

    Source: Fang et al. (2021), *Incorporating learnable membrane time constant to enhance learning of
    spiking neural networks*.
    """

    def __init__(
        self,
        tau: float = 2.0,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        if not (math.isfinite(tau) and tau > 1):
            raise ValueError(f"tau must be finite and above 1, got {tau!r}")
        self.start = -math.log(tau - 1.0)
        blank = torch.empty(1, dtype=torch.get_default_dtype(), device=torch.get_default_device())
        self.w = nn.Parameter(blank)  # one dimension: what shards parameters takes no scalars
        self.reset_parameters()

    @property
    def tau(self) -> Tensor:
        """The time constant that `w` stands for, in time steps: ``1/sigmoid(w)``, above 1."""
        return 1 / torch.sigmoid(self.w).reshape(())

    def reset_parameters(self) -> None:
        """Sets `w` to what it was made with; for parameters that were made without memory."""
        nn.init.constant_(self.w, self.start)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (w := state_dict.get(f"{prefix}w")) is not None and w.ndim == 0:
            state_dict[f"{prefix}w"] = w.reshape(1)  # as checkpoints had it once
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        k = torch.sigmoid(self.w).reshape(())
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
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau_synapse = time_constant("tau_synapse", tau_synapse)
        self.tau = time_constant("tau", tau)

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
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)
        if isinstance(period, bool) or not (math.isfinite(period) and period >= 0 and period == int(period)):
            raise ValueError(f"period must be a whole number of steps, 0 or more, got {period!r}")
        self.period = float(period)

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

    Source: Gerstner et al. (2014), *Neuronal dynamics*, section 1.3, without a threshold.
    """

    tau = AtLeast(1.0)

    def __init__(self, tau: Value = math.inf) -> None:
        super().__init__()
        self.tau = time_constant("tau", tau)

    def extra_repr(self) -> str:
        return f"tau={self.tau!r}"

    def forward(  # type: ignore[override]
        self, input_: Tensor, v_previous: Tensor
    ) -> tuple[Tensor]:
        return (v_previous * decay(self.tau) + input_,)
