"""Figures contain the data of their arguments, and use the axes that are passed."""

import re
from itertools import pairwise
from types import SimpleNamespace

import matplotlib as mpl
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import hibana as hb
from hibana import plot, surrogate
from hibana.plot.style import GREY, PALETTE, RED
from scenes import layers, spikes


def line_data(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return torch.tensor(line.get_xydata())


def marks(axes):
    return [line.get_xydata().tolist() for line in axes.lines if line.get_marker() in (".", "|")]


def test_membrane_marks_each_spike_on_the_potential():
    potentials = torch.tensor([0.0, 0.6, 1.2, 0.1, 1.1])
    spikes_ = (potentials > 1).float()
    figure_axes = Figure().subplots()
    axes = plot.membrane(potentials, spikes_, 1.0, figure_axes)
    assert axes is figure_axes
    assert torch.equal(line_data(axes, "membrane potential")[:, 1].float(), potentials)
    assert torch.allclose(line_data(axes, "spike").float(), torch.tensor([[2.0, 1.2], [4.0, 1.1]]))
    assert (axes.get_title(), axes.get_xlabel()) == ("Potential and spikes", "Timestep")
    (threshold,) = axes.collections
    assert threshold.get_segments()[0].tolist() == [[0.0, 1.0], [4.0, 1.0]]


def test_raster_has_a_dot_for_each_spike_and_stacks_the_layers():
    populations = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
    populations["a"][1, 2] = populations["b"][3, 0] = populations["b"][0, 1] = 1
    axes = plot.raster(populations)
    assert marks(axes) == [[[1, 2]], [[0, 4], [3, 3]]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a\n8.3%", "b\n25.0%"]


def test_raster_is_sorted_by_first_spike_and_by_rate():
    population = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 0, 0]]).float()
    by_first = {tuple(spike) for spike in marks(plot.raster(population, sort="first"))[0]}
    assert by_first == {(0, 0), (1, 0), (1, 1), (2, 1), (3, 1), (2, 2)}
    by_rate = {tuple(spike) for spike in marks(plot.raster(population, sort="rate"))[0]}
    assert by_rate == {(2, 1), (0, 2), (1, 2), (1, 3), (2, 3), (3, 3)}


def test_rates_above_a_raster_integrate_to_its_spikes():
    population = spikes(1000, 7)
    (rates_axes,) = plot.raster(population, rates=True, dt=2.0).child_axes
    (steps,) = rates_axes.patches
    values, edges, _ = steps.get_data()
    spans = torch.tensor(edges).diff()  # ms
    assert torch.isclose((torch.tensor(values) / 1000 * spans * 7).sum(), population.sum().double())


@pytest.mark.parametrize("sort", [None, "first", "rate"])
def test_events_are_drawn_like_dense_spikes(sort):
    events = {name: hb.SpikeTrains.from_dense(dense) for name, dense in layers().items()}
    expected, axes = (plot.raster(spikes, sort=sort, rates=True) for spikes in (layers(), events))
    assert marks(axes) == marks(expected)
    heights = [
        [steps.get_data().values.tolist() for steps in figure.child_axes[0].patches]
        for figure in (axes, expected)
    ]
    assert heights[0] == heights[1]


def test_population_rates_in_bins_count_all_spikes():
    populations = layers(steps=1000)
    axes = plot.population_rates(populations, bins=7, dt=0.5)
    labels = [tick.get_text() for tick in plot.raster(populations, dt=0.5).get_yticklabels()]
    assert labels == [f"{name}\n{dense.mean() * 2000:.1f} Hz" for name, dense in populations.items()]
    for steps, dense in zip(axes.patches, populations.values(), strict=True):
        values, edges, _ = steps.get_data()
        assert len(values) == 7
        spikes_per_bin = torch.tensor(values) / 1000 * torch.tensor(edges).diff() * dense.shape[1]
        assert torch.isclose(spikes_per_bin.sum(), dense.sum().double())
    assert [text.get_text() for text in axes.get_legend().texts] == ["if1", "if2"]


def test_activity_draws_means_of_the_statistics_and_published_values():
    populations = {name: hb.SpikeTrains.from_dense(s) for name, s in layers(steps=1000).items()}
    silent = hb.SpikeTrains.from_dense(torch.zeros(1000, 3))
    figure = plot.activity(populations | {"silent": silent}, dt=0.5, published={"synchrony": [1, 2, 3]})
    rate, irregularity, correlation, synchrony = figure.axes
    points = lambda axes: [line.get_xydata().tolist() for line in axes.lines]  # noqa: E731
    for axes, statistic in ((rate, "rates"), (irregularity, "irregularity"), (correlation, "correlations")):
        arguments = {"rates": (0.5,), "irregularity": (), "correlations": (3.0, 0.5)}[statistic]
        means = [float(getattr(s, statistic)(*arguments).nanmean()) for s in populations.values()]
        expected = [[[pytest.approx(mean), row]] for row, mean in enumerate(means)]
        assert points(axes) == expected + [[[0.0, 2]]] * (statistic == "rates")
    assert [bar.get_width() for bar in synchrony.patches[:2]] == [
        s.synchrony(3.0, 0.5) for s in populations.values()
    ]
    assert points(synchrony) == [[[1, 0], [2, 1], [3, 2]]]
    assert [tick.get_text() for tick in rate.get_yticklabels()] == ["if1", "if2", "silent"]
    with pytest.raises(ValueError, match=r"published must have keys of .* got \['rates'\]"):
        plot.activity(populations, published={"rates": [1, 2]})


