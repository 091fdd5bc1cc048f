"""The only reader of networks: traces a network, and runs its calls on an example, to a graph of layers.

Each call runs twice: on the example, and on zeros with another number of steps and samples (the probe). A
dimension counts as time or batch only if its size follows theirs in both runs, so sizes that coincide by
chance are not confused.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hibana.compiler.analysis.binary import is_binary
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import add_hint
from hibana.network.fold import trace_folded
from hibana.network.graph import Network
from hibana.network.integer_network import Quantized
from hibana.network.layers import Call, LayerKind, kind_of, kind_of_function
from hibana.network.node import Node

__all__ = ["read"]

_SIZES: tuple[Any, ...] = (getattr, "size", "dim", "numel")
"""Functions and methods of tensors whose results are sizes."""
_ALTERNATIVES = dict.fromkeys(("layer_norm", "group_norm"), "call nn.LayerNorm or nn.GroupNorm")
"""What to use instead of a class or function without a kind, for messages."""


def read(net: nn.Module, example: Tensor, *, shares_state: bool = False) -> Network:
    """`net` as a graph, batch normalization folded, with statistics of its values on `example`.

    Args:
        net: a network over ``[T, batch, ...]``; it does not change. The graph of a :class:`Quantized` is that
            of its network in integers.
        example: an input of `net`.
        shares_state: whether a layer over time may be called several times, each time with its own state.

    Raises:
        TypeError: if `example` is not a floating-point tensor.
        ValueError: if it is not ``[T, batch, ...]``.
        Unsupported: if `net` cannot be traced, or naming a layer without a kind.
    """
    if not isinstance(example, Tensor) or not example.is_floating_point():
        kind = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(f"example must be a floating-point tensor [T, batch, ...], got {kind}")
    if example.ndim < 3 or not example.numel() or example.is_meta:
        shape = f"{tuple(example.shape)} on {example.device}"
        raise ValueError(f"example must be [T, batch, ...], none of them 0, with numbers, got {shape}")
    if type(net) is Quantized:  # one in training, a subclass, may have integers older than its weights
        return read(net.net, net.integer_input(example), shares_state=shares_state)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            folded, calls = trace_folded(net)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        return _Reader(folded, calls, example, shares_state).network()


class _Sizes(NamedTuple):
    """A result that is not a tensor, such as a size, for the example and the probe (another T and batch)."""

    example: Any
    probe: Any


@dataclass
class _Value:
    """A tensor that the network computes from the example, and from the probe (another T and batch)."""

    example: Tensor
    """``[T, batch, ...]``, or ``[T * batch, ...]``."""
    probe: Tensor
    """The same tensor, computed from the probe."""
    leading: int
    """The number of dimensions before those of a sample: 2, or 1."""
    node: Node
    """The node with the same numbers in the same order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.example.shape[self.leading :])


