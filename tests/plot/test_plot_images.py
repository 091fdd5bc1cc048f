"""Each figure, on light and dark backgrounds, compared with a picture that a person has checked.

``pytest --mpl-generate-path=tests/plot/baseline tests/plot/test_plot_images.py`` writes new pictures.
"""

from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from matplotlib import style
from matplotlib.figure import Figure

import hibana as hb
from hibana import plot
from scenes import gabors, layers, recording, uniform

DRAWN_WITH = "3.11"
"""The version of Matplotlib that drew the pictures; others draw letters slightly differently."""

LOOKS = {"light": "default", "dark": "dark_background"}
"""Matplotlib's styles by the suffixes of the pictures' names."""


def membrane():
    return plot.membrane(*recording(), 1.0)


def raster():
    return plot.raster(layers())


def raster_short():
    return plot.raster(layers(steps=8))


def raster_sorted_with_rates():
    return plot.raster(layers()["if2"], sort="first", rates=True, dt=1.0)


def raster_layers_with_rates():
    return plot.raster(layers(), sort="rate", rates=True)


def population_rates():
    return plot.population_rates(layers(steps=1000), dt=0.1)


def activity():
    return plot.activity(layers(steps=1000), bin_width=10, published={"rate": [0.08, 0.1]})


def output_potentials():
    potentials = (uniform(40, 5) - 0.45).cumsum(0)
    return plot.output_potentials(potentials, 0, ["cat", "dog", "cow", "hen", "pig"])


def learning_curves():
    falling = {"training": [1.2, 0.6, 0.4, 0.3], "validation": [1.3, 0.8, 0.6, 0.55]}
    return plot.learning_curves(falling, ylabel="Cross-entropy", title="Loss")


def current_step():
    v = torch.arange(0, 2, 0.05)
    return plot.current_step(v, (v > 1).float(), (v > 1).float(), 1.0)[0]


def surrogate():
    from hibana.cells.surrogate import ATan

    return plot.surrogate(ATan(), torch.linspace(-1, 1, 201))[0]


def anomalies():
    scores = uniform(200) * 0.5
    scores[120] = 0.9
    times = [f"2026-01-01 {step // 60:02}:{step % 60:02}" for step in range(200)]
    names = ["heat", "flow"]
    return plot.anomalies(uniform(200, 2, seed=1), scores, [120], threshold=0.8, names=names, times=times)


def most_active():
    rates = (uniform(4, 12) * 40 + torch.arange(12) * 5).numpy()
    rates[:, 3] = 0
    kinds = ["sensory", "motor", "inter"] * 4
    return plot.most_active(rates, [f"neuron {i}" for i in range(12)], kinds, most=8)


def fit():
    from hibana.learn.fit import Fit
    from hibana.learn.likelihood import Recording

    v, s = (states.double()[:, None] for states in recording(200))
    currents = (uniform(200) / 6).double()[:, None]
    values = {"tau": 15.0, "gain": 1.0, "bias": 0.0, "offset": -70.0}
    data = Recording(currents, v - 70.2, s, dt=0.5)
    return plot.fit(Fit(hb.LIFCell(tau=15.0), values, values, values, {}, data, step=140, precision=4.0))


def training():
    names = [f"{part}/{value}" for part in ("training", "validation") for value in ("loss", "accuracy")]
    history = {name: [1 / n, 0.5 / n] for n, name in enumerate(names, 1)}
    history["validation/rate/if1"] = [0.1, 0.08]
    return plot.training(history, ("linear", 0.9), gabors(1)[0], layers(steps=8), uniform(8, 10).cumsum(0), 3)


DRAWINGS = [
    membrane,
    raster,
    raster_short,
    raster_sorted_with_rates,
    raster_layers_with_rates,
    population_rates,
    activity,
    surrogate,
    current_step,
    output_potentials,
    learning_curves,
    anomalies,
    most_active,
    fit,
    training,
]


@pytest.mark.skipif(
    mpl.__version__.split(".")[:2] != DRAWN_WITH.split("."),
    reason=f"the pictures were drawn with Matplotlib {DRAWN_WITH}, this is {mpl.__version__}",
)
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda drawing: drawing.__name__)
@pytest.mark.mpl_image_compare(style="default", tolerance=0.3, savefig_kwargs={"dpi": 60})
def test_picture(drawing, look):
    with style.context(LOOKS[look]):
        figure = drawing()
        return figure if isinstance(figure, Figure) else figure.figure


def test_every_picture_is_compared():
    expected = {f"test_picture_{drawing.__name__}-{look}.png" for drawing in DRAWINGS for look in LOOKS}
    assert expected == {path.name for path in (Path(__file__).parent / "baseline").glob("*.png")}


def test_every_drawing_has_a_picture():
    names = [drawing.__name__ for drawing in DRAWINGS]
    drawings = set(plot.__all__) - {"gradient_norms"}  # draws nothing
    assert [drawing for drawing in drawings if not any(name.startswith(drawing) for name in names)] == []
