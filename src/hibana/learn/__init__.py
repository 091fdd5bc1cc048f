"""``hb.learn``: learning rules other than backpropagation through time.

Online rules compute gradients step by step, in memory that does not grow with time, from the derivatives of
the cell's step. Plasticity changes weights by the spikes of the neurons that they connect. Gradients of spike
times go backwards through time without a surrogate. Rewiring moves synapses of sparse layers during training.
:func:`fit_cell` fits a neuron to a recording. :class:`AnomalyDetector` finds unusual steps of a series.
"""

from hibana.learn.anomaly import Anomaly, AnomalyDetector
from hibana.learn.explain import explain
from hibana.learn.fit import Fit, fit_cell, gamma_factor
from hibana.learn.online import Online, online
from hibana.learn.plasticity import STDP, Oja, RewardModulatedSTDP
from hibana.learn.rewire import SET, DeepR, RigL
from hibana.learn.rules import DRTRL, OTTT, EProp, PPProp, Rule
from hibana.learn.spike_times import EventPropCell, SpikeTimeCell, spikes_at
from hibana.nn.first_spike import first_spike_times

__all__ = [
    "Anomaly",
    "AnomalyDetector",
    "DRTRL",
    "DeepR",
    "EProp",
    "EventPropCell",
    "Fit",
    "OTTT",
    "Oja",
    "Online",
]
__all__ += ["PPProp", "RewardModulatedSTDP", "RigL", "Rule", "SET", "STDP", "SpikeTimeCell", "explain"]
__all__ += ["first_spike_times", "fit_cell", "gamma_factor", "online", "spikes_at"]
