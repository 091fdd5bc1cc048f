"""One neuron: its controls, and its potential, input, gradient, F-I curve and surrogate side by side."""

from dataclasses import replace
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import Button, Column, TextAreaInput

from hibana.cli.play import controls, neuron, source
from hibana.cli.play.source import Trouble
from hibana.cli.play.view.fields import Field, NumberField, chooser, field
from hibana.cli.play.view.look import (
    BLUE,
    LAYERS,
    ORANGE,
    RED,
    WIDGET,
    WIDTH,
    Figure,
    empty,
    legend,
    message,
    new_figure,
    text,
)

__all__ = ["NeuronView"]

OWN = "your own…"
FIRST = {"tau": 15.0, "input strength": 0.08, "input noise": 0.06}
"""Values of the first cell: spikes so far apart that each reset is visible."""


class NeuronView:
    """The view of one neuron on a page."""

    def __init__(self, document: Document) -> None:
        self._document, self._is_due = document, False
        self._values = FIRST
        self._make_controls()
        self._make_figures()
        self._choose()

    def _make_controls(self) -> None:
        row, self._select = chooser("cell", "LIF", [*source.built_in(), OWN])
        self._select.on_change("value", lambda attribute, old, new: self._choose())
        courses, self._course = chooser("course", "constant", list(neuron.SHAPES))
        self._course.on_change("value", lambda attribute, old, new: self._show_soon())
        self._code = TextAreaInput(
            value=source.EXAMPLE,
            rows=17,
            width=WIDTH,
            max_length=100_000,
            margin=(0, 0, 4, 0),
            css_classes=["code"],
            stylesheets=[WIDGET],
        )
        use = Button(
            label="Use this cell",
            button_type="primary",
            width=WIDTH,
            margin=0,
            css_classes=["use"],
            stylesheets=[WIDGET],
        )
        use.on_click(self._choose)
        self._own = Column(self._code, use, margin=(0, 0, 8, 0), visible=False)
        self._summary, self._trouble = text("", "faint"), text("", "trouble", visible=False)
        self._numbers, self._currents = Column(margin=0), Column(margin=0)
        self.controls = Column(
            *(row, self._own, self._trouble, self._summary),
            *(text("Input", "heading"), courses, self._currents),
            *(text("Hyper-parameters", "heading"), self._numbers),
            name="neuron_controls",
            margin=0,
        )

    def _make_figures(self) -> None:
        self._states, self._others = (
            empty("time", "potential", "spike", "threshold", "input", "gradient"),
            empty("xs", "ys", "colour", "name"),
        )
        self._curve, self._dot = empty("current", "rate"), empty("current", "rate")
        self._step, self._onset = empty("v", "s", "derivative"), empty("v", "height")

        potential = new_figure("Membrane potential", y="v", x_range=(-2, neuron.STEPS + 1))
        potential.line("time", "potential", source=self._states, color=BLUE, line_width=1.8)
        potential.scatter(
            "time", "spike", source=self._states, marker="inverted_triangle", size=8, color=ORANGE
        )
        potential.line("time", "threshold", source=self._states, color=RED, line_dash="dotted")
        further = new_figure("Further states", y="state", x_range=potential.x_range, visible=False)
        lines = further.multi_line("xs", "ys", source=self._others, color="colour", line_width=1.8)
        legend(further, [("@name", [lines])])
        current = new_figure("Input", y="per step", x_range=potential.x_range)
        current.line("time", "input", source=self._states, color=LAYERS[2], line_width=1.3)
        gradient = new_figure("", x="Time step", y="∂ Σs / ∂ input", x_range=potential.x_range)
        gradient.vbar(x="time", top="gradient", width=0.8, source=self._states, color=ORANGE, line_color=None)
        curve = new_figure("F–I curve", x="Constant input, per step", y="Spikes per step")
        curve.line("current", "rate", source=self._curve, color=BLUE, line_width=2)
        curve.scatter("current", "rate", source=self._dot, size=10, color=ORANGE, line_color=None)
        step = new_figure("Surrogate", x="Potential v", y="s,  ∂s / ∂v")
        step.line("v", "s", source=self._step, color=BLUE, line_width=4, line_alpha=0.8)
        step.line("v", "derivative", source=self._step, color=ORANGE, line_width=1.8)
        step.line("v", "height", source=self._onset, color=RED, line_dash="dotted", line_width=1.5)
        for each in (further, current, gradient):
            each.yaxis.ticker.desired_num_ticks = 3
        for each in (potential, further, current):
            each.xaxis.major_label_text_font_size = "0px"
        for each, share in ((potential, 2.4), (further, 1.2), (current, 1), (gradient, 1.3)):
            each.styles = {"flex": f"{share} 1 0", "min-height": "0"}
        self._potential, self._further, self._gradient = potential, further, gradient
        self._firing, self._surrogate = curve, step
        named = {"potential": potential, "others": further, "input": current, "gradient": gradient}
        self.figures: list[Figure] = []
        for name, each in {**named, "curve": curve, "step": step}.items():
            each.name = f"neuron_{name}"
            self.figures.append(each)

    def _choose(self) -> None:
        """Make the controls of the chosen cell, or of the pasted one."""
        own = self._select.value == OWN
        self._own.visible = own
        code = self._code.value if own else None
        try:
            described = neuron.describe(self._select.value, code)
        except Trouble as trouble:
            message(self._trouble, str(trouble))
            return
        self._source, self._top = code, described["top"]
        self._summary.text = described["summary"]
        first, self._values = self._values, {}
        self._fields: list[Field] = [
            field(_at(each, first), self._show_soon) for each in described["controls"]
        ]
        self._numbers.children = [each.element for each in self._fields]
        strength = controls.Number("input strength", described["strength"], 0.0, self._top, self._top / 500)
        noise = controls.Number("input noise", 0.0, 0.0, self._top / 2, self._top / 500)
        self._input = [NumberField(_at(each, first), self._show_soon) for each in (strength, noise)]
        self._currents.children = [each.element for each in self._input]
        self._show()

    def _show_soon(self) -> None:
        """Show once after a burst of changes; a slider changes up to sixty times a second."""
        if not self._is_due:
            self._is_due = True
            self._document.add_timeout_callback(self._show, 10)

    def _show(self) -> None:
        """Compute what the fields describe, and draw it."""
        self._is_due = False
        try:
            strength, noise = (float(each.value()) for each in self._input)
            answer = neuron.answer(
                self._select.value,
                {each.control.name: each.value() for each in self._fields},
                strength=strength,
                noise=noise,
                top=self._top,
                shape=self._course.value,
                source=self._source,
            )
        except Trouble as trouble:
            message(self._trouble, str(trouble))
            return
        message(self._trouble, answer["note"])
        self._draw(answer, strength)

    def _draw(self, answer: dict[str, Any], strength: float) -> None:
        threshold, step, others = answer["threshold"], answer["step"], answer["others"]
        spike = np.full(neuron.STEPS, np.nan)
        spike[answer["spikes"]] = answer["potential"][answer["spikes"]]
        self._states.data = {
            **{name: answer[name] for name in ("time", "input", "potential", "gradient")},
            "spike": spike,
            "threshold": np.full(neuron.STEPS, np.nan if threshold is None else threshold),
        }
        self._others.data = {
            "xs": [answer["time"]] * len(others),
            "ys": list(others.values()),
            "colour": [LAYERS[(index + 3) % len(LAYERS)] for index in range(len(others))],
            "name": list(others),
        }
        self._curve.data = {"current": answer["currents"], "rate": answer["rates"]}
        self._dot.data = {"current": [strength], "rate": [answer["rate"]]}
        self._step.data = step or {"v": [], "s": [], "derivative": []}
        height = max(1.0, np.nanmax(step["derivative"], initial=0.0)) if step else 0.0
        self._onset.data = {"v": [threshold] * 2 if step else [], "height": [0.0, height] if step else []}
        spiking = answer["spiking"]
        self._further.visible = bool(others)
        self._potential.yaxis.axis_label = answer["name"]
        outputs = "number of spikes" if spiking else "sum of the outputs"
        self._gradient.title.text = f"Gradient of the {outputs}"
        self._firing.title.text = "F–I curve" if spiking else "Response to a constant input"
        self._firing.yaxis.axis_label = "Spikes per step" if spiking else "Output per step, mean"
        self._surrogate.title.text = "Surrogate" if step else "No surrogate"


def _at(control: Any, values: dict[str, float]) -> Any:
    """`control` with the value of its name, if there is one."""
    return replace(control, value=values[control.name]) if control.name in values else control
