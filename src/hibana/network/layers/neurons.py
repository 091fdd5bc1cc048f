"""Layers of neurons: any cell over time, with or without synapses back to itself."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hibana import cells
from hibana.cells import Cell
from hibana.cells.surrogate import Step
from hibana.compiler.torch_layers import role_of
from hibana.network.graph import Node, Shape
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.gain import Scale
from hibana.network.layers.linear import linear_node
from hibana.network.layers.ring import Ring
from hibana.network.lowering import Activations, Lowering, in_order
from hibana.network.neurons import trace_layer
from hibana.network.nir_node import NirNode, array, check_broadcasts, float_or_tensor, full_array, is_infinite
from hibana.network.onnx_export import OnnxStep
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import IF, LI, LIF, CubaLIF, OverTime, Recurrent

__all__ = ["DelayedRecurrentNeurons", "Neurons", "with_feedback"]

_USUAL_DT = 1e-4
"""Seconds per step if a NIR graph says nothing: the default of those who write none."""
_ROUNDING = 1e-6
"""A gain this near to one is one: the rounding of ``dt * r / tau`` in float32."""


class Neurons(LayerKind):
    """:class:`hibana.OverTime` (:class:`hibana.LIF`, ...) and :class:`hibana.Recurrent`."""

    name = "neurons"
    types: tuple[type[nn.Module], ...] = (OverTime, Recurrent)
    nir_types = ("IF", "LIF", "CubaLIF", "LI", "I")
    over_time = elementwise = True
    feedback = 0
    """Matrices that the layer multiplies with besides those of its step."""

    def title(self, node: Node) -> str:
        module = node.module
        cell = module.cell._get_name().removesuffix("Cell")
        return f"recurrent {cell}" if isinstance(module, Recurrent) else cell

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        traced = trace_layer(node, 0, torch.arange(node.size, dtype=torch.int64, device="cpu"), dtype)
        products = (len(traced.products) + self.feedback) * node.size**2
        neurons = traced.operation_count * node.size
        at_rates = neurons + products * (node.density if traced.emits_spikes else 1.0)
        return Operations(neurons + products, at_rates, products)

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        return step.neurons(node, inputs[0])

    def lower(self, node: Node, to: Lowering) -> Activations:
        return to.neurons(node, to.activations[node.inputs[0]])

    def to_nir(self, node: Node, dt: float) -> NirNode:
        neurons, module = _to_nir(node.module.cell, node.shape, dt), node.module
        return neurons if isinstance(module, OverTime) else _recurrent_node(module, neurons, node.shape)

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        check_broadcasts(node.fields["r"], shape)
        return _from_nir(node, dt)

    def lost_in_nir(self, module: nn.Module) -> str:
        cell: Any = module.cell
        if not hasattr(cell, "surrogate"):
            return ""
        lost = [] if cell.surrogate == Step() else [repr(cell.surrogate)]
        return ", ".join(lost + ["detach_reset"] * bool(cell.detach_reset))


class DelayedRecurrentNeurons(Neurons):
    """:class:`hibana.DelayedRecurrent`: spikes come back through synapses with a delay each."""

    name = "delayed recurrent"
    types = (DelayedRecurrent,)
    feedback = 1

    def check(self, node: Node) -> None:
        synapses = node.input_shapes[0] * 2
        self.require(node, node.input_shapes[0], {"recurrent.weight": synapses, "recurrent.delay": synapses})

    def title(self, node: Node) -> str:
        return f"delayed recurrent {super().title(node)}"

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        self.refuse(node, "ONNX")

    def lower(self, node: Node, to: Lowering) -> Activations:
        module = node.module
        read = to.ordered(to.activations[node.inputs[0]], in_order(node.size))
        synapses = module.recurrent
        rows, late = to.constant(synapses.weight.T), to.indices(synapses.steps.T, "d")
        ring = Ring(to, node, read.order, synapses.reach + 1)
        numbers, driven = to.numbers(read), ring.taken(None)
        for at, width in to.vectors(node.size):
            place = driven + at
            place.store((numbers + at).load(width) + place.load(width))
        held = to.neurons(node, Activations(node, read.order, driven))
        ring.scatter(held, rows, late)
        return held

    def to_nir(self, node: Node, dt: float) -> NirNode:
        self.refuse(node, "NIR")


# A NIR neuron is a differential equation; hibana runs it in forward Euler steps of dt. With tau in steps,
# tau v' = (v_leak - v) + r x becomes v = (1 - 1/tau) v + (dt r / tau) x for v measured from v_leak, so a
# layer of hibana, whose input has the weight one, has r = tau / dt. Without a leak it has r = 1, and is read
# from r = 1 / dt too.


def _to_nir(cell: Cell, shape: Shape, dt: float) -> NirNode:
    """The NIR node of `cell`."""
    one = {"r": full_array(1.0, shape, "r")}
    match cell:
        case cells.LICell() if is_infinite(cell.tau):
            return NirNode("I", one)
        case cells.LICell():
            return _leaky("LI", {"tau": cell.tau}, {}, shape, dt)
        case cells.IFCell():
            if np.any(array(cell.initial) if isinstance(cell.initial, Tensor) else cell.initial):
                raise ValueError(f"NIR neurons start at rest; initial={cell.initial!r} cannot be written")
            return NirNode("IF", {**one, **_spiking(cell, shape)})
        case cells.LIFCell() if is_infinite(cell.tau):
            return NirNode("IF", {**one, **_spiking(cell, shape)})
        case cells.LIFCell():
            node = _leaky("LIF", {"tau": cell.tau}, _spiking(cell, shape), shape, dt)
            leak = {"v_leak": full_array(cell.rest, shape, "rest")}
            return replace(node, fields={**node.fields, **(one if cell.decay_input else {}), **leak})
        case cells.PLIFCell():
            node = _leaky("LIF", {"tau": 1 / torch.sigmoid(cell.w)}, _spiking(cell, shape), shape, dt)
            return replace(node, fields={**node.fields, **one})
        case cells.CubaLIFCell():
            taus = {"tau_syn": cell.tau_synapse, "tau_mem": cell.tau}
            node = _leaky("CubaLIF", taus, _spiking(cell, shape), shape, dt)
            return replace(node, fields={**node.fields, "w_in": node.fields["tau_syn"] / dt})
    raise ValueError(f"NIR has no node for a {type(cell).__name__}")


def _recurrent_node(module: Recurrent, neurons: NirNode, shape: Shape) -> NirNode:
    """A graph within the graph, as the field writes a recurrent layer."""
    back: Any = module.recurrent
    if role_of(back) != "linear":
        kind = type(back).__name__
        raise ValueError(f"only a linear layer can be written as the way back to the input, not a {kind}")
    nodes = {
        "input": NirNode("Input", {"shape": np.array(shape)}),
        "neuron": neurons,
        "w_rec": linear_node(back.weight, back.bias),
        "output": NirNode("Output", {"shape": np.array(shape)}),
    }
    edges = [("input", "neuron"), ("neuron", "w_rec"), ("w_rec", "neuron"), ("neuron", "output")]
    return NirNode("NIRGraph", {"nodes": nodes, "edges": edges})


def _leaky(kind: str, taus: dict[str, Any], spiking: dict[str, Any], shape: Shape, dt: float) -> NirNode:
    if any(is_infinite(tau) for tau in taus.values()):
        raise ValueError(f"a NIR {kind} has finite time constants, got {taus}")
    steps = {name: full_array(tau, shape, name) for name, tau in taus.items()}
    seconds = {name: tau.astype(np.float64) * dt for name, tau in steps.items()}
    exact = {
        f"{name}_steps": steps[name] if isinstance(tau, Tensor) else float(tau) for name, tau in taus.items()
    }
    last = seconds[[*seconds][-1]]
    return NirNode(kind, {**seconds, "r": last / dt, "v_leak": np.zeros(shape), **spiking}, exact)


def _spiking(cell: Any, shape: Shape) -> dict[str, Any]:
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


def _from_nir(node: NirNode, dt: float | None) -> nn.Module:
    """The layer of neurons that `node` describes, behind a gain if its input has another weight than one."""
    fields = node.fields
    leak = fields.get("v_leak", 0)

    def from_leak(name: str) -> float | Tensor:
        potential = fields.get(name)
        potential = np.zeros(1) if potential is None else np.asarray(potential)
        return float_or_tensor(potential - leak, f"{name} - v_leak")

    if node.type in ("I", "LI"):
        if np.any(np.asarray(leak)):
            raise ValueError(f"v_leak must be 0 where nothing spikes, got {leak!r}")
        return (
            _driven(_current(fields, dt), LI())
            if node.type == "I"
            else _driven(node.gain(dt), LI(node.in_steps("tau", dt)))
        )
    spiking: Any = {"threshold": from_leak("v_threshold"), "reset": from_leak("v_reset")}
    if node.type == "IF":
        return _driven(_current(fields, dt), IF(**spiking))
    if node.type == "LIF":
        return _driven(node.gain(dt), LIF(node.in_steps("tau", dt), **spiking))
    gain = node.gain(dt, "w_in", "tau_syn") * node.gain(dt, "r", "tau_mem")
    return _driven(gain, CubaLIF(node.in_steps("tau_syn", dt), node.in_steps("tau_mem", dt), **spiking))


def _current(fields: dict[str, Any], dt: float | None) -> Tensor:
    """What one unit of input adds to a neuron without a leak in one step.

    Writers do not agree on the meaning of `r`: for most it is what a step adds, for some what a second adds,
    which is ``1 / dt`` for an input of weight one.
    """
    r = torch.as_tensor(float_or_tensor(fields["r"], "r"), dtype=torch.float64, device="cpu")
    return torch.where((r * (_USUAL_DT if dt is None else dt) - 1).abs() <= _ROUNDING, 1.0, r)


def _driven(gain: Tensor, neurons: nn.Module) -> nn.Module:
    """`neurons`, with the input times `gain` unless that is one."""
    return (
        neurons
        if bool(((gain - 1).abs() <= _ROUNDING).all())
        else nn.Sequential(Scale(gain.float()), neurons)
    )


def with_feedback(neurons: nn.Module, linear: nn.Linear) -> nn.Module:
    """`neurons`, as read from NIR, that get their own spikes through `linear` a step later."""
    if isinstance(neurons, OverTime):
        return Recurrent(neurons.cell, linear.in_features, linear)
    gain, driven = cast(tuple[Scale, OverTime], (*neurons.children(),))
    with torch.no_grad():
        for parameter in linear.parameters():  # [features, features] and [features]: a row has one gain
            parameter.mul_(gain.scale.reshape(-1, *[1] * (parameter.ndim - 1)))
    return nn.Sequential(gain, Recurrent(driven.cell, linear.in_features, linear))
