"""``hb.optimize``: replaces the classes of ``torch.nn`` layers by classes that are fast over time, in place.

It visits modules rather than a graph of calls, because a class applies to every call of a module.
"""

from typing import TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from hibana import spikes
from hibana.compiler.torch_layers import ORIGINAL_CLASS
from hibana.nn.each_step import EachStep
from hibana.nn.over_steps import (
    FOR_SEQUENCES,
    OVER_STEPS,
    EagerNetwork,
    JoinedNetwork,
    JoinedNeurons,
    OverSteps,
    joined_kind,
    may_be_joined,
)
from hibana.nn.running import Stateful, evaluating
from hibana.nn.sparse_linear import SparseLinear
from hibana.runtime import torch_internals
from hibana.spikes.adopt import EVENT_CLASSES

__all__ = ["optimize", "table"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)

MAX_DENSITY = 0.05
"""Largest fraction of weights that are not zero at which a sparse layer replaces a linear layer."""
_REPLACED = "_hibana_replaced"
"""Key in the ``__dict__`` of a sparse layer: the linear layer that it replaces."""
_LAYERS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: spikes.Linear, **OVER_STEPS}
"""Replacements in a network that gets time from them."""
_UNCHANGED = {
    "BatchNorm1d": "takes axis 1 for features, and the network takes the example as it is",
    "Conv3d": "a window over three dimensions is torch's",
}
"""Layers that keep their class, with the reason."""
_AMBIGUOUS = nn.BatchNorm1d, nn.Flatten
"""Layers that take inputs with and without time with the same number of dimensions."""
_OF_IMAGES = tuple(kind for kind in OVER_STEPS if kind.__name__.endswith("2d"))


