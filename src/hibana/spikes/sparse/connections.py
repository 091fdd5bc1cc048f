"""The synapses between two populations: the targets of each source neuron, their delays and their weights.

Rows are presynaptic neurons: a spike reads one contiguous row. Within a row, synapses are sorted by delay,
and synapses of equal delay by target.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["MAX_DELAY", "Connections"]

MAX_DELAY = 255
"""Longest delay in steps: delays are stored as uint8."""


class Connections(NamedTuple):
    """Synapses by source neuron. Several synapses may connect the same two neurons; their weights add up."""

    row_starts: Tensor
    """Index of the first synapse of each source neuron, then the number of all: ``[sources + 1]``, int64."""
    targets: Tensor
    """The target neuron of each synapse, ``[synapses]``, int32."""
    delays: Tensor | None = None
    """The delay of each synapse in steps, ``[synapses]``, uint8; None if all delays are 0."""
    weights: Tensor | None = None
    """The weight of each synapse, ``[synapses]``; None if the layer shall draw them."""

    @property
    def size(self) -> int:
        """The number of synapses."""
        return self.targets.numel()

    @property
    def sources(self) -> Tensor:
        """The source neuron of each synapse, ``[synapses]``, int64."""
        return torch.repeat_interleave(self.row_starts.diff())

    @classmethod
    def from_pairs(
        cls,
        sources: Tensor,
        targets: Tensor,
        shape: tuple[int, int],
        delays: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Self:
        """The synapses ``sources[k] -> targets[k]`` in order of rows.

        Args:
            sources: the source neuron of each synapse, ``[synapses]``, in any order.
            targets: the target neuron of each synapse, ``[synapses]``.
            shape: the number of source neurons and of target neurons.
            delays: the delay of each synapse in steps, ``[synapses]``; None for 0.
            weights: the weight of each synapse, ``[synapses]``, or None.

        Raises:
            ValueError: if an index is not in `shape`, or a delay is not a whole number in [0, 255].
        """
        if shape[1] > 1 << 31 or shape[0] * shape[1] >= 1 << 55:
            raise ValueError(
                f"there may be at most 2^31 target neurons and 2^55 pairs of neurons, got {shape}"
            )
        for name, indices, count in (("sources", sources, shape[0]), ("targets", targets, shape[1])):
            if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < count:
                bounds = f"{int(indices.min())} to {int(indices.max())}"
                raise ValueError(f"{name} must lie in [0, {count}), got {bounds}")
        if delays is not None:
            as_bytes = delays.to(torch.uint8)
            wrong = delays[as_bytes != delays]
            if wrong.numel():
                bounds = f"whole numbers of steps in [0, {MAX_DELAY}]"
                raise ValueError(f"delays must be {bounds}, got {wrong[0].item()}")
            delays = as_bytes
        # in place: fresh memory for millions of numbers takes longer than their product
        keys = sources.long() * (MAX_DELAY + 1)
        if delays is not None:
            keys += delays
        keys *= shape[1]
        keys += targets
        keys, order = keys.sort(stable=True)
        counts = torch.bincount(sources.long(), minlength=shape[0])
        return cls(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            (keys % shape[1]).to(torch.int32),
            None if delays is None else (keys // shape[1]).to(torch.uint8),
            None if weights is None else weights[order],
        )
