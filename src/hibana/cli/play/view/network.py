"""A trained network: a sample, the spikes of each layer, and the readout, with a movable time."""

from typing import Any

import numpy as np
from bokeh.models import (
    BoxAnnotation,
    Button,
    Column,
    CustomJS,
    DataRange1d,
    LinearColorMapper,
    Row,
    Slider,
    Span,
    TextInput,
    Toggle,
)
from bokeh.palettes import Viridis256

from hibana.cli.play import network
from hibana.cli.play.source import Trouble
from hibana.cli.play.view.fields import slider
from hibana.cli.play.view.look import (
    BLUE,
    GREY,
    LAYERS,
    RED,
    WIDGET,
    WIDTH,
    Figure,
    empty,
    message,
    new_figure,
    text,
)

__all__ = ["NetworkView"]

PLAY = """
clearInterval(window.playing)
if (cb_obj.active) {
  step.value = step.start
  window.playing = setInterval(() => {
    if (step.value >= step.end) { cb_obj.active = false } else { step.value = step.value + 1 }
  }, Math.max(60, Math.min(400, 5000 / (step.end - step.start + 1))))
}
"""
MOVE = """
for (const cover of later) { cover.left = cb_obj.value + 0.5 }
now.location = cb_obj.value
"""


class NetworkView:
    """The view of a checkpoint on a page."""

    def __init__(self, checkpoint: str | None, trust: list[str]) -> None:
        self._trust = trust
        self._path, self._count, self._shown = "", 0, -1
        self._rasters: list[Figure] = []
        self._make_controls(checkpoint or network.DIGITS)
        self._make_figures()
        if checkpoint:
            self._open()

    def _make_controls(self, checkpoint: str) -> None:
        self._where = TextInput(
            value=checkpoint,
            placeholder="hibana-runs/digits-0/checkpoint.ckpt",
            width=WIDTH,
            css_classes=["path"],
            margin=(0, 0, 6, 0),
            stylesheets=[WIDGET],
        )
        opening = _button("Open", "open", button_type="primary")
        opening.on_click(self._open)
        self._trouble, self._title = text("", "trouble", "network-trouble", visible=False), text("", "faint")
        self._index = TextInput(value="0", width=92, margin=0, css_classes=["sample"], stylesheets=[WIDGET])
        self._index.on_change("value", lambda attribute, old, new: self._typed())
        self._slide: Slider = slider("slider-sample")
        self._slide.on_change("value_throttled", lambda attribute, old, new: self._show(int(new)))
        mistake = _button("Next mistake", "mistake")
        mistake.on_click(self._next_mistake)
        self._step: Slider = slider("step", width=WIDTH - 106)
        self._play = Toggle(label="▶ Play", width=78, margin=0, css_classes=["play"], stylesheets=[WIDGET])
        self._play.js_on_change("active", CustomJS(args={"step": self._step}, code=PLAY))
        number = text("number", width=WIDTH - 92, margin=(6, 0, 0, 0))
        self._rest = Column(
            *(self._title, text("Test sample", "heading"), Row(number, self._index, width=WIDTH, margin=0)),
            *(self._slide, mistake, text("Time", "heading")),
            Row(self._play, self._step, width=WIDTH, margin=0),
            visible=False,
            margin=0,
        )
        parts = (text("Checkpoint", "heading"), self._where, opening, self._trouble, self._rest)
        self.controls = Column(*parts, name="network_controls", margin=0)

    def _make_figures(self) -> None:
        self._picture = empty("image", "x", "y", "dw", "dh")
        ranges = {
            "x_range": DataRange1d(range_padding=0),
            "y_range": DataRange1d(range_padding=0, flipped=True),
        }
        self._input = new_figure("Input", **ranges)
        mapper = LinearColorMapper(Viridis256)
        self._input.image("image", "x", "y", "dw", "dh", source=self._picture, color_mapper=mapper)
        self._input.grid.visible = False
        self._lines = empty("xs", "ys", "colour", "width", "alpha")
        self._names = empty("x", "y", "name", "colour")
        self._readout = new_figure("Readout", x="Time step", y="Potential", x_range=(-0.5, 8))
        self._readout.multi_line(
            "xs", "ys", source=self._lines, color="colour", line_width="width", line_alpha="alpha"
        )
        self._readout.text(
            *("x", "y", "name"),
            source=self._names,
            text_color="colour",
            text_font_size="12px",
            text_baseline="middle",
            x_offset=6,
        )
        self._now = Span(dimension="height", line_color=GREY, line_dash="dashed", location=0)
        self._readout.add_layout(self._now)
        self.layers = Column(name="network_layers", sizing_mode="stretch_both")
        self._input.name, self._readout.name = "network_input", "network_readout"
        self.figures = [self._input, self._readout]

    def _open(self) -> None:
        path = self._where.value.strip()
        try:
            opened = network.opened(path, self._trust)
        except Trouble as trouble:
            message(self._trouble, str(trouble))
            return
        self._path, self._count, self._shown = path, opened["count"], -1
        self._title.text = opened["title"]
        self._slide.end = max(self._count - 1, 1)
        self._rest.visible = True
        self._show(0)

    def _typed(self) -> None:
        written = self._index.value.strip()
        if not written.isdecimal() or int(written) >= self._count:
            message(self._trouble, f"number must be in 0 to {self._count - 1}, got {written[:40]!r}")
            return
        self._show(int(written))

    def _show(self, index: int) -> None:
        """Show a sample, unless it is shown already."""
        message(self._trouble, "")
        if index == self._shown:
            return
        self._shown = index
        self._index.value, self._slide.value = str(index), index
        try:
            sample = network.sample(self._path, index, self._trust)
        except Trouble as trouble:
            message(self._trouble, str(trouble))
            return
        self._show_picture(sample)
        self._show_layers(sample["layers"])
        self._show_readout(sample)

    def _next_mistake(self) -> None:
        try:
            self._show(network.next_misclassified(self._path, self._shown, self._trust))
        except Trouble as trouble:
            message(self._trouble, str(trouble))

    def _show_picture(self, sample: dict[str, Any]) -> None:
        picture, axes = sample["picture"], sample["axes"]
        height, width = picture.shape
        self._picture.data = {"image": [picture], "x": [0], "y": [0], "dw": [width], "dh": [height]}
        self._input.axis.visible = axes is not None
        self._input.yaxis.visible = axes is not None and height > 1
        self._input.xaxis.axis_label, self._input.yaxis.axis_label = axes or (None, None)
        self._input.match_aspect = axes is None
        self._input.title.text = f"Input: {_short(sample['names'][sample['label']])}"

    def _show_layers(self, layers: list[dict[str, Any]]) -> None:
        tags = [[layer["name"], layer["raster"].shape[1]] for layer in layers]
        if [each.tags for each in self._rasters] != tags:
            self._make_rasters(layers)
        for number, (raster, layer) in enumerate(zip(self._rasters, layers, strict=True)):
            raster.renderers[0].data_source.data = _coloured(layer, LAYERS[number % len(LAYERS)])
            raster.title.text = (
                f"{layer['name']}: {layer['neurons']:,} neurons, {layer['rate']:.1%} spike a step"
            )

    def _make_rasters(self, layers: list[dict[str, Any]]) -> None:
        self._rasters, later = [], []
        steps = layers[0]["raster"].shape[1] if layers else 1
        for layer in layers:
            x_range = self._rasters[0].x_range if self._rasters else (-0.5, steps - 0.5)
            last = layer is layers[-1]
            raster = new_figure(
                *(layer["name"], "Time step" if last else "", "Neuron"),
                y_range=(0, layer["neurons"]),
                x_range=x_range,
            )
            raster.tags = [layer["name"], steps]
            raster.image_rgba("image", "x", "y", "dw", "dh", source=empty("image", "x", "y", "dw", "dh"))
            raster.grid.visible = False
            later.append(BoxAnnotation(left=steps - 0.5, fill_color=GREY, fill_alpha=0.25, line_color=None))
            raster.add_layout(later[-1])
            raster.styles = {"flex": "1 1 0", "min-height": "0"}
            self._rasters.append(raster)
        self.layers.children = list(self._rasters)
        self._step.js_property_callbacks = {}
        self._step.js_on_change("value", CustomJS(args={"later": later, "now": self._now}, code=MOVE))
        self._step.end = max(steps - 1, 1)
        self._step.value = self._now.location = steps - 1

    def _show_readout(self, sample: dict[str, Any]) -> None:
        potentials, label, answer = sample["potentials"], sample["label"], sample["answer"]
        names = [_short(name) for name in sample["names"]]
        steps, classes = potentials.shape
        colours = [BLUE if n == label else RED if n == answer else GREY for n in range(classes)]
        bold = [n in (label, answer) for n in range(classes)]
        self._lines.data = {
            "xs": [np.arange(steps)] * classes,
            "ys": list(potentials.T),
            "colour": colours,
            "width": [2.5 if each else 1.0 for each in bold],
            "alpha": [1.0 if each else 0.6 for each in bold],
        }
        self._names.data = {
            "x": [steps - 1] * classes,
            "y": _spread_out(potentials[-1], min(0.06, 0.9 / classes) * float(np.ptp(potentials))),
            "name": names,
            "colour": colours,
        }
        wrong = "" if answer == label else f", label {names[label]}"
        self._readout.title.text = f"Readout: {names[answer]}{wrong}"
        self._readout.x_range.update(start=-0.5, end=steps - 0.5 + _room(steps, names))
        for each in (self._readout.xaxis, self._readout.xgrid):
            each.bounds = (-0.5, steps - 0.5)


