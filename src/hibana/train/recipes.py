"""Default options by kind of data, where they differ from the defaults of ``Settings`` for still inputs.

The values for small tables were chosen on the training rows of eight tables: docs/results.md.
"""

import math
from typing import Any

from hibana.data import DataSet, user_data

FEW_ROWS = 2_000
"""Training rows of a table below which :data:`OPTIONS_OF_FEW_ROWS` apply."""
OPTIONS_OF_FEW_ROWS = {
    "layers": "32-skip",
    "epochs": 60,
    "patience": 30,
    "batch_size": 16,
    "weight_decay": 2.0,
}
"""Options for small tables."""
MIN_VALIDATION_ROWS = 10
"""Validation rows below which early stopping is off."""
IMAGES = {"layers": "16c3b-p2-32c3b-p2-128"}
"""Options for images: two convolutions with normalization and pooling."""
EVENTS = {"layers": "16c5s2b-32c5s2b-128"}
"""Options for recordings of event cameras: two convolutions with stride 2."""
SEQUENCES = {
    "cell": "LIF",
    "surrogate": "ATan",
    "readout_tau": 20.0,
    "loss": "membrane-last",
    "smoothing": 0.1,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "start_rate": 0.15,
    "rate_target": 0.15,
}
"""Options for sequences of numbers, in addition to the layers of :func:`windows`."""
ROCKET = {**SEQUENCES, "epochs": 0, "loss": "membrane-mean", "smoothing": 0.0, "start_rate": 0.0}
"""Options for the spiking Rocket, :func:`hibana.models.rocket`, which is fitted in closed form."""
REFRACTORY_PERIOD = 3
"""Refractory period of the Rocket's neurons in steps, if validation prefers it to none."""
TAPS, WIDTH = 5, 96
"""Steps in a window, and neurons per window."""
MAX_DILATION = 99
"""The largest dilation whose square has at most four digits, as in descriptions of layers."""


def defaults(
    kind: str | None,
    data_set: type[DataSet] | None,
    steps: int,
    *,
    source: Any = None,
    rows: int | None = None,
) -> dict[str, Any]:
    """Returns the options whose default for such data differs from that of ``Settings``.

    Args:
        kind: kind of the user's files or folder; ``None`` for a data set by name.
        data_set: class of a data set by name; ``None`` if unknown.
        steps: length of a sequence.
        source: arrays or their file, to detect whether they are images.
        rows: number of training samples; ``None`` if unknown.
    """
    options: dict[str, Any] = {}
    shape = vars(data_set).get("shape") if kind is None and data_set is not None else None
    has_series = data_set is not None and data_set.sequential and isinstance(shape, tuple) and len(shape) == 1
    if has_series or kind in ("sequences", "sound"):
        options = {**SEQUENCES, "layers": windows(steps)}
    elif kind == "images" or (kind == "arrays" and source is not None and user_data.are_pictures(source)):
        options = IMAGES
    elif kind == "events":
        options = EVENTS
    elif kind is not None and rows is not None and rows < FEW_ROWS:
        options = OPTIONS_OF_FEW_ROWS
    return dict(options)


def rocket(steps: int, period: int = 0) -> dict[str, Any]:
    """Returns options of a Rocket over `steps` whose neurons are refractory for `period` steps."""
    return {**ROCKET, "layers": f"rocket{steps}{f'r{period}' if period else ''}"}


def windows(steps: int) -> str:
    """Describes three window layers with dilations 1, d and d².

    d is the largest number with which the three windows together span at most `steps`.

    >>> windows(40)
    '96w5b-96w5d2b-96w5d4b'
    """
    discriminant = (4 * steps) // (TAPS - 1) - 3  # of (TAPS - 1) (1 + d + d²) <= steps, times 4
    d = min(max(1, (math.isqrt(max(0, discriminant)) - 1) // 2), MAX_DILATION)
    dilations = (f"d{dilation}" if dilation > 1 else "" for dilation in (1, d, d * d))
    return "-".join(f"{WIDTH}w{TAPS}{dilation}b" for dilation in dilations)
