"""One control as a row: its name, a field to type in, a slider to drag; and what it says."""

import math
from collections.abc import Callable
from typing import Any

from bokeh.models import Checkbox, Column, Div, Row, Select, Slider, TextInput, UIElement

from hibana.cli.play import controls
from hibana.cli.play.source import Trouble
from hibana.cli.play.view.look import BLUE, WIDGET

__all__ = ["ChoiceField", "Field", "NumberField", "SwitchField", "chooser", "field", "label"]

WIDTH = 272
"""Of the controls, in pixels."""


class NumberField:
    """A number: dragged within its range, or typed, beyond it too; nonsense stays there, and is told."""

    def __init__(self, control: controls.Number, changed: Callable[[], None]) -> None:
        self.control, self._changed, self._setting = control, changed, False
        self._class = f"text-{slug(control.name)}"
        shown = f"{control.name} or “{control.words[0]}”" if control.words else control.name
        self._text = TextInput(
            value=_written(control.value), width=92, css_classes=[self._class], margin=0, stylesheets=[WIDGET]
        )
        self._slider = Slider(
            start=control.low,
            end=control.high,
            step=control.step,
            value=self._within(control.value),
            show_value=False,
            title=None,
            bar_color=BLUE,
            width=WIDTH - 16,
            margin=(4, 8, 8, 8),
            css_classes=[f"slider-{slug(control.name)}"],
            stylesheets=[WIDGET],
        )
        self._text.on_change("value", self._typed)
        self._slider.on_change("value", self._dragged)
        self.element = Column(
            Row(label(shown, WIDTH - 92), self._text, width=WIDTH, margin=0), self._slider, margin=0
        )

    def value(self) -> float | str:
        """What the field says.

        Raises:
            Trouble: if that is neither a number nor one of the words.
        """
        text: str = self._text.value.strip()
        if text in self.control.words:
            return text
        try:
            return float(text)
        except ValueError:
            words = "".join(f" or {word}" for word in self.control.words)
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            raise Trouble(f"{self.control.name} must be a number{words}, got {shown!r}") from None

    def _within(self, value: float) -> float:
        return min(max(value, self.control.low), self.control.high)

    def _dragged(self, attribute: str, old: Any, new: Any) -> None:
        if not self._setting:
            self._set(lambda: setattr(self._text, "value", _written(float(new))))

    def _typed(self, attribute: str, old: Any, new: Any) -> None:
        if self._setting:
            return
        try:
            value = self.value()
        except Trouble:
            value = math.nan
        if isinstance(value, float) and not math.isnan(value):
            self._set(lambda: setattr(self._slider, "value", self._within(value)))
        else:
            self._set(lambda: None)

    def _set(self, change: Callable[[], None]) -> None:
        self._setting = True
        try:
            change()
            self._text.css_classes = [self._class] if self._speaks() else [self._class, "wrong"]
        finally:
            self._setting = False
        self._changed()

    def _speaks(self) -> bool:
        try:
            self.value()
        except Trouble:
            return False
        return True


class SwitchField:
    """Yes or no."""

    def __init__(self, control: controls.Switch, changed: Callable[[], None]) -> None:
        self.control = control
        self._box = Checkbox(
            label=control.name.replace("_", " "),
            active=control.value,
            css_classes=[f"switch-{slug(control.name)}"],
            margin=(2, 0, 8, 0),
            stylesheets=[WIDGET],
        )
        self._box.on_change("active", lambda attribute, old, new: changed())
        self.element = self._box

    def value(self) -> bool:
        return bool(self._box.active)


class ChoiceField:
    """A surrogate, and below it the numbers that shape it."""

    def __init__(self, control: controls.Choice, changed: Callable[[], None]) -> None:
        self.control, self._changed = control, changed
        self._select = _select(control.name, control.value, controls.surrogates())
        self._select.on_change("value", self._chosen)
        self._shapes: list[Field] = []
        self.element = Column(margin=0)
        self._show()

    def value(self) -> tuple[str, dict[str, Any]]:
        return self._select.value, {each.control.name: each.value() for each in self._shapes}

    def _chosen(self, attribute: str, old: Any, new: Any) -> None:
        self._show()
        self._changed()

    def _show(self) -> None:
        self._shapes = [field(each, self._changed) for each in controls.of_surrogate(self._select.value)]
        row = Row(label(self.control.name, WIDTH - 172), self._select, width=WIDTH, margin=(0, 0, 8, 0))
        self.element.children = [row, *(each.element for each in self._shapes)]


Field = NumberField | SwitchField | ChoiceField


def field(control: controls.Control, changed: Callable[[], None]) -> Field:
    """The row of a control; `changed` is called when it says something else."""
    match control:
        case controls.Number():
            return NumberField(control, changed)
        case controls.Switch():
            return SwitchField(control, changed)
        case controls.Choice():
            return ChoiceField(control, changed)


def chooser(name: str, value: str, options: list[str]) -> tuple[UIElement, Select]:
    """A row with a name and a choice, and the choice."""
    select = _select(name, value, options)
    return Row(label(name, WIDTH - 172), select, width=WIDTH, margin=(0, 0, 8, 0)), select


def label(text: str, width: int) -> Div:
    """A name beside a field, as text."""
    return Div(
        text=text.replace("_", " "),
        render_as_text=True,
        width=width,
        margin=(6, 0, 0, 0),
        stylesheets=[WIDGET],
    )


def slug(name: str) -> str:
    """`name` as a class of CSS, by which an element of the page is found."""
    return name.replace("_", "-").replace(" ", "-")


def _select(name: str, value: str, options: list[str]) -> Select:
    return Select(
        value=value,
        options=list(options),
        width=172,
        margin=0,
        css_classes=[f"select-{slug(name)}"],
        stylesheets=[WIDGET],
    )


def _written(value: float) -> str:
    return f"{value:.6g}"
