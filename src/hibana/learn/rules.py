"""The online learning rules: which parts of the gradient each computes, and which it leaves out.

How the rules are computed does not belong here.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

__all__ = ["DRTRL", "OTTT", "EProp", "PPProp", "Rule", "rule_of"]


@dataclass(frozen=True)
class Rule:
    """The parts of the derivative of a layer's states over time that a rule computes.

    All rules have this in common. Within a step, the gradient goes back through the layers: the *learning
    signal* of a layer is the derivative of the step's loss with respect to the layer's output. Over time,
    the gradient goes forward in traces. The memory of a later spiking layer is therefore left out for the
    layers before it. A parameter of a cell (``tau``, a threshold) has one trace per neuron, computed as by
    :class:`DRTRL`, under every rule.
    """

    name: ClassVar[str]
    keeps_readout: ClassVar[bool] = True
    """Whether a layer's traces include the memory of a leaky readout behind it."""
    keeps_self_synapse: ClassVar[bool] = False
    """Whether the state's derivative includes a recurrent neuron's synapse to itself."""
    through_spikes: ClassVar[bool] = True
    """Whether the state's derivative includes effects of the previous spike (reset, adaptation)."""
    omitted_recurrence: ClassVar[str] = "the gradient through recurrent synapses over time"
    """The part of a recurrent layer's gradient that the rule leaves out, in words."""


@final
@dataclass(frozen=True)
class DRTRL(Rule):
    """Real-time recurrent learning with the diagonal of the state's Jacobian.

        e_t = D_t e_(t-1) + k_t x_t,   D_t = diag(dh_t / dh_(t-1)),   k_t = dh_t / du_t
        dL/dW = sum_t L_t e_t

    `h` are the states of a neuron (`D` is a small matrix if a neuron has several), `u` is its input, `x` the
    input of the synapse, `L` the learning signal. The rule computes the exact gradient of one layer of
    neurons without connections between them, followed by a readout without memory or by one leaky readout.
    Left out: how neurons act on other neurons of a recurrent layer over time.

    Memory: one number for each sample, synapse and independent state of a neuron; one for each sample and
    input if `D` and `k` are the same for all neurons.

    Source: Williams & Zipser (1989), *A learning algorithm for continually running fully recurrent neural
    networks*; Wang et al. (2026), *Model-agnostic linear-memory online learning in spiking neural networks*
    (the diagonal, D-RTRL).
    """

    name = "d-rtrl"
    keeps_self_synapse = True
    omitted_recurrence = "how its neurons act on one another over time"


@final
@dataclass(frozen=True)
class EProp(Rule):
    """Eligibility propagation: a neuron's own dynamics over time, without any recurrent synapse.

        e_t = (dh_t / dh_(t-1)) e_(t-1) + (dh_t / du_t) x_t
        dL/dW = sum_t L_t e'_t,   e'_t = kappa e'_(t-1) + (ds_t / dh_t) e_t

    `kappa` is the decay of a leaky readout behind the layer, 0 without a leaky readout. The learning signal
    goes back through the weights of the readout (the paper's *symmetric* e-prop). With a cell whose reset is
    detached (``detach_reset=True``) these are the paper's formulas for LIF and ALIF; otherwise
    ``dh_t/dh_(t-1)`` includes the derivative of the reset. Left out: all that goes through recurrent
    synapses over time, including a neuron's synapse to itself.

    Memory: the same as :class:`DRTRL`.

    Source: Bellec et al. (2020), *A solution to the learning dilemma for recurrent networks of spiking
    neurons*.
    """

    name = "e-prop"


@final
@dataclass(frozen=True)
class OTTT(Rule):
    """Online training through time: one trace for each input, which decays like the potential.

        a_t = D a_(t-1) + x_t,   dL/dW = sum_t (L_t ds_t/du_t) a_t

    `D` is ``dh_t/dh_(t-1)`` of a silent neuron, without the effects of its spike: the leak ``1 - 1/tau`` for
    LIF. It must be the same for all neurons of a layer and at all times. Left out: the reset and all other
    effects of a spike on the neuron's later states, recurrent synapses over time, and the memory of a leaky
    readout in the gradient of the layers before it (the weights of the readout itself have traces).

    Memory: one number for each sample, input and independent state.

    Source: Xiao, Meng, Zhang, He & Lin (2022), *Online training through time for spiking neural networks*
    (OTTT_A if the weights change after the sequence, OTTT_O if they change at each step).
    """

    name = "ottt"
    keeps_readout = False
    through_spikes = False


@final
@dataclass(frozen=True)
class PPProp(Rule):
    """A trace of rank one: an input's trace times a neuron's trace (BrainTrace's ``pp_prop``, ES-D-RTRL).

        p_t = decay p_(t-1) + x_t
        f_t = decay D_t f_(t-1) + (1 - decay) k_t
        dL/dW = sum_t (L_t f_t) p_t

    `D` is ``dh_t/dh_(t-1)`` and `k` is ``dh_t/du_t``; a leaky readout behind the layer is one more state of
    `f`. Left out: the correlation between single inputs and states of the neuron, since `p` and `f` are
    summed over time separately.

    Memory: one number for each sample and input, and a few for each sample and neuron.

    Args:
        decay: decay factor of both traces, in [0, 1).

    Source: Wang et al. (2026), *Model-agnostic linear-memory online learning in spiking neural networks*.
    """

    decay: float = 0.9
    name = "pp-prop"

    def __post_init__(self) -> None:
        """Checks `decay`."""
        if isinstance(self.decay, bool) or not isinstance(self.decay, int | float):
            raise TypeError(f"decay must be a float, got {type(self.decay).__name__}")
        if not (math.isfinite(self.decay) and 0 <= self.decay < 1):
            raise ValueError(f"decay must lie in [0, 1), got {self.decay!r}")


_RULES: dict[str, type[Rule]] = {kind.name: kind for kind in (DRTRL, EProp, OTTT, PPProp)}


def rule_of(rule: Rule | str) -> Rule:
    """A :class:`Rule` as it is, or the rule with this name and its default arguments.

    Raises:
        ValueError: if no rule has this name.
        TypeError: if `rule` is neither a rule nor a string.
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise TypeError(f"rule must be a hibana.learn.Rule or its name, got {rule!r}")
    if rule not in _RULES:
        raise ValueError(f"rule must be one of {', '.join(_RULES)}; got {rule!r}")
    return _RULES[rule]()
