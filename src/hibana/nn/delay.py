"""Learned delays, one per neuron (``hb.Delay``), and what delays per synapse share with them."""

import math
from typing import final

import torch
from torch import Tensor, nn

from hibana.nn.window import LooksBack

__all__ = ["Delay", "Delayed", "fix_delays", "narrow_delays"]


class Delayed(LooksBack):
    """What layers with delays share: a delay in steps, in [0, max_delay], and how it is learned.

    In training a delay d is a kernel over time, and so has a gradient:

        κ_k = exp(-(k - d)^2 / (2 sigma^2)) / Z,   sum_k κ_k = 1,   k = 0 ... max_delay

    or, for a `sigma` of 0, the two steps nearest to d by linear interpolation, ``max(0, 1 - |k - d|)``. In
    evaluation, and once its delays are fixed, it is rounded to whole steps, so that spikes stay spikes.
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
        """The delays as they are in evaluation: whole steps in [0, max_delay], int64."""
        return self._whole(self.delay)

    def narrow(self, progress: float) -> None:
        """Narrows the kernel as training goes on: `sigma` from ``max_delay/2`` at 0 to 0.5 at 1.

        Raises:
            ValueError: if `progress`, the part of the training that is over, is not in [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress!r}")
        self.sigma = 0.5 * max(1.0, self.max_delay) ** (1 - progress)

    def fix(self) -> None:
        """Makes whole steps of the delays, which are learned no more: ``delay.requires_grad_(False)``.

        What is trained from then on is what is evaluated. What a parametrisation gives is rounded when read.
        """
        self._fixed = True
        if not nn.utils.parametrize.is_parametrized(self, "delay"):
            with torch.no_grad():
                self.delay.copy_(self.steps)
            self.delay.requires_grad_(False)

    @property
    def interpolates(self) -> bool:
        """Whether delays are kernels over time now: in training, while they are learned."""
        return self._interpolates(self.delay)

    # What follows takes the delays as read once a call: reading them may run a parametrisation.

    def _interpolates(self, delay: Tensor) -> bool:
        """:attr:`interpolates`, whether or not `delay` is the parameter itself.

        A parametrisation or :func:`torch.func.functional_call` gives another tensor, which need not require
        a gradient while the delays are learned.
        """
        if not self.training or "delay" in self._buffers:
            return False
        return delay.requires_grad if isinstance(delay, nn.Parameter) else not self._fixed

    def _inside(self, delay: Tensor) -> Tensor:
        """`delay` in [0, max_delay]: reflected at the bounds, so that the gradient turns it back."""
        above = torch.where(delay >= 0, delay, -delay)
        most = float(self.max_delay)
        folded = torch.where(above <= most, above, 2 * most - above)  # at most `most`
        return torch.where(folded < 0, 0.0, folded)  # at its bound, clamp's derivative is 1 or 0, by release

    def _whole(self, delay: Tensor) -> Tensor:
        """`delay` rounded to whole steps in [0, max_delay], int64; 0 for NaN."""
        return self._inside(delay).detach().round().long().clamp(0, self.max_delay)

    def _between(self, delay: Tensor) -> tuple[Tensor, Tensor]:
        """The whole steps before `delay`, and the part of a step that it is after those.

        The longest delay is one whole step after the one before it, so that there is a step on either side.
        """
        inside = self._inside(delay)
        last = max(0, self.max_delay - 1)
        before = inside.detach().floor().clamp(max=last)
        return before.long().clamp(0, last), inside - before  # NaN as an integer lies outside

    def _kernel(self, delay: Tensor) -> Tensor:
        """``[..., max_delay + 1]``, κ for each of `delay`; the last is for the step itself."""
        back = torch.arange(
            self.max_delay, -1, -1, dtype=delay.dtype, device=delay.device
        )  # steps back in time
        if not self._interpolates(delay):
            return (back == self._whole(delay)[..., None]).to(delay.dtype)
        distance = back - self._inside(delay)[..., None]
        _check_sigma(self.sigma)
        if self.sigma == 0:
            step, later = self._between(delay)
            return torch.where(back == step[..., None], 1 - later[..., None], 0.0) + torch.where(
                back == step[..., None] + 1, later[..., None], 0.0
            )
        return torch.softmax(distance.square() / (-2 * self.sigma**2), dim=-1)


