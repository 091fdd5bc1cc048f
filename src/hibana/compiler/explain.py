"""``hb.explain``: the equations, backend and code of a cell, or a table of the layers of a network."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import backend as backends
from hibana.compiler.checks import check_module
from hibana.compiler.equations import REFERENCE, Report, explain_cell
from hibana.compiler.torch_layers import ORIGINAL_CLASS, add_hint


def explain(
    module: nn.Module,
    shape: tuple[int, ...] | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    backend: str = "cpu",
    code: bool = False,
) -> str:
    """Describes how a cell, a layer, or each layer of a network is computed: equations, backend, cost.

    For one cell or layer: the backend and the reason for it, the bits per neuron and step that its backward
    needs, and the equations of a step and of its gradient. For a layer that works per spike: its choice
    between events and the dense product. For a network: a table with one line per layer.

    Args:
        module: a cell, a layer, or a module that contains some.
        shape: the shape of one step of input; by default a shape that the cell's tensors broadcast to. Or the
            inputs ``[T, batch, ...]`` of a network: two calls with them, without gradients, add columns for
            the shapes, the share of values that are not zero, and each layer's share of the second call's
            time. The network's buffers are restored. :func:`hibana.check` looks for NaN, lost gradients
            and the like.
        dtype: the dtype of the input.
        backend: ``"cpu"`` or ``"triton"``.
        code: whether to append the generated code, once per cell.

    Raises:
        TypeError: if `module` is not a module.
        ValueError: if `module` contains no cell and no layer that works per spike, or `backend` is another.

    >>> import torch, hibana as hb
    >>> print(hb.explain(hb.IFCell(detach_reset=True)))  # doctest: +ELLIPSIS
    IFCell   state (v, s), emits s
    backend    cpu: one native kernel forward and one back, on torch's threads
    residuals  1 bit per neuron and step for the backward, nothing for inference
    ...
      v' = (v * (1 - s)) + x
      s' = [(v' - 1) > 0]
    ...
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), hb.IF(), torch.nn.Linear(4, 2), hb.LI())
    >>> print(hb.explain(net, torch.ones(5, 1, 2)))  # doctest: +ELLIPSIS
    read as 5 steps of 1 sample: time is the first axis, the batch the second
    layer  class   input      output     not zero ...
    0      Linear  [5, 1, 2]  [5, 1, 4]  100% -> 100% ...
    1      IF      [5, 1, 4]  [5, 1, 4]  100% -> ...
    """
    check_module(module)
    choices = [name for name in backends.names() if name not in ("auto", "reference")]
    if backend not in choices:
        raise ValueError(f"backend must be one of {', '.join(choices)}; got {backend!r}")
    inputs = shape if isinstance(shape, Tensor) else None
    calls = {} if inputs is None else _record_calls(module, inputs)
    reports = dict(_reports(module, None if isinstance(shape, Tensor) else shape, dtype, backend))
    if not (reports or calls):
        raise ValueError(f"module must hold a cell or an event-driven layer, got {type(module).__name__}")
    if inputs is not None or len(reports) > 1:
        lines = _table(module, reports, calls)
        if inputs is not None:
            lines = [describe_axes(inputs), *lines]
        return "\n".join([*lines, *(_code(reports) if code else [_HINT])]) + "\n"
    ((name, report),) = reports.items()
    text = f"{report.text}\n{report.source}" if code and report.source else report.text
    return f"{name}: {text}" if name else text


_HINT = "hb.explain of one layer has its equations; code=True adds the code"


def _reports(
    module: nn.Module, shape: tuple[int, ...] | None, dtype: torch.dtype, backend: str
) -> Iterator[tuple[str, Report]]:
    """The name of each layer of `module` that has a report, and the report."""
    reported_modules: set[nn.Module] = set()
    labels: set[str] = set()
    for name, part in module.named_modules():
        if part in reported_modules:
            continue
        if isinstance(part, Cell):
            layer, _, last = name.rpartition(".")
            report = explain_cell(part, shape, dtype, backend)
            if REFERENCE not in report.text:
                reported_modules.update(part.modules())
            labels.add(label := layer if last == "cell" and layer not in labels else name)
            yield label, report
        elif callable(step := getattr(part, "step", None)) and isinstance(cell := step(), Cell):
            report, notes = explain_cell(cell, shape, dtype, backend), []
            if REFERENCE in report.text:
                labels.add(name)
                notes = ["each step is called in Python, with the cell alone compiled"]
            else:
                reported_modules.update(part.modules())
            if callable(explain_simulation := getattr(part, "explain_simulation", None)):
                notes += explain_simulation()
            lines = "".join(f"{note}\n" for note in notes)
            yield name, report._replace(runs="; ".join([report.runs, *notes]), text=report.text + lines)
        elif callable(explain_part := getattr(part, "explain", None)):
            yield name, Report(str(explain_part()), f"{explain_part()}\n")


class _Call(NamedTuple):
    """A layer's last call."""

    input: Tensor
    output: Tensor
    seconds: float


