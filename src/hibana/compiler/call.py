"""Calls of a cell over a sequence: the choice between a compiled program, an operator and the reference loop.

:func:`run_cell` looks for an earlier call with the same key in the cache (:mod:`hibana.compiler.programs`).
Otherwise it checks its arguments, and :func:`_executable` chooses. :mod:`hibana.compiler.autograd` contains
the compiled run itself.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.cells.surrogate import in_forward_mode
from hibana.compiler import autograd, call_context, programs, reference
from hibana.compiler.backend import check_backend, default_backend, refusal
from hibana.compiler.call_context import is_traced, is_traced_or_transformed
from hibana.compiler.checks import check_batch, check_inputs, check_values, checked_state, warn_slow
from hibana.compiler.draws import Drawing
from hibana.compiler.gradient_warning import warn_without_derivative
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.tensors import cached_parametrizations, evaluate_parametrizations, tensors_of
from hibana.runtime import torch_internals

__all__ = ["State", "run_cell", "record", "unroll", "unroll_layer", "unroll_compiled"]

State = tuple[Tensor, ...]
Executable = Callable[[Tensor, State | None], tuple[Tensor, Sequence[Tensor]]]
"""From inputs and initial states, None for zeros, to the outputs and the last states. The last states may
lack the output state, which is the last of the outputs."""

# Global lookups: attribute lookups would take a tenth of a small call.
_get_num_threads, _is_grad_enabled = torch.get_num_threads, torch.is_grad_enabled


def unroll(
    cell: Cell, inputs: Tensor, state: State | None = None, *, backend: str = "auto"
) -> tuple[Tensor, State]:
    """Runs `cell` over a sequence.

    Args:
        cell: one step, ``forward(input_, *state) -> state``.
        inputs: ``[T, ...]``, time first, floating point.
        state: the initial state, one tensor of shape ``inputs.shape[1:]`` for each state of the cell; None
            for the resting state.
        backend: ``"auto"`` chooses the fastest backend that can run this cell: ``"cpu"`` or, for inputs on
            CUDA, ``"triton"``; otherwise the reference loop. A backend requested by name runs or raises.

    Returns:
        The outputs of the cell, ``[T, ...]``, and its last state.

    Raises:
        TypeError: if `inputs` is not a floating-point tensor, or `cell` is not a cell.
        ValueError: if a shape, a device or the backend's name is wrong. Also within :func:`hibana.run`, which
            keeps the states of layers only and would lose this one.
        Unsupported: if the backend was requested by name and can't run the call.

    >>> import torch, hibana as hb
    >>> spikes, (v, s) = hb.unroll(hb.IFCell(), torch.full([4, 1], 0.4))
    >>> spikes.flatten()
    tensor([0., 0., 1., 0.])
    """
    if call_context.run_active:
        _refuse_within_a_run("unroll")
    return unroll_layer(cell, inputs, state, backend=backend)


def unroll_layer(
    cell: Cell, inputs: Tensor, state: State | None = None, *, backend: str = "auto"
) -> tuple[Tensor, State]:
    """:func:`unroll` for layers, which may also call it within :func:`hibana.run`."""
    outputs, last = run_cell(cell, inputs, state, backend=backend)
    if len(last) < len(cell._hibana.states):  # an operator of a graph
        # not a view, which would keep all steps in memory and change with them
        last = (*last, outputs.select(0, -1).clone())
    return outputs, tuple(last)


def unroll_compiled(
    cell: Cell, inputs: Tensor, state: State | None, *, backend: str
) -> tuple[Tensor, State] | None:
    """:func:`unroll_layer`; None, without a warning, if only the reference loop could run the cell."""
    check_inputs(cell, inputs)
    backend_name = default_backend(inputs.device.type) if backend == "auto" else backend
    try:
        return None if backend == "reference" else unroll_layer(cell, inputs, state, backend=backend_name)
    except Unsupported:
        return None


def run_cell(
    cell: Cell, inputs: Tensor, state: State | None = None, *, backend: str = "auto", is_layer: bool = False
) -> tuple[Tensor, Sequence[Tensor]]:
    """The outputs of `cell` and its last states, which may lack the output state, the last of the outputs.

    For a layer (`is_layer`), whose inputs are ``[T, batch, ...]``, all last states may be missing. The other
    arguments are as in :func:`unroll`.
    """
    if not torch_internals.DYNAMO_COMPILES_CELLS and torch.compiler.is_dynamo_compiling():
        return torch_2_12_compiles_layers(cell, inputs, state, backend, is_layer)  # type: ignore[no-any-return]
    wants_last, is_observed = not is_layer, is_traced_or_transformed(inputs)
    key: Hashable | None = None
    if isinstance(cell, Cell) and not is_observed and not inputs.is_neg():
        # The key and the cell's attributes determine a call; setting an attribute clears the cell's cache.
        key = _key(backend, inputs, wants_last, state is not None)
        spec = programs.recall(cell, key)
        if spec is not None:
            if state is not None and not (spec.prepared is not None and spec.prepared.accepts(state)):
                state, spec = checked_state(cell, inputs, state), spec._replace(prepared=None)
            tensors = (*(state or ()), *tensors_of(cell).values())
            return autograd.run_specification(spec, inputs, tensors)
    check_inputs(cell, inputs)
    full_dtype = reference.state_dtype(inputs.dtype)
    if inputs.dtype != full_dtype and inputs.is_cpu and torch.is_autocast_enabled("cpu"):
        # as torch's float32 operations do, so that the next layer gets spikes whose events it can use
        return run_cell(cell, inputs.to(full_dtype), state, backend=backend, is_layer=is_layer)
    cell = evaluate_parametrizations(cell)
    if is_layer:
        check_batch(inputs)
    if not is_traced(inputs):
        inputs = inputs.resolve_neg()  # kernels read the memory, which holds the negatives of a negated view
    if state is not None:
        state = checked_state(cell, inputs, state)
    elif not cell.rests_at_zero():
        state, key = cell.initial_state(_one_step(inputs)), None
    outputs, last = _executable(cell, inputs, backend, wants_last, key)(inputs, state)
    if inputs.requires_grad and _is_grad_enabled() and not is_observed:
        warn_without_derivative(cell, outputs)
    return outputs, last


@torch_internals.disable_dynamo  # type: ignore[untyped-decorator] # an alias without a type
def torch_2_12_compiles_layers(
    cell: Cell, inputs: Tensor, state: State | None, backend: str, is_layer: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """:func:`run_cell` for older versions of torch, whose ``torch.compile`` breaks its graph here.

    With ``fullgraph=True`` Dynamo raises, and its error shows the name of this function.
    """
    return run_cell(cell, inputs, state, backend=backend, is_layer=is_layer)


def _executable(
    cell: Cell, inputs: Tensor, backend: str, wants_last: bool, key: Hashable | None
) -> Executable:
    """A function that runs `cell`: a compiled program, an operator of a graph, or the reference loop.

    Args:
        cell: the cell, which remembers a compiled run under `key`.
        inputs: ``[T, ...]``.
        backend: as in :func:`unroll`.
        wants_last: whether the caller needs the last states.
        key: the key of the run in the cell's cache; None: the cell remembers nothing.

    Raises:
        Unsupported: if the backend was requested by name and can't run the call.
    """
    loop = partial(_run_reference, cell)
    if backend == "reference":
        return loop
    check_backend(backend)
    device, dtype = inputs.device.type, reference.state_dtype(inputs.dtype)
    backend_name = default_backend(device) if backend == "auto" else backend
    run: Executable | None = None
    # The cells that a warning names, "" for this cell; None: no warning, since torch or the tracer warns.
    subject: str | None = None
    if reason := _device_mismatch(cell, inputs):
        pass
    elif is_traced(inputs):
        from hibana.compiler import operator

        run, reason = operator.executable(cell, inputs, dtype, backend_name, backend == "auto")
    elif torch_internals.jit_trace() is not None:
        reason = "torch.jit.trace records PyTorch's own operations; so does convert.export"
    elif in_forward_mode():
        reason = "only the loop supports transforms of torch.func and forward-mode derivatives"
        subject = type(cell).__name__
    elif reason := refusal(backend_name, device):
        subject = "every cell"  # one warning instead of one per class of cells
    else:
        try:
            kernels = programs.kernels_of(cell, backend_name, inputs.shape[1:], dtype)
        except Unsupported as error:
            check_values(cell, inputs.shape[1:])
            if backend != "auto":
                raise
            reason, subject = str(error), ""
        else:
            run = partial(autograd.run, kernels, cell, wants_last, key if inputs.dtype == dtype else None)
            if kernels.takes_half:
                return run
    if run is not None:
        return run if inputs.dtype == dtype else partial(_run_in_full, run, dtype, len(cell._hibana.states))
    if backend != "auto":
        raise Unsupported(f"backend {backend!r} can't serve this call: {reason}")
    if subject is not None:
        warn_slow(cell, reason, subject)
    return loop


def _run_reference(cell: Cell, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Runs the reference loop of `cell` over `inputs`; `state` is the initial state, None for rest."""
    if state is None:
        state = cell.initial_state(_one_step(inputs))
    with cached_parametrizations():
        outputs, last = reference.unroll(cell, inputs, state)
    if outputs.shape != inputs.shape:
        raise ValueError(
            f"inputs must be [T, ...], time first, got shape {tuple(inputs.shape)}: of a step of "
            f"{tuple(inputs.shape[1:])} {type(cell).__name__} makes {tuple(outputs.shape[1:])}"
        )
    return outputs, last


