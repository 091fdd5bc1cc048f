"""Small trained networks that come with hibana, opened by name.

Each is a folder as :meth:`hibana.train.Network.save_pretrained` writes it, with its card beside the weights;
``examples/pretrained.py`` in the sources trained them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from hibana.runtime.extras import needing

if TYPE_CHECKING:
    from hibana.train.network import Network

__all__ = ["FOLDER", "NAMES", "pretrained"]

FOLDER = Path(__file__).with_name("networks")
"""Where they lie."""
NAMES = ("digits", "mnist-1d", "spoken-digits")


@needing("hibana.pretrained")
def pretrained(name: str) -> "Network":
    """A small trained network that comes with hibana; nothing is fetched.

    ``digits`` names handwritten digits of 8x8 pixels, ``mnist-1d`` shapes in series of 40 values, and
    ``spoken-digits`` digits in 40 frames of 13 cepstral coefficients: the data sets of the same names, see
    :mod:`hibana.data`. What each came to on its test part is in its card, ``README.md`` in the folder
    ``hibana.train.shipped.FOLDER / name``.

    Args:
        name: ``digits``, ``mnist-1d`` or ``spoken-digits``.

    Returns:
        The network, in evaluation: ``net(inputs)`` gives scores ``[N, classes]`` for ``[N, ...]``, and
        :func:`hibana.train.predict` answers by name.

    Raises:
        ModuleNotFoundError: if the extras ``train`` and ``hub`` are not installed.
        ValueError: if there is none of that name; the message lists them all.

    >>> import torch
    >>> net = pretrained("digits")
    >>> net(torch.zeros(2, 8, 8)).shape
    torch.Size([2, 10])
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    from hibana.train.restoring import load

    return load(FOLDER / name)
