"""A network read as a graph of layers, one sample and one step at a time: what C and ONNX are written from.

What only moves numbers (flatten, dropout in evaluation) is no layer here: a value keeps the order in memory
that it was written in, and says which number of PyTorch's lies where.
"""

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hibana.compiler.graph.ops import Unsupported
from hibana.nn.blocks import StepsDropout
from hibana.nn.delay import Delay
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.each_step import EachStep
from hibana.nn.fold import fold_batchnorm, traced_layers
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.running import Stateful
from hibana.nn.window import Window

__all__ = ["OVER_TIME", "WEIGHTED", "Kind", "Network", "Node", "read"]

Kind = Literal[
    "input", "linear", "convolution", "maximum", "average", "sum", "scale",
    "neurons", "window", "delay", "delayed", "delayed recurrent",
]  # fmt: skip
OVER_TIME = ("neurons", "window", "delay", "delayed", "delayed recurrent")
"""Layers whose output depends on the steps before, as well as on their input."""
WEIGHTED = ("linear", "convolution", "window", "delayed")
"""Layers that add rows of weights."""

_KINDS: tuple[tuple[Any, Kind], ...] = (
    (nn.Linear, "linear"),
    ((nn.Conv1d, nn.Conv2d), "convolution"),
    ((nn.MaxPool1d, nn.MaxPool2d), "maximum"),
    ((nn.AvgPool1d, nn.AvgPool2d), "average"),
    ((OverTime, Recurrent), "neurons"),
    (Window, "window"),
    (Delay, "delay"),
    (DelayedLinear, "delayed"),
    (DelayedRecurrent, "delayed recurrent"),
)
_MOVES = (
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    StepsDropout,
)
_RESHAPED: tuple[Any, ...] = (torch.flatten, "flatten", "reshape", "view", torch.reshape, functional.dropout)
_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS: tuple[Any, ...] = (operator.mul, torch.mul, "mul")
_MEANS: tuple[Any, ...] = (torch.mean, "mean")


class Mean(nn.AvgPool2d):
    """The mean over an image or a sequence: a pooling whose window is all of it."""


@dataclass(eq=False)
class Node:
    """What one layer gives at each step, for one sample."""

    name: str
    """The layer's in the network; ``"input"`` of what goes in."""
    kind: Kind
    module: nn.Module | None
    inputs: tuple["Node", ...]
    seen: tuple[tuple[int, ...], ...]
    """The shapes that the layer sees its inputs in."""
    shape: tuple[int, ...]
    factor: float = 1.0
    """What a ``scale`` multiplies with."""
    density: float = 1.0
    """The part of its numbers that were not zero on the example."""
    extremes: tuple[float, float] = (0.0, 0.0)
    """The least and the largest of its numbers on the example."""
    binary: bool = False
    """Whether its numbers were all 0 or 1 on the example."""
    users: list["Node"] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many numbers it is."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True)
class Network:
    """A network over time, read."""

    nodes: tuple[Node, ...]
    """In the order they run in; the first is the input."""
    output: Node
    outputs: tuple[int, ...]
    """The shape that comes out."""
    dtype: torch.dtype
    net: nn.Module
    """The copy of the network, batch normalisation folded, that the layers are of."""

    def __str__(self) -> str:
        from hibana.network.table import table  # which reads neurons, and so this module

        return table(self)

    @property
    def input(self) -> Node:
        """What goes in."""
        return self.nodes[0]

    def check_kinds(self, *unknown: Kind) -> None:
        """Raises Unsupported, naming the first layer of a kind that is `unknown` to who reads the graph."""
        for node in self.nodes:
            if node.kind in unknown:
                raise Unsupported(
                    f"layer {node.name!r}: {type(node.module).__name__} is no layer that can be written"
                )

    @property
    def still(self) -> tuple[Node, ...]:
        """The nodes before the first that look back: what a constant input need not have computed twice."""
        moving: set[Node] = set()
        for node in self.nodes:
            if node.kind in OVER_TIME or any(other in moving for other in node.inputs):
                moving.add(node)
        return tuple(node for node in self.nodes if node not in moving)


