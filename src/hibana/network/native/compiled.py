"""A network and its native function, which is compiled again when the weights change."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hibana.network.graph import Network
from hibana.network.integer_network import Quantized
from hibana.network.native.kernel import Native, build
from hibana.network.reader import read

__all__ = ["CompiledNetwork", "sides"]


class CompiledNetwork:
    """A network in evaluation, and its native function for inputs like an example."""

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        self._net, self._example = net, example
        self._versions = _versions(net)
        self._native = self._compile()

    @property
    def graph(self) -> Network:
        """The network as a graph; ``print(program.graph)`` shows its layers as a table."""
        return self._native.network

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of inputs and outputs."""
        return self._example.dtype

    @property
    def quantized(self) -> Quantized | None:
        """The network, if it computes in integers."""
        return self._net if isinstance(self._net, Quantized) else None

    whole = quantized
    """Deprecated name of :attr:`quantized`."""

    @property
    def is_current(self) -> bool:
        """Whether the program has the network's current parameters and buffers.

        Writes through ``.data`` are not detected.
        """
        return self._versions == _versions(self._net)

    def update(self) -> None:
        """Copies the network's current weights and hyper-parameters; streams continue with them.

        Raises:
            ValueError: if the layers or shapes of the network have changed.
        """
        versions = _versions(self._net)
        native = self._compile()
        if native.kernel.source != self._native.kernel.source:
            raise ValueError("net must have the layers and shapes that were compiled; compile it anew")
        self._native, self._versions = native, versions

    def _compile(self) -> Native:
        """The native function of the network as it is now."""
        if isinstance(self._example, Tensor) and self._example.device.type != "cpu":
            raise ValueError(f"example must be on the CPU, where programs run, got {self._example.device}")
        return build(read(self._net, self._example))

    def __reduce__(self) -> Any:
        """Raises a TypeError: a program contains addresses of compiled functions."""
        raise TypeError("a program can't be pickled or copied: save the network, and compile it again")

    def __repr__(self) -> str:
        graph = self.graph
        shapes = f"[T, batch, {sides(graph.input.shape)}] -> [T, batch, {sides(graph.output_shape)}]"
        old = "" if self.is_current else ", net has changed since: call update()"
        return f"{type(self).__name__}({shapes}, {self.dtype}{old})"


def _versions(net: nn.Module) -> list[tuple[str, int, int]]:
    """The name, the address and the version of each parameter and buffer of `net`."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    return [(name, tensor.data_ptr(), tensor._version) for name, tensor in tensors]


def sides(shape: Sequence[int]) -> str:
    """The numbers of a shape, separated by commas."""
    return ", ".join(map(str, shape))
