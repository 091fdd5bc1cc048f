"""``hb.optimize``: changes a network of plain ``torch.nn`` in place to the layers that run fast over time."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hibana import spikes
from hibana.compiler.leaf import is_name
from hibana.nn.blocks import ThresholdBatchNorm2d
from hibana.nn.each_step import EachStep
from hibana.nn.layers import OverTime
from hibana.nn.normalized import Normalized, ends_in_norm
from hibana.nn.over_steps import OVER_STEPS, BatchNorm2dOverSteps, FlattenOverSteps, OverSteps

__all__ = ["Optimized", "optimize"]

_LAYERS: dict[type[nn.Module], Any] = {
    nn.Linear: spikes.Linear,
    nn.Conv1d: spikes.Conv1d,
    **OVER_STEPS,
}
_NORMS = (BatchNorm2dOverSteps, ThresholdBatchNorm2d)
_LEFT = {
    nn.BatchNorm1d: "takes axis 1 for features, also over time: wrap it in hibana.EachStep",
    nn.Conv3d: "a window over three dimensions is torch's",
}
"""Layers that stay, and why."""


@dataclass
class Optimized:
    """What :func:`optimize` did to a network; its text is a table, a row a layer."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, class before, and what became of it or why it was left."""

    def __str__(self) -> str:
        head = ("layer", "was", "is")
        widths = [max(len(row[i]) for row in (head, *self.rows)) for i in (0, 1)]
        lines = (f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in (head, *self.rows))
        return "\n".join(lines)


def optimize(
    net: nn.Module, example: Tensor | None = None, *, undo: bool = False, verbose: bool = True
) -> Optimized:
    """Changes the layers of `net` in place to those that run fast over time, and prints what it did.

    - ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d`` become layers that add weights per spike
      (:class:`hibana.Linear`, :class:`hibana.Conv2d`).
    - Layers of images (``Conv2d``, ``BatchNorm2d``, ``MaxPool2d``, ``AvgPool2d``, ``Flatten()``, ...) take
      ``[T, batch, channels, height, width]`` themselves; no :class:`hibana.EachStep` is needed around them.
    - In an ``nn.Sequential``, a batch normalisation followed by a layer of neurons is computed in the
      neurons' own pass, as :class:`hibana.Normalized` does, with the convolution before it.

    Classes change; parameters, buffers, hooks, names in ``state_dict`` and the modules themselves stay.
    Subclasses of torch's layers, and whatever is not known here, are left and named. Outputs and gradients
    are those of the plain network to rounding.

    Args:
        net: any module; changed in place.
        example: an input ``[T, batch, ...]``; the network is called with it once, in evaluation, before and
            after, and if the two differ by more than rounding all is undone.
        undo: gives every layer its class of before.
        verbose: prints the table.

    Returns:
        The table.

    Raises:
        RuntimeError: if the network gives something else for `example` than before; nothing is changed then.
            What the changed network itself raises for the example is raised too.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), hb.IF())
    >>> print(hb.optimize(net, verbose=False))
    layer  was          is
    0      Conv2d       per spike, over time
    1      BatchNorm2d  in the neurons' pass, over time
    2      IF           with the normalisation before it
    >>> net(torch.rand(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 8, 8])
    """
    if undo:
        found = _undone(net)
    else:
        before = None if example is None else _before(net, example)
        found = _optimized(net)
        if example is not None:
            _compare(net, example, before)
    if verbose:
        print(found)
    return found


def _optimized(net: nn.Module) -> Optimized:
    each_step = [module for module in net.modules() if isinstance(module, EachStep)]
    within = {id(inner) for each in each_step for inner in each.module.modules()}
    for module in net.modules():
        kind = type(module)
        if kind is nn.Sequential and id(module) not in within:
            _change(module, Planned)
        elif kind in _LAYERS:
            _change(module, spikes.adopted(kind) if id(module) in within else _LAYERS[kind])
    fused: dict[int, str] = {}
    for module in net.modules():
        if isinstance(module, Planned):
            for group in _groups(list(module._modules.values())):
                fused[id(group[-1])] = "with the normalisation before it"
                norm = group[-2].module if isinstance(group[-2], EachStep) else group[-2]
                fused[id(norm[-1] if isinstance(norm, nn.Sequential) else norm)] = "in the neurons' pass"
    found = Optimized()
    for name, module in net.named_modules():
        if row := _row(module, fused):
            found.rows.append((name, *row))
    return found


_WAS = "_hibana_was"
"""Of a module's ``__dict__``: its class before."""


def _change(module: nn.Module, kind: type[nn.Module]) -> None:
    if type(module) is not kind:
        module.__dict__[_WAS] = type(module)
        module.__class__ = kind


