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

    Without it, sizes and density alone decide whether a product is computed per spike. The faster candidate
    is used from then on in this process, by every layer with products of these sizes, at densities within
    a factor of 1.4 of the example's. A copy of `net` runs forward and, if it has parameters to learn,
    backward: nothing in `net` changes, and no random numbers are consumed. Which candidate is faster may
    differ from run to run, and with it the last bits of the results; the times are ignored with
    ``torch.use_deterministic_algorithms(True)``.

    Args:
        net: any module; the layers of :mod:`hibana.events` in it are tuned.
        *inputs: arguments of a typical call, with the batch size and the firing rates of later calls.

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
                _backward(trial(*inputs))
    return net


def _backward(outputs: Any) -> None:
    """Computes all gradients of `outputs`, for a random gradient of each."""
    leaves = torch_internals.tree_leaves(outputs)
    tensors = [each for each in leaves if isinstance(each, Tensor) and each.requires_grad]
    torch.autograd.backward(tensors, [torch.randn_like(each) for each in tensors])
