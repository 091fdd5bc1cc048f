"""A series with its scores and alarms."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hibana.plot import style

MOST_POINTS = 4000
"""Points of a line; of longer series, the extremes of each part are drawn."""


def anomalies(
    series: Tensor,
    scores: Tensor,
    alarms: Sequence[int],
    *,
    threshold: float,
    names: Sequence[str] = (),
    times: Sequence[str] = (),
) -> Figure:
    """Draws each column of a series, the score below, and a line at each alarm.

    Args:
        series: ``[steps, columns]``.
        scores: ``[steps]``, from :class:`hibana.learn.AnomalyDetector`.
        alarms: steps of the alarms.
        threshold: score above which a step is an alarm.
        names: names of the columns.
        times: the date of each step; without them, the axis counts steps.
    """
    columns = series.shape[1]
    figure = style.new_figure(9, 1.8 * (columns + 1))
    rows = figure.subplots(columns + 1, 1, sharex=True, squeeze=False)[:, 0]
    labels = [*(names or [""] * columns), "Score"]
    for axes, values, name in zip(rows, (*series.T, scores), labels, strict=True):
        steps, drawn = _thinned(values)
        axes.plot(steps, drawn, color=style.BLUE, linewidth=0.8)
        axes.set_ylabel(name)
        style.without_frame(axes)
        for alarm in alarms:
            axes.axvline(alarm, color=style.RED, linewidth=1, alpha=0.6)
    rows[-1].axhline(threshold, color=style.ORANGE, linestyle="--", linewidth=1, label="threshold")
    rows[-1].legend(frameon=False, loc="upper left", fontsize="small")
    rows[-1].set_xlabel("Step")
    rows[-1].set_xlim(0, max(1, len(scores) - 1))
    if times and not times[0].isdecimal():
        ticks = [round(part * (len(times) - 1) / 4) for part in range(5)]
        rows[-1].set_xticks(ticks, [times[tick] for tick in ticks], fontsize="small")
        rows[-1].set_xlabel("Time")
    return figure


def _thinned(values: Tensor) -> tuple[Sequence[float], Tensor]:
    """Steps and values of a line: all, or smallest and largest value of each part of a long series."""
    size = -(-len(values) // (MOST_POINTS // 2))
    if size < 3:
        return range(len(values)), values
    parts = values[: len(values) // size * size].view(-1, size)
    drawn = torch.stack([parts.amin(1), parts.amax(1)], 1).flatten()
    return [step * size / 2 for step in range(len(drawn))], drawn
