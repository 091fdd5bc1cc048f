"""NIR nodes as a type name and fields, and conversions of fields that layer kinds share.

A file is then understood alike under every version of the nir package, which this module does not need.
Shapes are those of one sample at one step, without time and batch.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "NirNode",
    "float_or_tensor",
    "full_array",
    "integers",
    "array",
    "check_broadcasts",
    "is_infinite",
    "load_weights",
    "tensor",
]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NirNode:
    """One node: the name of its NIR class, the fields of that class, its metadata."""

    type: str
    fields: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)

    def in_steps(self, name: str, dt: float | None) -> float | Tensor:
        """A time in steps: as the writer noted it, if the note agrees with the field in seconds."""
        exact, seconds = self.metadata.get(f"{name}_steps"), np.asarray(self.fields[name], np.float64)
        if exact is not None and dt is not None:
            noted = np.asarray(exact, np.float64)
            if noted.shape in ((), seconds.shape) and bool((noted * dt == seconds).all()):
                return float(exact) if np.ndim(exact) == 0 else tensor(exact)
        return float_or_tensor(seconds / self._known(dt), name)

    def gain(self, dt: float | None, weight: str = "r", tau: str = "tau") -> Tensor:
        """What one unit of input adds to a leaky state in one step: ``dt * weight / tau``."""
        tau_steps = np.asarray(self.fields[tau], np.float64) / self._known(dt)
        return torch.from_numpy(np.asarray(np.asarray(self.fields[weight], np.float64) / tau_steps))

    @staticmethod
    def _known(dt: float | None) -> float:
        if dt is None:
            raise ValueError("time constants are in seconds and the graph says no dt; give dt, in seconds")
        return dt


def integers(fields: dict[str, Any], name: str, *, dimensions: int = 2) -> Shape:
    """The field `name`, a whole number of at least 0 for each of `dimensions`, or one for all."""
    found = np.asarray(fields[name])
    whole = np.issubdtype(found.dtype, np.number) and bool((found == np.floor(found)).all())
    if not whole or found.size not in (1, dimensions) or int(found.min()) < 0:
        raise ValueError(f"{name} must be {dimensions} whole numbers, at least 0, got {fields[name]!r}")
    return tuple(int(x) for x in np.broadcast_to(found.reshape(-1), dimensions))


def check_broadcasts(numbers: Any, shape: Shape) -> None:
    """Raises ValueError unless `numbers` are one number or have the `shape` of a sample."""
    own = np.shape(numbers)
    if math.prod(own) != 1 and own != shape:
        raise ValueError(f"has the shape {own}, but gets the shape {shape}")


def load_weights(layer: nn.Module, fields: dict[str, Any]) -> nn.Module:
    """`layer`, created on the meta device, with the weights of a node."""
    layer.load_state_dict({name: tensor(fields[name]) for name, _ in layer.named_parameters()}, assign=True)
    return layer


def float_or_tensor(numbers: Any, name: str) -> float | Tensor:
    """A float if all neurons have one value, else a tensor of them."""
    found = np.asarray(numbers)
    if found.size == 0 or not np.issubdtype(found.dtype, np.number) or not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite numbers, got {found!r}")
    first = found.reshape(-1)[0]
    return float(first) if bool((found == first).all()) else tensor(found)


def full_array(number: Any, shape: Shape, name: str) -> Any:
    """`number`, one or per neuron, as an array of `shape` in its own precision."""
    found = array(number) if isinstance(number, Tensor) else np.asarray(float(number))
    while found.ndim > len(shape) and found.shape[0] == 1:
        found = found[0]
    try:
        return np.broadcast_to(found, shape).copy()
    except ValueError:
        raise ValueError(f"{name} of shape {found.shape} does not broadcast to neurons of {shape}") from None


def is_infinite(tau: Any) -> bool:
    """Whether a time constant, or one of several, is infinite."""
    return bool(tau.isinf().any()) if isinstance(tau, Tensor) else math.isinf(tau)


def tensor(numbers: Any) -> Tensor:
    """An array as a float32 tensor."""
    return torch.from_numpy(np.array(numbers, np.float32))


def array(numbers: Tensor) -> Any:
    """A tensor as an array."""
    return numbers.detach().cpu().numpy()
