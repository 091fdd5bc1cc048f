"""A compiled run as an operator of `torch.library`, for graphs of ``torch.compile`` and ``torch.export``.

A graph holds tensors, numbers and text, not cells, and may be saved to a file. So the operator takes the
serialized step (:mod:`hibana.compiler.graph.serial`). Eager calls use the kernels directly: only a traced
call imports this module, since registering operators loads much of torch.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler.backend import BackwardArguments, ForwardArguments, Kernels, kernel_class, refusal
from hibana.compiler.checks import warn_slow
from hibana.compiler.draws import new_seed
from hibana.compiler.graph import serial
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.memory_layout import steps_contiguous
from hibana.compiler.programs import kernels_of
from hibana.compiler.tensors import fitting_shape, tensors_of

Tensors = Sequence[Tensor]
Executable = Callable[[Tensor, tuple[Tensor, ...] | None], tuple[Tensor, list[Tensor]]]
_ATTRIBUTE_PATH = re.compile(r"self((?:\.\w+)+)")
"""Matches a path of attributes that starts at the cell, such as ``self.surrogate.alpha``."""


def executable(
    cell: Cell, inputs: Tensor, dtype: torch.dtype, backend: str, auto: bool
) -> tuple[Executable | None, str]:
    """A function that runs `cell` over sequences of `dtype` in a graph, or None and the reason.

    If hibana chose the backend (`auto`), warns if only the reference loop can run the cell.
    """
    dynamo = torch.compiler.is_dynamo_compiling()
    text, reason = _serialized(cell, backend, inputs.device.type, dtype, inputs.ndim - 1, dynamo, auto)
    if reason:
        return None, str(reason)
    if dynamo:
        _guard(cell, inputs[0].to(dtype))
    return partial(_unroll, cell, text, backend), ""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch lacks its type
def _serialized(
    cell: Cell, backend: str, device: str, dtype: torch.dtype, ndim: int, dynamo: bool, auto: bool
) -> tuple[str, str]:
    """The serialized step of `cell` for steps of `ndim` dimensions of any size, and the reason it is absent.

    One of the two texts is empty. If Dynamo makes the graph (`dynamo`), all numbers that the step reads must
    be settings that Dynamo can guard.
    """
    if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():  # an export has imported torch.onnx
        return "", "ONNX has no operators of hibana's"
    reason = refusal(backend, device)
    try:
        compiled = None if reason else kernels_of(cell, backend, _any_size(cell, ndim), dtype)
        if dynamo:
            _settings(cell)
        if compiled is not None and compiled.step.any_size:
            return serial.write(compiled.step, compiled.plan, dtype), ""
        reason = reason or "its step depends on the size of the inputs, and a graph takes inputs of any size"
    except Unsupported as error:
        reason = str(error)
    if auto and device != "meta":
        warn_slow(cell, reason)
    return "", reason


def _any_size(cell: Cell, ndim: int) -> torch.Size:
    """A shape of `ndim` dimensions that the tensors of `cell` broadcast to."""
    sizes = (*[2] * ndim, *fitting_shape(cell))
    return torch.Size(sizes[len(sizes) - ndim :])


def _guard(cell: Cell, step_input: Tensor) -> None:
    """Makes Dynamo guard everything that the step reads, so that it compiles again when any of it changes.

    Dynamo traces a call of `cell` on `step_input`, whose result is unused. Dynamo may turn a number into an
    input of its graph instead of guarding it; the serialized step contains its value, so each number is also
    compared with that value.
    """
    cell(step_input, *cell.initial_state(step_input))
    for path, number in _settings(cell):
        if _attribute(cell, path) != number:
            raise RuntimeError(f"self.{path} changed while the step of the cell was traced")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch lacks its type
def _settings(cell: Cell) -> tuple[tuple[str, float], ...]:
    """Path and value of each number that the step can read, with paths such as ``surrogate.alpha``.

    Raises Unsupported if a number is not an attribute of the cell or of its attributes.
    """
    numbers = []
    for path, number in dependencies_of(cell).numbers:
        match = _ATTRIBUTE_PATH.fullmatch(path)
        if match is None:
            raise Unsupported(
                f"torch.compile would not detect a change of {path}; make it an attribute of the cell"
            )
        attributes = match[1].removeprefix(".")
        if _attribute(cell, attributes) is number:  # false for a class attribute that the object overrides
            numbers.append((attributes, number))
    return tuple(numbers)


def _attribute(value: Any, path: str) -> Any:
    """The attribute of `value` at a dotted `path`."""
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _unroll(
    cell: Cell, text: str, backend: str, inputs: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, list[Tensor]]:
    """Runs `cell` over `inputs` by the operator; returns the outputs, and the last states but the output.

    Args:
        cell: the cell, whose tensors are arguments of the operator.
        text: the serialized step.
        backend: the name of the backend.
        inputs: ``[T, ...]``.
        state: the initial states; None for zeros.
    """
    first = [] if state is None else list(state)
    cell_tensors = list(tensors_of(cell).values())
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (inputs, *first, *cell_tensors))
    call_number = _call_number(text, backend)
    seed = torch.ops.hibana.seed(call_number) if call_number else None
    outputs, *states_and_residuals = torch.ops.hibana.unroll(
        inputs, first, cell_tensors, text, backend, needs_gradient, seed
    )
    return outputs, states_and_residuals[: len(cell._hibana.states) - 1]


_CALLS = count(1)
"""The numbers of calls that draw random numbers."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch lacks its type
def _call_number(text: str, backend: str) -> int:
    """A number that no other call has, if the serialized step draws random numbers; otherwise 0."""
    return next(_CALLS) if _read(text, backend)[0].step.draws else 0