def optimize(
    net: NetworkT, example: Tensor | None = None, *, undo: bool = False, verbose: bool = True
) -> NetworkT:
    """Changes the layers of `net` in place to those that run fast over time, and returns `net`.

    - ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d`` become layers that add weights per spike
      (:class:`hibana.Linear`, :class:`hibana.Conv2d`).
    - Layers of images (``Conv2d``, ``BatchNorm2d``, ``MaxPool2d``, ``AvgPool2d``, ``Flatten()``, ...) take
      ``[T, batch, channels, height, width]`` themselves, and layers of sequences (``Conv1d``, ``MaxPool1d``,
      ...) ``[T, batch, channels, length]``; no :class:`hibana.EachStep` is needed around them.
      ``BatchNorm1d`` and ``Flatten()`` take ``[T, batch, features]`` too.
    - With an `example`, a network whose ``forward`` is written for images (``torch.flatten(x, 1)``,
      ``torch.cat(..., 1)``), such as those of torchvision, gets time and batch joined, and its neurons get
      ``[T, batch, ...]``.
    - A pruned linear layer, with at most 5% of its weights not zero, becomes a :class:`hibana.SparseLinear`
      in a network without gradients (``net.eval().requires_grad_(False)``), where no optimizer can lose its
      parameters. Its ``state_dict`` then has the entries of the sparse layer.

    In all other layers classes change; parameters, buffers, hooks, names in ``state_dict`` and the module
    objects stay. Synapses within a step (:class:`hibana.Recurrent`) do not change, because they are compiled
    with the step. Unknown layers and subclasses of torch's layers do not change either; the table lists the
    latter. Outputs and gradients equal those of the plain network up to rounding.

    Args:
        net: any module; changed in place.
        example: an input ``[T, batch, ...]``; the network is called with it a few times, in evaluation,
            before and after. If the results differ, all changes are undone. If the network returns
            ``[T, batch, ...]`` without changes, because it joins time and batch itself or with
            :class:`hibana.EachStep`, all layers keep the axes that they have in ``torch.nn``.
        undo: restores the previous class of every layer, and changes nothing else.
        verbose: prints a table of the changed layers, and of unchanged layers with the reason;
            :func:`hibana.explain` lists the changed classes too.

    Returns:
        `net` itself.

    Raises:
        RuntimeError: if the output for `example` differs from that before (means by more than 5%, because
            rounding may flip single spikes); nothing is changed then. An exception that the changed network
            raises for the example is raised too.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), hb.IF())
    >>> net = hb.optimize(net)
    layer  was          is
    0      Conv2d       per spike, over time
    1      BatchNorm2d  over time
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
    """A table of the layers of `net` that :func:`optimize` changed, or did not change for a reason."""
    rows = [("layer", "was", "is")]
    wrapped = {
        inner for module in net.modules() if isinstance(module, EachStep) for inner in module.modules()
    }
    for name, module in net.named_modules():
        if row := _row(module, module in wrapped):
            rows.append((name or "-", *row))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def _change_layers(net: nn.Module, *, add_time: bool = True) -> None:
    """Changes the classes of all layers of `net`, except those within the step of another layer.

    With `add_time`, also layers outside of :class:`EachStep` whose input may have time or not, with the same
    number of dimensions, take it with time.
    """
    wrappers = [module for module in net.modules() if isinstance(module, EachStep)]
    ids_in_wrappers = {id(submodule) for wrapper in wrappers for submodule in wrapper.module.modules()}
    layers = [module for module in net.modules() if isinstance(module, Stateful) and module.holds_step]
    ids_in_layers = {id(submodule) for layer in layers for submodule in layer.modules()}
    _replace_pruned(net, ids_in_layers)
    takes_images = any(isinstance(module, _OF_IMAGES) for module in net.modules())
    is_over_time = any(isinstance(module, Stateful) for module in net.modules())
    over_steps = _LAYERS | FOR_SEQUENCES if add_time and is_over_time and not takes_images else _LAYERS
    for module in net.modules():
        kind = type(module)
        if id(module) not in ids_in_layers and kind in _LAYERS:
            has_time = id(module) not in ids_in_wrappers and (add_time or kind not in _AMBIGUOUS)
            _change(module, (over_steps if has_time else EVENT_CLASSES).get(kind, kind))


def _replace_pruned(net: nn.Module, excluded: set[int]) -> None:
    """Replaces pruned linear layers of `net` by sparse layers, except modules with an id in `excluded`."""
    replacements: dict[nn.Module, SparseLinear] = {}
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if module not in replacements:
            if not name or id(module) in excluded or not _is_pruned(module):
                continue
            replacements[module] = SparseLinear.from_linear(module).eval().requires_grad_(False)
            replacements[module].__dict__[_REPLACED] = module
        net.set_submodule(name, replacements[module])


def _is_pruned(module: nn.Module) -> bool:
    """Whether `module` is a linear layer for inference on the CPU with few weights that are not zero."""
    if type(module) not in (nn.Linear, spikes.Linear) or module.training:
        return False
    hooks = torch_internals.forward_pre_hooks_of(module)
    if torch_internals.has_forward_hooks(module) or not all(
        isinstance(hook, prune.BasePruningMethod) for hook in hooks
    ):
        return False
    for hook in hooks:
        hook(module, ())  # sets the weight to the product of the original weight with its mask
    weight = cast(Tensor, module.weight)
    is_trained = any(parameter.requires_grad for parameter in module.parameters())
    return not is_trained and weight.is_cpu and int(weight.count_nonzero()) <= MAX_DENSITY * weight.numel()


def _change_for(net: nn.Module, example: Tensor) -> None:
    """Changes the layers of `net`, and checks that its outputs for the input `example` stay the same."""
    expected = _result(net, example)
    if not isinstance(expected, Exception):
        if not _has_time(expected, example):
            _change_layers(net)
            if _has_time(_result(net, example), example):
                return
            _undo(net)
        _change_layers(net, add_time=False)
        _check_same(net, example, expected)
        return
    if may_be_joined(net, example):
        example = torch.cat([example, example], 1) if example.shape[1] == 1 else example
        _join(net, example)
        expected = _result(net, example)
        _undo(net)
    _change_layers(net)
    if isinstance(expected, Exception):
        _outputs(net, example)  # raises the exception of the changed network
        return
    over_time = _result(net, example)
    if not _has_time(over_time, example):
        _join(net, example)
    elif not _is_close(over_time, expected):
        raise RuntimeError(
            "net gives one result for images over time and another for the joined images of all steps, and "
            "hibana can't tell which is meant; it was changed back. Put the layers of images in "
            "hibana.EachStep"
        )
    _check_same(net, example, expected)


def _has_time(outputs: list[Tensor] | Exception, example: Tensor) -> TypeGuard[list[Tensor]]:
    """Whether `outputs` are tensors ``[T, batch, ...]`` with the sizes of the `example`."""
    if isinstance(outputs, Exception):
        return False
    return all(tensor.shape[:2] == example.shape[:2] for tensor in outputs)


def _check_same(net: nn.Module, example: Tensor, expected: list[Tensor]) -> None:
    """Raises RuntimeError unless the outputs of `net` for `example` are close to `expected`."""
    if not _is_close(_outputs(net, example), expected):
        raise RuntimeError(
            "net gives something else for the example after optimize; it was changed back. Try without an "
            "example, or report it"
        )


def _is_close(outputs: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether both differ by rounding at most, which may flip a few spikes."""
    if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in expected]:
        return False
    pairs = [(a.double(), b.double()) for a, b in zip(outputs, expected, strict=True)]
    if all(torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs):
        return True
    return all(bool((a - b).abs().mean() <= 0.05 * b.abs().mean()) for a, b in pairs)


