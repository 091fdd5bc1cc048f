"""Computations of the playground: results compared with closed forms, and messages about errors."""

import math
import os
import re
import signal
import subprocess
import sys

import numpy
import pytest
import torch

import hibana as hb
from conformance import suite
from hibana.cli.play import neuron, source
from hibana.cli.play.network import TrainedNetwork
from hibana.cli.play.source import UserError

SURROGATES = ("ATan", "Step", "Triangle", "FastSigmoid")

CELLS = sorted(source.built_in())
USER_CELL = source.EXAMPLE


def simulate(cell="IF", values=(), strength=0.3, noise=0.0, top=1.0, code=None, **options):
    kind = source.find(cell, code)
    return neuron.simulate(kind, dict(values), strength=strength, noise=noise, top=top, **options)


def test_the_selectable_cells_are_all_cells():
    assert {f"{name}Cell" for name in source.built_in()} == {kind.__name__ for kind in suite.CELLS}


def fields_of(kind, defaults=None):
    fields = pytest.importorskip("hibana.cli.play.fields", reason="the extra play is not installed")
    return {field.name: field for field in fields.cell_fields(kind, lambda: None, defaults or {})}


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_fields_and_runs_with_their_values(cell):
    kind = source.find(cell)
    assert kind.__name__ == f"{cell}Cell"
    strength, top = neuron.input_range(kind)
    assert 0 < strength <= top
    values = {name: field.value() for name, field in fields_of(kind).items()}
    result = simulate(cell, values, strength, 0.0, top)
    assert (len(result["spikes"]) > 0) == (cell != "LI")
    explodes = not numpy.isfinite(result["gradient"]).all()
    assert result["note"].startswith("the gradient explodes") == explodes == (cell == "Izhikevich")
    for name in ("input", "potential"):
        assert result[name].shape == result["gradient"].shape == (neuron.STEPS,)
        assert numpy.isfinite(result[name]).all()


def test_fields_follow_the_signature():
    fields = fields_of(hb.LIFCell, {"tau": 3.0})
    names = [
        "tau",
        "threshold",
        "surrogate",
        "detach_reset",
        "reset",
        "rest",
        "decay_input",
        "leak_first",
        "most_spikes",
    ]
    assert list(fields) == names
    spinner, slider = fields["tau"].element.children
    assert (slider.start, slider.value, slider.end, fields["tau"].value()) == (0, 3.0, 30.0, 3.0)
    assert fields["surrogate"].value() == ("Step", {})
    assert fields["detach_reset"].value() is False
    assert fields["most_spikes"].value() == 1
    fields["reset"].element.value = "subtract"
    assert fields["reset"].value() == "subtract"
    fields["reset"].element.value = "spam"
    with pytest.raises(UserError, match="reset must be a number or subtract, got 'spam'"):
        fields["reset"].value()
    spinner.value = None
    with pytest.raises(UserError, match="tau must be a number"):
        fields["tau"].value()
    with pytest.raises(UserError, match="each argument of Mine must have a default; tau has none"):
        fields_of(source.find("", "class Mine(hb.Cell):\n    def __init__(self, tau): pass"))


def test_whole_numbers_have_whole_steps():
    field = fields_of(hb.RefractoryLIFCell)["period"]
    spinner, slider = field.element.children
    assert (slider.start, slider.step, spinner.step) == (0, 1, 1)
    spinner.value = 3.0
    assert isinstance(field.value(), int)


def test_the_colours_are_those_of_plot():
    figures = pytest.importorskip("hibana.cli.play.figures", reason="the extra play is not installed")
    style = pytest.importorskip("hibana.plot.style", reason="the extra train is not installed")
    assert figures.COLOURS == style.PALETTE
    for name in ("BLUE", "ORANGE", "RED", "GREY"):
        assert getattr(figures, name) == getattr(style, name)


def test_every_surrogate_has_fields_of_its_shape():
    choice = fields_of(hb.LIFCell)["surrogate"]
    select = choice.element.children[0]
    kinds = {type(hb.surrogate.named(name)) for name in select.options}
    assert {kind.__name__ for kind in kinds} == set(select.options)
    assert len(kinds) == len(hb.surrogate.__all__) - 4  # Surrogate, Formula, Heaviside, named
    select.value = "Triangle"
    assert list(choice.value()[1]) == ["width", "height"]