def test_surrogate_draws_the_step_and_its_derivative():
    x = torch.linspace(-1, 1, 11)
    step, derivative = plot.surrogate(surrogate.ATan(), x)
    assert torch.equal(torch.tensor(step.lines[0].get_ydata()), (x > 0).float())
    assert torch.equal(torch.tensor(derivative.lines[0].get_ydata()), surrogate.ATan().derivative(x))


def test_output_potentials_title_names_label_and_answer():
    potentials = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    axes = plot.output_potentials(potentials, label=0, names=["cat", "dog"])
    assert axes.get_title() == "Output neurons: shown cat, answered dog"
    assert [line.get_ydata().tolist() for line in axes.lines] == [[0, 0], [1, 3]]


def test_overlapping_names_are_moved_apart_minimally():
    ends = torch.tensor([0.0, 1.0, 1.0, 1.0, 10.0])
    axes = plot.output_potentials(torch.stack([ends, ends]), 0, list("abcde"))
    heights = {text.get_text(): round(float(text.xyann[1]), 3) for text in axes.texts}
    assert heights == {"a": 0.0, "b": 0.55, "c": 1.0, "d": 1.45, "e": 10.0}


def test_a_leader_connects_each_name_with_the_end_of_its_line():
    ends = torch.tensor([0.0, 1.0, 1.0, 1.0, 10.0])
    axes = plot.output_potentials(torch.stack([ends, ends]), 0, list("abcde"))
    axes.figure.draw_without_rendering()
    tips = {text.get_text(): text.arrow_patch.get_path().vertices[-1] for text in axes.texts}
    for name, value in zip("abcde", ends.tolist(), strict=True):
        assert axes.transData.transform((1, value)) == pytest.approx(tips[name], abs=1)


def test_the_answer_may_differ_from_the_highest_mean():
    axes = plot.output_potentials(torch.tensor([[0.0, 5.0], [2.0, 1.0]]), 0, ["cat", "dog"], answer=0)
    assert axes.get_title() == "Output neurons: shown cat, answered cat"


QUANTITY = {"training/loss": [4.0], "validation/loss": [5.0], "validation/explained": [0.5]}


def test_the_training_of_a_quantity_shows_its_name_and_its_values():
    picture, potentials = torch.rand(4, 4), torch.tensor([[100.0], [110.0]])
    options = {"names": ["price"], "measure": "explained", "answer": 108.0}
    figure = plot.training(QUANTITY, ("ridge", 0.4), picture, {}, potentials, 123.4, **options)
    loss, explained, sample, output = figure.axes
    assert loss.get_ylabel() == "Squared error (price²)"
    assert explained.get_ylabel() == "Variance explained"
    assert sample.get_title() == "A test sample: price 123.4"
    assert output.get_ylabel() == "Output (price)"
    assert [line.get_label() for line in output.lines[1:]] == ["correct: 123.4", "predicted: 108"]
    assert [list(line.get_ydata()) for line in output.lines] == [[100, 110], [123.4] * 2, [108] * 2]


def test_a_row_of_a_table_is_drawn_with_the_names_of_its_features():
    features = {"size": 0.5, "weight": -2.0}
    arguments = QUANTITY, ("ridge", 0.4)
    figure = plot.training(*arguments, features, {}, torch.rand(4, 1), 1.0, measure="explained")
    sample = figure.axes[2]
    assert [label.get_text() for label in sample.get_yticklabels()] == ["size", "weight"]
    assert [bar.get_width() for bar in sample.patches] == [0.5, -2.0]
    many = {f"f{k}": float(k) for k in range(40)}
    sample = plot.training(*arguments, many, {}, torch.rand(4, 1), 1.0, measure="explained").axes[2]
    assert [label.get_text() for label in sample.get_yticklabels()] == [f"f{k}" for k in range(28, 40)]
    assert sample.get_xlabel() == "Scaled value (12 of 40 features)"


def test_labels_of_panels_do_not_touch_their_neighbours():
    history = {
        "training/loss": [1.0, 0.5],
        "training/accuracy": [0.3, 0.6],
        "validation/rate/if1": [0.1, 0.1],
    }
    spikes = {"if1": torch.ones(8, 6)}
    figure = plot.training(history, ("linear", 0.9), torch.rand(8, 8), spikes, torch.rand(8, 10), 3)
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    for box, following in pairwise(boxes):
        assert following.y1 < box.y0 or following.x0 - box.x1 > 20  # pixels at 100 dpi


