"""One neuron: its widgets, and its potential, input, gradient, F-I curve and surrogate."""

from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import Button, Column, Row, Select, TextAreaInput

from hibana.cli.play import fields, neuron, source
from hibana.cli.play.figures import BLUE, COLOURS, ORANGE, RED, column, empty, message, new_figure
from hibana.cli.play.source import Trouble

__all__ = ["NeuronView"]

OWN = "your own…"
FIRST = {"tau": 15.0, "input strength": 0.08, "input noise": 0.06}
"""Values of the first cell: spikes so far apart that each reset is visible."""


class NeuronView:
    """The view of one neuron on a page."""

    def __init__(self, document: Document) -> None:
        self._document, self._is_due = document, False
        self._make_figures()
        self._cell = _select("cell", "LIF", [*source.built_in(), OWN])
        self._course = _select("course", "constant", list(neuron.SHAPES))
        self._code = TextAreaInput(value=source.EXAMPLE, rows=17, width=fields.WIDTH, name="code")
        use = Button(label="Use this cell", button_type="primary", width=fields.WIDTH, name="use")
        self._own = Column(self._code, use, visible=False)
        self._summary, self._trouble = message("summary"), message("trouble", RED)
        self._numbers, self._currents = Column(), Column()
        self._cell.on_change("value", lambda attribute, old, new: self._choose({}))
        self._course.on_change("value", lambda attribute, old, new: self._show_soon())
        use.on_click(lambda: self._choose({}))
        widgets = Column(
            *(self._cell, self._own, self._trouble, self._summary),
            *(self._course, self._currents, self._numbers),
        )
        over_time = column(self._potential, self._further, self._current, self._gradient)
        aside = column(self._firing, self._surrogate)
        self.layout = Row(
            widgets, over_time, aside, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"}
        )
        self._choose(FIRST)

    def _make_figures(self) -> None:
        self._states = empty("time", "potential", "spike", "threshold", "input", "gradient")
        self._others = empty("xs", "ys", "colour", "name")
        self._curve, self._dot = empty("current", "rate"), empty("current", "rate")
        self._step, self._onset = empty("v", "s", "derivative"), empty("v", "height")
        potential = new_figure(
            "Membrane potential", y="v", height=300, name="potential", x_range=(-2, neuron.STEPS + 1)
        )
        shared = {"source": self._states, "color": BLUE}
        potential.line("time", "potential", legend_label="potential", **shared)
        shared["color"] = ORANGE
        potential.scatter("time", "spike", marker="inverted_triangle", size=8, legend_label="spike", **shared)
        shared["color"] = RED
        potential.line("time", "threshold", line_dash="dotted", legend_label="threshold at rest", **shared)
        over_time = {"x_range": potential.x_range, "height": 160}
        self._further = new_figure("Further states", y="state", visible=False, **over_time)
        self._further.multi_line("xs", "ys", source=self._others, color="colour", legend_field="name")
        self._current = new_figure("Input", y="per step", **over_time)
        self._current.line("time", "input", source=self._states, color=COLOURS[2])
        self._gradient = new_figure("", x="Time step", y="∂ Σs / ∂ input", **over_time)
        self._gradient.vbar(x="time", top="gradient", width=0.8, source=self._states, color=ORANGE)
        self._firing = new_figure("", x="Constant input, per step", height=300)
        self._firing.line("current", "rate", source=self._curve, color=BLUE)
        self._firing.scatter("current", "rate", source=self._dot, size=10, color=ORANGE)
        self._surrogate = new_figure("", x="Potential v", height=300, name="surrogate figure")
        self._surrogate.line("v", "s", source=self._step, color=BLUE, line_width=3, legend_label="s")
        self._surrogate.line("v", "derivative", source=self._step, color=ORANGE, legend_label="∂s/∂v")
        self._surrogate.line("v", "height", source=self._onset, color=RED, line_dash="dotted")
        for each in (potential, self._further, self._surrogate):
            each.legend.update(orientation="horizontal", border_line_color=None, padding=0)
            each.add_layout(each.legend[0], "above")
        self._potential = potential

    def _choose(self, defaults: dict[str, float]) -> None:
        """Make the widgets of the chosen or pasted cell; `defaults` replace those of its signature."""
        self._own.visible = self._cell.value == OWN
        try:
            kind = source.find(self._cell.value, self._code.value if self._own.visible else None)
            strength, top = neuron.input_range(kind)
            self._fields = fields.of_cell(kind, self._show_soon, defaults)
        except Trouble as trouble:
            self._trouble.text = str(trouble)
            return
        self._kind, self._top = kind, top
        self._summary.text = (kind.__doc__ or "").strip().partition("\n")[0]
        self._numbers.children = [each.element for each in self._fields]
        self._input = [
            fields.number(name, defaults.get(name, value), self._show_soon, largest=largest)
            for name, value, largest in (
                ("input strength", strength, top),
                ("input noise", 0.0, top / 2),
            )
        ]
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
                self._kind,
                {each.name: each.value() for each in self._fields},
                strength=strength,
                noise=noise,
                top=self._top,
                shape=self._course.value,
            )
        except Trouble as trouble:
            self._trouble.text = str(trouble)
            return
        self._trouble.text = answer["note"]
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
            "colour": [COLOURS[(index + 3) % len(COLOURS)] for index in range(len(others))],
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


def _select(name: str, value: str, options: list[str]) -> Select:
    return Select(title=name, value=value, options=options, name=name, width=fields.WIDTH)
