"""``hb.optimize``: changes a network of plain ``torch.nn`` in place to the layers that run fast over time."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hibana import spikes
from hibana.compiler.torch_layers import WAS
from hibana.nn.deferred import Deferred
from hibana.nn.each_step import EachStep
from hibana.nn.fusing import Planned, Watch, groups
from hibana.nn.over_steps import (
    FUSING,
    OVER_STEPS,
    FlattenOverSteps,
    JoinedNetwork,
    JoinedNeurons,
    OverSteps,
    joined_kind,
    may_be_joined,
)
from hibana.nn.running import Stateful, evaluating
from hibana.runtime.torch_internals import tree_leaves

__all__ = ["Optimized", "optimize"]

_LAYERS: dict[type[nn.Module], Any] = {
    nn.Linear: spikes.Linear,
    nn.Conv1d: spikes.Conv1d,
    **OVER_STEPS,
}
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
    - A batch normalisation followed by a layer of neurons is computed in the neurons' own pass, as
      :class:`hibana.Normalized` does, with the convolution before it: where they are neighbours in an
      ``nn.Sequential``, and, with an `example`, where one takes the other's output in a ``forward`` of your
      own and nothing else does.
    - With an `example`, a network whose ``forward`` is written for images (``torch.flatten(x, 1)``,
      ``torch.cat(..., 1)``), as torchvision's are, is called with time and batch joined, and its neurons with
      ``[T, batch, ...]``.

    Classes change; parameters, buffers, hooks, names in ``state_dict`` and the modules themselves stay.
    Synapses within a step (:class:`hibana.Recurrent`), which are compiled with it, stay as they are.
    Subclasses of torch's layers, and whatever is not known here, are left and named. Outputs and gradients
    are those of the plain network to rounding.

    Args:
        net: any module; changed in place.
        example: an input ``[T, batch, ...]``; the network is called with it a few times, in evaluation,
            before and after, and if the two differ all is undone.
        undo: gives every layer its class of before.
        verbose: prints the table.

    Returns:
        The table.

    Raises:
        RuntimeError: if the network gives something else for `example` than before (means differ by more than
            a twentieth: rounding may flip single spikes); nothing is changed then. What the changed network
            itself raises for the example is raised too.

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
    found = _undone(net)
    if undo:
        pass
    elif example is None:
        _change_layers(net)
        found = _table(net, {})
    else:
        try:
            found = _table(net, _changed_for(net, example))
        except BaseException:
            _undone(net)
            raise
    if verbose:
        print(found)
    return found


def _change_layers(net: nn.Module) -> None:
    each_step = [module for module in net.modules() if isinstance(module, EachStep)]
    within = {id(inner) for each in each_step for inner in each.module.modules()}
    steps = [module for module in net.modules() if isinstance(module, Stateful) and module.holds_step]
    kept = {id(inner) for step in steps for inner in step.modules()}
    for module in net.modules():
        kind = type(module)
        if id(module) in kept:
            continue
        if kind is nn.Sequential and id(module) not in within:
            _change(module, Planned)
        elif kind in _LAYERS:
            _change(module, spikes.adopted(kind) if id(module) in within else _LAYERS[kind])


def _changed_for(net: nn.Module, example: Tensor) -> dict[int, str]:
    """Changes `net`, whose input `example` is; what was found of its modules, by their ids."""
    wanted = _result(net, example)
    if not isinstance(wanted, Exception):
        _change_layers(net)
        return _watched(net, example, wanted)
    if may_be_joined(net, example):
        example = torch.cat([example, example], 1) if example.shape[1] == 1 else example
        _join(net, example)
        wanted = _result(net, example)
        _undone(net)
    _change_layers(net)
    if isinstance(wanted, Exception):
        return _watched(net, example, _called(net, example))
    over_time = _result(net, example)
    if isinstance(over_time, Exception) or any(t.shape[:2] != example.shape[:2] for t in over_time):
        _join(net, example)
    elif not _alike(over_time, wanted):
        raise RuntimeError(
            "net gives one thing for images over time and another for the joined images of all steps, and "
            "which is meant can't be seen; it was changed back. Put the layers of images in hibana.EachStep"
        )
    return _watched(net, example, wanted)


def _watched(net: nn.Module, example: Tensor, wanted: list[Tensor]) -> dict[int, str]:
    """Finds what can be computed in one pass; the network still gives what is `wanted`."""
    watch = Watch(net)
    with watch:
        for found in _called(net, example):
            if type(found) is Deferred:
                found.call.read("the caller")
    if not _alike(_called(net, example), wanted):
        raise RuntimeError(
            "net gives something else for the example after optimize; it was changed back. Try without an "
            "example, or report it"
        )
    return watch.said


def _alike(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether both are the same but for rounding, which flips few spikes."""
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
        return False
    pairs = [(a.double(), b.double()) for a, b in zip(found, wanted, strict=True)]
    if all(torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs):
        return True
    return all(bool((a - b).abs().mean() <= 0.05 * b.abs().mean()) for a, b in pairs)


