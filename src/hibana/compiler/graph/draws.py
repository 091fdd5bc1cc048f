"""The operations of ATen that draw random numbers, as values of a step.

A number that is drawn is a leaf of the step, ``uniform0`` or ``normal1``, by its kind and which draw of the
step it is: :mod:`hibana.compiler.draws` says what it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.step import Value
from hibana.compiler.graph.terms import Term

_ATEN = torch.ops.aten


def is_draw(target: Any) -> bool:
    """Whether `target` is an operation that draws random numbers which a kernel can draw."""
    return target in _RULES


def blank(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: str) -> Any:
    """A tensor as `target` gives one, without drawing a number; of a size alone, it is on `device`."""
    if target._schema.name.endswith("_"):
        return args[0]
    plain = {name: value for name, value in kwargs.items() if name != "generator"}
    if isinstance(args[0], Tensor):
        named = {name: value for name, value in plain.items() if name != "p"}
        return torch.zeros_like(args[0], **named)
    return torch.zeros(args[0], dtype=plain.get("dtype"), device=device)


def drawn(
    target: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    number: int,
    argument: Callable[[Any], Value],
    make: Callable[..., Value],
) -> Value:
    """The value of the draw `number` of a step, which `target` draws; as :func:`aten.translate`.

    Raises:
        Unsupported: if it has a generator of its own.
    """
    if kwargs.get("generator") is not None:
        raise Unsupported("the step draws random numbers from a generator of its own")
    schema = [each.name for each in target._schema.arguments]
    given = {**dict(zip(schema, args, strict=False)), **kwargs}

    def leaf(kind: str) -> Term:
        return Term(argument, make, make("draw", data=f"{kind}{number}"))

    terms = {
        name: Term(argument, make, a) if isinstance(a, torch.fx.Node) else a for name, a in given.items()
    }
    found: Value = _RULES[target](leaf, terms).value
    return make("to_float", found)


_Leaf = Callable[[str], Term]
_Rule = Callable[[_Leaf, dict[str, Any]], Any]
"""From a draw's leaves and the arguments of the operation to the term that it gives."""


def _uniform_between(leaf: _Leaf, given: dict[str, Any]) -> Any:
    low, high = given.get("from", 0.0), given.get("to", 1.0)
    return leaf("uniform") * (high - low) + low


def _normal_about(leaf: _Leaf, given: dict[str, Any]) -> Any:
    return leaf("normal") * given.get("std", 1.0) + given.get("mean", 0.0)


_RULES: dict[Any, _Rule] = {
    **dict.fromkeys((_ATEN.rand_like.default, _ATEN.rand.default), lambda leaf, _: leaf("uniform")),
    **dict.fromkeys((_ATEN.randn_like.default, _ATEN.randn.default), lambda leaf, _: leaf("normal")),
    _ATEN.bernoulli.default: lambda leaf, given: leaf("uniform") < given["self"],
    **dict.fromkeys(
        (_ATEN.bernoulli.p, _ATEN.bernoulli_.float, _ATEN.bernoulli_.Tensor),
        lambda leaf, given: leaf("uniform") < given.get("p", 0.5),
    ),
    _ATEN.uniform_.default: _uniform_between,
    _ATEN.normal_.default: _normal_about,
}
