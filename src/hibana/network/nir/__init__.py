"""To and from NIR, the field's exchange format: :func:`write` a network, :func:`read` a graph.

This module maps layers to nodes and back; what a neuron computes is decided in ``cells`` and never
restated here. ``docs/exchange.md`` says how each node is understood. Needs the extra ``nir``.
"""

from hibana.runtime.extras import needing

with needing("hibana.nir"):
    from hibana.network.nir.nodes import Scale
    from hibana.network.nir.reader import read
    from hibana.network.nir.writer import write

__all__ = ["Scale", "read", "write"]
