"""Training: the settings of a run, the network they describe, and the run itself through Lightning.

Nothing here draws, prints or knows the command line.

What a training loop of one's own uses (`activity`, `scale_to_rate`, `decayed`, `spiking_layers`) needs
PyTorch alone; all else is loaded when it is first touched, and needs ``pip install '.[train]'``: what trains
(`fit`, `made`, `Classifier`) needs Lightning, what opens a network that was trained (`load`, `predict`,
`Network`) does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hibana.runtime.extras import needing
from hibana.train.start import Activity, activity, decayed, scale_to_rate, spiking_layers

if TYPE_CHECKING:
    from hibana.train.baseline import Linear, linear, linear_accuracy
    from hibana.train.classifier import Classifier
    from hibana.train.network import Network
    from hibana.train.predicting import Answers, predict
    from hibana.train.restoring import load, resumed
    from hibana.train.run import Outcome, fit, made
    from hibana.train.settings import Settings, read

__all__ = [
    "Activity",
    "Answers",
    "Classifier",
    "Linear",
    "Network",
    "Outcome",
    "Settings",
    "activity",
    "decayed",
    "fit",
    "linear",
    "linear_accuracy",
    "load",
    "made",
    "predict",
    "read",
    "resumed",
    "scale_to_rate",
    "spiking_layers",
]

_PLACES = {
    "classifier": ("Classifier",),
    "network": ("Network",),
    "baseline": ("Linear", "linear", "linear_accuracy"),
    "predicting": ("Answers", "predict"),
    "restoring": ("load", "resumed"),
    "run": ("Outcome", "fit", "made"),
    "settings": ("Settings", "read"),
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """What needs the extra ``train``, loaded now.

    Raises:
        ModuleNotFoundError: if that is not installed.
    """
    for place, names in _PLACES.items():
        if name in names:
            with needing(f"hibana.train.{name}"):
                return getattr(importlib.import_module(f"hibana.train.{place}"), name)
    raise AttributeError(f"module 'hibana.train' has no attribute {name!r}")
