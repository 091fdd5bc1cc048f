"""A hibana or torch.nn layer from a NIR node, and back.

A NIR neuron is a differential equation; hibana runs it in forward Euler steps of `dt`. With ``tau`` in
steps, ``tau v' = (v_leak - v) + r x`` becomes ``v = (1 - 1/tau) v + (dt r / tau) x`` for ``v`` measured
from ``v_leak``, so a layer of hibana, whose input has the weight one, has ``r = tau / dt``. Without a leak
it has ``r = 1``, and is read from ``r = 1 / dt`` too.
"""

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hibana import cells
from hibana.delay import Delay
from hibana.delayed_linear import DelayedLinear
from hibana.each_step import EachStep
from hibana.layers import IF, LI, LIF, CubaLIF, OverTime, Recurrent
from hibana.nir.nodes import Node, Scale, Shape, output_shape, pair
from hibana.surrogate import Step
from hibana.window import Window

__all__ = ["lost_in_training", "to_layer", "to_node"]

USUAL_DT = 1e-4
"""Seconds per step where a graph says nothing: the default of those who write none."""
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


def to_node(module: nn.Module, shape: Shape, dt: float) -> Node | None:
    """The NIR node of `module` on samples of `shape`; nothing if it does nothing in inference.

    Raises:
        ValueError: if NIR cannot say what `module` does; the message does not name it, the caller does.
    """
    match module:
        case nn.Identity() | nn.Dropout() | nn.Dropout1d() | nn.Dropout2d() | nn.AlphaDropout():
            return None
        case OverTime():
            return _neuron(module.cell, shape, dt)
        case Recurrent():
            return _recurrent_graph(module, shape, dt)
        case nn.Linear():
            return _linear_node(module.weight, module.bias)
        case Delay():
            return _delay_node(module.steps, shape, dt)
        case DelayedLinear():
            lags = {
                int(lag): module.weight * (module.steps == lag)
                for lag in sorted({*module.steps.flatten().tolist()})
            }
            return _sum_of_delays(lags, module.bias, shape, dt)
        case Window():
            taps = enumerate(_dense(module).flip(2).unbind(2))
            return _sum_of_delays({k * module.dilation: w for k, w in taps}, module.bias, shape, dt)
        case nn.Conv1d() | nn.Conv2d():
            return _convolution_node(module, shape)
        case nn.AvgPool2d():
            return _pooling_node(module)
        case Scale():
            return Node("Scale", {"scale": _filled(module.scale, shape, "scale")})
        case nn.MaxPool1d() | nn.MaxPool2d() | nn.AdaptiveMaxPool2d():
            raise ValueError("NIR has no max-pooling; train with average pooling, or stride the convolution")
    raise ValueError(f"NIR has no node for {type(module).__name__}")


def lost_in_training(module: nn.Module) -> str | None:
    """What of `module` NIR cannot say that matters only for training."""
    if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.AlphaDropout):
        return repr(module)
    if not isinstance(module, OverTime | Recurrent) or not hasattr(module.cell, "surrogate"):
        return None
    cell: Any = module.cell
    lost = [] if cell.surrogate == Step() else [repr(cell.surrogate)]
    return ", ".join(lost + ["detach_reset"] * bool(cell.detach_reset)) or None


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