def read(net: nn.Module, example: Tensor) -> Network:
    """`net` as a graph, batch normalisation folded, with what it showed on `example`, ``[T, batch, ...]``.

    Raises:
        TypeError: if `example` is no floating-point tensor.
        ValueError: if it is not ``[T, batch, ...]``.
        Unsupported: naming the layer, if one is not known here.
    """
    if not isinstance(example, Tensor) or not example.is_floating_point():
        kind = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(f"example must be a floating-point tensor [T, batch, ...], got {kind}")
    if example.ndim < 3 or not example.numel():
        raise ValueError(f"example must be [T, batch, ...], none of them 0, got {tuple(example.shape)}")
    with torch.no_grad():
        folded = fold_batchnorm(nn.Sequential(net) if isinstance(net, Stateful | EachStep) else net)
        lines = traced_layers(folded)
        return _Reading(folded, lines, _shown(folded, lines, example)).network(example)


@dataclass
class _Shown:
    """What a layer gave, and was given."""

    outputs: Tensor
    calls: int = 0


def _shown(net: nn.Module, lines: fx.Graph, example: Tensor) -> dict[str, _Shown]:
    shown: dict[str, _Shown] = {}

    def watching(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, outputs: Tensor) -> None:
            shown[name] = _Shown(outputs, shown[name].calls + 1 if name in shown else 1)

        return hook

    names = {str(node.target) for node in lines.nodes if node.op == "call_module"}
    hooks = [net.get_submodule(name).register_forward_hook(watching(name)) for name in names]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net(example)
    finally:
        for hook in hooks:
            hook.remove()
    return shown


