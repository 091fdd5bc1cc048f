"""A trained network: a sample, the spikes of each layer, and the readout, over time that moves by hand."""

from functools import partial
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import (
    BoxAnnotation,
    Button,
    Column,
    CustomJS,
    DataRange1d,
    Div,
    Row,
    Slider,
    Span,
    TextInput,
    Toggle,
)

from hibana.cli.play.network import DIGITS
from hibana.cli.play.pump import Pump
from hibana.cli.play.source import Trouble
from hibana.cli.play.view.drawn import MOVE, PLAY, coloured, room, short, spread_out
from hibana.cli.play.view.fields import WIDTH, label
from hibana.cli.play.view.look import BLUE, GREY, LAYERS, RED, WIDGET, Figure, Look, empty

__all__ = ["NetworkView"]


class NetworkView:
    """The view of a checkpoint on a page."""

    def __init__(
        self, document: Document, look: Look, pump: Pump, checkpoint: str | None, trust: list[str]
    ) -> None:
        self._document, self._look, self._pump, self._trust = document, look, pump, trust
        self._path, self._count, self._shown = "", 0, -1
        self._rasters: list[Figure] = []
        self._make_controls(checkpoint or DIGITS)
        self._make_figures()
        if checkpoint:
            self._open()

    def _make_controls(self, checkpoint: str) -> None:
        self._where = TextInput(
            value=checkpoint,
            placeholder="hibana-runs/digits-0/checkpoint.ckpt",
            width=WIDTH,
            css_classes=["left", "path"],
            margin=(0, 0, 6, 0),
            stylesheets=[WIDGET],
        )
        opening = Button(
            label="Open",
            button_type="primary",
            width=WIDTH,
            margin=(0, 0, 10, 0),
            css_classes=["open"],
            stylesheets=[WIDGET],
        )
        opening.on_click(lambda: self._open())
        self._trouble = Div(
            text="",
            render_as_text=True,
            width=WIDTH,
            visible=False,
            css_classes=["network-trouble"],
            styles={"color": RED, "font-weight": "600", "overflow-wrap": "anywhere"},
            margin=(0, 0, 10, 0),
        )
        self._title = Div(
            text="",
            render_as_text=True,
            width=WIDTH,
            css_classes=["faint"],
            stylesheets=[WIDGET],
            margin=(0, 0, 10, 0),
        )
        self._index = TextInput(value="0", width=92, margin=0, css_classes=["sample"], stylesheets=[WIDGET])
        self._index.on_change("value", lambda attribute, old, new: self._typed())
        self._slide = _slider("slider-sample", WIDTH - 16, (4, 8, 10, 8))
        self._slide.on_change("value", lambda attribute, old, new: self._slid())
        wrong = Button(
            label="Next mistake",
            width=WIDTH,
            margin=(0, 0, 14, 0),
            css_classes=["mistake"],
            stylesheets=[WIDGET],
        )
        wrong.on_click(lambda: self._mistake())
        self._step = _slider("step", WIDTH - 106, (12, 8, 10, 12))
        self._play = Toggle(label="▶ Play", width=78, margin=0, css_classes=["play"], stylesheets=[WIDGET])
        self._play.js_on_change("active", CustomJS(args={"step": self._step}, code=PLAY))
        self._rest = Column(
            self._title,
            Div(
                text="Test sample",
                css_classes=["heading"],
                stylesheets=[WIDGET],
                margin=(6, 0, 6, 0),
                width=WIDTH,
            ),
            Row(label("number", WIDTH - 92), self._index, width=WIDTH, margin=0),
            self._slide,
            wrong,
            Div(text="Time", css_classes=["heading"], stylesheets=[WIDGET], margin=(6, 0, 6, 0), width=WIDTH),
            Row(self._play, self._step, width=WIDTH, margin=0),
            visible=False,
            margin=0,
        )
        self.controls = Column(
            Div(
                text="Checkpoint",
                css_classes=["heading"],
                stylesheets=[WIDGET],
                margin=(0, 0, 6, 0),
                width=WIDTH,
            ),
            self._where,
            opening,
            self._trouble,
            self._rest,
            name="network_controls",
            margin=0,
        )

    def _make_figures(self) -> None:
        self._picture = empty("image", "x", "y", "dw", "dh")
        seen = self._look.figure(
            "Input", x_range=DataRange1d(range_padding=0), y_range=DataRange1d(range_padding=0, flipped=True)
        )
        seen.image("image", "x", "y", "dw", "dh", source=self._picture, color_mapper=self._look.greys())
        seen.grid.visible = False
        self._seen = seen

        self._lines = empty("xs", "ys", "colour", "width", "alpha")
        self._names = empty("x", "y", "name", "colour")
        out = self._look.figure("Readout", x="Time step", y="Potential", x_range=(-0.5, 8))
        out.multi_line("xs", "ys", source=self._lines, color="colour", line_width="width", line_alpha="alpha")
        out.text(
            "x",
            "y",
            "name",
            source=self._names,
            text_color="colour",
            text_font_size="12px",
            text_baseline="middle",
            x_offset=6,
        )
        self._now = Span(dimension="height", line_color=GREY, line_dash="dashed", location=0)
        out.add_layout(self._now)
        self._readout = out
        self.layers = Column(name="network_layers", sizing_mode="stretch_both")
        seen.name, out.name = "network_input", "network_readout"
        self.side = [seen, out]

    def _open(self) -> None:
        path = self._where.value.strip()
        if not path:
            self._tell("type the path of a checkpoint that `hibana train` wrote")
            return
        self._pump.ask("network.opened", partial(self._opened, path), path=path, trust=self._trust)

    def _opened(self, path: str, answer: Any) -> None:
        if isinstance(answer, Trouble):
            self._tell(str(answer))
            return
        self._tell("")
        self._path, self._count, self._shown = path, answer["count"], -1
        self._title.text = answer["title"]
        self._slide.end = max(answer["count"] - 1, 1)
        self._rest.visible = True
        self._show(0)

    def _typed(self) -> None:
        text = self._index.value.strip()
        if not text.isdecimal() or int(text) >= self._count:
            self._tell(f"number must be in 0 to {self._count - 1}, got {text[:40]!r}")
            self._index.css_classes = ["sample", "wrong"]
            return
        self._show(int(text))

    def _slid(self) -> None:
        self._show(int(self._slide.value))

    def _show(self, index: int) -> None:
        """Asks for a sample, if it is not the one that is shown or asked for."""
        if index == self._shown:
            return
        self._shown = index
        self._index.css_classes = ["sample"]
        self._index.value, self._slide.value = str(index), index
        self._pump.ask("network.sample", self._sampled, path=self._path, index=index, trust=self._trust)

    def _mistake(self) -> None:
        self._pump.ask("network.mistake", self._found, path=self._path, after=self._shown, trust=self._trust)

    def _found(self, answer: Any) -> None:
        if isinstance(answer, Trouble):
            self._tell(str(answer))
        else:
            self._show(answer)

    def _sampled(self, answer: Any) -> None:
        if isinstance(answer, Trouble):
            self._tell(str(answer))
            return
        if "wrong" not in self._index.css_classes:  # of what was typed while this was computed
            self._tell("")
        self._show_picture(answer)
        self._show_layers(answer["layers"])
        self._show_readout(answer)

    def _show_picture(self, answer: Any) -> None:
        picture, axes = answer["picture"], answer["axes"]
        height, width = picture.shape
        self._picture.data = {"image": [picture], "x": [0], "y": [0], "dw": [width], "dh": [height]}
        self._seen.axis.visible = axes is not None
        self._seen.yaxis.visible = axes is not None and height > 1
        self._seen.xaxis.axis_label, self._seen.yaxis.axis_label = axes or (None, None)
        self._seen.match_aspect = axes is None
        self._seen.title.text = f"Input: {short(answer['names'][answer['label']])}"

    def _show_layers(self, layers: list[dict[str, Any]]) -> None:
        if [each.tags for each in self._rasters] != [
            [layer["name"], layer["raster"].shape[1]] for layer in layers
        ]:
            self._make_rasters(layers)
        for number, (made, layer) in enumerate(zip(self._rasters, layers, strict=True)):
            made.renderers[0].data_source.data = coloured(layer, LAYERS[number % len(LAYERS)])
            made.title.text = (
                f"{layer['name']}: {layer['neurons']:,} neurons, {layer['rate']:.1%} spike a step"
            )

    def _make_rasters(self, layers: list[dict[str, Any]]) -> None:
        self._look.forget(self._rasters)
        self._rasters, later = [], []
        steps = layers[0]["raster"].shape[1] if layers else 1
        for number, layer in enumerate(layers):
            last = number == len(layers) - 1
            shared = (
                {"x_range": self._rasters[0].x_range} if self._rasters else {"x_range": (-0.5, steps - 0.5)}
            )
            made = self._look.figure(
                layer["name"],
                x="Time step" if last else "",
                y="Neuron",
                y_range=(0, layer["neurons"]),
                **shared,
            )
            made.tags = [layer["name"], steps]
            made.image_rgba("image", "x", "y", "dw", "dh", source=empty("image", "x", "y", "dw", "dh"))
            made.grid.visible = False
            cover = BoxAnnotation(left=steps - 0.5, fill_color=GREY, fill_alpha=0.25, line_color=None)
            made.add_layout(cover)
            later.append(cover)
            made.styles = {"flex": "1 1 0", "min-height": "0"}
            self._rasters.append(made)
        self.layers.children = list(self._rasters)
        self._step.js_property_callbacks = {}
        self._step.js_on_change("value", CustomJS(args={"later": later, "now": self._now}, code=MOVE))
        self._step.end = max(steps - 1, 1)
        self._step.value = steps - 1
        self._now.location = steps - 1

    def _show_readout(self, answer: Any) -> None:
        potentials, label_, said = answer["potentials"], answer["label"], answer["answer"]
        names = [short(name) for name in answer["names"]]
        steps, classes = potentials.shape
        colours = [BLUE if n == label_ else RED if n == said else GREY for n in range(classes)]
        bold = [n in (label_, said) for n in range(classes)]
        self._lines.data = {
            "xs": [np.arange(steps)] * classes,
            "ys": list(potentials.T),
            "colour": colours,
            "width": [2.5 if each else 1.0 for each in bold],
            "alpha": [1.0 if each else 0.6 for each in bold],
        }
        self._names.data = {
            "x": [steps - 1] * classes,
            "y": spread_out(potentials[-1], min(0.06, 0.9 / classes) * float(np.ptp(potentials))),
            "name": names,
            "colour": colours,
        }
        wrong = "" if said == label_ else f", label {names[label_]}"
        self._readout.title.text = f"Readout: {names[said]}{wrong}"
        self._readout.x_range.update(start=-0.5, end=steps - 0.5 + room(steps, names))
        for each in (self._readout.xaxis, self._readout.xgrid):
            each.bounds = (-0.5, steps - 0.5)

    def _tell(self, trouble: str) -> None:
        self._trouble.text = trouble
        self._trouble.visible = bool(trouble)


def _slider(name: str, width: int, margin: tuple[int, int, int, int]) -> Slider:
    """A slider over whole numbers, whose end is set when there is something to slide over."""
    return Slider(
        start=0,
        end=1,
        step=1,
        value=0,
        title=None,
        show_value=False,
        bar_color=BLUE,
        width=width,
        css_classes=[name],
        margin=margin,
        stylesheets=[WIDGET],
    )
