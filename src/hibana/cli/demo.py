"""The article's two demos: many neurons at one moment, and one neuron over time.

Both run :class:`hibana.IFCell`. Results are plain tensors; :mod:`hibana.plot` draws them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.cells import IFCell
from hibana.compiler import record

__all__ = ["OneStep", "OverTime", "one_step", "over_time"]


class OneStep(NamedTuple):
    """Demo 1: forty neurons at one moment, each ``[40]``."""

    potentials: Tensor
    spikes: Tensor
    gradient: Tensor
    threshold: float


class OverTime(NamedTuple):
    """Demo 2: one neuron over time, each ``[T]``."""

    potentials: Tensor
    spikes: Tensor
    threshold: float


def one_step(show: Callable[[str], None] = print) -> OneStep:
    """Demo 1: forty neurons with potentials ``arange(0, 2, 0.05)``, at one moment, without input.

    Calls `show` with the potentials, the spikes, and the gradient before and after the backward pass, as the
    article prints them.
    """
    vt = torch.arange(0, 2, 0.05, dtype=torch.float32, device="cpu", requires_grad=True)
    input_, s_previous = torch.zeros_like(vt), torch.zeros_like(vt)
    _, o = IFCell()(input_, vt, s_previous)
    show(f"{vt = }")
    show(f"{o = }")
    show(f"{vt.grad = }")
    o.sum().backward()
    show("after the backward")
    show(f"{vt.grad = }")
    assert vt.grad is not None
    return OneStep(vt.detach(), o.detach(), vt.grad, threshold=1.0)


def over_time(timesteps: int = 100) -> OverTime:
    """Demo 2: one neuron from potential 0, threshold 1, with random inputs uniform in [0, 1/15).

    The first of the `timesteps` is the initial state, so the last input is not used, as in the article.
    """
    x_input = torch.rand(timesteps, dtype=torch.float32, device="cpu") / 15
    states = record(IFCell(threshold=1.0), x_input[:-1])
    start = x_input.new_zeros(1)
    return OverTime(torch.cat([start, states["v"]]), torch.cat([start, states["s"]]), threshold=1.0)
