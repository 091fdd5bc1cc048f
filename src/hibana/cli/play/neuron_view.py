"""The view of one neuron: widgets, potential, input, gradient, F-I curve and surrogate."""

from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import Button, Column, Row, Select, TextAreaInput

from hibana.cli.play import fields, neuron, source
from hibana.cli.play.figures import BLUE, COLOURS, ORANGE, RED, column, empty, message, new_figure
from hibana.cli.play.source import UserError

PASTED = "your own…"
INITIAL_VALUES = {"tau": 15.0, "input strength": 0.08, "input noise": 0.06}
"""Values of the first cell, with spikes so far apart that each reset is visible."""


class NeuronView:
    """Widgets and figures for one neuron.

    Args:
        document: the Bokeh document that schedules updates.

    Attributes:
        layout: the view, to be added to the document.
    """

    def __init__(self, document: Document) -> None:
        self._document, self._is_scheduled = document, False
        self._make_figures()
        self._cell = _select("cell", "LIF", [*source.built_in(), PASTED])
        self._course = _select("course", "constant", list(neuron.COURSES))
        self._code = TextAreaInput(value=source.EXAMPLE, rows=17, width=fields.WIDTH, name="code")
        use_button = Button(label="Use this cell", button_type="primary", width=fields.WIDTH, name="use")
        self._code_editor = Column(self._code, use_button, visible=False)
        self._summary, self._error = message("summary"), message("error", RED)
        self._parameters, self._inputs = Column(), Column()
        self._cell.on_change("value", lambda attribute, old, new: self._choose({}))
        self._course.on_change("value", lambda attribute, old, new: self._schedule())
        use_button.on_click(lambda: self._choose({}))
        widgets = Column(
            *(self._cell, self._code_editor, self._error, self._summary),
            *(self._course, self._inputs, self._parameters),
        )
        over_time = column(self._potential, self._further, self._current, self._gradient)
        right = column(self._firing, self._surrogate)
        self.layout = Row(
            widgets, over_time, right, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"}
        )
        self._choose(INITIAL_VALUES)

    def _make_figures(self) -> None:
        """Creates all figures of the tab, with empty data."""
        self._states = empty("time", "potential", "spike", "threshold", "input", "gradient")
        self._others = empty("xs", "ys", "colour", "name")
        self._curve, self._point = empty("current", "rate"), empty("current", "rate")
        self._step, self._threshold = empty("v", "s", "derivative"), empty("v", "height")
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
        self._firing.scatter("current", "rate", source=self._point, size=10, color=ORANGE)
        self._surrogate = new_figure("", x="Potential v", height=300, name="surrogate figure")
        self._surrogate.line("v", "s", source=self._step, color=BLUE, line_width=3, legend_label="s")
        self._surrogate.line("v", "derivative", source=self._step, color=ORANGE, legend_label="∂s/∂v")
        self._surrogate.line("v", "height", source=self._threshold, color=RED, line_dash="dotted")
        for figure in (potential, self._further, self._surrogate):
            figure.legend.update(orientation="horizontal", border_line_color=None, padding=0)
            figure.add_layout(figure.legend[0], "above")
        self._potential = potential

    def _choose(self, defaults: dict[str, float]) -> None:
        """Creates the widgets of the selected or pasted cell; `defaults` replace those of its signature."""
        self._code_editor.visible = self._cell.value == PASTED
        try:
            kind = source.find(self._cell.value, self._code.value if self._code_editor.visible else None)
            strength, top = neuron.input_range(kind)
            self._fields = fields.cell_fields(kind, self._schedule, defaults)
        except UserError as error:
            self._error.text = str(error)
            return
        self._kind, self._top = kind, top
        self._summary.text = (kind.__doc__ or "").strip().partition("\n")[0]
        self._parameters.children = [field.element for field in self._fields]
        self._input_fields = [
            fields.number_field(name, defaults.get(name, value), self._schedule, largest=largest)
            for name, value, largest in (("input strength", strength, top), ("input noise", 0.0, top / 2))
        ]
        self._inputs.children = [field.element for field in self._input_fields]
        self._show()

    def _schedule(self) -> None:
        """Schedules one update for a burst of changes: a slider changes up to sixty times a second."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._document.add_timeout_callback(self._show, 10)

    def _show(self) -> None:
        """Simulates the cell with the values of the fields, and draws the results."""
        self._is_scheduled = False
        try:
            strength, noise = (float(field.value()) for field in self._input_fields)
            results = neuron.simulate(
                self._kind,
                {field.name: field.value() for field in self._fields},
                strength=strength,
                noise=noise,
                top=self._top,
                course=self._course.value,
            )
        except UserError as error:
            self._error.text = str(error)
            return
        self._error.text = results["note"]
        self._draw(results, strength)

    def _draw(self, results: dict[str, Any], strength: float) -> None:
        """Draws the `results` of a simulation of the neuron; `strength` is the strength of the input."""
        threshold, step, others = results["threshold"], results["step"], results["others"]
        spike = np.full(neuron.STEPS, np.nan)
        spike[results["spikes"]] = results["potential"][results["spikes"]]
        self._states.data = {
            **{name: results[name] for name in ("time", "input", "potential", "gradient")},
            "spike": spike,
            "threshold": np.full(neuron.STEPS, np.nan if threshold is None else threshold),
        }
        self._others.data = {
            "xs": [results["time"]] * len(others),
            "ys": list(others.values()),
            "colour": [COLOURS[(index + 3) % len(COLOURS)] for index in range(len(others))],
            "name": list(others),
        }
        self._curve.data = {"current": results["currents"], "rate": results["rates"]}
        self._point.data = {"current": [strength], "rate": [results["rate"]]}
        self._step.data = step or {"v": [], "s": [], "derivative": []}
        height = max(1.0, np.nanmax(step["derivative"], initial=0.0)) if step else 0.0
        self._threshold.data = {"v": [threshold] * 2 if step else [], "height": [0.0, height] if step else []}
        spiking = results["spiking"]
        self._further.visible = bool(others)
        self._potential.yaxis.axis_label = results["name"]
        outputs = "number of spikes" if spiking else "sum of the outputs"
        self._gradient.title.text = f"Gradient of the {outputs}"
        self._firing.title.text = "F–I curve" if spiking else "Response to a constant input"
        self._firing.yaxis.axis_label = "Spikes per step" if spiking else "Output per step, mean"
        self._surrogate.title.text = "Surrogate" if step else "No surrogate"


def _select(name: str, value: str, options: list[str]) -> Select:
    """Returns a menu of `options` with `value` selected."""
    return Select(title=name, value=value, options=options, name=name, width=fields.WIDTH)
