"""The hyper-parameters of a cell as controls, from its signature and defaults."""

import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from hibana.cells import Cell, surrogate
from hibana.cli.play.source import Trouble, describe_error

__all__ = ["Choice", "Control", "Number", "Switch", "make_cell", "of_cell", "of_surrogate", "surrogates"]


@dataclass(frozen=True)
class Number:
    """A number with a slider from `low` to `high`; other numbers, or one of `words`, can be typed."""

    name: str
    value: float
    low: float
    high: float
    step: float
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Switch:
    """A truth value."""

    name: str
    value: bool


@dataclass(frozen=True)
class Choice:
    """A surrogate, by name."""

    name: str
    value: str


Control = Number | Switch | Choice


def of_cell(kind: type[Cell]) -> list[Control]:
    """The hyper-parameters of a cell, in the order of its signature.

    >>> from hibana.cells import LIFCell
    >>> [control.name for control in of_cell(LIFCell)]
    ['tau', 'threshold', 'surrogate', 'detach_reset', 'reset', 'rest', 'decay_input', 'leak_first']
    >>> of_cell(LIFCell)[0]
    Number(name='tau', value=2.0, low=1.0, high=20.0, step=0.05, words=())

    Raises:
        Trouble: if an argument has no default, or the cell can't be made with its defaults.
    """
    controls: list[Control] = []
    for name, parameter in inspect.signature(kind).parameters.items():
        default = parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if default is parameter.empty:
            raise Trouble(f"each argument of {kind.__name__} must have a default; {name} has none")
        if isinstance(default, bool):
            controls.append(Switch(name, default))
        elif isinstance(default, surrogate.Surrogate):
            controls.append(Choice(name, type(default).__name__))
        elif isinstance(default, int | float):
            number = _number(lambda **value: make_cell(kind, value), name, float(default))
            if number.low < number.high:  # other values may depend on a further argument
                controls.append(Number(**{**vars(number), "words": _words(parameter.annotation)}))
    make_cell(kind, {})
    return controls


def of_surrogate(name: str) -> list[Number]:
    """The shape parameters of the surrogate called `name`.

    >>> of_surrogate("ATan")
    [Number(name='alpha', value=2.0, low=0.02, high=6.0, step=0.02, words=())]
    """
    default = surrogate.named(name)
    return [_number(type(default), field.name, getattr(default, field.name)) for field in fields(default)]


def surrogates() -> list[str]:
    """The surrogates that can be made without arguments, by name."""
    kinds = [getattr(surrogate, name) for name in surrogate.__all__]
    return sorted(
        kind.__name__
        for kind in kinds
        if isinstance(kind, type)
        and issubclass(kind, surrogate.Surrogate)
        and not inspect.isabstract(kind)
        and kind is not surrogate.Formula
    )


def make_cell(kind: type[Cell], values: dict[str, Any]) -> Cell:
    """The cell with hyper-parameters `values`; a surrogate is ``(name, {parameter: value})``.

    Raises:
        Trouble: with the message of the cell, or the surrogate, for a value that it refuses.
    """
    parameters = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {}
    try:
        for name, value in values.items():
            if isinstance(value, tuple):
                arguments[name] = type(surrogate.named(value[0]))(**value[1])
            elif parameters[name].annotation is int and float(value).is_integer():
                arguments[name] = int(value)  # sliders give floats
            else:
                arguments[name] = value
        return kind(**arguments)
    except Exception as error:  # a pasted cell may raise any
        plain = isinstance(error, ValueError | TypeError) and kind.__module__.startswith("hibana.")
        raise Trouble(str(error) if plain else describe_error(error)) from error


def _words(annotation: Any) -> tuple[str, ...]:
    """The literal texts among the types of an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(word for word in typing.get_args(annotation) if isinstance(word, str))
    return tuple(word for part in typing.get_args(annotation) for word in _words(part))


def _number(make: Callable[..., Any], name: str, value: float) -> Number:
    """A number up to 10 times (time constants, whole numbers) or 3 times its default, if `make` accepts it.

    The slider starts at the first of these that `make` accepts: minus its end if the default is 0, 0, one
    step, 1, the default.
    """

    def accepts(trial: float) -> bool:
        try:
            make(**{name: trial})
        except Exception:
            return False
        return True

    whole = math.isfinite(value) and accepts(value + 1) and not accepts(value + 0.5)
    size = abs(value) if math.isfinite(value) and value else 10.0 if math.isinf(value) else 1.0
    high = size * (10 if name.startswith("tau") or whole else 3)
    step = 1.0 if whole else _rounded(high / 300)
    if value < 0:
        return Number(name, value, -high, 0.0 if accepts(0.0) else -step, step)
    lows = (-high,) if value == 0 else ()
    low = next((low for low in (*lows, 0.0, step, 1.0) if accepts(low)), size)
    return Number(name, value, low, high if accepts(high) else 1.0 if accepts(1.0) else size, step)


def _rounded(step: float) -> float:
    """The number 1, 2 or 5 times a power of ten closest to `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    factor = min((1, 2, 5, 10), key=lambda candidate: abs(candidate - step / power))
    return float(f"{factor * power:.3g}")
