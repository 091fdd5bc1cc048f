"""A NIR node from a hibana or torch.nn layer: what :mod:`hibana.network.nir.layer_of` reads, written."""

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hibana import cells
from hibana.cells.surrogate import Step
from hibana.network.nir.nodes import Node, Scale, Shape
from hibana.nn.delay import Delay
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.window import Window

__all__ = ["lost_in_training", "to_node"]


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
