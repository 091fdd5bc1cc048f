"""To and from NIR, the field's exchange format: :func:`write` a network, :func:`read` a graph.

The kinds of layers in ``network/layers`` map layers to nodes and back; this module handles files and graphs.
``docs/exchange.md`` explains each node. Needs the extra ``nir``.
"""

from hibana.runtime.extras import explain_import_error

with explain_import_error("hibana.nir"):
    from hibana.network.layers.arithmetic import Scale
    from hibana.network.nir.reader import read
    from hibana.network.nir.writer import write

__all__ = ["Scale", "read", "write"]