def _join(net: nn.Module, example: Tensor) -> None:
    """Changes `net` to run with steps and batch joined, and its neurons with ``[T, batch, ...]``."""
    for module in net.modules():
        if isinstance(module, Stateful):
            _change(module, joined_kind(JoinedNeurons, type(module)))
    _change(net, joined_kind(JoinedNetwork, type(net)))
    net.__dict__[_DIMENSIONS] = example.ndim


_DIMENSIONS = "joined_dimensions"
"""Key in the ``__dict__`` of a network with joined steps: the number of dimensions of its input."""


def _change(module: nn.Module, kind: type[nn.Module]) -> None:
    """Sets the class of `module`, and remembers its first class."""
    if type(module) is not kind:
        module.__dict__.setdefault(ORIGINAL_CLASS, type(module))
        module.__class__ = kind


def _row(module: nn.Module, is_wrapped: bool) -> tuple[str, str] | None:
    """The original class of a layer and how it was changed, for the table; None for a layer without a row.

    `is_wrapped`: whether the layer is inside an :class:`EachStep`.
    """
    kind, was = type(module), module.__dict__.get(ORIGINAL_CLASS)
    if (linear := module.__dict__.get(_REPLACED)) is not None:
        synapses = cast(SparseLinear, module).targets.numel()
        return _name(type(linear)), f"sparse, {synapses:,} of {linear.weight.numel():,} weights"
    if isinstance(module, JoinedNetwork):
        return _name(was), "called with time and batch joined"
    if isinstance(module, EagerNetwork):
        return None
    if was is not None:
        changes = ["per spike"] if isinstance(module, spikes.Linear | spikes.Conv1d | spikes.Conv2d) else []
        over_time = isinstance(module, OverSteps | JoinedNeurons)
        changes += ["over time"] if over_time else []
        return _name(was), ", ".join(changes or ["passes on where spikes need their gradient"])
    if not is_wrapped and kind.__name__ in _UNCHANGED and kind.__module__.startswith("torch.nn."):
        return kind.__name__, f"left: {_UNCHANGED[kind.__name__]}"
    bases = [base.__name__ for base in kind.__mro__[1:] if base in _LAYERS]
    if bases and kind.__module__.partition(".")[0] != "hibana":
        return kind.__name__, f"left: a subclass of {bases[0]}"
    return None


def _name(kind: type | None) -> str:
    """The name of a class, or an empty string for None."""
    return "" if kind is None else kind.__name__


def _undo(net: nn.Module) -> None:
    """Restores the first class of all modules of `net`, and the linear layers that were replaced."""
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if (linear := module.__dict__.get(_REPLACED)) is not None:
            net.set_submodule(name, linear)
    for module in net.modules():
        was = module.__dict__.pop(ORIGINAL_CLASS, None)
        module.__dict__.pop(_DIMENSIONS, None)
        if was is not None:
            for key in ("_reason", "_refused"):  # reports of event layers on their last calls
                module.__dict__.pop(key, None)
            module.__class__ = was


def _outputs(net: nn.Module, example: Tensor) -> list[Tensor]:
    """The tensors that `net` returns for `example` in evaluation."""
    cuda = [example.get_device()] if example.is_cuda else []
    with evaluating(net), torch.no_grad(), torch.random.fork_rng(cuda):
        torch.manual_seed(0)  # random steps draw the same numbers in each call
        return [leaf for leaf in torch_internals.tree_leaves(net(example)) if isinstance(leaf, Tensor)]


def _result(net: nn.Module, example: Tensor) -> list[Tensor] | Exception:
    """The tensors that `net` returns for `example` in evaluation, or the exception that it raises."""
    try:
        return _outputs(net, example)
    except Exception as error:
        return error
