"""Neurons as NIR nodes and graphs, and back.

A NIR neuron is a differential equation, which hibana runs in forward Euler steps of dt. With tau in steps,
tau v' = (v_leak - v) + r x becomes v = (1 - 1/tau) v + (dt r / tau) x for v measured from v_leak. The input
of a layer of hibana has the weight one, so r = tau / dt. Without a leak r is 1; the reader also accepts
r = 1 / dt.
"""

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hibana import cells
from hibana.compiler.torch_layers import role_of
from hibana.network.layers.arithmetic import Scale
from hibana.network.layers.linear import linear_node
from hibana.network.nir_node import NirNode, float_or_tensor, full_array, subgraph
from hibana.network.node import Node, Shape
from hibana.nn.layers import IF, LI, LIF, CubaLIF, OverTime, Recurrent
from hibana.nn.sparse_linear import SparseLinear

__all__ = ["neuron_node", "neurons_of", "recurrent_node", "with_feedback"]

_USUAL_DT = 1e-4
"""Seconds per step of a NIR graph without one: the default of the libraries that omit it."""
_NIR_CELLS = (cells.LICell, cells.IFCell, cells.LIFCell, cells.PLIFCell, cells.CubaLIFCell)
_ROUNDING = 1e-6
"""A gain that differs less from one counts as one: the rounding of ``dt * r / tau`` in float32."""


def neuron_node(cell: Any, shape: Shape, dt: float) -> NirNode:
    """The NIR node or graph of neurons with `cell` and samples of `shape`, with `dt` seconds per step.

    Without a leak, potentials are written relative to the potential at the start.

    Raises ValueError if NIR has no form of the cell or of one of its settings.
    """
    if not isinstance(cell, _NIR_CELLS):
        raise ValueError(f"NIR has no node for a {type(cell).__name__}")  # noqa: TRY004 - as for settings
    for name, default in (("lower_bound", None), ("most_spikes", 1)):
        if getattr(cell, name, default) != default:
            raise ValueError(f"NIR has no {name}={getattr(cell, name)!r}")
    potential = _potential_node(cell, shape, dt)
    if isinstance(cell, cells.LICell):
        return potential
    start = full_array(getattr(cell, "initial", getattr(cell, "rest", 0.0)), shape, "initial")
    threshold = full_array(cell.threshold, shape, "threshold")
    if isinstance(cell.reset, str):
        return _subtracting_node(cell, potential, threshold, start)
    spiking = {"v_threshold": threshold, "v_reset": full_array(cell.reset, shape, "reset")}
    if potential.type == "I":
        spiking = {name: values - start for name, values in spiking.items()}
    else:
        spiking["v_leak"] = start
    return NirNode(f"{potential.type}F", {**potential.fields, **spiking}, potential.metadata)


def _potential_node(cell: Any, shape: Shape, dt: float) -> NirNode:
    """The NIR node of the potential of `cell` without spikes: ``LI``, ``CubaLI``, or ``I`` without a leak."""
    is_cuba, tau = isinstance(cell, cells.CubaLIFCell), getattr(cell, "tau", math.inf)
    taus: dict[str, Any] = {"tau_syn": cell.tau_synapse, "tau_mem": tau} if is_cuba else {"tau": tau}
    unit = full_array(1.0, shape, "r")
    steps = {name: full_array(value, shape, name) for name, value in taus.items()}
    if any(np.isinf(values).any() for values in steps.values()):
        if is_cuba or _divides_input(cell):
            raise ValueError(f"NIR has finite time constants only in a {type(cell).__name__}, got {taus}")
        return NirNode("I", {"r": unit})
    seconds = {name: values.astype(np.float64) * dt for name, values in steps.items()}
    exact = {f"{n}_steps": steps[n] if isinstance(t, Tensor) else float(t) for n, t in taus.items()}
    *_, membrane = seconds.values()
    fields = {**seconds, "r": unit if _divides_input(cell) else membrane / dt, "v_leak": np.zeros(shape)}
    if is_cuba:
        return NirNode("CubaLI", {**fields, "w_in": seconds["tau_syn"] / dt}, exact)
    return NirNode("LI", fields, exact)


def _divides_input(cell: Any) -> bool:
    """Whether `cell` divides its input by the time constant."""
    return isinstance(cell, cells.PLIFCell) or bool(getattr(cell, "decay_input", False))


def _subtracting_node(cell: Any, potential: NirNode, threshold: Any, start: Any) -> NirNode:
    """The NIR graph of neurons with `cell`, which subtract the threshold from the potential after a spike.

    A ``Threshold`` reads the node `potential`, and a ``Scale`` returns minus the threshold to its input at
    the next step. hibana subtracts before the leak, unless the cell has ``leak_first``, and the input arrives
    after the leak, so the factor of the leak is part of the scale. `threshold` and the potential at the
    `start` are arrays with the shape of a sample.
    """
    if potential.type == "CubaLI":
        raise ValueError('NIR resets a CubaLIF to a potential; reset="subtract" cannot be written')
    shape: Shape = threshold.shape
    tau = full_array(getattr(cell, "tau", math.inf), shape, "tau").astype(np.float64)
    leak = 1.0 if getattr(cell, "leak_first", False) else 1 - 1 / tau
    nodes = {
        "potential": potential,
        "threshold": NirNode("Threshold", {"threshold": threshold - start}),
        "reset": NirNode("Scale", {"scale": -threshold * leak * (tau if _divides_input(cell) else 1.0)}),
    }
    edges = [("input", "potential"), ("potential", "threshold"), ("threshold", "output")]
    return subgraph(nodes, [*edges, ("threshold", "reset"), ("reset", "potential")], shape, shape)


def recurrent_node(node: Node, neurons: NirNode) -> NirNode:
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


def neurons_of(node: NirNode, dt: float | None) -> nn.Module:
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
    leak = 1 - 1 / np.asarray(taus[0]) if taus else 1.0
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
