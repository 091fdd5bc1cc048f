"""Plasticity: rules that change a weight by the spikes of its input and its output neuron."""

from hibana.learn.plasticity.per_call import Oja, RewardModulatedSTDP
from hibana.learn.plasticity.stdp import STDP

__all__ = ["STDP", "Oja", "RewardModulatedSTDP"]