@torch.library.custom_op("hibana::seed", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _seed(number: int) -> Tensor:
    """A new seed, an int64. Calls differ in `number`, so that no compiler merges two of them."""
    return torch.tensor(new_seed(), dtype=torch.int64, device="cpu")


@_seed.register_fake
def _(number: int) -> Tensor:
    """A tensor with the shape and dtype of a seed, for traces."""
    return torch.empty((), dtype=torch.int64, device="cpu")


@lru_cache(maxsize=1024)
def _read(text: str, backend: str) -> tuple[Kernels, torch.dtype]:
    """The kernels of a serialized step, and the dtype of its inputs."""
    step, plan, dtype = serial.read(text)
    return kernel_class(backend, bool(step.matrices))(step, plan, dtype), dtype


def _kernels(text: str, backend: str, inputs: Tensor, runs: bool = False) -> Kernels:
    """The kernels of the serialized step `text` for `inputs`; checks that they can run there if `runs`.

    Raises RuntimeError if the step was serialized for another dtype or device.
    """
    kernels, dtype = _read(text, backend)
    if inputs.dtype != dtype:
        raise RuntimeError(
            f"the step was written down for {dtype}, got inputs of {inputs.dtype}: export it again"
        )
    if runs and (reason := refusal(backend, inputs.device.type)):
        raise RuntimeError(
            f"the step was written down for backend {backend!r}, and {reason}: export it again"
        )
    return kernels


def _initial_states(kernels: Kernels, first: Tensors) -> Sequence[Tensor | None]:
    """The kernels' initial states, None for zeros; `first` is empty for a run from zeros."""
    return [t.contiguous() for t in first] if first else kernels.zero_states


def _with_contiguous_steps(tensor: Tensor) -> Tensor:
    """`tensor`, copied if its steps are not contiguous."""
    return tensor if steps_contiguous(tensor) else tensor.contiguous()


@torch.library.custom_op("hibana::unroll", mutates_args=())
def _forward(
    inputs: Tensor,
    first: Tensors,
    cell_tensors: Tensors,
    step: str,
    backend: str,
    keep: bool,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """The outputs, the last states other than the output state, and, with `keep`, the residuals."""
    kernels = _kernels(step, backend, inputs, runs=True)
    # `may_offset`: a graph expects every tensor to begin at the start of its memory
    arguments = ForwardArguments(
        _with_contiguous_steps(inputs),
        _initial_states(kernels, first),
        kernels.parameters(cell_tensors, inputs.shape[1:]),
        kernels.plan if keep else None,
        may_offset=False,
        seed=0 if seed is None else int(seed),
    )
    outputs, last, residuals = kernels.forward(arguments)
    return [outputs, *last, *residuals]


@_forward.register_fake
def _(
    inputs: Tensor, first: Any, cell_tensors: Any, step: str, backend: str, keep: bool, seed: Any = None
) -> list[Tensor]:
    """Tensors with the shapes and dtypes of the results of :func:`_forward`, for traces."""
    kernels = _kernels(step, backend, inputs)
    layouts = kernels.residual_shapes(inputs.shape[0], inputs.shape[1:]) if keep else []
    last = [inputs.new_empty(inputs.shape[1:]) for _ in kernels.step.states[1:]]
    residuals = [inputs.new_empty(shape, dtype=dtype) for shape, dtype in layouts]
    return [inputs.new_empty(inputs.shape), *last, *residuals]


@torch.library.custom_op("hibana::unroll_backward", mutates_args=())
def _backward(
    inputs: Tensor,
    first: Tensors,
    cell_tensors: Tensors,
    residuals: Tensors,
    grad_outputs: Tensor,
    last_grads: Tensors,
    step: str,
    backend: str,
    learned: Sequence[bool],
    seed: Tensor | None = None,
) -> list[Tensor]:
    """The gradients of the inputs, of the initial states, and of those cell tensors that are `learned`."""
    kernels = _kernels(step, backend, inputs, runs=True)
    inputs = _with_contiguous_steps(inputs)
    arguments = BackwardArguments(
        inputs.shape,
        inputs.stride()[1:],
        inputs,
        _initial_states(kernels, first),
        kernels.parameters(cell_tensors, inputs.shape[1:]),
        residuals,
        _with_contiguous_steps(grad_outputs),
        [g.contiguous() for g in last_grads],
        wants_input=True,
        wants_first=True,
        may_offset=False,
        seed=0 if seed is None else int(seed),
    )
    grad_input, first_grads, sums = kernels.backward(arguments)
    assert grad_input is not None
    grads = kernels.step.epilogue(*cell_tensors, *sums) if any(learned) else [None] * len(cell_tensors)
    cell_grads = [
        g.sum_to_size(t.shape) if g is not None else torch.zeros_like(t)
        for g, t, is_learned in zip(grads, cell_tensors, learned, strict=True)
        if is_learned
    ]
    return [grad_input, *(g for g in first_grads if g is not None), *cell_grads]


@_backward.register_fake
def _(inputs: Tensor, first: Any, cell_tensors: Tensors, *arguments: Any) -> list[Tensor]:
    """Tensors with the shapes and dtypes of the results of :func:`_backward`, for traces."""
    step, backend, learned, *_ = arguments[3:]  # after the residuals, `grad_outputs` and `last_grads`
    first_grads = [inputs.new_empty(inputs.shape[1:]) for _ in _kernels(step, backend, inputs).step.states]
    cell_grads = [
        torch.empty_like(t) for t, is_learned in zip(cell_tensors, learned, strict=True) if is_learned
    ]
    return [inputs.new_empty(inputs.shape), *first_grads, *cell_grads]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    """Saves the tensors of a call of ``hibana::unroll`` for :func:`_gradient`."""
    sequence, first, cell_tensors, ctx.text, ctx.backend, keep, seed = inputs
    if not keep:
        raise RuntimeError(
            "hibana::unroll was called with keep=False, and has no gradient: call it with keep=True"
        )
    ctx.kernels = _kernels(ctx.text, ctx.backend, sequence)
    ctx.shape, ctx.first_count, ctx.draws = sequence.shape, len(first), seed is not None
    ctx.learned = [t.requires_grad for t in cell_tensors]
    read = [sequence] if ctx.kernels.plan.reads_input else []
    residuals = output[len(ctx.kernels.step.states) :]
    seeds = [seed] if ctx.draws else []
    ctx.save_for_backward(*read, *first, *cell_tensors, *residuals, *seeds)


def _gradient(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    """The gradients of the arguments of ``hibana::unroll``, computed by ``hibana::unroll_backward``."""
    saved, first_count, states = list(ctx.saved_tensors), ctx.first_count, len(ctx.kernels.step.states)
    seed = saved.pop() if ctx.draws else None
    template = next(g for g in grads if g is not None)
    # `hibana::unroll_backward` reads only shape and dtype of inputs that are no residual
    inputs = saved.pop(0) if ctx.kernels.plan.reads_input else template.new_empty(()).expand(ctx.shape)
    end = first_count + len(ctx.learned)
    outputs, *last = grads[:states]
    outputs = inputs.new_zeros(()).expand(ctx.shape) if outputs is None else outputs
    last = [inputs.new_zeros(ctx.shape[1:]) if g is None else g for g in last]
    arguments = saved[:first_count], saved[first_count:end], saved[end:], outputs, last
    grad_input, *other_grads = torch.ops.hibana.unroll_backward(
        inputs, *arguments, ctx.text, ctx.backend, ctx.learned, seed
    )
    learned_grads = iter(other_grads[states:])  # after the gradient of each initial state
    cell_grads = [next(learned_grads) if is_learned else None for is_learned in ctx.learned]
    # torch takes no gradient for an argument with its default value, such as a missing seed
    grad_seed = [None] if ctx.draws else []
    return grad_input, other_grads[:first_count], cell_grads, None, None, None, *grad_seed


_forward.register_autograd(_gradient, setup_context=_setup)
