"""Streams: a compiled network that goes on from step to step."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, get_num_threads

from hibana.compiler import State
from hibana.network.integer_network import Quantized
from hibana.network.native.kernel import ARGUMENTS, CHECK, NAN, RUN, Native
from hibana.network.native.state import get, put
from hibana.runtime.threads import run
from hibana.spikes.checks import is_constant_over_time

if TYPE_CHECKING:
    from hibana.network.native.program import Program

__all__ = ["Stream", "check_tensor", "sides"]

SMALLEST_SHARE = 1 << 16
"""Numbers of all layers, over samples and steps, that are worth a thread of their own."""

_BUSY = "a stream serves one thread at a time, and another call runs; make a stream for each thread"

_Step = TypeVar("_Step", Tensor, "np.ndarray[Any, Any]")
_AT = {name: i for i, name in enumerate(ARGUMENTS)}
_Function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


class Stream:
    """A network that goes on from step to step: what :meth:`Program.stream` returns.

    Its state is its own. Different streams may run in different threads at once, with the interpreter lock
    released. One stream serves one thread at a time: a call while another one runs raises RuntimeError.
    """

    def __init__(self, program: "Program", batch: int) -> None:
        self.program, self.batch = program, batch
        self._native = native = program._native
        graph = native.network
        self._dtype, self._number = program.dtype, graph.dtype
        self._whole, self._taken = program.whole, 0
        self._lock = Lock()
        self._layout: tuple[int, int, bool] | None = None
        """Steps, stride and whether the input is numbers of the last call, as the arguments have them."""
        self._shape = torch.Size((batch, *graph.input.shape))
        self._blank = torch.empty((batch, *graph.output_shape), dtype=graph.dtype, device="cpu")
        """Of the shape of what a step gives: ``empty_like`` takes a quarter of the time of ``empty``."""
        self._block = native.rest.repeat(batch, 1)
        self._work = sum(node.size for node in graph.nodes)
        self._status = ctypes.c_int64()
        self._arguments = (ctypes.c_int64 * len(ARGUMENTS))()
        self._at = ctypes.addressof(self._arguments)
        self._arguments[_AT["samples"]] = batch
        self._stride, self._results = batch * graph.input.size, batch * graph.output.size
        self._arguments[_AT["status"]] = ctypes.addressof(self._status)
        self._bind(native)

    def step(self, x: _Step) -> _Step:
        """The output of the next step, of whose input is `x`; a NumPy array for a NumPy array.

        Args:
            x: ``[batch, ...]``, or ``[...]`` of one sample, in the program's dtype; what comes back has a
                batch dimension if `x` has.

        Raises:
            TypeError: if `x` is of another type or dtype.
            ValueError: if it has another shape, is not on the CPU, requires a gradient, or holds NaN; or if a
                network in whole numbers may take no more steps; the state stays as it was.
        """
        if isinstance(x, np.ndarray):
            return self.step(torch.from_numpy(x)).numpy()
        single = False
        if not (isinstance(x, Tensor) and x.shape == self._shape and self._is_plain(x)):
            check_tensor("x", x, self._dtype)
            single = self.batch == 1 and x.shape == self._shape[1:]
            if not single and x.shape != self._shape:
                raise ValueError(f"x must be [{sides(self._shape)}], got {tuple(x.shape)}")
            x = x.resolve_neg().contiguous()
        if self._whole is not None:
            outputs = self._in_whole_numbers(self._whole, x[None] if not single else x[None, None])[0]
        else:
            outputs = torch.empty_like(self._blank)
            self._launch(1, outputs, x, None, 0)  # lengths follow from the shapes
        return outputs[0] if single else outputs

    def events(self, indices: "Tensor | np.ndarray[Any, Any] | Sequence[int]") -> Tensor:
        """The output ``[1, ...]`` of a step whose input is 1 at `indices` and 0 elsewhere.

        Args:
            indices: whole numbers; of an input of several dimensions, in its flattened order. A place that
                comes twice counts once.

        Raises:
            TypeError: if they are no whole numbers.
            ValueError: if the stream has several samples, or they are not in one dimension; as :meth:`step`.
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
        places = places.to(torch.int64).resolve_neg().contiguous()
        if self._whole is not None:
            return self.step(self._of_spikes(places))
        outputs = torch.empty_like(self._blank)
        self._run(1, outputs, events=places)
        return outputs

    def run(self, inputs: Tensor) -> Tensor:
        """The outputs of the next steps, ``[T, batch, ...]``, as :meth:`step` one after the other."""
        check_tensor("inputs", inputs, self._dtype)
        if inputs.shape[1:] != self._shape or not len(inputs):
            raise ValueError(f"inputs must be [T, {sides(self._shape)}], got {tuple(inputs.shape)}")
        return self._sequence(inputs) if self._whole is None else self._in_whole_numbers(self._whole, inputs)

    def reset(self) -> None:
        """Puts all samples back to rest."""
        with self._exclusive():
            self._block.copy_(self.program._native.rest)
            self._taken = 0

    @property
    def state(self) -> dict[str, State]:
        """A copy of the state, from each layer's name to its tensors.

        Of neurons they are those of :func:`hibana.run`, ``[batch, ...]``; of windows and delays the numbers
        of the steps to come, ``[steps, batch, ...]``, the next one first. Assigning it puts a state back.

        Raises:
            ValueError: in assigning, naming the layer, if it is not a state of this program and batch; the
                state stays as it was.
        """
        with self._exclusive():
            return get(self._native.arrays, self._block, self._number)

    @state.setter
    def state(self, state: Mapping[str, State]) -> None:
        with self._exclusive():
            put(self._native.arrays, self._block, self._number, state)
            self._taken = 0

    def spikes(self, layer: str) -> Tensor:
        """What the neurons of `layer` emitted at the last step, ``[batch, ...]``.

        Raises:
            ValueError: if the network has no layer of neurons of that name.
        """
        found = {array.layer: array for array in self._native.arrays if array.kind in ("numbers", "bits")}
        if layer not in found:
            raise ValueError(f"layer must be one of the layers of neurons, {', '.join(found)}, got {layer!r}")
        with self._exclusive():
            ((emitted,),) = get((found[layer],), self._block, self._number).values()
        return emitted

    def __reduce__(self) -> Any:
        raise TypeError("a stream can't be pickled or copied: save its state, and give it to a new stream")

    def __repr__(self) -> str:
        return f"Stream(batch={self.batch}) of {self.program!r}"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """A block that one thread at a time may enter; others get an error instead of waiting."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(_BUSY)
        try:
            yield
        finally:
            self._lock.release()

    def _is_plain(self, x: Tensor) -> bool:
        """Whether the memory of `x`, which has the right shape, can be read as it is."""
        plain = x.dtype == self._dtype and x.is_cpu and not x.requires_grad
        return plain and x.is_contiguous() and not x.is_neg()

    def _sequence(self, inputs: Tensor) -> Tensor:
        """The outputs of steps whose inputs were checked."""
        steps, same = len(inputs), is_constant_over_time(inputs)
        inputs = (inputs[:1] if same else inputs).resolve_neg().contiguous()
        outputs = torch.empty(steps, *self._blank.shape, dtype=self._number, device="cpu")
        self._run(steps, outputs, inputs, stride=0 if same else self._stride)
        return outputs

    def _in_whole_numbers(self, net: Quantized, inputs: Tensor) -> Tensor:
        """The same, of a network in whole numbers."""
        taken = self._taken + len(inputs)
        if taken > net.steps > 0:
            raise ValueError(
                f"a network in whole numbers may take {net.steps} steps from rest, within which nothing "
                f"overflows, got {taken}; reset the stream, or quantize on longer inputs"
            )
        outputs = self._sequence(net.integer_input(inputs))
        self._taken = taken
        return (outputs.double() * net.output_scale).to(self._dtype)

    def _of_spikes(self, places: Tensor) -> Tensor:
        """A step's input that is 1 at `places`."""
        x = torch.zeros(self._shape, dtype=self._dtype, device="cpu")
        if places.numel() and not (int(places.min()) >= 0 and int(places.max()) < x.numel()):
            raise IndexError(_out_of_range(x.numel()))
        x.view(-1)[places] = 1
        return x

    def _bind(self, native: Native) -> None:
        self._native = native
        self._call = _Function(native.kernel.address)
        if self._block.numel() != self.batch * native.rest.numel():
            raise _length_error("state", self._block, self.batch * native.rest.numel())
        arguments = self._arguments
        arguments[_AT["state"]] = self._block.data_ptr()
        arguments[_AT["weights"]] = native.weights.data_ptr()
        arguments[_AT["functions"]] = native.functions.data_ptr()

    def _run(
        self,
        steps: int,
        outputs: Tensor,
        inputs: Tensor | None = None,
        events: Tensor | None = None,
        stride: int = 0,
    ) -> None:
        """Runs `steps` on `inputs`, contiguous, or on `events`, the places of the inputs that are 1.

        `stride` is the distance of one step's inputs to the next one's, 0 if all steps have the same.
        """
        accessed = (steps - 1) * stride + self._stride
        if outputs.numel() != steps * self._results:
            raise _length_error("outputs", outputs, steps * self._results)
        if inputs is not None and inputs.numel() != accessed:
            raise _length_error("inputs", inputs, accessed)
        self._launch(steps, outputs, inputs, events, stride)

    def _launch(
        self, steps: int, outputs: Tensor, inputs: Tensor | None, events: Tensor | None, stride: int
    ) -> None:
        """:meth:`_run` on buffers of checked lengths."""
        if not self._lock.acquire(False):
            raise RuntimeError(_BUSY)
        try:  # written out: a `with` block takes 0.2 us, of 5
            if self._native is not self.program._native:
                self._bind(self.program._native)
            arguments = self._arguments
            if events is not None:  # an empty list has no memory: any address says that the input is a list
                arguments[5], arguments[6] = events.data_ptr() or self._at, events.numel()
            if self._layout != (steps, stride, events is None):
                arguments[0], arguments[1], arguments[3], arguments[7] = CHECK | RUN, steps, 0, stride
                if events is None:
                    arguments[5] = arguments[6] = 0
                self._layout = steps, stride, events is None
            if inputs is not None:
                arguments[3] = inputs.data_ptr()
            arguments[4] = outputs.data_ptr()
            if self.batch == 1 or self.batch * steps * self._work <= SMALLEST_SHARE or get_num_threads() == 1:
                self._call(0, self.batch, self._at)
            else:
                grain = max(1, SMALLEST_SHARE // (steps * self._work))
                for mode in (CHECK, RUN):  # all samples are checked before the first of them goes on
                    arguments[0] = mode
                    if not self._status.value:
                        run(self._native.kernel.address, self.batch, bytes(arguments), grain)
                self._layout = None
            if status := self._status.value:
                self._status.value = 0
        finally:
            self._lock.release()
        if status == NAN:
            raise ValueError("inputs must be numbers, got NaN")
        if status:
            raise IndexError(_out_of_range(self._native.network.input.size))


def _length_error(name: str, buffer: Tensor, accessed: int) -> RuntimeError:
    """The error of a buffer that has another number of elements than a program's loops access."""
    return RuntimeError(f"{name} must have {accessed} numbers, got {buffer.numel()}: an error in hibana")


def _out_of_range(size: int) -> str:
    return f"indices must be in [0, {size}), the network's inputs; one is out of range"


def check_tensor(name: str, x: object, dtype: torch.dtype) -> None:
    """Raises TypeError or ValueError, naming the argument, if `x` is no tensor that a program reads."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of {dtype}, got {type(x).__name__}")
    if x.dtype != dtype:
        raise TypeError(f"{name} must be of {dtype}, for which the program was compiled, got {x.dtype}")
    if x.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, where programs run, got {x.device}")
    if x.requires_grad:
        raise ValueError(f"{name} must not require a gradient, for programs have none; use {name}.detach()")


def sides(shape: Sequence[int]) -> str:
    """A shape in a sentence, without brackets."""
    return ", ".join(map(str, shape))