def _row(module: nn.Module, fused: dict[int, str]) -> tuple[str, str] | None:
    kind, was = type(module), module.__dict__.get(_WAS)
    if kind is Planned:
        return None
    said = [fused[id(module)]] if id(module) in fused else []
    if was is not None:
        said += ["per spike"] if isinstance(module, spikes.Linear | spikes.Conv1d | spikes.Conv2d) else []
        said += ["over time"] if isinstance(module, OverSteps | FlattenOverSteps) else []
        return was.__name__, ", ".join(said or ["keeps what is known of spikes"])
    if kind in _LEFT:
        return kind.__name__, f"left: {_LEFT[kind]}"
    bases = [base.__name__ for base in kind.__mro__[1:] if base in _LAYERS]
    if bases and kind.__module__.partition(".")[0] != "hibana":
        return kind.__name__, f"left: a subclass of {bases[0]}"
    return (kind.__name__, ", ".join(said)) if said else None


def _undone(net: nn.Module) -> Optimized:
    found = Optimized()
    for name, module in net.named_modules():
        was = module.__dict__.pop(_WAS, None)
        module.__dict__.pop("_plan", None)
        if was is not None:
            if was is not nn.Sequential:
                found.rows.append((name, type(module).__name__, was.__name__))
            module.__class__ = was
    return found


def _groups(modules: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Neighbours that are computed in one pass.

    A convolution if there is one, its normalisation, and neurons; or an EachStep that ends in a
    normalisation, and neurons.
    """
    for place, (norm, neurons) in enumerate(itertools.pairwise(modules)):
        if not isinstance(neurons, OverTime):
            continue
        if type(norm) in _NORMS:
            before = modules[max(0, place - 1) : place]
            yield (*(m for m in before if type(m) is OVER_STEPS[nn.Conv2d]), norm, neurons)
        elif isinstance(norm, EachStep) and ends_in_norm(norm):
            yield norm, neurons


class Planned(nn.Sequential):
    """``nn.Sequential``, of whose modules those that can be are computed in one pass."""

    def forward(self, input: Any) -> Any:  # noqa: A002 - torch.nn.Sequential's name for it
        if torch.compiler.is_compiling() or is_name(input):
            return super().forward(input)  # type: ignore[no-untyped-call] # torch leaves it so
        for call, modules in self._calls():
            if len(modules) == 1:
                input = modules[0](input)  # noqa: A001
            elif call is None or (input.ndim != 5 and not isinstance(modules[0], EachStep)):
                for module in modules:  # images without time, one after the other
                    input = module(input)  # noqa: A001
            else:
                call[0].training = self.training
                input = call(input)  # noqa: A001
        return input

    def _calls(self) -> list[tuple[Normalized | None, tuple[Any, ...]]]:
        """The modules, alone or in groups, and of a group what computes it in one pass."""
        modules = list(self._modules.values())
        known = self.__dict__.get("_plan")
        if known is None or known[0] != modules:
            calls: list[tuple[Normalized | None, tuple[Any, ...]]] = []
            groups = {id(group[0]): group for group in _groups(modules)}
            place = 0
            while place < len(modules):
                group = groups.get(id(modules[place]), (modules[place],))
                calls.append((_in_one(group) if len(group) > 1 else None, group))
                place += len(group)
            known = self.__dict__["_plan"] = modules, calls
        found: list[tuple[Normalized | None, tuple[Any, ...]]] = known[1]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}


def _in_one(group: tuple[Any, ...]) -> Normalized:
    each = group[0] if isinstance(group[0], EachStep) else EachStep(nn.Sequential(*group[:-1]))
    return Normalized(each, group[-1])


def _called(net: nn.Module, example: Tensor) -> Any:
    """What `net` gives in evaluation."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            return net(example)
    finally:
        for module, mode in modes:
            module.training = mode


def _before(net: nn.Module, example: Tensor) -> Any:
    """What `net` gives as it is; None if it takes no such input, as plain layers of images given time."""
    try:
        return _called(net, example)
    except (RuntimeError, ValueError):
        return None


def _compare(net: nn.Module, example: Tensor, before: Any) -> None:
    try:
        after = _called(net, example)
    except Exception:
        _undone(net)
        raise
    if not isinstance(before, Tensor):
        return
    same = isinstance(after, Tensor) and after.shape == before.shape
    if not (same and torch.allclose(after, before, rtol=1e-3, atol=1e-4)):
        _undone(net)
        raise RuntimeError(
            "net gives something else for the example after optimize; it was changed back. Spikes may differ "
            "where a potential comes within rounding of its threshold: try without an example, or report it"
        )