def _record_calls(net: nn.Module, inputs: Tensor) -> dict[str, _Call]:
    """The calls of the layers of `net` in the second of two calls with `inputs`, by name, in order.

    Layers inside of another layer are left out. A layer with several calls has the time of all of them.
    """
    calls: dict[str, _Call] = {}
    start_times: dict[str, float] = {}

    def record_start(name: str, *_: Any) -> None:
        """Stores the start time of the call of the layer `name`."""
        start_times[name] = perf_counter()

    def record_end(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Stores the call of the layer `name`, with the time since its start."""
        seconds = perf_counter() - start_times[name]
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            previous_seconds = calls[name].seconds if name in calls else 0.0
            calls[name] = _Call(args[0], output, previous_seconds + seconds)

    def add_hooks(name: str, module: nn.Module) -> None:
        """Adds both hooks to a layer `module`; calls itself for each child of any other module."""
        children = list(module.named_children())
        if not children or hasattr(module, "explain") or any(isinstance(part, Cell) for _, part in children):
            hooks.callback(module.register_forward_pre_hook(partial(record_start, name)).remove)
            hooks.callback(module.register_forward_hook(partial(record_end, name)).remove)
            return
        for child, part in children:
            add_hooks(f"{name}.{child}".removeprefix("."), part)

    with ExitStack() as hooks, torch.no_grad(), preserve_state(net, inputs):
        add_hooks("", net)
        try:
            net(inputs)  # compiles
        except (RuntimeError, ValueError) as error:
            add_hint(net, error)
            raise
        calls.clear()
        net(inputs)
    return calls


@contextmanager
def preserve_state(net: nn.Module, inputs: Tensor) -> Iterator[None]:
    """A context that restores the buffers of `net` and the random generator of the device of `inputs`."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        with torch.random.fork_rng([inputs.get_device()] if inputs.is_cuda else []):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(buffers[name])


def describe_axes(inputs: Tensor) -> str:
    """A sentence with the numbers of steps and samples in `inputs`."""
    steps, batch = (*inputs.shape, 1, 1)[:2]  # a missing dimension counts as 1
    samples = f"{batch} sample{'s' * (batch != 1)}"
    return (
        f"read as {steps} step{'s' * (steps != 1)} of {samples}: time is the first axis, the batch the second"
    )


def _table(net: nn.Module, reports: dict[str, Report], calls: dict[str, _Call]) -> list[str]:
    """The lines of a table of the layers of `net` that have a report or were called."""
    call_columns = ["input", "output", "not zero", "time"] if calls else []
    columns = ["layer", "class", *call_columns, "keeps", "gradient", "runs"]
    seconds = sum(call.seconds for call in calls.values())
    rows = [columns]
    for name, module in net.named_modules():
        report, call = reports.get(name), calls.get(name)
        if report is None and call is None:
            continue
        original = vars(module).get(ORIGINAL_CLASS)
        row = [name or "-", f"{original.__name__}, optimized" if original else type(module).__name__]
        if call is not None:
            share = f"{_share(call.input)} -> {_share(call.output)}"
            time = f"{call.seconds / seconds:.0%}"
            row += [str([*call.input.shape]), str([*call.output.shape]), share, time]
        elif calls:
            row += ["", "", "", ""]
        row += ["", "", "torch"] if report is None else [report.keeps, report.gradient, report.runs]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _share(values: Tensor) -> str:
    """The share of `values` that are not zero, as text."""
    return f"{values.count_nonzero() / max(1, values.numel()):.0%}"


def _code(reports: dict[str, Report]) -> Iterator[str]:
    """The equations and the code of each cell, once, under the names of its layers."""
    layers: dict[str, list[str]] = {}
    for name, report in reports.items():
        if report.source:
            layers.setdefault(f"{report.text}\n{report.source}", []).append(name)
    for text, names in layers.items():
        yield f"\n{', '.join(names)}: {text}"
