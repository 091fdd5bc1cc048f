"""Plasticity: rules that change a weight by the spikes of its input and its output neuron."""

from hibana.learn.plasticity.oja import Oja
from hibana.learn.plasticity.reward import RewardModulatedSTDP
from hibana.learn.plasticity.stdp import STDP

__all__ = ["STDP", "Oja", "RewardModulatedSTDP"]
