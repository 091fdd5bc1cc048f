"""Tracing a network to calls of its layers, with batch normalization folded into the layer before it.

The node graph, NIR and :func:`hibana.from_ann` start from these calls. Folding is for inference, where batch
normalization is a scale and a shift.
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

from hibana.compiler.torch_layers import ORIGINAL_CLASS, role_of, spatial_dims
from hibana.network.layers import kind_of
from hibana.nn.blocks import Checkpointed
from hibana.nn.each_step import EachStep
from hibana.nn.over_steps import JoinedNetwork, OverSteps
from hibana.nn.running import Stateful
from hibana.nn.sparse_linear import SparseLinear
from hibana.nn.window import Window
from hibana.runtime import torch_internals

__all__ = ["fold_batchnorm", "layer_name", "trace_folded"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def fold_batchnorm(net: NetworkT) -> NetworkT:
    """A copy of `net` in evaluation mode, without batch normalization and parametrizations.

        y = (x - mean) / sqrt(variance + eps) * weight + bias,   x = W z + b

    is one layer with the weight ``W * weight / sqrt(variance + eps)``; ``nn.Identity`` replaces the
    normalization. A two-dimensional normalization without a linear layer or convolution before it becomes a
    convolution of each channel with one weight.

    Raises:
        ValueError: if `net` cannot be traced; naming the layer, if it has no running statistics, or no
            linear layer or convolution before it.

    Source: Ioffe & Szegedy (2015), *Batch normalization*, algorithm 2.

    >>> import torch, hibana as hb
    >>> net = nn.Sequential(hb.EachStep(nn.Conv2d(1, 4, 3)), hb.EachStep(nn.BatchNorm2d(4)), hb.IF())
    >>> [type(layer.module).__name__ for layer in hb.fold_batchnorm(net)[:2]]
    ['Conv2d', 'Identity']
    """
    folded: Any = trace_folded(net)[0]
    is_wrapped = role_of(folded) == "sequence" and role_of(net) != "sequence"
    return cast(NetworkT, folded[0] if is_wrapped else folded)


def trace_folded(net: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """The copy of `net` that :func:`fold_batchnorm` returns, and the calls of its layers.

    The trace enters :class:`EachStep` and :class:`Checkpointed`; other layers of hibana and torch are calls.
    A network of one layer is wrapped into an ``nn.Sequential``. The graph generates no code, so layers may
    have any name. Each call has in its ``meta``:

    - ``leading``: the number of dimensions before those of a sample; 2 for time and batch, 1 if joined,
    - ``within``: the path of the module whose ``forward`` calls,
    - ``normalized``: whether the layer holds a batch normalization over dimension 1 that was called outside
      of :class:`EachStep`, which is valid only if `net` itself has joined time and batch.

    Raises:
        ValueError: as :func:`fold_batchnorm`.
    """
    if isinstance(net, JoinedNetwork):
        raise ValueError(  # noqa: TRY004 - a network that can't be traced, like the others here
            f"{type(net).__name__} is called with time and batch joined since hibana.optimize changed it, "
            "which can't be traced; write its forward for [T, batch, ...]"
        )
    folded = _evaluation_copy(net)
    tracer = _Tracer()
    if isinstance(net, EachStep) or (tracer.is_leaf_module(net, "") and not isinstance(net, nn.DataParallel)):
        folded = nn.Sequential(folded)
    try:
        calls = tracer.trace(folded)
    except Exception as error:  # a forward may raise anything if it gets a proxy without numbers
        *_, (path, kind) = ("", type(net)), *tracer.module_stack.values()
        layer = f"layer {path!r}: " if path else ""
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"{layer}{kind.__name__}.forward cannot be traced: {reason}") from error
    for module in dict.fromkeys(_module(folded, node) for node in calls.nodes):
        if role_of(module) == "batch normalization":
            _fold(folded, calls, module)
    return folded, calls


def _evaluation_copy(net: nn.Module) -> nn.Module:
    """A copy of `net` in evaluation mode, whose pruned and parametrized weights are parameters."""
    for name, module in net.named_modules():
        if isinstance(module, LazyModuleMixin) and cast(Any, module).has_uninitialized_params():
            raise ValueError(f"layer {name!r}: {type(module).__name__} has no weights yet; call net once")
    # tensors that are no parameters, such as pruned weights, may have a grad_fn, and deepcopy refuses these
    detached = {id(v): v.detach() for m in net.modules() for v in vars(m).values() if isinstance(v, Tensor)}
    evaluation_net = copy.deepcopy(net, detached).eval()
    for module in list[Any](evaluation_net.modules()):
        for hook in torch_internals.forward_pre_hooks_of(module):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call] # torch leaves it so
        if parametrize.is_parametrized(module):  # torch's own removal changes the class of `net` too
            weights = {name: getattr(module, name).detach() for name in module.parametrizations}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, values in weights.items():
                module.register_parameter(name, nn.Parameter(values))
    return evaluation_net


def _fold(net: nn.Module, calls: fx.Graph, norm: Any) -> None:
    """Folds the batch normalization `norm` into the layers before its calls, or into a convolution."""
    nodes = [node for node in calls.nodes if _module(net, node) is norm]
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"layer {nodes[0].target}: batch normalization without running statistics")
    for name, number in (("weight", 1), ("bias", 0)):  # None if affine=False
        if getattr(norm, name) is None:
            setattr(norm, name, nn.Parameter(torch.full_like(norm.running_var, number)))
    layers = [_exclusive_layer(net, calls, node) for node in nodes]
    if None not in layers:
        for node, layer in zip(nodes, layers, strict=True):
            node.args[0].meta["normalized"] = not _is_over_steps(norm, node)
            fuse: Any = fuse_linear_bn_eval if role_of(layer) == "linear" else fuse_conv_bn_eval
            fuse = _fused_sparse if isinstance(layer, SparseLinear) else fuse
            _replace(net, layer, fuse(layer, norm))
            node.replace_all_uses_with(node.args[0])
            calls.erase_node(node)
        _replace(net, norm, nn.Identity())
    elif spatial_dims(norm) == 2:
        channels = norm.num_features
        identity = nn.Conv2d(channels, channels, 1, groups=channels, bias=False).to(norm.running_mean).eval()
        nn.init.ones_(identity.weight)
        _replace(net, norm, fuse_conv_bn_eval(identity, norm))
    else:
        time_hint = (
            "" if _is_over_steps(norm, nodes[0]) else "; outside of EachStep it takes samples for channels"
        )
        raise ValueError(
            f"layer {nodes[0].target}: no linear layer or convolution before it to fold it into{time_hint}"
        )


def _fused_sparse(layer: SparseLinear, norm: Any) -> SparseLinear:
    """A copy of `layer` with the batch normalization `norm` of its outputs in weights and bias."""
    fused = copy.deepcopy(layer)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = torch.zeros_like(norm.running_mean) if layer.bias is None else layer.bias
    fused.weight = nn.Parameter(layer.weight * scale[layer.targets.long()])
    fused.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    return fused


def _exclusive_layer(net: nn.Module, calls: fx.Graph, norm: fx.Node) -> nn.Module | None:
    """The layer with weights before the call `norm`, if neither it nor its result is used elsewhere."""
    node: Any = norm.args[0]
    module = _module(net, node)
    takes_time = isinstance(module, Window | SparseLinear)
    has_weights = takes_time or role_of(module) in ("linear", "convolution")
    if not has_weights or len(node.users) != 1:
        return None
    if (takes_time or node.meta["leading"] == 1) and not _is_over_steps(_module(net, norm), norm):
        return None  # the normalization gets time and batch apart, and takes samples for channels
    return module if sum(_module(net, other) is module for other in calls.nodes) == 1 else None


def _is_over_steps(norm: nn.Module | None, call: fx.Node) -> bool:
    """Whether `call` of the normalization `norm` treats the samples of all steps as one batch."""
    return isinstance(norm, OverSteps) or call.meta["leading"] == 1


def _module(net: nn.Module, node: Any) -> nn.Module | None:
    """The module that `node` calls; None for other nodes."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return net.get_submodule(str(node.target)) if is_call else None


