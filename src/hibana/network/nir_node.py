"""NIR nodes as a type name and fields, and conversions of fields that kinds of layers share.

The representation does not depend on the version of the nir package, which this module does not import.
Shapes are those of one sample at one step, without time and batch.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hibana.network.node import Shape

__all__ = ["NirNode", "array", "check_broadcasts", "float_or_tensor", "full_array", "integers"]
__all__ += ["load_weights", "subgraph", "tensor"]


@dataclass(frozen=True)
class NirNode:
    """A node: the name of its NIR class, the fields of that class, and its metadata."""

    type: str
    fields: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)

    def in_steps(self, name: str, dt: float | None) -> float | Tensor:
        """The field `name`, a time in seconds, in steps of `dt` seconds.

        The metadata ``{name}_steps``, which hibana writes, replaces the quotient if it agrees with the field.
        """
        exact, seconds = self.metadata.get(f"{name}_steps"), np.asarray(self.fields[name], np.float64)
        if exact is not None and dt is not None:
            steps = np.asarray(exact, np.float64)
            if steps.shape in ((), seconds.shape) and bool((steps * dt == seconds).all()):
                return float(exact) if np.ndim(exact) == 0 else tensor(exact)
        return float_or_tensor(seconds / self._checked(dt), name)

    def gain(self, dt: float | None, weight: str = "r", tau: str = "tau") -> Tensor:
        """The amount that an input of 1 adds to a leaky state in one step: ``dt * weight / tau``."""
        tau_steps = np.asarray(self.fields[tau], np.float64) / self._checked(dt)
        return torch.from_numpy(np.asarray(np.asarray(self.fields[weight], np.float64) / tau_steps))

    @staticmethod
    def _checked(dt: float | None) -> float:
        """`dt`; raises ValueError if it is None."""
        if dt is None:
            raise ValueError("time constants are in seconds and the graph says no dt; give dt, in seconds")
        return dt


def subgraph(
    nodes: dict[str, NirNode], edges: list[tuple[str, str]], shape: Shape, output_shape: Shape
) -> NirNode:
    """A NIR graph of `nodes` with a node ``input`` for samples of `shape` and a node ``output``."""
    ports = {"input": ("Input", shape), "output": ("Output", output_shape)}
    port_nodes = {name: NirNode(kind, {"shape": np.array(sizes)}) for name, (kind, sizes) in ports.items()}
    return NirNode("NIRGraph", {"nodes": port_nodes | nodes, "edges": edges})


def integers(fields: dict[str, Any], name: str, *, dimensions: int = 2) -> Shape:
    """The field `name`, one integer of at least 0 for each of `dimensions`; a single integer is repeated."""
    values = np.asarray(fields[name])
    is_integer = np.issubdtype(values.dtype, np.number) and bool((values == np.floor(values)).all())
    if not is_integer or values.size not in (1, dimensions) or int(values.min()) < 0:
        raise ValueError(f"{name} must be {dimensions} whole numbers, at least 0, got {fields[name]!r}")
    return tuple(int(x) for x in np.broadcast_to(values.reshape(-1), dimensions))


def check_broadcasts(numbers: Any, shape: Shape) -> None:
    """Raises ValueError unless `numbers` are one number or have the `shape` of a sample."""
    actual = np.shape(numbers)
    if math.prod(actual) != 1 and actual != shape:
        raise ValueError(f"has the shape {actual}, but gets the shape {shape}")


def load_weights(layer: nn.Module, fields: dict[str, Any]) -> nn.Module:
    """`layer`, created on the meta device, with the weights in the `fields` of a node."""
    layer.load_state_dict({name: tensor(fields[name]) for name, _ in layer.named_parameters()}, assign=True)
    return layer


def float_or_tensor(numbers: Any, name: str) -> float | Tensor:
    """`numbers`, the field `name`, as a float if all are equal, else as a tensor."""
    values = np.asarray(numbers)
    if values.size == 0 or not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite numbers, got {values!r}")
    first = values.reshape(-1)[0]
    return float(first) if bool((values == first).all()) else tensor(values)


def full_array(number: Any, shape: Shape, name: str) -> Any:
    """`number`, a float or a tensor, as an array of `shape`; a tensor keeps its dtype."""
    values = array(number) if isinstance(number, Tensor) else np.asarray(float(number))
    while values.ndim > len(shape) and values.shape[0] == 1:
        values = values[0]
    try:
        return np.broadcast_to(values, shape).copy()
    except ValueError:
        raise ValueError(f"{name} of shape {values.shape} does not broadcast to neurons of {shape}") from None


def tensor(numbers: Any) -> Tensor:
    """An array as a float32 tensor."""
    return torch.from_numpy(np.array(numbers, np.float32))


def array(numbers: Tensor) -> Any:
    """A tensor as an array."""
    return numbers.detach().cpu().numpy()
