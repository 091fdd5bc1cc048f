"""Metrics of activity: firing rate, sparsity, synaptic operations and their energy.

Each is a torchmetrics metric that counts in integers, so that sums over batches and processes are exact and
means are over all samples, for batches of any sizes. Metrics have no gradient.

Importing this module needs torchmetrics (``pip install '.[train]'``).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from hibana.compiler import NetworkWarning
from hibana.compiler.analysis.binary import is_binary
from hibana.nn import lengths as padding
from hibana.nn.energy import Account, Energy, energy
from hibana.nn.operations import Weighted, operations, watch_layers
from hibana.nn.window import LooksBack
from hibana.runtime.extras import explain_import_error

with explain_import_error("hibana.metrics"):
    from torchmetrics import Metric

__all__ = ["ACCUMULATE_JOULES", "MULTIPLY_ACCUMULATE_JOULES", "Account", "Energy", "FiringRate"]
__all__ += ["SilentNeurons", "Sparsity", "SynOps", "energy", "operations"]

ACCUMULATE_JOULES = 0.9e-12
"""Energy of one 32-bit floating-point addition at 45 nm, in joules.

Source: Horowitz (2014), *Computing's energy problem (and what we can do about it)*, ISSCC.
"""
MULTIPLY_ACCUMULATE_JOULES = 4.6e-12
"""Energy of one 32-bit floating-point multiplication (3.7 pJ) and addition (0.9 pJ) at 45 nm, in joules.

