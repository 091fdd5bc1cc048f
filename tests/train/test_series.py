"""Users' series: choosing the spiking Rocket by validation, training, loading and converting it."""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

import hibana as hb
from hibana import train
from hibana.cli import main
from hibana.cli.common import Refusal
from hibana.cli.input_steps import step_reader
from hibana.train import series


def sawteeth(count=60, steps=40):
    """Rising or falling ramps at random positions in noise, ``[N, T]``, and their classes."""
    random = np.random.default_rng(0)
    values, labels = 0.2 * random.standard_normal((count, steps)), np.arange(count) % 2
    for row, label in zip(values, labels, strict=True):
        start = random.integers(0, steps - 12)
        row[start : start + 12] += np.linspace(0, 2.5, 12)[:: -1 if label else 1]
    return values, np.array(["rises", "falls"])[labels]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "bumps.npz"
    x, y = sawteeth()
    np.savez(path, x=x[..., None], y=y)
    return path


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return *train.fit(train.Settings(data=str(file)), folder / "run"), file


def test_the_rocket_is_chosen_if_it_validates_better(run):
    model, outcome, _ = run
    settings = outcome.settings
    assert (settings.layers, settings.steps, settings.epochs) == ("rocket40", 40, 0)
    assert outcome.accuracy >= 0.9
    assert outcome.history["validation/accuracy"][0] >= 0.9
    assert all(rate < 0.2 for rate in outcome.rates.values())
    assert sum(outcome.silent.values()) < 10
    assert isinstance(model.net, type(hb.models.rocket((1,), 2, steps=40)))


def test_the_loaded_rocket_equals_the_trained_one(run):
    model, outcome, file = run
    loaded = train.load(outcome.checkpoint)
    inputs = torch.randn(3, 40, 1)
    assert torch.equal(loaded(inputs), model.eval()(inputs))
    answers = train.predict(outcome.checkpoint, file)
    correct = [answer == label for answer, label in zip(answers.answers, answers.labels, strict=True)]
    assert sum(correct) >= 57
    assert min(map(max, answers.probabilities)) >= 0.5


def test_the_rocket_is_converted_to_c_with_integers(run, tmp_path, capsys):
    _, outcome, _ = run
    target = tmp_path / "bumps.c"
    assert main(["convert", str(outcome.checkpoint.parent), str(target), "--bits", "8"]) == 0
    output = capsys.readouterr().out
    assert "same class:" in output
    assert re.search(r"branches\.0\.w +Window +0\.00%", output)
    assert "float" not in re.sub(r"/\*.*?\*/", "", target.read_text(), flags=re.DOTALL)


def test_a_rocket_is_trained_by_gradient(run, tmp_path):
    _, outcome, file = run
    settings = train.Settings(data=str(file), layers="rocket40", epochs=1)
    assert (settings.steps, settings.loss, settings.start_rate) == (40, "membrane-mean", 0.0)
    model, later = train.fit(settings, tmp_path / "run")
    assert later.accuracy >= outcome.accuracy - 0.1
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    before = train.load(outcome.checkpoint).state_dict()
    assert not torch.equal(
        model.state_dict()["net.branches.0.readout.weight"], before["net.branches.0.readout.weight"]
    )


@pytest.mark.slow
def test_the_command_prints_the_comparison(file, tmp_path, capsys):
    main(["train", "--data", str(file), "--out", str(tmp_path / "run")])
    output = capsys.readouterr().out
    assert "bumps.npz: 60 sequences of 1 feature, 40 steps, stretched to 40" in output
    assert re.search(r"spiking Rocket over 40 steps.*: [\d.]+% of left-out training series right", output)
    assert (tmp_path / "run" / "training.png").stat().st_size > 10_000
    main(["runs", str(tmp_path)])
    assert "rocket" not in capsys.readouterr().out  # the default is not listed
    main(["train", "--resume", str(tmp_path / "run"), "--epochs", "1"])
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "layers"), [(0.1, "rocket40r3"), (0.3, "rocket40")])
def test_neurons_are_refractory_if_the_error_of_left_out_series_is_lower(file, monkeypatch, error, layers):
    settings = train.Settings(data=str(file))
    samples = settings.samples()
    samples.setup()
    fit_candidate = series.fit_candidate

    def fit_with_fixed_error(*arguments):
        candidate = fit_candidate(*arguments)
        return candidate._replace(error=error if "r3" in candidate.model.settings.layers else 0.2)

    monkeypatch.setattr(series, "fit_candidate", fit_with_fixed_error)
    chosen, longer = series.choose_network(settings, samples)
    assert chosen.layers == layers
    assert ("refractory for 3 steps" in longer.summary) == (layers == "rocket40r3")
    _, outcome = train.fit(chosen, file.parent / layers, samples=longer)
    assert outcome.accuracy > 0.8


