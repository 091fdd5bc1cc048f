"""Promised limits of time and memory, which the report shows beside the measurements."""

from typing import NamedTuple

__all__ = [
    "FIRST_USE",
    "GPU_SPEEDUP",
    "MEMORY_OF_LEANEST_PEER",
    "OPERATIONS_PER_CALL",
    "RECURRENT_SPEEDUP",
    "Promise",
    "check_mark",
    "gpu_share",
    "layer",
    "network",
    "recurrent",
]

_LAYER_RATIOS = {  # largest time divided by ReLU's, warm heap, by size
    "step": {"16x65536": 1.0, "32x262144": 1.0, "100x12800": 1.3},
    "box": {"16x65536": 1.0, "32x262144": 1.0, "100x12800": 1.3},
    "through-reset": {"16x65536": 1.5, "32x262144": 1.4, "100x12800": 1.8},
    "atan": {"16x65536": 1.5, "32x262144": 1.4, "100x12800": 1.8},
    "lif": {"16x65536": 1.5, "32x262144": 1.4, "100x12800": 1.8},
}
_LAYER_INFERENCE_RATIOS = {"16x65536": 1.5, "32x262144": 1.15, "100x12800": 1.5}
_NETWORK_RATIOS = {  # largest time divided by the ReLU network's, by firing rate
    ("mlp", "training step"): {0.02: 0.25, 0.05: 0.35, 0.1: 0.55, 0.5: 1.1},
    ("mlp", "inference"): {0.02: 0.2, 0.05: 0.3, 0.1: 0.5, 0.5: 1.1},
    ("conv", "training step"): {0.02: 0.5, 0.05: 0.6, 0.1: 0.8, 0.5: 1.1},
}
_NETWORK_SPEEDUPS = {("mlp", "training step", 0.05): 5.0, ("conv", "training step", 0.05): 3.0}
_LAYER_SPEEDUP = 8.0
_RECURRENT_SPEEDUPS = {"100x64x128": 12.0, "100x128x512": 20.0, "250x64x1024": 22.0, "1000x32x256": 18.0}
RECURRENT_SPEEDUP = 8.0
"""Speedup of a recurrent network over the fastest eager peer, if the surrogate is zero outside a window."""

FIRST_USE = {
    "IF and its backward, compiled": 3.0,
    "two hb.Conv2d and MaxPool2d, two hb.Linear, IF and their backward, compiled": 2.0,
    "IF and its backward, from the disk cache": 0.1,
    "import hibana, after import torch": 0.15,
}
"""Largest seconds, by the title of the measurement."""
OPERATIONS_PER_CALL = 15
"""A call at [1, 10] may take as long as so many element-wise operations of torch."""
MEMORY_OF_LEANEST_PEER = {"conv": 1 / 3}
"""Largest peak memory divided by that of the peer with the smallest, by network."""

GPU_SPEEDUP = 1.3
"""Speedup over SpikingJelly on a GPU."""
_GPU_SHARES = {("32x4194304", "forward+backward"): 0.8}


class Promise(NamedTuple):
    """Largest time divided by ReLU's, and smallest speedup over the fastest peer; None if not promised."""

    at_most: float | None = None
    speedup: float | None = None


def layer(case: str, kind: str, heap: str, size: str) -> Promise:
    """The promise for one layer of neurons."""
    if heap != "warm":
        return Promise()
    if kind == "inference":
        return Promise(_LAYER_INFERENCE_RATIOS.get(size))
    return Promise(_LAYER_RATIOS[case].get(size), _LAYER_SPEEDUP if size in _LAYER_RATIOS[case] else None)


def network(name: str, kind: str, rate: float) -> Promise:
    """The promise for a network at a firing rate."""
    return Promise(_NETWORK_RATIOS.get((name, kind), {}).get(rate), _NETWORK_SPEEDUPS.get((name, kind, rate)))


def recurrent(size: str) -> float | None:
    """Promised speedup of a recurrent network over torch's GRU of equal width, or None."""
    return _RECURRENT_SPEEDUPS.get(size)


def gpu_share(size: str, kind: str) -> float | None:
    """Promised fraction of a GPU's copy bandwidth for one layer, or None."""
    return _GPU_SHARES.get((size, kind))


def check_mark(measured: float | None, *, at_most: float | None = None, at_least: float | None = None) -> str:
    """The limit, followed by ✓ or ✗ if there is a measurement; "" without a limit.

    >>> check_mark(0.94, at_most=1), check_mark(6.5, at_least=8), check_mark(None, at_most=1)
    ('≤ 1 ✓', '≥ 8 ✗', '≤ 1')
    """
    sign, limit = ("≤", at_most) if at_least is None else ("≥", at_least)
    if limit is None:
        return ""
    if measured is None:
        return f"{sign} {limit:.3g}"
    is_kept = measured <= limit if at_least is None else measured >= limit
    return f"{sign} {limit:.3g} {'✓' if is_kept else '✗'}"
