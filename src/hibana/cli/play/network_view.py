"""The view of a trained network: a sample, the spikes of each layer, and the readout over time."""

from typing import Any

import numpy as np
from bokeh.models import (
    BasicTicker,
    Button,
    Column,
    ColumnDataSource,
    CustomJS,
    FixedTicker,
    Row,
    Slider,
    Spinner,
    TextInput,
    Toggle,
)

from hibana.cli.play.fields import WIDTH
from hibana.cli.play.figures import BLUE, COLOURS, GREY, RED, Figure, column, empty, message, new_figure
from hibana.cli.play.network import TrainedNetwork

MAX_NAMED = 20
"""Features of a sample up to which each is named."""
PLAY_SCRIPT = """
clearInterval(window.playing)
if (cb_obj.active) {
  step.value = step.start
  window.playing = setInterval(() => {
    if (step.value >= step.end) { cb_obj.active = false } else { step.value = step.value + 1 }
  }, Math.max(60, Math.min(400, 5000 / (step.end - step.start + 1))))
}
"""


class NetworkView:
    """Widgets and figures for a trained network.

    Args:
        checkpoint: a network to open at the start; ``None`` opens none.
        trust: functions that a checkpoint may name as its layers, see :func:`hibana.train.load`.

    Attributes:
        layout: the view, to be added to a Bokeh document.
    """

    def __init__(self, checkpoint: str | None, trust: list[str]) -> None:
        self._trust, self._shown_index = trust, -1
        self._network: TrainedNetwork | None = None
        self._path = TextInput(
            title="Checkpoint", value=checkpoint or "digits", width=WIDTH, name="checkpoint"
        )
        open_button = Button(label="Open", button_type="primary", width=WIDTH, name="open")
        open_button.on_click(self._open)
        self._error, self._title = message("network error", RED), message("network title")
        self._index = Spinner(title="Test sample", value=0, low=0, step=1, width=WIDTH, name="sample")
        self._index.on_change("value", lambda attribute, old, new: self._show())
        mistake_button = Button(label="Next mistake", width=WIDTH, name="mistake")
        mistake_button.on_click(self._next_mistake)
        self._step = Slider(title="Time step", start=0, end=1, value=0, width=WIDTH, name="step")
        self._current_step = ColumnDataSource({"x": [0]})
        move = CustomJS(args={"now": self._current_step}, code="now.data = {x: [cb_obj.value]}")
        self._step.js_on_change("value", move)
        play = Toggle(label="▶ Play", width=WIDTH, name="play")
        play.js_on_change("active", CustomJS(args={"step": self._step}, code=PLAY_SCRIPT))
        self._controls = Column(self._title, self._index, mistake_button, self._step, play, visible=False)
        self._make_figures()
        widgets = Column(self._path, open_button, self._error, self._controls)
        pictures = column(self._input, self._readout)
        self._layers = column(name="layers")
        self.layout = Row(
            widgets, pictures, self._layers, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"}
        )
        if checkpoint:
            self._open()

    def _make_figures(self) -> None:
        """Creates the figures of the input and of the readout, with empty data."""
        self._picture = empty("image", "dw", "dh")
        backgrounds = ("background_fill_color", "border_fill_color", "outline_line_color")
        transparent: dict[str, Any] = dict.fromkeys(backgrounds)
        self._input = new_figure(
            "Input", height=320, name="input", stylesheets=[":host {filter: none}"], **transparent
        )
        grey = {"axis_line_color": GREY, "major_tick_line_color": GREY, "minor_tick_line_color": None}
        for axis in self._input.axis:
            axis.update(**grey, axis_label_text_color=GREY, major_label_text_color=GREY)
        self._input.title.text_color = GREY
        self._input.image("image", x=0, y=0, dw="dw", dh="dh", source=self._picture, palette="Viridis256")
        self._input.y_range.flipped = True
        self._input.grid.visible = False
        self._lines = empty("xs", "ys", "colour", "width", "name")
        self._readout = new_figure("Readout", x="Time step", y="Potential", height=320, name="readout")
        self._readout.multi_line(
            "xs", "ys", source=self._lines, color="colour", line_width="width", legend_field="name"
        )
        self._readout.add_layout(self._readout.legend[0], "right")
        self._mark_time(self._readout)

    def _mark_time(self, figure: Figure) -> None:
        """Adds a line to a figure at the time step of the slider."""
        figure.vspan("x", source=self._current_step, color=GREY, line_dash="dashed")

    def _open(self) -> None:
        """Opens the checkpoint of the path field and shows its first test sample, or an error."""
        try:
            network = TrainedNetwork(self._path.value.strip(), self._trust)
        except (ModuleNotFoundError, OSError, ValueError) as error:
            self._error.text = str(error)
            return
        self._network, self._shown_index = network, -1
        self._title.text = network.title
        self._index.high = network.count - 1
        self._controls.visible = True
        self._index.value = 0
        self._show()

    def _show(self) -> None:
        """Shows the selected sample, unless it is shown already."""
        index = self._index.value
        if self._network is None or index is None or index == self._shown_index:
            return
        self._shown_index, self._error.text = index, ""
        try:
            sample = self._network.sample(index)
        except ValueError as error:
            self._error.text = str(error)
            return
        self._show_picture(sample)
        self._show_layers(sample["layers"])
        self._show_readout(sample)

    def _next_mistake(self) -> None:
        """Selects the next test sample that the network classifies wrongly."""
        assert self._network is not None  # the button is hidden until a network is open
        try:
            self._index.value = self._network.next_misclassified(self._shown_index)
        except ValueError as error:
            self._error.text = str(error)

    def _show_picture(self, sample: dict[str, Any]) -> None:
        """Shows the picture of `sample`, its axes and its label."""
        picture, axes = sample["picture"], sample["axes"]
        self._picture.data = {"image": [picture], "dw": [picture.shape[1]], "dh": [picture.shape[0]]}
        self._input.axis.visible = axes is not None
        self._input.xaxis.axis_label, self._input.yaxis.axis_label = axes or (None, None)
        self._input.match_aspect = axes is None
        self._input.yaxis.visible = axes is not None and len(picture) > 1
        features = sample["features"] if len(sample["features"]) <= MAX_NAMED else []
        names = {column + 0.5: name for column, name in enumerate(features)}
        self._input.xaxis.ticker = FixedTicker(ticks=list(names)) if names else BasicTicker()
        self._input.xaxis.major_label_overrides = names
        self._input.xaxis.major_label_orientation = 0.8 if names else "horizontal"  # radians
        self._input.title.text = f"Input: {sample['names'][sample['label']]}"

    def _show_layers(self, layers: dict[str, Any]) -> None:
        """Draws the raster of each of the `layers`, and sets the slider to the last time step."""
        steps = max((raster.shape[1] for raster in layers.values()), default=1)
        self._step.update(end=max(steps - 1, 1), value=steps - 1)
        self._current_step.data = {"x": [steps - 1]}
        figures: list[Figure] = []
        for (name, raster), colour in zip(layers.items(), COLOURS * len(layers), strict=False):
            title = f"{name}: {len(raster):,} neurons, {raster.mean():.1%} spike a step"
            figure = new_figure(title, x="Time step", y="Neuron", x_range=(-0.5, steps - 0.5))
            figure.image([raster], x=-0.5, y=0, dw=steps, dh=len(raster), palette=["#00000000", colour])
            figure.grid.visible = False
            self._mark_time(figure)
            figures.append(figure)
        self._layers.children = figures

    def _show_readout(self, sample: dict[str, Any]) -> None:
        """Draws the readout's potentials: the label's in blue, a wrong answer's in red."""
        potentials, label, answer, names = (sample[key] for key in ("potentials", "label", "answer", "names"))
        steps, classes = potentials.shape
        self._lines.data = {
            "xs": [np.arange(steps)] * classes,
            "ys": list(potentials.T),
            "colour": [BLUE if n == label else RED if n == answer else GREY for n in range(classes)],
            "width": [2.5 if n in (label, answer) else 1.0 for n in range(classes)],
            "name": names,
        }
        wrong = "" if answer == label else f", label {names[label]}"
        self._readout.title.text = f"Readout: {names[answer]}{wrong}"
