"""Drawings show what they are given, on the axes they are given."""

import torch
from matplotlib.figure import Figure

from hibana import plot, surrogate


def drawn(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return torch.tensor(line.get_xydata())


def test_membrane_marks_each_spike_on_the_potential():
    potentials = torch.tensor([0.0, 0.6, 1.2, 0.1, 1.1])
    spikes = (potentials > 1).float()
    own = Figure().subplots()
    axes = plot.membrane(potentials, spikes, 1.0, own)
    assert axes is own
    assert torch.equal(drawn(axes, "membrane potential")[:, 1].float(), potentials)
    assert torch.allclose(drawn(axes, "spike").float(), torch.tensor([[2.0, 1.2], [4.0, 1.1]]))
    assert (axes.get_title(), axes.get_xlabel()) == ("Simulation of IF model", "Timestep")
    (threshold,) = axes.collections
    assert threshold.get_segments()[0].tolist() == [[0.0, 1.0], [4.0, 1.0]]


def test_raster_has_a_dot_for_each_spike_and_stacks_the_layers():
    layers = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
    layers["a"][1, 2] = layers["b"][3, 0] = layers["b"][0, 1] = 1
    axes = plot.raster(layers)
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "."]
    assert dots == [[[1, 2]], [[0, 4], [3, 3]]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a\n8.3%", "b\n25.0%"]


def test_surrogate_draws_the_step_and_its_derivative():
    x = torch.linspace(-1, 1, 11)
    step, derivative = plot.surrogate(surrogate.ATan(), x)
    assert torch.equal(torch.tensor(step.lines[0].get_ydata()), (x > 0).float())
    assert torch.equal(torch.tensor(derivative.lines[0].get_ydata()), surrogate.ATan().derivative(x))


def test_output_potentials_name_the_answer():
    potentials = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    axes = plot.output_potentials(potentials, label=0, names=["cat", "dog"])
    assert axes.get_title() == "Output neurons: shown cat, answered dog"
    assert [line.get_ydata().tolist() for line in axes.lines] == [[0, 0], [1, 3]]


def test_training_has_six_panels_that_can_be_saved(tmp_path):
    history = {"training/loss": [2.0, 1.0], "validation/loss": [2.1, 1.2]}
    history |= {
        "training/accuracy": [0.1, 0.8],
        "validation/accuracy": [0.1, 0.7],
        "validation/rate/if1": [0.1, 0.2],
    }
    figure = plot.training(
        history, ("linear", 0.75), torch.rand(8, 8), {"if1": torch.ones(4, 6)}, torch.rand(4, 10), 3
    )
    assert len(figure.axes) == 6
    curves = {axes.get_title(): [line.get_label() for line in axes.lines] for axes in figure.axes}
    assert curves["Loss"] == ["training", "validation"]
    assert curves["Accuracy"] == ["training", "validation", "linear (test)"]
    assert curves["Firing rate"] == ["if1"]
    figure.savefig(tmp_path / "training.png")
