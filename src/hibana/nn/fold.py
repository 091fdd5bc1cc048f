"""A network traced to calls of its layers, and batch normalisation folded into the layer before it.

For inference, where batch normalisation is a scale and a shift.
"""

import copy
import unicodedata
from collections.abc import Collection
from functools import cache
from keyword import iskeyword
from typing import Any, TypeVar, cast

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from hibana import spikes as events
from hibana.nn.blocks import Checkpointed
from hibana.nn.each_step import EachStep
from hibana.nn.running import Stateful
from hibana.nn.window import Window

__all__ = ["fold_batchnorm", "fold_calls", "is_writable", "layer_name", "traced_calls", "traced_layers"]

Normalised = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | Window


NetworkT = TypeVar("NetworkT", bound=nn.Module)


def fold_batchnorm(net: NetworkT) -> NetworkT:
    """A copy of `net`, in evaluation, without batch normalisation.

        y = (x - mean) / sqrt(variance + eps) * weight + bias,   x = W z + b

    is one layer with the weight ``W * weight / sqrt(variance + eps)``; in the place of the normalisation
    stands ``nn.Identity``. Where no linear layer or convolution stands before it, a two-dimensional one
    becomes a convolution of each channel with one weight. Of a traced ``fx.GraphModule`` its calls are taken
    out too.

    Raises:
        ValueError: if `net` can't be traced; naming the layer, if one keeps no running statistics, or stands
            where it can't be folded.

    Source: Ioffe & Szegedy (2015), *Batch normalization*, algorithm 2.

    >>> import torch, hibana as hb
    >>> net = nn.Sequential(hb.EachStep(nn.Conv2d(1, 4, 3)), hb.EachStep(nn.BatchNorm2d(4)), hb.IF())
    >>> [type(layer.module).__name__ for layer in hb.fold_batchnorm(net)[:2]]
    ['Conv2d', 'Identity']
    """
    folded = copy.deepcopy(net).eval()
    if isinstance(folded, fx.GraphModule):
        fold_calls(folded, folded.graph, erase=True)
        folded.recompile()
    else:
        fold_calls(folded, traced_layers(folded))
    return folded


def fold_calls(net: nn.Module, graph: fx.Graph, *, erase: bool = False) -> None:
    """Folds batch normalisation in `net` itself, whose calls are `graph`; with `erase` in that too."""
    for node in list(graph.nodes):
        module = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, Normalised):
            continue
        if module.running_mean is None or module.running_var is None:
            raise ValueError(f"layer {node.target}: batch normalisation without running statistics")
        before = node.args[0]
        inner = _sole_layer(net, graph, before)
        if inner is not None:
            net.set_submodule(str(before.target), _fused(inner, module))
            if erase:
                node.replace_all_uses_with(before)
                graph.erase_node(node)
            else:
                net.set_submodule(str(node.target), nn.Identity())
        elif isinstance(module, nn.BatchNorm2d):
            net.set_submodule(str(node.target), fuse_conv_bn_eval(_each_channel(module), module))
        else:
            raise ValueError(f"layer {node.target}: no linear layer or convolution before it to fold it into")


class _Tracer(fx.Tracer):
    """Sees through :class:`EachStep` and :class:`Checkpointed`, and takes `leaves` as they are."""

    def __init__(self, leaves: set[type[nn.Module]]) -> None:
        super().__init__()
        self.leaves, self.leading = leaves, 2

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, Stateful) or type(m) in self.leaves or _inherits(m)
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
        node.meta["leading"] = self.leading
        return node


def _inherits(module: nn.Module) -> bool:
    """Whether the class of `module` is one of torch's layers, to which an ``__init__`` was added at most."""
    kind: type = type(module)
    while not kind.__module__.startswith("torch.nn"):
        if any(callable(own) and name != "__init__" for name, own in vars(kind).items()):
            return False
        kind = kind.__bases__[0] if len(kind.__bases__) == 1 else nn.Module
    return kind not in (nn.Module, nn.Sequential)


_OURS = {events.Conv1d, events.Conv2d, events.Flatten, events.Linear, events.MaxPool2d}


def traced_layers(net: nn.Module, *leaves: type[nn.Module]) -> fx.Graph:
    """The calls of `net`'s layers, :class:`EachStep` seen through, spiking layers and `leaves` as they are.

    ``meta["leading"]`` of a call is the number of dimensions before those of a sample: time and batch, or
    both joined.

    Raises:
        ValueError: if its ``forward`` can't be traced.
    """
    return traced_calls(net, _Tracer(_OURS | {*leaves}))


def traced_calls(net: nn.Module, tracer: fx.Tracer) -> fx.Graph:
    """What `tracer` makes of `net`: a graph, of which no code is generated, so that layers may have any name.

    Raises:
        ValueError: if its ``forward`` can't be traced.
    """
    try:
        return tracer.trace(net)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ValueError(f"{type(net).__name__}.forward cannot be traced: {error}") from error


@cache
def _bare() -> tuple[nn.Module, nn.Module]:
    """A traced network and a module that hold nothing, but what every one of them has."""
    return fx.GraphModule({}, fx.Graph()), nn.Module()


def is_writable(path: str) -> bool:
    """Whether code that torch generates can name what lies at `path`, ``layer.layer.parameter``.

    torch writes ``self.name`` for an identifier, also for a keyword, and ``getattr(self, "name")`` for any
    other text, without escapes. What every traced module has itself, such as ``graph``, can be no layer.
    """
    for depth, name in enumerate(path.split(".")):
        spelled = unicodedata.normalize("NFKC", name) == name and not iskeyword(name)
        quoted = name.isprintable() and not {'"', "\\"} & {*name}
        if not name or not (spelled if name.isidentifier() else quoted) or hasattr(_bare()[depth > 0], name):
            return False
    return True


def layer_name(path: str, taken: Collection[str]) -> str:
    """A name for a layer of an ``fx.GraphModule``, as near to `path` as can be, beside those `taken`."""
    plain = unicodedata.normalize("NFKC", path)
    name = "".join(c if c.isalnum() or c in "._" else "_" for c in plain)
    if not all(name.split(".")) or _holds(name, taken):
        name = name.replace(".", "_") or "_"
    name = ".".join(part if is_writable(part) else f"{part}_" for part in name.split("."))
    while not is_writable(name) or name in taken or _holds(name, taken):
        name += "_"
    return name


def _holds(name: str, taken: Collection[str]) -> bool:
    """Whether a layer of that name would hold one of those `taken`, or one of them it."""
    return any(other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in taken)


def _fused(inner: Convolution | nn.Linear, module: Normalised) -> nn.Module:
    if isinstance(inner, nn.Linear):
        return fuse_linear_bn_eval(inner, module)
    return fuse_conv_bn_eval(cast(nn.Conv1d, inner), module)  # a window has the weights of one


def _sole_layer(net: nn.Module, graph: fx.Graph, node: fx.Node) -> Convolution | nn.Linear | None:
    """The linear layer or convolution that `node` calls, if nothing else uses it or its result."""
    if node.op != "call_module" or len(node.users) != 1:
        return None
    if sum(other.target == node.target for other in graph.nodes if other.op == "call_module") != 1:
        return None
    module = net.get_submodule(str(node.target))
    return module if isinstance(module, Convolution | nn.Linear) else None


def _each_channel(module: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that changes nothing."""
    channels = module.num_features
    layer = nn.Conv2d(channels, channels, 1, groups=channels).to(module.running_mean)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()  # type: ignore[union-attr]  # made with a bias
    return layer.eval()
