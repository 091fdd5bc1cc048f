"""Training runs: settings, the network they describe, training and testing with Lightning, and predictions.

Nothing here draws, prints or depends on the command line.

`activity`, `scale_to_rate`, `spiking_layers` and `weight_decay_groups` need PyTorch only. All other names are
imported on first use and need ``pip install '.[train]'``. `fit`, `build_classifier` and `Classifier` also
import Lightning; `load`, `predict` and `Network` do not.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from hibana.cells.peer_aliases import suggestion
from hibana.runtime.extras import explain_import_error
from hibana.train.firing_rates import Activity, activity, scale_to_rate, spiking_layers, weight_decay_groups

if TYPE_CHECKING:
    from hibana.train.anomalies import AnomalySettings, Learned, Scored, find_anomalies, fit_anomalies
    from hibana.train.baseline import linear, linear_accuracy
    from hibana.train.classifier import Classifier
    from hibana.train.loading import resume_settings
    from hibana.train.network import Network, load
    from hibana.train.prediction import Answers, predict
    from hibana.train.results import Linear, Outcome
    from hibana.train.run import build_classifier, fit
    from hibana.train.settings import Settings, read

__all__ = ["Activity", "Answers", "Classifier", "Linear", "Network", "Outcome", "Settings", "activity"]
__all__ += ["build_classifier", "fit", "linear", "linear_accuracy", "load", "predict", "read"]
__all__ += ["AnomalySettings", "Scored", "Learned", "find_anomalies", "fit_anomalies"]
__all__ += ["resume_settings", "scale_to_rate", "spiking_layers", "weight_decay_groups"]

_MODULES = {
    "anomalies": ("AnomalySettings", "Scored", "Learned", "find_anomalies", "fit_anomalies"),
    "baseline": ("linear", "linear_accuracy"),
    "classifier": ("Classifier",),
    "loading": ("resume_settings",),
    "network": ("Network", "load"),
    "prediction": ("Answers", "predict"),
    "results": ("Linear", "Outcome"),
    "run": ("build_classifier", "fit"),
    "settings": ("Settings", "read"),
}
"""Public names by the module that defines them."""
_RENAMED = {"decayed": "weight_decay_groups", "made": "build_classifier", "resumed": "resume_settings"}
"""New names of deprecated ones, which the next release removes."""


def __dir__() -> list[str]:
    """Returns the names of the module, with those that are imported at their first use."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """The attribute `name`, from a module that is imported now.

    Raises ModuleNotScoredError if the extra ``train`` is not installed.
    """
    if name in _RENAMED:
        message = f"hibana.train.{name} is deprecated; use hibana.train.{_RENAMED[name]}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(__name__), _RENAMED[name])
    for module, names in _MODULES.items():
        if name in names:
            with explain_import_error(f"hibana.train.{name}"):
                return getattr(importlib.import_module(f"hibana.train.{module}"), name)
    raise AttributeError(f"module 'hibana.train' has no attribute {name!r}{suggestion(name, __all__)}")
