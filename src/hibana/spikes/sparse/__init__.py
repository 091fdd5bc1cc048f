"""Sparse synapses: which neurons are connected, and products in time proportional to spikes and synapses."""

from hibana.spikes.sparse.connections import Connections

__all__ = ["Connections"]