def test_a_training_in_closed_form_has_no_empty_panels(tmp_path):
    history = {"training/accuracy": [0.9], "validation/accuracy": [0.8]}
    figure = plot.training(
        history, ("linear", 0.75), torch.rand(8, 8), {"if1": torch.ones(4, 6)}, torch.rand(4, 10), 3
    )
    assert figure.get_suptitle() == "Accuracy: training 90.0%, validation 80.0%, linear (test) 75.0%"
    assert all(axes.has_data() and axes.axison for axes in figure.axes)
    assert len(figure.axes) == 3
    figure.savefig(tmp_path / "training.png")


def test_names_are_drawn_in_a_font_that_has_their_letters(caplog):
    names = ["Ж", "Щ"]
    with mpl.rc_context({"font.family": ["cmr10"], "axes.formatter.use_mathtext": True}):  # without Cyrillic
        axes = plot.output_potentials(torch.rand(5, 2), 1, names)
        assert sorted(text.get_text() for text in axes.texts) == names
        assert axes.texts[0].get_fontfamily()[-1] == "DejaVu Sans"
        axes.figure.draw_without_rendering()  # a warning about missing glyphs fails the test
    assert not any("no installed font" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "draw",
    [
        lambda names: plot.output_potentials(torch.rand(5, 2), 1, names).figure,
        lambda names: plot.training(
            {"training/loss": [1.0], "training/accuracy": [1.0]},
            ("linear", 0.5),
            torch.rand(8, 8),
            {},
            torch.rand(4, 2),
            1,
            names=names,
        ),
    ],
)
def test_names_without_a_font_are_replaced_by_numbers_with_a_warning(draw, monkeypatch, caplog):
    fonts = [font for font in mpl.font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(mpl.font_manager.fontManager, "ttflist", fonts)
    figure = draw(["悪い", "良品"])
    figure.draw_without_rendering()
    assert caplog.messages
    assert caplog.messages[0].startswith(
        "figures show replacements of the names 悪い (0), 良品 (1): no installed"
    )
    texts = [text.get_text() for text in figure.findobj(mpl.text.Text)]
    assert "1" in "".join(texts)
    assert not any("悪" in text or "良" in text for text in texts)


@pytest.mark.parametrize(
    ("fonts", "expected"),
    [
        (["Noto Sans CJK HK", "Noto Sans CJK JP", "Noto Serif CJK JP"], "Noto Sans CJK JP"),
        (["Droid Sans Fallback", "IPAexGothic"], "IPAexGothic"),
        (["Droid Sans Fallback", "Last Resort High-Efficiency"], "Droid Sans Fallback"),
        (["Last Resort High-Efficiency"], None),
    ],
)
def test_japanese_is_drawn_in_a_font_with_japanese_forms(fonts, expected, monkeypatch, caplog):
    class Everything:
        """A font with all characters; Matplotlib's default font has none of these names'."""

        def __init__(self, path):
            self.path = path

        def get_charmap(self):
            return dict.fromkeys(range(0x10000) if self.path == "all" else range(128))

    entries = [SimpleNamespace(name=name, style="normal", fname="all") for name in fonts]
    monkeypatch.setattr(mpl.font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(mpl.font_manager, "findfont", lambda properties: "default")
    monkeypatch.setattr(plot.style, "FT2Font", Everything)
    names, properties = plot.style.drawable(["悪い", "良品"])
    assert names == (["悪い", "良品"] if expected else ["0", "1"])
    assert (properties["fontfamily"][-1] if properties else None) == expected
    assert bool(caplog.messages) is (expected is None)


WRONG = {
    "spikes must have the shape of potentials, (3,), got (2,)": lambda: plot.membrane(
        torch.rand(3), torch.rand(2), 1.0
    ),
    "potentials must be [T], not empty, got shape (2, 2)": lambda: plot.membrane(
        torch.rand(2, 2), torch.rand(2, 2), 1.0
    ),
    "dt must be the positive length of a step in milliseconds, got 0": lambda: plot.raster(layers(), dt=0),
    "sort must be 'first', 'rate' or None, got 'last'": lambda: plot.raster(layers(), sort="last"),
    "layers must have spikes over the same steps, got T of [3, 4]": lambda: plot.raster(
        {"a": torch.ones(3, 1), "b": torch.ones(4, 1)}
    ),
    "layers must have spikes over the same steps, got T of none": lambda: plot.raster({}),
    "names must name the 3 classes, got 1": lambda: plot.output_potentials(torch.ones(2, 3), 0, ["a"]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WRONG[message]()


def test_half_precision_and_gradients_are_accepted():
    potentials = torch.rand(5, dtype=torch.bfloat16, requires_grad=True)
    axes = plot.membrane(potentials, torch.zeros(5), 1.0)
    assert torch.equal(line_data(axes, "membrane potential")[:, 1].bfloat16(), potentials)


@pytest.mark.parametrize("colour", [*PALETTE, RED, GREY])
def test_colours_have_contrast_on_white_and_black(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2.1
    assert 1.05 / (luminance + 0.05) >= 3
    assert (luminance + 0.05) / 0.05 >= 3
