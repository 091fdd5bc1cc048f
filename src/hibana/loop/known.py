"""Spikes that no node of autograd made, as in evaluation, and the bits that are known of them.

Where a gradient is wanted, the node that made spikes carries their bits. Here they are found by the tensor
itself, while it lives and nothing was written to it: its version says so. Tensors made in inference mode have
none, so what is remembered is made outside it (:func:`versioned`). Of what ``.data`` or NumPy writes nothing
is known; who reads the bits compares a sample.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

__all__ = ["Known", "known", "remember", "versioned"]


class Known(NamedTuple):
    """What is known of numbers that fill their memory."""

    numbers: Callable[[], Tensor | None]
    written: tuple[int, int, torch.Size]
    """How often they were written to, and which memory they are: ``data`` and ``resize_`` give another."""
    planes: Tensor
    """``[planes, steps, ceil(N/8)]`` bytes, in the order of memory: those of spikes are one."""
    most: int
    """The largest that a number can be."""


_KNOWN: dict[int, Known] = {}


def versioned() -> AbstractContextManager[Any]:
    """Within it, tensors are made that say when they were written to, in inference mode too."""
    # torch.inference_mode(False) without what makes it a decorator too
    return torch._C._InferenceMode(False) if torch.is_inference_mode_enabled() else nullcontext()


def remember(numbers: Tensor, planes: Tensor, most: int = 1) -> None:
    """Remembers what `numbers` are while they live: nobody's view, and made in :func:`versioned`."""
    key = id(numbers)

    def forget(_: Any) -> None:
        _KNOWN.pop(key, None)

    _KNOWN[key] = Known(ref(numbers, forget), _written(numbers), planes, most)


def known(numbers: Tensor) -> Known | None:
    """What is known of `numbers`, nobody's view, unless they were written to since."""
    found = _KNOWN.get(id(numbers))
    if found is None or found.numbers() is not numbers or _written(numbers) != found.written:
        return None
    return found


def _written(numbers: Tensor) -> tuple[int, int, torch.Size]:
    return numbers._version, numbers.data_ptr(), numbers.shape
