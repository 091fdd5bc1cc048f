"""``hb.optimize``: changes a network of plain ``torch.nn`` in place to the layers that run fast over time.

It walks over the modules rather than over a graph of calls: a class changes whatever calls the module.
"""

import itertools
from typing import TypeVar

import torch
from torch import Tensor, nn

from hibana import spikes
from hibana.compiler.torch_layers import ORIGINAL_CLASS, role_of
from hibana.nn.each_step import EachStep
from hibana.nn.normalized import NormalizingSequential, is_normalized
from hibana.nn.over_steps import (
    OVER_STEPS,
    EagerNetwork,
    FlattenOverSteps,
    JoinedNetwork,
    JoinedNeurons,
    OverSteps,
    joined_kind,
    may_be_joined,
)
from hibana.nn.running import Stateful, evaluating
from hibana.runtime.torch_internals import tree_leaves
from hibana.spikes.adopt import EVENT_CLASSES

__all__ = ["optimize", "table"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_LAYERS = {kind: ours for kind, ours in EVENT_CLASSES.items() if ours in (spikes.Linear, spikes.Conv1d)}
_LAYERS |= OVER_STEPS
_LEFT = {
    "BatchNorm1d": "takes axis 1 for features, also over time: wrap it in hibana.EachStep",
    "Conv3d": "a window over three dimensions is torch's",
}
"""Layers that stay, and why."""


def optimize(
    net: NetworkT, example: Tensor | None = None, *, undo: bool = False, verbose: bool = True
) -> NetworkT:
    """Changes the layers of `net` in place to those that run fast over time, and returns `net`.

    - ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d`` become layers that add weights per spike
      (:class:`hibana.Linear`, :class:`hibana.Conv2d`).
    - Layers of images (``Conv2d``, ``BatchNorm2d``, ``MaxPool2d``, ``AvgPool2d``, ``Flatten()``, ...) take
      ``[T, batch, channels, height, width]`` themselves; no :class:`hibana.EachStep` is needed around them.
    - A batch normalization directly followed by neurons in an ``nn.Sequential`` is computed as
      :class:`hibana.Normalized` does: in the neurons' pass, in inference.
    - With an `example`, a network whose ``forward`` is written for images (``torch.flatten(x, 1)``,
      ``torch.cat(..., 1)``), as torchvision's are, is called with time and batch joined, and its neurons with
      ``[T, batch, ...]``.

    Classes change; parameters, buffers, hooks, names in ``state_dict`` and the modules themselves stay.
    Synapses within a step (:class:`hibana.Recurrent`), which are compiled with it, stay as they are.
    Subclasses of torch's layers and unknown layers are left and named. Outputs and gradients equal those of
    the plain network up to rounding.

    Args:
        net: any module; changed in place.
        example: an input ``[T, batch, ...]``; the network is called with it a few times, in evaluation,
            before and after, and if the results differ, all changes are undone.
        undo: gives every layer its previous class back, and changes nothing else.
        verbose: prints a table of the layers that were changed, and of those that were left and why;
            :func:`hibana.explain` has the changed classes too.

    Returns:
        `net` itself.

    Raises:
        RuntimeError: if the network gives something else for `example` than before (means differ by more than
            a twentieth: rounding may flip single spikes); nothing is changed then. What the changed network
            itself raises for the example is raised too.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), hb.IF())
    >>> net = hb.optimize(net)
    layer  was          is
    0      Conv2d       per spike, over time
    1      BatchNorm2d  over time, in the neurons' pass in inference
    >>> net(torch.rand(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 8, 8])
    """
    _undo(net)
    if undo:
        return net
    if example is None:
        _change_layers(net)
    else:
        try:
            _change_for(net, example)
        except BaseException:
            _undo(net)
            raise
    if ORIGINAL_CLASS not in net.__dict__ and any(
        ORIGINAL_CLASS in module.__dict__ for module in net.modules()
    ):
        _change(net, joined_kind(EagerNetwork, type(net)))
    if verbose:
        print(table(net))
    return net


def table(net: nn.Module) -> str:
    """A row for each layer of `net` that :func:`optimize` changed, or left for a reason."""
    pass_of = set[nn.Module]()
    for module in net.modules():
        if isinstance(module, NormalizingSequential):
            pairs = itertools.pairwise(module)
            pass_of |= {part for pair in pairs if is_normalized(*pair) for part in pair[0].modules()}
    rows = [("layer", "was", "is")]
    for name, module in net.named_modules():
        if row := _row(module, module in pass_of):
            rows.append((name or "-", *row))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows)


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
            _change(module, NormalizingSequential)
        elif kind in _LAYERS:
            _change(module, (EVENT_CLASSES if id(module) in within else _LAYERS).get(kind, kind))


