"""Serializes a traced step and its plan as JSON text.

Graphs of ``torch.export`` and ``torch.compile`` outlive the process that has the cell, and hold text instead
of the step. Two texts are equal exactly if the steps compute the same from the same tensors and store the
same residuals, so the text is also a cache key.

In the text, an object whose only key starts with ``$`` stands for a Python object. ``$define`` adds a value
of the step to a list, and ``$value`` refers to it by its index there.
"""

import json
import operator
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.part import Part, Place, places_in
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.recorder import foreign
from hibana.compiler.graph.step import Step, Value
from hibana.runtime import torch_internals
from hibana.version import __version__

FORMAT = "hibana step"
"""Key of the version of hibana that wrote the text."""


def write(step: Step, plan: Plan, dtype: torch.dtype) -> str:
    """Serializes `step`, computed in `dtype`, and `plan`.

    Raises:
        Unsupported: if the step contains an object that has no text form.
    """
    step_fields = _fields(step) | {"any_size": True}
    return _encode(step, {"dtype": dtype, "step": step_fields, "plan": _fields(plan)}, plan.residuals)


def structure_key(step: Step) -> str:
    """Text that is equal for steps that share kernels: for steps that differ only in their constants."""
    ignored = {"constants": len(step.constants), "prologue": None, "epilogue": None, "any_size": None}
    return _encode(step, _fields(step) | ignored)


def read(text: str) -> tuple[Step, Plan, torch.dtype]:
    """The step, the plan and the dtype in a text of :func:`write`.

    Raises:
        RuntimeError: if another version of hibana wrote `text`, or it is not the text of a step.
    """
    try:
        version = json.loads(text)[FORMAT]
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"this is no step that hibana wrote: {text[:60]!r}") from error
    if version != __version__:
        raise RuntimeError(
            f"the program holds a step written by hibana {version}, and this is hibana {__version__}: export "
            "it again, or use hibana.convert.export for a program that needs no hibana"
        )
    document = _decode(text)
    step, plan = ({name: _as_tuple(item) for name, item in document[key].items()} for key in ("step", "plan"))
    return Step(**step), Plan(**plan), document["dtype"]


def _fields(record: Step | Plan) -> dict[str, Any]:
    """The fields of a record by name; nested records stay as they are."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _as_tuple(item: Any) -> Any:
    """`item` with tuples for its nested lists."""
    return tuple(map(_as_tuple, item)) if isinstance(item, list) else item


def _encode(step: Step, document: dict[str, Any], residuals: tuple[Value, ...] = ()) -> str:
    """JSON text of `document`, which refers to values of `step` and to `residuals`."""
    roots = (*step.nexts, step.grad_input, *step.grad_states, *step.grad_sums, *step.sides, *residuals)
    index = {value: i for i, value in enumerate(reachable(root for root in roots if root is not None))}

    def encode(item: Any) -> dict[str, Any]:
        """An object that JSON does not know, as an object with one key that begins with ``$``."""
        match item:
            case Value():
                return {"$value": index[item]}
            case Place():
                return {"$place": item.at}
            case Part():
                calls = [(_operator_name(item, i), *call[1:]) for i, call in enumerate(item.calls)]
                return {"$part": [item.input_count, calls, item.outputs]}
            case torch.device():
                return {"$device": str(item)}
            case Tensor():
                return {"$tensor": [item.tolist(), item.dtype]}
            case torch.dtype() | torch.memory_format() | torch.layout():
                return {"$constant": str(item).removeprefix("torch.")}
        raise Unsupported(f"an argument of type {type(item).__name__} can't be written down")

    values = [{"$define": [v.op, [index[a] for a in v.args], v.data, v.scalar]} for v in index]
    text = {FORMAT: __version__, "values": values, **document}
    return json.dumps(text, default=encode, separators=(",", ":"))


def _decode(text: str) -> dict[str, Any]:
    """The document in `text`, with Python objects for its ``$`` objects."""
    values: list[Value] = []

    def define(op: str, args: list[int], data: int, scalar: bool) -> None:
        """Adds the next value of the step; `args` are indices of earlier values."""
        values.append(Value(op, tuple(values[i] for i in args), data, scalar))

    def part(input_count: int, calls: list[Any], outputs: list[int | None]) -> Part:
        """A part of the step's graph that PyTorch runs; `calls` are names of functions, and arguments."""
        return Part(input_count, [(_operator(name), *arguments) for name, *arguments in calls], outputs)

    decoders: dict[str, Callable[[Any], Any]] = {
        "$define": lambda arguments: define(*arguments),
        "$value": values.__getitem__,
        "$place": Place,
        "$part": lambda arguments: part(*arguments),
        "$device": torch.device,
        "$tensor": lambda content: torch.tensor(content[0], dtype=content[1], device="cpu"),
        "$constant": lambda name: getattr(torch, name),
    }

    def decode(item: dict[str, Any]) -> Any:
        """The Python object for a JSON object with a ``$`` key; other objects unchanged."""
        key = next(iter(item), "")
        return decoders[key](item[key]) if key in decoders else item

    document: dict[str, Any] = json.loads(text, object_hook=decode)
    return document


_OPERATORS: dict[str, Callable[..., Any]] = {"literal": foreign, "part": operator.getitem}
"""Operators of a part that are not ATen's, by their name in the text."""
_COPIES = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


def _operator_name(part: Part, index: int) -> str:
    """The name in the text of the operator of call `index` of `part`."""
    target = part.calls[index][0]
    if target is foreign:
        at = part.input_count + index
        users = [function for function, *arguments in part.calls if Place(at) in places_in(arguments)]
        if at not in part.outputs and all(function in _COPIES for function in users):
            return "literal"  # a number in the code of the step, such as torch.tensor(0.5)
        raise Unsupported("a tensor that the step takes from elsewhere than its cell can't be written down")
    if target is operator.getitem:
        return "part"
    if not isinstance(target, torch_internals.OpOverload) or target.namespace != "aten":
        raise Unsupported(f"{target} is no operation of ATen, and can't be written down")
    return f"{target._schema.name.removeprefix('aten::')}.{target._overloadname}"


def _operator(name: str) -> Any:
    """The operator that :func:`_operator_name` called `name`."""
    if name in _OPERATORS:
        return _OPERATORS[name]
    packet, _, overload = name.rpartition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)