def _run_in_full(
    run: Executable, dtype: torch.dtype, states: int, inputs: Tensor, state: State | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """Runs `run`, which takes only `dtype`, over half-precision `inputs`; the last states stay in `dtype`.

    `states` is the number of the cell's states.
    """
    outputs, last = run(inputs.to(dtype), state)
    return outputs.to(inputs.dtype), last if len(last) == states else (*last, outputs[-1].clone())


def record(cell: Cell, inputs: Tensor) -> dict[str, Tensor]:
    """Every state of `cell` at every step of `inputs`, by name, each ``[T, ...]``, for inspection.

    >>> import torch, hibana as hb
    >>> hb.record(hb.IFCell(), torch.full([3, 1], 0.6))["v"].flatten()
    tensor([0.6000, 1.2000, 0.6000])
    """
    if call_context.run_active:
        _refuse_within_a_run("record")
    check_inputs(cell, inputs)
    names = cell.state_names()
    cell = evaluate_parametrizations(cell)
    state = cell.initial_state(_one_step(inputs))
    steps, drawing = [], Drawing(type(cell).__name__)
    for input_ in inputs:
        _, state = reference.unroll(cell, input_[None], state, drawing)
        steps.append(state)
    return {name: torch.stack(values) for name, values in zip(names, zip(*steps, strict=True), strict=True)}


def _key(backend: str, inputs: Tensor, wants_last: bool, has_state: bool = False) -> Hashable:
    """Everything that determines a run of one cell except the values of its tensors.

    `has_state`: whether the run has an initial state.
    """
    needs_gradient = inputs.requires_grad and _is_grad_enabled()
    layout = inputs.shape, inputs.stride(), inputs.dtype, inputs.device
    return backend, *layout, wants_last, has_state, needs_gradient, _get_num_threads()


def _device_mismatch(cell: Cell, inputs: Tensor) -> str:
    """Which tensor of `cell` is on another device than `inputs`; an empty text if none is."""
    for name, tensor in tensors_of(cell).items():
        if tensor.device != inputs.device:
            return f"{name} of {type(cell).__name__} is on {tensor.device}, inputs on {inputs.device}"
    return ""


def _refuse_within_a_run(name: str) -> None:
    """Raises ``ValueError`` for ``hibana.{name}`` within :func:`hibana.run`."""
    if call_context.current_run() is not None:
        raise ValueError(
            f"hibana.{name} was called within hibana.run, which carries the states of layers alone: this one "
            "would be lost; make the cell a layer of the network, hibana.OverTime(cell)"
        )


def _one_step(inputs: Tensor) -> Tensor:
    """The first step of `inputs` in the dtype of the states."""
    return inputs[0].detach().to(reference.state_dtype(inputs.dtype))