def _join(net: nn.Module, example: Tensor) -> None:
    """Has `net` be called with steps and batch joined, and its neurons with both."""
    for module in net.modules():
        if isinstance(module, Stateful):
            _change(module, joined_kind(JoinedNeurons, type(module)))
    _change(net, joined_kind(JoinedNetwork, type(net)))
    net.__dict__[_DIMENSIONS] = example.ndim


def _table(net: nn.Module, said: dict[int, str]) -> Optimized:
    said = dict(said)
    for module in net.modules():
        if isinstance(module, Planned) and not isinstance(net, JoinedNetwork):
            for group in groups(list(module._modules.values())):
                said[id(group[-1])] = "with the normalisation before it"
                norm = group[-2].module if isinstance(group[-2], EachStep) else group[-2]
                said[id(norm[-1] if isinstance(norm, nn.Sequential) else norm)] = "in the neurons' pass"
    found = Optimized()
    for name, module in net.named_modules():
        if row := _row(module, said):
            found.rows.append((name or "-", *row))
    return found


_DIMENSIONS = "joined_dimensions"
"""Key, in the ``__dict__`` of a network whose steps are joined, of the dimensions of its input."""


def _change(module: nn.Module, kind: type[nn.Module]) -> None:
    if type(module) is not kind:
        module.__dict__.setdefault(WAS, type(module))
        module.__class__ = kind


def _row(module: nn.Module, found: dict[int, str]) -> tuple[str, str] | None:
    kind, was = type(module), module.__dict__.get(WAS)
    if isinstance(module, JoinedNetwork):
        return _name(was), "called with time and batch joined"
    if kind is Planned:
        return None
    said = [found[id(module)]] if id(module) in found else []
    if isinstance(module, JoinedNeurons):
        return _name(was), ", ".join([*said, "over time"])
    if was is not None:
        said += ["per spike"] if isinstance(module, spikes.Linear | spikes.Conv1d | spikes.Conv2d) else []
        said += ["over time"] if isinstance(module, OverSteps | FlattenOverSteps) else []
        return _name(was), ", ".join(said or ["keeps what is known of spikes"])
    if kind in _LEFT:
        return kind.__name__, f"left: {_LEFT[kind]}"
    bases = [base.__name__ for base in kind.__mro__[1:] if base in _LAYERS]
    if bases and kind.__module__.partition(".")[0] != "hibana":
        return kind.__name__, f"left: a subclass of {bases[0]}"
    return (kind.__name__, ", ".join(said)) if said else None


def _name(kind: type | None) -> str:
    return "" if kind is None else kind.__name__


def _undone(net: nn.Module) -> Optimized:
    found = Optimized()
    for name, module in net.named_modules():
        was = module.__dict__.pop(WAS, None)
        for added in ("_plan", FUSING, _DIMENSIONS):
            module.__dict__.pop(added, None)
        if was is not None:
            for said in ("_reason", "_left", "_refused"):  # what layers per spike remember of calls
                module.__dict__.pop(said, None)
            if was is not nn.Sequential:
                found.rows.append((name or "-", type(module).__name__, was.__name__))
            module.__class__ = was
    return found


def _called(net: nn.Module, example: Tensor) -> list[Tensor]:
    """The tensors that `net` gives in evaluation."""
    cuda = [example.get_device()] if example.is_cuda else []
    with evaluating(net), torch.no_grad(), torch.random.fork_rng(cuda):
        torch.manual_seed(0)  # a step may draw: the same at each call
        return [leaf for leaf in tree_leaves(net(example)) if isinstance(leaf, Tensor)]


def _result(net: nn.Module, example: Tensor) -> list[Tensor] | Exception:
    """The tensors that `net` gives in evaluation, or the exception that it raises."""
    try:
        return _called(net, example)
    except Exception as error:
        return error
