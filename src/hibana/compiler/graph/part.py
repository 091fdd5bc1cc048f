"""A part of a traced graph that PyTorch runs once per call, before or after the kernels."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from hibana.runtime import torch_internals


@dataclass(frozen=True)
class Place:
    """A reference to the value with this index."""

    at: int


@dataclass(frozen=True)
class Part:
    """A part of a step's graph that PyTorch runs, as a function from tensors to tensors.

    Unlike ``fx.Interpreter`` it holds nothing between calls, so that threads can share it.
    """

    input_count: int
    calls: list[tuple[Any, Any, Any]]
    """Functions, their arguments and keyword arguments; each appends a value to those given."""
    outputs: list[int | None]

    def __call__(self, *tensors: Tensor) -> tuple[Any, ...]:
        values: list[Any] = list(tensors)
        for function, constant, open_, kwargs in self._ready:
            given = constant.copy()
            for i, argument in open_:
                given[i] = filled(argument, values)
            if kwargs:
                values.append(function(*given, **filled(kwargs, values)))
            else:
                values.append(function(*given))
        return tuple([None if end is None else values[end] for end in self.outputs])

    @cached_property
    def _ready(self) -> "list[_Call]":
        """The calls of the part; arguments that refer to no other value are filled in already."""
        return [_Call.of(*call) for call in self.calls]


class _Call(NamedTuple):
    """A function, its arguments that are constant, and with their indices those that hold places."""

    function: Any
    constant: list[Any]
    open: list[tuple[int, Any]]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, function: Any, args: Any, kwargs: dict[str, Any]) -> "_Call":
        open_ = [(i, argument) for i, argument in enumerate(args) if places_in(argument)]
        constant = [None if places_in(argument) else filled(argument, []) for argument in args]
        return cls(function, constant, open_, kwargs)


def part_between(
    graph: fx.Graph, inputs: list[fx.Node], outputs: list[Any], moved: dict[fx.Node, list[int]], device: str
) -> Part:
    """The part of `graph` from `inputs` to `outputs`; `moved` inputs are reshaped first."""
    needed: set[fx.Node] = set()
    stack = [node for node in outputs if node is not None]
    while stack:
        node = stack.pop()
        if node not in needed and node not in inputs:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    rest = [node for node in graph.nodes if node in needed]
    place = {node: Place(i) for i, node in enumerate([*inputs, *moved, *rest])}
    as_step = {node: Place(i) for i, node in enumerate(inputs)}
    standing: Any = place.__getitem__  # torch has it give nothing but what a node may hold
    calls: list[Any] = [
        (torch.ops.aten.reshape.default, (as_step[node], shape), {}) for node, shape in moved.items()
    ]
    calls += [
        (node.target, *fx.node.map_arg((node.args, _placed(node.kwargs, device)), standing)) for node in rest
    ]
    return Part(len(inputs), calls, [None if node is None else place[node].at for node in outputs])


def _placed(kwargs: dict[str, Any], device: str) -> dict[str, Any]:
    """`kwargs` of an operation that was traced on the meta device, for the step's `device`."""
    there = torch.device(device)
    return {n: there if n == "device" and v == torch.device("meta") else v for n, v in kwargs.items()}


def guarded_part(part: Part, first: int) -> Part:
    """`part` where zero times an unbounded derivative is zero; its arguments from `first` on are gradients.

    The other arguments count as finite, and so does what functions of :data:`_BOUNDED` compute of them.
    """
    calls: list[Any] = []
    places = {i: Place(i) for i in range(part.input_count)}
    flowing, finite = set(range(first, part.input_count)), set(range(first))

    def add(function: Any, *args: Any, **kwargs: Any) -> Place:
        calls.append((function, args, kwargs))
        return Place(part.input_count + len(calls) - 1)

    for i, (function, args, kwargs) in enumerate(part.calls, part.input_count):
        used = {place.at for place in places_in((args, kwargs))}
        places[i] = add(function, *filled(args, places), **filled(kwargs, places))
        gradients = used & flowing
        name = function._schema.name if isinstance(function, torch_internals.OpOverload) else ""
        if gradients:
            flowing.add(i)
        elif used <= finite and name in _BOUNDED:
            finite.add(i)
        is_divided = name == "aten::div" and {place.at for place in places_in(args[1])} - gradients
        if len(gradients) == 1 and (is_divided or (name == "aten::mul" and not used <= finite | gradients)):
            zero = add(torch.ops.aten.eq.Scalar, places[gradients.pop()], 0)
            places[i] = add(torch.ops.aten.masked_fill.Scalar, places[i], zero, 0)
    return Part(part.input_count, calls, [None if end is None else places[end].at for end in part.outputs])


_BOUNDED = {
    f"aten::{name}"
    for name in (
        *("add", "sub", "rsub", "mul", "neg", "abs", "exp", "sigmoid", "tanh", "softplus", "sin", "cos"),
        *("relu", "clamp", "clamp_min", "clamp_max", "where", "to", "_to_copy", "detach", "alias", "clone"),
        *("view", "reshape", "expand", "unsqueeze", "squeeze", "t", "transpose", "permute", "ones_like"),
    )
}
"""Functions whose result counts as finite for finite arguments."""


def filled(argument: Any, values: Any) -> Any:
    """`argument` with the value at each place in it."""
    if isinstance(argument, Place):
        return values[argument.at]
    if isinstance(argument, tuple | list):
        return [filled(part, values) for part in argument]
    if isinstance(argument, dict):
        return {name: filled(part, values) for name, part in argument.items()}
    return argument


def places_in(argument: Any) -> list[Place]:
    """The places of which :func:`filled` takes the values."""
    return [leaf for leaf in torch_internals.tree_leaves(argument) if isinstance(leaf, Place)]
