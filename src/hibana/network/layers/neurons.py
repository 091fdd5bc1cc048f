"""Layers of neurons: any cell over time, with or without synapses back to itself."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hibana import cells
from hibana.cells import Cell
from hibana.cells.surrogate import Step
from hibana.compiler.c.source import operation_count
from hibana.compiler.torch_layers import role_of
from hibana.network.graph import Node, Shape
from hibana.network.layers.arithmetic import Scale
from hibana.network.layers.base import Call, LayerKind, Operations
from hibana.network.layers.delay import Ring
from hibana.network.layers.linear import linear_node
from hibana.network.lowering import Activations, Lowering, in_order
from hibana.network.neurons import trace_layer
from hibana.network.nir_node import NirNode, array, check_broadcasts, float_or_tensor, full_array, is_infinite
from hibana.network.onnx_export import OnnxStep
from hibana.network.synapses import add_synapses, check_connections
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import IF, LI, LIF, CubaLIF, OverTime, Recurrent
from hibana.nn.sparse_linear import SparseLinear
from hibana.nn.window import LooksBack
from hibana.spikes.sparse import Connections

__all__ = ["DelayedRecurrentNeurons", "Neurons", "with_feedback"]

_USUAL_DT = 1e-4
"""Seconds per step of a NIR graph without one: the default of the libraries that omit it."""
_ROUNDING = 1e-6
"""A gain that differs less from one counts as one: the rounding of ``dt * r / tau`` in float32."""


class Neurons(LayerKind):
    """:class:`hibana.OverTime` (:class:`hibana.LIF`, ...) and :class:`hibana.Recurrent`."""

    name = "neurons"
    types: tuple[type[nn.Module], ...] = (OverTime, Recurrent)
    nir_types = ("IF", "LIF", "CubaLIF", "LI", "I")
    over_time = elementwise = True
    feedback = 0
    """Number of products with recurrent weights in addition to those of the step."""

    def read(self, call: Call) -> Node:
        """The node of `call`, of the kind with delayed feedback if the recurrent synapses have delays."""
        has_delays = isinstance(getattr(call.module, "recurrent", None), LooksBack)
        return _DELAYED.read(call) if has_delays and not self.feedback else super().read(call)

    def title(self, node: Node) -> str:
        """The name of the cell, such as ``LIF``, with ``recurrent`` if the layer is."""
        module = node.module
        cell = module.cell._get_name().removesuffix("Cell")
        return cell if isinstance(module, OverTime) else f"recurrent {cell}"

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """The operations of the cell per neuron, and the products with recurrent weights."""
        layer = trace_layer(node, 0, in_order(node.size), dtype)
        matrices = [layer.matrices[product.matrix] for product in layer.products]
        synapses = sum(m.size if isinstance(m, Connections) else m.numel() for m in matrices)
        if self.feedback:
            synapses += int(node.module.recurrent.weight.numel())
        neurons = operation_count(layer.stores) * node.size
        at_rates = neurons + synapses * (node.density if layer.emits_spikes else 1.0)
        dense = (len(layer.products) + self.feedback) * node.size**2
        return Operations(neurons + synapses, at_rates, dense)

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes the operators of one step of the cell."""
        return step.neurons(node, inputs[0])

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes one step of the cell."""
        return to.neurons(node, to.activations[node.inputs[0]])

    def to_nir(self, node: Node, dt: float) -> NirNode:
        """A node of the cell, or a NIR graph with recurrent synapses."""
        module = node.module
        neurons = _neuron_node(module.cell, node.shape, dt)
        return neurons if isinstance(module, OverTime) else _recurrent_node(node, neurons)

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """The layer of neurons of the node."""
        check_broadcasts(node.fields["r"], shape)
        return _neurons_of(node, dt)

    def lost_in_nir(self, module: nn.Module) -> str:
        """The surrogate, unless it is the default, and ``detach_reset``."""
        cell: Any = module.cell
        if not hasattr(cell, "surrogate"):
            return ""
        surrogate = [] if cell.surrogate == Step() else [repr(cell.surrogate)]
        return ", ".join(surrogate + ["detach_reset"] * bool(cell.detach_reset))


class DelayedRecurrentNeurons(Neurons):
    """Neurons with delayed synapses to themselves.

    They are a :class:`hibana.DelayedRecurrent`, or a :class:`hibana.Recurrent` with a
    :class:`hibana.SparseLinear` that has delays.
    """

    name = "delayed recurrent"
    types = (DelayedRecurrent,)
    feedback = 1
    to_onnx, to_nir = LayerKind.to_onnx, LayerKind.to_nir  # which refuse the layer

    def check(self, node: Node) -> None:
        """Raises Unsupported unless the arrays of the synapses have the sizes that loops read."""
        synapses, (shape,) = node.module.recurrent, node.input_shapes
        if isinstance(synapses, SparseLinear):
            check_connections(node, synapses.connections, *shape, *shape)
        else:
            self.require(node, shape, {"recurrent.weight": shape * 2, "recurrent.delay": shape * 2})

    def title(self, node: Node) -> str:
        """The name of the cell, such as ``delayed recurrent LIF``."""
        return f"delayed {super().title(node)}"

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes one step of the cell on the input plus the delayed feedback, which a ring holds."""
        order, synapses = in_order(node.size), node.module.recurrent
        inputs = to.reordered(to.activations[node.inputs[0]], order)
        ring = Ring(to, node, order, synapses.reach + 1)
        numbers, currents = to.numbers(inputs), ring.take(synapses.bias)
        for offset, width in to.vectors(node.size):
            target = currents + offset
            target.store((numbers + offset).load(width) + target.load(width))
        outputs = to.neurons(node, Activations(node, order, currents))
        if isinstance(synapses, SparseLinear):
            add_synapses(to, synapses.connections, outputs, node.size, ring.place, "feedback_")
        else:
            rows, delays = to.constant(synapses.weight.T), to.indices(synapses.steps.T, "d")
            ring.scatter(outputs, rows, delays)
        return outputs


