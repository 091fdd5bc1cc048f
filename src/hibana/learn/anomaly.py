"""Anomalies of a series by spikes of random neurons: one pass, constant memory, one score for each step.

The detector has two parts that learn what is usual. The first is the value itself. The second are groups
of six random neurons: each pattern of their spikes is counted, and a step with rare patterns is surprising.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hibana.learn.anomaly_kernel import (
    ARRAYS,
    GROUPS,
    NEURONS,
    SUMMED,
    TIMES,
    WINDOW,
    WINDOWED,
    score_steps,
)

__all__ = ["Anomaly", "AnomalyDetector"]


class Anomaly(NamedTuple):
    """The result of one step of :meth:`AnomalyDetector.stream`."""

    score: float
    alarm: bool


class AnomalyDetector(nn.Module):
    r"""Scores the steps of a series by how unusual they are; learns in one pass and in constant memory.

    Each column :math:`x` of the series is scored on its own; the score of a step is the largest.

    1. Values become :math:`z = (x - \mu) / \sigma`, with running mean and deviation, within ±1000.
    2. Leaky neurons with time constants of :math:`2^k` steps, k = 0 to 6, sum the value and its change:
       :math:`u_k \leftarrow u_k + 2^{-k} (z - u_k)` and
       :math:`w_k \leftarrow w_k + 2^{-k} (|z - z'| - w_k)`. Each is standardized by its own running mean
       and deviation.
    3. Random neurons spike if :math:`f_a - f_b > \theta`: `f` is, for 192 groups of six neurons, `z` of one
       of the last 64 steps, for 64 groups one of the sums above; :math:`f_b` is 0 for half of the neurons.
    4. :math:`n_g(c)` counts how often the neurons of group `g` had the pattern of spikes `c` in `n` steps.
       The rarity of a step's patterns is :math:`r = -\frac1{256} \sum_g \log_2 \frac{n_g(c_g) + 0.1}{n + 1}`.
    5. :math:`P(y)` is the share of earlier steps whose `y` was at least as large; above the 99% quantile `q`
       it continues as :math:`P(q) (y / q)^{-1/\xi}`, with Hill's estimate of :math:`\xi`. A histogram of
       `y` in eighths of an octave holds both. With :math:`l = -\log_{10} P(|z|)` and
       :math:`m = -\log_{10} P(r)`, the surprise is :math:`\max(l, m) + (l + m) / 2`.
    6. The score adapts, as the threshold of an adaptive neuron: it is the surprise minus half of the largest
       earlier surprise, which decays with a time constant of 400 steps.

    A step is an alarm if its score is above `threshold` and no alarm was in the `silence` steps before. The
    first 128 steps after :meth:`reset` have a score of at most 0. The state takes 34.6 kB for each column.

    Sources: Hill (1975) on tails; Sathe and Aggarwal (2016, RS-Hash) on counts of random patterns.

    Args:
        columns: number of columns of the series.
        threshold: score above which a step is an alarm; :meth:`calibrate` sets it.
        silence: steps after an alarm without another.
        memory: learned steps after which all counts are halved: the detector forgets.
        seed: seed of the random neurons.

    Raises:
        ValueError: if `columns`, `silence` or `memory` is out of range.

    >>> import torch, hibana as hb
    >>> detector = hb.learn.AnomalyDetector(threshold=6.0)
    >>> series = torch.sin(torch.arange(2000.0) / 8) + 0.1 * torch.randn(2000)
    >>> series[1500:1510] = 2.5
    >>> scores = detector(series)  # learns on the way
    >>> detector.alarms(scores)
    [1500]
    """

    counts: Tensor
    moments: Tensor

    def __init__(
        self,
        columns: int = 1,
        *,
        threshold: float = math.inf,
        silence: int = 50,
        memory: int = 16_384,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("columns", columns, 1), ("silence", silence, 0), ("memory", memory, 256)):
            if not least <= value < 2**15:
                raise ValueError(f"{name} must be at least {least} and below 2^15, got {value}")
        self.columns, self.silence, self.memory, self.threshold = columns, silence, memory, threshold
        for name, size in ARRAYS.items():
            dtype = torch.int16 if name == "counts" else torch.float32
            self.register_buffer(name, torch.zeros(columns, size, dtype=dtype, device="cpu"))
        for name, table in zip(("first", "second", "cuts"), _random_neurons(seed), strict=True):
            self.register_buffer(name, table, persistent=False)  # a file must not set indices
        self._since = silence + 1  # steps since the last alarm

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.columns}, threshold={self.threshold:.4g}, silence={self.silence}"

    def forward(self, series: Tensor, *, learn: bool = True) -> Tensor:
        """Returns the score of each step, ``[steps]``, and continues from the state of the call before.

        Args:
            series: finite numbers, ``[steps]`` or ``[steps, columns]``.
            learn: whether means, counts and histograms change.

        Raises:
            ValueError: if `series` has another shape, or numbers that are not finite in float32.
        """
        values = series.detach().to("cpu", torch.float32)
        values = (values[:, None] if values.ndim == 1 else values).contiguous()
        if values.ndim != 2 or values.shape[1] != self.columns:
            raise ValueError(
                f"series must be [steps, {self.columns}], as in the detector, got {tuple(series.shape)}"
            )
        if not bool(values.isfinite().all()):
            raise ValueError("series must be finite in float32: fill in or leave out other steps")
        scores = torch.zeros(len(values), dtype=torch.float32, device="cpu")
        buffers = dict(self.named_buffers())
        options = {"learn": int(learn), "memory": self.memory, "columns": self.columns}
        score_steps(1, inputs=values, scores=scores, steps=len(values), **options, **buffers)
        return scores

    def reset(self) -> None:
        """Ends the series: the next call begins another one. What was learned stays."""
        self.moments[:, 1] = 0
        self._since = self.silence + 1

    def alarms(self, scores: Tensor) -> list[int]:
        """The steps of `scores` that are alarms; continues from the scores of the call before."""
        steps = list[int]()
        last = -self._since
        for step in (scores > self.threshold).nonzero().flatten().tolist():
            if step - last > self.silence:
                steps.append(step)
                last = step
        self._since = min(len(scores) - last, self.silence + 1)
        return steps

    def calibrate(self, scores: Tensor, rate: float) -> float:
        """Sets and returns the threshold that gives `rate` alarms per step on `scores` of normal steps.

        The largest scores of blocks of `silence` + 1 steps stand for alarms. Below ten alarms, the threshold
        is extrapolated from the ten largest: their excess is exponentially distributed.

        Raises:
            ValueError: if `rate` is not in (0, 1), or there are fewer than 20 blocks.
        """
        if not 0 < rate < 1:
            raise ValueError(f"rate must be alarms per step, in (0, 1), got {rate}")
        block = self.silence + 1
        largest = scores[: len(scores) // block * block].view(-1, block).amax(1).sort(descending=True).values
        if len(largest) < 20:
            raise ValueError(f"scores must be of at least {20 * block:,} steps, got {len(scores):,}")
        alarms = rate * len(scores)
        count = min(max(round(alarms), 10), len(largest) - 1)
        excess = (largest[:count] - largest[count]).mean()
        self.threshold = float(largest[count] + excess * max(0.0, math.log(count / alarms)))
        return self.threshold

    def stream(
        self, series: Iterable[Tensor | float | Sequence[float]], *, learn: bool = False
    ) -> Iterator[Anomaly]:
        """Yields the score of each step of `series` as it comes, and whether it is an alarm."""
        for values in series:
            scores = self(
                torch.as_tensor(values, dtype=torch.float32, device="cpu").reshape(1, -1), learn=learn
            )
            yield Anomaly(float(scores), bool(self.alarms(scores)))


def _random_neurons(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two features that each neuron compares, and its threshold, for all groups in order.

    Windows of the first groups begin at the last step and are at most `d` steps long; `d` is
    distributed evenly on a logarithmic scale. Thresholds are normally distributed, as are the features.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float32, device="cpu")

    lengths = WINDOW ** draw(WINDOWED, 1)
    lags = [(draw(WINDOWED, NEURONS) * (lengths + 1)).long().clamp(max=WINDOW - 1) for _ in range(2)]
    lags[0][:, 0] = 0
    kinds = len(TIMES) * (draw(SUMMED, NEURONS) < 0.5)  # of values or of changes
    sums = [WINDOW + 1 + kinds + (draw(SUMMED, NEURONS) * len(TIMES)).long() for _ in range(2)]
    first, second = (torch.cat(pair).byte() for pair in zip(lags, sums, strict=True))
    single = draw(GROUPS, NEURONS) < 0.5
    second[single] = WINDOW  # a feature that is always 0
    cuts = torch.randn(GROUPS, NEURONS, generator=generator, dtype=torch.float32, device="cpu")
    return first, second, torch.where(single, cuts, cuts * math.sqrt(2))