def _button(label: str, name: str, **settings: Any) -> Button:
    return Button(
        label=label, width=WIDTH, margin=(0, 0, 10, 0), css_classes=[name], stylesheets=[WIDGET], **settings
    )


def _coloured(layer: dict[str, Any], colour: str) -> dict[str, Any]:
    """A raster as a picture: `colour` if a neuron spikes, else transparent."""
    raster = layer["raster"]
    picture = np.zeros((*raster.shape, 4), np.uint8)
    picture[..., :3] = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    picture[..., 3] = raster
    image = picture.view(np.uint32).reshape(raster.shape)
    return {"image": [image], "x": [-0.5], "y": [0], "dw": [raster.shape[1]], "dh": [layer["neurons"]]}


def _spread_out(ends: np.ndarray[Any, Any], distance: float) -> list[float]:
    """The ends of lines as places for names, moved up if they are closer than `distance`."""
    places, height = ends.astype(float), -np.inf
    for index in ends.argsort():
        height = places[index] = max(height + distance, places[index])
    return [float(place) for place in places]


def _room(steps: int, names: list[str]) -> float:
    """The width of the names right of the lines, in steps, in a figure 250 pixels wide."""
    share = min(0.5, (12 + 7 * max(map(len, names))) / 250)
    return max(0.0, (share * steps - 0.5) / (1 - share))


def _short(name: str) -> str:
    """A name that fits next to a line."""
    return name if len(name) <= 16 else f"{name[:15]}…"