_DELAYED = DelayedRecurrentNeurons()


# A NIR neuron is a differential equation; hibana runs it in forward Euler steps of dt. With tau in steps,
# tau v' = (v_leak - v) + r x becomes v = (1 - 1/tau) v + (dt r / tau) x for v measured from v_leak, so a
# layer of hibana, whose input has the weight one, has r = tau / dt. Without a leak r is 1; the reader also
# accepts r = 1 / dt.


def _neuron_node(cell: Cell, shape: Shape, dt: float) -> NirNode:
    """The NIR node of neurons with `cell` and samples of `shape`, with `dt` seconds per step.

    Raises ValueError if NIR has no node for the cell or one of its settings.
    """
    unit_r = {"r": full_array(1.0, shape, "r")}
    match cell:
        case cells.LICell() if is_infinite(cell.tau):
            return NirNode("I", unit_r)
        case cells.LICell():
            return _leaky_node("LI", {"tau": cell.tau}, {}, shape, dt)
        case cells.IFCell():
            if np.any(array(cell.initial) if isinstance(cell.initial, Tensor) else cell.initial):
                raise ValueError(f"NIR neurons start at rest; initial={cell.initial!r} cannot be written")
            return NirNode("IF", {**unit_r, **_spiking_fields(cell, shape)})
        case cells.LIFCell() if is_infinite(cell.tau):
            return NirNode("IF", {**unit_r, **_spiking_fields(cell, shape)})
        case cells.LIFCell():
            node = _leaky_node("LIF", {"tau": cell.tau}, _spiking_fields(cell, shape), shape, dt)
            leak = {"v_leak": full_array(cell.rest, shape, "rest")}
            return replace(node, fields={**node.fields, **(unit_r if cell.decay_input else {}), **leak})
        case cells.PLIFCell():
            tau = {"tau": 1 / torch.sigmoid(cell.w)}
            node = _leaky_node("LIF", tau, _spiking_fields(cell, shape), shape, dt)
            return replace(node, fields={**node.fields, **unit_r})
        case cells.CubaLIFCell():
            taus = {"tau_syn": cell.tau_synapse, "tau_mem": cell.tau}
            node = _leaky_node("CubaLIF", taus, _spiking_fields(cell, shape), shape, dt)
            return replace(node, fields={**node.fields, "w_in": node.fields["tau_syn"] / dt})
    raise ValueError(f"NIR has no node for a {type(cell).__name__}")


def _recurrent_node(node: Node, neurons: NirNode) -> NirNode:
    """The NIR graph of a recurrent layer: the node `neurons`, and a linear node that feeds it back."""
    feedback, shape = node.module.recurrent, node.shape
    if isinstance(feedback, SparseLinear):
        weight = feedback.to_dense()
    elif role_of(feedback) == "linear":
        weight = feedback.weight
    else:
        kind = type(feedback).__name__
        raise ValueError(f"only a linear layer can be written as the way back to the input, not a {kind}")
    nodes = {
        "input": NirNode("Input", {"shape": np.array(shape)}),
        "neuron": neurons,
        "w_rec": linear_node(weight, feedback.bias),
        "output": NirNode("Output", {"shape": np.array(shape)}),
    }
    edges = [("input", "neuron"), ("neuron", "w_rec"), ("w_rec", "neuron"), ("neuron", "output")]
    return NirNode("NIRGraph", {"nodes": nodes, "edges": edges})


