"""``hb.explain``: a table by layer of what a network is compiled to, and a cell's equations and code."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.torch_layers import ORIGINAL_CLASS, add_hint, faster_layers, layer_list

if TYPE_CHECKING:
    from hibana.compiler.equations import Report

__all__ = ["explain", "preserve_state", "describe_axes"]


def explain(
    module: nn.Module,
    shape: tuple[int, ...] | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    backend: str = "cpu",
    code: bool = False,
) -> str:
    """What becomes of a cell, a layer, or each layer of a network: equations, backend, cost.

    Of one cell or layer: the backend that serves it and why, what its backward keeps in bits per neuron and
    step, and the equations of a step and of its gradient as they were traced. Of a layer that works per
    spike: how it chose between events and the dense product. Of a network: a table with one line a layer.

    Args:
        module: a cell, a layer, or any module that holds some.
        shape: of one step of input; only tensors per neuron make it matter, and by default it is theirs.
            Or the inputs ``[T, batch, ...]`` of a network: it is then called with them twice, without a
            gradient and leaving its buffers as they were, and the table also has the shapes, how many values
            are not zero, each layer's share of the time of the second call, layer by layer, and what ran;
            below it stands which layers were silent, where NaN or infinity is, and which layers
            :func:`hibana.optimize` would make faster.
        dtype: of the input.
        backend: ``"cpu"`` or ``"triton"``.
        code: whether the generated code follows, of each cell of a network once.

    Raises:
        ValueError: if there is nothing of hibana's in `module`.

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
    inputs = shape if isinstance(shape, Tensor) else None
    calls = {} if inputs is None else _called(module, inputs)
    reports = dict(_reports(module, None if isinstance(shape, Tensor) else shape, dtype, backend))
    if not (reports or calls):
        raise ValueError(f"module must hold a cell or an event-driven layer, got {type(module).__name__}")
    if inputs is not None or len(reports) > 1:
        lines = _table(module, reports, calls)
        if inputs is not None:
            lines = [describe_axes(inputs), *lines, *_remarks(inputs, calls), *_faster(module, calls)]
        return "\n".join([*lines, *(_code(reports) if code else [_HINT])]) + "\n"
    ((name, report),) = reports.items()
    text = f"{report.text}\n{report.source}" if code and report.source else report.text
    return f"{name}: {text}" if name else text


_HINT = "hb.explain of one layer has its equations; code=True adds the code"


def _reports(
    module: nn.Module, shape: tuple[int, ...] | None, dtype: torch.dtype, backend: str
) -> "Iterator[tuple[str, Report]]":
    """The report on each part of `module` that has one, by the name of the layer."""
    from hibana.compiler.equations import REFERENCE, Report, explain_cell

    described: set[nn.Module] = set()
    named: set[str] = set()
    for name, part in module.named_modules():
        if part in described:
            continue
        if isinstance(part, Cell):
            layer, _, last = name.rpartition(".")
            report = explain_cell(part, shape, dtype, backend)
            if REFERENCE not in report.text:
                described.update(part.modules())
            named.add(called := layer if last == "cell" and layer not in named else name)
            yield called, report
        elif callable(step := getattr(part, "step", None)) and isinstance(whole := step(), Cell):
            report = explain_cell(whole, shape, dtype, backend)
            if REFERENCE in report.text:
                named.add(name)
                how = "each step is called in Python, with the cell alone compiled"
                yield name, report._replace(runs=f"{report.runs}; {how}", text=f"{report.text}{how}\n")
            else:
                described.update(part.modules())
                yield name, report
        elif callable(own := getattr(part, "explain", None)):
            yield name, Report(str(own()), f"{own()}\n")


class _Call(NamedTuple):
    """A layer's last call."""

    input: Tensor
    output: Tensor
    seconds: float


