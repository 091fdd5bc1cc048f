"""The words that an option accepts, for options which accept a few words."""

from collections.abc import Callable

from hibana import cells
from hibana.cells import surrogate
from hibana.data import own
from hibana.nn import loss

__all__ = ["AUGMENTATIONS", "CELLS", "CHOICES", "CODINGS", "UNIT"]

CELLS: dict[str, Callable[..., cells.Cell]] = {
    "IF": cells.IFCell,
    "LIF": cells.LIFCell,
    "PLIF": cells.PLIFCell,
    "CubaLIF": cells.CubaLIFCell,
    "ALIF": cells.ALIFCell,
    "AdLIF": cells.AdLIFCell,
    "RefractoryLIF": cells.RefractoryLIFCell,
}
"""Spiking cells with a threshold, a surrogate and a reset, by the names of their layers."""
CODINGS = ("constant", "poisson", "latency", "population", "delta", "none")
"""The first four are for still inputs, the others for sequences."""
UNIT = ("poisson", "latency", "population")
"""Codings of values in [0, 1]."""
AUGMENTATIONS = ("none", "flip", "shift", "roll", "drop", "mix")
"""The last three are for recordings of events."""
CHOICES: dict[str, tuple[str, ...]] = {
    "kind": tuple(own.KINDS),
    "task": own.TASKS,
    "dates": own.DATES,
    "missing": own.MISSING,
    "lengths": own.LENGTHS,
    "bins": own.BINS,
    "split_by": own.SPLITS,
    "class_weights": ("none", "balanced"),
    "cell": tuple(CELLS),
    "surrogate": surrogate.NAMES,
    "rule": ("d-rtrl", "e-prop", "ottt", "pp-prop"),  # hibana.learn.rules takes a tenth of a second to load
    "coding": CODINGS,
    "loss": loss.NAMES,
    "augment": AUGMENTATIONS,
    "precision": ("32-true", "64-true", "bf16-mixed", "16-mixed"),
}
