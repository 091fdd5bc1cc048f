"""Leaky integrate-and-fire with adaptation: of the threshold, or by a current that is subtracted."""

from typing import Any, Self, final

import torch
from torch import Tensor

from hibana.cells.ranges import AtLeast, Between
from hibana.cells.spiking import Spiking, decay
from hibana.cells.surrogate import Step, Surrogate
from hibana.cells.values import Learn, Reset, Value, between, log_uniform, time_constant

__all__ = ["ALIFCell", "AdLIFCell"]


@final
class ALIFCell(Spiking):
    """Leaky integrate-and-fire whose threshold rises with each spike and decays back.

        a = (1 - 1/tau_adaptation) * a_previous + s_previous
        v = (1 - 1/tau) * rested(v_previous) + input_
        s = H(v - (threshold + strength * a))

    Args:
        tau: membrane time constant, in time steps.
        tau_adaptation: time constant of the adaptation `a`, in time steps.
        strength: rise of the threshold per spike, in units of `v`.
        threshold: spikes where ``v > threshold + strength * a``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.

    Source: Bellec et al. (2018), *Long short-term memory and learning-to-learn in networks of spiking
    neurons*.
    """

    tau = AtLeast(1.0)
    tau_adaptation = AtLeast(1.0)

    def __init__(
        self,
        tau: Value = 2.0,
        tau_adaptation: Value = 100.0,
        strength: Value = 0.1,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)
        self.tau_adaptation = time_constant("tau_adaptation", tau_adaptation)
        self.strength = strength
        self._learn(learn)

    def forward(  # type: ignore[override]
        self, input_: Tensor, a_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next state, by the equations of the class."""
        a = a_previous * decay(self.tau_adaptation) + s_previous
        v = self._rested(v_previous, s_previous) * decay(self.tau) + input_
        return a, v, self.surrogate(v - (a * self.strength + self.threshold))


@final
class AdLIFCell(Spiking):
    """Adaptive leaky integrate-and-fire: potential and spikes drive a current that is subtracted.

        w = (1 - 1/tau_adaptation) * w_previous + coupling * v_previous + jump * s_previous
        v = (1 - 1/tau) * rested(v_previous) + (input_ - w) / tau
        s = H(v - threshold)

    With a coupling, a neuron resonates, and `w` remembers its input for `tau_adaptation` steps. The paper
    allows a `coupling` of -1 and more; below ``-1/tau_adaptation`` the potential grows without input, from 0
    on it does not.

    Args:
        tau: membrane time constant, in time steps.
        tau_adaptation: time constant of the adaptation `w`, in time steps.
        coupling: weight of the potential in the adaptation, in [0, 1].
        jump: amount that a spike adds to the adaptation, in [0, 2].
        threshold: spikes where ``v > threshold``.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"``, as in the paper.
        learn: names of values to make parameters of, such as ``"tau"``; a tensor is one per neuron.

    Source: Bittar & Garner (2022), *A surrogate gradient spiking baseline for speech command recognition*.

    >>> cell = AdLIFCell.spread(128)  # all four values learned, for each of 128 neurons
    >>> [(name, len(value)) for name, value in cell.named_parameters()]
    [('log_tau', 128), ('log_tau_adaptation', 128), ('logit_coupling', 128), ('logit_jump', 128)]
    """

    tau = AtLeast(1.0)
    tau_adaptation = AtLeast(1.0)
    coupling = Between(0.0, 1.0)
    jump = Between(0.0, 2.0)

    def __init__(
        self,
        tau: Value = 10.0,
        tau_adaptation: Value = 60.0,
        coupling: Value = 0.5,
        jump: Value = 1.0,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = "subtract",
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.tau = time_constant("tau", tau)
        self.tau_adaptation = time_constant("tau_adaptation", tau_adaptation)
        self.coupling = between("coupling", coupling, 0.0, 1.0)
        self.jump = between("jump", jump, 0.0, 2.0)
        self._learn(learn)

    @classmethod
    def spread(cls, *shape: int, least: float = 5.0, most: float = 25.0, **options: Any) -> Self:
        """A cell with different random values for each neuron, which it learns.

        `tau` is spread evenly in its logarithm over [least, most] (by default the range of the paper),
        `tau_adaptation` over [6 least, 24 most], `coupling` over [0.0001, 0.01]. `jump` is spread evenly
        over [0, 2] and then clamped to [0.02, 1.98].

        The effect of a spike on `w` decays within ``1/(1/tau_adaptation + coupling)`` steps, since `w` lowers
        the potential, and the lower potential lowers `w`. With a `coupling` from all of [0, 1] neurons forget
        within few steps; a memory of hundreds of steps needs one below 0.01.

        Args:
            shape: shape of the layer's neurons, such as 128.
            least: the shortest membrane time constant, in time steps.
            most: the longest membrane time constant, in time steps.
            options: further arguments of the cell.
        """
        spread = {"tau": (least, most), "tau_adaptation": (6 * least, 24 * most), "coupling": (1e-4, 1e-2)}
        values: dict[str, Any] = {name: log_uniform(*ends, *shape) for name, ends in spread.items()}
        jump = torch.rand(shape, dtype=torch.get_default_dtype(), device=None)
        values["jump"] = 2 * jump.clamp(0.01, 0.99)
        return cls(**{**values, "learn": (*values,), **options})

    def forward(  # type: ignore[override]
        self, input_: Tensor, w_previous: Tensor, v_previous: Tensor, s_previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next state, by the equations of the class."""
        w = w_previous * decay(self.tau_adaptation) + v_previous * self.coupling + s_previous * self.jump
        v = self._rested(v_previous, s_previous) * decay(self.tau) + (input_ - w) / self.tau
        return w, v, self.surrogate(v - self.threshold)
