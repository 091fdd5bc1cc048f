"""Layers of neurons: any cell over time, with or without synapses back to itself."""

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hibana import cells
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
from hibana.network.nir_node import (
    NirNode,
    array,
    check_broadcasts,
    float_or_tensor,
    full_array,
    is_infinite,
    subgraph,
)
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
_NIR_CELLS = (cells.LICell, cells.IFCell, cells.LIFCell, cells.PLIFCell, cells.CubaLIFCell)
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
        if isinstance(getattr(call.node.module, "recurrent", None), LooksBack):
            call.node.layer = _DELAYED
        call.node.layer.check(call.node)
        return call.node

    def title(self, node: Node) -> str:
        """The name of the cell, such as ``LIF``, with ``recurrent`` if the layer is."""
        module = node.module
        cell = module.cell._get_name().removesuffix("Cell")
        return cell if isinstance(module, OverTime) else f"recurrent {cell}"

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """The operations of the cell per neuron, and the products with recurrent weights."""
        layer = trace_layer(node, in_order(node.size), dtype)
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

    def to_nir(self, node: Node, dt: float) -> NirNode | tuple[NirNode, ...]:
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


def _neuron_node(cell: Any, shape: Shape, dt: float) -> NirNode:
    """The NIR node or graph of neurons with `cell` and samples of `shape`, with `dt` seconds per step.

    Without a leak, potentials are written relative to the potential at the start.

    Raises ValueError if NIR has no form of the cell or of one of its settings.
    """
    if not isinstance(cell, _NIR_CELLS):
        raise ValueError(f"NIR has no node for a {type(cell).__name__}")  # noqa: TRY004 - as for settings
    is_cuba, tau = isinstance(cell, cells.CubaLIFCell), getattr(cell, "tau", math.inf)
    taus: dict[str, Any] = {"tau_syn": cell.tau_synapse, "tau_mem": tau} if is_cuba else {"tau": tau}
    is_divided = isinstance(cell, cells.PLIFCell) or getattr(cell, "decay_input", False)
    for name, default in (("lower_bound", None), ("most_spikes", 1)):
        if getattr(cell, name, default) != default:
            raise ValueError(f"NIR has no {name}={getattr(cell, name)!r}")
    if any(map(is_infinite, taus.values())) and (is_cuba or is_divided):
        raise ValueError(f"NIR has finite time constants only in a {type(cell).__name__}, got {taus}")
    start = full_array(getattr(cell, "initial", getattr(cell, "rest", 0.0)), shape, "initial")
    kind, fields, exact, steps = "I", {"r": full_array(1.0, shape, "r")}, {}, np.asarray(math.inf)
    if not is_infinite(tau):
        in_steps = {name: full_array(value, shape, name) for name, value in taus.items()}
        seconds = {name: values.astype(np.float64) * dt for name, values in in_steps.items()}
        exact = {f"{n}_steps": in_steps[n] if isinstance(t, Tensor) else float(t) for n, t in taus.items()}
        kind, steps = "CubaLI" if is_cuba else "LI", in_steps[[*taus][-1]].astype(np.float64)
        r = fields["r"] if is_divided else seconds[[*taus][-1]] / dt
        fields = {
            **seconds,
            "r": r,
            "v_leak": start,
            **({"w_in": seconds["tau_syn"] / dt} if is_cuba else {}),
        }
        if not isinstance(getattr(cell, "reset", None), str):
            start = np.zeros(shape)
    if isinstance(cell, cells.LICell):
        return NirNode(kind, fields, exact)
    threshold = full_array(cell.threshold, shape, "threshold")
    if not isinstance(cell.reset, str):
        reset = full_array(cell.reset, shape, "reset")
        spiking = {"v_threshold": threshold - start, "v_reset": reset - start}
        return NirNode(f"{kind}F", {**fields, **spiking}, exact)
    if is_cuba:
        raise ValueError('NIR resets a CubaLIF to a potential; reset="subtract" cannot be written')
    # the feedback enters like the input, after the leak, where hibana subtracts before it unless leak_first
    leak = 1.0 if getattr(cell, "leak_first", False) else 1 - 1 / steps
    fields |= {"v_leak": np.zeros(shape)} if "v_leak" in fields else {}
    nodes = {
        "potential": NirNode(kind, fields, exact),
        "threshold": NirNode("Threshold", {"threshold": threshold - start}),
        "reset": NirNode("Scale", {"scale": -threshold * leak * (steps if is_divided else 1.0)}),
    }
    edges = [("input", "potential"), ("potential", "threshold"), ("threshold", "output")]
    return subgraph(nodes, [*edges, ("threshold", "reset"), ("reset", "potential")], shape, shape)


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
    nodes = {"neuron": neurons, "w_rec": linear_node(weight, feedback.bias)}
    edges = [("input", "neuron"), ("neuron", "w_rec"), ("w_rec", "neuron"), ("neuron", "output")]
    return subgraph(nodes, edges, shape, shape)