def _called(net: nn.Module, inputs: Tensor) -> dict[str, _Call]:
    """The layers of `net` that a call with `inputs` comes to, by name, in order, without those in another."""
    found: dict[str, _Call] = {}

    begun: dict[str, float] = {}

    def beginning(name: str) -> Any:
        def begin(*_: Any) -> None:
            begun[name] = perf_counter()

        return begin

    def noting(name: str) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            taken = perf_counter() - begun[name]
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                before = found[name].seconds if name in found else 0.0
                found[name] = _Call(args[0], output, before + taken)

        return note

    def watch(name: str, module: nn.Module) -> None:
        inner = list(module.named_children())
        if not inner or hasattr(module, "explain") or any(isinstance(part, Cell) for _, part in inner):
            hooks.callback(module.register_forward_pre_hook(beginning(name)).remove)
            hooks.callback(module.register_forward_hook(noting(name)).remove)
            return
        for child, part in inner:
            watch(f"{name}.{child}".removeprefix("."), part)

    with ExitStack() as hooks, torch.no_grad(), preserve_state(net, inputs):
        watch("", net)
        try:
            net(inputs)  # compiles
        except (RuntimeError, ValueError) as error:
            add_hint(net, error)
            raise
        found.clear()
        net(inputs)
    return found


@contextmanager
def preserve_state(net: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Restores the buffers of `net` and the random generator of the device of `inputs`."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        with torch.random.fork_rng([inputs.get_device()] if inputs.is_cuda else []):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(buffers[name])


def describe_axes(inputs: Tensor) -> str:
    """How many steps and samples hibana reads in `inputs`."""
    steps, batch = (*inputs.shape, 1, 1)[:2]
    of = f"{batch} sample{'s' * (batch != 1)}"
    return f"read as {steps} step{'s' * (steps != 1)} of {of}: time is the first axis, the batch the second"


def _table(net: nn.Module, reports: "dict[str, Report]", calls: dict[str, _Call]) -> list[str]:
    """A line for each layer of `net` that has a report or was called."""
    measured = ["input", "output", "not zero", "time"] * bool(calls)
    columns = ["layer", "class", *measured, "keeps", "gradient", "runs"]
    seconds = sum(call.seconds for call in calls.values())
    rows = [columns]
    for name, module in net.named_modules():
        report, call = reports.get(name), calls.get(name)
        if report is None and call is None:
            continue
        was = vars(module).get(ORIGINAL_CLASS)
        row = [name or "-", f"{was.__name__}, optimized" if was else type(module).__name__]
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
    return f"{values.count_nonzero() / max(1, values.numel()):.0%}"


def _remarks(inputs: Tensor, calls: dict[str, _Call]) -> Iterator[str]:
    """Signs of a mistake in a call with `inputs`: NaN and infinity, and layers without a spike."""
    if not inputs.isfinite().all():
        first = int((~inputs.isfinite()).flatten(1).any(1).nonzero()[0])
        yield f"the inputs hold NaN or infinity, first at step {first}, counted from 0"
    for name, (given, made, _) in calls.items():
        spikes = bool(((made == 0) | (made == 1)).all())
        if not spikes and not made.isfinite().all():
            from_finite = " from finite numbers" if given.isfinite().all() else ""
            yield f"layer {name!r} gives NaN or infinity{from_finite}"
        elif spikes and not given.isfinite().all() and given.ndim > 2:
            bad = (~given.isfinite()).flatten(2).any(0).count_nonzero()
            yield f"layer {name!r}: {bad} of {_neurons(given)} were given NaN or infinity and are silent"
        elif spikes and made.numel() and not made.any():
            yield f"layer {name!r} is silent: none of {_neurons(made)} spiked"


def _faster(net: nn.Module, calls: dict[str, _Call]) -> Iterator[str]:
    """Which layers have a faster form, and their share of the time of a call."""
    layers = faster_layers(net)
    if layers:
        seconds = sum(call.seconds for call in calls.values())
        inside = [name for name in calls if any(f"{o}.".startswith(f"{name}.") or not name for o in layers)]
        share = sum(calls[name].seconds for name in inside) / seconds
        yield f"hb.optimize(net, x) would make {layer_list(layers)} faster, {share:.0%} of the time here"


def _neurons(over_time: Tensor) -> str:
    return f"{over_time[0].numel()} neurons of all samples"


def _code(reports: "dict[str, Report]") -> Iterator[str]:
    """The equations and the code of each cell, once, under the names of the layers that have it."""
    named: dict[str, list[str]] = {}
    for name, report in reports.items():
        if report.source:
            named.setdefault(f"{report.text}\n{report.source}", []).append(name)
    for text, names in named.items():
        yield f"\n{', '.join(names)}: {text}"
