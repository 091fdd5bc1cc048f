"""Runs a cell over time: :func:`unroll` checks its arguments once and picks a backend."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from hibana.cells import Cell
from hibana.cells.surrogate import forwards
from hibana.compiler import ambient, autograd, backends, one_step, programs, reference
from hibana.compiler.backend import names, of_device, refusal
from hibana.compiler.checks import SlowPathWarning, check_batch, check_inputs, checked_state, said_once
from hibana.compiler.draws import Drawing
from hibana.compiler.explain import explain
from hibana.compiler.first_call import NetworkWarning, check_first_call, check_neighbours
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.producer import Producer
from hibana.compiler.spiking import emits_spikes
from hibana.compiler.strides import repeated
from hibana.compiler.tensors import computed_once, computing_once, tensors_of

__all__ = [
    "NetworkWarning",
    "SlowPathWarning",
    "State",
    "ambient",
    "backends",
    "check_backend",
    "check_batch",
    "emits_spikes",
    "emitted",
    "emitted_around",
    "explain",
    "is_watched",
    "one_step",
    "record",
    "unroll",
    "unrolled",
    "unrolled_whole",
]

State = tuple[Tensor, ...]
_Runner = Callable[[Tensor, State | None], tuple[Tensor, Sequence[Tensor]]]

# what each call of a layer asks, under names that take one look to find: they are a tenth of a small call
_get_num_threads, _is_grad_enabled = torch.get_num_threads, torch.is_grad_enabled
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_modes, _jit_trace = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_transform = torch._C._functorch.peek_interpreter_stack


class _Operators(torch._ops._OpNamespace):
    """``torch.ops.hibana``, whose operators are there when first asked for.

    A program of ``torch.export`` is loaded wherever hibana is imported, and to register an operator takes
    twenty times as long as to import all of hibana.
    """

    __module__ = torch._ops._OpNamespace.__module__  # by which operators are pickled

    def __getattr__(self, name: str) -> Any:
        from hibana.compiler import operator  # noqa: F401 - its import registers them

        return super().__getattr__(name)


torch.ops.hibana = _Operators("hibana")  # type: ignore[attr-defined] # any name is one of a namespace


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
    if ambient.active:
        _refuse_within_a_run("unroll")
    return unrolled(cell, inputs, state, backend=backend)


def unrolled(
    cell: Cell, inputs: Tensor, state: State | None = None, *, backend: str = "auto"
) -> tuple[Tensor, State]:
    """:func:`unroll` for the layers, whose states a run may carry."""
    one = state is not None and isinstance(cell, Cell) and type(inputs) is Tensor and not is_watched(inputs)
    one = one and inputs.ndim > 1 and inputs.shape[0] == 1
    ready = None
    if one:
        assert state is not None
        ready = one_step.prepared(cell, backend, inputs.shape)
        fits = ready is not None and ready.reads(inputs) and ready.goes_on(state)
        if ready and fits and not (_is_grad_enabled() and any(t.requires_grad for t in (inputs, *state))):
            return ready(inputs, state)
    outputs, last = emitted(cell, inputs, state, backend=backend)
    if one and ready is None and (spec := programs.known(cell, _call(backend, inputs, True, True))):
        one_step.prepare(cell, backend, spec)
    if len(last) < len(cell._hibana.states):
        last = (
            *last,
            outputs.select(0, -1).clone(),
        )  # a view would keep, and change with, the whole sequence
    return outputs, tuple(last)


def unrolled_whole(
    cell: Cell, inputs: Tensor, state: State | None, *, backend: str
) -> tuple[Tensor, State] | None:
    """:func:`unrolled`, or None where only the reference loop would serve, of which nothing is said then."""
    check_inputs(cell, inputs)
    chosen = of_device(inputs.device.type) if backend == "auto" else backend
    try:
        return None if backend == "reference" else unrolled(cell, inputs, state, backend=chosen)
    except Unsupported:
        return None


def emitted(
    cell: Cell, inputs: Tensor, state: State | None = None, *, backend: str = "auto", of_a_layer: bool = False
) -> tuple[Tensor, Sequence[Tensor]]:
    """As :func:`unroll`, but the last of the states may be missing: it is the last of what was emitted.

    Of a layer, whose inputs are ``[T, batch, ...]``, the state that it ends in may be missing altogether.
    """
    ends = not of_a_layer
    if isinstance(cell, Cell) and not is_watched(inputs):
        # nothing but what is in the key, and an attribute of the cell, can make another call of this one
        spec = programs.known(cell, _call(backend, inputs, ends, state is not None))
        if spec is not None and not inputs.is_neg() and (state is None or _is_plain(cell, inputs, state)):
            return autograd.go(spec, inputs, (*(state or ()), *tensors_of(cell).values()))
    check_inputs(cell, inputs)
    cell = computed_once(cell)
    if of_a_layer:
        check_batch(inputs)
    if not _is_traced(inputs):
        if of_a_layer:
            check_neighbours(cell, inputs)
        inputs = inputs.resolve_neg()  # kernels read memory, where such a view has the other sign
    dtype = reference.carried(inputs.dtype)
    if state is not None:
        state = checked_state(cell, inputs, state)
    served = _serving(cell, inputs, dtype, backend, ends, state is None)
    if state is None and (served is None or not cell.rests_at_zero()):
        state = cell.initial_state(_one_step(inputs))
    if served is not None:
        outputs, last = served(inputs, state)
    else:
        assert state is not None
        with computing_once():
            outputs, last = reference.unroll(cell, inputs, state)
        if outputs.shape != inputs.shape:
            raise ValueError(
                f"inputs must be [T, ...], time first, got shape {tuple(inputs.shape)}: of a step of "
                f"{tuple(inputs.shape[1:])} {type(cell).__name__} makes {tuple(outputs.shape[1:])}"
            )
    if inputs.requires_grad and _is_grad_enabled() and not is_watched(inputs):
        check_first_call(
            cell, inputs, outputs, of_device(inputs.device.type) if backend == "auto" else backend
        )
    return outputs, last


def emitted_around(
    cell: Cell,
    around: Callable[..., Cell],
    tensors: tuple[Tensor, ...],
    inputs: Tensor,
    producer: Producer | None = None,
    steps: int = 0,
) -> Tensor:
    """What ``around(cell, *tensors)`` emits over the inputs of a layer, on the CPU; remembered by `cell`.

    A `producer` has yet to compute the inputs. With `steps`, they are one step's, and the same at so many.

    Raises:
        Unsupported: if there is no kernel for it.
    """
    learning = tuple([tensor.requires_grad for tensor in tensors])
    call = around, steps, learning, _call("cpu", inputs, False)
    own = (*tensors, *tensors_of(cell).values())
    if not is_watched(inputs) and not inputs.is_neg():
        known = programs.known(cell, call)
        if known is not None:
            spec, places = known
            given = tuple([own[i] for i in places])
            if producer is None:
                return autograd.go(spec, inputs, given)[0]
            if not (_is_grad_enabled() and any(tensor.requires_grad for tensor in (inputs, *given))):
                return autograd.go_over(spec, producer, inputs, given)
    if producer is not None:
        producer.finish()
    made = around(cell, *tensors)
    inputs = repeated(inputs, steps) if steps else inputs
    outputs, _ = emitted(made, inputs, backend="cpu", of_a_layer=True)
    if programs.is_plain(cell) and made.rests_at_zero() and not is_watched(inputs):
        program = programs.program(made, "cpu", inputs.shape[1:], inputs.dtype)
        spec = autograd.specified(program, inputs, False, alone=False)
        if spec is not None:
            place = {id(tensor): i for i, tensor in enumerate(own)}
            spec = spec._replace(once=steps > 0, deep=True)
            programs.attach(cell, call, (spec, [place[id(t)] for t in tensors_of(made).values()]))
    return outputs


def _serving(
    cell: Cell, inputs: Tensor, dtype: torch.dtype, backend: str, ends: bool, at_rest: bool
) -> _Runner | None:
    """What runs `cell` over `inputs`, remembered if it is from rest; None is the reference loop.

    Raises:
        Unsupported: if a backend was asked for by name that can't serve.
    """
    if backend == "reference":
        return None
    check_backend(backend)
    named = backend != "auto"
    chosen = backend if named else of_device(inputs.device.type)
    reason = _elsewhere(cell, inputs)
    said = bool(reason)  # torch says it too
    if reason:
        pass
    elif _is_traced(inputs):
        from hibana.compiler import operator

        found = operator.serving(cell, inputs, dtype, chosen, not named)
        if not isinstance(found, str):
            return partial(_carried, found, dtype, len(cell._hibana.states))
        reason, said = found, True
    elif torch._C._get_tracing_state() is not None:
        reason, said = "torch.jit.trace writes down PyTorch's own operations; so does convert.export", True
    elif forwards():
        reason = "transforms of torch.func and forward-mode derivatives are the loop's"
    else:
        reason = refusal(chosen, inputs.device.type)
        if reason and not named:
            said_once("every cell", reason)  # and not again for each kind of cell
            said = True
    if reason:
        if named:
            raise Unsupported(f"backend {backend!r} can't serve this call: {reason}")
        if not said:
            said_once(type(cell).__name__, reason)
        return None
    try:
        made = programs.program(cell, chosen, inputs.shape[1:], dtype)
    except Unsupported as refused:
        if named:
            raise
        said_once(type(cell).__name__, str(refused))
        return None
    if inputs.dtype == dtype and programs.is_plain(cell) and (cell.rests_at_zero() or not at_rest):
        begun = 0 if at_rest else len(cell._hibana.states)
        spec = autograd.specified(made, inputs, ends, begun, alone=not tensors_of(cell))
        if spec is not None:
            programs.attach(cell, _call(backend, inputs, ends, not at_rest), spec)
    run: _Runner = partial(autograd.run, made, cell, ends)
    return (
        run
        if made.kernels.takes_half or inputs.dtype == dtype
        else partial(_carried, run, dtype, len(cell._hibana.states))
    )


def check_backend(backend: str) -> None:
    """Raises ``ValueError`` if there is no backend of that name."""
    if backend not in names():
        raise ValueError(f"backend must be one of {', '.join(names())}; got {backend!r}")


def _call(backend: str, inputs: Tensor, ends: bool, goes_on: bool = False) -> Hashable:
    """All that a run of one cell, from rest or from a state, depends on but the numbers it is given."""
    learns = inputs.requires_grad and _is_grad_enabled()
    shape, strides = inputs.shape, inputs.stride()
    return backend, shape, strides, inputs.dtype, inputs.device, ends, goes_on, learns, _get_num_threads()


def _is_plain(cell: Cell, inputs: Tensor, state: State) -> bool:
    """Whether `state` is one that :func:`checked_state` would return as it is."""
    if type(state) is not tuple or len(state) != len(cell._hibana.states):
        return False
    shape, dtype, device = inputs.shape[1:], inputs.dtype, inputs.device
    for value in state:
        if type(value) is not Tensor or value.shape != shape:
            return False
        if value.dtype != dtype or value.device != device:
            return False
    return True


def _elsewhere(cell: Cell, inputs: Tensor) -> str:
    """Which device a tensor of `cell` is on, if it is not that of `inputs`."""
    for name, tensor in tensors_of(cell).items():
        if tensor.device != inputs.device:
            return f"{name} of {type(cell).__name__} is on {tensor.device}, inputs on {inputs.device}"
    return ""


def _carried(
    run: _Runner, dtype: torch.dtype, states: int, inputs: Tensor, state: State | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """`run`, which takes `dtype` alone, over `inputs` that may be of half precision."""
    if inputs.dtype == dtype:
        return run(inputs, state)
    outputs, last = run(inputs.to(dtype), state)
    return outputs.to(inputs.dtype), last if len(last) == states else (*last, outputs[-1].clone())


def _is_traced(inputs: Tensor) -> bool:
    """Whether a call on `inputs` is being written down rather than run."""
    return (
        torch.compiler.is_dynamo_compiling()
        or type(inputs) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
    )


def is_watched(inputs: Tensor) -> bool:
    """Whether more than autograd looks at a call on `inputs`: all of the above at once, at less cost."""
    return (
        _is_dynamo_compiling()
        or (type(inputs) is not Tensor and type(inputs) is not Parameter)
        or _modes() > 0
        or forward_ad._current_level >= 0
        or _transform() is not None
        or _jit_trace() is not None
    )


def record(cell: Cell, inputs: Tensor) -> dict[str, Tensor]:
    """Every state of `cell` at every step of `inputs`, by name, each ``[T, ...]``: for looking at.

    >>> import torch, hibana as hb
    >>> hb.record(hb.IFCell(), torch.full([3, 1], 0.6))["v"].flatten()
    tensor([0.6000, 1.2000, 0.6000])
    """
    if ambient.active:
        _refuse_within_a_run("record")
    check_inputs(cell, inputs)
    names = cell.state_names()
    cell = computed_once(cell)
    state = cell.initial_state(_one_step(inputs))
    steps, drawing = [], Drawing(type(cell).__name__)
    for input_ in inputs:
        _, state = reference.unroll(cell, input_[None], state, drawing)
        steps.append(state)
    return {name: torch.stack(values) for name, values in zip(names, zip(*steps, strict=True), strict=True)}


def _refuse_within_a_run(name: str) -> None:
    if ambient.current() is not None:
        raise ValueError(
            f"hibana.{name} was called within hibana.run, which carries the states of layers alone: this one "
            "would be lost; make the cell a layer of the network, hibana.OverTime(cell)"
        )


def _one_step(inputs: Tensor) -> Tensor:
    return inputs[0].detach().to(reference.carried(inputs.dtype))
