"""Training: the settings of a run, the network they describe, and the run itself through Lightning.

Nothing here draws, prints or knows the command line.

Importing this module needs Lightning (``pip install hibana[train]``).
"""

from hibana.train.classifier import Classifier, activity
from hibana.train.run import Outcome, fit, linear_accuracy, load, resumed
from hibana.train.settings import Settings, read
from hibana.train.start import scale_to_rate, spiking_layers

__all__ = [
    "Classifier",
    "Outcome",
    "Settings",
    "activity",
    "fit",
    "linear_accuracy",
    "load",
    "read",
    "resumed",
    "scale_to_rate",
    "spiking_layers",
]
