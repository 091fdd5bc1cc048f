"""Streams: a compiled network with a state that continues from call to call."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, get_num_threads

from hibana.compiler import State
from hibana.network.integer_network import Quantized
from hibana.network.native.compiled import CompiledNetwork, sides
from hibana.network.native.kernel import ARGUMENTS, Native
from hibana.network.native.state import read_state, write_state
from hibana.runtime.threads import run
from hibana.spikes.checks import is_constant_over_time

__all__ = ["Stream", "check_tensor"]

SMALLEST_SHARE = 1 << 16
"""Fewest outputs of all layers, over samples and steps, for which a further thread saves time."""

_BUSY = "a stream serves one thread at a time, and another call runs; make a stream for each thread"

_Step = TypeVar("_Step", Tensor, "np.ndarray[Any, Any]")
_INDEX = {name: i for i, name in enumerate(ARGUMENTS)}
_Function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


class Stream:
    """A network with a state that continues from step to step, as ``Program.stream`` returns it.

    Different streams may run in different threads at once, with the interpreter lock released. One stream
    serves one thread at a time: a call while another one runs raises RuntimeError.
    """

    def __init__(self, program: CompiledNetwork, batch: int) -> None:
        self.program, self.batch = program, batch
        self._native = native = program._native
        graph = native.network
        self._dtype, self._native_dtype = program.dtype, graph.dtype
        self._quantized, self._steps = program.quantized, 0
        """``_steps`` counts the steps of an integer network since the state was set."""
        self._lock = Lock()
        self._shape = torch.Size((batch, *graph.input.shape))
        self._output_template = torch.empty((batch, *graph.output_shape), dtype=graph.dtype, device="cpu")
        """A tensor like the output of a step: ``empty_like`` takes a quarter of the time of ``empty``."""
        self._block = native.initial_state.repeat(batch, 1)
        self._work = sum(node.size for node in graph.nodes)
        self._status = ctypes.c_int64()
        self._arguments = (ctypes.c_int64 * len(ARGUMENTS))()
        self._address = ctypes.addressof(self._arguments)
        self._arguments[_INDEX["samples"]] = batch
        self._arguments[_INDEX["status"]] = ctypes.addressof(self._status)
        self._bind(native)

    def step(self, x: _Step) -> _Step:
        """The output of the next step with the input `x`; a NumPy array for a NumPy array.

        Args:
            x: ``[batch, ...]``, or ``[...]`` if the stream has one sample, in the program's dtype; the output
                has a batch dimension if `x` has one.

        Raises:
            TypeError: if `x` is of another type or dtype.
            ValueError: if `x` has another shape, is not on the CPU, requires a gradient, or contains NaN; or
                if an integer network may take no more steps. The state does not change then.
        """
        if isinstance(x, np.ndarray):
            return self.step(torch.from_numpy(x)).numpy()
        is_single = False
        if not (isinstance(x, Tensor) and x.shape == self._shape and self._is_readable(x)):
            check_tensor("x", x, self._dtype)
            is_single = self.batch == 1 and x.shape == self._shape[1:]
            if not is_single and x.shape != self._shape:
                raise ValueError(f"x must be [{sides(self._shape)}], got {tuple(x.shape)}")
            x = x.resolve_neg().contiguous()
        if self._quantized is not None:
            outputs = self._integer_sequence(self._quantized, x[None, None] if is_single else x[None])[0]
        else:
            outputs = torch.empty_like(self._output_template)
            self._launch(1, x, outputs, 0)
        return outputs[0] if is_single else outputs

    def events(self, indices: "Tensor | np.ndarray[Any, Any] | Sequence[int]") -> Tensor:
        """The output ``[1, ...]`` of a step whose input is 1 at `indices` and 0 elsewhere.

        Args:
            indices: integers; for an input of several dimensions, of its flattened numbers. A repeated index
                counts once.

        Raises:
            TypeError: if `indices` are not integers.
            ValueError: if the stream has several samples, or `indices` have not one dimension; or if
                :meth:`step` raises it.
            IndexError: if an index is out of range. The state does not change then.
        """
        if self.batch != 1:
            raise ValueError(f"events are of one sample, and this stream has {self.batch}; use step")
        events = indices.cpu() if isinstance(indices, Tensor) else torch.from_numpy(np.array(indices))
        is_integer = not (events.is_floating_point() or events.is_complex() or events.dtype == torch.bool)
        if events.numel() and not is_integer:
            raise TypeError(f"indices must be whole numbers, got {events.dtype}")
        if events.ndim != 1:
            raise ValueError(f"indices must have one dimension, got shape {tuple(events.shape)}")
        x, size = torch.zeros(self._shape, dtype=self._dtype, device="cpu"), self._shape.numel()
        try:
            x.view(-1).scatter_(0, events.long(), 1)
        except RuntimeError:
            message = f"indices must be in [0, {size}), the network's inputs; one is out of range"
            raise IndexError(message) from None
        return self.step(x)

    def run(self, inputs: Tensor) -> Tensor:
        """The outputs of the next steps with `inputs`, ``[T, batch, ...]``, as of a :meth:`step` for each."""
        check_tensor("inputs", inputs, self._dtype)
        if inputs.shape[1:] != self._shape or not len(inputs):
            raise ValueError(f"inputs must be [T, {sides(self._shape)}], got {tuple(inputs.shape)}")
        if self._quantized is not None:
            return self._integer_sequence(self._quantized, inputs)
        return self._sequence(inputs)

    def reset(self) -> None:
        """Sets all samples to rest."""
        with self._exclusive():
            self._block.copy_(self.program._native.initial_state)
            self._steps = 0

    @property
    def state(self) -> dict[str, State]:
        """A copy of the state: a tuple of tensors for each layer's name. Assigning it sets the state.

        Layers of neurons have the states of :func:`hibana.run`, ``[batch, ...]``; windows and delays have
        the numbers of the coming steps, ``[steps, batch, ...]``, the next step first.

        Raises:
            ValueError: in an assignment, naming the layer, if the value is not a state of this program and
                batch. The state does not change then.
        """
        with self._exclusive():
            return read_state(self._native.arrays, self._block, self._native_dtype)

    @state.setter
    def state(self, state: Mapping[str, State]) -> None:
        """Writes `state` into the stream, and restarts the count of steps."""
        with self._exclusive():
            write_state(self._native.arrays, self._block, self._native_dtype, state)
            self._steps = 0

    def spikes(self, layer: str) -> Tensor:
        """The output ``[batch, ...]`` of the neurons of `layer` in the last step.

        Raises:
            ValueError: if the network has no layer of neurons of that name.
        """
        outputs = {array.layer: array for array in self._native.arrays if array.kind in ("numbers", "bits")}
        if layer not in outputs:
            names = ", ".join(outputs)
            raise ValueError(f"layer must be one of the layers of neurons, {names}, got {layer!r}")
        with self._exclusive():
            ((output,),) = read_state((outputs[layer],), self._block, self._native_dtype).values()
        return output

    def __reduce__(self) -> Any:
        """Raises a TypeError: a stream contains addresses of its memory."""
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

    def _is_readable(self, x: Tensor) -> bool:
        """Whether the program can read the memory of `x`, which has the right shape, without a copy."""
        has_type = x.dtype == self._dtype and x.is_cpu and not x.requires_grad
        return has_type and x.is_contiguous() and not x.is_neg()

    def _sequence(self, inputs: Tensor) -> Tensor:
        """The outputs of the next steps with `inputs` of a checked shape and dtype."""
        steps, is_constant = len(inputs), is_constant_over_time(inputs)
        inputs = (inputs[:1] if is_constant else inputs).resolve_neg().contiguous()
        outputs = torch.empty(steps, *self._output_template.shape, dtype=self._native_dtype, device="cpu")
        self._launch(steps, inputs, outputs, 0 if is_constant else self._shape.numel())
        return outputs

    def _integer_sequence(self, net: Quantized, inputs: Tensor) -> Tensor:
        """:meth:`_sequence` of an integer network."""
        steps = self._steps + len(inputs)
        if steps > net.steps > 0:
            raise ValueError(
                f"a network in whole numbers may take {net.steps} steps from rest, within which nothing "
                f"overflows, got {steps}; reset the stream, or quantize on longer inputs"
            )
        outputs = self._sequence(net.integer_input(inputs))
        self._steps = steps
        return (outputs.double() * net.output_scale).to(self._dtype)

    def _bind(self, native: Native) -> None:
        """Makes calls run `native`, on this stream's state."""
        self._native = native
        self._call = _Function(native.kernel.address)
        arguments = self._arguments
        arguments[_INDEX["state"]] = self._block.data_ptr()
        arguments[_INDEX["weights"]] = native.weights.data_ptr()
        arguments[_INDEX["functions"]] = native.functions.data_ptr()

    def _launch(self, steps: int, inputs: Tensor, outputs: Tensor, stride: int) -> None:
        """Runs the program.

        Args:
            steps: number of steps.
            inputs: contiguous inputs of all steps, or of one step if the stride is 0.
            outputs: memory for the outputs of all steps.
            stride: numbers from the inputs of one step to those of the next, 0 if all steps have the same.
        """
        if not self._lock.acquire(False):
            raise RuntimeError(_BUSY)
        try:  # not _exclusive, because a `with` block takes 0.2 of 5 us
            if self._native is not self.program._native:
                self._bind(self.program._native)
            arguments, status = self._arguments, self._status
            arguments[0], arguments[1] = inputs.data_ptr(), outputs.data_ptr()
            arguments[2], arguments[3] = steps, stride
            if self.batch == 1 or self.batch * steps * self._work <= SMALLEST_SHARE or get_num_threads() == 1:
                self._call(0, self.batch, self._address)
            else:  # all samples are checked before one of them runs
                status.value = bool(inputs.amin().isnan())
                if not status.value:
                    grain = max(1, SMALLEST_SHARE // (steps * self._work))
                    run(self._native.kernel.address, self.batch, bytes(arguments), grain)
            has_nan, status.value = status.value, 0
        finally:
            self._lock.release()
        if has_nan:
            raise ValueError("inputs must be numbers, got NaN")


def check_tensor(name: str, x: object, dtype: torch.dtype) -> None:
    """Raises TypeError or ValueError, with the `name` of the argument, if a program can't read `x`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of {dtype}, got {type(x).__name__}")
    if x.dtype != dtype:
        raise TypeError(f"{name} must be of {dtype}, for which the program was compiled, got {x.dtype}")
    if x.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, where programs run, got {x.device}")
    if x.requires_grad:
        raise ValueError(f"{name} must not require a gradient, for programs have none; use {name}.detach()")
