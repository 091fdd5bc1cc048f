"""The article's two demos: one neuron model at one moment, and over time.

Both run the package's own neuron. What they show is returned as plain tensors; drawing is
:mod:`hibana.plot`'s, files and paths are the command line's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.cells import IFCell
from hibana.compiler import record

__all__ = ["OneStep", "OverTime", "one_step", "over_time"]


@dataclass(frozen=True)
class OneStep:
    """Demo 1: forty neurons at one moment, each ``[40]``."""

    potentials: Tensor
    spikes: Tensor
    gradient: Tensor
    threshold: float


@dataclass(frozen=True)
class OverTime:
    """Demo 2: one neuron over time, each ``[T]``."""

    potentials: Tensor
    spikes: Tensor
    threshold: float


def one_step(show: Callable[[str], None] = print) -> OneStep:
    """Demo 1: forty neurons whose potentials are ``arange(0, 2, 0.05)``, at one moment, without input.

    Shows the potentials, the spikes, and the gradient before and after the backward, as the article does.
    """
    input_ = torch.zeros(int(2 / 0.05), dtype=torch.float32, device="cpu", requires_grad=True)
    s_previous = torch.zeros(int(2 / 0.05), dtype=torch.float32, device="cpu", requires_grad=True)
    vt = torch.arange(0, 2, 0.05, dtype=torch.float32, device="cpu", requires_grad=True)
    cell = IFCell()
    _, o = cell(input_, vt, s_previous)
    show(f"{vt = }")
    show(f"{o = }")
    show(f"{vt.grad = }")
    o.sum().backward()
    show("after the backward")
    show(f"{vt.grad = }")
    assert vt.grad is not None
    return OneStep(vt.detach(), o.detach(), vt.grad, threshold=1.0)


def over_time(timesteps: int = 100) -> OverTime:
    """Demo 2: one neuron from potential 0, threshold 1, under an input uniform in [0, 1/15), drawn anew.

    The first of the `timesteps` is the start itself, so the last input drawn is not used, as in the article.
    """
    x_input = torch.rand(timesteps, dtype=torch.float32, device="cpu") / 15
    states = record(IFCell(threshold=1.0), x_input[:-1])
    start = x_input.new_zeros(1)
    return OverTime(torch.cat([start, states["v"]]), torch.cat([start, states["s"]]), threshold=1.0)
