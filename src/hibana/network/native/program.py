"""Programs: a network as one native function, called over sequences."""

from typing import Any

import torch
from torch import Tensor, nn

from hibana.network.graph import Network
from hibana.network.integer_network import Quantized
from hibana.network.native.kernel import Native, build
from hibana.network.native.stream import Stream, check_tensor, sides
from hibana.network.reader import read

__all__ = ["Program", "compile"]


def compile(net: nn.Module, example: Tensor) -> "Program":  # noqa: A001 - the verb, as of torch.compile
    """The network in evaluation as one native function, for whole sequences and for streams.

    Layers are compiled together: a step is one call, whatever the number of layers, and adds a row of weights
    for each spike. It needs no C compiler, computes on the CPU, and has no gradients. Weights are copied;
    after they changed, call :meth:`Program.update`. What it returns equals ``net(inputs)`` in evaluation, to
    the rounding of sums.

    Args:
        net: a network over ``[T, batch, ...]`` of linear layers, convolutions (1 and 2 dimensions), pooling,
            batch normalisation, windows, delays, sums of branches, and neurons of any cell that compiles; or
            one in whole numbers, of :func:`hibana.quantize`.
        example: an input ``[T, batch, ...]`` on the CPU, float32 or float64; T and batch may be any later.

    Raises:
        TypeError: if `example` is no floating-point tensor.
        ValueError: if it is not ``[T, batch, ...]``, or not on the CPU.
        Unsupported: naming the layer, if one can't be compiled.

    >>> import torch, hibana as hb
    >>> net = nn.Sequential(nn.Linear(4, 8), hb.LIF(), nn.Linear(8, 2), hb.LI())
    >>> inputs = torch.rand(5, 1, 4)
    >>> program = hb.compile(net, inputs)
    >>> program(inputs).shape
    torch.Size([5, 1, 2])
    >>> stream = program.stream()
    >>> steps = [stream.step(x) for x in inputs]
    >>> torch.equal(torch.stack(steps), program(inputs))
    True
    """
    return Program(net, example)


class Program:
    """A compiled network: what :func:`hibana.compile` returns. It may be called from several threads."""

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        self._net, self._example = net, example
        self._native = self._compiled()

    @property
    def graph(self) -> Network:
        """The network as it was read; ``print(program.graph)`` shows its layers as a table."""
        return self._native.network

    @property
    def dtype(self) -> torch.dtype:
        """Of what it takes and gives."""
        return self._example.dtype

    @property
    def whole(self) -> Quantized | None:
        """The network, if it computes in whole numbers."""
        return self._net if isinstance(self._net, Quantized) else None

    @property
    def is_current(self) -> bool:
        """Whether the network's parameters and buffers are those that were compiled.

        Writes through ``.data`` are not seen.
        """
        return self._versions == _versions(self._net)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The network's output over `inputs`, ``[T, batch, ...]``, from rest.

        Raises:
            TypeError: if `inputs` are no tensor of the program's dtype.
            ValueError: if they have another shape, are not on the CPU, require a gradient, hold NaN, or are
                more steps than a network in whole numbers may take.
        """
        check_tensor("inputs", inputs, self.dtype)
        shape = self.graph.input.shape
        if inputs.ndim < 2 or inputs.shape[2:] != shape or 0 in inputs.shape[:2]:
            raise ValueError(f"inputs must be [T, batch, {sides(shape)}], got {tuple(inputs.shape)}")
        return self.stream(inputs.shape[1]).run(inputs)

    def stream(self, batch: int = 1) -> "Stream":
        """A new stream of `batch` samples, at rest.

        Raises:
            ValueError: if `batch` is no whole number of at least 1.
        """
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch must be a whole number of at least 1, got {batch!r}")
        return Stream(self, batch)

    def update(self) -> None:
        """Takes the weights and hyper-parameters that the network has now; streams go on with them.

        Raises:
            ValueError: if the network has other layers or shapes than were compiled.
        """
        native = self._compiled(replace=False)
        if native.kernel.source != self._native.kernel.source:
            raise ValueError("net must have the layers and shapes that were compiled; compile it anew")
        self._native, self._versions = native, _versions(self._net)

    def _compiled(self, replace: bool = True) -> Native:
        versions = _versions(self._net)
        if isinstance(self._example, Tensor) and self._example.device.type != "cpu":
            raise ValueError(f"example must be on the CPU, where programs run, got {self._example.device}")
        net, example, whole = self._net, self._example, self.whole
        if whole is not None and isinstance(example, Tensor):
            net, example = whole.net, whole.integer_input(example)
        native = build(read(net, example))
        if replace:
            self._versions = versions
        return native

    def __reduce__(self) -> Any:
        raise TypeError("a program can't be pickled or copied: save the network, and compile it again")

    def __repr__(self) -> str:
        graph = self.graph
        shapes = f"[T, batch, {sides(graph.input.shape)}] -> [T, batch, {sides(graph.output_shape)}]"
        old = "" if self.is_current else ", net has changed since: call update()"
        return f"Program({shapes}, {self.dtype}{old})"


def _versions(net: nn.Module) -> list[tuple[str, int, int]]:
    """What changes if a parameter or buffer does."""
    held = [*net.named_parameters(), *net.named_buffers()]
    return [(name, tensor.data_ptr(), tensor._version) for name, tensor in held]