@pytest.mark.parametrize(
    "options",
    [{"layers": "16"}, {"epochs": 3}, {"cell": "ALIF"}, {"threshold": 0.5}, {"class_weights": "balanced"}],
)
def test_explicit_options_of_the_network_disable_the_choice(file, options):
    settings = train.Settings(data=str(file), **options)
    samples = settings.samples()
    samples.setup()
    chosen, same = series.choose_network(settings, samples)
    assert same is samples
    assert chosen == settings.on(samples)


def test_explicit_steps_are_used_by_the_rocket(file):
    settings = train.Settings(data=str(file), steps=20)
    samples = settings.samples()
    samples.setup()
    chosen, longer = series.choose_network(settings, samples)
    assert (chosen.layers, longer.training.inputs.shape[1]) == ("rocket20", 20)


@pytest.mark.slow
def test_unequal_lengths_are_stretched_or_padded_by_validation(tmp_path):
    """Fast and slow waves of random lengths: stretching removes the difference of their frequencies."""
    random = np.random.default_rng(0)
    (tmp_path / "waves").mkdir()
    for number in range(48):
        label, length = ("slow", "fast")[number % 2], int(random.integers(30, 80))
        time = np.arange(length) * (0.45, 0.55)[number % 2] + 6 * random.random()
        folder = tmp_path / "waves" / label
        folder.mkdir(exist_ok=True)
        values = np.sin(time) + 0.1 * random.standard_normal(length)
        (folder / f"{number}.csv").write_text("x\n" + "\n".join(f"{value:.4f}" for value in values))
    settings = train.Settings(data=str(tmp_path / "waves"))
    samples = settings.samples()
    samples.setup()
    chosen, longer = series.choose_network(settings, samples)
    assert (chosen.lengths, chosen.steps) == ("mask", samples.longest)
    assert f"cut, or padded and masked, to {samples.longest}" in longer.summary
    model, outcome = train.fit(chosen, tmp_path / "run", samples=longer)
    assert outcome.accuracy >= 0.8
    answers = train.predict(outcome.checkpoint, tmp_path / "waves")
    assert sum(map(str.__eq__, answers.answers, answers.labels)) >= 43
    from hibana.cli.play.network import TrainedNetwork

    shown = TrainedNetwork(str(tmp_path / "run")).sample(0)
    first = longer.test.inputs[0, : longer.test.lengths[0]]
    assert len(shown["potentials"]) == len(first)
    scores = model(first[None])
    assert shown["answer"] == int(scores.argmax())


def test_the_command_trains_on_masked_sequences(tmp_path, capsys):
    random = np.random.default_rng(0)
    lengths = random.integers(5, 12, 30)
    padded = np.zeros((30, 12, 1))
    for row, length, label in zip(padded, lengths, np.arange(30) % 2, strict=True):
        row[:length, 0] = random.standard_normal(length) + label
    np.savez(tmp_path / "short.npz", x=padded, y=np.arange(30) % 2, lengths=lengths)
    small = ["--lengths", "mask", "--steps", "12", "--layers", "8w3", "--epochs", "2"]
    run = tmp_path / "run"
    assert main(["train", "--data", str(tmp_path / "short.npz"), *small, "--out", str(run)]) == 0
    assert "5 to 11 steps, cut, or padded and masked, to 12" in " ".join(capsys.readouterr().out.split())
    assert main(["predict", str(run)]) == 0
    assert main(["predict", str(run), str(tmp_path / "short.npz")]) == 0
    assert "of 30 right" in capsys.readouterr().out
    from hibana.cli.play.network import TrainedNetwork

    network = TrainedNetwork(str(run))
    shown = network.sample(network.next_misclassified(0))
    assert shown["answer"] != shown["label"]


def test_spike_trains_use_no_rocket(tmp_path):
    x, _ = sawteeth()
    np.savez(tmp_path / "spikes.npz", x=(x > 0.5)[..., None].astype("u1"), y=np.arange(60) % 2)
    settings = train.Settings(data=str(tmp_path / "spikes.npz"), kind="sequences")
    samples = settings.samples()
    samples.setup()
    assert series.choose_network(settings, samples) == (settings.on(samples), samples)


def test_a_quantity_is_predicted_by_the_rocket_if_it_explains_left_out_series(tmp_path):
    random = np.random.default_rng(0)
    pace = random.uniform(0.2, 0.9, 80)
    x = np.sin(np.arange(40) * pace[:, None] + 6 * random.random((80, 1)))
    for name, y in (("pace", 3 + 2 * pace), ("noise", random.standard_normal(80))):
        np.savez(tmp_path / f"{name}.npz", x=x[..., None], y=y)
    settings = train.Settings(data=str(tmp_path / "pace.npz"))
    _, outcome = train.fit(settings, tmp_path / "run")
    assert outcome.settings.layers.startswith("rocket40")
    assert outcome.explained > 0.8
    answers = train.predict(outcome.checkpoint, tmp_path / "pace.npz").answers
    assert np.abs(np.array(answers) - 3 - 2 * pace).mean() < 0.1
    settings = train.Settings(data=str(tmp_path / "noise.npz"))
    samples = settings.samples()
    samples.setup()
    assert series.choose_network(settings, samples) == (settings.on(samples), samples)


