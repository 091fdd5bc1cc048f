"""Reads synapses from the values of ``hb.SparseLinear``'s arguments `connectivity` and `delays`."""

from typing import Any

import torch
from numpy.random import default_rng
from torch import Tensor, nn

from hibana.compiler.draws import new_seed
from hibana.spikes.sparse import connect
from hibana.spikes.sparse.connections import Connections
from hibana.spikes.sparse.generate import Distribution, draw_delays

__all__ = ["read_connections"]


def read_connections(connectivity: Any, shape: tuple[int, int], delays: Any = None) -> Connections:
    """The synapses between `shape` = (number of source neurons, number of target neurons).

    Args:
        connectivity: see :class:`hibana.SparseLinear`.
        shape: the numbers of neurons.
        delays: a whole number for all synapses; a distribution; whole numbers ``[targets, sources]``, or
            ``[synapses]`` in the order of the rows of `connectivity`; None for the delays of `connectivity`.

    Raises:
        TypeError: if `connectivity` has another type.
        ValueError: if a shape, an index, a probability or a delay is not valid.
    """
    synapses = _without_delays(connectivity, shape)
    if len(synapses.row_starts) != shape[0] + 1:
        rows = len(synapses.row_starts) - 1
        raise ValueError(f"connectivity must have in_features = {shape[0]} rows of synapses, got {rows}")
    if delays is None:
        return synapses
    if synapses.delays is not None:
        raise ValueError("delays must be None: the synapses of connectivity have delays")
    sources, targets = synapses.sources, synapses.targets
    if isinstance(delays, Distribution):
        delays = draw_delays(delays, default_rng(new_seed() % (1 << 64)), synapses.size)
    delays = torch.as_tensor(delays, dtype=None, device=None)
    if delays.ndim == 2:
        _check_shape("delays", delays, shape)
        delays = delays[targets.long(), sources]
    elif delays.ndim == 1 and len(delays) != synapses.size:
        raise ValueError(
            f"delays must have one number for each of {synapses.size} synapses, got {len(delays)}"
        )
    return Connections.from_pairs(sources, targets, shape, delays.expand(synapses.size), synapses.weights)


def _without_delays(connectivity: Any, shape: tuple[int, int]) -> Connections:
    """The synapses of `connectivity`, with its own delays only."""
    if isinstance(connectivity, nn.Module):
        connectivity = _nonzero_weight(connectivity)
    if isinstance(connectivity, Connections):
        return connectivity
    if isinstance(connectivity, int | float) and not isinstance(connectivity, bool):
        if not 0 <= connectivity <= 1:
            raise ValueError(f"connectivity must be a probability in [0, 1], got {connectivity}")
        connectivity = connect.probability(float(connectivity))
    if isinstance(connectivity, list | tuple):
        return connect.connections(connectivity, *shape)
    if hasattr(connectivity, "connections"):
        synapses: Connections = connectivity.connections(*shape)
        return synapses
    if hasattr(connectivity, "tocoo"):  # SciPy
        entries = connectivity.tocoo()
        row, column, values = (
            torch.tensor(part, dtype=None, device="cpu") for part in (entries.row, entries.col, entries.data)
        )
        indices = torch.stack([row, column]).long()
        connectivity = torch.sparse_coo_tensor(indices, values, entries.shape, check_invariants=False)
    if not isinstance(connectivity, Tensor):
        raise TypeError(
            "connectivity must be a probability, mask, sparse matrix, module with a weight, Connections, "
            f"or rules of hb.connect, got {type(connectivity).__name__}"
        )
    matrix = connectivity.detach().cpu()
    _check_shape("connectivity", matrix, shape)
    if matrix.layout == torch.strided and matrix.dtype != torch.bool:
        raise TypeError(f"a dense matrix must be a boolean mask, got {matrix.dtype}: pass matrix != 0")
    if matrix.layout != torch.sparse_coo:
        matrix = matrix.to_sparse(layout=torch.sparse_coo)
    targets, sources = matrix._indices()  # uncoalesced: entries of equal indices are separate synapses
    return Connections.from_pairs(sources, targets, shape, weights=_weights(matrix._values()))


def _nonzero_weight(module: nn.Module) -> Tensor | Connections:
    """The weights of `module` that are not zero, as a sparse matrix."""
    if isinstance(synapses := getattr(module, "connections", None), Connections):
        return synapses
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ValueError(
            f"connectivity must have a weight [out, in], got {type(module).__name__} without one"
        )
    return weight.detach().to_sparse()


def _weights(values: Tensor) -> Tensor | None:
    """`values` of a sparse matrix as weights; None for booleans, which are a mask."""
    if values.dtype == torch.bool:
        return None
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def _check_shape(name: str, matrix: Any, shape: tuple[int, int]) -> None:
    """Raises a ValueError unless `matrix` is ``[targets, sources]``."""
    if matrix.shape != (shape[1], shape[0]):
        raise ValueError(
            f"{name} must be [out_features, in_features] = {shape[::-1]}, got {tuple(matrix.shape)}"
        )
