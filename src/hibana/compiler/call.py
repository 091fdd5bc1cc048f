"""A call of a cell over a sequence: what runs it, found once and remembered by the cell.

A call is read here from top to bottom: :func:`run_cell` looks for an earlier call like it in the cache
(:mod:`hibana.compiler.programs`), else checks its arguments and asks :func:`_executable` for what runs it.
How a compiled run computes is in :mod:`hibana.compiler.autograd`.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.cells.surrogate import in_forward_mode
from hibana.compiler import autograd, call_context, programs, reference
from hibana.compiler.backend import check_backend, of_device, refusal
from hibana.compiler.call_context import is_traced, is_traced_or_transformed
from hibana.compiler.checks import check_batch, check_inputs, checked_state, warn_slow
from hibana.compiler.draws import Drawing
from hibana.compiler.gradient_warning import warn_without_derivative
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.tensors import cached_parametrizations, evaluate_parametrizations, tensors_of
from hibana.runtime import torch_internals

__all__ = [
    "State",
    "run_cell",
    "run_wrapped_cell",
    "record",
    "unroll",
    "unroll_layer",
    "unroll_compiled",
]

State = tuple[Tensor, ...]
Executable = Callable[[Tensor, State | None], tuple[Tensor, Sequence[Tensor]]]
"""From inputs and initial states, None for zeros, to the outputs and last states; of these the last may be
missing, which is the last of the outputs."""

# looked up once: they are a tenth of a small call
_get_num_threads, _is_grad_enabled = torch.get_num_threads, torch.is_grad_enabled


def unroll(
    cell: Cell, inputs: Tensor, state: State | None = None, *, backend: str = "auto"
) -> tuple[Tensor, State]:
    """Runs `cell` over a sequence.

    Args:
        cell: one step, ``forward(input_, *state) -> state``.
        inputs: ``[T, ...]``, time first, floating point.
        state: where to go on from, one tensor of shape ``inputs.shape[1:]`` for each state of the
            cell; at rest if ``None``.
        backend: ``"auto"`` picks the fastest that serves this cell: ``"cpu"`` or, for inputs on CUDA,
            ``"triton"``; else the reference loop. A backend asked for by name either serves or raises.

    Returns:
        What the cell emitted, ``[T, ...]``, and the state it ended in.

    Raises:
        TypeError: if `inputs` is not a floating-point tensor, or `cell` not a cell.
        ValueError: if a shape, a device or the backend's name is wrong, or a run would lose the state:
            within :func:`hibana.run`, in a module that is no layer.

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
    """:func:`unroll` for the layers, whose states a run may carry."""
    outputs, last = run_cell(cell, inputs, state, backend=backend)
    if len(last) < len(cell._hibana.states):
        # a view would keep all steps alive, and change when they do
        last = (*last, outputs.select(0, -1).clone())
    return outputs, tuple(last)


def unroll_compiled(
    cell: Cell, inputs: Tensor, state: State | None, *, backend: str
) -> tuple[Tensor, State] | None:
    """:func:`unroll_layer`, or None, without a warning, where only the reference loop would serve."""
    check_inputs(cell, inputs)
    chosen = of_device(inputs.device.type) if backend == "auto" else backend
    try:
        return None if backend == "reference" else unroll_layer(cell, inputs, state, backend=chosen)
    except Unsupported:
        return None


def run_cell(
    cell: Cell, inputs: Tensor, state: State | None = None, *, backend: str = "auto", is_layer: bool = False
) -> tuple[Tensor, Sequence[Tensor]]:
    """As :func:`unroll`, but the last of the states may be missing: it is the last of what was emitted.

    Of a layer, whose inputs are ``[T, batch, ...]``, the state that it ends in may be missing altogether.
    """
    if not torch_internals.DYNAMO_COMPILES_CELLS and torch.compiler.is_dynamo_compiling():
        return torch_2_12_compiles_layers(cell, inputs, state, backend, is_layer)  # type: ignore[no-any-return]
    ends, watched = not is_layer, is_traced_or_transformed(inputs)
    key: Hashable | None = None
    if isinstance(cell, Cell) and not watched and not inputs.is_neg():
        # key and attributes of the cell determine a call; setting an attribute clears what it remembers
        key = _key(backend, inputs, ends, state is not None)
        spec = programs.known(cell, key)
        if spec is not None and spec.prepared is not None:
            return autograd.go_prepared(spec, inputs)
        if spec is not None:
            begun = () if state is None else checked_state(cell, inputs, state)
            return autograd.go(spec, inputs, (*begun, *tensors_of(cell).values()))
    check_inputs(cell, inputs)
    full = reference.state_dtype(inputs.dtype)
    if inputs.dtype != full and inputs.is_cpu and torch.is_autocast_enabled("cpu"):
        # as torch's float32 operations do, so that the layer above gets spikes that it can add weights for
        return run_cell(cell, inputs.to(full), state, backend=backend, is_layer=is_layer)
    cell = evaluate_parametrizations(cell)
    if is_layer:
        check_batch(inputs)
    if not is_traced(inputs):
        inputs = inputs.resolve_neg()  # kernels read memory, where such a view has the other sign
    if state is not None:
        state = checked_state(cell, inputs, state)
    elif not cell.rests_at_zero():
        state, key = cell.initial_state(_one_step(inputs)), None
    outputs, last = _executable(cell, inputs, backend, ends, key)(inputs, state)
    if inputs.requires_grad and _is_grad_enabled() and not watched:
        warn_without_derivative(cell, outputs)
    return outputs, last