def _neuron(cell: cells.Cell, shape: Shape, dt: float) -> Node:
    match cell:
        case cells.LICell() if _infinite(cell.tau):
            return Node("I", {"r": _filled(1.0, shape, "r")})
        case cells.LICell():
            return _leaky("LI", {"tau": cell.tau}, {}, shape, dt)
        case cells.IFCell():
            if np.any(_array(cell.initial) if isinstance(cell.initial, Tensor) else cell.initial):
                raise ValueError(f"NIR neurons start at rest; initial={cell.initial!r} cannot be written")
            return Node("IF", {"r": _filled(1.0, shape, "r"), **_spiking(cell, shape)})
        case cells.LIFCell() if _infinite(cell.tau):
            return Node("IF", {"r": _filled(1.0, shape, "r"), **_spiking(cell, shape)})
        case cells.LIFCell():
            node = _leaky("LIF", {"tau": cell.tau}, _spiking(cell, shape), shape, dt)
            gain = {"r": _filled(1.0, shape, "r")} if cell.decay_input else {}
            leak = {"v_leak": _filled(cell.rest, shape, "rest")}
            return Node("LIF", {**node.fields, **gain, **leak}, node.metadata)
        case cells.PLIFCell():
            node = _leaky("LIF", {"tau": 1 / torch.sigmoid(cell.w)}, _spiking(cell, shape), shape, dt)
            return Node("LIF", {**node.fields, "r": _filled(1.0, shape, "r")}, node.metadata)
        case cells.CubaLIFCell():
            taus = {"tau_syn": cell.tau_synapse, "tau_mem": cell.tau}
            node = _leaky("CubaLIF", taus, _spiking(cell, shape), shape, dt)
            fields = {**node.fields, "r": node.fields["tau_mem"] / dt, "w_in": node.fields["tau_syn"] / dt}
            return Node("CubaLIF", fields, node.metadata)
    raise ValueError(f"NIR has no node for a {type(cell).__name__}")


def _recurrent_graph(module: Recurrent, shape: Shape, dt: float) -> Node:
    """A graph within the graph, as the field writes a recurrent layer."""
    if not isinstance(module.recurrent, nn.Linear):
        kind = type(module.recurrent).__name__
        raise ValueError(  # noqa: TRY004 - a network that NIR has no words for, like the others here
            f"only a linear layer can be written as the way back to the input, not a {kind}"
        )
    weights = to_node(module.recurrent, shape, dt)
    nodes = {
        "input": Node("Input", {"shape": np.array(shape)}),
        "neuron": _neuron(module.cell, shape, dt),
        "w_rec": cast(Node, weights),
        "output": Node("Output", {"shape": np.array(shape)}),
    }
    edges = [("input", "neuron"), ("neuron", "w_rec"), ("w_rec", "neuron"), ("neuron", "output")]
    return Node("NIRGraph", {"nodes": nodes, "edges": edges})


def _linear_node(weight: Tensor, bias: Tensor | None) -> Node:
    fields = {"weight": _array(weight)} | ({} if bias is None else {"bias": _array(bias)})
    return Node("Linear" if bias is None else "Affine", fields)


def _delay_node(steps: Tensor, shape: Shape, dt: float) -> Node:
    filled = _filled(steps.double(), shape, "delay")
    return Node("Delay", {"delay": filled.astype(np.float64) * dt}, {"delay_steps": filled})


def _sum_of_delays(lags: dict[int, Tensor], bias: Tensor | None, shape: Shape, dt: float) -> Node:
    """Weights ``[outputs, inputs]`` by their lag in steps, as a graph within the graph: a branch for each.

    NIR's own convolutions go over the axes of a sample, not over time.
    """
    outputs, inputs = next(iter(lags.values())).shape
    if shape != (inputs,):
        raise ValueError(f"only samples of one axis, ({inputs},), can be written, got the shape {shape}")
    last = max(lags)
    if last == 0:
        return _linear_node(lags[0], bias)
    nodes = {"input": Node("Input", {"shape": np.array(shape)})}
    edges = []
    for lag, weight in lags.items():
        source, name = "input", f"weight{lag}"
        if lag:
            source = f"delay{lag}"
            nodes[source] = _delay_node(torch.tensor(lag, dtype=torch.int64, device="cpu"), shape, dt)
            edges.append(("input", source))
        nodes[name] = _linear_node(weight, bias if lag == last else None)
        edges += [(source, name), (name, "output")]
    nodes["output"] = Node("Output", {"shape": np.array([outputs])})
    return Node("NIRGraph", {"nodes": nodes, "edges": edges})


def _dense(module: Window) -> Tensor:
    """Its weights, ``[outputs, inputs, K]``, zeros between groups among them."""
    weight, groups = module.weight.detach(), module.groups
    outputs, inputs = len(weight) // groups, weight.shape[1]
    dense = weight.new_zeros(len(weight), inputs * groups, weight.shape[2])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense


