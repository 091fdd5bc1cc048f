"""An answer on its way into the figures: one message, so that all of it is painted in the same frame."""

from typing import Any

import numpy as np

from hibana.cli.play import neuron
from hibana.cli.play.view.look import LAYERS

__all__ = ["COLUMNS", "DELIVER", "columns"]

COLUMNS = {
    "potential": ("time", "potential", "spike", "threshold"),
    "others": ("xs", "ys", "colour", "name"),
    "input": ("time", "input"),
    "gradient": ("time", "gradient"),
    "curve": ("current", "rate", "own_current", "own_rate"),
    "surrogate": ("v", "s", "derivative", "onset", "height"),
}
"""What each source of the page's figures holds."""
DELIVER = """
for (const [name, data] of Object.entries(carrier.tags[0] ?? {})) {
  sources[name].setv({data}, {sync: false})  // what is equal is left alone, and not painted anew
}
"""
"""Run in the browser: each source takes its part. Set from here, each would come, and be painted, alone."""

Columns = dict[str, Any]


def columns(answer: dict[str, Any], strength: float | str) -> dict[str, Columns]:
    """An answer as the columns of each source.

    Columns that are shorter than the longest end in NaN, which is not drawn.
    """
    threshold, step, others = answer["threshold"], answer["step"], answer["others"]
    nothing = np.zeros(0)
    spike = np.full(neuron.STEPS, np.nan)
    spike[answer["spikes"]] = answer["potential"][answer["spikes"]]
    heights = [1.0] if step is None else [1.0, np.nanmax(step["derivative"], initial=0.0)]
    values = {
        **{name: answer[name] for name in ("time", "input", "potential", "gradient")},
        "spike": spike,
        "threshold": np.full(neuron.STEPS, np.nan if threshold is None else threshold),
        "xs": [answer["time"]] * len(others),
        "ys": list(others.values()),
        "colour": [LAYERS[(index + 3) % len(LAYERS)] for index in range(len(others))],
        "name": list(others),
        "current": answer["currents"],
        "rate": answer["rates"],
        "own_current": np.array([strength], dtype=float),
        "own_rate": np.array([answer["rate"]]),
        **({"v": nothing, "s": nothing, "derivative": nothing} if step is None else step),
        "onset": nothing if threshold is None else np.array([threshold, threshold]),
        "height": nothing if threshold is None else np.array([0.0, max(heights)]),
    }
    return {source: _filled({name: values[name] for name in names}) for source, names in COLUMNS.items()}


def _filled(given: Columns) -> Columns:
    longest = max(map(len, given.values()))
    return {
        name: np.concatenate([values, np.full(longest - len(values), np.nan)])
        if len(values) < longest
        else values
        for name, values in given.items()
    }
