"""One neuron: its controls, and its potential, input, gradient, F-I curve and surrogate side by side."""

from functools import partial
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import Button, Column, Div, TextAreaInput

from hibana.play import controls, neuron, source
from hibana.play.pump import Pump
from hibana.play.source import Trouble
from hibana.play.view.fields import WIDTH, Field, NumberField, chooser, field
from hibana.play.view.look import BLUE, LAYERS, ORANGE, RED, WIDGET, Look, empty, legend

__all__ = ["NeuronView"]

OWN = "your own…"
COLUMNS = {
    "input": ("time", "input"),
    "gradient": ("time", "gradient"),
    "curve": ("current", "rate", "own_current", "own_rate"),
    "surrogate": ("v", "s", "derivative", "onset", "height"),
    "potential": ("time", "potential", "spike", "threshold"),
}
"""What each figure draws. The potential comes last to the page: when it is there, all else is."""


class NeuronView:
    """The view of one neuron on a page."""

    def __init__(self, document: Document, look: Look, pump: Pump) -> None:
        self._document, self._pump = document, pump
        self._cell, self._top = "LIF", 1.0
        self._source: str | None = None
        self._fields: list[Field] = []
        self._input: dict[str, NumberField] = {}
        self._make_controls()
        self._make_figures(look)
        self._choose()

    def _make_controls(self) -> None:
        cells = [*source.built_in(), OWN]
        row, self._select = chooser("cell", self._cell, cells)
        self._select.on_change("value", lambda attribute, old, new: self._choose())
        shapes, self._shape = chooser("course", "constant", list(neuron.SHAPES))
        self._shape.on_change("value", lambda attribute, old, new: self._ask())
        self._code = TextAreaInput(
            value=source.EXAMPLE,
            rows=17,
            width=WIDTH,
            max_length=100_000,
            margin=(0, 0, 4, 0),
            css_classes=["code"],
            stylesheets=[WIDGET],
        )
        run = Button(
            label="Use this cell",
            button_type="primary",
            width=WIDTH,
            margin=0,
            css_classes=["use"],
            stylesheets=[WIDGET],
        )
        run.on_click(lambda: self._choose())
        self._own = Column(self._code, run, margin=(0, 0, 8, 0), visible=False)
        self._summary = Div(
            text="",
            render_as_text=True,
            width=WIDTH,
            css_classes=["faint"],
            stylesheets=[WIDGET],
            margin=(0, 0, 10, 0),
        )
        self._trouble = Div(
            text="",
            render_as_text=True,
            width=WIDTH,
            visible=False,
            css_classes=["trouble"],
            styles={
                "color": RED,
                "font-weight": "600",
                "white-space": "pre-wrap",
                "overflow-wrap": "anywhere",
            },
            margin=(0, 0, 10, 0),
        )
        self._numbers = Column(margin=0)
        self._currents = Column(margin=0)
        self.controls = Column(
            row,
            self._own,
            self._trouble,
            self._summary,
            _heading("Input"),
            shapes,
            self._currents,
            _heading("Hyper-parameters"),
            self._numbers,
            name="neuron_controls",
            margin=0,
        )

    def _make_figures(self, look: Look) -> None:
        self._shown = {figure: empty(*columns) for figure, columns in COLUMNS.items()}
        self._others = empty("xs", "ys", "colour", "name")

        potential = look.figure("Membrane potential", y="v", x_range=(-2, neuron.STEPS + 1))
        potential.line("time", "potential", source=self._shown["potential"], color=BLUE, line_width=1.8)
        potential.scatter(
            "time", "spike", source=self._shown["potential"], marker="inverted_triangle", size=8, color=ORANGE
        )
        potential.line(
            "time",
            "threshold",
            source=self._shown["potential"],
            color=RED,
            line_dash="dotted",
            line_width=1.5,
        )
        self._potential = potential

        others = look.figure("Further states", y="state", x_range=potential.x_range, visible=False)
        lines = others.multi_line("xs", "ys", source=self._others, color="colour", line_width=1.8)
        legend(others, [("@name", [lines])])
        self._further = others

        given = look.figure("Input", y="per step", x_range=potential.x_range)
        given.line("time", "input", source=self._shown["input"], color=LAYERS[2], line_width=1.3)

        gradient = look.figure(
            "Gradient of the number of spikes", x="Time step", y="∂ Σs / ∂ input", x_range=potential.x_range
        )
        gradient.vbar(
            x="time", top="gradient", width=0.8, source=self._shown["gradient"], color=ORANGE, line_color=None
        )
        self._gradient = gradient

        curve = look.figure("F–I curve", x="Constant input, per step", y="Spikes per step")
        curve.line("current", "rate", source=self._shown["curve"], color=BLUE, line_width=2)
        curve.scatter(
            "own_current", "own_rate", source=self._shown["curve"], size=10, color=ORANGE, line_color=None
        )
        self._firing = curve

        step = look.figure("Surrogate", x="Potential v", y="s,  ∂s / ∂v")
        step.line("v", "s", source=self._shown["surrogate"], color=BLUE, line_width=4, line_alpha=0.8)
        step.line("v", "derivative", source=self._shown["surrogate"], color=ORANGE, line_width=1.8)
        step.line(
            "onset", "height", source=self._shown["surrogate"], color=RED, line_dash="dotted", line_width=1.5
        )
        self._surrogate = step

        for each in (others, given, gradient):
            each.yaxis.ticker.desired_num_ticks = 3
        for each in (potential, others, given):
            each.xaxis.major_label_text_font_size = "0px"
        for each, share in ((potential, 2.4), (others, 1.2), (given, 1), (gradient, 1.3)):
            each.styles = {"flex": f"{share} 1 0", "min-height": "0"}
        self.figures = Column(
            potential, others, given, gradient, name="neuron_time", sizing_mode="stretch_both"
        )
        curve.name, step.name = "neuron_curve", "neuron_step"
        self.side = [curve, step]

    def _choose(self) -> None:
        """Asks what the chosen cell, or the pasted one, can be moved at."""
        own = self._select.value == OWN
        self._own.visible = own
        code = self._code.value if own else None
        self._pump.ask(
            "neuron.describe",
            partial(self._described, self._select.value, code),
            cell=self._select.value,
            source=code,
        )

    def _described(self, cell: str, code: str | None, answer: Any) -> None:
        if isinstance(answer, Trouble):
            self._tell(str(answer))
            return
        self._cell, self._source, self._top = cell, code, answer["top"]
        self._summary.text = answer["summary"]
        self._fields = [field(each, self._ask) for each in answer["controls"]]
        self._numbers.children = [each.element for each in self._fields]
        top = answer["top"]
        strength = controls.Number("input strength", answer["strength"], 0.0, top, top / 500)
        noise = controls.Number("input noise", 0.0, 0.0, top / 2, top / 500)
        self._input = {each.name: NumberField(each, self._ask) for each in (strength, noise)}
        self._currents.children = [each.element for each in self._input.values()]
        self._ask()

    def _ask(self) -> None:
        """Asks for the answer to what the fields say."""
        try:
            values = {each.control.name: each.value() for each in self._fields}
            strength, noise = (each.value() for each in self._input.values())
        except Trouble as trouble:
            self._tell(str(trouble))
            return
        self._pump.ask(
            "neuron.answer",
            partial(self._answered, strength),
            cell=self._cell,
            source=self._source,
            values=values,
            strength=strength,
            noise=noise,
            top=self._top,
            shape=self._shape.value,
        )

    def _answered(self, strength: float | str, answer: Any) -> None:
        if isinstance(answer, Trouble):
            self._tell(str(answer))
            return
        self._tell(answer["note"])
        self._name(answer)
        others = answer["others"]
        if others or self._further.visible:
            self._others.data = {
                "xs": [answer["time"]] * len(others),
                "ys": list(others.values()),
                "colour": [LAYERS[(index + 3) % len(LAYERS)] for index in range(len(others))],
                "name": list(others),
            }
            self._further.visible = bool(others)
        for name, columns in _columns(answer, strength).items():
            if name == "potential" or _differ(columns, self._shown[name].data):
                self._shown[name].data = columns  # each figure whose data are set is painted anew

    def _name(self, answer: Any) -> None:
        """Titles and labels: what they are depends on the cell."""
        spiking, step = answer["spiking"], answer["step"]
        self._potential.yaxis.axis_label = answer["name"]
        self._gradient.title.text = (
            f"Gradient of the {'number of spikes' if spiking else 'sum of what is emitted'}"
        )
        self._firing.title.text = "F–I curve" if spiking else "Response to a constant input"
        self._firing.yaxis.axis_label = "Spikes per step" if spiking else "Emitted per step, mean"
        self._surrogate.title.text = "Surrogate" if step else "No surrogate"

    def _tell(self, trouble: str) -> None:
        self._trouble.text = trouble
        self._trouble.visible = bool(trouble)


