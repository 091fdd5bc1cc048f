"""A network as snnTorch modules, for hls4ml and other tools that read those."""

import copy
import math
from typing import Any

import snntorch
import torch
from torch import Tensor, nn

from hibana import cells
from hibana.cells.spiking import decay
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import role_of
from hibana.network.graph import Node, Shape
from hibana.network.reader import read
from hibana.nn.layers import OverTime, Recurrent

__all__ = ["to_snntorch"]

_SUPPORTED: dict[str, Any] = {
    "initial": 0.0,
    "rest": 0.0,
    "decay_input": False,
    "lower_bound": None,
    "most_spikes": 1,
}
"""The only value that snnTorch has of each setting of a cell."""


def to_snntorch(net: nn.Module, example: Tensor) -> nn.Sequential:
    """`net` as a chain of snnTorch and ``torch.nn`` modules that computes one step per call.

    `IF` and `LIF` become `Leaky` with beta = 1 - 1/tau, `CubaLIF` becomes `Synaptic`, and a `Recurrent` with
    a linear layer `RLeaky`. A last `LI` becomes a `Leaky` that never resets and returns
    ``(spikes, potential)``. The neurons keep their state between calls; ``snntorch.utils.reset`` starts a new
    sample.

    The spikes are equal at each step. In recurrent layers, and in `IF` with ``reset="subtract"``, snnTorch
    adds in another order, so the last bit of a potential may differ unless the sums are exact. Batch
    normalization is folded, dropout is removed, and surrogates are not converted. hls4ml accepts chains of
    linear layers, `Leaky` and flatten.

    Args:
        net: a network over ``[T, batch, ...]``; it does not change.
        example: an input of `net`.

    Raises:
        Unsupported: naming the layer, if snnTorch has no module or setting for it: branches, delays, a reset
            to another potential than 0, a recurrent `CubaLIF`. snnTorch subtracts the threshold after the
            leak: ``hb.LIF(reset="subtract")`` needs ``leak_first=True``.

    Source: Eshraghian et al. (2023), *Training spiking neural networks using lessons from deep learning*.

    >>> import torch
    >>> import hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), hb.LIF(tau=4.0, threshold=0.1))
    >>> x = torch.rand(9, 2, 4)
    >>> chain = hb.convert.to_snntorch(net, x)
    >>> torch.equal(torch.stack([chain(step) for step in x]), net(x))
    True
    """
    network = read(net, example)
    chain, last = nn.Sequential(), network.input
    for node in network.nodes[1:]:
        if node.inputs != (last,) or (node.users == [] and node is not network.output):
            raise Unsupported(f"layer {node.name!r}: a chain of snnTorch modules has no branches")
        _add_reshape(chain, last.shape, node.input_shapes[0])
        chain.add_module(node.name.replace(".", "_"), _module(node, is_last=node is network.output))
        last = node
    _add_reshape(chain, last.shape, network.output_shape)
    return chain.to(network.dtype).eval()


def _add_reshape(chain: nn.Sequential, shape: Shape, expected: Shape) -> None:
    """Adds modules to `chain` that reshape samples of `shape` to the `expected` shape."""
    if shape != expected and len(shape) > 1:
        chain.add_module(f"flatten{len(chain)}", nn.Flatten())
    if shape != expected and len(expected) > 1:
        chain.add_module(f"unflatten{len(chain)}", nn.Unflatten(1, expected))


def _module(node: Node, *, is_last: bool) -> nn.Module:
    """The module that computes `node` at one step; `is_last` says whether the network returns its output."""
    module = node.module
    if isinstance(module, OverTime) and (is_last or not isinstance(module.cell, cells.LICell)):
        return _neurons(node, module.cell)
    if isinstance(module, Recurrent) and role_of(module.recurrent) == "linear":
        return _neurons(node, module.cell, _torch_layer(module.recurrent))
    is_mean_of_sequence = isinstance(module, nn.AvgPool2d) and len(node.shape) == 2
    if not role_of(module) or node.layer.over_time or is_mean_of_sequence:
        node.layer.refuse(node, "snnTorch")
    return _torch_layer(module)


def _torch_layer(module: nn.Module) -> nn.Module:
    """A copy of `module` whose class is the base class of ``torch.nn``."""
    layer = copy.deepcopy(module)
    layer.__class__ = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn."))
    return layer


def _neurons(node: Node, cell: Any, synapses: nn.Module | None = None) -> nn.Module:
    """The neurons of `node`; if `synapses` are not None, the spikes return through them at the next step."""
    settings: dict[str, Any] = {"beta": _number(decay(getattr(cell, "tau", math.inf))), "init_hidden": True}
    if isinstance(cell, cells.LICell) and synapses is None:
        readout: nn.Module = snntorch.Leaky(**settings, reset_mechanism="none", output=True)
        return readout
    is_cuba = isinstance(cell, cells.CubaLIFCell) and synapses is None
    if not is_cuba and not isinstance(cell, cells.IFCell | cells.LIFCell):
        raise Unsupported(f"layer {node.name!r}: {node.layer.title(node)} has no snnTorch form")
    subtracts = isinstance(cell.reset, str)
    supported = _SUPPORTED if subtracts else {**_SUPPORTED, "reset": 0.0}
    if subtracts and bool((settings["beta"] != 1).any()):
        supported = {**supported, "leak_first": True}
    for name, value in supported.items():
        actual = getattr(cell, name, False if name == "leak_first" else value)
        if isinstance(actual, Tensor) or actual != value:
            raise Unsupported(f"layer {node.name!r}: snnTorch has no {name}={actual!r}, only {value!r}")
    # snnTorch with a delay subtracts at the start of the next step, and without one resets in the same step
    settings |= {"reset_mechanism": "subtract" if subtracts else "zero", "reset_delay": subtracts}
    settings["threshold"] = _number(cell.threshold)
    if is_cuba:
        kind, settings["alpha"] = snntorch.Synaptic, _number(decay(cell.tau_synapse))
    else:
        kind = snntorch.Leaky if synapses is None else snntorch.RLeaky
    neurons: nn.Module = kind(**settings, **({} if synapses is None else {"linear_features": node.size}))
    if synapses is not None:
        neurons.recurrent = synapses
    return neurons


def _number(value: Any) -> Tensor:
    """`value`, a number or a tensor, as a tensor without gradient."""
    return torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