def _leaky_node(kind: str, taus: dict[str, Any], spiking: dict[str, Any], shape: Shape, dt: float) -> NirNode:
    """The NIR node of leaky neurons.

    Args:
        kind: the type of the node.
        taus: time constants in steps by field name; the last one is the membrane's.
        spiking: the fields of threshold and reset, if the neurons spike.
        shape: the shape of a sample.
        dt: seconds per step.
    """
    if any(is_infinite(tau) for tau in taus.values()):
        raise ValueError(f"a NIR {kind} has finite time constants, got {taus}")
    steps = {name: full_array(tau, shape, name) for name, tau in taus.items()}
    seconds = {name: tau.astype(np.float64) * dt for name, tau in steps.items()}
    exact = {
        f"{name}_steps": steps[name] if isinstance(tau, Tensor) else float(tau) for name, tau in taus.items()
    }
    membrane = seconds[[*seconds][-1]]
    return NirNode(kind, {**seconds, "r": membrane / dt, "v_leak": np.zeros(shape), **spiking}, exact)


def _spiking_fields(cell: Any, shape: Shape) -> dict[str, Any]:
    """The NIR fields of the threshold and the reset of `cell`.

    Raises ValueError if NIR has no field for a setting of the cell.
    """
    if isinstance(cell.reset, str):
        raise ValueError(  # noqa: TRY004 - a network that NIR can't express, like the others here
            'NIR resets to a potential; reset="subtract" cannot be written'
        )
    defaults: dict[str, Any] = {"lower_bound": None, "most_spikes": 1, "leak_first": False}
    if is_infinite(getattr(cell, "tau", 1.0)):
        defaults |= {"decay_input": False, "rest": 0.0}
    for name, default in defaults.items():
        if getattr(cell, name, default) is not default and getattr(cell, name) != default:
            raise ValueError(f"NIR has no {name}={getattr(cell, name)!r}")
    return {
        "v_threshold": full_array(cell.threshold, shape, "threshold"),
        "v_reset": full_array(cell.reset, shape, "reset"),
    }


def _neurons_of(node: NirNode, dt: float | None) -> nn.Module:
    """The layer of neurons of a NIR `node`, after a :class:`Scale` unless its input has the weight one."""
    fields = node.fields
    leak = fields.get("v_leak", 0)

    def from_leak(name: str) -> float | Tensor:
        """The potential `name`, measured from the leak's."""
        potential = fields.get(name)
        potential = np.zeros(1) if potential is None else np.asarray(potential)
        return float_or_tensor(potential - leak, f"{name} - v_leak")

    if node.type in ("I", "LI"):
        if np.any(np.asarray(leak)):
            raise ValueError(f"v_leak must be 0 where nothing spikes, got {leak!r}")
        if node.type == "I":
            return _with_gain(_current_gain(fields, dt), LI())
        return _with_gain(node.gain(dt), LI(node.in_steps("tau", dt)))
    spiking: Any = {"threshold": from_leak("v_threshold"), "reset": from_leak("v_reset")}
    if node.type == "IF":
        return _with_gain(_current_gain(fields, dt), IF(**spiking))
    if node.type == "LIF":
        return _with_gain(node.gain(dt), LIF(node.in_steps("tau", dt), **spiking))
    gain = node.gain(dt, "w_in", "tau_syn") * node.gain(dt, "r", "tau_mem")
    return _with_gain(gain, CubaLIF(node.in_steps("tau_syn", dt), node.in_steps("tau_mem", dt), **spiking))


def _current_gain(fields: dict[str, Any], dt: float | None) -> Tensor:
    """The change of the potential of neurons without a leak in one step, for an input of one.

    Libraries differ in the meaning of `r`: for most it is the change in a step, for some the change in a
    second, which is ``1 / dt`` for an input of weight one.
    """
    r = torch.as_tensor(float_or_tensor(fields["r"], "r"), dtype=torch.float64, device="cpu")
    return torch.where((r * (_USUAL_DT if dt is None else dt) - 1).abs() <= _ROUNDING, 1.0, r)


def _with_gain(gain: Tensor, neurons: nn.Module) -> nn.Module:
    """`neurons`, after a product of the input with `gain` unless that is one."""
    if bool(((gain - 1).abs() <= _ROUNDING).all()):
        return neurons
    return nn.Sequential(Scale(gain.float()), neurons)


def with_feedback(neurons: nn.Module, linear: nn.Linear) -> nn.Module:
    """The recurrent layer of `neurons` read from NIR, whose spikes return through `linear` one step later.

    A :class:`Scale` before the neurons also applies to the feedback, so its factors go into `linear`.
    """
    if isinstance(neurons, OverTime):
        return Recurrent(neurons.cell, linear.in_features, linear)
    gain, scaled_neurons = cast(tuple[Scale, OverTime], (*neurons.children(),))
    with torch.no_grad():
        for parameter in linear.parameters():  # [features, features] and [features]: one gain per row
            parameter.mul_(gain.scale.reshape(-1, *[1] * (parameter.ndim - 1)))
    return nn.Sequential(gain, Recurrent(scaled_neurons.cell, linear.in_features, linear))
