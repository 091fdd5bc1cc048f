"""Reads a network, traced and run on an example, as a graph of layers.

Each call runs twice: on the example, and on zeros with another number of steps and samples. A dimension
counts as time or batch only if its size follows theirs in both runs, so sizes that happen to coincide are
not mistaken for each other.
"""

import math
import operator
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import add_hint
from hibana.network.fold import folded_calls
from hibana.network.graph import OVER_TIME, Kind, Network, Node
from hibana.network.sliding import check_sizes
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
_RUNS = ("example", "probe")
_KNOWN = (*_RESHAPED, *_SIZES, *_SUMS, *_PRODUCTS, *_MEANS)


class Mean(nn.AvgPool2d):
    """The mean over an image or a sequence: a pooling whose window is all of it."""


def read(net: nn.Module, example: Tensor) -> Network:
    """`net` as a graph, batch normalisation folded, with what it showed on `example`, ``[T, batch, ...]``.

    Raises:
        TypeError: if `example` is no floating-point tensor.
        ValueError: if it is not ``[T, batch, ...]``.
        Unsupported: if `net` can't be traced; naming the layer, if one is not known here.
    """
    if not isinstance(example, Tensor) or not example.is_floating_point():
        kind = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(f"example must be a floating-point tensor [T, batch, ...], got {kind}")
    if example.ndim < 3 or not example.numel() or example.is_meta:
        shape = f"{tuple(example.shape)} on {example.device}"
        raise ValueError(f"example must be [T, batch, ...], none of them 0, with numbers, got {shape}")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            folded, lines = folded_calls(net)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        return _Reading(folded, lines, example).network()


class _Sizes(NamedTuple):
    """What a call returned that is no tensor of the network, such as sizes, in both runs."""

    example: Any
    probe: Any