Columns = dict[str, np.ndarray[Any, Any]]


def _columns(answer: dict[str, Any], strength: float | str) -> dict[str, Columns]:
    """An answer as the columns of each figure's source.

    Columns that are shorter than the longest end in NaN, which is not drawn.
    """
    threshold, step = answer["threshold"], answer["step"]
    nothing = np.zeros(0)
    spike = np.full(neuron.STEPS, np.nan)
    spike[answer["spikes"]] = answer["potential"][answer["spikes"]]
    heights = [1.0] if step is None else [1.0, np.nanmax(step["derivative"], initial=0.0)]
    values = {
        **{name: answer[name] for name in ("time", "input", "potential", "gradient")},
        "spike": spike,
        "threshold": np.full(neuron.STEPS, np.nan if threshold is None else threshold),
        "current": answer["currents"],
        "rate": answer["rates"],
        "own_current": np.array([strength], dtype=float),
        "own_rate": np.array([answer["rate"]]),
        **({"v": nothing, "s": nothing, "derivative": nothing} if step is None else step),
        "onset": nothing if threshold is None else np.array([threshold, threshold]),
        "height": nothing if threshold is None else np.array([0.0, max(heights)]),
    }
    return {figure: _filled({name: values[name] for name in names}) for figure, names in COLUMNS.items()}


def _filled(columns: Columns) -> Columns:
    longest = max(map(len, columns.values()))
    return {
        name: np.concatenate([values, np.full(longest - len(values), np.nan)])
        for name, values in columns.items()
    }


def _differ(columns: Columns, shown: Any) -> bool:
    return not all(np.array_equal(values, shown[name], equal_nan=True) for name, values in columns.items())


def _heading(text: str) -> Div:
    return Div(text=text, css_classes=["heading"], stylesheets=[WIDGET], margin=(6, 0, 6, 0), width=WIDTH)
