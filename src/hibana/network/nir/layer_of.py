"""A hibana or torch.nn layer from a NIR node.

A NIR neuron is a differential equation; hibana runs it in forward Euler steps of `dt`. With ``tau`` in
steps, ``tau v' = (v_leak - v) + r x`` becomes ``v = (1 - 1/tau) v + (dt r / tau) x`` for ``v`` measured
from ``v_leak``, so a layer of hibana, whose input has the weight one, has ``r = tau / dt``. Without a leak
it has ``r = 1``, and is read from ``r = 1 / dt`` too.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hibana.network.nir.nodes import Node, Scale, output_shape, pair
from hibana.nn.delay import Delay
from hibana.nn.each_step import EachStep
from hibana.nn.layers import IF, LI, LIF, CubaLIF, OverTime, Recurrent

__all__ = ["to_layer"]

USUAL_DT = 1e-4
"""Seconds per step where a graph says nothing: the default of those who write none."""
LONGEST_DELAY = 2**24
"""Steps; float32, which delays are kept in, does not hold every whole number above."""
ROUNDING = 1e-6
"""A gain this near to one is one: what float32 leaves of ``dt * r / tau``."""


def to_layer(node: Node, dt: float | None, feedback: Node | None = None) -> nn.Module:
    """The layer over ``[T, batch, ...]`` that runs `node` in steps of `dt` seconds.

    A neuron with `feedback`, a linear node from what it emits back to its input, becomes recurrent.

    Raises:
        ValueError: if hibana has no such layer; the message does not name the node, the caller does.
    """
    if feedback is not None:
        return _recurrent(to_layer(node, dt), feedback)
    fields = node.fields
    match node.type:
        case "Linear" | "Affine":
            return _linear(fields)
        case "Conv1d" | "Conv2d":
            return EachStep(_convolution(node))
        case "SumPool2d" | "AvgPool2d":
            kernel, stride, padding = (_two(fields, key) for key in ("kernel_size", "stride", "padding"))
            divisor = 1 if node.type == "SumPool2d" else None
            return EachStep(nn.AvgPool2d(kernel, stride, padding, divisor_override=divisor))
        case "Flatten":
            start, end = int(fields["start_dim"]), int(fields["end_dim"])
            return EachStep(nn.Flatten(start + (start >= 0), end + (end >= 0)))
        case "Scale":
            return Scale(_tensor(fields["scale"]))
        case "Delay":
            return Delay(_whole(_steps(node, "delay", dt)))
        case "IF":
            return _driven(_current(fields, dt), IF(_threshold(fields), reset=_reset(fields)))
        case "I":
            return _driven(_current(fields, dt), LI())
        case "LI":
            if np.any(np.asarray(fields["v_leak"])):
                raise ValueError(f"v_leak must be 0 where nothing spikes, got {fields['v_leak']!r}")
            return _driven(_gain(fields, dt), LI(_steps(node, "tau", dt)))
        case "LIF":
            layer = LIF(_steps(node, "tau", dt), _threshold(fields), reset=_reset(fields))
            return _driven(_gain(fields, dt), layer)
        case "CubaLIF":
            times = _steps(node, "tau_syn", dt), _steps(node, "tau_mem", dt)
            gain = _gain(fields, dt, "w_in", "tau_syn") * _gain(fields, dt, "r", "tau_mem")
            return _driven(gain, CubaLIF(*times, _threshold(fields), reset=_reset(fields)))
    raise ValueError("hibana has no such node")


def _linear(fields: dict[str, Any]) -> nn.Module:
    outputs, inputs = np.shape(fields["weight"])
    return _filled_in(nn.Linear(inputs, outputs, bias="bias" in fields, device="meta"), fields)


def _convolution(node: Node) -> nn.Module:
    fields, dimensions = node.fields, int(node.type[4])
    weight, groups = np.shape(fields["weight"]), int(fields["groups"])
    sizes: dict[str, Any] = {
        name: fields[name] if isinstance(fields[name], str) else pair(fields, name, dimensions=dimensions)
        for name in ("stride", "padding", "dilation")
    }
    kind: Any = nn.Conv1d if dimensions == 1 else nn.Conv2d
    layer = kind(weight[1] * groups, weight[0], weight[2:], groups=groups, device="meta", **sizes)
    return _filled_in(layer, fields)


def _recurrent(neuron: nn.Module, feedback: Node) -> nn.Module:
    features = np.shape(feedback.fields["weight"])[0]
    output_shape(feedback, (features,))
    linear = _linear(feedback.fields)
    if isinstance(neuron, OverTime):
        return Recurrent(neuron.cell, features, linear)
    gain, driven = cast(tuple[Scale, OverTime], (*neuron.children(),))
    with torch.no_grad():
        for parameter in linear.parameters():  # [features, features] and [features]: the gain is a row's
            parameter.mul_(gain.scale.reshape(-1, *[1] * (parameter.ndim - 1)))
    return nn.Sequential(gain, Recurrent(driven.cell, features, linear))


def _two(fields: dict[str, Any], name: str) -> tuple[int, int]:
    height, width = pair(fields, name)
    return height, width


def _filled_in(layer: nn.Module, fields: dict[str, Any]) -> nn.Module:
    """`layer` with the weights of a node; it was made on the meta device, without any."""
    layer.load_state_dict({name: _tensor(fields[name]) for name, _ in layer.named_parameters()}, assign=True)
    return layer


def _driven(gain: Tensor | float, neuron: nn.Module) -> nn.Module:
    """`neuron`, its input times `gain` where that is not one."""
    factor = gain if isinstance(gain, Tensor) else torch.tensor(gain, dtype=torch.float64, device="cpu")
    if bool(((factor - 1).abs() <= ROUNDING).all()):
        return neuron
    return nn.Sequential(Scale(factor.float()), neuron)


def _current(fields: dict[str, Any], dt: float | None) -> Tensor:
    """What one unit of input adds to a neuron without a leak in one step.

    Writers do not agree on what its `r` is: most mean what a step adds; some what a second adds, and
    write ``1 / dt`` for an input that counts as it is.
    """
    r = torch.as_tensor(np.asarray(_number(fields, "r"), np.float64), dtype=torch.float64, device="cpu")
    per_second = (r * (USUAL_DT if dt is None else dt) - 1).abs() <= ROUNDING
    return torch.where(per_second, 1.0, r)


def _gain(fields: dict[str, Any], dt: float | None, weight: str = "r", tau: str = "tau") -> Tensor:
    """What one unit of input adds to the state in one step: ``dt * r / tau``."""
    return torch.from_numpy(np.asarray(np.asarray(fields[weight], np.float64) / _in_steps(fields[tau], dt)))


def _in_steps(seconds: Any, dt: float | None) -> Any:
    if dt is None:
        raise ValueError("time constants are in seconds and the graph says no dt; give dt, in seconds")
    return np.asarray(seconds, np.float64) / dt


def _steps(node: Node, name: str, dt: float | None) -> float | Tensor:
    """A time constant in steps: as the writer noted it, if that agrees with the node's own field."""
    exact = node.metadata.get(f"{name}_steps")
    in_seconds = np.asarray(node.fields[name], np.float64)
    if exact is not None and dt is not None:
        noted = np.asarray(exact, np.float64)
        if noted.shape in ((), in_seconds.shape) and bool((noted * dt == in_seconds).all()):
            return float(exact) if np.ndim(exact) == 0 else _tensor(exact)
    return _value(_in_steps(in_seconds, dt), name)