@dataclass
class _Value:
    """A tensor of the network, in both runs."""

    example: Tensor
    """``[T, batch, ...]``, or ``[T * batch, ...]``."""
    probe: Tensor
    """The same with another T and another batch."""
    leading: int
    """The number of dimensions before those of a sample: 2, or 1."""
    node: Node
    """The node whose numbers these are, in the same order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.example.shape[self.leading :])


class _Reading:
    """One reading of a traced network, whose calls run on the example and on the probe as they are read."""

    def __init__(self, net: nn.Module, lines: fx.Graph, example: Tensor) -> None:
        self.net, self.lines = net, lines
        steps, batch = example.shape[:2]
        other_steps = 3 if steps == 2 else 2
        other_batch = next(
            n for n in (3, 5, 7) if n not in (batch, other_steps) and other_steps * n != steps * batch
        )
        self.runs = example, example.new_zeros(other_steps, other_batch, *example.shape[2:])
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, _Value | _Sizes] = {}
        """What each call returned."""
        self.calls = Counter(line.target for line in lines.nodes if line.op == "call_module")

    def network(self) -> Network:
        """The graph."""
        for line in self.lines.nodes:
            if line.op == "placeholder":
                node = Node("input", "input", None, (), (), tuple(self.runs[0].shape[2:]))
                self._add(line, node, self.runs, 2)
            elif line.op == "output":
                (out,) = line.args
                result = self._given(line, out) if isinstance(out, fx.Node) else None
                if not isinstance(result, _Value) or result.leading != 2:
                    raise Unsupported("net must return one tensor, [T, batch, ...], computed of its input")
                dtype = self.runs[0].dtype
                return Network(tuple(self.nodes), result.node, result.shape, dtype, self.net)
            elif line.op == "call_module":
                self._layer(line, str(line.target))
            elif line.op == "get_attr":
                raise Unsupported(f"{line.target!r} is a tensor outside of a layer and can't be written")
            else:
                self._function(line)
        raise Unsupported("net returns nothing")

    def _given(self, line: fx.Node, source: fx.Node) -> _Value | _Sizes:
        """The value of `source` as `line` takes it: time and batch are joined within :class:`EachStep`."""
        value, leading = self.values[source], line.meta["leading"]
        if not isinstance(value, _Value) or leading == source.meta["leading"]:
            return value
        if value.leading != 3 - leading:
            raise Unsupported(f"{self._where(line)} joins time and batch, which are joined already")
        example, probe = (
            tensor.reshape(*(run.shape[:2] if leading == 2 else (-1,)), *value.shape)
            for tensor, run in zip((value.example, value.probe), self.runs, strict=True)
        )
        return _Value(example, probe, leading, value.node)

    def _layer(self, line: fx.Node, name: str) -> None:
        module: Any = self.net.get_submodule(name)
        is_a = f"layer {name!r}: {type(module).__name__}"
        values = [self._given(line, source) for source in line.all_input_nodes]
        value = values[0] if len(values) == 1 and len((*line.args, *line.kwargs)) == 1 else None
        if not isinstance(value, _Value):
            raise Unsupported(f"{is_a} is called with something else than one tensor")
        if line.meta.get("normalised") and value.leading != 1:
            raise Unsupported(
                f"{is_a}: batch normalisation after it takes samples for channels: use EachStep"
            )
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
            result = module(value.example)
        except (RuntimeError, ValueError) as error:
            add_hint(self.net, error)
            raise
        try:
            results = result, module(value.probe)
        except (RuntimeError, ValueError) as error:
            raise Unsupported(f"{is_a} takes no other number of steps or samples: {error}") from error
        if not all(isinstance(result, Tensor) for result in results):
            raise Unsupported(f"{is_a} gives something else than one tensor")
        shape = tuple(results[0].shape[value.leading :])
        if kind is not None:
            node = Node(name, kind, module, (value.node,), (value.shape,), shape)
            check_sizes(node)
            self._add(line, node, results, value.leading)
        elif not mean:
            self.values[line] = self._moved(line, value, results)
        elif {*shape[1:]} == {1}:
            self._mean(line, name, value, results)
        else:
            raise Unsupported(f"{is_a} is written where it leaves one pixel, not {shape}")

    def _check(self, name: str, kind: Kind, module: Any, seen: tuple[int, ...]) -> None:
        """Refuses settings of a layer, and inputs, that no program computes."""
        reason = ""
        if kind == "linear" and len(seen) != 1:
            reason = f"a linear layer on the last dimension of {seen}; flatten first"
        elif kind in ("convolution", "maximum", "average"):
            sides = 1 if isinstance(module, nn.Conv1d | nn.MaxPool1d | nn.AvgPool1d) else 2
            if len(seen) != sides + 1:
                reason = f"{type(module).__name__} on samples of shape {seen}, which have no channels"
            elif kind == "convolution" and module.padding_mode != "zeros":
                reason = f"padding by {module.padding_mode}"
            elif kind != "convolution" and module.ceil_mode:
                reason = "ceil_mode"
            elif kind == "maximum" and (module.return_indices or module.dilation not in (1, (1,), (1, 1))):
                reason = "return_indices or dilation"
        if reason:
            raise Unsupported(f"layer {name!r}: {reason} is nothing that can be written")

    def _function(self, line: fx.Node) -> None:
        target: Any = line.target
        given = {source: self._given(line, source) for source in line.all_input_nodes}
        args: Any = [given.get(arg) if isinstance(arg, fx.Node) else arg for arg in line.args]
        values = [value for value in args if isinstance(value, _Value)]
        elsewhere = sum(isinstance(value, _Value) for value in given.values())
        if elsewhere > len(values) or (values and target not in _KNOWN):
            raise self._refused(line)
        run = [self._arguments(line, {s: getattr(v, of) for s, v in given.items()}) for of in _RUNS]
        try:
            results = [
                getattr(tensors[0], target)(*tensors[1:], **named)
                if line.op == "call_method"
                else target(*tensors, **named)
                for tensors, named in run
            ]
        except Exception as error:  # whatever the operation makes of these
            raise Unsupported(f"{self._where(line)}: {str(error).partition(chr(10))[0]}") from error
        others = [other for arg, other in zip(args, run[0][0], strict=True) if not isinstance(arg, _Value)]
        named = run[0][1]
        if not isinstance(results[0], Tensor):
            self.values[line] = _Sizes(*results)
        elif target in _SUMS and len(values) == 2 and not others and not named:
            one, two = values
            if one.shape != two.shape or one.leading != two.leading:
                raise Unsupported(f"{self._where(line)} adds {one.shape} and {two.shape}")
            node = Node(line.name, "sum", None, (one.node, two.node), (one.shape, two.shape), one.shape)
            self._add(line, node, results, one.leading)
        elif len(values) != 1:
            raise self._refused(line)
        elif target in _PRODUCTS and isinstance(others[0], int | float):
            if any(isinstance(value, _Sizes) and value.example != value.probe for value in given.values()):
                raise Unsupported(f"{self._where(line)} multiplies by a number that depends on T or batch")
            (value,) = values
            node = Node(line.name, "scale", None, (value.node,), (value.shape,), value.shape, others[0])
            self._add(line, node, results, value.leading)
        elif target in _MEANS and self._is_of_images(values[0], others, named):
            self._mean(line, line.name, values[0], results)
        elif target in _RESHAPED:
            self.values[line] = self._moved(line, values[0], results)
        else:
            raise self._refused(line)

    @staticmethod
    def _arguments(line: fx.Node, values: dict[fx.Node, Any]) -> tuple[Any, Any]:
        """The positional and named arguments of `line` in one run."""
        args: Any = fx.node.map_arg(line.args, values.get)
        named: Any = fx.node.map_arg(line.kwargs, values.get)
        return args, named

    def _mean(self, line: fx.Node, name: str, value: _Value, results: Sequence[Tensor]) -> None:
        """The mean over all but the channels."""
        channels, *sides = value.shape
        shape = channels, *(1 for _ in sides)
        window = Mean(cast(Any, tuple(sides)))  # of one side for a sequence
        node = Node(name, "average", window, (value.node,), (value.shape,), shape)
        check_sizes(node)
        self._add(line, node, results, value.leading)

    def _is_of_images(self, value: _Value, arguments: list[Any], named: dict[str, Any]) -> bool:
        """Whether a mean is over height and width, and these alone."""
        if len(value.shape) not in (2, 3) or not (arguments or "dim" in named):
            return False
        blank = torch.empty([2] * value.example.ndim, dtype=torch.float32, device="meta")
        kept = torch.mean(blank, *cast(Any, arguments), **{**named, "keepdim": True}).shape
        return tuple(kept) == (*[2] * (value.leading + 1), *(1 for _ in value.shape[1:]))

    def _moved(self, line: fx.Node, value: _Value, results: Sequence[Tensor]) -> _Value:
        """The numbers of `value` in another shape, or with time and batch joined or apart."""
        example = results[0]
        dropped = line.target is functional.dropout and not torch.equal(example, value.example)
        for leading in (value.leading, 3 - value.leading) if not dropped else ():
            if moved := self._value(value.node, results, leading):
                return moved
        why = ", and drops some in evaluation" if dropped else "; time and batch must stay: nn.Flatten(2)"
        made = f"{list(example.shape)} of {list(value.example.shape)}"
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

    def _add(self, line: fx.Node, node: Node, results: Sequence[Tensor], leading: int) -> None:
        value = self._value(node, results, leading)
        if value is None or math.prod(value.shape) != node.size:
            made = f"{list(results[0].shape)} of samples {node.shape}"
            raise Unsupported(f"{self._where(line)} makes {made}; time and batch must stay in front")
        example = value.example
        node.density = float(example.count_nonzero()) / example.numel()
        node.extremes = float(example.amin()), float(example.amax())
        node.binary = bool(((example == 0) | (example == 1)).all())
        for source in node.inputs:
            source.users.append(node)
        self.nodes.append(node)
        self.values[line] = value

    def _value(self, node: Node, results: Sequence[Tensor], leading: int) -> _Value | None:
        """The numbers of `node`, if the first `leading` dimensions follow T and batch, and no others do."""
        example, probe = results
        for result, run in zip(results, self.runs, strict=True):
            steps, batch = run.shape[:2]
            if result.shape[:leading] != ((steps, batch) if leading == 2 else (steps * batch,)):
                return None
        return (
            _Value(example, probe, leading, node)
            if example.shape[leading:] == probe.shape[leading:]
            else None
        )
