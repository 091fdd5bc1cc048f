"""Reads a network, traced and run on an example, as a graph of layers."""

import operator
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import add_hint
from hibana.network.fold import folded_calls
from hibana.network.graph import OVER_TIME, Kind, Network, Node
from hibana.nn.blocks import StepsDropout
from hibana.nn.delay import Delay
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.window import Window

__all__ = ["read"]

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
_RESHAPED: tuple[Any, ...] = (
    *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten, functional.dropout),
    *("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten", "contiguous", "detach", "clone"),
)
_SIZES: tuple[Any, ...] = (getattr, "size", "dim", "numel")
_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS: tuple[Any, ...] = (operator.mul, torch.mul, "mul")
_MEANS: tuple[Any, ...] = (torch.mean, "mean")
_KNOWN = (*_RESHAPED, *_SIZES, *_SUMS, *_PRODUCTS, *_MEANS)


class Mean(nn.AvgPool2d):
    """The mean over an image or a sequence: a pooling whose window is all of it."""


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
    if example.ndim < 3 or not example.numel() or example.is_meta:
        shape = f"{tuple(example.shape)} on {example.device}"
        raise ValueError(f"example must be [T, batch, ...], none of them 0, with numbers, got {shape}")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folded, lines = folded_calls(net)
        return _Reading(folded, lines, example).network()