def _whole(steps: float | Tensor) -> float | Tensor:
    """A delay in steps, if it is whole to rounding."""
    value = torch.as_tensor(steps, dtype=torch.float64, device="cpu")
    whole = value.round()
    if bool(((value - whole).abs() > ROUNDING * whole.clamp(min=1)).any()) or bool((value < 0).any()):
        raise ValueError(f"delay must be whole steps of dt, 0 or more, got {steps!r} steps; give another dt")
    if bool((whole > LONGEST_DELAY).any()):
        raise ValueError(f"delay must be at most {LONGEST_DELAY:,} steps of dt, got {steps!r} steps")
    return float(whole) if whole.ndim == 0 else whole.float()


def _number(fields: dict[str, Any], name: str) -> float | Tensor:
    return _value(np.asarray(fields[name]), name)


def _value(array: Any, name: str) -> float | Tensor:
    """A float where all neurons have one value, else a tensor of them."""
    if array.size == 0 or not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers, got {array!r}")
    first = array.reshape(-1)[0]
    return float(first) if bool((array == first).all()) else _tensor(array)


def _threshold(fields: dict[str, Any]) -> float | Tensor:
    return _value(np.asarray(fields["v_threshold"]) - fields.get("v_leak", 0), "v_threshold - v_leak")


def _reset(fields: dict[str, Any]) -> float | Tensor:
    reset = fields.get("v_reset")
    if reset is None:
        reset = np.zeros(1)
    return _value(np.asarray(reset) - fields.get("v_leak", 0), "v_reset - v_leak")


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
