"""A part of a traced graph that PyTorch runs once per call, before or after the kernels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from hibana.runtime import torch_internals


@dataclass(frozen=True)
class Place:
    """A reference to a value of a part."""

    at: int
    """Index of the value: inputs of the part come first, then the results of its calls."""


@dataclass(frozen=True)
class Part:
    """A part of a step's graph that PyTorch runs, as a function from tensors to tensors.

    Unlike ``fx.Interpreter`` it holds nothing between calls, so threads can share it.
    """

    input_count: int
    calls: list[tuple[Any, Any, Any]]
    """Functions, their arguments and keyword arguments; each call adds its result to the values."""
    outputs: list[int | None]
    """Indices of values."""

    def __call__(self, *tensors: Tensor) -> tuple[Any, ...]:
        """The outputs for the input `tensors`."""
        values: list[Any] = list(tensors)
        for function, args, kwargs in self.calls:
            values.append(function(*_fill(args, values), **_fill(kwargs, values)))
        return tuple(None if i is None else values[i] for i in self.outputs)


def part_between(
    graph: fx.Graph, inputs: list[fx.Node], outputs: list[Any], shapes: dict[fx.Node, list[int]], device: str
) -> Part:
    """The part of `graph` from `inputs` to `outputs`; inputs in `shapes` are reshaped first."""
    required: set[fx.Node] = set()
    stack = [node for node in outputs if node is not None]
    while stack:
        node = stack.pop()
        if node not in required and node not in inputs:
            required.add(node)
            stack.extend(node.all_input_nodes)
    nodes = [node for node in graph.nodes if node in required]
    places = {node: Place(i) for i, node in enumerate([*inputs, *shapes, *nodes])}
    place_of: Any = places.__getitem__  # fx annotates the function of `map_arg` as one from nodes to nodes
    calls: list[Any] = [
        (torch.ops.aten.reshape.default, (Place(inputs.index(node)), shape), {})
        for node, shape in shapes.items()
    ]
    for node in nodes:
        arguments = fx.node.map_arg((node.args, _on_device(node.kwargs, device)), place_of)
        calls.append((node.target, *arguments))
    return Part(len(inputs), calls, [None if node is None else places[node].at for node in outputs])


def _on_device(kwargs: dict[str, Any], device: str) -> dict[str, Any]:
    """`kwargs` of an operation, with `device` in place of the meta device that it was traced on."""
    meta, target = torch.device("meta"), torch.device(device)
    return {name: target if name == "device" and value == meta else value for name, value in kwargs.items()}


def guard_part(part: Part, first: int) -> Part:
    """Changes products with a gradient so that a gradient of zero times infinity or NaN is zero.

    Each product or quotient of a gradient and a computed value becomes zero where the gradient is zero. The
    inputs of `part` from `first` on are gradients; its other inputs count as finite.
    """
    calls: list[Any] = []
    places = {i: Place(i) for i in range(part.input_count)}
    backward, finite = set(range(first, part.input_count)), set(range(first))

    def add(function: Any, *args: Any, **kwargs: Any) -> Place:
        """Adds a call; returns the place of its result."""
        calls.append((function, args, kwargs))
        return Place(part.input_count + len(calls) - 1)

    for i, (function, args, kwargs) in enumerate(part.calls, part.input_count):
        used = {place.at for place in places_in((args, kwargs))}
        places[i] = add(function, *_fill(args, places), **_fill(kwargs, places))
        gradients = used & backward
        if gradients:
            backward.add(i)
        name = function._schema.name if isinstance(function, torch_internals.OpOverload) else ""
        is_divided = name == "aten::div" and {place.at for place in places_in(args[1])} - gradients
        if len(gradients) == 1 and (is_divided or (name == "aten::mul" and not used <= finite | gradients)):
            zero = add(torch.ops.aten.eq.Scalar, places[gradients.pop()], 0)
            places[i] = add(torch.ops.aten.masked_fill.Scalar, places[i], zero, 0)
    return Part(
        part.input_count, calls, [None if index is None else places[index].at for index in part.outputs]
    )


def _fill(argument: Any, values: Any) -> Any:
    """`argument` with the value at each place in it."""
    if isinstance(argument, Place):
        return values[argument.at]
    if isinstance(argument, list | tuple):
        return [_fill(part, values) for part in argument]
    if isinstance(argument, dict):
        return {name: _fill(part, values) for name, part in argument.items()}
    return argument


def places_in(argument: Any) -> list[Place]:
    """All places in a nested `argument`."""
    return [leaf for leaf in torch_internals.tree_leaves(argument) if isinstance(leaf, Place)]
