"""``hb.SparseLinear``: a linear layer that stores only its synapses, each with an optional delay."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy, is_traced_or_transformed
from hibana.compiler.graph.sparse import TracedSparseLinear
from hibana.nn.window import LooksBack, check_sizes
from hibana.runtime import available
from hibana.runtime.synapses import SynapseIndex, longest_delay, shortest_delay
from hibana.spikes.bits import pack_binary
from hibana.spikes.checks import is_constant_over_time, kernels_accept
from hibana.spikes.layer import (
    UNSUPPORTED,
    SpikeLayer,
    check_mode,
)
from hibana.spikes.linear.autograd import multiply_planes
from hibana.spikes.provenance import lookup
from hibana.spikes.sparse import Connections, autograd, product
from hibana.spikes.sparse.read import read_connections

__all__ = ["DelayedSparseLinear", "SparseLinear"]

EVENTS_UP_TO = 0.15
"""Density of spikes up to which synapses without delays add a row per spike.

Measured with 2048 x 2048 neurons, 1, 5 and 10% of the synapses (Intel Xeon with AVX-512, one thread): the
forward takes the time of the product with any numbers at a density of 10 to 14%, the weight gradient at 12 to
20%.
"""


class SparseLinear(SpikeLayer):
    """A linear layer with few synapses: ``[..., in_features] -> [..., out_features]``.

        y_t,o = bias_o + sum over synapses k with target o of weight_k x_(t - delay_k), source_k

    A synapse is stored with the row of its source neuron: `weight` ``[synapses]``, `targets` ``[synapses]``,
    and `row_starts` ``[in_features + 1]``, the index of each row's first synapse. For an input of spikes
    (float32, on the CPU), each spike adds one row, and the backward reads the rows of the spikes, under the
    conditions of :class:`hibana.Linear`. Any other input is multiplied in time and memory proportional to the
    synapses.

    With `delays`, the input is ``[T, batch, in_features]``, the layer becomes a
    ``DelayedSparseLinear``, and its state in :func:`hibana.run` is the last steps of the input, as
    many as the longest delay.

    Each call reads `row_starts`, `targets` and `delays` once: every change of them counts from the next call
    on, also one written through ``.data`` or ``.numpy()``. A backward uses the synapses of its forward.
    ``load_state_dict`` accepts another number of synapses. It changes the shape of the same parameter
    `weight`, which optimizers keep. Delete earlier losses (``del loss``) first: while one exists, each
    backward raises "invalid gradient".

    `mode` is ``"auto"``, or forces ``"dense"`` or (wherever possible) ``"events"``. With events a second
    derivative raises ``RuntimeError``: set ``mode = "dense"`` to compute it.

    Args:
        in_features: number of neurons before the synapses.
        out_features: number of neurons after the synapses.
        connectivity: the probability of a synapse from each input to each output; a boolean mask ``[out,
            in]``; a sparse matrix ``[out, in]`` of torch or SciPy, whose values become the weights; a module
            with a `weight` ``[out, in]``, whose numbers other than zero become the weights; a rule of
            :mod:`hibana.connect` or a list of rules; or :class:`~hibana.connect.Connections`.
        bias: whether the layer adds a learned bias.
        delays: the delay of each synapse in steps, from 0 to 255: a whole number for all synapses, a
            distribution of :mod:`hibana.connect`, or whole numbers ``[out, in]``; None for the delays in
            `connectivity`, or 0.

    Raises:
        TypeError: if `connectivity` has another type.
        ValueError: if a size, a shape, an index, a probability or a delay is not valid.

    >>> import torch, hibana as hb
    >>> layer = hb.SparseLinear(100, 50, connectivity=0.1)
    >>> layer(torch.rand(8, 4, 100)).shape
    torch.Size([8, 4, 50])
    >>> hb.SparseLinear(100, 50, hb.connect.fixed_in_degree(20), bias=False, delays=3)
    DelayedSparseLinear(in_features=100, out_features=50, synapses=1000, bias=False)
    """

    traced_as: ClassVar[type[nn.Module]] = TracedSparseLinear
    """The class that a trace of a step sees instead, as of :class:`hibana.Linear`."""
    weight: Tensor
    bias: Tensor | None
    row_starts: Tensor
    targets: Tensor
    delays: Tensor | None
    _longest_delay: int = 0
    """The result of :attr:`reach` at its last use."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        connectivity: Any = 0.1,
        bias: bool = True,
        delays: Any = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        device = torch.get_default_device()
        with torch.device("cpu"):
            synapses = read_connections(connectivity, (in_features, out_features), delays)
        SynapseIndex.check(synapses.row_starts, synapses.targets, None, in_features, out_features)
        for name in ("row_starts", "targets", "delays"):
            buffer = getattr(synapses, name)
            self.register_buffer(name, None if buffer is None else buffer.to(device))
        if synapses.delays is not None:
            self._longest_delay = longest_delay(synapses.delays)
            self._set_class()
        weights, dtype = synapses.weights, torch.get_default_dtype()
        if weights is None:
            weights = self._draw(torch.empty(synapses.size, dtype=dtype, device=device))
        self.weight = nn.Parameter(weights.to(device))
        biases = torch.empty(out_features, dtype=dtype, device=device)
        self.register_parameter("bias", nn.Parameter(self._draw(biases)) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Module, mask: Tensor | None = None) -> "SparseLinear":
        """A layer with copies of the weights of `linear` inside `mask`, and of its bias.

        Args:
            linear: a ``torch.nn.Linear``, or another module with a `weight` ``[out, in]`` and a `bias`.
            mask: booleans ``[out, in]``; a synapse inside the mask is stored even if its weight is zero. None
                for the weights that are not zero.
        """
        weight, bias = cast(Tensor, linear.weight).detach(), cast(Tensor | None, linear.bias)
        layer = cls(weight.shape[1], weight.shape[0], linear if mask is None else mask, bias is not None)
        layer.weight.data = weight[layer.targets.long(), layer.sources]
        if bias is not None and layer.bias is not None:
            layer.bias.data = bias.detach().clone()
        return layer

    def reset_parameters(self) -> None:
        """Draws weights and bias uniformly from ``±1 / sqrt(mean number of synapses of an output)``."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                self._draw(parameter)

    def _draw(self, values: Tensor) -> Tensor:
        """Draws initial weights or biases into `values`, and returns it."""
        bound = 1 / math.sqrt(max(1.0, self.targets.numel() / self.out_features))
        return nn.init.uniform_(values, -bound, bound)

    def _set_class(self) -> None:
        """Makes this layer a :class:`DelayedSparseLinear`, which has a state."""
        if type(self) is SparseLinear:
            self.__class__ = DelayedSparseLinear
        elif not isinstance(self, DelayedSparseLinear):
            raise TypeError(f"{type(self).__name__} must be a subclass of DelayedSparseLinear to have delays")

    @property
    def reach(self) -> int:
        """The longest delay in steps."""
        if self.delays is None:
            return 0
        has_numbers = type(self.delays) is Tensor and not self.delays.is_meta
        if has_numbers and not torch.compiler.is_compiling():
            self._longest_delay = longest_delay(self.delays)
        return self._longest_delay

    @property
    def connections(self) -> Connections:
        """The synapses, with their weights."""
        return Connections(self.row_starts, self.targets, self.delays, self.weight)

    @property
    def sources(self) -> Tensor:
        """The source neuron of each synapse, ``[synapses]``, int64."""
        return self.connections.sources

    @property
    def index(self) -> SynapseIndex:
        """The indices of the synapses, which are checked after each change.

        Raises:
            ValueError: if an index is out of range, or a buffer has a wrong shape or dtype.
        """
        buffers = self.row_starts, self.targets, self.delays
        return SynapseIndex.check(*buffers, self.in_features, self.out_features)

    def to_dense(self) -> Tensor:
        """The weights as a matrix ``[out_features, in_features]``, with zeros where there is no synapse."""
        flat = self.targets.long() * self.in_features + self.sources
        dense = self.weight.new_zeros(self.out_features * self.in_features)
        return dense.index_add(0, flat, self.weight).view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Linear's name for it
        """The sums over all synapses, ``[..., out_features]``."""
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        if not input.ndim or input.shape[-1] != self.in_features:
            raise ValueError(f"input must be [..., {self.in_features}], got shape {tuple(input.shape)}")
        if not is_traced_or_transformed(input) and is_constant_over_time(input):
            out = self._sums(input[0], None)
            return out.expand(input.shape[0], *out.shape)
        return self._sums(input, None)

    def _sums(self, input: Tensor, history: Tensor | None) -> Tensor:  # noqa: A002
        """The sums over all synapses, in the dtype of `input`; numbers of 16 bits are added in float32.

        `input` is ``[..., in_features]``. With delays it is ``[T, batch, in_features]``, and `history` holds
        the steps before it, as many as the longest delay `reach`; None for zeros.

        Traced inputs take torch's operations; spikes the kernels per spike, which also add the bias; other
        numbers a sparse product.
        """
        weight, bias = self._tensors()
        if not input.is_floating_point():
            raise TypeError(f"input must have a floating-point dtype, got {input.dtype}")
        dtype = torch.promote_types(torch.promote_types(input.dtype, weight.dtype), torch.float32)
        steps = (input if history is None else torch.cat([history, input])).to(dtype)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        skip = 0 if history is None else len(history)
        if is_traced_or_transformed(steps) or steps.is_meta or type(weight) not in (Tensor, nn.Parameter):
            if not torch.compiler.is_compiling():  # torch's scan refuses changes of attributes
                self._reason = f"dense: {UNSUPPORTED}"
            synapses = Connections(self.row_starts, self.targets, self.delays, weight)
            out = autograd.multiply_traced(steps, synapses, self.out_features, self.reach, skip)
        else:
            index = self.index
            sums = self._sums_of_spikes(steps, weight, bias, index, skip)
            if sums is not None:
                return sums.to(input.dtype)
            out = autograd.multiply_numbers(steps, weight, index, skip)
        return (out if bias is None else out + bias).to(input.dtype)

    def _sums_of_spikes(
        self, steps: Tensor, weight: Tensor, bias: Tensor | None, index: SynapseIndex, skip: int
    ) -> Tensor | None:
        """The sums, one row of synapses per spike; None if torch must or should compute them.

        `steps` are the input; the first `skip` of them get no output.
        """
        check_mode(self.mode)
        if self.mode == "dense" or not kernels_accept(steps, weight, bias):
            reason = available.unavailable_reason() or UNSUPPORTED
            self._reason = f"dense: {'asked for' if self.mode == 'dense' else reason}"
            return None
        provenance, is_contiguous = lookup(steps), steps.is_contiguous()
        spikes = pack_binary(steps.detach().reshape(-1, self.in_features).contiguous())
        if spikes is None:
            self._reason = "dense: the input is not spikes"
            return None
        if self.mode == "auto" and not index.reach and spikes.density > EVENTS_UP_TO:
            self._reason = f"dense: {spikes.density:.0%} of the input spiked"
            return None
        self._reason = f"events: {spikes.density:.0%} of the input spiked; one row of synapses added for each"
        sums = product.SparseProduct(steps.shape, index, skip)
        return multiply_planes(sums, steps, weight, bias, spikes, provenance, is_contiguous)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, synapses={self.targets.numel()}, bias={self.bias is not None}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        """Loads the synapses in `state_dict`, also if their number differs from this layer's."""
        targets, delays = (state_dict.get(prefix + name) for name in ("targets", "delays"))
        if isinstance(targets, Tensor) and targets.shape != self.targets.shape:
            for name in ("targets", "delays"):
                if (buffer := self._buffers[name]) is not None:
                    self._buffers[name] = buffer.new_empty(targets.shape)
            self.weight.data = self.weight.new_empty(targets.shape)
        if isinstance(delays, Tensor) and self.delays is None:
            self.delays = torch.empty_like(self.targets, dtype=torch.uint8)
            self._set_class()
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class DelayedSparseLinear(LooksBack, SparseLinear):
    """A :class:`SparseLinear` whose synapses have delays; its state is the last :attr:`reach` input steps."""

    reach = SparseLinear.reach  # otherwise abstract

    @property
    def shortest(self) -> int:
        """The shortest delay in steps, 0 while ``torch.compile`` traces."""
        delays = self.delays
        if type(delays) is not Tensor or delays.is_meta or torch.compiler.is_compiling():
            return 0
        return shortest_delay(delays)

    def outputs_after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        """The sums over all synapses, ``[T, batch, out_features]``; no history means zeros."""
        if inputs.ndim != 3 or inputs.shape[0] == 0 or inputs.shape[2] != self.in_features:
            raise ValueError(
                f"inputs must be [T, batch, {self.in_features}] with T at least 1, "
                f"got shape {tuple(inputs.shape)}"
            )
        return self._sums(inputs, history)