def test_potential_and_spikes_equal_the_loops():
    result = simulate("LIF", {"tau": 5.0}, 0.35)
    states = hb.record(hb.LIFCell(tau=5.0), torch.full([neuron.STEPS, 1], 0.35))
    assert numpy.array_equal(result["potential"], states["v"].flatten().double().numpy())
    assert numpy.array_equal(result["spikes"], states["s"].flatten().nonzero().flatten().numpy())
    assert result["rate"] == pytest.approx(float(states["s"].mean()))


def test_the_f_i_curve_equals_the_formula_of_integrate_and_fire():
    result = simulate("IF", strength=0.3, top=0.47)
    for current, rate in zip(result["currents"], result["rates"], strict=True):
        period = math.floor(1 / current) + 1 if current > 0 else math.inf  # steps until v > 1
        assert rate == pytest.approx(1 / period, abs=1.5 / neuron.STEPS)


def test_noise_makes_a_neuron_fire_below_its_threshold():
    quiet, noisy = simulate("LIF", strength=0.3), simulate("LIF", strength=0.3, noise=0.3)
    assert quiet["rate"] == 0 < noisy["rate"]
    below = quiet["currents"] < 0.45
    assert not quiet["rates"][below].any()
    assert noisy["rates"][below].any()
    assert numpy.array_equal(noisy["input"], simulate("LIF", strength=0.3, noise=0.3)["input"])


@pytest.mark.parametrize("name", SURROGATES)
def test_the_surrogate_is_measured_by_one_step(name):
    result = simulate("LIF", {"threshold": 1.5, "surrogate": (name, {})})
    assert result["threshold"] == pytest.approx(1.5, rel=1e-4)
    v, derivative = result["step"]["v"], result["step"]["derivative"]
    expected = hb.surrogate.named(name).derivative(torch.as_tensor(v) - 1.5).numpy()
    assert numpy.allclose(derivative, expected, atol=1e-6)
    assert numpy.array_equal(result["step"]["s"], v > 1.5)


def test_the_gradient_equals_autograds():
    values = {"surrogate": ("ATan", {"alpha": 1.0}), "detach_reset": True}
    result = simulate("LIF", values, 0.6)
    inputs = torch.full([neuron.STEPS, 1], 0.6, requires_grad=True)
    cell = hb.LIFCell(surrogate=hb.surrogate.ATan(1.0), detach_reset=True)
    hb.unroll(cell, inputs, backend="reference")[0].sum().backward()
    assert numpy.allclose(result["gradient"], inputs.grad.flatten(), rtol=1e-5)


def test_a_user_defined_cell_is_simulated_like_a_built_in_one():
    assert list(fields_of(source.find("", USER_CELL))) == ["threshold", "decay", "rise"]
    result = simulate("", {"threshold": 2.0, "rise": 0.0}, 0.3, code=USER_CELL)
    assert numpy.array_equal(result["spikes"], simulate("IF", {"threshold": 2.0}, 0.3)["spikes"])
    assert result["threshold"] == pytest.approx(2.0, rel=1e-4)
    assert list(result["others"]) == ["a"]


def test_potential_and_spikes_of_a_step_with_random_numbers_belong_together():
    code = """class Mine(hb.Cell):
    def forward(self, input_, v, s):
        v = 0.9 * v * (1 - s) + input_ + 0.3 * torch.randn_like(v)
        return v, hb.surrogate.ATan()(v - 1)
"""
    result = simulate("", strength=0.1, code=code)
    assert 5 < len(result["spikes"]) < 100
    assert numpy.array_equal(result["spikes"], (result["potential"] > 1).nonzero()[0])


