"""The one reader of networks: traces a network, and runs its calls on an example, to a graph of layers.

Each call runs twice: on the example, and on zeros with another number of steps and samples. A dimension
counts as time or batch only if its size follows theirs in both runs, so sizes that happen to coincide are
not mistaken for each other.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import add_hint
from hibana.network.fold import trace_folded
from hibana.network.graph import Network, Node
from hibana.network.layers import LAYERS, Call, LayerKind, kind_of, kind_of_function

__all__ = ["read"]

_SIZES: tuple[Any, ...] = (getattr, "size", "dim", "numel")
_RUNS = ("example", "probe")


def read(net: nn.Module, example: Tensor, *, shares_state: bool = False) -> Network:
    """`net` as a graph, batch normalisation folded, with statistics of its values on `example`.

    Args:
        net: a network over ``[T, batch, ...]``; it is left as it is.
        example: an input of it.
        shares_state: whether a layer over time may be called several times, each time with its own state.

    Raises:
        TypeError: if `example` is not a floating-point tensor.
        ValueError: if it is not ``[T, batch, ...]``.
        Unsupported: if `net` can't be traced, or naming a layer that has no kind.
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
            folded, lines = trace_folded(net)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        return _Reading(folded, lines, example, shares_state).network()


class _Sizes(NamedTuple):
    """A result that is not a tensor, such as a size, in both runs."""

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
    """The node with the same numbers in the same order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.example.shape[self.leading :])


class _Reading:
    """Runs each call of a traced network on the example and on the probe, and makes nodes of the calls."""

    def __init__(self, net: nn.Module, lines: fx.Graph, example: Tensor, shares_state: bool) -> None:
        self.net, self.lines, self.shares_state = net, lines, shares_state
        steps, batch = example.shape[:2]
        other_steps = 3 if steps == 2 else 2
        other_batch = next(
            n for n in (3, 5, 7) if n not in (batch, other_steps) and other_steps * n != steps * batch
        )
        self.runs = example, example.new_zeros(other_steps, other_batch, *example.shape[2:])
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, _Value | _Sizes] = {}
        """The result of each call."""
        self.calls = Counter(line.target for line in lines.nodes if line.op == "call_module")

    def network(self) -> Network:
        """The graph of layers."""
        for line in self.lines.nodes:
            if line.op == "placeholder":
                node = Node("input", LAYERS["input"], None, (), (), tuple(self.runs[0].shape[2:]))
                self._add(line, node, self.runs, 2)
            elif line.op == "output":
                (out,) = line.args
                result = self._input(line, out) if isinstance(out, fx.Node) else None
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

    def _input(self, line: fx.Node, source: fx.Node) -> _Value | _Sizes:
        """The result of `source` as an input of `line`, with time and batch joined in :class:`EachStep`."""
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
        values = [self._input(line, source) for source in line.all_input_nodes]
        value = values[0] if len(values) == 1 and len((*line.args, *line.kwargs)) == 1 else None
        if not isinstance(value, _Value):
            raise Unsupported(f"{is_a} must be called with one tensor")
        if line.meta.get("normalised") and value.leading != 1:
            raise Unsupported(
                f"{is_a}: batch normalisation after it takes samples for channels: use EachStep"
            )
        kind = kind_of(module)
        if kind is None:
            raise Unsupported(f"{is_a} is not a supported layer")
        if kind.over_time and self.calls[name] > 1 and not self.shares_state:
            raise Unsupported(f"layer {name!r} is called {self.calls[name]} times, with a state for each")
        if kind.over_time and value.leading == 1:
            raise Unsupported(f"{is_a} is called with time and batch joined")
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
            raise Unsupported(f"{is_a} must return one tensor")
        self._read(line, kind, module, [value], results)

    def _function(self, line: fx.Node) -> None:
        target: Any = line.target
        kind = kind_of_function(target)
        inputs = {source: self._input(line, source) for source in line.all_input_nodes}
        args: Any = [inputs.get(arg) if isinstance(arg, fx.Node) else arg for arg in line.args]
        values = [value for value in args if isinstance(value, _Value)]
        count = sum(isinstance(value, _Value) for value in inputs.values())
        if count > len(values) or (values and kind is None and target not in _SIZES):
            raise self._refused(line)
        run = [self._arguments(line, {s: getattr(v, of) for s, v in inputs.items()}) for of in _RUNS]
        try:
            results = [
                getattr(tensors[0], target)(*tensors[1:], **named)
                if line.op == "call_method"
                else target(*tensors, **named)
                for tensors, named in run
            ]
        except Exception as error:  # whatever the operation makes of these
            raise Unsupported(f"{self._where(line)}: {str(error).partition(chr(10))[0]}") from error
        if not isinstance(results[0], Tensor):
            self.values[line] = _Sizes(*results)
            return
        if kind is None or not values or len({value.leading for value in values}) > 1:
            raise self._refused(line)
        others = [other for arg, other in zip(args, run[0][0], strict=True) if not isinstance(arg, _Value)]
        before = len(self.nodes)
        self._read(line, kind, None, values, results, tuple(others), run[0][1])
        sizes = [value for value in inputs.values() if isinstance(value, _Sizes)]
        if len(self.nodes) > before and any(size.example != size.probe for size in sizes):
            raise Unsupported(f"{self._where(line)} computes with a number that depends on T or batch")

    def _read(
        self,
        line: fx.Node,
        kind: LayerKind,
        module: nn.Module | None,
        values: list[_Value],
        results: Sequence[Tensor],
        *arguments: Any,
    ) -> None:
        """Has `kind` read the call `line`, whose `results` in both runs are tensors."""
        inputs, seen = tuple(value.node for value in values), tuple(value.shape for value in values)
        leading, name = values[0].leading, line.name if module is None else str(line.target)
        shape = tuple(results[0].shape[leading:])
        node = kind.read(Call(name, self._where(line), module, inputs, seen, shape, leading, *arguments))
        if node in inputs:
            self.values[line] = self._reshaped(line, values[0], results)
        else:
            self._add(line, node, results, leading)

    @staticmethod
    def _arguments(line: fx.Node, values: dict[fx.Node, Any]) -> tuple[Any, Any]:
        """The positional and named arguments of `line` in one run."""
        args: Any = fx.node.map_arg(line.args, values.get)
        named: Any = fx.node.map_arg(line.kwargs, values.get)
        return args, named

    def _reshaped(self, line: fx.Node, value: _Value, results: Sequence[Tensor]) -> _Value:
        """The numbers of `value` in another shape, or with time and batch joined or apart."""
        example = results[0]
        dropped = line.target is functional.dropout and not torch.equal(example, value.example)
        for leading in (value.leading, 3 - value.leading) if not dropped else ():
            if reshaped := self._value(value.node, results, leading):
                return reshaped
        why = ", and drops some in evaluation" if dropped else "; time and batch must stay: nn.Flatten(2)"
        shapes = f"{list(example.shape)} of {list(value.example.shape)}"
        raise Unsupported(f"{self._where(line)} makes {shapes}{why}")

    def _refused(self, line: fx.Node) -> Unsupported:
        called = getattr(line.target, "__name__", line.target)
        return Unsupported(f"{self._where(line)}: {called} is not supported")

    def _where(self, line: fx.Node) -> str:
        """The call `line` and the module that contains it, for messages."""
        if line.op == "call_module":
            return f"layer {line.target!r}"
        layer = f"layer {line.meta['within']!r}"
        return f"{line.name!r} in {layer if line.meta['within'] else f'{type(self.net).__name__}.forward'}"

    def _add(self, line: fx.Node, node: Node, results: Sequence[Tensor], leading: int) -> None:
        value = self._value(node, results, leading)
        if value is None or math.prod(value.shape) != node.size:
            shapes = f"{list(results[0].shape)} of samples {node.shape}"
            raise Unsupported(f"{self._where(line)} makes {shapes}; time and batch must stay in front")
        example = value.example
        node.density = float(example.count_nonzero()) / example.numel()
        node.value_range = float(example.amin()), float(example.amax())
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
