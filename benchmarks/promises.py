"""What hibana promises of its cost: the numbers that a report puts beside what was measured."""

from typing import NamedTuple

__all__ = [
    "FIRST_USE",
    "GPU_AHEAD",
    "MEMORY_OF_LEANEST_PEER",
    "OPERATIONS_PER_CALL",
    "RECURRENT_AHEAD",
    "Promise",
    "gpu_share",
    "kept",
    "layer",
    "network",
    "recurrent",
]

_LAYERS = {  # time as a ratio to ReLU, heap warm, by size
    "step": {"16x65536": 1.0, "32x262144": 1.0, "100x12800": 1.3},
    "box": {"16x65536": 1.0, "32x262144": 1.0, "100x12800": 1.3},
    "through-reset": {"16x65536": 1.5, "32x262144": 1.4, "100x12800": 1.8},
    "atan": {"16x65536": 1.5, "32x262144": 1.4, "100x12800": 1.8},
    "lif": {"16x65536": 1.5, "32x262144": 1.4, "100x12800": 1.8},
}
_LAYERS_INFERENCE = {"16x65536": 1.5, "32x262144": 1.15, "100x12800": 1.5}
_NETWORKS = {  # time as a ratio to the ReLU network, by firing rate
    ("mlp", "training step"): {0.02: 0.25, 0.05: 0.35, 0.1: 0.55, 0.5: 1.1},
    ("mlp", "inference"): {0.02: 0.2, 0.05: 0.3, 0.1: 0.5, 0.5: 1.1},
    ("conv", "training step"): {0.02: 0.5, 0.05: 0.6, 0.1: 0.8, 0.5: 1.1},
}
_NETWORKS_AHEAD = {("mlp", "training step", 0.05): 5.0, ("conv", "training step", 0.05): 3.0}
_LAYERS_AHEAD = 8.0
_RECURRENT = {"100x64x128": 12.0, "100x128x512": 20.0, "250x64x1024": 22.0, "1000x32x256": 18.0}
RECURRENT_AHEAD = 8.0
"""How many times faster than the fastest eager peer a recurrent network is, if its surrogate has a window."""

FIRST_USE = {
    "IF and its backward, compiled": 3.0,
    "two hb.Conv2d and MaxPool2d, two hb.Linear, IF and their backward, compiled": 2.0,
    "IF and its backward, from the disk cache": 0.1,
    "import hibana, after import torch": 0.15,
}
"""Seconds, by what they are of."""
OPERATIONS_PER_CALL = 15
"""Eager element-wise operations that a call at [1, 10] may cost."""
MEMORY_OF_LEANEST_PEER = {"conv": 1 / 3}
"""Peak memory as a ratio to the leanest peer's, by network."""

GPU_AHEAD = 1.3
"""How many times faster than SpikingJelly on a GPU."""
_GPU_SHARE = {("32x4194304", "forward+backward"): 0.8}


class Promise(NamedTuple):
    """A time as a ratio to ReLU's, and how many times faster than the fastest peer; None promises nothing."""

    at_most: float | None = None
    ahead: float | None = None


def layer(case: str, kind: str, heap: str, size: str) -> Promise:
    """What is promised of one layer."""
    if heap != "warm":
        return Promise()
    if kind == "inference":
        return Promise(_LAYERS_INFERENCE.get(size))
    return Promise(_LAYERS[case].get(size), _LAYERS_AHEAD if size in _LAYERS[case] else None)


def network(name: str, kind: str, rate: float) -> Promise:
    """What is promised of a network."""
    return Promise(_NETWORKS.get((name, kind), {}).get(rate), _NETWORKS_AHEAD.get((name, kind, rate)))


def recurrent(size: str) -> float | None:
    """How many times faster than torch's GRU of equal width a recurrent network is."""
    return _RECURRENT.get(size)


def gpu_share(size: str, kind: str) -> float | None:
    """The part of a card's copy bandwidth that one layer reaches."""
    return _GPU_SHARE.get((size, kind))


def kept(measured: float | None, *, at_most: float | None = None, at_least: float | None = None) -> str:
    """A promise and whether it was kept, or nothing where there is none.

    >>> kept(0.94, at_most=1), kept(6.5, at_least=8), kept(None, at_most=1)
    ('≤ 1 ✓', '≥ 8 ✗', '≤ 1')
    """
    sign, limit = ("≤", at_most) if at_least is None else ("≥", at_least)
    if limit is None:
        return ""
    if measured is None:
        return f"{sign} {limit:.3g}"
    right = measured <= limit if at_least is None else measured >= limit
    return f"{sign} {limit:.3g} {'✓' if right else '✗'}"
