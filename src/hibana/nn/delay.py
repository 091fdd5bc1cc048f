"""Learned delays: one per neuron (``hb.Delay``), and the base class of all layers with delays."""

import math
from typing import final

import torch
from torch import Tensor, nn

from hibana.nn.window import LooksBack

__all__ = ["Delay", "Delayed", "fix_delays", "narrow_delays"]


class Delayed(LooksBack):
    """The base class of layers with learned delays in steps, in [0, max_delay].

    In training a delay d is a kernel over time, and so has a gradient:

        κ_k = exp(-(k - d)^2 / (2 sigma^2)) / Z,   sum_k κ_k = 1,   k = 0 ... max_delay

    or, for a `sigma` of 0, linear interpolation between the two steps nearest to d, ``max(0, 1 - |k - d|)``.
    In evaluation, and after :meth:`fix`, delays are rounded to integers, so that spikes stay spikes.
    """

    delay: Tensor
    max_delay: int
    sigma: float
    """Width of the kernel in steps."""
    _fixed = False
    """Whether :meth:`fix` was called."""

    def __init__(self, delay: Tensor, max_delay: int, learn: bool, sigma: float) -> None:
        super().__init__()
        if isinstance(max_delay, bool) or not isinstance(max_delay, int) or max_delay < 0:
            raise ValueError(f"max_delay must be a whole number of steps, 0 or more, got {max_delay!r}")
        _check_sigma(sigma)
        self.max_delay, self.sigma = max_delay, sigma
        if learn:
            self.delay = nn.Parameter(delay)
        else:
            self.register_buffer("delay", delay)

    @property
    def reach(self) -> int:
        """`max_delay`."""
        return self.max_delay

    @property
    def steps(self) -> Tensor:
        """The delays of evaluation: integers in [0, max_delay], int64."""
        return self._rounded(self.delay)

    def narrow(self, progress: float) -> None:
        """Sets `sigma` for a stage of the training: ``max_delay/2`` at the beginning, 0.5 at the end.

        Args:
            progress: the fraction of the training that has passed.

        Raises:
            ValueError: if `progress` is not in [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress!r}")
        self.sigma = 0.5 * max(1.0, self.max_delay) ** (1 - progress)

    def fix(self) -> None:
        """Rounds the delays to integers, and ends their training: ``delay.requires_grad_(False)``.

        Training then uses the delays of evaluation. Delays that a parametrization computes are rounded when
        they are read.
        """
        self._fixed = True
        if not nn.utils.parametrize.is_parametrized(self, "delay"):
            with torch.no_grad():
                self.delay.copy_(self.steps)
            self.delay.requires_grad_(False)

    @property
    def interpolates(self) -> bool:
        """Whether delays are kernels over time instead of integers: in training, while they are learned."""
        return self._interpolates(self.delay)

    # The methods below take the delays as an argument: reading the attribute may run a parametrization, so a
    # call reads it once.

    def _interpolates(self, delay: Tensor) -> bool:
        """:attr:`interpolates`, for a `delay` that may not be the parameter itself.

        A parametrization or :func:`torch.func.functional_call` returns another tensor, which may not require
        a gradient while the delays are learned.
        """
        if not self.training or "delay" in self._buffers:
            return False
        return delay.requires_grad if isinstance(delay, nn.Parameter) else not self._fixed

    def _inside(self, delay: Tensor) -> Tensor:
        """`delay` reflected at the bounds into [0, max_delay], so that its gradient points back inside."""
        positive = torch.where(delay >= 0, delay, -delay)
        longest = float(self.max_delay)
        reflected = torch.where(positive <= longest, positive, 2 * longest - positive)
        return torch.where(reflected < 0, 0.0, reflected)  # clamp has other derivatives in some torch

    def _rounded(self, delay: Tensor) -> Tensor:
        """`delay` rounded to integers in [0, max_delay], int64; 0 for NaN."""
        return self._inside(delay).detach().round().long().clamp(0, self.max_delay)

    def _between(self, delay: Tensor) -> tuple[Tensor, Tensor]:
        """The integer below `delay`, and the fraction of a step from it to `delay`.

        For the longest delay they are ``max_delay - 1`` and 1, so that both neighbouring steps exist.
        """
        inside = self._inside(delay)
        last = max(0, self.max_delay - 1)
        floor = inside.detach().floor().clamp(max=last)
        return floor.long().clamp(0, last), inside - floor  # NaN as an integer is out of range

    def _kernel(self, delay: Tensor) -> Tensor:
        """The kernel κ of each of `delay`, ``[..., max_delay + 1]``; its last entry is the current step."""
        ago = torch.arange(self.max_delay, -1, -1, dtype=delay.dtype, device=delay.device)  # in steps
        if not self._interpolates(delay):
            return (ago == self._rounded(delay)[..., None]).to(delay.dtype)
        distance = ago - self._inside(delay)[..., None]
        _check_sigma(self.sigma)
        if self.sigma == 0:
            floor, fraction = (values[..., None] for values in self._between(delay))
            below = torch.where(ago == floor, 1 - fraction, 0.0)
            return below + torch.where(ago == floor + 1, fraction, 0.0)
        return torch.softmax(distance.square() / (-2 * self.sigma**2), dim=-1)


@final
class Delay(Delayed):
    """A delay for each neuron, like that of an axon: ``[T, batch, ...] -> [T, batch, ...]``.

        y_t = x_(t - d) for each neuron,   x_t = 0 for t < 0

    In evaluation d is rounded to an integer, and the outputs are delayed inputs. In training, a learned delay
    is a kernel over time (see `sigma`), and the outputs are weighted sums of inputs. The state in
    :func:`hibana.run` is the last `max_delay` steps of the input.

    Args:
        delay: in steps, in [0, `max_delay`]: a number, or a tensor that broadcasts against one sample at one
            step, such as ``[features]``.
        max_delay: the upper bound of learned delays; the maximum of `delay`, rounded up, if ``None``.
        learn: whether `delay` is a parameter.
        sigma: width of the kernel in steps in training: κ_k ~ exp(-(k - d)^2 / (2 sigma^2)); 0 is linear
            interpolation between the two nearest steps. :meth:`narrow` narrows it over a training.

    Raises:
        ValueError: if a delay is not in [0, `max_delay`], or the input is not ``[T, batch, ...]``.

    Source: Shrestha & Orchard (2018), *SLAYER: spike layer error reassignment in time* (axonal delays);
    the kernel after Hammouamri, Khalfaoui-Hassani & Masquelier (2023), *Learning delays in spiking neural
    networks using dilated convolutions with learnable spacings*.

    >>> import torch, hibana as hb
    >>> hb.Delay(torch.tensor([0.0, 2.0]))(torch.eye(4)[:, None, :2]).squeeze(1)
    tensor([[1., 0.],
            [0., 0.],
            [0., 0.],
            [0., 1.]])
    """

    def __init__(
        self, delay: float | Tensor, max_delay: int | None = None, *, learn: bool = False, sigma: float = 0.5
    ) -> None:
        delays = torch.as_tensor(delay, dtype=torch.get_default_dtype(), device=None).clone()
        longest = math.ceil(float(delays.max())) if max_delay is None and delays.numel() else max_delay
        is_valid = bool(((delays >= 0) & delays.isfinite()).all())
        if not is_valid or not (longest is None or bool((delays <= longest).all())):
            raise ValueError(f"delay must lie in [0, max_delay], in steps, got {delay!r}, {max_delay=}")
        super().__init__(delays, 0 if longest is None else longest, learn, sigma)

    def extra_repr(self) -> str:
        learned = isinstance(self.delay, nn.Parameter)
        return f"{tuple(self.delay.shape)}, max_delay={self.max_delay}{', learn=True' * learned}"

    def outputs_after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        """The delayed `inputs`, ``[T, batch, ...]``; zeros precede them if `history` is ``None``."""
        if inputs.ndim < 3 or inputs.shape[0] == 0:
            raise ValueError(f"inputs must be [T, batch, ...] with T at least 1, got {tuple(inputs.shape)}")
        sample, steps = inputs.shape[2:], inputs.shape[0]  # not len(inputs), which an export fixes
        previous_inputs = inputs.new_zeros(self.max_delay, *inputs.shape[1:]) if history is None else history
        padded = torch.cat([previous_inputs, inputs])
        delay = self.delay
        if self._interpolates(delay):
            kernel = self._kernel(delay).to(inputs.dtype).expand(*sample, -1)  # [..., max_delay + 1]
            # each neuron is a channel with its own kernel over time, and the batch is the width of an image
            weight = kernel.reshape(-1, 1, self.max_delay + 1, 1)
            images = padded.flatten(2).permute(2, 0, 1)[None]  # [1, neurons, steps, batch]
            outputs = nn.functional.conv2d(images, weight, groups=len(weight))
            return outputs[0].permute(1, 2, 0).reshape(inputs.shape)
        delays = self._rounded(delay).expand(sample).reshape(-1)  # [neurons]
        flat = padded.flatten(2)
        step = torch.arange(steps, dtype=torch.int64, device=inputs.device)[:, None]
        source = step + (self.max_delay - delays)  # [T, neurons]
        return flat.gather(0, source[:, None].expand(steps, *flat.shape[1:])).view(inputs.shape)


def narrow_delays(net: nn.Module, progress: float) -> None:
    """Narrows the kernels of all delays of `net`; call it each epoch.

    The kernels are wide at first, so that the gradient of a delay sees distant steps, and narrow at last, so
    that rounding the delay changes little.

    Args:
        net: any module; layers without delays do not change.
        progress: the fraction of the training that has passed, in [0, 1].

    >>> net = nn.Sequential(Delay(torch.rand(3) * 20, 20, learn=True))
    >>> for epoch in range(10):
    ...     narrow_delays(net, epoch / 9)
    >>> net[0].sigma
    0.5
    """
    for layer in net.modules():
        if isinstance(layer, Delayed):
            layer.narrow(progress)


def fix_delays(net: nn.Module) -> None:
    """Rounds all delays of `net` to integers and ends their training; call it in the middle of the training.

    Evaluation rounds delays. If they are rounded before, the weights adapt to the rounded delays.

    >>> net = nn.Sequential(Delay(torch.tensor([0.4, 2.7]), 20, learn=True))
    >>> fix_delays(net)
    >>> net[0].delay
    Parameter containing:
    tensor([0., 3.])
    """
    for layer in net.modules():
        if isinstance(layer, Delayed):
            layer.fix()


def _check_sigma(sigma: float) -> None:
    """Raises ValueError unless `sigma` is a finite number of steps, 0 or more."""
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be finite steps, 0 or more, got {sigma!r}")
