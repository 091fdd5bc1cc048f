"""Widgets for the hyperparameters of a cell, generated from its signature and defaults."""

import inspect
import math
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from bokeh.models import Checkbox, Column, CustomJS, Select, Slider, Spinner, TextInput, UIElement

from hibana.cells import Cell, surrogate
from hibana.cli.play.source import UserError

WIDTH = 260
"""Width of the widgets, in pixels."""


class Field(NamedTuple):
    """A hyperparameter: its name, its widgets, and a function that returns its value."""

    name: str
    element: UIElement
    value: Callable[[], Any]


def cell_fields(kind: type[Cell], on_change: Callable[[], None], defaults: dict[str, float]) -> list[Field]:
    """Returns fields for the hyperparameters of a cell, in the order of its signature.

    Args:
        kind: class of the cell.
        on_change: called after each change of a value.
        defaults: initial values that replace the signature's.

    Raises:
        UserError: if an argument has no default.
    """
    fields: list[Field] = []
    for name, parameter in inspect.signature(kind).parameters.items():
        default = defaults.get(name, parameter.default)
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if default is parameter.empty:
            raise UserError(f"each argument of {kind.__name__} must have a default; {name} has none")
        words = _literal_words(parameter.annotation)
        if isinstance(default, bool):
            box = Checkbox(label=_title(name), active=default, name=name)
            box.on_change("active", lambda attribute, old, new: on_change())
            fields.append(Field(name, box, partial(getattr, box, "active")))
        elif isinstance(default, surrogate.Surrogate):
            fields.append(_surrogate_field(name, type(default).__name__, on_change))
        elif words or (isinstance(default, float) and math.isinf(default)):
            fields.append(_text_field(name, default, words, on_change))
        elif isinstance(default, int | float):
            fields.append(number_field(name, default, on_change, is_integer=parameter.annotation is int))
    return fields


def number_field(
    name: str,
    value: float,
    on_change: Callable[[], None],
    *,
    largest: float | None = None,
    is_integer: bool = False,
) -> Field:
    """Returns a field for a number: a slider, and a text field that also accepts larger values.

    Args:
        name: name of the hyperparameter.
        value: initial value.
        on_change: called after each change.
        largest: end of the slider. Default: 10 times `value` for time constants and integers, 3 times `value`
            for other numbers. The slider starts at 0, or at minus its end if `value` is not positive.
        is_integer: whether the value is an integer.
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
    spinner.on_change("value", lambda attribute, old, new: on_change())

    def read() -> float:
        """Returns the number; raises UserError if the field is empty."""
        if spinner.value is None:
            raise UserError(f"{name} must be a number")
        return int(spinner.value) if is_integer else float(spinner.value)

    return Field(name, Column(spinner, slider), read)


def _text_field(name: str, value: object, words: tuple[str, ...], on_change: Callable[[], None]) -> Field:
    """Returns a text field that accepts a number or one of `words`."""
    accepted = " or ".join(("a number", *words))
    field = TextInput(title=f"{_title(name)} ({accepted})", value=f"{value}", name=name, width=WIDTH)
    field.on_change("value", lambda attribute, old, new: on_change())

    def read() -> float | str:
        """Returns the text if it is one of `words`, else the number; raises UserError if it is neither."""
        text: str = field.value.strip()
        if text in words:
            return text
        try:
            return float(text)
        except ValueError:
            raise UserError(f"{name} must be {accepted}, got {text[:40]!r}") from None

    return Field(name, field, read)


def _surrogate_field(name: str, value: str, on_change: Callable[[], None]) -> Field:
    """Returns a menu of surrogates with the fields of the selected one below it."""
    options = sorted(surrogate.NAMES)
    select = Select(title=_title(name), value=value, options=options, name=name, width=WIDTH)
    element, parameters = Column(), list[Field]()

    def show() -> None:
        """Shows fields for the shape parameters of the selected surrogate."""
        shape = inspect.signature(type(surrogate.named(select.value))).parameters
        parameters[:] = [number_field(name, p.default, on_change) for name, p in shape.items()]
        element.children = [select, *(field.element for field in parameters)]

    def choose(attribute: str, old: Any, new: Any) -> None:
        """Shows the fields of the new surrogate, and reports the change."""
        show()
        on_change()

    show()
    select.on_change("value", choose)
    return Field(name, element, lambda: (select.value, {field.name: field.value() for field in parameters}))


def _literal_words(annotation: Any) -> tuple[str, ...]:
    """Returns the texts in the ``Literal`` types of an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(word for word in typing.get_args(annotation) if isinstance(word, str))
    return tuple(word for part in typing.get_args(annotation) for word in _literal_words(part))


def _title(name: str) -> str:
    """Returns `name` in words, for the page."""
    return name.replace("_", " ")
