"""A network as snnTorch modules, for hls4ml and other tools that read those."""

import math
from collections.abc import Callable
from typing import Any

import snntorch
import torch
from torch import Tensor, nn

from hibana import cells
from hibana.cells.spiking import decay
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import role_of
from hibana.network.layers import LAYERS
from hibana.network.node import Node, Shape
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
        TypeError, ValueError: if `example` is not floating-point, or has another shape.
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
        module: Any = _module(node, is_last=node is network.output)
        if network.dtype != torch.float32 and hasattr(module, "spike_grad"):
            module.spike_grad = _with_dtype(module.spike_grad)
        chain.add_module(node.name.replace(".", "_"), module)
        last = node
    _add_reshape(chain, last.shape, network.output_shape)
    return chain.to(network.dtype).eval()


def _with_dtype(spike: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function `spike` of snnTorch, which returns float32, with spikes in the dtype of the potential."""
    return lambda potential: spike(potential).to(potential.dtype)


def _add_reshape(chain: nn.Sequential, shape: Shape, expected: Shape) -> None:
    """Adds modules to `chain` that reshape samples of `shape` to the `expected` shape."""
    if shape != expected and len(shape) > 1:
        chain.add_module(f"flatten{len(chain)}", nn.Flatten())
    if shape != expected and len(expected) > 1:
        chain.add_module(f"unflatten{len(chain)}", nn.Unflatten(1, expected))


def _module(node: Node, *, is_last: bool) -> nn.Module:
    """The module that computes `node` at one step; `is_last` says whether the network returns its output."""
    module = node.module
    is_readout = isinstance(getattr(module, "cell", None), cells.LICell)
    if isinstance(module, OverTime) and (is_last or not is_readout):
        return _neurons(node, module.cell)
    if isinstance(module, Recurrent) and role_of(module.recurrent) == "linear" and not is_readout:
        neurons = _neurons(node, module.cell)
        neurons.recurrent = _torch_layer(module.recurrent)
        return neurons
    is_mean_of_sequence = isinstance(module, nn.AvgPool2d) and len(node.shape) == 2
    if not role_of(module) or LAYERS[node.kind].over_time or is_mean_of_sequence:
        LAYERS[node.kind].refuse(node, "snnTorch")
    return _torch_layer(module)


def _torch_layer(module: nn.Module) -> nn.Module:
    """`module`, which belongs to a copy of the network, with its base class in ``torch.nn`` as its class."""
    module.__class__ = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn."))
    return module


def _neurons(node: Node, cell: Any) -> nn.Module:
    """The neurons of `node`; the caller sets the synapses of recurrent ones.

    Raises Unsupported, naming the layer, if snnTorch has no form of `cell` or of a setting.
    """
    kind: Any = snntorch.Leaky
    numbers = {"beta": decay(getattr(cell, "tau", math.inf))}
    settings: dict[str, Any] = {"reset_mechanism": "none", "output": True}
    if not isinstance(cell, cells.LICell):
        settings = _reset(node, cell)
        numbers["threshold"] = cell.threshold
    if isinstance(node.module, Recurrent):
        kind, settings["linear_features"] = snntorch.RLeaky, node.size
    elif isinstance(cell, cells.CubaLIFCell):
        kind, numbers["alpha"] = snntorch.Synaptic, decay(cell.tau_synapse)
    for name, number in numbers.items():
        settings[name] = torch.as_tensor(number, dtype=torch.float64, device="cpu").detach()
    neurons: nn.Module = kind(**settings, init_hidden=True)
    return neurons


def _reset(node: Node, cell: Any) -> dict[str, Any]:
    """The arguments for the reset of spiking neurons with `cell`; raises Unsupported as :func:`_neurons`."""
    # snnTorch's recurrent Synaptic fails without a delay of the reset
    is_recurrent_cuba = isinstance(cell, cells.CubaLIFCell) and isinstance(node.module, Recurrent)
    if is_recurrent_cuba or not isinstance(cell, cells.IFCell | cells.LIFCell | cells.CubaLIFCell):
        raise Unsupported(f"layer {node.name!r}: {LAYERS[node.kind].title(node)} has no snnTorch form")
    subtracts = isinstance(cell.reset, str)
    supported = _SUPPORTED if subtracts else {**_SUPPORTED, "reset": 0.0}
    if subtracts and not isinstance(cell, cells.IFCell):
        supported = {**supported, "leak_first": True}
    for name, value in supported.items():
        actual = getattr(cell, name, False if name == "leak_first" else value)
        if isinstance(actual, Tensor) or actual != value:
            raise Unsupported(f"layer {node.name!r}: snnTorch has no {name}={actual!r}, only {value!r}")
    # snnTorch with a delay subtracts at the start of the next step, and without one resets in the same step
    return {"reset_mechanism": "subtract" if subtracts else "zero", "reset_delay": subtracts}