Source: Horowitz (2014), *Computing's energy problem (and what we can do about it)*, ISSCC.
"""


def _count_numbers(over_time: Tensor, lengths: Tensor | None) -> Tensor | int:
    """The number of elements of ``[T, batch, ...]`` before the ends of the samples."""
    if lengths is None:
        return over_time.numel()
    return padding.checked(lengths, over_time).sum() * over_time[0, 0].numel()


def _zero() -> Tensor:
    """A count of zero on the default device."""
    return torch.tensor(0, dtype=torch.int64, device=torch.get_default_device())


class _Fraction(Metric):
    """The ratio of two counts."""

    full_state_update = False
    part: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("part", _zero(), dist_reduce_fx="sum")
        self.add_state("total", _zero(), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """The fraction over all updates; NaN without an update."""
        return self.part / self.total


@final
class FiringRate(_Fraction):
    """Spikes per neuron and step: ``sum s / (T * batch * neurons)``.

    >>> import torch
    >>> rate = FiringRate()
    >>> rate.update(torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]]))
    >>> rate.compute()
    tensor(0.2500)
    """

    def update(self, spikes: Tensor, lengths: Tensor | None = None) -> None:
        """Counts `spikes` (0 or 1), ``[T, batch, ...]``, before the ends of samples with `lengths`."""
        self.part += padding.masked(spikes, lengths).count_nonzero()
        self.total += _count_numbers(spikes, lengths)


@final
class SilentNeurons(Metric):
    """The number of neurons of a layer that never spiked in any update.

    >>> import torch
    >>> silent = SilentNeurons()
    >>> silent.update(torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]]))
    >>> silent.compute()
    tensor(1)
    """

    full_state_update = False
    spikes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("spikes", _zero(), dist_reduce_fx="sum")

    def update(self, spikes: Tensor, lengths: Tensor | None = None, inputs: Tensor | None = None) -> None:
        """Counts `spikes`, ``[T, batch, ...]``, before the ends of samples with `lengths`.

        Args:
            spikes: the layer's spikes.
            lengths: the lengths of padded samples, ``[batch]``.
            inputs: the layer's inputs, with the shape of `spikes`, to count the neurons with input NaN or
                infinity, which never spike again.

        Warns:
            NetworkWarning: with the number of these neurons.
        """
        if inputs is not None and not (finite := padding.masked(inputs, lengths).isfinite()).all():
            bad = (~finite).flatten(0, 1).any(0).count_nonzero()
            warnings.warn(
                f"{bad} of {spikes[0, 0].numel()} neurons were given NaN or infinity, after which they are "
                "silent or spike always; hb.check(net) says where it came in",
                NetworkWarning,
                stacklevel=2,
            )
        self.spikes = self.spikes + padding.masked(spikes, lengths).flatten(0, 1).count_nonzero(dim=0)

    def compute(self) -> Tensor:
        """The number of neurons without a spike."""
        return (self.spikes == 0).sum()


@final
class Sparsity(_Fraction):
    """The fraction of activations, spikes or not, that are exactly zero."""

    def update(self, activations: Tensor, lengths: Tensor | None = None) -> None:
        """Counts the zeros of `activations` of any shape, or of ``[T, batch, ...]`` with `lengths`."""
        count = _count_numbers(activations, lengths)
        self.part += count - padding.masked(activations, lengths).count_nonzero()
        self.total += count


@final
class SynOps(Metric):
    """Synaptic operations per inference: additions for spikes, multiplications for other inputs.

    A spike that enters a linear or convolutional layer needs one accumulate (AC) for each output that depends
    on it, fewer at the border of an image. An input other than spikes needs one multiply-accumulate (MAC) for
    each of its values, including zeros, and each output that depends on the value; an input that is the same
    at each step (stride zero over time) is counted once. Biases, reads and writes are not counted;
    :func:`energy` includes them.

        energy = ACs * 0.9 pJ + MACs * 4.6 pJ

    Args:
        energy: whether to also compute joules per inference with :data:`ACCUMULATE_JOULES` and
            :data:`MULTIPLY_ACCUMULATE_JOULES`, which are for arithmetic without memory.

    Source: Merolla et al. (2014), *A million spiking-neuron integrated circuit with a scalable communication
    network and interface* (the synaptic operation); Horowitz (2014) for the energies.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 5), hb.IF(), torch.nn.Linear(5, 2))
    >>> count = SynOps()
    >>> with count.watch(net):
    ...     _ = net(torch.ones(4, 8, 3))  # [T, batch, features]
    >>> count.compute()["acs"] >= 3 * 5 * 4
    tensor(True)
    """

    full_state_update = False
    acs: Tensor
    macs: Tensor
    samples: Tensor

    def __init__(self, energy: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.energy = energy
        for name in ("acs", "macs", "samples"):
            self.add_state(name, _zero(), dist_reduce_fx="sum")

    def update(self, acs: Tensor | int, macs: Tensor | int, samples: int) -> None:
        """Adds the operations of `samples` inferences: sums over all of them."""
        self.acs += acs
        self.macs += macs
        self.samples += samples

    @contextmanager
    def watch(self, net: nn.Module, lengths: Tensor | None = None) -> Iterator[None]:
        """Counts the operations of all calls of `net` with ``[T, batch, ...]`` in the ``with`` block.

        With the `lengths` of padded samples, ``[batch]``, only steps before a sample's end are counted.
        """
        net_inputs: list[Tensor] = []

        def count_samples(module: nn.Module, args: tuple[Any, ...]) -> None:
            """Stores the network's inputs and adds their samples to the count."""
            net_inputs[:] = args[:1]
            self.update(0, 0, args[0].shape[1])

        def count_operations(name: str, layer: Weighted, inputs: Tensor, outputs: Tensor) -> None:
            """Adds the operations of a call of `layer`."""
            if lengths is None:
                kind, count = operations(layer, inputs)
            elif isinstance(layer, LooksBack):
                kind, count = operations(layer, inputs, lengths)
            else:
                kind, count = operations(layer, _without_padding(inputs, net_inputs[0].shape[:2], lengths))
            self.update(count if kind == "acs" else 0, count if kind == "macs" else 0, 0)

        hook = net.register_forward_pre_hook(count_samples)
        try:
            with watch_layers(net, count_operations):
                yield
        finally:
            hook.remove()

    def compute(self) -> dict[str, Tensor]:
        """``acs`` and ``macs`` per inference, and ``joules`` if `energy` is set; NaN without an update."""
        result = {"acs": self.acs / self.samples, "macs": self.macs / self.samples}
        if self.energy:
            result["joules"] = result["acs"] * ACCUMULATE_JOULES + result["macs"] * MULTIPLY_ACCUMULATE_JOULES
        return result


def _without_padding(inputs: Tensor, steps_and_batch: torch.Size, lengths: Tensor) -> Tensor:
    """The steps of `inputs` before the ends of the samples, joined in one dimension.

    Args:
        inputs: a layer's inputs, ``[T, batch, ...]`` or ``[T * batch, ...]``. Inputs of another shape are
            returned unchanged, and so are numbers other than spikes that are equal at all steps (stride 0).
        steps_and_batch: the sizes T and batch.
        lengths: the lengths of the samples, ``[batch]``.
    """
    steps, batch = steps_and_batch
    if inputs.stride(0) == 0 and not is_binary(inputs):
        return inputs
    inside = padding.within(lengths, inputs.new_empty(steps, batch))
    if inputs.shape[:2] == steps_and_batch:
        return inputs[inside]
    return inputs[inside.flatten()] if inputs.shape[0] == steps * batch else inputs
