"""The most active neurons of a population, by kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hibana.plot import style

ROW = 0.17
"""Height of a neuron's bar in inches."""


def most_active(
    rates: "np.ndarray[Any, Any]",
    names: Sequence[str],
    kinds: Sequence[str] | None = None,
    axes: Axes | None = None,
    *,
    most: int = 40,
) -> Axes:
    """Draws a bar for each of the most active neurons, with the standard deviation over trials.

    Args:
        rates: spikes per second, ``[trials, neurons]``.
        names: the name of each neuron.
        kinds: the kind of each neuron, which sets its colour; None for one colour.
        axes: axes to draw on.
        most: most neurons that are drawn.
    """
    mean, deviation = rates.mean(0), rates.std(0)
    order = [int(i) for i in mean.argsort(kind="stable")[::-1][:most] if mean[i] > 0]
    axes = axes or style.new_axes(6, 1 + ROW * max(len(order), 5))
    groups = list(dict.fromkeys(kinds[i] for i in order)) if kinds else [""]
    for group, colour in zip(groups, style.colours(len(groups)), strict=True):
        rows = [row for row, i in enumerate(order) if not kinds or kinds[i] == group]
        chosen = [order[row] for row in rows]
        bars = {"xerr": deviation[chosen], "error_kw": {"linewidth": 0.8, "ecolor": style.GREY}}
        axes.barh(rows, mean[chosen], color=colour, label=group, **bars)
    labels, properties = style.drawable([names[i] for i in order])
    axes.set_yticks(range(len(order)), labels, fontsize=6, **properties)
    axes.set(xlabel="Rate (Hz)", xlim=(0, None))
    axes.invert_yaxis()
    if kinds and order:
        texts, properties = style.drawable(groups)
        handles, _ = axes.get_legend_handles_labels()
        legend = axes.legend(handles, texts, frameon=False, fontsize=7, loc="lower right")
        for text in legend.get_texts():
            text.set(**properties)
    return style.without_frame(axes)
