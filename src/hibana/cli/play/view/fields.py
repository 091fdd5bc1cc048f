"""Controls as rows of the page: a name, a field, and a slider."""

from collections.abc import Callable
from typing import Any

from bokeh.models import Checkbox, Column, Row, Select, Slider, TextInput, UIElement

from hibana.cli.play import controls
from hibana.cli.play.source import Trouble
from hibana.cli.play.view.look import BLUE, WIDGET, WIDTH, text

__all__ = ["ChoiceField", "Field", "NumberField", "SwitchField", "chooser", "field", "slider"]


class NumberField:
    """A number: chosen by a slider within its range, or typed."""

    def __init__(self, control: controls.Number, changed: Callable[[], None]) -> None:
        self.control, self._changed = control, changed
        self._class = f"text-{_slug(control.name)}"
        name = f"{control.name} or “{control.words[0]}”" if control.words else control.name
        self._text = TextInput(
            value=f"{control.value:.6g}", width=92, css_classes=[self._class], margin=0, stylesheets=[WIDGET]
        )
        self._slider = slider(f"slider-{_slug(control.name)}", control.low, control.high, control.step)
        self._slider.value = self._within(control.value)
        self._text.on_change("value", self._typed)
        self._slider.on_change("value", self._dragged)
        row = Row(_label(name, WIDTH - 92), self._text, width=WIDTH, margin=0)
        self.element = Column(row, self._slider, margin=0)

    def value(self) -> float | str:
        """The number, or one of the control's words.

        Raises:
            Trouble: if the field contains another text.
        """
        written: str = self._text.value.strip()
        if written in self.control.words:
            return written
        try:
            return float(written)
        except ValueError:
            words = "".join(f" or {word}" for word in self.control.words)
            raise Trouble(f"{self.control.name} must be a number{words}, got {written[:40]!r}") from None

    def _within(self, value: float) -> float:
        return min(max(value, self.control.low), self.control.high)

    def _dragged(self, attribute: str, old: Any, new: Any) -> None:
        written = self._text.value.strip()
        if written in self.control.words or self._as_slider(written) != new:  # not moved by the text
            self._text.value = f"{float(new):.6g}"

    def _as_slider(self, written: str) -> float | None:
        try:
            return self._within(float(written))
        except ValueError:
            return None

    def _typed(self, attribute: str, old: Any, new: Any) -> None:
        place = self._as_slider(new)
        wrong = place is None and new.strip() not in self.control.words
        self._text.css_classes = [self._class, "wrong"] if wrong else [self._class]
        if place is not None and place == place:  # not NaN
            self._slider.value = place
        self._changed()


class SwitchField:
    """A truth value."""

    def __init__(self, control: controls.Switch, changed: Callable[[], None]) -> None:
        self.control = control
        self.element = Checkbox(
            label=control.name.replace("_", " "),
            active=control.value,
            css_classes=[f"switch-{_slug(control.name)}"],
            margin=(2, 0, 8, 0),
            stylesheets=[WIDGET],
        )
        self.element.on_change("active", lambda attribute, old, new: changed())

    def value(self) -> bool:
        return bool(self.element.active)


class ChoiceField:
    """A surrogate, and below it its shape parameters."""

    def __init__(self, control: controls.Choice, changed: Callable[[], None]) -> None:
        self.control, self._changed = control, changed
        self._row, self._select = chooser(control.name, control.value, controls.surrogates())
        self._select.on_change("value", self._chosen)
        self.element = Column(margin=0)
        self._show()

    def value(self) -> tuple[str, dict[str, Any]]:
        return self._select.value, {each.control.name: each.value() for each in self._shapes}

    def _chosen(self, attribute: str, old: Any, new: Any) -> None:
        self._show()
        self._changed()

    def _show(self) -> None:
        self._shapes = [
            NumberField(each, self._changed) for each in controls.of_surrogate(self._select.value)
        ]
        self.element.children = [self._row, *(each.element for each in self._shapes)]


Field = NumberField | SwitchField | ChoiceField


def field(control: controls.Control, changed: Callable[[], None]) -> Field:
    """The row of a control; `changed` is called after each change."""
    match control:
        case controls.Number():
            return NumberField(control, changed)
        case controls.Switch():
            return SwitchField(control, changed)
        case controls.Choice():
            return ChoiceField(control, changed)


def chooser(name: str, value: str, options: list[str]) -> tuple[UIElement, Select]:
    """A row with a name and a choice, and the choice."""
    select = Select(
        value=value,
        options=options,
        width=172,
        margin=0,
        css_classes=[f"select-{_slug(name)}"],
        stylesheets=[WIDGET],
    )
    return Row(_label(name, WIDTH - 172), select, width=WIDTH, margin=(0, 0, 8, 0)), select


def slider(name: str, low: float = 0, high: float = 1, step: float = 1, width: int = WIDTH - 16) -> Slider:
    """A slider without a title and a number."""
    return Slider(
        start=low,
        end=high,
        step=step,
        value=low,
        title=None,
        show_value=False,
        bar_color=BLUE,
        width=width,
        margin=(4, 8, 8, 8),
        css_classes=[name],
        stylesheets=[WIDGET],
    )


def _label(name: str, width: int) -> UIElement:
    return text(name.replace("_", " "), width=width, margin=(6, 0, 0, 0))


def _slug(name: str) -> str:
    """`name` as a CSS class."""
    return name.replace("_", "-").replace(" ", "-")
