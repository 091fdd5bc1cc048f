"""``hb.compile``: a network as one native function, called over sequences."""

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
    """The network in evaluation as one native function, for complete sequences and for streams.

    All layers are compiled together: a step is one call, and adds a row of weights for each spike. The
    function needs no C compiler, computes on the CPU, and has no gradients. It has a copy of the weights;
    after they changed, call :meth:`Program.update`. Its outputs equal ``net(inputs)`` in evaluation up to the
    rounding of sums.

    Args:
        net: a network over ``[T, batch, ...]`` of linear layers, convolutions (1 and 2 dimensions), pooling,
            batch normalization, windows, delays, sums of branches, and neurons of any cell that compiles; or
            an integer network of :func:`hibana.quantize`.
        example: an input ``[T, batch, ...]`` on the CPU, float32 or float64; T and batch may differ later.

    Raises:
        TypeError: if `example` is no floating-point tensor.
        ValueError: if it is not ``[T, batch, ...]``, or not on the CPU.
        Unsupported: naming the layer, if it can't be compiled.

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
    """A compiled network, as :func:`hibana.compile` returns it. Several threads may call it at once."""

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

    def __call__(self, inputs: Tensor) -> Tensor:
        """The network's output over `inputs`, ``[T, batch, ...]``, from rest.

        Raises:
            TypeError: if `inputs` is no tensor of the program's dtype.
            ValueError: if `inputs` has another shape, is not on the CPU, requires a gradient, contains NaN,
                or has more steps than an integer network may take.
        """
        check_tensor("inputs", inputs, self.dtype)
        shape = self.graph.input.shape
        if inputs.ndim < 2 or inputs.shape[2:] != shape or 0 in inputs.shape[:2]:
            raise ValueError(f"inputs must be [T, batch, {sides(shape)}], got {tuple(inputs.shape)}")
        return self.stream(inputs.shape[1]).run(inputs)

    def stream(self, batch: int = 1) -> "Stream":
        """A new stream of `batch` samples, at rest.

        Raises:
            ValueError: if `batch` is not an integer of at least 1.
        """
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch must be a whole number of at least 1, got {batch!r}")
        return Stream(self, batch)

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
        return f"Program({shapes}, {self.dtype}{old})"


def _versions(net: nn.Module) -> list[tuple[str, int, int]]:
    """The name, the address and the version of each parameter and buffer of `net`."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    return [(name, tensor.data_ptr(), tensor._version) for name, tensor in tensors]