@final
class Delay(Delayed):
    """A delay for each neuron, as of its axon: ``[T, batch, ...] -> [T, batch, ...]``.

        y_t = x_(t - d) for each neuron,   x_t = 0 for t < 0

    In evaluation d is rounded to whole steps, and what comes out are the inputs, later. A delay that is
    learned is, in training, a kernel over time (see `sigma`): what comes out are mixtures then. Its state in
    :func:`hibana.run` are the last `max_delay` steps of its input.

    Args:
        delay: in steps, in [0, `max_delay`]: a number, or a tensor that broadcasts against one sample at one
            step, such as ``[features]``.
        max_delay: the longest that it may become; the longest of `delay`, rounded up, if ``None``.
        learn: whether it is a parameter.
        sigma: width of the kernel in steps while it is learned: κ_k ~ exp(-(k - d)^2 / (2 sigma^2)); 0 is
            linear interpolation between the two nearest steps. :meth:`narrow` narrows it over a training.

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
        self,
        delay: float | Tensor,
        max_delay: int | None = None,
        *,
        learn: bool = False,
        sigma: float = 0.5,
    ) -> None:
        begun = torch.as_tensor(delay, dtype=torch.get_default_dtype(), device=None).clone()
        most = math.ceil(float(begun.max())) if max_delay is None and begun.numel() else max_delay
        right = bool(((begun >= 0) & begun.isfinite()).all()) and (
            most is None or bool((begun <= most).all())
        )
        if not right:
            raise ValueError(f"delay must lie in [0, max_delay], in steps, got {delay!r}, {max_delay=}")
        super().__init__(begun, 0 if most is None else most, learn, sigma)

    def extra_repr(self) -> str:
        learned = isinstance(self.delay, nn.Parameter)
        return f"{tuple(self.delay.shape)}, max_delay={self.max_delay}{', learn=True' * learned}"

    def after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        if inputs.ndim < 3 or inputs.shape[0] == 0:
            raise ValueError(f"inputs must be [T, batch, ...] with T at least 1, got {tuple(inputs.shape)}")
        sample, steps = inputs.shape[2:], inputs.shape[0]  # which an export keeps open
        before = inputs.new_zeros(self.max_delay, *inputs.shape[1:]) if history is None else history
        padded = torch.cat([before, inputs])
        delay = self.delay
        if self._interpolates(delay):
            kernel = self._kernel(delay).to(inputs.dtype).expand(*sample, -1)  # [..., max_delay + 1]
            weight = kernel.reshape(-1, 1, self.max_delay + 1, 1)
            images = padded.flatten(2).permute(2, 0, 1)[None]  # [1, neurons, steps, batch]
            mixed = nn.functional.conv2d(images, weight, groups=len(weight))
            return mixed[0].permute(1, 2, 0).reshape(inputs.shape)
        chosen = self._whole(delay).expand(sample).reshape(-1)  # [neurons]
        flat = padded.flatten(2)
        at = torch.arange(steps, dtype=torch.int64, device=inputs.device)[:, None] + (
            self.max_delay - chosen
        )  # [T, neurons]
        return flat.gather(0, at[:, None].expand(steps, *flat.shape[1:])).view(inputs.shape)


def narrow_delays(net: nn.Module, progress: float) -> None:
    """:meth:`Delayed.narrow` for all delays of `net`: call it each epoch, with the part that is over.

    The kernels are wide at first, so that a delay finds what is far from it, and narrow at last, so that
    rounding it changes little.

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
    """:meth:`Delayed.fix` for all delays of `net`: call it when half of the training is over.

    Delays between two steps are rounded in evaluation. Rounded before, the weights learn what to make of it.

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
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be finite steps, 0 or more, got {sigma!r}")
