"""Small trained networks that come with hibana, as shared folders (:mod:`hibana.train.shared_folder`)."""

from pathlib import Path

from hibana.runtime.extras import explain_import_error
from hibana.train.network import Network, load

SHIPPED = Path(__file__).with_name("networks")
"""Folder of the networks that come with hibana, which ``examples/pretrained.py`` trained."""
NAMES = ("digits", "mnist-1d", "spoken-digits")


@explain_import_error("hibana.pretrained")
def pretrained(name: str) -> Network:
    """Returns a small trained network that comes with hibana; nothing is downloaded.

    ``digits`` classifies handwritten digits of 8x8 pixels, ``mnist-1d`` shapes in series of 40 values, and
    ``spoken-digits`` digits in 40 frames of 13 cepstral coefficients: the data sets of the same names, see
    :mod:`hibana.data`. The model card, ``README.md`` in ``hibana.train.pretrained.SHIPPED / name``, states
    the test accuracy.

    Args:
        name: ``digits``, ``mnist-1d`` or ``spoken-digits``.

    Returns:
        The network in evaluation mode: ``net(inputs)`` returns scores ``[N, classes]`` for ``[N, ...]``, and
        :func:`hibana.train.predict` returns class names.

    Raises:
        ModuleNotFoundError: if the extra ``train`` is not installed.
        ValueError: if there is no network of that name; the message lists all names.

    >>> import torch
    >>> net = pretrained("digits")
    >>> net(torch.zeros(2, 8, 8)).shape
    torch.Size([2, 10])
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    return load(SHIPPED / name)
