"""What a network's activity amounts to: firing rate, sparsity, synaptic operations and their energy.

Each is a torchmetrics metric that counts in integers, so sums over batches and over processes are exact and
the mean is the mean over all samples, whatever the sizes of the parts. Nothing here takes a gradient.

Importing this module needs torchmetrics (``pip install hibana[train]``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torchmetrics import Metric

__all__ = [
    "ACCUMULATE_JOULES",
    "MULTIPLY_ACCUMULATE_JOULES",
    "FiringRate",
    "Sparsity",
    "SynOps",
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

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


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

    def update(self, spikes: Tensor) -> None:
        """Counts `spikes`, ``[T, batch, ...]``, zeros and ones."""
        self.part += spikes.count_nonzero()
        self.whole += spikes.numel()


@final
class Sparsity(_Fraction):
    """The fraction of activations, spikes or not, that are exactly zero."""

    def update(self, activations: Tensor) -> None:
        """Counts the zeros of `activations`, of any shape."""
        self.part += activations.numel() - activations.count_nonzero()
        self.whole += activations.numel()


@final
class SynOps(Metric):
    """Synaptic operations per inference: additions that spikes cause, multiplications that values cause.

    A spike that enters a linear or convolutional layer causes one accumulate (AC) for each output that it
    reaches, borders counted as they are. An input that is not spikes causes one multiply-accumulate (MAC)
    for each output that each of its values reaches, zeros included; where it is the same at each step (a
    stride of zero over time) it is counted once. Biases are not counted.

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
    def watch(self, net: nn.Module) -> Iterator[None]:
        """Counts whatever runs through `net`, called with ``[T, batch, ...]``, inside the ``with`` block."""

        def called(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.update(0, 0, args[0].shape[1])

        def multiplied(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, Weighted)
            kind, count = operations(module, args[0])
            self.update(count if kind == "acs" else 0, count if kind == "macs" else 0, 0)

        hooks = [net.register_forward_pre_hook(called)]
        hooks += [m.register_forward_pre_hook(multiplied) for m in net.modules() if isinstance(m, Weighted)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def compute(self) -> dict[str, Tensor]:
        """``acs`` and ``macs`` per inference, and ``joules`` if asked for; NaN where nothing was seen."""
        result = {"acs": self.acs / self.samples, "macs": self.macs / self.samples}
        if self.energy:
            result["joules"] = result["acs"] * ACCUMULATE_JOULES + result["macs"] * MULTIPLY_ACCUMULATE_JOULES
        return result


@torch.no_grad()
def operations(layer: Weighted, inputs: Tensor) -> tuple[Literal["acs", "macs"], Tensor]:
    """The operations of `layer` on `inputs`: ``"acs"`` if they are all zeros and ones, else ``"macs"``.

    Raises:
        TypeError: if `layer` is not ``nn.Linear`` or a convolution.
        ValueError: if a convolution pads with anything but zeros.
    """
    if not isinstance(layer, Weighted):
        raise TypeError(f"layer must be nn.Linear or nn.Conv1d to nn.Conv3d, got {type(layer).__name__}")
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"padding_mode must be 'zeros', got {layer.padding_mode!r}")
    spiking = bool(((inputs == 0) | (inputs == 1)).all())
    if not spiking and inputs.stride(0) == 0:
        inputs = inputs[:1]
    if isinstance(layer, nn.Linear):
        reached = inputs.count_nonzero() if spiking else inputs.new_tensor(inputs.numel(), dtype=torch.int64)
        return ("acs", reached * layer.out_features) if spiking else ("macs", reached * layer.out_features)
    weight = layer.weight
    fan_out = _outputs_reached(layer, inputs)
    if spiking:
        count = (inputs != 0).to(torch.int64).mul(fan_out).sum()
    else:
        count = fan_out.expand(inputs.shape).sum()
    return ("acs" if spiking else "macs"), count * (weight.shape[0] // layer.groups)


def _outputs_reached(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """How many positions of one output channel each position of an input channel reaches, ``[*space]``."""
    ones = torch.ones(1, 1, *layer.weight.shape[2:], device=inputs.device, dtype=torch.float64)
    space = torch.ones(
        1, 1, *inputs.shape[-len(layer.kernel_size) :], device=inputs.device, dtype=torch.float64
    ).requires_grad_()
    with torch.enable_grad():
        convolution = getattr(nn.functional, f"conv{len(layer.kernel_size)}d")
        outputs = convolution(
            space, ones, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
        )
        (reached,) = torch.autograd.grad(outputs.sum(), space)
    return reached[0, 0].to(torch.int64)
