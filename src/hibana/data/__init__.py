"""Data sets whose splits are fixed and stated.

A data set gives batches of ``(input, label)``, input first axis the batch; how an input becomes spikes
over time is not decided here. A data set is a subclass of :class:`DataSet` with an entry in
:data:`DATA_SETS`. Nothing is downloaded unless that is asked for, and nobody tunes on a test set.

Importing this module needs PyTorch alone; scikit-learn, torchvision and tonic are imported by the data sets
that need them (``pip install '.[train]'``, ``'.[data]'``).

Data of one's own are a :class:`Table`, :class:`Images`, :class:`Arrays`, :class:`Sequences` or
:class:`Events`: a file, a folder, or what is in memory.
"""

from typing import Any

from hibana.data.base import DataSet, InMemory, Samples
from hibana.data.images import MNIST, Digits, FashionMNIST
from hibana.data.recordings import NMNIST, SHD, SSC, DVSGesture
from hibana.data.sequences import MNIST1D
from hibana.data.speech import SpokenDigits
from hibana.data.user_data import Arrays, Description, Events, Images, Sequences, Sound, Table, UserData

__all__ = [
    "DATA_SETS",
    "MNIST",
    "MNIST1D",
    "NMNIST",
    "SHD",
    "SSC",
    "Arrays",
    "DVSGesture",
    "DataSet",
    "Description",
    "Digits",
    "Events",
    "FashionMNIST",
    "Images",
    "InMemory",
    "UserData",
    "Samples",
    "Sequences",
    "Sound",
    "SpokenDigits",
    "Table",
    "load",
]

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
    """The deprecated name ``Own`` of :class:`UserData`."""
    if name == "Own":
        return UserData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(name: str, batch_size: int = 64, **options: Any) -> DataSet:
    """The data set called `name`; `options` are those of its class.

    Raises:
        ValueError: if there is none of that name; the message lists them all.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data must be one of {', '.join(DATA_SETS)}; got {name!r}")
    return DATA_SETS[name](batch_size, **options)