def _neurons_of(node: NirNode, dt: float | None) -> nn.Module:
    """The layer of neurons of a NIR `node`, after a :class:`Scale` unless its input has the weight one.

    The reader adds the field ``subtracted`` to neurons of a graph that subtracts the threshold.
    """
    fields, kind = node.fields, node.type
    leak = np.asarray(fields.get("v_leak", 0))
    if kind in ("I", "LI") and leak.any():
        raise ValueError(f"v_leak must be 0 where nothing spikes, got {leak!r}")
    taus: tuple[float | Tensor, ...] = ()
    if kind in ("I", "IF"):
        gain = _current_gain(fields, dt)
    elif kind == "CubaLIF":
        gain = node.gain(dt, "w_in", "tau_syn") * node.gain(dt, "r", "tau_mem")
        taus = (node.in_steps("tau_syn", dt), node.in_steps("tau_mem", dt))
    else:
        gain, taus = node.gain(dt), (node.in_steps("tau", dt),)
    spiking: dict[str, Any] = {}
    if "subtracted" in fields:
        spiking = _subtraction(fields, np.asarray(gain), taus)
    elif "v_threshold" in fields:
        reset = fields.get("v_reset")
        potentials = {"threshold": fields["v_threshold"], "reset": np.zeros(1) if reset is None else reset}
        spiking = {
            name: float_or_tensor(np.asarray(value) - leak, f"v_{name} - v_leak")
            for name, value in potentials.items()
        }
    layers: dict[str, Any] = {"I": LI, "LI": LI, "IF": IF, "LIF": LIF, "CubaLIF": CubaLIF}
    neurons: nn.Module = layers[kind](*taus, **spiking)
    if bool(((gain - 1).abs() <= _ROUNDING).all()):
        return neurons
    return nn.Sequential(Scale(gain.float()), neurons)


def _subtraction(fields: dict[str, Any], gain: Any, taus: tuple[Any, ...]) -> dict[str, Any]:
    """The settings of neurons that subtract ``fields["subtracted"]`` from their input after a spike.

    Args:
        fields: the fields of the NIR node; the input is multiplied by `gain`.
        gain: the amount that an input of 1 adds to the potential.
        taus: the membrane's time constant in steps; empty without a leak.
    """
    threshold, amount = np.asarray(fields["v_threshold"]), np.asarray(fields["subtracted"]) * gain
    leak = array(torch.as_tensor(1 - 1 / taus[0])) if taus else 1.0
    if taus and np.allclose(amount, threshold, _ROUNDING):
        return {"threshold": float_or_tensor(threshold, "threshold"), "reset": "subtract", "leak_first": True}
    # a potential that decays to zero in one step needs no reset
    amount = np.where(leak == 0, threshold, amount / np.where(leak == 0, 1.0, leak))
    start = amount - threshold
    if np.allclose(start, 0.0, atol=_ROUNDING * np.abs(threshold).max()):
        return {"threshold": float_or_tensor(threshold, "threshold"), "reset": "subtract"}
    settings = {"threshold": amount, "rest" if taus else "initial": start}
    return {"reset": "subtract", **{name: float_or_tensor(value, name) for name, value in settings.items()}}


def _current_gain(fields: dict[str, Any], dt: float | None) -> Tensor:
    """The change of the potential of neurons without a leak in one step, for an input of one.

    Libraries differ in the meaning of `r`: for most it is the change in a step, for some the change in a
    second, which is ``1 / dt`` for an input of weight one.
    """
    r = torch.as_tensor(float_or_tensor(fields["r"], "r"), dtype=torch.float64, device="cpu")
    return torch.where((r * (_USUAL_DT if dt is None else dt) - 1).abs() <= _ROUNDING, 1.0, r)


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
