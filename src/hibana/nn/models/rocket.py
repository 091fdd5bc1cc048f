"""A spiking Rocket for time series: thresholded windows with integer weights, fitted in closed form."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana import cells
from hibana import spikes as events
from hibana.cells import surrogate
from hibana.nn import layers
from hibana.nn import lengths as padding
from hibana.nn.models.ridge import ridge
from hibana.nn.window import Window, check_sizes

__all__ = ["NEURONS", "Rocket", "dilations", "rocket", "size"]

TAPS = 9
"""Steps of a window: six have the weight -1 and three the weight 2, in all 84 orders."""
DILATIONS = 10
"""Maximum number of dilations, spread evenly in their logarithm."""
MOST_CHANNELS = 9
"""Maximum number of channels in a neuron's window."""
NEURONS = 8
"""Neurons for each order of the weights and each dilation."""
LOW, LOW_WITHOUT_REST, HIGH = 0.5, 0.75, 0.99
"""Thresholds are quantiles of a neuron's input over the training set, from LOW to HIGH; from LOW_WITHOUT_REST
for neurons without a refractory period. Both kinds of neurons spike in 8 to 13% of the steps."""
SAMPLE = 4096
"""Inputs of a neuron from which its quantile is computed."""
AT_ONCE = 1 << 22
"""Values of one layer that are computed at a time when the network is fitted."""
_GOLDEN = (math.sqrt(5) - 1) / 2


def _neuron(period: int) -> cells.Cell:
    """A cell whose potential is its input; after a spike it is refractory for `period` steps."""
    if period == 0:
        return cells.LIFCell(tau=1.0, surrogate=surrogate.Triangle())
    return cells.RefractoryLIFCell(tau=1.0, period=period, surrogate=surrogate.Triangle())