def _leaky(kind: str, taus: dict[str, Any], spiking: dict[str, Any], shape: Shape, dt: float) -> Node:
    if any(_infinite(tau) for tau in taus.values()):
        raise ValueError(f"a NIR {kind} has finite time constants, got {taus}")
    steps = {name: _filled(tau, shape, name) for name, tau in taus.items()}
    seconds = {name: tau.astype(np.float64) * dt for name, tau in steps.items()}
    exact = {
        f"{name}_steps": steps[name] if isinstance(tau, Tensor) else float(tau) for name, tau in taus.items()
    }
    last = seconds[[*seconds][-1]]
    return Node(kind, {**seconds, "r": last / dt, "v_leak": np.zeros(shape), **spiking}, exact)


def _spiking(cell: Any, shape: Shape) -> dict[str, Any]:
    if isinstance(cell.reset, str):
        raise ValueError(  # noqa: TRY004 - a network that NIR has no words for, like the others here
            'NIR resets to a potential; reset="subtract" cannot be written'
        )
    rare: dict[str, Any] = {"lower_bound": None, "most_spikes": 1, "leak_first": False}
    if _infinite(getattr(cell, "tau", 1.0)):
        rare |= {"decay_input": False, "rest": 0.0}
    for name, usual in rare.items():
        if getattr(cell, name, usual) is not usual and getattr(cell, name) != usual:
            raise ValueError(f"NIR has no {name}={getattr(cell, name)!r}")
    return {
        "v_threshold": _filled(cell.threshold, shape, "threshold"),
        "v_reset": _filled(cell.reset, shape, "reset"),
    }


def _convolution_node(module: nn.Conv1d | nn.Conv2d, shape: Shape) -> Node:
    if module.padding_mode != "zeros":
        raise ValueError(f'NIR pads with zeros; padding_mode="{module.padding_mode}" cannot be written')
    one = isinstance(module, nn.Conv1d)
    bias = module.weight.new_zeros(module.out_channels) if module.bias is None else module.bias

    def size(value: Any) -> Any:
        return value if isinstance(value, str) else int(value[0]) if one else tuple(value)

    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    padding: Any = (0,) * len(total) if module.padding == "valid" else module.padding
    if padding == "same" and not any(n % 2 for n in total):  # in numbers, which every version of nir takes
        padding = tuple(n // 2 for n in total)
    sizes = {"stride": module.stride, "padding": padding, "dilation": module.dilation}
    fields = {name: size(value) for name, value in sizes.items()}
    arrays = {"weight": _array(module.weight), "bias": _array(bias)}
    known = shape[-1] if one else tuple(shape[-2:])
    kind = "Conv1d" if one else "Conv2d"
    return Node(kind, {"input_shape": known, **arrays, **fields, "groups": module.groups})


def _pooling_node(module: nn.AvgPool2d) -> Node:
    sizes = {name: np.broadcast_to(getattr(module, name), 2) for name in ("kernel_size", "stride", "padding")}
    if module.ceil_mode:
        raise ValueError("NIR pools whole windows; ceil_mode=True cannot be written")
    if module.divisor_override == 1:
        return Node("SumPool2d", sizes)
    if module.divisor_override is not None:
        raise ValueError(
            f"NIR sums or averages; divisor_override={module.divisor_override} cannot be written"
        )
    if not module.count_include_pad and sizes["padding"].any():
        raise ValueError("NIR averages over the padding too; count_include_pad=False cannot be written")
    return Node("AvgPool2d", sizes)


def _infinite(tau: Any) -> bool:
    return bool(tau.isinf().any()) if isinstance(tau, Tensor) else math.isinf(tau)


def _filled(value: Any, shape: Shape, name: str) -> Any:
    """`value` for each neuron of `shape`, in its own precision."""
    array = _array(value) if isinstance(value, Tensor) else np.asarray(float(value))
    while array.ndim > len(shape) and array.shape[0] == 1:
        array = array[0]
    try:
        return np.broadcast_to(array, shape).copy()
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape} does not broadcast to neurons of {shape}") from None


def _array(value: Tensor) -> Any:
    return value.detach().cpu().numpy()


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
