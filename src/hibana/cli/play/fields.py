"""Widgets for the hyper-parameters of a cell, generated from its signature and defaults."""

import inspect
import math
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from bokeh.models import Checkbox, Column, CustomJS, Select, Slider, Spinner, TextInput, UIElement

from hibana.cells import Cell, surrogate
from hibana.cli.play.source import Trouble

__all__ = ["WIDTH", "Field", "number", "of_cell", "of_surrogate"]

WIDTH = 260
"""Of the widgets, in pixels."""


class Field(NamedTuple):
    """A hyper-parameter: its name, its widgets, and a function that returns its value."""

    name: str
    element: UIElement
    value: Callable[[], Any]


def of_cell(kind: type[Cell], changed: Callable[[], None], defaults: dict[str, float]) -> list[Field]:
    """The hyper-parameters of a cell, in the order of its signature.

    Args:
        kind: the class of the cell.
        changed: called after each change of a value.
        defaults: values at the start, instead of those of the signature.

    Raises:
        Trouble: if an argument has no default.
    """
    fields: list[Field] = []
    for name, parameter in inspect.signature(kind).parameters.items():
        default = defaults.get(name, parameter.default)
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if default is parameter.empty:
            raise Trouble(f"each argument of {kind.__name__} must have a default; {name} has none")
        words = _words(parameter.annotation)
        if isinstance(default, bool):
            fields.append(_switch(name, default, changed))
        elif isinstance(default, surrogate.Surrogate):
            fields.append(_surrogate(name, type(default).__name__, changed))
        elif words or (isinstance(default, float) and math.isinf(default)):
            fields.append(_text(name, default, words, changed))
        elif isinstance(default, int | float):
            fields.append(number(name, default, changed, is_integer=parameter.annotation is int))
    return fields


def of_surrogate(name: str, changed: Callable[[], None]) -> list[Field]:
    """The shape parameters of the surrogate called `name`."""
    parameters = inspect.signature(type(surrogate.named(name))).parameters.values()
    return [number(each.name, each.default, changed) for each in parameters]


def number(
    name: str,
    value: float,
    changed: Callable[[], None],
    *,
    largest: float | None = None,
    is_integer: bool = False,
) -> Field:
    """A number: a slider up to `largest`, and a field for other values.

    Unless `largest` is given, the slider ends at 10 times the default for time constants and integers, and at
    3 times the default for other numbers. It starts at 0, or at minus its end if the default is not positive.
    """
    size = abs(value) or 1.0
    high = largest or size * (10 if name.startswith("tau") or is_integer else 3)
    low = 0.0 if value > 0 or largest else -high
    step = 1.0 if is_integer else 10.0 ** math.floor(math.log10(high / 100))
    spinner = Spinner(title=_title(name), value=value, step=step, name=name, width=WIDTH, mode="float")
    slider = Slider(
        start=low, end=high, step=step, value=value, show_value=False, width=WIDTH, name=f"{name} slider"
    )
    move = CustomJS(args={"slider": slider}, code="if (cb_obj.value !== null) slider.value = cb_obj.value")
    spinner.js_on_change("value", move)
    slider.js_link("value", spinner, "value")
    spinner.on_change("value", lambda attribute, old, new: changed())

    def read() -> float:
        if spinner.value is None:
            raise Trouble(f"{name} must be a number")
        return int(spinner.value) if is_integer else float(spinner.value)

    return Field(name, Column(spinner, slider), read)


def _switch(name: str, value: bool, changed: Callable[[], None]) -> Field:
    box = Checkbox(label=_title(name), active=value, name=name)
    box.on_change("active", lambda attribute, old, new: changed())
    return Field(name, box, lambda: bool(box.active))


def _text(name: str, value: object, words: tuple[str, ...], changed: Callable[[], None]) -> Field:
    """A number or one of `words`, typed."""
    accepted = " or ".join(("a number", *words))
    field = TextInput(title=f"{_title(name)} ({accepted})", value=f"{value}", name=name, width=WIDTH)
    field.on_change("value", lambda attribute, old, new: changed())

    def read() -> float | str:
        written: str = field.value.strip()
        if written in words:
            return written
        try:
            return float(written)
        except ValueError:
            raise Trouble(f"{name} must be {accepted}, got {written[:40]!r}") from None

    return Field(name, field, read)


def _surrogate(name: str, value: str, changed: Callable[[], None]) -> Field:
    """A surrogate by name, and below it its shape parameters."""
    select = Select(title=_title(name), value=value, options=_surrogates(), name=name, width=WIDTH)
    element, shapes = Column(), list[Field]()

    def show() -> None:
        shapes[:] = of_surrogate(select.value, changed)
        element.children = [select, *(each.element for each in shapes)]

    def choose(attribute: str, old: Any, new: Any) -> None:
        show()
        changed()

    show()
    select.on_change("value", choose)
    return Field(name, element, lambda: (select.value, {each.name: each.value() for each in shapes}))


def _surrogates() -> list[str]:
    """The names of the surrogates that can be made without arguments."""
    kinds = [getattr(surrogate, name) for name in surrogate.__all__]
    classes = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, surrogate.Surrogate)]
    return sorted(
        kind.__name__ for kind in classes if not inspect.isabstract(kind) and kind is not surrogate.Formula
    )


def _words(annotation: Any) -> tuple[str, ...]:
    """The literal texts among the types of an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(word for word in typing.get_args(annotation) if isinstance(word, str))
    return tuple(word for part in typing.get_args(annotation) for word in _words(part))


def _title(name: str) -> str:
    return name.replace("_", " ")
