"""What can be moved on a cell: its hyper-parameters, from its signature and by trying values.

No hyper-parameter is known here by name, but that a ``tau`` is a time constant. What a value may be is the
cell's own to say: the least that it accepts is found by making cells.
"""

import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from hibana.cells import Cell, surrogate
from hibana.cli.play.source import Trouble, said

__all__ = ["Choice", "Control", "Number", "Switch", "made", "of_cell", "of_surrogate", "surrogates"]


@dataclass(frozen=True)
class Number:
    """A number that can be dragged between `low` and `high`, and typed beyond; or one of `words`."""

    name: str
    value: float
    low: float
    high: float
    step: float
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Switch:
    """Yes or no."""

    name: str
    value: bool


@dataclass(frozen=True)
class Choice:
    """A surrogate, by name."""

    name: str
    value: str


Control = Number | Switch | Choice


def of_cell(made_of: type[Cell]) -> list[Control]:
    """The hyper-parameters of a cell, in the order of its signature.

    >>> from hibana.cells import LIFCell
    >>> [control.name for control in of_cell(LIFCell)]
    ['tau', 'threshold', 'surrogate', 'detach_reset', 'reset', 'rest', 'decay_input', 'leak_first']
    >>> of_cell(LIFCell)[0]
    Number(name='tau', value=2.0, low=1.0, high=20.0, step=0.05, words=())

    Raises:
        Trouble: if an argument has no default, or the cell can't be made at its defaults.
    """
    controls: list[Control] = []
    for name, parameter in inspect.signature(made_of).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            raise Trouble(f"each argument of {made_of.__name__} must have a default; {name} has none")
        control = _control(made_of, name, parameter.default, _words(parameter.annotation))
        if control is not None:
            controls.append(control)
    made(made_of, {})
    return controls


def of_surrogate(name: str) -> list[Control]:
    """The shape parameters of the surrogate called `name`.

    >>> of_surrogate("ATan")
    [Number(name='alpha', value=2.0, low=0.02, high=6.0, step=0.02, words=())]
    """
    default = surrogate.named(name)
    found = []
    for field in fields(default):
        value = getattr(default, field.name)
        found.append(_number(lambda **given: type(default)(**given), field.name, value, ()))
    return list(found)


def surrogates() -> list[str]:
    """The surrogates that can be made without arguments, by name."""
    listed = [getattr(surrogate, name) for name in surrogate.__all__]
    kinds = [kind for kind in listed if isinstance(kind, type) and issubclass(kind, surrogate.Surrogate)]
    return sorted(
        kind.__name__ for kind in kinds if not inspect.isabstract(kind) and kind is not surrogate.Formula
    )


def made(made_of: type[Cell], values: dict[str, Any]) -> Cell:
    """The cell with `values` for its hyper-parameters; a surrogate is ``(name, {parameter: value})``.

    Raises:
        Trouble: what the cell, or the surrogate, says of a value that it refuses.
    """
    try:
        given = {
            name: type(surrogate.named(value[0]))(**value[1]) if isinstance(value, tuple | list) else value
            for name, value in values.items()
        }
        return made_of(**_whole(made_of, given))
    except BaseException as error:  # a pasted cell may raise anything
        plain = isinstance(error, ValueError | TypeError) and made_of.__module__.startswith("hibana.")
        raise Trouble(str(error) if plain else said(error)) from error


def _whole(made_of: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values`, those that must be whole numbers as such: a slider gives floats."""
    wanted = inspect.signature(made_of).parameters
    return {
        name: int(value) if wanted[name].annotation is int and float(value).is_integer() else value
        for name, value in values.items()
    }


def _control(made_of: type[Cell], name: str, default: Any, words: tuple[str, ...]) -> Control | None:
    if isinstance(default, bool):
        return Switch(name, default)
    if isinstance(default, surrogate.Surrogate):
        return Choice(name, type(default).__name__)
    if isinstance(default, int | float):
        number = _number(lambda **given: made_of(**_whole(made_of, given)), name, float(default), words)
        return number if number.low < number.high else None  # others depend on a further argument
    return None


def _words(annotation: Any) -> tuple[str, ...]:
    """The literal texts among the types of an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(word for word in typing.get_args(annotation) if isinstance(word, str))
    return tuple(word for part in typing.get_args(annotation) for word in _words(part))


def _number(make: Callable[..., Any], name: str, value: float, words: tuple[str, ...]) -> Number:
    """The range of a number: as low as is accepted, up to ten (time constants) or three times its default."""

    def accepts(trial: float) -> bool:
        try:
            make(**{name: trial})
        except Exception:  # a refusal, of whatever kind
            return False
        return True

    size = abs(value) if math.isfinite(value) and value else 10.0 if math.isinf(value) else 1.0
    whole = accepts(value + 1) and not accepts(value + 0.5) and math.isfinite(value)
    high = size * (10 if name.startswith("tau") or whole else 3)
    step = 1.0 if whole else _round(high / 300)
    if value < 0:
        low, high = -high, 0.0
    else:
        low = -high if value == 0 else 0.0
    if not accepts(low):
        low = _least(accepts, size, step)
    if not accepts(high):
        high = _most(accepts, value, high, step)
    return Number(name, value, low, high, step, words)


def _least(accepts: Callable[[float], bool], right: float, step: float) -> float:
    """The least multiple of `step` that is accepted; 0 is not, and `right` is."""
    wrong, limit = 0.0, right
    for _ in range(60):
        middle = (wrong + limit) / 2
        wrong, limit = (wrong, middle) if accepts(middle) else (middle, limit)
    count = math.floor(limit / step)
    while not accepts(round(count * step, 9)) and count * step < right:
        count += 1
    return round(count * step, 9)


def _most(accepts: Callable[[float], bool], right: float, wrong: float, step: float) -> float:
    """The largest number of steps above `right` that is accepted; `wrong` is not."""
    count = math.floor((wrong - right) / step)
    while count > 0 and not accepts(round(right + count * step, 9)):
        count -= 1
    return round(right + count * step, 9)


def _round(step: float) -> float:
    """The round number 1, 2 or 5 times a power of ten next to `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    factor = min((1, 2, 5, 10), key=lambda candidate: abs(candidate - step / power))
    return float(f"{factor * power:.3g}")
