"""The rules: what each keeps of the gradient, and what it leaves out. How they are computed is elsewhere."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

__all__ = ["DRTRL", "NAMES", "OTTT", "EProp", "PPProp", "Rule", "named"]


@dataclass(frozen=True)
class Rule:
    """What a rule keeps of the derivative of a layer's states over time.

    Common to all: within a step the gradient goes back through the layers (a layer's *learning signal* is the
    derivative of the step's loss with respect to what it emits), and over time it goes forward, in traces.
    So what a later spiking layer remembers of earlier steps is left out for the layers before it. A cell's
    own parameters (``tau``, a threshold) have one trace a neuron, that of :class:`DRTRL`, under every rule.
    """

    name: ClassVar[str]
    keeps_readout: ClassVar[bool] = True
    """Whether the memory of a leaky readout behind a layer is a part of the layer's traces."""
    own_synapse: ClassVar[bool] = False
    """Whether the weight of a recurrent neuron to itself is a part of the state's derivative."""
    through_spikes: ClassVar[bool] = True
    """Whether the derivative of the state goes through the spike before it (reset, adaptation)."""
    of_recurrence: ClassVar[str] = "all that goes through recurrent synapses over time"
    """What the rule leaves out of a recurrent layer, in words."""


@final
@dataclass(frozen=True)
class DRTRL(Rule):
    """Real-time recurrent learning with the diagonal of the state's Jacobian.

        e_t = D_t e_(t-1) + k_t x_t,   D_t = diag(dh_t / dh_(t-1)),   k_t = dh_t / du_t
        dL/dW = sum_t L_t e_t

    `h` are the states of a neuron (`D` a small matrix where there are several), `u` its input, `x` what comes
    through the synapse, `L` the learning signal. It is the whole gradient of one layer of neurons that are
    not connected with one another, with a readout without memory or one leaky readout. Left out: how neurons
    act on other neurons of a recurrent layer over time.

    Memory: one number for each sample, synapse and independent state of a neuron; one for each sample and
    input where `D` and `k` are the same for all neurons.

    Source: Williams & Zipser (1989), *A learning algorithm for continually running fully recurrent neural
    networks*; Wang et al. (2026), *Model-agnostic linear-memory online learning in spiking neural networks*
    (the diagonal, D-RTRL).
    """

    name = "d-rtrl"
    own_synapse = True
    of_recurrence = "how its neurons act on one another over time"


@final
@dataclass(frozen=True)
class EProp(Rule):
    """Eligibility propagation: a neuron's own dynamics over time, without any recurrent synapse.

        e_t = (dh_t / dh_(t-1)) e_(t-1) + (dh_t / du_t) x_t
        dL/dW = sum_t L_t e'_t,   e'_t = kappa e'_(t-1) + (ds_t / dh_t) e_t

    `kappa` is the decay of a leaky readout behind the layer, if there is one. The learning signal goes back
    through the readout's own weights (the paper's *symmetric* e-prop). With a cell whose reset is detached
    (``detach_reset=True``) these are the paper's formulas for LIF and ALIF; else the derivative of the reset
    is a part of ``dh_t/dh_(t-1)``. Left out: all that goes through recurrent synapses over time, that of a
    neuron to itself as well.

    Memory: as :class:`DRTRL`.

    Source: Bellec et al. (2020), *A solution to the learning dilemma for recurrent networks of spiking
    neurons*.
    """

    name = "e-prop"


@final
@dataclass(frozen=True)
class OTTT(Rule):
    """Online training through time: one trace for each input, decaying as the potential leaks.

        a_t = D a_(t-1) + x_t,   dL/dW = sum_t (L_t ds_t/du_t) a_t

    `D` is ``dh_t/dh_(t-1)`` of a neuron that is silent, without what goes through its spike: for LIF its
    leak, ``1 - 1/tau``. It must be the same for all neurons of a layer and at all times. Left out: the reset
    and all else that a spike changes in the neuron's later states, recurrent synapses over time, and the
    memory of a leaky readout for the layers before it (the readout's own weights have theirs).

    Memory: one number for each sample, input and independent state.

    Source: Xiao, Meng, Zhang, He & Lin (2022), *Online training through time for spiking neural networks*
    (OTTT_A where the weights change after the sequence, OTTT_O where they do at each step).
    """

    name = "ottt"
    keeps_readout = False
    through_spikes = False


@final
@dataclass(frozen=True)
class PPProp(Rule):
    """A trace of rank one: that of the input times that of the neuron (BrainTrace's ``pp_prop``, ES-D-RTRL).

        p_t = decay p_(t-1) + x_t
        f_t = decay D_t f_(t-1) + (1 - decay) k_t
        dL/dW = sum_t (L_t f_t) p_t

    with `D` and `k` of :class:`EProp`; a leaky readout behind the layer is one more state of `f`. Left out:
    which spike met which state of the neuron, which only the sums over time of either say.

    Memory: one number for each sample and input, and a few for each sample and neuron.

    Args:
        decay: of both traces, in [0, 1).

    Source: Wang et al. (2026), *Model-agnostic linear-memory online learning in spiking neural networks*.
    """

    decay: float = 0.9
    name = "pp-prop"

    def __post_init__(self) -> None:
        if isinstance(self.decay, bool) or not isinstance(self.decay, int | float):
            raise TypeError(f"decay must be a float, got {type(self.decay).__name__}")
        if not (math.isfinite(self.decay) and 0 <= self.decay < 1):
            raise ValueError(f"decay must lie in [0, 1), got {self.decay!r}")


_RULES: tuple[type[Rule], ...] = (DRTRL, EProp, OTTT, PPProp)
NAMES = tuple(kind.name for kind in _RULES)


def named(rule: Rule | str) -> Rule:
    """`rule`, if it is one, or the one of that name at its defaults.

    Raises:
        ValueError: if there is none of that name.
        TypeError: if it is neither.
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise TypeError(f"rule must be a hibana.learn.Rule or its name, got {rule!r}")
    for kind in _RULES:
        if kind.name == rule:
            return kind()
    raise ValueError(f"rule must be one of {', '.join(NAMES)}; got {rule!r}")
