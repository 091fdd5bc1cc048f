"""The settings of a run that nobody chose.

Of still inputs the article's, of pictures in folders and of recordings of cameras the same over
convolutions, of sequences one recipe for all, and of tables of few rows one that starts at a linear model.
"""

import math
from typing import Any, Literal

__all__ = ["BATCH", "FEW", "JUDGES", "NAMES", "Of", "usual"]

BATCH = 64
"""Samples in a batch, also of data sets that were made without a word of it."""
FEW, JUDGES = 2_000, 10
"""Rows of a table's training part below which they are few, and rows to validate on that can end a run."""
_ALL: dict[str, Any] = {"epochs": 40, "patience": 0, "batch_size": BATCH}
_STILL: dict[str, Any] = {
    **_ALL,
    "layers": "256,256",
    "cell": "IF",
    "surrogate": "Step",
    "readout_tau": math.inf,
    "loss": "membrane-mean",
    "smoothing": 0.0,
    "learning_rate": 5e-3,
    "weight_decay": 1e-2,
    "start_rate": 0.2,
    "rate_target": 0.07,
    "rate_penalty": 0.1,
}
_FEW: dict[str, Any] = {
    **_STILL,
    "layers": "32-skip",
    "epochs": 60,
    "patience": 30,
    "batch_size": 16,
    "weight_decay": 2.0,
}
"""Each part is chosen on parts of the training rows of eight tables: docs/results.md."""
_PICTURES: dict[str, Any] = {**_STILL, "layers": "16c3b-p2-32c3b-p2-128"}
_RECORDINGS: dict[str, Any] = {**_STILL, "layers": "16c5s2b-32c5s2b-128"}
_SEQUENCES: dict[str, Any] = {
    **_ALL,
    "cell": "LIF",
    "surrogate": "ATan",
    "readout_tau": 20.0,
    "loss": "membrane-last",
    "smoothing": 0.1,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "start_rate": 0.15,
    "rate_target": 0.15,
    "rate_penalty": 0.1,
}
_ROCKET: dict[str, Any] = {
    **_SEQUENCES,
    "epochs": 0,
    "loss": "membrane-mean",
    "smoothing": 0.0,
    "start_rate": 0.0,
}
"""Of :func:`hibana.models.rocket`, which is fitted in closed form."""
NAMES = tuple(_STILL)
"""Of the settings that are decided here where they are not said."""
SIZE, WIDTH = 5, 96
"""Steps under a window, and neurons above it."""
PERIODS = (0, 3)
"""Steps that neurons of the spiking Rocket rest after a spike, of which validation chooses."""
FARTHEST = 99
"""Of d, whose square a description can say."""


Of = Literal["still", "few", "pictures", "recordings", "sequences", "rocket"]
"""What data are of; few are still, in a table of few rows, and sequences are of numbers,
of which those that validation chooses are read by the spiking Rocket."""


def usual(of: Of, steps: int, *, period: int = 0) -> dict[str, Any]:
    """What each of :data:`NAMES` is; sequences are so many `steps` long, other data shown so often.

    Neurons of a Rocket rest for `period` steps after a spike.
    """
    match of:
        case "sequences":
            return {**_SEQUENCES, "layers": _windows(steps)}
        case "rocket":
            return {**_ROCKET, "layers": f"rocket{steps}{f'r{period}' if period else ''}"}
        case "pictures":
            return _PICTURES
        case "recordings":
            return _RECORDINGS
        case "few":
            return _FEW
        case "still":
            return _STILL


def _windows(steps: int) -> str:
    """Three windows, dilated by 1, d and d^2, d the largest with which they see no more than all `steps`."""
    whole = (4 * steps) // (SIZE - 1) - 3  # (SIZE - 1) (1 + d + d^2) <= steps, times 4, as a square
    d = min(max(1, (math.isqrt(max(0, whole)) - 1) // 2), FARTHEST)
    dilated = (f"d{each}" if each > 1 else "" for each in (1, d, d * d))
    return "-".join(f"{WIDTH}w{SIZE}{each}b" for each in dilated)
