"""``hb.compile``: a network as one native function, called over sequences."""

from torch import Tensor, nn

from hibana.network.native.compiled import CompiledNetwork, sides
from hibana.network.native.stream import Stream, check_tensor

__all__ = ["Program", "compile"]


def compile(net: nn.Module, example: Tensor) -> "Program":  # noqa: A001 - the verb, as of torch.compile
    """The network in evaluation as one native function, for complete sequences and for streams.

    All layers are compiled together: a step is one call, and adds a row of weights for each spike. The
    function needs no C compiler, computes on the CPU, and has no gradients. It has a copy of the weights;
    after they changed, call :meth:`Program.update`. Its outputs equal ``net(inputs)`` in evaluation up to the
    rounding of sums.

    Args:
        net: a network over ``[T, batch, ...]`` of linear layers, convolutions (1 and 2 dimensions), pooling,
            rectifiers, normalization, upsampling, concatenations, windows, delays, sums of branches, and
            neurons of any cell that compiles; or an integer network of :func:`hibana.quantize`.
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


class Program(CompiledNetwork):
    """A compiled network, as :func:`hibana.compile` returns it. Several threads may call it at once."""

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

    def stream(self, batch: int = 1) -> Stream:
        """A new stream of `batch` samples, at rest.

        Raises:
            ValueError: if `batch` is not an integer of at least 1.
        """
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch must be a whole number of at least 1, got {batch!r}")
        return Stream(self, batch)