def _replace(net: nn.Module, old: nn.Module | None, new: nn.Module) -> None:
    """Replaces `old` by `new` under each of its names in `net`."""
    for name in [name for name, module in net.named_modules(remove_duplicate=False) if module is old]:
        net.set_submodule(name, new)


class _Tracer(fx.Tracer):
    """Traces the calls that :func:`trace_folded` describes."""

    leading = 2

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """A proxy for the first argument of ``forward``; all others keep their defaults."""
        _, *arguments = signature(root_fn).parameters.values()
        required = [a.name for a in arguments if a.default is a.empty and a.kind is a.POSITIONAL_OR_KEYWORD]
        if len(required) > 1:
            raise TypeError(f"it takes a second input, {required[1]!r}")
        return root_fn, [self.root, self.create_proxy("placeholder", arguments[0].name, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the trace contains a call of the module `m` instead of the calls within it."""
        kind, class_ = kind_of(m), type(m)
        is_kind = kind is not None and (class_ in kind.types or class_.__module__.startswith("hibana."))
        is_layer = isinstance(m, Stateful) or is_kind or _inherits_forward(m)
        return is_layer or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Records a call of `m`; for :class:`EachStep` and :class:`Checkpointed`, of the module in it."""
        if not isinstance(m, EachStep | Checkpointed):
            return super().call_module(m, forward, args, kwargs)
        outer, self.leading = self.leading, 1 if isinstance(m, EachStep) else self.leading
        try:
            return m.module(*args, **kwargs)
        finally:
            self.leading = outer

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node with ``leading`` and ``within`` in its ``meta``."""
        node = super().create_node(*args, **kwargs)
        node.meta |= {"leading": self.leading, "within": self.scope.module_path}
        return node


def _inherits_forward(module: nn.Module) -> bool:
    """Whether the class of `module` is a layer of torch, or a subclass that adds at most an ``__init__``."""
    kind: type = module.__dict__.get(ORIGINAL_CLASS, type(module))
    while not kind.__module__.startswith("torch.nn"):
        if any(callable(value) and name != "__init__" for name, value in vars(kind).items()):
            return False
        kind = kind.__bases__[0] if len(kind.__bases__) == 1 else nn.Module
    return kind not in (nn.Module, nn.Sequential)


_RESERVED = frozenset(dir(fx.GraphModule({}, fx.Graph())))
"""Attributes of every ``fx.GraphModule``, which no layer may replace."""


def layer_name(path: str, names: Collection[str]) -> str:
    """A name for a layer of an ``fx.GraphModule``, as similar to `path` as possible, and not in `names`.

    torch writes names into code, so all characters but ASCII letters, digits, ``_`` and ``.`` become ``_``.
    """
    parts = re.sub(r"[^A-Za-z0-9_.]", "_", path).split(".")
    parts = [f"{part}_" if iskeyword(part) or part in _RESERVED else part for part in parts]
    name = ".".join(parts) if all(parts) else "_".join(parts) or "_"

    def is_free(name: str) -> bool:
        """Whether `name` is not in `names`, nor the path of a layer inside or around one of them."""
        nested = any(other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in names)
        return name not in names and not nested

    name = name if is_free(name) else name.replace(".", "_")
    while not is_free(name):
        name += "_"
    return name
