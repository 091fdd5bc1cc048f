"""Programs and streams: a network as one native function, called over sequences or step by step."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hibana.compiler import State
from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Network, read
from hibana.network.native.kernel import ARGUMENTS, CHECK, NAN, RUN, Native, build
from hibana.network.native.state import get, put
from hibana.network.whole import Quantized
from hibana.runtime.threads import run

__all__ = ["Program", "Stream", "compile"]

SMALLEST_SHARE = 1 << 16
"""Numbers of all layers, over samples and steps, that are worth a thread of their own."""

_Step = TypeVar("_Step", Tensor, "np.ndarray[Any, Any]")
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_AT = {name: i for i, name in enumerate(ARGUMENTS)}
_Function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


def compile(net: nn.Module, example: Tensor) -> "Program":  # noqa: A001 - the verb, as of torch.compile
    """The network in evaluation as one native function, for whole sequences and for streams.

    Layers are compiled together: a step is one call, whatever the number of layers, and adds a row of weights
    for each spike. It needs no C compiler, computes on the CPU, and has no gradients. Weights are copied;
    after they changed, call :meth:`Program.update`. What it returns equals ``net(inputs)`` in evaluation, to
    the rounding of sums.

    Args:
        net: a network over ``[T, batch, ...]`` of linear layers, convolutions (1 and 2 dimensions), pooling,
            batch normalisation, windows, delays, sums of branches, and neurons of any cell that compiles.
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
    def is_current(self) -> bool:
        """Whether the network's parameters and buffers are those that were compiled.

        Writes through ``.data`` are not seen.
        """
        return self._versions == _versions(self._net)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The network's output over `inputs`, ``[T, batch, ...]``, from rest.

        Raises:
            TypeError: if `inputs` are no tensor of the program's dtype.
            ValueError: if they have another shape, are not on the CPU, require a gradient, or hold NaN.
        """
        _check_tensor("inputs", inputs, self.graph.dtype)
        shape = self.graph.input.shape
        if inputs.ndim < 2 or inputs.shape[2:] != shape or 0 in inputs.shape[:2]:
            raise ValueError(f"inputs must be [T, batch, {_sides(shape)}], got {tuple(inputs.shape)}")
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
        if isinstance(self._net, Quantized):
            raise Unsupported(
                "net takes and gives scaled whole numbers; compile what is inside it, "
                "hibana.compile(net.net, net.whole_input(example))"
            )
        native = build(read(self._net, self._example))
        if replace:
            self._versions = versions
        return native

    def __reduce__(self) -> Any:
        raise TypeError("a program can't be pickled or copied: save the network, and compile it again")

    def __repr__(self) -> str:
        graph = self.graph
        shapes = f"[T, batch, {_sides(graph.input.shape)}] -> [T, batch, {_sides(graph.outputs)}]"
        old = "" if self.is_current else ", net has changed since: call update()"
        return f"Program({shapes}, {graph.dtype}{old})"


class Stream:
    """A network that goes on from step to step: what :meth:`Program.stream` returns.

    Its state is its own. Different streams may run in different threads at once, with the interpreter lock
    released; one stream is for one thread at a time.
    """

    def __init__(self, program: Program, batch: int) -> None:
        self.program, self.batch = program, batch
        self._native = native = program._native
        graph = native.network
        self._dtype = graph.dtype
        self._shape = torch.Size((batch, *graph.input.shape))
        self._blank = torch.empty((batch, *graph.outputs), dtype=graph.dtype, device="cpu")
        """Of the shape of what a step gives: ``empty_like`` takes a quarter of the time of ``empty``."""
        self._block = native.rest.repeat(batch, 1)
        self._work = sum(node.size for node in graph.nodes)
        self._status = ctypes.c_int64()
        self._arguments = (ctypes.c_int64 * len(ARGUMENTS))()
        self._at = ctypes.addressof(self._arguments)
        self._arguments[_AT["samples"]] = batch
        self._arguments[_AT["status"]] = ctypes.addressof(self._status)
        self._bind(native)

    def step(self, x: _Step) -> _Step:
        """The output of the next step, of whose input is `x`; a NumPy array for a NumPy array.

        Args:
            x: ``[batch, ...]``, or ``[...]`` of one sample, in the program's dtype; what comes back has a
                batch dimension if `x` has.

        Raises:
            TypeError: if `x` is of another type or dtype.
            ValueError: if it has another shape, is not on the CPU, requires a gradient, or holds NaN; the
                state stays as it was.
        """
        if isinstance(x, np.ndarray):
            return self.step(torch.from_numpy(x)).numpy()
        single = False
        if not (isinstance(x, Tensor) and x.shape == self._shape and self._is_plain(x)):
            _check_tensor("x", x, self._dtype)
            single = self.batch == 1 and x.shape == self._shape[1:]
            if not single and x.shape != self._shape:
                raise ValueError(f"x must be [{_sides(self._shape)}], got {tuple(x.shape)}")
            x = x.contiguous()
        outputs = torch.empty_like(self._blank)
        self._run(1, x.data_ptr(), outputs)
        return outputs[0] if single else outputs

    def events(self, indices: "Tensor | np.ndarray[Any, Any] | Sequence[int]") -> Tensor:
        """The output ``[1, ...]`` of a step whose input is 1 at `indices` and 0 elsewhere.

        Args:
            indices: whole numbers; of an input of several dimensions, in its flattened order. A place that
                comes twice counts once.

        Raises:
            TypeError: if they are no whole numbers.
            ValueError: if the stream has several samples, or they are not in one dimension.
            IndexError: if one is out of range; the state stays as it was.
        """
        if self.batch != 1:
            raise ValueError(f"events are of one sample, and this stream has {self.batch}; use step")
        places = indices.cpu() if isinstance(indices, Tensor) else torch.from_numpy(np.array(indices))
        if places.numel() and (
            places.is_floating_point() or places.is_complex() or places.dtype == torch.bool
        ):
            raise TypeError(f"indices must be whole numbers, got {places.dtype}")
        if places.ndim != 1:
            raise ValueError(f"indices must have one dimension, got shape {tuple(places.shape)}")
        places = places.to(torch.int64).contiguous()
        # an empty list has no memory, and an address must say that there is one
        at = places if places.numel() else torch.zeros(1, dtype=torch.int64, device="cpu")
        outputs = torch.empty_like(self._blank)
        self._run(1, 0, outputs, at.data_ptr(), places.numel())
        return outputs

    def run(self, inputs: Tensor) -> Tensor:
        """The outputs of the next steps, ``[T, batch, ...]``, as :meth:`step` one after the other."""
        _check_tensor("inputs", inputs, self._dtype)
        if inputs.shape[1:] != self._shape or not len(inputs):
            raise ValueError(f"inputs must be [T, {_sides(self._shape)}], got {tuple(inputs.shape)}")
        inputs = inputs.contiguous()
        outputs = torch.empty(len(inputs), *self._blank.shape, dtype=self._dtype, device="cpu")
        self._run(len(inputs), inputs.data_ptr(), outputs)
        return outputs

    def reset(self) -> None:
        """Puts all samples back to rest."""
        self._block.copy_(self.program._native.rest)

    @property
    def state(self) -> dict[str, State]:
        """A copy of the state, from each layer's name to its tensors.

        Of neurons they are those of :func:`hibana.run`, ``[batch, ...]``; of windows and delays the numbers
        of the steps to come, ``[steps, batch, ...]``, the next one first. Assigning it puts a state back.

        Raises:
            ValueError: in assigning, naming the layer, if it is not a state of this program and batch; the
                state stays as it was.
        """
        return get(self._native.arrays, self._block, self._dtype)

    @state.setter
    def state(self, state: Mapping[str, State]) -> None:
        put(self._native.arrays, self._block, self._dtype, state)

    def spikes(self, layer: str) -> Tensor:
        """What the neurons of `layer` emitted at the last step, ``[batch, ...]``.

        Raises:
            ValueError: if the network has no layer of neurons of that name.
        """
        found = {array.layer: array for array in self._native.arrays if array.kind in ("numbers", "bits")}
        if layer not in found:
            raise ValueError(f"layer must be one of the layers of neurons, {', '.join(found)}, got {layer!r}")
        ((emitted,),) = get((found[layer],), self._block, self._dtype).values()
        return emitted

    def __reduce__(self) -> Any:
        raise TypeError("a stream can't be pickled or copied: save its state, and give it to a new stream")

    def __repr__(self) -> str:
        return f"Stream(batch={self.batch}) of {self.program!r}"

    def _is_plain(self, x: Tensor) -> bool:
        """Whether `x` needs no look besides that at its shape."""
        return x.dtype == self._dtype and x.is_cpu and not x.requires_grad and x.is_contiguous()

    def _bind(self, native: Native) -> None:
        self._native = native
        self._call = _Function(native.kernel.address)
        arguments = self._arguments
        arguments[_AT["state"]] = self._block.data_ptr()
        arguments[_AT["weights"]] = native.weights.data_ptr()
        arguments[_AT["functions"]] = native.functions.data_ptr()

    def _run(self, steps: int, inputs: int, outputs: Tensor, events: int = 0, count: int = 0) -> None:
        """Runs `steps`, whose input lies at the address `inputs` or is one of `events`."""
        if self._native is not self.program._native:
            self._bind(self.program._native)
        arguments = self._arguments
        arguments[0], arguments[1] = CHECK | RUN, steps
        arguments[3], arguments[4], arguments[5], arguments[6] = inputs, outputs.data_ptr(), events, count
        grain = SMALLEST_SHARE // (steps * self._work)
        if self.batch == 1 or self.batch <= grain or torch.get_num_threads() == 1:
            self._call(0, self.batch, self._at)
        else:
            for mode in (CHECK, RUN):  # all samples are checked before the first of them goes on
                arguments[0] = mode
                if not self._status.value:
                    run(self._native.kernel.address, self.batch, bytes(arguments), max(1, grain))
        if self._status.value:
            status, self._status.value = self._status.value, 0
            if status == NAN:
                raise ValueError("inputs must be numbers, got NaN")
            size = self._native.network.input.size
            raise IndexError(f"indices must be in [0, {size}), the network's inputs; one is out of range")


def _check_tensor(name: str, x: object, dtype: torch.dtype) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of {dtype}, got {type(x).__name__}")
    if x.dtype != dtype:
        raise TypeError(f"{name} must be of {dtype}, for which the program was compiled, got {x.dtype}")
    if x.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, where programs run, got {x.device}")
    if x.requires_grad:
        raise ValueError(f"{name} must not require a gradient, for programs have none; use {name}.detach()")


def _versions(net: nn.Module) -> list[tuple[str, int, int]]:
    """What changes if a parameter or buffer does."""
    held = [*net.named_parameters(), *net.named_buffers()]
    return [(name, tensor.data_ptr(), tensor._version) for name, tensor in held]


def _sides(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
