"""A spiking Rocket: series read by thresholded windows of whole-number weights, without gradient descent."""

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
from hibana.nn.window import Window

__all__ = ["NEURONS", "Rocket", "dilations", "rocket", "size"]

TAPS = 9
"""Steps under a window: six of weight -1 and three of weight 2, in all 84 orders."""
DILATIONS = 10
"""Dilations at most, spread evenly in their logarithm."""
MOST_CHANNELS = 9
"""Channels that one neuron listens to at most."""
NEURONS = 8
"""For each order of the weights and each dilation."""
LOW, LOW_AWAKE, HIGH = 0.5, 0.75, 0.99
"""Quantiles of a neuron's drive over the training set, between which the thresholds lie: from LOW of neurons
that rest, and from LOW_AWAKE of those that do not, to HIGH. Both spike in 8 to 13% of the steps."""
DRAWN = 4096
"""Values of its drive that a neuron's quantile is taken of."""
AT_ONCE = 1 << 22
"""Values of one layer that are computed at a time when the network is fitted."""
_GOLDEN = (math.sqrt(5) - 1) / 2


def _neuron(period: int) -> cells.Cell:
    """A threshold: a potential that is the present input; after a spike it rests for `period` steps."""
    if period == 0:
        return cells.LIFCell(tau=1.0, surrogate=surrogate.Triangle())
    return cells.RefractoryLIFCell(tau=1.0, period=period, surrogate=surrogate.Triangle())


