"""A network traced to calls of its layers, batch normalisation folded into the layer before it.

Graphs, NIR and conversions are read from these calls. Folding is for inference, where batch normalisation
is a scale and a shift.
"""

import copy
import re
from collections.abc import Collection
from inspect import signature
from keyword import iskeyword
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from hibana.compiler.torch_layers import role_of, spatial_dims
from hibana.network.layers import is_supported_class
from hibana.nn.blocks import Checkpointed
from hibana.nn.each_step import EachStep
from hibana.nn.over_steps import JoinedNetwork
from hibana.nn.running import Stateful
from hibana.nn.window import Window

__all__ = ["fold_batchnorm", "trace_folded", "layer_name"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def fold_batchnorm(net: NetworkT) -> NetworkT:
    """A copy of `net`, in evaluation, without batch normalisation, and its parametrisations computed.

        y = (x - mean) / sqrt(variance + eps) * weight + bias,   x = W z + b

    is one layer with the weight ``W * weight / sqrt(variance + eps)``; in the place of the normalisation
    stands ``nn.Identity``. Where no linear layer or convolution stands before it, a two-dimensional one
    becomes a convolution of each channel with one weight.

    Raises:
        ValueError: if `net` can't be traced; naming the layer, if one keeps no running statistics, or stands
            where it can't be folded.

    Source: Ioffe & Szegedy (2015), *Batch normalization*, algorithm 2.

    >>> import torch, hibana as hb
    >>> net = nn.Sequential(hb.EachStep(nn.Conv2d(1, 4, 3)), hb.EachStep(nn.BatchNorm2d(4)), hb.IF())
    >>> [type(layer.module).__name__ for layer in hb.fold_batchnorm(net)[:2]]
    ['Conv2d', 'Identity']
    """
    folded: Any = trace_folded(net)[0]
    one_layer = role_of(folded) == "sequence" and role_of(net) != "sequence"
    return cast(NetworkT, folded[0] if one_layer else folded)


def trace_folded(net: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """A copy of `net` as :func:`fold_batchnorm` has it, and the calls of its layers, without those folded.

    :class:`EachStep` and :class:`Checkpointed` are seen through; layers of a known kind are taken
    as they are. ``meta["leading"]`` of a call is the number of dimensions before those of a sample, time and
    batch or both joined, ``meta["within"]`` the path of the module whose ``forward`` calls,
    ``meta["normalised"]`` whether batch normalisation over dimension 1 was folded into the layer, which is
    right only if time and batch are joined when it is called. A network of one layer is put in an
    ``nn.Sequential``. No code is generated, so that layers may have any name.

    Raises:
        ValueError: as :func:`fold_batchnorm`.
    """
    if isinstance(net, JoinedNetwork):
        raise ValueError(  # noqa: TRY004 - a network that can't be traced, like the others here
            f"{type(net).__name__} is called with time and batch joined since hibana.optimize changed it, "
            "which can't be traced; write its forward for [T, batch, ...]"
        )
    folded = _copied(net)
    tracer = _Tracer()
    if isinstance(net, EachStep) or (tracer.is_leaf_module(net, "") and not isinstance(net, nn.DataParallel)):
        folded = nn.Sequential(folded)
    try:
        calls = tracer.trace(folded)
    except Exception as error:  # whatever a forward makes of a value that has no numbers
        *_, (path, kind) = ("", type(net)), *tracer.module_stack.values()
        where, why = f"layer {path!r}: " * bool(path), str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"{where}{kind.__name__}.forward cannot be traced: {why}") from error
    for called in dict.fromkeys(_called(folded, node) for node in calls.nodes):
        if role_of(called) == "batch normalization":
            _fold(folded, calls, called)
    return folded, calls


def _copied(net: nn.Module) -> nn.Module:
    """A copy of `net`, in evaluation, in which weights that are pruned or parametrised are weights."""
    for name, module in net.named_modules():
        if isinstance(module, LazyModuleMixin) and cast(Any, module).has_uninitialized_params():
            raise ValueError(f"layer {name!r}: {type(module).__name__} has no weights yet; call net once")
    computed = {id(v): v.detach() for m in net.modules() for v in vars(m).values() if isinstance(v, Tensor)}
    copied = copy.deepcopy(net, computed).eval()  # which copies no tensor that was computed, as by a mask
    for module in list[Any](copied.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call] # torch leaves it so
        if parametrize.is_parametrized(module):  # torch's own way to end it changes the class of `net` too
            weights = {name: getattr(module, name).detach() for name in module.parametrizations}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, values in weights.items():
                module.register_parameter(name, nn.Parameter(values))
    return copied


def _fold(net: nn.Module, calls: fx.Graph, module: Any) -> None:
    """Folds `module` into the layers before all of its calls, or makes it a convolution."""
    nodes = [node for node in calls.nodes if _called(net, node) is module]
    if module.running_mean is None or module.running_var is None:
        raise ValueError(f"layer {nodes[0].target}: batch normalisation without running statistics")
    for name, number in (("weight", 1), ("bias", 0)):  # None of a normalisation with affine=False
        if getattr(module, name) is None:
            setattr(module, name, nn.Parameter(torch.full_like(module.running_var, number)))
    layers = [_sole_layer(net, calls, node.args[0]) for node in nodes]
    if None not in layers:
        for node, layer in zip(nodes, layers, strict=True):
            node.args[0].meta["normalised"] = not isinstance(layer, Window)
            fuse: Any = fuse_linear_bn_eval if role_of(layer) == "linear" else fuse_conv_bn_eval
            _replace(net, layer, fuse(layer, module))
            node.replace_all_uses_with(node.args[0])
            calls.erase_node(node)
        _replace(net, module, nn.Identity())
    elif spatial_dims(module) == 2:
        _replace(net, module, fuse_conv_bn_eval(_each_channel(module), module))
    else:
        raise ValueError(f"layer {nodes[0].target}: no linear layer or convolution before it to fold it into")


def _sole_layer(net: nn.Module, calls: fx.Graph, node: Any) -> nn.Module | None:
    """The linear layer or convolution that `node` calls, if nothing else uses it or its result."""
    module = _called(net, node)
    has_weights = isinstance(module, Window) or role_of(module) in ("linear", "convolution")
    if not has_weights or len(node.users) != 1:
        return None
    if isinstance(module, Window) and next(iter(node.users)).meta["leading"] != 1:
        return None  # the normalisation would take the samples of a step for channels
    return module if sum(_called(net, other) is module for other in calls.nodes) == 1 else None


def _called(net: nn.Module, node: Any) -> nn.Module | None:
    """The module that `node` calls, if it calls one."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return net.get_submodule(str(node.target)) if is_call else None


def _replace(net: nn.Module, old: nn.Module | None, new: nn.Module) -> None:
    """Puts `new` in the place of `old`, under each name that it has."""
    for name in [name for name, each in net.named_modules(remove_duplicate=False) if each is old]:
        net.set_submodule(name, new)


class _Tracer(fx.Tracer):
    """As :func:`trace_folded` says."""

    leading = 2

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """A name for the first argument of ``forward`` alone: others have their defaults."""
        _, *arguments = signature(root_fn).parameters.values()
        needed = [a.name for a in arguments if a.default is a.empty and a.kind is a.POSITIONAL_OR_KEYWORD]
        if len(needed) > 1:
            raise TypeError(f"it takes a second input, {needed[1]!r}")
        return root_fn, [self.root, self.create_proxy("placeholder", arguments[0].name, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, Stateful) or is_supported_class(m) or _inherits(m)
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(m, EachStep | Checkpointed):
            return super().call_module(m, forward, args, kwargs)
        before, self.leading = self.leading, 1 if isinstance(m, EachStep) else self.leading
        try:
            return m.module(*args, **kwargs)
        finally:
            self.leading = before

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta |= {"leading": self.leading, "within": self.scope.module_path}
        return node


def _inherits(module: nn.Module) -> bool:
    """Whether the class of `module` is one of torch's layers, to which an ``__init__`` was added at most."""
    kind: type = type(module)
    while not kind.__module__.startswith("torch.nn"):
        if any(callable(own) and name != "__init__" for name, own in vars(kind).items()):
            return False
        kind = kind.__bases__[0] if len(kind.__bases__) == 1 else nn.Module
    return kind not in (nn.Module, nn.Sequential)


_RESERVED = frozenset(dir(fx.GraphModule({}, fx.Graph())))
"""Attributes of every traced network, which no layer may replace."""


def layer_name(path: str, taken: Collection[str]) -> str:
    """A name for a layer of an ``fx.GraphModule``, as near to `path` as can be, beside those `taken`.

    torch writes names into code: all but ASCII letters, digits, ``_`` and ``.`` become ``_``.
    """
    parts = re.sub(r"[^A-Za-z0-9_.]", "_", path).split(".")
    parts = [f"{part}_" if iskeyword(part) or part in _RESERVED else part for part in parts]
    name = ".".join(parts) if all(parts) else "_".join(parts) or "_"

    def is_free(name: str) -> bool:
        within = any(other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in taken)
        return name not in taken and not within

    name = name if is_free(name) else name.replace(".", "_")
    while not is_free(name):
        name += "_"
    return name


def _each_channel(module: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that changes nothing."""
    channels = module.num_features
    layer = nn.Conv2d(channels, channels, 1, groups=channels, bias=False).to(module.running_mean)
    nn.init.ones_(layer.weight)
    return layer.eval()