class _Reading:
    """One reading of a traced network."""

    def __init__(self, net: nn.Module, lines: fx.Graph, shown: dict[str, _Shown]) -> None:
        self.net, self.lines, self.shown = net, lines, shown
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, tuple[Node, tuple[int, ...]]] = {}

    def network(self, example: Tensor) -> Network:
        for line in self.lines.nodes:
            if line.op == "placeholder":
                if self.nodes:
                    raise Unsupported(f"net takes a second input, {line.name!r}")
                node = Node("input", "input", None, (), (), tuple(example.shape[2:]))
                self._add(line, node, example)
            elif line.op == "output":
                (found,) = line.args
                if not isinstance(found, fx.Node):
                    raise Unsupported("net returns something else than one tensor")
                node, shape = self.values[found]
                return Network(tuple(self.nodes), node, shape, example.dtype, self.net)
            elif line.op == "call_module":
                self._call(line, str(line.target))
            else:
                self._function(line)
        raise Unsupported("net returns nothing")

    def _call(self, line: fx.Node, name: str) -> None:
        module, shown = self.net.get_submodule(name), self.shown.get(name)
        (given,) = line.args if len(line.args) == 1 and not line.kwargs else (None,)
        if shown is None or not isinstance(given, fx.Node):
            raise Unsupported(f"layer {name!r}: {type(module).__name__} is called with more than one tensor")
        if not isinstance(shown.outputs, Tensor):
            raise Unsupported(f"layer {name!r}: {type(module).__name__} gives something else than one tensor")
        shape = tuple(shown.outputs.shape[line.meta["leading"] :])
        source, seen = self.values[given]
        if isinstance(module, _MOVES):
            self.values[line] = source, shape
            return
        if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d) and set(shape[1:]) == {1}:
            self._mean(line, name, source, seen, shape)
            return
        kind = next((kind for of, kind in _KINDS if isinstance(module, of)), None)
        if kind is None:
            raise Unsupported(f"layer {name!r}: {type(module).__name__} is no layer that can be written")
        if kind in OVER_TIME and shown.calls > 1:
            raise Unsupported(f"layer {name!r} is called {shown.calls} times, with a state for each")
        self._check(name, kind, module, seen)
        self._add(line, Node(name, kind, module, (source,), (seen,), shape), shown.outputs)

    def _check(self, name: str, kind: Kind, module: Any, seen: tuple[int, ...]) -> None:
        """Refuses what a layer can be and nothing here says."""
        reason = ""
        if kind == "linear" and len(seen) != 1:
            reason = f"a linear layer on the last dimension of {seen}; flatten first"
        elif kind == "convolution" and module.padding_mode != "zeros":
            reason = f"padding by {module.padding_mode}"
        elif kind in ("maximum", "average") and module.ceil_mode:
            reason = "ceil_mode"
        elif kind == "maximum" and (module.return_indices or _one(module.dilation) != (1,)):
            reason = "return_indices or dilation"
        if reason:
            raise Unsupported(f"layer {name!r}: {reason} is nothing that can be written")

    def _function(self, line: fx.Node) -> None:
        given = [self.values[a] for a in line.args if isinstance(a, fx.Node) and a in self.values]
        others = [a for a in line.args if not isinstance(a, fx.Node)]
        if line.target in _SUMS and len(given) == 2 and not others and not line.kwargs:
            (one, shape), (two, also) = given
            if shape != also:
                raise Unsupported(f"{line.name!r} adds {shape} and {also}")
            self._add(line, Node(line.name, "sum", None, (one, two), (shape, shape), shape), None)
        elif line.target in _PRODUCTS and len(given) == 1 and isinstance(others[0], int | float):
            source, shape = given[0]
            self._add(
                line, Node(line.name, "scale", None, (source,), (shape,), shape, factor=others[0]), None
            )
        elif line.target in _MEANS and len(given) == 1:
            source, shape = given[0]
            self._mean(line, line.name, source, shape, self._averaged(line, shape))
        elif line.target in _RESHAPED and len(given) == 1:
            source, shape = given[0]
            self.values[line] = source, self._reshaped(line, shape)
        else:
            called = getattr(line.target, "__name__", line.target)
            raise Unsupported(f"{line.name!r}: {called} is no operation that can be written")

    def _mean(
        self, line: fx.Node, name: str, source: Node, seen: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        """The mean over all but the channels, of `shape`."""
        kernel = (1, seen[1]) if len(seen) == 2 else (seen[1], seen[2])
        made = Node(name, "average", Mean(kernel), (source,), (seen,), (seen[0], *(1 for _ in seen[1:])))
        self._add(line, made, None)
        self.values[line] = made, shape

    def _averaged(self, line: fx.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a mean over height and width."""
        _, *arguments = line.args
        named: dict[str, Any] = dict(line.kwargs)
        blank = torch.empty([2] * (2 + len(shape)), dtype=torch.float32, device="meta")
        image = len(shape) in (2, 3) and bool(arguments or "dim" in named)
        kept = torch.mean(blank, *cast(Any, arguments), **{**named, "keepdim": True}).shape if image else ()
        if tuple(kept) != (2, 2, 2, *(1 for _ in shape[1:])):
            raise Unsupported(
                f"{line.name!r}: mean is no operation that can be written, but for one over all of an image"
            )
        sides = torch.mean(blank, *cast(Any, arguments), **named).shape[3:]
        return (shape[0], *sides)

    def _reshaped(self, line: fx.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
        if line.target is functional.dropout:
            return shape
        _, *arguments = line.args
        named: dict[str, Any] = dict(line.kwargs)
        blank = torch.empty(1, 1, *shape, dtype=torch.float32, device="meta")
        within = line.target not in (torch.flatten, "flatten")
        if within or any(isinstance(a, fx.Node) for a in arguments):
            raise Unsupported(f"{line.name!r}: use nn.Flatten(2), which says what of time and batch stays")
        flat = torch.flatten(blank, *cast(Any, arguments), **named)
        if flat.shape[:2] != (1, 1):
            raise Unsupported(f"{line.name!r} flattens time or batch")
        return tuple(flat.shape[2:])

    def _add(self, line: fx.Node, node: Node, outputs: Tensor | None) -> None:
        if outputs is not None:
            node.density = float(outputs.count_nonzero()) / outputs.numel()
            node.extremes = float(outputs.amin()), float(outputs.amax())
            node.binary = bool(((outputs == 0) | (outputs == 1)).all())
        for source in node.inputs:
            source.users.append(node)
        self.nodes.append(node)
        self.values[line] = node, node.shape


def _one(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of all dimensions, said once where they are the same."""
    return tuple(sorted({sizes} if isinstance(sizes, int) else set(sizes)))