@final
class Rocket(nn.Module):
    """Threshold neurons on dilated windows with a linear readout of their rates.

        I_t = sum_k w_k sum_c x_(c, t - (8 - k) d),   w with six -1 and three 2, or its negative
        s_t = H(I_t - threshold), 0 within `period` steps after a spike;   score = mean_t (W s_t + b)

    The network maps ``[T, batch, channels]`` to ``[T, batch, classes]``. For each of the 84 orders of the
    weights and each dilation d there are `neurons` neurons. The input of half of them is the series x, of the
    other half its difference ``x_t - x_(t-1)``. In each half, one half spikes for a large sum (on) and one
    for a small sum (off). Dilations range from 1 to the largest whose windows span the series.
    :meth:`Rocket.fit` sets thresholds and readout from training data without gradient descent; after
    ``net.requires_grad_()`` all weights can be trained.

    Args:
        shape: the shape of one step of the input, ``(channels,)``.
        classes: number of outputs.
        make_cell: returns a new cell with threshold 1; called once for each layer. By default
            ``LIFCell(tau=1)``, whose potential is its input, or ``RefractoryLIFCell(tau=1, period=period)``.
        steps: length of the longest series, which determines the dilations.
        neurons: neurons for each order of the weights and each dilation, a multiple of 4.
        period: refractory steps after a spike. With 0 the rate is the share of time above the threshold. Else
            it also depends on how often the input rises above the threshold, neurons spike less, and
            thresholds start at the median of the input instead of its third quartile.
        seed: seed of the channels of each neuron, and of the sample from which thresholds are computed.

    Raises:
        ValueError: if `shape` has other than one axis, or a number is out of its range.

    Source: Dempster, Schmidt & Webb (2021), *MiniRocket: a very fast (almost) deterministic transform for
    time series classification*, for weights, dilations and shares of time above a threshold; Tan, Dempster,
    Bergmeir & Webb (2022), *MultiRocket: multiple pooling operators and transformations for fast and
    effective time series classification*, for the difference. On and off neurons and refractory periods have
    no published source.

    >>> import torch
    >>> slow, fast = (torch.sin(torch.arange(40.0) * pace) for pace in (0.3, 0.9))
    >>> series = torch.stack([slow, fast] * 5, dim=1)[..., None] + 0.1 * torch.randn(40, 10, 1)
    >>> net = rocket((1,), 2, steps=40)
    >>> net.fit(series, torch.tensor([0, 1] * 5))
    1.0
    >>> net(series).mean(0).argmax(1).tolist()
    [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        make_cell: Callable[[], cells.Cell] | None = None,
        *,
        steps: int,
        neurons: int = NEURONS,
        period: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"shape must be (channels,), of a series of numbers, got {shape}")
        check_sizes(channels=shape[0], classes=classes, steps=steps)
        if isinstance(neurons, bool) or not isinstance(neurons, int) or neurons < 4 or neurons % 4:
            raise ValueError(f"neurons must be a multiple of 4, at least 4, got {neurons!r}")
        if isinstance(period, bool) or not isinstance(period, int) or period < 0:
            raise ValueError(f"period must be a whole number of steps, 0 or more, got {period!r}")
        make_cell = make_cell or partial(_neuron, period)
        (channels,) = shape
        self.channels, self.classes, self.seed = channels, classes, seed
        self.low = LOW if period else LOW_WITHOUT_REST
        self.error = math.nan
        """Mean squared leave-one-out error of the last :meth:`fit`, with targets -1 and 1 for classes."""
        generator = torch.Generator().manual_seed(seed)
        orders = _orders(neurons // 2)
        self.branches = nn.ModuleList()
        for dilation, has_difference in itertools.product(dilations(steps), (False, True)):
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            if has_difference:
                parts["difference"] = _difference(channels)
            window = Window(channels, len(orders), TAPS, dilation)
            mask = _channel_mask(len(orders), channels, generator)
            with torch.no_grad():
                window.weight.copy_(mask[:, :, None] * orders[:, None])
                nn.init.zeros_(cast(Tensor, window.bias))
            readout = events.Linear(len(orders), classes, bias=not self.branches)
            for parameter in readout.parameters():
                nn.init.zeros_(parameter)
            parts |= {"window": window, "neurons": layers.OverTime(make_cell()), "readout": readout}
            self.branches.append(nn.Sequential(parts))
        self.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of the classes at each step: ``[T, batch, channels] -> [T, batch, classes]``."""
        scores: Tensor = self.branches[0](inputs)
        for branch in self.branches[1:]:
            scores = scores + branch(inputs)
        return scores

    @property
    def neurons(self) -> int:
        """Number of spiking neurons."""
        return sum(readout.in_features for readout in self._readouts)

    @property
    def _readouts(self) -> list[events.Linear]:
        """The last layer of each branch."""
        return [cast(events.Linear, cast(nn.Sequential, branch)[-1]) for branch in self.branches]

    def _windows(self) -> Iterator[tuple[nn.Sequential, Window]]:
        """For each branch the layers before its neurons, and the last of these layers, a window."""
        for branch in self.branches:
            layers_before = cast(nn.Sequential, cast(nn.Sequential, branch)[:-2])
            yield layers_before, cast(Window, layers_before[-1])

    @torch.no_grad()
    def rates(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Spikes per step of each neuron, ``[batch, neurons]``, in the order of the branches.

        Args:
            inputs: ``[T, batch, channels]``.
            lengths: length of each series before padding, ``[batch]``; the steps after it do not count.

        Raises:
            ValueError: if `inputs` or `lengths` have another shape, or `lengths` are not in [1, T].
        """
        self._check(inputs)
        counted_steps = inputs.new_full((inputs.shape[1],), len(inputs), dtype=torch.int64)
        counted_steps = counted_steps if lengths is None else padding.checked(lengths, inputs)
        rates = []
        for indices in self._chunks(inputs):
            chunk_steps = counted_steps[indices]
            longest = int(chunk_steps.max())
            chunk = inputs[:longest, indices]
            spikes = (cast(nn.Sequential, branch)[:-1](chunk) for branch in self.branches)
            mask_lengths = chunk_steps if int(chunk_steps.min()) < longest else None
            counts = torch.cat([padding.masked(each, mask_lengths).sum(0) for each in spikes], dim=1)
            rates.append(counts / chunk_steps[:, None])
        return torch.cat(rates)

    @torch.no_grad()
    def fit(
        self,
        inputs: Tensor,
        labels: Tensor,
        lengths: Tensor | None = None,
        *,
        weights: tuple[float, ...] | None = None,
    ) -> float:
        """Sets thresholds and readout from training data, in closed form.

        The thresholds are quantiles of each neuron's input. The readout is the ridge regression of the rates,
        with the penalty of the least leave-one-out error (:mod:`hibana.nn.models.ridge`). The scores of
        classes are scaled to the least leave-one-out cross-entropy.

        Args:
            inputs: ``[T, N, channels]``, with a mean of about 0 and a deviation of about 1.
            labels: class indices, ``[N]``; or floating-point quantities for a network with one output.
            lengths: length of each series before padding, ``[N]``.
            weights: weight of the samples of each class; 1 if ``None``.

        Returns:
            The leave-one-out accuracy; for quantities the explained part of the variance (R²).

        Raises:
            TypeError: if `labels` are floating-point and the network has several outputs.
            ValueError: if a shape or value is not valid, or an input is not finite.
        """
        self._check(inputs)
        targets = self._targets(labels, inputs.shape[1])
        if weights is not None and (targets is None or len(weights) != self.classes):
            raise ValueError(f"weights must be one for each of {self.classes} classes, got {weights!r}")
        if not bool(inputs.isfinite().all()):
            raise ValueError("inputs must be finite")
        self._set_thresholds(inputs, lengths)
        values = labels[:, None].double() if targets is None else targets
        sample_weights = None if weights is None else values.new_tensor(weights)[labels]
        fitted = ridge(self.rates(inputs, lengths), values, sample_weights)
        self.error = float((fitted.held_out - values).square().mean())
        if targets is None:
            scale = 1.0
            variation = (values - values.mean()).square().sum().clamp(min=1e-300)
            score = 1 - float((fitted.held_out - values).square().sum() / variation)
        else:
            scale = _scale(fitted.held_out, labels)
            score = float((fitted.held_out.argmax(1) == labels).double().mean())
        readouts = self._readouts
        parts = torch.split(fitted.weight * scale, [each.in_features for each in readouts], dim=1)
        for readout, part in zip(readouts, parts, strict=True):
            readout.weight.copy_(part)
        readouts[0].bias.copy_(fitted.bias * scale)
        return score

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.classes}"

    def _check(self, inputs: Tensor) -> None:
        """Raises a ValueError if `inputs` are empty or not ``[T, batch, channels]``."""
        if inputs.ndim != 3 or not inputs.numel() or inputs.shape[2] != self.channels:
            raise ValueError(
                f"inputs must be [T, batch, {self.channels}] and not empty, got shape {tuple(inputs.shape)}"
            )

    def _targets(self, labels: Tensor, samples: int) -> Tensor | None:
        """Targets ``[N, classes]``, 1 for a sample's class and -1 for others; ``None`` for quantities."""
        if labels.shape != (samples,):
            raise ValueError(f"labels must be one for each of {samples} series, got {tuple(labels.shape)}")
        if labels.is_floating_point():
            if self.classes != 1:
                raise TypeError(
                    f"labels must be class indices for {self.classes} outputs, got {labels.dtype}"
                )
            return None
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise ValueError(f"labels must lie in [0, {self.classes}), got {sorted(set(labels.tolist()))}")
        return 2.0 * functional.one_hot(labels.long(), self.classes).double() - 1

    def _chunks(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Indices of the samples in chunks that are computed together."""
        count = max(1, AT_ONCE // (len(inputs) * self._readouts[0].in_features))
        indices = torch.arange(inputs.shape[1], dtype=torch.int64, device=inputs.device)
        return tuple(torch.split(indices, count))

    def _set_thresholds(self, inputs: Tensor, lengths: Tensor | None) -> None:
        """Sets each neuron's threshold to a quantile of its input: the window's bias is 1 - threshold.

        The quantiles of successive neurons are a golden-ratio sequence from `low` to HIGH.
        """
        generator = torch.Generator().manual_seed(self.seed)
        steps, samples = inputs.shape[:2]
        counted_steps = torch.full((samples,), steps, dtype=torch.int64, device="cpu")
        counted_steps = counted_steps if lengths is None else padding.checked(lengths, inputs).cpu()
        most = 2 * -(-SAMPLE // int(counted_steps.double().mean()))  # twice the series that SAMPLE steps need
        series = torch.randperm(samples, generator=generator, dtype=torch.int64, device="cpu")[:most]
        is_counted = padding.within(counted_steps[series], inputs[:, series].cpu())[..., 0]  # [T, series]
        positions = is_counted.flatten().nonzero()[:, 0]
        order = torch.randperm(len(positions), generator=generator, dtype=torch.int64, device="cpu")
        positions = positions[order[:SAMPLE]].to(inputs.device)
        first = 0
        for layers_before, window in self._windows():
            bias = cast(Tensor, window.bias).zero_()
            sums = layers_before(inputs[:, series]).flatten(0, 1)[positions]  # [sample, neurons]
            number = torch.arange(first, first + sums.shape[1], dtype=torch.float64, device="cpu")
            quantile = self.low + (HIGH - self.low) * ((number + 1) * _GOLDEN % 1)
            first += sums.shape[1]
            rank = (quantile * (len(sums) - 1)).round().long().to(sums.device)
            bias.copy_(1 - sums.sort(dim=0).values.gather(0, rank[None])[0])


rocket = Rocket


def dilations(steps: int) -> list[int]:
    """The dilations for series of `steps` steps: integers from 1 to the largest whose windows fit.

    >>> dilations(9), dilations(150)
    ([1], [1, 2, 3, 5, 7, 9, 13, 18])
    """
    most = max(1.0, (steps - 1) / (TAPS - 1))
    return sorted({int(most ** (each / (DILATIONS - 1)) + 1e-9) for each in range(DILATIONS)})


def size(channels: int, classes: int, steps: int) -> int:
    """The number of weights of :func:`rocket` with the default number of neurons."""
    return 84 * NEURONS * len(dilations(steps)) * (TAPS * channels + classes)


def _difference(channels: int) -> Window:
    """A window that subtracts from each channel its value in the step before."""
    window = Window(channels, channels, 2, groups=channels, bias=False)
    with torch.no_grad():
        window.weight[:, :, 0], window.weight[:, :, 1] = -1.0, 1.0
    return window


def _orders(neurons: int) -> Tensor:
    """The weights for one dilation, ``[84 * neurons, 9]``: each of the 84 orders and its negative in turn."""
    orders = torch.full((84, TAPS), -1.0, dtype=torch.get_default_dtype(), device="cpu")
    for row, positions in enumerate(itertools.combinations(range(TAPS), 3)):
        orders[row, list(positions)] = 2.0
    return torch.cat([orders, -orders] * (neurons // 2))


def _channel_mask(neurons: int, channels: int, generator: torch.Generator) -> Tensor:
    """A random mask of each neuron's channels, 0 and 1, ``[neurons, channels]``.

    The number of channels of a neuron is log-uniform from 1 to MOST_CHANNELS.
    """
    most = min(channels, MOST_CHANNELS)
    draws = torch.rand(neurons, generator=generator, dtype=torch.float64, device="cpu")
    count = (2 ** (draws * math.log2(most + 1))).long().clamp(max=most)
    priority = torch.rand(neurons, channels, generator=generator, dtype=torch.float64, device="cpu")
    return (priority.argsort(1).argsort(1) < count[:, None]).to(torch.get_default_dtype())


def _scale(scores: Tensor, labels: Tensor) -> float:
    """The factor with which the `scores`, ``[N, classes]``, have the least cross-entropy.

    Source: Guo, Pleiss, Sun & Weinberger (2017), *On calibration of modern neural networks*; Platt (1999),
    *Probabilistic outputs for support vector machines*, for smoothed targets for few samples.
    """
    factors = torch.logspace(-1, 2, 31, dtype=torch.float64, device="cpu").tolist()
    smoothing = 1 / (len(labels) + 2)
    losses = [
        float(functional.cross_entropy(scores * factor, labels, label_smoothing=smoothing))
        for factor in factors
    ]
    return float(factors[losses.index(min(losses))])
