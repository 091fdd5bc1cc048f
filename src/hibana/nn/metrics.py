"""Metrics of activity: firing rate, sparsity, synaptic operations and their energy.

Each is a torchmetrics metric that counts in integers, so sums over batches and over processes are exact and
the mean is the mean over all samples, whatever the sizes of the parts. Nothing here takes a gradient.

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

__all__ = [
    "ACCUMULATE_JOULES",
    "MULTIPLY_ACCUMULATE_JOULES",
    "Account",
    "Energy",
    "FiringRate",
    "SilentNeurons",
    "Sparsity",
    "SynOps",
    "energy",
    "operations",
]

ACCUMULATE_JOULES = 0.9e-12
"""Energy of one 32-bit floating-point addition at 45 nm, in joules.

Source: Horowitz (2014), *Computing's energy problem (and what we can do about it)*, ISSCC.
"""
MULTIPLY_ACCUMULATE_JOULES = 4.6e-12
"""Energy of one 32-bit floating-point multiplication (3.7 pJ) and addition (0.9 pJ) at 45 nm, in joules.

Source: Horowitz (2014), as above.
"""


def _numbers(over_time: Tensor, lengths: Tensor | None) -> Tensor | int:
    """How many numbers of ``[T, batch, ...]`` are within the samples' `lengths`."""
    if lengths is None:
        return over_time.numel()
    return padding.checked(lengths, over_time).sum() * over_time[0, 0].numel()


def _nothing() -> Tensor:
    """A count of nothing yet, where modules have their tensors."""
    return torch.tensor(0, dtype=torch.int64, device=torch.get_default_device())


class _Fraction(Metric):
    """A count over a count."""

    full_state_update = False
    part: Tensor
    whole: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("part", _nothing(), dist_reduce_fx="sum")
        self.add_state("whole", _nothing(), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """The fraction over all that was seen; NaN where nothing was."""
        return self.part / self.whole


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
        """Counts `spikes`, ``[T, batch, ...]``, zeros and ones; of padded samples their `lengths`."""
        self.part += padding.masked(spikes, lengths).count_nonzero()
        self.whole += _numbers(spikes, lengths)


@final
class SilentNeurons(Metric):
    """How many neurons of a layer never spiked, in all that was seen.

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
        self.add_state("spikes", _nothing(), dist_reduce_fx="sum")

    def update(self, spikes: Tensor, lengths: Tensor | None = None, inputs: Tensor | None = None) -> None:
        """Counts `spikes`, ``[T, batch, ...]``; of samples padded to T their own `lengths`.

        A neuron that was given NaN or infinity spikes no more: with the layer's `inputs`, of the shape of
        `spikes`, a NetworkWarning says how many there are.
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
        """Counts the zeros of `activations`, of any shape; ``[T, batch, ...]`` if `lengths` are given."""
        count = _numbers(activations, lengths)
        self.part += count - padding.masked(activations, lengths).count_nonzero()
        self.whole += count


@final
class SynOps(Metric):
    """Synaptic operations per inference: additions that spikes cause, multiplications that values cause.

    A spike that enters a linear or convolutional layer causes one accumulate (AC) for each output that it
    reaches, borders counted as they are. An input that is not spikes causes one multiply-accumulate (MAC)
    for each output that each of its values reaches, zeros included; where it is the same at each step (a
    stride of zero over time) it is counted once. Biases are not counted, nor are reads and writes of memory;
    :func:`energy` counts these too.

        energy = ACs * 0.9 pJ + MACs * 4.6 pJ

    Args:
        energy: joules per inference in the result too, by :data:`ACCUMULATE_JOULES` and
            :data:`MULTIPLY_ACCUMULATE_JOULES`, which are of arithmetic alone, without memory.

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
            self.add_state(name, _nothing(), dist_reduce_fx="sum")

    def update(self, acs: Tensor | int, macs: Tensor | int, samples: int) -> None:
        """Adds what `samples` inferences together took."""
        self.acs += acs
        self.macs += macs
        self.samples += samples

    @contextmanager
    def watch(self, net: nn.Module, lengths: Tensor | None = None) -> Iterator[None]:
        """Counts whatever runs through `net`, called with ``[T, batch, ...]``, inside the ``with`` block.

        Of samples padded to T, the steps within their `lengths` are counted.
        """
        called_with: list[Tensor] = []

        def called(module: nn.Module, args: tuple[Any, ...]) -> None:
            called_with[:] = args[:1]
            self.update(0, 0, args[0].shape[1])

        def multiplied(name: str, layer: Weighted, inputs: Tensor, outputs: Tensor) -> None:
            if lengths is None:
                kind, count = operations(layer, inputs)
            elif isinstance(layer, LooksBack):
                kind, count = operations(layer, inputs, lengths)
            else:
                kind, count = operations(layer, _own(inputs, called_with[0].shape[:2], lengths))
            self.update(count if kind == "acs" else 0, count if kind == "macs" else 0, 0)

        hook = net.register_forward_pre_hook(called)
        try:
            with watch_layers(net, multiplied):
                yield
        finally:
            hook.remove()

    def compute(self) -> dict[str, Tensor]:
        """``acs`` and ``macs`` per inference, and ``joules`` if asked for; NaN where nothing was seen."""
        result = {"acs": self.acs / self.samples, "macs": self.macs / self.samples}
        if self.energy:
            result["joules"] = result["acs"] * ACCUMULATE_JOULES + result["macs"] * MULTIPLY_ACCUMULATE_JOULES
        return result


def _own(inputs: Tensor, over_time: torch.Size, lengths: Tensor) -> Tensor:
    """The steps of `inputs` that are within the samples' lengths, one after another.

    `inputs` are ``[T, batch, ...]``, or have time and batch joined. One step for all, as a constant current
    is computed, is left as it is.
    """
    steps, batch = over_time
    if inputs.stride(0) == 0 and not is_binary(inputs):
        return inputs
    inside = padding.within(lengths, inputs.new_empty(steps, batch))
    if inputs.shape[:2] == over_time:
        return inputs[inside]
    return inputs[inside.flatten()] if inputs.shape[0] == steps * batch else inputs
