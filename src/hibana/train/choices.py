"""What may be said for a setting, where that is a few words, and of what data a setting is."""

from collections.abc import Callable

from hibana import cells
from hibana.data import own

__all__ = ["AUGMENTATIONS", "CELLS", "CLASS_WEIGHTS", "CODINGS", "OF_KINDS", "PRECISIONS", "RULES", "UNIT"]

CELLS: dict[str, Callable[..., cells.Cell]] = {
    "IF": cells.IFCell,
    "LIF": cells.LIFCell,
    "PLIF": cells.PLIFCell,
    "CubaLIF": cells.CubaLIFCell,
    "ALIF": cells.ALIFCell,
    "AdLIF": cells.AdLIFCell,
    "RefractoryLIF": cells.RefractoryLIFCell,
}
"""The cells that spike, with a threshold, a surrogate and a reset, by the names of their layers."""
CODINGS = ("constant", "poisson", "latency", "population", "delta", "none")
"""Of still inputs the first four; of sequences ``delta``, or ``none`` where they are spikes already."""
RULES = ("d-rtrl", "e-prop", "ottt", "pp-prop")
"""Those of :mod:`hibana.learn.rules`, which takes a tenth of a second to load."""
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
UNIT = ("poisson", "latency", "population")
"""Those that take values in [0, 1]."""
AUGMENTATIONS = ("none", "flip", "shift", "roll", "drop", "mix")
"""The last three of recordings of events; several are joined by ``-``."""
CLASS_WEIGHTS = ("none", "balanced")
OF_KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("kind", "test"), tuple(own.KINDS)),
    **{"label": ("table", "arrays", "sequences"), "task": tuple(own.KINDS)},
    **{"missing": ("table", "sequences"), "columns": ("table",), "group": ("sequences",)},
    **{"lengths": ("sequences", "sound"), "bins": ("events",), "size": ("images", "events")},
    **{"event_columns": ("events",), "split_by": ("events",), "denoise": ("events",), "dates": ("table",)},
}
"""The settings that are of data of one's own, and of what kinds."""