def test_left_out_series_decide_whether_each_series_of_a_quantity_is_scaled(tmp_path):
    random = np.random.default_rng(0)
    pace, size = random.uniform(0.2, 0.9, 80), np.exp(random.normal(0, 1.5, 80))
    x = size[:, None] * np.sin(np.arange(40) * pace[:, None] + 6 * random.random((80, 1)))
    for name, y, scale in (("pace", pace, "each"), ("size", np.log(size), "all")):
        np.savez(tmp_path / f"{name}.npz", x=x[..., None], y=y)
        settings = train.Settings(data=str(tmp_path / f"{name}.npz"))
        samples = settings.samples()
        samples.setup()
        chosen, scaled = series.choose_network(settings, samples)
        assert (chosen.scale, "each series scaled" in scaled.summary) == (scale, scale == "each")
    settings = train.Settings(data=str(tmp_path / "pace.npz"), scale="all")
    samples = settings.samples()
    samples.setup()
    assert series.choose_network(settings, samples)[0].scale == "all"  # as the user said


def test_each_series_is_scaled_by_itself(tmp_path):
    random = np.random.default_rng(0)
    x, y = 5 + 3 * random.standard_normal((40, 12, 2)), np.arange(40) % 2
    x[3, :, 1] = 7.0  # constant
    np.savez(tmp_path / "waves.npz", x=x, y=y)
    settings = train.Settings(data=str(tmp_path / "waves.npz"), scale="each", steps=12, layers="rocket12")
    _, outcome = train.fit(settings, tmp_path / "run")
    network = train.load(outcome.checkpoint)
    inputs = network.description.inputs.tensor([*x[:4]])
    expected = (x[:4] - x[:4].mean(1, keepdims=True)) / x[:4].std(1, keepdims=True).clip(1e-9)
    expected[3, :, 1] = 0
    torch.testing.assert_close(inputs.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    with pytest.raises(Refusal, match="--scale each needs the whole sequence"):
        step_reader(network, None, None)
    np.savez(tmp_path / "spikes.npz", x=(x > 5).astype(np.uint8), y=y)
    samples = train.Settings(data=str(tmp_path / "spikes.npz"), kind="sequences", scale="each").samples()
    with pytest.raises(ValueError, match="scale must be all for trains of spikes"):
        samples.setup()
    with pytest.raises(ValueError, match=r"scale must be .*all.*each"):
        train.Settings(data="x.npz", kind="sequences", scale="none")


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        train.Settings(layers="16", epochs=0)
    with pytest.raises(ValueError, match="is not a layer"):
        train.Settings(layers="rocket0")
    with pytest.raises(ValueError, match="needs series of numbers"):
        train.Classifier(train.Settings(layers="rocket8"), (8, 8), 10)
    with pytest.raises(ValueError, match="at most 1,000 weights"):
        train.Classifier(train.Settings(data="shd", layers="rocket50"), (700,), 20, most_weights=1_000)


def test_padding_of_masked_sequences_has_no_effect(tmp_path):
    """Predictions for a batch equal those for single sequences, for trained windows and for a Rocket."""
    random = np.random.default_rng(0)
    values = [random.standard_normal((int(length), 2)) for length in random.integers(9, 30, 40)]
    labels = np.array(["up", "down"])[np.arange(40) % 2]
    for number, sequence in enumerate(values):
        sequence[:] += 2 * (number % 2)
    for layers in ("16w3", "rocket30"):
        samples = hb.data.Sequences(values, labels=labels, lengths="mask", steps=30)
        settings = train.Settings(
            data="in memory", kind="sequences", layers=layers, epochs=2, lengths="mask", loss="membrane-mean"
        )
        model, outcome = train.fit(settings, tmp_path / layers, samples=samples)
        batch = next(iter(samples.test_dataloader()))
        assert len(batch) == 3
        assert batch[2].tolist() == [len(values[k]) for k in _indices(samples, values)]
        in_batch = train.predict(model, values).probabilities
        with torch.no_grad():
            for sequence, probabilities in zip(values[:5], in_batch, strict=False):
                alone = model(samples.description.inputs.scaled(sequence)[None].float()).softmax(1)[0]
                assert alone.tolist() == pytest.approx(probabilities, abs=1e-4)
        assert outcome.accuracy >= (0.5 if layers == "16w3" else 0.9)  # windows learn little in two epochs
        assert all(rate > 0 for rate in outcome.rates.values())


def _indices(samples, values):
    """The index in `values` of each test sample."""
    first = [samples.description.inputs.scaled(sequence)[0].float() for sequence in values]
    return [
        next(k for k, row in enumerate(first) if torch.equal(row, inputs[0]))
        for inputs in samples.test.inputs
    ]
