"""Defaults of a run that differ from those for still inputs, which are the defaults of ``Settings``.

The values for tables of few rows were chosen on training rows of eight tables: docs/results.md.
"""

import math
from typing import Any

from hibana.data import DataSet, user_data

__all__ = [
    "FEW_ROWS",
    "LEAST_JUDGES",
    "OPTIONS_OF_FEW_ROWS",
    "PERIODS",
    "SEQUENCES",
    "defaults",
    "rocket",
    "usual",
]

FEW_ROWS = 2_000
"""Training rows of a table below which :data:`OPTIONS_OF_FEW_ROWS` apply."""
OPTIONS_OF_FEW_ROWS = {
    "layers": "32-skip",
    "epochs": 60,
    "patience": 30,
    "batch_size": 16,
    "weight_decay": 2.0,
}
"""Options for tables of few rows."""
LEAST_JUDGES = 10
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
"""Options for sequences of numbers, beside the layers of :func:`windows`."""
ROCKET = {**SEQUENCES, "epochs": 0, "loss": "membrane-mean", "smoothing": 0.0, "start_rate": 0.0}
"""Options for the spiking Rocket, :func:`hibana.models.rocket`, which is fitted in closed form."""
PERIODS = (0, 3)
"""Refractory periods of the Rocket's neurons, in steps. Validation chooses one."""
TAPS, WIDTH = 5, 96
"""Steps under a window, and neurons above it."""
LARGEST_DILATION = 99
"""Its square still fits into a description of layers."""


def defaults(
    kind: str | None,
    data_set: type[DataSet] | None,
    steps: int,
    *,
    source: Any = None,
    rows: int | None = None,
) -> dict[str, Any]:
    """Options whose default differs from that of ``Settings``.

    Args:
        kind: of files and folders.
        data_set: class of data sets by name; ``None`` if it is not known.
        steps: length of a sequence.
        source: arrays, or their file, to detect images among them.
        rows: number of training samples, if it is known.
    """
    options: dict[str, Any] = {}
    shape = vars(data_set).get("shape") if kind is None and data_set is not None else None
    of_numbers = data_set is not None and data_set.sequential and isinstance(shape, tuple) and len(shape) == 1
    if of_numbers or kind in ("sequences", "sound"):
        options = {**SEQUENCES, "layers": windows(steps)}
    elif kind == "images" or (kind == "arrays" and source is not None and user_data.are_pictures(source)):
        options = IMAGES
    elif kind == "events":
        options = EVENTS
    elif kind is not None and rows is not None and rows < FEW_ROWS:
        options = OPTIONS_OF_FEW_ROWS
    return dict(options)


def usual(kind: str | None, data_set: type[DataSet] | None, steps: int) -> list[dict[str, Any]]:
    """All that :func:`defaults` returns for such data, for any number of rows, and the Rocket's options."""
    fitted = [rocket(steps)] if kind in ("sequences", "sound") else []
    return [defaults(kind, data_set, steps, rows=rows) for rows in (None, 1)] + fitted


def rocket(steps: int, period: int = 0) -> dict[str, Any]:
    """Options of a Rocket over `steps`, whose neurons rest for `period` steps after a spike."""
    return {**ROCKET, "layers": f"rocket{steps}{f'r{period}' if period else ''}"}


def windows(steps: int) -> str:
    """Three windows, dilated by 1, d and d^2, with the largest d for which they span at most `steps`.

    >>> windows(40)
    '96w5b-96w5d2b-96w5d4b'
    """
    discriminant = (4 * steps) // (TAPS - 1) - 3  # of (TAPS - 1) (1 + d + d^2) <= steps, times 4
    d = min(max(1, (math.isqrt(max(0, discriminant)) - 1) // 2), LARGEST_DILATION)
    dilations = (f"d{each}" if each > 1 else "" for each in (1, d, d * d))
    return "-".join(f"{WIDTH}w{TAPS}{each}b" for each in dilations)