@dataclass
class _Value:
    """What a call gave on the example."""

    tensor: Tensor
    """``[T, batch, ...]``, or ``[T * batch, ...]``."""
    leading: int
    """The dimensions before those of a sample: 2, or 1."""
    node: Node
    """Whose numbers they are, in their order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return tuple(self.tensor.shape[self.leading :])


class _Reading:
    """One reading of a traced network, whose calls run on the example as they are read."""

    def __init__(self, net: nn.Module, lines: fx.Graph, example: Tensor) -> None:
        self.net, self.lines, self.example = net, lines, example
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, Any] = {}
        """What a call gave: a :class:`_Value`, or a size and what is computed of sizes."""
        self.calls = Counter(line.target for line in lines.nodes if line.op == "call_module")

    def network(self) -> Network:
        for line in self.lines.nodes:
            if line.op == "placeholder":
                node = Node("input", "input", None, (), (), tuple(self.example.shape[2:]))
                self._add(line, node, self.example, 2)
            elif line.op == "output":
                (out,) = line.args
                found = self._given(line, out) if isinstance(out, fx.Node) else None
                if not isinstance(found, _Value) or found.leading != 2:
                    raise Unsupported("net must return one tensor, [T, batch, ...], computed of its input")
                return Network(tuple(self.nodes), found.node, found.shape, self.example.dtype, self.net)
            elif line.op == "call_module":
                self._layer(line, str(line.target))
            elif line.op == "get_attr":
                raise Unsupported(f"{line.target!r} is a tensor outside of a layer and can't be written")
            else:
                self._function(line)
        raise Unsupported("net returns nothing")

    def _given(self, line: fx.Node, source: fx.Node) -> Any:
        """The value of `source` as `line` takes it: time and batch are joined within :class:`EachStep`."""
        value, leading = self.values[source], line.meta["leading"]
        if not isinstance(value, _Value) or leading == source.meta["leading"]:
            return value
        if value.leading != 3 - leading:
            raise Unsupported(f"{self._where(line)} joins time and batch, which are joined already")
        shape = self.example.shape[:2] if leading == 2 else (-1,)
        return replace(value, tensor=value.tensor.reshape(*shape, *value.shape), leading=leading)

    def _layer(self, line: fx.Node, name: str) -> None:
        module: Any = self.net.get_submodule(name)
        is_a = f"layer {name!r}: {type(module).__name__}"
        values = [self._given(line, source) for source in line.all_input_nodes]
        if len(values) != 1 or len((*line.args, *line.kwargs)) != 1 or not isinstance(values[0], _Value):
            raise Unsupported(f"{is_a} is called with something else than one tensor")
        (value,) = values
        kind = next((kind for of, kind in _KINDS if isinstance(module, of)), None)
        mean = isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d)
        if kind is None and not mean and not isinstance(module, _MOVES):
            raise Unsupported(f"{is_a} is no layer that can be written")
        if kind in OVER_TIME and self.calls[name] > 1:
            raise Unsupported(f"layer {name!r} is called {self.calls[name]} times, with a state for each")
        if kind in OVER_TIME and value.leading == 1:
            raise Unsupported(f"{is_a} is called with time and batch joined")
        if kind is not None:
            self._check(name, kind, module, value.shape)
        try:
            given: Any = module(value.tensor)
        except (RuntimeError, ValueError) as error:
            add_hint(self.net, error)
            raise
        if not isinstance(given, Tensor):
            raise Unsupported(f"{is_a} gives something else than one tensor")
        shape = tuple(given.shape[value.leading :])
        if kind is not None:
            node = Node(name, kind, module, (value.node,), (value.shape,), shape)
            self._add(line, node, given, value.leading)
        elif not mean:
            self.values[line] = self._moved(line, value, given)
        elif {*shape[1:]} == {1}:
            self._mean(line, name, value, given)
        else:
            raise Unsupported(f"{is_a} is written where it leaves one pixel, not {shape}")

    def _check(self, name: str, kind: Kind, module: Any, seen: tuple[int, ...]) -> None:
        """Refuses what a layer can be and nothing here says."""
        reason = ""
        if kind == "linear" and len(seen) != 1:
            reason = f"a linear layer on the last dimension of {seen}; flatten first"
        elif kind == "convolution" and module.padding_mode != "zeros":
            reason = f"padding by {module.padding_mode}"
        elif kind in ("maximum", "average") and module.ceil_mode:
            reason = "ceil_mode"
        elif kind == "maximum" and (module.return_indices or module.dilation not in (1, (1,), (1, 1))):
            reason = "return_indices or dilation"
        if reason:
            raise Unsupported(f"layer {name!r}: {reason} is nothing that can be written")

    def _function(self, line: fx.Node) -> None:
        target: Any = line.target
        args: Any = fx.node.map_arg(line.args, lambda source: self._given(line, source))
        named: Any = fx.node.map_arg(line.kwargs, self.values.get)
        values = [value for value in args if isinstance(value, _Value)]
        others = [value for value in args if not isinstance(value, _Value)]
        elsewhere = sum(isinstance(self.values[source], _Value) for source in line.all_input_nodes)
        if elsewhere > len(values) or (values and target not in _KNOWN):
            raise self._refused(line)
        tensors = [value.tensor if isinstance(value, _Value) else value for value in args]
        try:
            if line.op == "call_method":
                given = getattr(tensors[0], target)(*tensors[1:], **named)
            else:
                given = target(*tensors, **named)
        except Exception as error:  # whatever the operation makes of these
            raise Unsupported(f"{self._where(line)}: {str(error).partition(chr(10))[0]}") from error
        if not isinstance(given, Tensor):
            self.values[line] = given
        elif target in _SUMS and len(values) == 2 and not others and not named:
            one, two = values
            if one.shape != two.shape or one.leading != two.leading:
                raise Unsupported(f"{self._where(line)} adds {one.shape} and {two.shape}")
            node = Node(line.name, "sum", None, (one.node, two.node), (one.shape, two.shape), one.shape)
            self._add(line, node, given, one.leading)
        elif len(values) != 1:
            raise self._refused(line)
        elif target in _PRODUCTS and isinstance(others[0], int | float):
            (value,) = values
            node = Node(line.name, "scale", None, (value.node,), (value.shape,), value.shape, others[0])
            self._add(line, node, given, value.leading)
        elif target in _MEANS and self._is_of_images(values[0], others, named):
            self._mean(line, line.name, values[0], given)
        elif target in _RESHAPED:
            self.values[line] = self._moved(line, values[0], given)
        else:
            raise self._refused(line)

    def _mean(self, line: fx.Node, name: str, value: _Value, given: Tensor) -> None:
        """The mean over all but the channels."""
        channels, *sides = value.shape
        shape = channels, *(1 for _ in sides)
        window = Mean((1, sides[0]) if len(sides) == 1 else (sides[0], sides[1]))
        node = Node(name, "average", window, (value.node,), (value.shape,), shape)
        self._add(line, node, given, value.leading)

    def _is_of_images(self, value: _Value, arguments: list[Any], named: dict[str, Any]) -> bool:
        """Whether a mean is over height and width, and these alone."""
        if len(value.shape) not in (2, 3) or not (arguments or "dim" in named):
            return False
        blank = torch.empty([2] * value.tensor.ndim, dtype=torch.float32, device="meta")
        kept = torch.mean(blank, *cast(Any, arguments), **{**named, "keepdim": True}).shape
        return tuple(kept) == (*[2] * (value.leading + 1), *(1 for _ in value.shape[1:]))

    def _moved(self, line: fx.Node, value: _Value, given: Tensor) -> _Value:
        """The numbers of `value` in another shape, or with time and batch joined or apart."""
        before = self.example.shape[:2]
        joined = torch.Size([before.numel()])
        dropped = line.target is functional.dropout and not torch.equal(given, value.tensor)
        for leading in (value.leading, 3 - value.leading) if not dropped else ():
            if given.shape[:leading] == (before if leading == 2 else joined):
                return _Value(given, leading, value.node)
        why = ", and drops some in evaluation" if dropped else "; time and batch must stay: nn.Flatten(2)"
        made = f"{list(given.shape)} of {list(value.tensor.shape)}"
        raise Unsupported(f"{self._where(line)} makes {made}{why}")

    def _refused(self, line: fx.Node) -> Unsupported:
        called = getattr(line.target, "__name__", line.target)
        but = ", but for one over all of an image" if line.target in _MEANS else ""
        return Unsupported(f"{self._where(line)}: {called} is no operation that can be written{but}")

    def _where(self, line: fx.Node) -> str:
        """The operation `line`, and what calls it, for messages."""
        if line.op == "call_module":
            return f"layer {line.target!r}"
        layer = f"layer {line.meta['within']!r}"
        return f"{line.name!r} in {layer if line.meta['within'] else f'{type(self.net).__name__}.forward'}"

    def _add(self, line: fx.Node, node: Node, given: Tensor, leading: int) -> None:
        node.density = float(given.count_nonzero()) / given.numel()
        node.extremes = float(given.amin()), float(given.amax())
        node.binary = bool(((given == 0) | (given == 1)).all())
        for source in node.inputs:
            source.users.append(node)
        self.nodes.append(node)
        self.values[line] = _Value(given, leading, node)