@torch_internals.disable_dynamo  # type: ignore[untyped-decorator] # an alias without a type
def torch_2_12_compiles_layers(
    cell: Cell, inputs: Tensor, state: State | None, backend: str, is_layer: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """Break the graph of an older torch's ``torch.compile`` and run the layer eagerly.

    With ``fullgraph=True`` Dynamo's error shows the name of this function.
    """
    return run_cell(cell, inputs, state, backend=backend, is_layer=is_layer)


def _executable(cell: Cell, inputs: Tensor, backend: str, ends: bool, key: Hashable | None) -> Executable:
    """What runs `cell` over `inputs`: an operator of a graph, a compiled program, or the reference loop.

    A compiled run is remembered by the cell under `key`, if there is one.

    Raises:
        Unsupported: if a backend was asked for by name that can't serve.
    """
    loop = partial(_run_reference, cell)
    if backend == "reference":
        return loop
    check_backend(backend)
    device, dtype = inputs.device.type, reference.state_dtype(inputs.dtype)
    chosen = of_device(device) if backend == "auto" else backend
    run: Executable | None = None
    warned: str | None = None  # cells that a warning names, "" this one; None if torch or the tracer warns
    if reason := _elsewhere(cell, inputs):
        pass
    elif is_traced(inputs):
        from hibana.compiler import operator

        run, reason = operator.executable(cell, inputs, dtype, chosen, backend == "auto")
    elif torch_internals.jit_trace() is not None:
        reason = "torch.jit.trace writes down PyTorch's own operations; so does convert.export"
    elif in_forward_mode():
        reason = "transforms of torch.func and forward-mode derivatives are the loop's"
        warned = type(cell).__name__
    elif reason := refusal(chosen, device):
        warned = "every cell"  # and not again for each kind of cell
    else:
        try:
            program = programs.program(cell, chosen, inputs.shape[1:], dtype)
        except Unsupported as refused:
            if backend != "auto":
                raise
            reason, warned = str(refused), ""
        else:
            run = partial(autograd.run, program, cell, ends, key if inputs.dtype == dtype else None)
            if program.kernels.takes_half:
                return run
    if run is not None:
        return run if inputs.dtype == dtype else partial(_run_in_full, run, dtype, len(cell._hibana.states))
    if backend != "auto":
        raise Unsupported(f"backend {backend!r} can't serve this call: {reason}")
    if warned is not None:
        warn_slow(cell, reason, warned)
    return loop


def _run_reference(cell: Cell, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
    """The reference loop of `cell` over `inputs`."""
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
    """`run`, which takes `dtype` alone, over `inputs` of half precision; the last states stay in `dtype`."""
    outputs, last = run(inputs.to(dtype), state)
    return outputs.to(inputs.dtype), last if len(last) == states else (*last, outputs[-1].clone())


def run_wrapped_cell(
    cell: Cell, around: Callable[..., Cell], tensors: tuple[Tensor, ...], inputs: Tensor
) -> Tensor:
    """What the cell ``around(cell, *tensors)`` emits over `inputs`, ``[T, ...]``, from rest, on the CPU.

    The compiled run is kept with `cell`. The outputs' bits are attached to them, without a gradient too.

    Raises:
        Unsupported: if there is no kernel for it.
    """
    key = around, _key("cpu", inputs, False)
    own = (*tensors, *tensors_of(cell).values())
    if (known := programs.known(cell, key)) is not None:
        spec, places = known
        return autograd.go(spec, inputs, tuple([own[i] for i in places]))[0]
    made = around(cell, *tensors)
    outputs, _ = run_cell(made, inputs, backend="cpu", is_layer=True)
    if made.rests_at_zero():
        program = programs.program(made, "cpu", inputs.shape[1:], inputs.dtype)
        spec = autograd.specified(program, inputs, False)
        if spec is not None:
            place = {id(tensor): i for i, tensor in enumerate(own)}
            places = [place[id(tensor)] for tensor in tensors_of(made).values()]
            programs.attach(cell, key, (spec._replace(deep=True), places))
    return outputs


def record(cell: Cell, inputs: Tensor) -> dict[str, Tensor]:
    """Every state of `cell` at every step of `inputs`, by name, each ``[T, ...]``: for looking at.

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


def _key(backend: str, inputs: Tensor, ends: bool, goes_on: bool = False) -> Hashable:
    """All that a run of one cell, from rest or from a state, depends on but the numbers it is given."""
    learns = inputs.requires_grad and _is_grad_enabled()
    shape, strides = inputs.shape, inputs.stride()
    return backend, shape, strides, inputs.dtype, inputs.device, ends, goes_on, learns, _get_num_threads()


def _elsewhere(cell: Cell, inputs: Tensor) -> str:
    """Which device a tensor of `cell` is on, if it is not that of `inputs`."""
    for name, tensor in tensors_of(cell).items():
        if tensor.device != inputs.device:
            return f"{name} of {type(cell).__name__} is on {tensor.device}, inputs on {inputs.device}"
    return ""


def _refuse_within_a_run(name: str) -> None:
    if call_context.current_run() is not None:
        raise ValueError(
            f"hibana.{name} was called within hibana.run, which carries the states of layers alone: this one "
            "would be lost; make the cell a layer of the network, hibana.OverTime(cell)"
        )


def _one_step(inputs: Tensor) -> Tensor:
    return inputs[0].detach().to(reference.state_dtype(inputs.dtype))
