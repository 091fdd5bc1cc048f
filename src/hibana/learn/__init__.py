"""Rules other than backpropagation through time.

Learning online takes gradients step by step, in memory that does not grow with time, derived from the step of
the cell that it is used with. Plasticity changes weights by the spikes of the neurons that they connect. The
gradients of spike times go backwards through time, but through no surrogate.
"""

from hibana.learn.explain import explain
from hibana.learn.online import Online, online
from hibana.learn.plasticity import STDP, Oja, RewardModulatedSTDP
from hibana.learn.rules import DRTRL, OTTT, EProp, PPProp, Rule
from hibana.learn.spike_times import EventPropCell, SpikeTimeCell, spikes_at
from hibana.nn.first_spike import first_spike_times

__all__ = [
    "DRTRL",
    "EProp",
    "EventPropCell",
    "OTTT",
    "Oja",
    "Online",
    "PPProp",
    "RewardModulatedSTDP",
    "Rule",
    "STDP",
    "SpikeTimeCell",
    "explain",
    "first_spike_times",
    "online",
    "spikes_at",
]