HEAD = "class Mine(hb.Cell):\n    def forward(self, input_, v, s):\n        "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it defines no class"),
        ("class A: pass", "it defines A"),
        ("x = (1,\n", "line 1: SyntaxError"),
        ("x = 1\ny = z", "line 2: NameError: name 'z' is not defined"),
        ("import nowhere", "line 1: ModuleNotFoundError"),
        ("raise SystemExit", "line 1: SystemExit"),
        ("\x00", "SyntaxError"),
        (HEAD + "return v", "must return its states, (v, s), each like the input; got a Tensor"),
        (HEAD + "return v / 0 + w, s", "line 3: NameError: name 'w'"),
        ("class Mine(hb.Cell):\n    def forward(self, *states): return states", "must name each state"),
        (
            "class Mine(hb.Cell):\n    def __init__(self): 1 / 0",
            "line 2: ZeroDivisionError: division by zero",
        ),
        ("class Mine(hb.Cell): pass", "must name each state"),
    ],
)
def test_errors_in_pasted_code_are_described(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        neuron.input_range(source.find("", text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": {"threshold": -1.0}}, "threshold must be positive and finite, got -1.0"),
        ({"values": {"threshold": "x"}}, "threshold must be a float or a tensor, got str"),
        ({"values": {"surrogate": ("ATan", {"alpha": 0.0})}}, "alpha must be positive and finite, got 0.0"),
        ({"values": {"surrogate": ("None", {})}}, "surrogate must be one of"),
        ({"cell": "HH"}, "cell must be one of ALIF"),
    ],
)
def test_refused_values_show_the_error_message_of_the_cell(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        simulate(**arguments)


def test_values_that_are_not_finite_are_reported_and_not_drawn():
    result = simulate("QIF", {"threshold": 3e38}, 3.0)
    assert result["note"].startswith("v is not finite from step ")
    potentials = result["potential"][numpy.isfinite(result["potential"])]
    assert numpy.abs(potentials).max() < 1e30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The path of a checkpoint of an untrained network, in the format of `hibana train`."""
    pytest.importorskip("lightning", reason="the extra train is not installed")
    return untrained(tmp_path_factory.mktemp("play") / "checkpoint.ckpt")


def untrained(path, **settings):
    from hibana.train import Classifier, Settings, checkpoint

    torch.manual_seed(0)
    model = Classifier(Settings(**{"layers": "24,20", "steps": 5, **settings}), (8, 8), 10)
    checkpoint.write({"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, path)
    return path


def test_a_sample_goes_through_the_layers(checkpoint):
    network = TrainedNetwork(str(checkpoint))
    assert (network.count, network.steps) == (360, 5)
    shown = network.sample(7)
    assert shown["picture"].shape == (8, 8)
    assert {name: raster.shape for name, raster in shown["layers"].items()} == {
        "if1": (24, 5),
        "if2": (20, 5),
    }
    assert shown["potentials"].shape == (5, 10)

    from hibana.train import activity, load

    model = load(checkpoint)
    samples = model.settings.samples()
    samples.setup()
    inputs, label = samples.test[7]
    with torch.no_grad():
        outputs, spikes = activity(model.net, model.encode(inputs[None]))
    assert shown["label"] == int(label)
    assert numpy.allclose(shown["potentials"], outputs[:, 0])
    assert numpy.array_equal(shown["layers"]["if2"], spikes["if2"][:, 0].T)


def test_the_next_misclassified_sample_is_misclassified(checkpoint):
    network = TrainedNetwork(str(checkpoint))
    index = network.next_misclassified(5)
    shown = network.sample(index)
    assert shown["label"] != shown["answer"]
    for between in range(6, index):
        other = network.sample(between)
        assert other["label"] == other["answer"]


def test_invalid_checkpoints_and_samples_are_refused(checkpoint, tmp_path):
    (tmp_path / "text").write_text("no checkpoint")
    for path in (tmp_path / "text", tmp_path / "missing", tmp_path, "\0", "~nobody/x"):
        with pytest.raises(ValueError, match="checkpoint must be a file that `hibana train` wrote"):
            TrainedNetwork(os.fspath(path))
    with pytest.raises(ValueError, match="sample must be in 0 to 359, got 360"):
        TrainedNetwork(str(checkpoint)).sample(360)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process is sent Ctrl-C alone there")
def test_ctrl_c_ends_the_playground():
    pytest.importorskip("bokeh", reason="the extra play is not installed")
    command = [sys.executable, "-m", "hibana", "play", "--no-browser"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore SIGINT
        start_new_session=True,
    ) as process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=600)
        finally:
            process.kill()
    assert (process.returncode, errors) == (130, "hibana play: interrupted\n")


def test_the_shipped_network_is_opened_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("safetensors", reason="the extra hub is not installed")
    network = TrainedNetwork("digits")
    assert network.title.startswith("digits · 16c3b-p2-32c3b-p2-64 · IF neurons")
    shown = [network.sample(index) for index in range(0, network.count, 6)]
    assert sum(sample["answer"] == sample["label"] for sample in shown) >= 0.9 * len(shown)
    (tmp_path / "digits").write_text("a file of that name is the user's")
    with pytest.raises(ValueError, match="checkpoint must be a file that `hibana train` wrote"):
        TrainedNetwork("digits")
