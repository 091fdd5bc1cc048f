"""Serialises a step with its plan as text, for a process that never saw the cell.

A graph that outlives its process (a file of ``torch.export``, the cache of ``torch.compile``) holds tensors,
numbers and text. Two texts are equal exactly when the steps compute the same from the same tensors with the
same residuals, so the text is also their cache key. What can't be serialised is refused.
"""

import json
import operator
from collections.abc import Callable, Iterable, Sequence
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

FORMAT = "hibana step"
_NAMED = {torch.dtype: "dtype", torch.memory_format: "memory_format", torch.layout: "layout"}
_FACTS = [field.name for field in fields(Value) if field.name != "args"]


def write(step: Step, plan: Plan, dtype: torch.dtype) -> str:
    """`step`, computed in `dtype`, and `plan`.

    Raises:
        Unsupported: if the step has what can't be serialised.
    """
    wanted = (*step.nexts, step.grad_input, *step.grad_states, *step.grad_sums, *step.sides, *plan.residuals)
    values = reachable(value for value in wanted if value is not None)
    place = {value: i for i, value in enumerate(values)}

    def places(of: Iterable[Value | None]) -> list[int | None]:
        return [None if value is None else place[value] for value in of]

    return json.dumps(
        {
            FORMAT: _version(),
            "dtype": _name(dtype),
            "states": step.states,
            "values": [
                [[place[a] for a in value.args], *(getattr(value, fact) for fact in _FACTS)]
                for value in values
            ],
            "facts": _FACTS,
            "nexts": places(step.nexts),
            "gradients": places((step.grad_input, *step.grad_states)),
            "sums": places(step.grad_sums),
            "constants": step.constants,
            "parameters": step.parameters,
            "matrices": step.matrices,
            "outer": places(step.sides),
            "draws": step.draws,
            "prologue": _written(step.prologue),
            "epilogue": _written(step.epilogue),
            "residuals": places(plan.residuals),
            "before": plan.before,
            "first": plan.first,
            "marks": places((plan.support, plan.spikes)),
        },
        separators=(",", ":"),
    )


def read(text: str) -> tuple[Step, Plan, torch.dtype]:
    """The step, the plan and the dtype that :func:`write` wrote.

    Raises:
        RuntimeError: if it was not written by this version of hibana.
    """
    try:
        held = json.loads(text)
        version = held[FORMAT]
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"this is no step that hibana wrote: {text[:60]!r}") from error
    if version != _version() or held["facts"] != _FACTS:
        raise RuntimeError(
            f"the program holds a step written by hibana {version}, and this is hibana {_version()}: export "
            "it again, or use hibana.convert.export for a program that needs no hibana"
        )
    values: list[Value] = []
    for args, *facts in held["values"]:
        given: dict[str, Any] = dict(zip(_FACTS, facts, strict=True))
        values.append(Value(args=tuple(values[a] for a in args), **given))

    def of(places: Sequence[int | None]) -> tuple[Any, ...]:
        return tuple(None if i is None else values[i] for i in places)

    grad_input, *grad_states = of(held["gradients"])
    step = Step(
        states=tuple(held["states"]),
        nexts=of(held["nexts"]),
        grad_input=grad_input,
        grad_states=tuple(grad_states),
        grad_sums=of(held["sums"]),
        constants=tuple(held["constants"]),
        prologue=_part(held["prologue"]),
        epilogue=_part(held["epilogue"]),
        parameters=held["parameters"],
        matrices=held["matrices"],
        outer=tuple(zip(*[iter(of(held["outer"]))] * 2, strict=True)),
        draws=held["draws"],
        any_size=True,
    )
    support, spikes = of(held["marks"])
    plan = Plan(of(held["residuals"]), tuple(held["before"]), tuple(held["first"]), support, spikes)
    return step, plan, getattr(torch, held["dtype"])


def _version() -> str:
    import hibana  # all of it, which is there by now, for one string

    return hibana.__version__


def _name(named: Any) -> str:
    return str(named).removeprefix("torch.")


def _written(part: Callable[..., Any]) -> dict[str, Any]:
    assert isinstance(part, Part)
    calls = [
        [_operation(part, i), _argument(args), _argument(kwargs)]
        for i, (_, args, kwargs) in enumerate(part.calls)
    ]
    return {"takes": part.input_count, "calls": calls, "gives": part.outputs}


def _operation(part: Part, index: int) -> str:
    target = part.calls[index][0]
    if target is foreign:
        at = part.input_count + index
        users = [function for function, *arguments in part.calls if Place(at) in places_in(arguments)]
        if at not in part.outputs and all(function in _FRESH for function in users):
            return "literal"  # a number that the step itself wrote as a tensor
        raise Unsupported("a tensor that the step takes from elsewhere than its cell can't be written down")
    if target is operator.getitem:
        return "part"
    if not isinstance(target, torch_internals.OpOverload) or target.namespace != "aten":
        raise Unsupported(f"{target} is no operation of ATen, and can't be written down")
    return f"{target._schema.name.removeprefix('aten::')}.{target._overloadname}"


_FRESH = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


def _argument(argument: Any) -> Any:
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    if isinstance(argument, Place):
        return {"value": argument.at}
    if isinstance(argument, tuple | list):
        return [_argument(part) for part in argument]
    if isinstance(argument, dict):
        return {"named": {key: _argument(part) for key, part in argument.items()}}
    if isinstance(argument, torch.device):
        return {"device": str(argument)}
    if isinstance(argument, Tensor):
        return {"tensor": argument.tolist(), "dtype": _name(argument.dtype)}
    for kind, name in _NAMED.items():
        if isinstance(argument, kind):
            return {name: _name(argument)}
    raise Unsupported(f"an argument of type {type(argument).__name__} can't be written down")


def _part(held: dict[str, Any]) -> Part:
    calls = [
        (_NAMES.get(name) or _overload(name), _understood(args), _understood(kwargs))
        for name, args, kwargs in held["calls"]
    ]
    return Part(held["takes"], calls, held["gives"])


_NAMES: dict[str, Callable[..., Any]] = {"literal": foreign, "part": operator.getitem}


def _overload(name: str) -> Any:
    packet, _, overload = name.rpartition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _understood(argument: Any) -> Any:
    if isinstance(argument, list):
        return [_understood(part) for part in argument]
    if not isinstance(argument, dict):
        return argument
    if "value" in argument:
        return Place(argument["value"])
    if "named" in argument:
        return {key: _understood(part) for key, part in argument["named"].items()}
    if "tensor" in argument:
        return torch.tensor(argument["tensor"], dtype=getattr(torch, argument["dtype"]), device="cpu")
    if "device" in argument:
        return torch.device(argument["device"])
    (name,) = argument.values()
    return getattr(torch, name)
