"""Plasticity: rules that change a weight by the spikes of the two neurons that it connects."""

from hibana.learn.plasticity.oja import Oja
from hibana.learn.plasticity.reward import RewardModulatedSTDP
from hibana.learn.plasticity.stdp import STDP

__all__ = ["STDP", "Oja", "RewardModulatedSTDP"]