def _change_for(net: nn.Module, example: Tensor) -> None:
    """Changes the layers of `net`, whose input `example` is, and checks that its result stays the same."""
    expected = _result(net, example)
    if not isinstance(expected, Exception):
        _change_layers(net)
        _check_same(net, example, expected)
        return
    if may_be_joined(net, example):
        example = torch.cat([example, example], 1) if example.shape[1] == 1 else example
        _join(net, example)
        expected = _result(net, example)
        _undo(net)
    _change_layers(net)
    if isinstance(expected, Exception):
        _called(net, example)  # raises what the changed network raises
        return
    over_time = _result(net, example)
    if isinstance(over_time, Exception) or any(t.shape[:2] != example.shape[:2] for t in over_time):
        _join(net, example)
    elif not _alike(over_time, expected):
        raise RuntimeError(
            "net gives one result for images over time and another for the joined images of all steps, and "
            "hibana can't tell which is meant; it was changed back. Put the layers of images in "
            "hibana.EachStep"
        )
    _check_same(net, example, expected)


def _check_same(net: nn.Module, example: Tensor, expected: list[Tensor]) -> None:
    if not _alike(_called(net, example), expected):
        raise RuntimeError(
            "net gives something else for the example after optimize; it was changed back. Try without an "
            "example, or report it"
        )


def _alike(outputs: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether both are the same but for rounding, which flips few spikes."""
    if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in expected]:
        return False
    pairs = [(a.double(), b.double()) for a, b in zip(outputs, expected, strict=True)]
    if all(torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs):
        return True
    return all(bool((a - b).abs().mean() <= 0.05 * b.abs().mean()) for a, b in pairs)


def _join(net: nn.Module, example: Tensor) -> None:
    """Makes `net` be called with steps and batch joined, and its neurons with both."""
    for module in net.modules():
        if isinstance(module, Stateful):
            _change(module, joined_kind(JoinedNeurons, type(module)))
    _change(net, joined_kind(JoinedNetwork, type(net)))
    net.__dict__[_DIMENSIONS] = example.ndim


_DIMENSIONS = "joined_dimensions"
"""Key, in the ``__dict__`` of a network whose steps are joined, of the dimensions of its input."""


def _change(module: nn.Module, kind: type[nn.Module]) -> None:
    if type(module) is not kind:
        module.__dict__.setdefault(ORIGINAL_CLASS, type(module))
        module.__class__ = kind


def _row(module: nn.Module, in_pass: bool) -> tuple[str, str] | None:
    """The class before and the change of a layer; None if there is nothing to report."""
    kind, was = type(module), module.__dict__.get(ORIGINAL_CLASS)
    if isinstance(module, JoinedNetwork):
        return _name(was), "called with time and batch joined"
    if kind is NormalizingSequential or isinstance(module, EagerNetwork):
        return None
    normalizes = (
        ["in the neurons' pass in inference"] if in_pass and role_of(module) == "batch normalization" else []
    )
    if was is not None:
        changes = ["per spike"] if isinstance(module, spikes.Linear | spikes.Conv1d | spikes.Conv2d) else []
        over_time = isinstance(module, OverSteps | FlattenOverSteps | JoinedNeurons)
        changes += (["over time"] if over_time else []) + normalizes
        return _name(was), ", ".join(changes or ["passes spikes on as bits"])
    if kind.__name__ in _LEFT and kind.__module__.startswith("torch.nn.") and not normalizes:
        return kind.__name__, f"left: {_LEFT[kind.__name__]}"
    bases = [base.__name__ for base in kind.__mro__[1:] if base in _LAYERS]
    if bases and kind.__module__.partition(".")[0] != "hibana":
        return kind.__name__, f"left: a subclass of {bases[0]}"
    return (kind.__name__, normalizes[0]) if normalizes else None


def _name(kind: type | None) -> str:
    return "" if kind is None else kind.__name__


def _undo(net: nn.Module) -> None:
    for module in net.modules():
        was = module.__dict__.pop(ORIGINAL_CLASS, None)
        module.__dict__.pop(_DIMENSIONS, None)
        if was is not None:
            for noted in (
                "_reason",
                "_small_call",
                "_refused",
            ):  # by layers per spike, about their last calls
                module.__dict__.pop(noted, None)
            module.__class__ = was


def _called(net: nn.Module, example: Tensor) -> list[Tensor]:
    """The tensors that `net` returns in evaluation."""
    cuda = [example.get_device()] if example.is_cuda else []
    with evaluating(net), torch.no_grad(), torch.random.fork_rng(cuda):
        torch.manual_seed(0)  # a step may draw: the same at each call
        return [leaf for leaf in tree_leaves(net(example)) if isinstance(leaf, Tensor)]


def _result(net: nn.Module, example: Tensor) -> list[Tensor] | Exception:
    """The tensors that `net` returns in evaluation, or the exception that it raises."""
    try:
        return _called(net, example)
    except Exception as error:
        return error
