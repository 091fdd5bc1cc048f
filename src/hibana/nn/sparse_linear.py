"""``hb.SparseLinear``: a linear layer that stores only its synapses, each with an optional delay."""

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.compiler.graph.sparse import TracedSparseLinear
from hibana.nn.window import LooksBack, check_sizes
from hibana.spikes.sparse import Connections

__all__ = ["SparseLinear"]


class SparseLinear(nn.Module):
    """A linear layer with few synapses: ``[..., in_features] -> [..., out_features]``.

        y_t,o = bias_o + sum over synapses k with target o of weight_k x_(t - delay_k), source_k

    A synapse is stored with the row of its source neuron. With `delays`, the input is ``[T, batch,
    in_features]``, and the state in :func:`hibana.run` is its last steps, as many as the longest delay.

    Args:
        in_features: number of neurons before the synapses.
        out_features: number of neurons after the synapses.
        connectivity: the probability of a synapse from each input to each output; a boolean mask ``[out,
            in]``; or :class:`Connections`.
        bias: whether the layer adds a learned bias.
        delays: the delay of each synapse in steps, ``[out, in]``, whole numbers in [0, 255]; None for 0.

    >>> import torch, hibana as hb
    >>> layer = hb.SparseLinear(100, 50, connectivity=0.1)
    >>> layer(torch.rand(8, 4, 100)).shape
    torch.Size([8, 4, 50])
    """

    traced_as: ClassVar[type[nn.Module]] = TracedSparseLinear
    weight: Tensor
    bias: Tensor | None
    row_starts: Tensor
    targets: Tensor
    delays: Tensor | None

    def __new__(cls, *args: Any, **kwargs: Any) -> "SparseLinear":
        """An instance of the subclass with a state if there are delays."""
        connections = kwargs.get("connectivity", args[2] if len(args) > 2 else None)
        has_delays = kwargs.get("delays", args[4] if len(args) > 4 else None) is not None
        has_delays |= isinstance(connections, Connections) and connections.delays is not None
        return super().__new__(_DelayedSparseLinear if has_delays and cls is SparseLinear else cls)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        connectivity: Any = 0.1,
        bias: bool = True,
        delays: Tensor | None = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        shape = (in_features, out_features)
        if not isinstance(connectivity, Connections):
            is_mask = isinstance(connectivity, Tensor)
            mask = connectivity if is_mask else torch.rand(out_features, in_features) < connectivity
            sources, targets = mask.T.nonzero(as_tuple=True)
            per_synapse = None if delays is None else delays[targets, sources]
            connectivity = Connections.from_pairs(sources, targets, shape, per_synapse)
        self.register_buffer("row_starts", connectivity.row_starts)
        self.register_buffer("targets", connectivity.targets)
        self.register_buffer("delays", connectivity.delays)
        self.weight = nn.Parameter(torch.empty(connectivity.size))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.reset_parameters()
        if connectivity.weights is not None:
            with torch.no_grad():
                self.weight.copy_(connectivity.weights)

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask: Tensor | None = None) -> Self:
        """The synapses of `linear` inside `mask`; without a mask, those whose weight is not zero."""
        weight, bias = linear.weight.detach(), linear.bias
        layer = cls(weight.shape[1], weight.shape[0], weight != 0 if mask is None else mask, bias is not None)
        with torch.no_grad():
            layer.weight.copy_(weight[layer.targets.long(), layer.sources])
            if layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    def reset_parameters(self) -> None:
        """Draws weights and bias uniformly from ``±1 / sqrt(mean number of synapses of an output)``."""
        bound = 1 / math.sqrt(max(1.0, self.weight.numel() / self.out_features))
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    @property
    def connections(self) -> Connections:
        """The synapses, with their weights."""
        return Connections(self.row_starts, self.targets, self.delays, self.weight)

    @property
    def sources(self) -> Tensor:
        """The source neuron of each synapse, ``[synapses]``, int64."""
        return self.connections.sources

    def to_dense(self) -> Tensor:
        """The weights as a matrix ``[out_features, in_features]``, with zeros where there is no synapse."""
        flat = self.targets.long() * self.in_features + self.sources
        dense = self.weight.new_zeros(self.out_features * self.in_features)
        return dense.index_add(0, flat, self.weight).view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Linear's name for it
        """The sums over all synapses, ``[..., out_features]``."""
        return functional.linear(input, self.to_dense(), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.weight.numel()} synapses"


class _DelayedSparseLinear(LooksBack, SparseLinear):
    """Sparse synapses of which some have delays."""

    @property
    def reach(self) -> int:
        """The longest delay."""
        assert self.delays is not None
        return int(self.delays.max()) if self.delays.numel() else 0

    def outputs_after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        """The sums over all synapses, ``[T, batch, out_features]``; no history means zeros."""
        reach, steps = self.reach, len(inputs)
        assert self.delays is not None
        padded = torch.cat(
            [inputs.new_zeros(reach, *inputs.shape[1:]) if history is None else history, inputs]
        )
        out = inputs.new_zeros(*inputs.shape[:-1], self.out_features)
        for delay in range(reach + 1):
            weight = torch.where(self.delays == delay, self.weight, 0)
            flat = self.targets.long() * self.in_features + self.sources
            dense = weight.new_zeros(self.out_features * self.in_features).index_add(0, flat, weight)
            shifted = padded[reach - delay : reach - delay + steps]
            out = out + shifted @ dense.view(self.out_features, self.in_features).T
        return out if self.bias is None else out + self.bias