class _Reader:
    """Runs each call of a traced network on the example and on the probe, and makes nodes of the calls."""

    def __init__(self, net: nn.Module, calls: fx.Graph, example: Tensor, shares_state: bool) -> None:
        self.net, self.calls, self.shares_state = net, calls, shares_state
        steps, batch = example.shape[:2]
        probe_steps = 3 if steps == 2 else 2
        probe_batch = next(
            n for n in (3, 5, 7) if n not in (batch, probe_steps) and probe_steps * n != steps * batch
        )
        self.inputs = example, example.new_zeros(probe_steps, probe_batch, *example.shape[2:])
        self.nodes: list[Node] = []
        self.results: dict[fx.Node, _Value | _Sizes] = {}
        """The result of each call."""
        self.call_counts = Counter(call.target for call in calls.nodes if call.op == "call_module")

    def network(self) -> Network:
        """Reads all calls, and returns the graph of layers."""
        for call in self.calls.nodes:
            if call.op == "placeholder":
                node = Node("input", "input", None, (), (), tuple(self.inputs[0].shape[2:]))
                self._add(call, node, self.inputs, 2)
            elif call.op == "output":
                (out,) = call.args
                result = self._argument(call, out) if isinstance(out, fx.Node) else None
                if not isinstance(result, _Value) or result.leading != 2:
                    raise Unsupported("net must return one tensor, [T, batch, ...], computed of its input")
                dtype = self.inputs[0].dtype
                return Network(tuple(self.nodes), result.node, result.shape, dtype, self.net)
            elif call.op == "call_module":
                self._read_module(call, str(call.target))
            elif call.op == "get_attr":
                raise Unsupported(f"{call.target!r} is a tensor outside of a layer and can't be written")
            else:
                self._read_function(call)
        raise Unsupported("net returns nothing")

    def _argument(self, call: fx.Node, source: fx.Node) -> _Value | _Sizes:
        """The result of `source` for `call`; inside :class:`EachStep`, time and batch are one dimension."""
        value, leading = self.results[source], call.meta["leading"]
        if not isinstance(value, _Value) or leading == source.meta["leading"]:
            return value
        if value.leading != 3 - leading:
            raise Unsupported(f"{self._where(call)} joins time and batch, which are joined already")
        example, probe = (
            tensor.reshape(*(input_.shape[:2] if leading == 2 else (-1,)), *value.shape)
            for tensor, input_ in zip((value.example, value.probe), self.inputs, strict=True)
        )
        return _Value(example, probe, leading, value.node)

    def _read_module(self, call: fx.Node, name: str) -> None:
        """Runs the module `name` on the inputs of `call`, and adds a node for it."""
        module: Any = self.net.get_submodule(name)
        layer = f"layer {name!r}: {type(module).__name__}"
        arguments = [self._argument(call, source) for source in call.all_input_nodes]
        value = arguments[0] if len(arguments) == 1 == len((*call.args, *call.kwargs)) else None
        if not isinstance(value, _Value):
            raise Unsupported(f"{layer} must be called with one tensor")
        if call.meta.get("normalized") and value.leading != 1:
            raise Unsupported(
                f"{layer}: batch normalization after it takes samples for channels: use EachStep"
            )
        kind, count = kind_of(module), self.call_counts[name]
        if kind is None:
            raise Unsupported(f"{layer} is not a supported layer{_alternative(type(module).__name__)}")
        if kind.over_time and count > 1 and not self.shares_state:
            raise Unsupported(f"layer {name!r} is called {count} times, with a state for each")
        if kind.over_time and value.leading == 1:
            raise Unsupported(f"{layer} is called with time and batch joined")
        try:
            example = module(value.example)
        except (RuntimeError, ValueError) as error:
            add_hint(self.net, error)
            raise
        try:
            results = example, module(value.probe)
        except (RuntimeError, ValueError) as error:
            raise Unsupported(f"{layer} takes no other number of steps or samples: {error}") from error
        if not all(isinstance(result, Tensor) for result in results):
            raise Unsupported(f"{layer} must return one tensor")
        self._read(call, kind, module, [value], results)

    def _read_function(self, call: fx.Node) -> None:
        """Runs the function or tensor method that `call` calls, and adds a node for it, or stores a size."""
        target: Any = call.target
        kind = kind_of_function(target)
        sources = {source: self._argument(call, source) for source in call.all_input_nodes}
        args = _flat(fx.node.map_arg(call.args, cast(Any, sources.get)))
        values = [value for value in args if isinstance(value, _Value)]
        count = sum(isinstance(value, _Value) for value in sources.values())
        name = getattr(target, "__name__", target)
        unsupported = Unsupported(f"{self._where(call)}: {name} is not supported{_alternative(name)}")
        if count > len(values) or (values and kind is None and target not in _SIZES):
            raise unsupported
        runs: list[tuple[Any, Any]] = []
        """Positional and named arguments on the example and on the probe."""
        for which in ("example", "probe"):
            tensor_of = {source: getattr(value, which) for source, value in sources.items()}
            runs.append(fx.node.map_arg((call.args, call.kwargs), tensor_of.get))
        try:
            results = [
                getattr(tensors[0], target)(*tensors[1:], **named)
                if call.op == "call_method"
                else target(*tensors, **named)
                for tensors, named in runs
            ]
        except Exception as error:  # a function may raise anything for arguments of another shape
            raise Unsupported(f"{self._where(call)}: {str(error).partition(chr(10))[0]}") from error
        if not isinstance(results[0], Tensor):
            self.results[call] = _Sizes(*results)
            return
        if kind is None or not values or len({value.leading for value in values}) > 1:
            raise unsupported
        constants = [
            arg for arg, value in zip(_flat(runs[0][0]), args, strict=True) if not isinstance(value, _Value)
        ]
        node_count = len(self.nodes)
        self._read(call, kind, None, values, results, tuple(constants), runs[0][1])
        sizes = [value for value in sources.values() if isinstance(value, _Sizes)]
        if len(self.nodes) > node_count and any(size.example != size.probe for size in sizes):
            raise Unsupported(f"{self._where(call)} computes with a number that depends on T or batch")

    def _read(
        self,
        call: fx.Node,
        kind: LayerKind,
        module: nn.Module | None,
        values: list[_Value],
        results: Sequence[Tensor],
        *arguments: Any,
    ) -> None:
        """Adds the node that `kind` reads from `call`, whose tensor inputs are `values`.

        `results` are the outputs of the call on the example and on a second input with other numbers of
        steps and samples. `arguments` are the other arguments of a function, positional and named.
        """
        inputs, shapes = tuple(value.node for value in values), tuple(value.shape for value in values)
        leading, name = values[0].leading, call.name if module is None else str(call.target)
        shape = tuple(results[0].shape[leading:])
        node = Node(name, kind.name, module, inputs, shapes, shape)
        function = call.target if module is None else None
        node = kind.read(Call(node, self._where(call), leading, function, *arguments))
        if node in inputs:  # the call only changes the shape
            self.results[call] = self._reshaped(call, values[0], results)
        else:
            self._add(call, node, results, leading)

    def _reshaped(self, call: fx.Node, value: _Value, results: Sequence[Tensor]) -> _Value:
        """The value of a call that reshapes `value`, or joins or splits time and batch; raises for others."""
        example = results[0]
        dropped = call.target is functional.dropout and not torch.equal(example, value.example)
        for leading in (value.leading, 3 - value.leading) if not dropped else ():
            if reshaped := self._value(value.node, results, leading):
                return reshaped
        reason = ", and drops some in evaluation" if dropped else "; time and batch must stay: nn.Flatten(2)"
        shapes = f"{list(example.shape)} of {list(value.example.shape)}"
        raise Unsupported(f"{self._where(call)} makes {shapes}{reason}")

    def _where(self, call: fx.Node) -> str:
        """`call` and the module that contains it, for messages."""
        if call.op == "call_module":
            return f"layer {call.target!r}"
        path = call.meta["within"]
        return f"{call.name!r} in {f'layer {path!r}' if path else f'{type(self.net).__name__}.forward'}"

    def _add(self, call: fx.Node, node: Node, results: Sequence[Tensor], leading: int) -> None:
        """Adds `node` with the statistics of its outputs on the example.

        `results` are the outputs of `call` on the example and on the probe; their first `leading` dimensions
        are time and batch.
        """
        value = self._value(node, results, leading)
        if value is None or math.prod(value.shape) != node.size:
            shapes = f"{list(results[0].shape)} of samples {node.shape}"
            raise Unsupported(f"{self._where(call)} makes {shapes}; time and batch must stay in front")
        example = value.example
        node.density = float(example.count_nonzero()) / example.numel()
        node.value_range = float(example.amin()), float(example.amax())
        node.binary = is_binary(example)
        for source in node.inputs:
            source.users.append(node)
        self.nodes.append(node)
        self.results[call] = value

    def _value(self, node: Node, results: Sequence[Tensor], leading: int) -> _Value | None:
        """The outputs of `node` on the example and on the probe as one record.

        None unless the sizes of the first `leading` dimensions follow T and batch, and all others are equal.
        """
        example, probe = results
        for result, input_ in zip(results, self.inputs, strict=True):
            steps, batch = input_.shape[:2]
            if result.shape[:leading] != ((steps, batch) if leading == 2 else (steps * batch,)):
                return None
        same_shape = example.shape[leading:] == probe.shape[leading:]
        return _Value(example, probe, leading, node) if same_shape else None


def _flat(arguments: Sequence[Any]) -> list[Any]:
    """`arguments`, with the tensors of a list of tensors in place of the list."""
    flat: list[Any] = []
    for argument in arguments:
        is_list = isinstance(argument, list | tuple) and isinstance(next(iter(argument), 0), Tensor | _Value)
        flat += argument if is_list else [argument]
    return flat


def _alternative(name: str) -> str:
    """The end of a message about an unsupported class or function `name`: what to use instead, if known."""
    return f"; {_ALTERNATIVES[name]}" if name in _ALTERNATIVES else ""