def rocket(
    shape: tuple[int, ...],
    classes: int,
    make_cell: Callable[[], cells.Cell] | None = None,
    *,
    steps: int,
    neurons: int = NEURONS,
    period: int = 0,
    seed: int = 0,
) -> "Rocket":
    """Threshold neurons on dilated windows, read out by their rates: ``[T, B, channels] -> [T, B, classes]``.

        I_t = sum_k w_k sum_c x_(c, t - (8 - k) d),   w of six -1 and three 2, or its negative
        s_t = H(I_t - threshold), not within `period` steps of a spike;   score = mean_t (W s_t + b)

    For each of the 84 orders of the weights and each dilation d there are `neurons` neurons. Half of them are
    driven by the series x, half by its difference ``x_t - x_(t-1)``; half of each spike for a large sum (on)
    and half for a small one (off). Dilations are spread from 1 to the largest whose windows span the series.
    :meth:`Rocket.fit` sets thresholds and readout from training data. Nothing is learned by gradient descent;
    after ``net.requires_grad_()`` everything can be.

    Args:
        shape: of one step of input, ``(channels,)``.
        classes: outputs.
        make_cell: makes the cell of a layer, with threshold 1; called once for each layer. By default
            ``LIFCell(tau=1)``, whose potential is the present input, or of neurons that rest
            ``RefractoryLIFCell(tau=1, period=period)``.
        steps: the length of the longest series, which decides the dilations.
        neurons: for each order of the weights and each dilation, a multiple of 4.
        period: steps that a neuron rests after a spike. With 0 its rate is the share of time above the
            threshold; else it also counts how often the drive rises above it, spikes less, and thresholds may
            be lower: from the median of the drive on, instead of three quarters.
        seed: of the channels that a neuron listens to, and of the values that thresholds are taken of.

    Raises:
        ValueError: if `shape` has other than one axis, or a size makes no sense.

    Source: Dempster, Schmidt & Webb (2021), *MiniRocket: a very fast (almost) deterministic transform for
    time series classification*, for weights, dilations and shares of time above a threshold; Tan, Dempster,
    Bergmeir & Webb (2022), *MultiRocket: multiple pooling operators and transformations for fast and
    effective time series classification*, for the difference; on and off neurons that rest are ours.

    >>> import torch
    >>> slow, fast = (torch.sin(torch.arange(40.0) * pace) for pace in (0.3, 0.9))
    >>> series = torch.stack([slow, fast] * 5, dim=1)[..., None] + 0.1 * torch.randn(40, 10, 1)
    >>> net = rocket((1,), 2, steps=40)
    >>> net.fit(series, torch.tensor([0, 1] * 5))
    1.0
    >>> net(series).mean(0).argmax(1).tolist()
    [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    """
    if len(shape) != 1:
        raise ValueError(f"shape must be (channels,), of a series of numbers, got {shape}")
    for name, value in (("channels", shape[0]), ("classes", classes), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if isinstance(neurons, bool) or not isinstance(neurons, int) or neurons < 4 or neurons % 4:
        raise ValueError(f"neurons must be a multiple of 4, at least 4, got {neurons!r}")
    if isinstance(period, bool) or not isinstance(period, int) or period < 0:
        raise ValueError(f"period must be a whole number of steps, 0 or more, got {period!r}")
    made = partial(_neuron, period) if make_cell is None else make_cell
    return Rocket(shape[0], classes, made, dilations(steps), neurons, LOW if period else LOW_AWAKE, seed)


def dilations(steps: int) -> list[int]:
    """Whole numbers from 1 to the largest dilation whose windows span so many `steps`.

    >>> dilations(9), dilations(150)
    ([1], [1, 2, 3, 5, 7, 9, 13, 18])
    """
    most = max(1.0, (steps - 1) / (TAPS - 1))
    return sorted({int(most ** (each / (DILATIONS - 1)) + 1e-9) for each in range(DILATIONS)})


def size(channels: int, classes: int, steps: int) -> int:
    """Weights of :func:`rocket` with as many neurons as usual."""
    return 84 * NEURONS * len(dilations(steps)) * (TAPS * channels + classes)


@final
class Rocket(nn.Module):
    """The network that :func:`rocket` makes: a branch a dilation, whose outputs are summed."""

    def __init__(
        self,
        channels: int,
        classes: int,
        make_cell: Callable[[], cells.Cell],
        spans: list[int],
        neurons: int,
        low: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.low, self.seed = channels, classes, low, seed
        self.error = math.nan
        """Mean squared error of the left-out samples at the last :meth:`fit`, of targets -1 and 1."""
        generator = torch.Generator().manual_seed(seed)
        orders = _orders(neurons // 2)
        self.branches = nn.ModuleList()
        for dilation, of_difference in itertools.product(spans, (False, True)):
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            if of_difference:
                parts["difference"] = _difference(channels)
            window = Window(channels, len(orders), TAPS, dilation)
            heard = _heard(len(orders), channels, generator)
            with torch.no_grad():
                window.weight.copy_(heard[:, :, None] * orders[:, None])
                nn.init.zeros_(cast(Tensor, window.bias))
            readout = events.Linear(len(orders), classes, bias=not self.branches)
            for parameter in readout.parameters():
                nn.init.zeros_(parameter)
            parts |= {"window": window, "neurons": layers.OverTime(make_cell()), "readout": readout}
            self.branches.append(nn.Sequential(parts))
        self.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Evidence for each class at each step: ``[T, batch, channels] -> [T, batch, classes]``."""
        first, *others = self.branches
        evidence: Tensor = first(inputs)
        for branch in others:
            evidence = evidence + branch(inputs)
        return evidence

    @property
    def neurons(self) -> int:
        """How many spiking neurons there are."""
        return sum(readout.in_features for readout in self._readouts)

    @property
    def _readouts(self) -> list[events.Linear]:
        return [cast(events.Linear, cast(nn.Sequential, branch)[-1]) for branch in self.branches]

    def _windows(self) -> Iterator[tuple[nn.Sequential, Window]]:
        """Of each branch what precedes its neurons, and the last of that, a window."""
        for branch in self.branches:
            before = cast(nn.Sequential, cast(nn.Sequential, branch)[:-2])
            yield before, cast(Window, before[-1])

    @torch.no_grad()
    def rates(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Each neuron's spikes per step, ``[batch, neurons]``, branch by branch.

        Args:
            inputs: ``[T, batch, channels]``.
            lengths: of series that are padded to T, ``[batch]``: the steps after their ends do not count.

        Raises:
            ValueError: if a shape is another, or `lengths` are not in [1, T].
        """
        self._check(inputs)
        every = inputs.new_full((inputs.shape[1],), len(inputs), dtype=torch.int64)
        every = every if lengths is None else padding.checked(lengths, inputs)
        found = []
        for chosen in self._chunks(inputs):
            steps = int(every[chosen].max())
            part, own = inputs[:steps, chosen], every[chosen]
            spikes = (cast(nn.Sequential, branch)[:-1](part) for branch in self.branches)
            ragged = own if int(own.min()) < steps else None
            counts = torch.cat([padding.masked(each, ragged).sum(0) for each in spikes], dim=1)
            found.append(counts / own[:, None])
        return torch.cat(found)

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

        The thresholds are quantiles of what drives each neuron; the readout is the ridge regression of the
        rates, its penalty chosen by leave-one-out (:mod:`hibana.nn.models.ridge`). Of classes the scores are
        scaled so that the cross-entropy of the left-out samples is least.

        Args:
            inputs: ``[T, N, channels]``, of about mean 0 and deviation 1.
            labels: class indices, ``[N]``; or quantities in floating point, of a network of one output.
            lengths: of series that are padded to T, ``[N]``.
            weights: what a sample of each class counts; 1 if ``None``.

        Returns:
            The share of the training samples that is named right by a fit to all others; of quantities, the
            part of their variance that is explained so (R²).

        Raises:
            TypeError: if `labels` are no classes where there are several outputs.
            ValueError: if a shape or value makes no sense, or an input is not finite.
        """
        self._check(inputs)
        targets = self._targets(labels, inputs.shape[1])
        if weights is not None and (targets is None or len(weights) != self.classes):
            raise ValueError(f"weights must be one for each of {self.classes} classes, got {weights!r}")
        if not bool(inputs.isfinite().all()):
            raise ValueError("inputs must be finite")
        self._set_thresholds(inputs, lengths)
        wanted = labels[:, None].double() if targets is None else targets
        counts = None if weights is None else wanted.new_tensor(weights)[labels]
        fitted = ridge(self.rates(inputs, lengths), wanted, counts)
        self.error = float((fitted.held_out - wanted).square().mean())
        if targets is None:
            scale = 1.0
            spread = (wanted - wanted.mean()).square().sum().clamp(min=1e-300)
            score = 1 - float((fitted.held_out - wanted).square().sum() / spread)
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
        if inputs.ndim != 3 or not inputs.numel() or inputs.shape[2] != self.channels:
            raise ValueError(
                f"inputs must be [T, batch, {self.channels}], none of them 0, got shape {tuple(inputs.shape)}"
            )

    def _targets(self, labels: Tensor, samples: int) -> Tensor | None:
        """1 for a sample's class and -1 for the others, ``[N, classes]``; of quantities None."""
        if labels.shape != (samples,):
            raise ValueError(f"labels must be one for each of {samples} series, got {tuple(labels.shape)}")
        if labels.is_floating_point():
            if self.classes != 1:
                raise TypeError(
                    f"labels must be class indices, of {self.classes} outputs, got {labels.dtype}"
                )
            return None
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise ValueError(f"labels must lie in [0, {self.classes}), got {sorted(set(labels.tolist()))}")
        return 2.0 * functional.one_hot(labels.long(), self.classes).double() - 1

    def _chunks(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Samples by number, as many at a time as are computed together."""
        count = max(1, AT_ONCE // (len(inputs) * self._readouts[0].in_features))
        every = torch.arange(inputs.shape[1], dtype=torch.int64, device=inputs.device)
        return tuple(torch.split(every, count))

    def _set_thresholds(self, inputs: Tensor, lengths: Tensor | None) -> None:
        """Has each neuron spike above a quantile of its drive: the window's bias is 1 less the threshold."""
        generator = torch.Generator().manual_seed(self.seed)
        steps, samples = inputs.shape[:2]
        every = torch.full((samples,), steps, dtype=torch.int64, device="cpu")
        every = every if lengths is None else padding.checked(lengths, inputs).cpu()
        at_least = -(-DRAWN // int(every.double().mean()))
        order = torch.randperm(samples, generator=generator, dtype=torch.int64, device="cpu")[: 2 * at_least]
        own = padding.within(every[order], inputs[:, order].cpu())[..., 0]  # [T, chosen]
        places = own.flatten().nonzero()[:, 0]
        drawn = torch.randperm(len(places), generator=generator, dtype=torch.int64, device="cpu")[:DRAWN]
        places = places[drawn].to(inputs.device)
        count = 0
        for before, window in self._windows():
            bias = cast(Tensor, window.bias).zero_()
            drive = before(inputs[:, order]).flatten(0, 1)[places]
            number = torch.arange(count, count + drive.shape[1], dtype=torch.float64, device="cpu")
            level = self.low + (HIGH - self.low) * ((number + 1) * _GOLDEN % 1)
            count += drive.shape[1]
            rank = (level * (len(drive) - 1)).round().long().to(drive.device)
            bias.copy_(1 - drive.sort(dim=0).values.gather(0, rank[None])[0])


def _difference(channels: int) -> Window:
    """Each channel less what it was a step before."""
    window = Window(channels, channels, 2, groups=channels, bias=False)
    with torch.no_grad():
        window.weight[:, :, 0], window.weight[:, :, 1] = -1.0, 1.0
    return window


def _orders(neurons: int) -> Tensor:
    """The weights of a dilation's neurons, ``[84 * neurons, 9]``: half of them as they are, half negative."""
    orders = torch.full((84, TAPS), -1.0, dtype=torch.get_default_dtype(), device="cpu")
    for row, places in enumerate(itertools.combinations(range(TAPS), 3)):
        orders[row, list(places)] = 2.0
    return torch.cat([orders, -orders] * (neurons // 2))


def _heard(neurons: int, channels: int, generator: torch.Generator) -> Tensor:
    """Which channels each neuron listens to, 0 and 1, ``[neurons, channels]``: few, more often than many."""
    most = min(channels, MOST_CHANNELS)
    drawn = torch.rand(neurons, generator=generator, dtype=torch.float64, device="cpu")
    count = (2 ** (drawn * math.log2(most + 1))).long().clamp(max=most)
    chance = torch.rand(neurons, channels, generator=generator, dtype=torch.float64, device="cpu")
    return (chance.argsort(1).argsort(1) < count[:, None]).to(torch.get_default_dtype())


def _scale(scores: Tensor, labels: Tensor) -> float:
    """What `scores` are multiplied with to have the least cross-entropy.

    Source: Guo, Pleiss, Sun & Weinberger (2017), *On calibration of modern neural networks*; Platt (1999),
    *Probabilistic outputs for support vector machines*, for targets that few samples do not make certain.
    """
    factors = torch.logspace(-1, 2, 31, dtype=torch.float64, device="cpu").tolist()
    smoothing = 1 / (len(labels) + 2)
    losses = [
        float(functional.cross_entropy(scores * factor, labels, label_smoothing=smoothing))
        for factor in factors
    ]
    return float(factors[losses.index(min(losses))])
