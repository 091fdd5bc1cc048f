"""One neuron: its controls, and its potential, input, gradient, F-I curve and surrogate side by side."""

from dataclasses import replace
from functools import partial
from typing import Any

from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.models import Button, Column, CustomJS, Div, TextAreaInput

from hibana.cli.play import controls, neuron, source
from hibana.cli.play.pump import Pump
from hibana.cli.play.source import Trouble
from hibana.cli.play.view.answer import COLUMNS, DELIVER, columns
from hibana.cli.play.view.fields import WIDTH, Field, NumberField, chooser, field
from hibana.cli.play.view.look import BLUE, LAYERS, ORANGE, RED, WIDGET, Figure, Look, empty, legend

__all__ = ["NeuronView"]

OWN = "your own…"
OPENING = {"tau": 15.0, "input strength": 0.08, "input noise": 0.06}
"""What the first cell is shown at: spikes so far apart that each reset is seen."""


class NeuronView:
    """The view of one neuron on a page."""

    def __init__(self, document: Document, look: Look, pump: Pump) -> None:
        self._document, self._pump = document, pump
        self._cell, self._top = "LIF", 1.0
        self._opening = OPENING
        self._source: str | None = None
        self._fields: list[Field] = []
        self._input: dict[str, NumberField] = {}
        self._refused = False
        """Whether what stands in the fields now can't be asked."""
        self.figures: list[Figure] = []
        """Each a root of the page, which has places for them: in a column of Bokeh's, one lays out all."""
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
        self._shown = {name: empty(*each) for name, each in COLUMNS.items()}

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
        lines = others.multi_line("xs", "ys", source=self._shown["others"], color="colour", line_width=1.8)
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
        deliver = CustomJS(args={"carrier": potential, "sources": self._shown}, code=DELIVER)
        potential.js_on_change("tags", deliver)
        self._document.js_on_event(DocumentReady, deliver)  # an answer may be there before the page is
        named = {"potential": potential, "others": others, "input": given, "gradient": gradient}
        for name, each in {**named, "curve": curve, "step": step}.items():
            each.name = f"neuron_{name}"
            self.figures.append(each)

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
        opening, self._opening = self._opening, {}
        self._fields = [field(_at(each, opening), self._ask) for each in answer["controls"]]
        self._numbers.children = [each.element for each in self._fields]
        top = answer["top"]
        strength = controls.Number("input strength", answer["strength"], 0.0, top, top / 500)
        noise = controls.Number("input noise", 0.0, 0.0, top / 2, top / 500)
        self._input = {each.name: NumberField(_at(each, opening), self._ask) for each in (strength, noise)}
        self._currents.children = [each.element for each in self._input.values()]
        self._ask()

    def _ask(self) -> None:
        """Asks for the answer to what the fields say."""
        try:
            values = {each.control.name: each.value() for each in self._fields}
            strength, noise = (each.value() for each in self._input.values())
        except Trouble as trouble:
            self._refused = True
            self._tell(str(trouble))
            return
        self._refused = False
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
        if self._refused:  # something else was typed while this was computed, and that was told
            return
        if isinstance(answer, Trouble):
            self._tell(str(answer))
            return
        self._tell(answer["note"])
        self._name(answer)
        self._further.visible = bool(answer["others"])
        self._potential.tags = [columns(answer, strength)]

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


def _at(control: Any, values: dict[str, float]) -> Any:
    """A control that begins at the value of its name, if there is one."""
    return replace(control, value=values[control.name]) if control.name in values else control


def _heading(text: str) -> Div:
    return Div(text=text, css_classes=["heading"], stylesheets=[WIDGET], margin=(6, 0, 6, 0), width=WIDTH)
