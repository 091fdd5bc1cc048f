"""Data sets in three fixed splits: named data sets, and the user's own files, folders and arrays.

A data set yields batches of ``(inputs, labels)``, batch first. It does not convert inputs to spikes. A named
data set is a subclass of :class:`DataSet` with an entry in :data:`DATA_SETS`; it downloads files only with
``download=True``. :class:`Table`, :class:`Images`, :class:`Arrays`, :class:`Sequences`, :class:`Sound` and
:class:`Events` read the user's data from a file, a folder or memory.

Importing this module needs PyTorch alone. scikit-learn, torchvision and tonic are imported by the data sets
that need them (``pip install '.[train]'``, ``'.[data]'``).
"""

import warnings
from typing import Any

from hibana.cells.peer_aliases import suggestion
from hibana.data.base import DataSet, InMemory, Samples
from hibana.data.named_sets import MNIST, MNIST1D, Digits, FashionMNIST, SpokenDigits
from hibana.data.recordings import NMNIST, SHD, SSC, DVSGesture
from hibana.data.user_data import Arrays, Description, Events, Images, Sequences, Sound, Table, UserData

__all__ = ["DATA_SETS", "MNIST", "MNIST1D", "NMNIST", "SHD", "SSC", "Arrays", "DVSGesture", "DataSet"]
__all__ += ["Description", "Digits", "Events", "FashionMNIST", "Images", "InMemory", "Samples", "Sequences"]
__all__ += ["Sound", "SpokenDigits", "Table", "UserData", "load"]

DATA_SETS: dict[str, type[DataSet]] = {
    "digits": Digits,
    "fashion-mnist": FashionMNIST,
    "mnist": MNIST,
    "mnist-1d": MNIST1D,
    "spoken-digits": SpokenDigits,
    "n-mnist": NMNIST,
    "shd": SHD,
    "ssc": SSC,
    "dvs-gesture": DVSGesture,
}


def __getattr__(name: str) -> Any:
    """:class:`UserData` by its deprecated name ``Own``."""
    if name == "Own":
        warnings.warn("hb.data.Own is deprecated; use hb.data.UserData", DeprecationWarning, stacklevel=2)
        return UserData
    raise AttributeError(f"module 'hibana.data' has no attribute {name!r}{suggestion(name, __all__)}")


def load(name: str, batch_size: int = 64, **options: Any) -> DataSet:
    """The data set called `name`, one of :data:`DATA_SETS`, with the `options` of its class.

    Raises:
        ValueError: if no data set has this name; the message lists all names.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data must be one of {', '.join(DATA_SETS)}; got {name!r}")
    return DATA_SETS[name](batch_size, **options)
