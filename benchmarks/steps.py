"""The calls of a network that the benchmarks time: a training step and inference."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["inference", "training_step"]


def training_step(net: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """Returns a function that runs forward, cross entropy, backward and an SGD update.

    The loss is the cross entropy of the mean output over time. With a learning rate of 0
    the weights stay constant.
    """
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)

    def call() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs).mean(0), targets).backward()
        optimizer.step()

    return call


def inference(net: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """Returns a function that computes the mean output over time in inference mode."""

    def call() -> None:
        with torch.inference_mode():
            net(inputs).mean(0)

    return call
