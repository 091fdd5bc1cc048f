"""``hb.tune``: times kernel candidates on an example, as ``torch.backends.cudnn.benchmark`` does."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hibana.runtime import torch_internals
from hibana.spikes import select

__all__ = ["tune"]

Net = TypeVar("Net", bound=nn.Module)


def tune(net: Net, *inputs: Any) -> Net:
    """Times both candidates of each product of spikes in ``net(*inputs)``; returns `net` unchanged.

    A product is computed per spike or by torch. Without this call, estimates for sizes, density and processor
    decide. After it,
    every layer of this process uses the faster candidate for products of these sizes, at densities within
    a factor of 1.4 of the example's. A copy of `net` runs forward and, if it has trainable parameters,
    backward: nothing in `net` changes, and no random numbers are consumed. The faster candidate, and with it
    the last bits of the results, may differ from run to run. The times are ignored with
    ``torch.use_deterministic_algorithms(True)``.

    Args:
        net: any module; the layers of :mod:`hibana.events` in it are tuned.
        *inputs: arguments of a typical call: later calls should have the same batch size and firing rates.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(hb.Linear(64, 512), hb.IF(), hb.Linear(512, 10), hb.LI())
    >>> net = hb.tune(net, (torch.rand(8, 16, 64) < 0.1).float())
    """
    trial = copy.deepcopy(net)
    with select.tuning(), torch.random.fork_rng(devices=[]):
        with torch.no_grad():
            trial(*inputs)
        if any(parameter.requires_grad for parameter in trial.parameters()):
            with torch.enable_grad():
                outputs = [x for x in torch_internals.tree_leaves(trial(*inputs)) if isinstance(x, Tensor)]
                outputs = [tensor for tensor in outputs if tensor.requires_grad]
                torch.autograd.backward(outputs, [torch.randn_like(tensor) for tensor in outputs])
    return net
