"""The benchmarks: checks of results before timing, alternating contenders, and the report."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

import hibana as hb
from benchmarks import agreement, deep, gpu, measure, online, recurrent, recurrent_spyx, run, sparse


@pytest.fixture
def sequence() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 40, generator=generator), torch.randn(6, 40, generator=generator)


def _patch_unroll(monkeypatch: pytest.MonkeyPatch, change) -> None:
    unroll = hb.unroll

    def wrong_unroll(cell, inputs, state=None, *, backend="auto"):
        outputs, state = unroll(cell, inputs, state, backend="reference")
        return (outputs, state) if backend == "reference" else change(outputs, state)

    monkeypatch.setattr(hb, "unroll", wrong_unroll)


def test_the_check_passes_if_hibana_agrees_with_its_reference(sequence):
    assert agreement.disagreement(hb.IFCell(), *sequence) is None


def test_the_check_detects_a_flipped_spike(monkeypatch, sequence):
    def flipped(outputs, state):
        flip = torch.zeros_like(outputs)
        flip[2, 3] = 1.0
        return (outputs - flip).abs(), state

    _patch_unroll(monkeypatch, flipped)
    assert agreement.disagreement(hb.IFCell(), *sequence) == "outputs differ in 1 of 240 places"


def test_the_check_detects_a_gradient_off_by_one_percent(monkeypatch, sequence):
    def scaled(outputs, state):
        return outputs.detach() + 1.01 * (outputs - outputs.detach()), state

    _patch_unroll(monkeypatch, scaled)
    message = agreement.disagreement(hb.IFCell(), *sequence)
    assert message is not None
    assert message.startswith("gradient of input is off by")


def test_the_check_detects_a_gradient_of_nan():
    gradient = torch.ones(3)
    assert agreement.gradients_differ({"w": gradient / 0 * 0}, {"w": gradient}) is not None


def test_contenders_alternate_and_are_timed_equally_often():
    calls: list[str] = []
    seconds = measure.rounds(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        budget_s=0.0,
        min_rounds=3,
        stretch_s=0.0,
    )
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(calls[4:]) == "abbaab"  # after two untimed calls each


def test_the_summary_is_the_median_and_the_quartiles_in_milliseconds():
    expected = {"ms": 2.0, "ms_low": 1.0, "ms_high": 3.0, "calls": 3}
    assert measure.summary([3e-3, 1e-3, 2e-3]) == pytest.approx(expected)


def test_a_subprocess_returns_the_result_of_the_function():
    assert measure.in_process("math", "hypot", 3, 4) == 5.0


def test_a_failure_in_a_subprocess_is_raised():
    with pytest.raises(RuntimeError, match=r"(?s)math\.sqrt.*math domain error"):
        measure.in_process("math", "sqrt", -1)


def test_jobs_are_selected_by_complete_parts_of_their_names():
    assert run.matches("layers/warm/16x65536", ["layers"])
    assert run.matches("layers/warm/16x65536", ["layers/warm/16x65536"])
    assert not run.matches("layers/warm/16x65536", ["layers/w", "networks"])


def test_the_report_shows_ratios_targets_and_missing_timings(tmp_path: Path):
    report = pytest.importorskip("benchmarks.report")
    about = {
        "when": "2026-01-01T00:00:00+00:00", "quick": False, "threads": 2, "processor": "a processor",
        "others": 0.0, "versions": {"hibana": "0.1.0"}, "missing": {"norse": "could not be installed: why"},
    }  # fmt: skip
    row = {"size": "16x65536", "heap": "warm", "case": "step", "pass": "forward+backward", "is": "x"}
    milliseconds = {"relu": 2.0, "hibana": 1.8, "sinabs": 36.0}
    rows = [{**row, "contender": name, "ms": ms} for name, ms in milliseconds.items()]
    rows.append({"size": "16x65536", "case": "box", "contender": "hibana", "error": "s differ"})
    (tmp_path / "benchmarks").mkdir()
    results = {"layers/warm/16x65536": {"about": about, "rows": rows}}
    (tmp_path / "benchmarks" / "results.json").write_text(json.dumps(results))

    page = report.write(tmp_path)

    assert (tmp_path / "benchmarks.md").read_text() == page + "\n"
    assert (tmp_path / "benchmarks" / "layers.png").stat().st_size > 10_000
    assert "| IF, Step | 16 x 65536 | 2.00 | **0.90** | ≤ 1 ✓ | 18.0 | 20.0 | ≥ 8 ✓ |" in page
    assert "**Norse is missing:** could not be installed: why" in page
    assert "**Not timed:** 16x65536, box, hibana: s differ" in page


@pytest.mark.parametrize(
    ("module", "job", "passes", "densities"),
    [
        ("cells", "cells/fitted/linear-1x128-128", {"inference", "training"}, {0.02, 1.0}),
        ("cells", "cells/fitted/conv-4x16-16-3x3x28x28s1p1", {"inference", "training"}, {0.02, 1.0}),
        ("grid", "grid/linear/64", {"forward", "training"}, {0.01, 1.0}),
    ],
)
def test_a_small_job_times_both_layers(module, job, passes, densities):
    rows = pytest.importorskip(f"benchmarks.{module}").jobs(quick=True)[job]()
    contenders = {(kind, who) for kind in passes for who in ("torch", "hibana")}
    assert contenders <= {(row["pass"], row["contender"]) for row in rows}
    assert {row["density"] for row in rows} == densities
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.parametrize("name", deep.NETWORKS)
def test_the_neurons_of_a_deep_network_fire_at_the_requested_rate_in_both_modes(name):
    image, _ = deep.sample()
    weights, rates = deep.tune_weights(name, "hibana", image[:2], 0.16)
    assert all(abs(rate - 0.16) < 0.01 for rate in rates)
    net = deep.build(name, "hibana", weights)
    measured = []
    for module in net.modules():
        if isinstance(module, deep.Neurons):
            module.register_forward_hook(lambda module, inputs, out: measured.append(float(out.mean())))
    for training in (True, False):
        with torch.no_grad():
            net.train(training)(image[:2])
    assert len(measured) == 2 * len(rates)
    assert all(abs(rate - 0.16) < 0.03 for rate in measured)


@pytest.mark.slow
def test_a_deep_network_is_timed_beside_relu():
    rows = deep.measure_network("vgg", ["relu", "hibana"], 1, time.process_time)
    assert {(row["pass"], row["contender"]) for row in rows} == {
        (kind, who) for kind in ("training step", "inference") for who in ("relu", "hibana")
    }
    assert "| hibana |" in "\n".join(deep.section(rows))


def _write_results(
    folder: Path, results: dict[str, list[dict]], name: str = "benchmarks", processor: str = "a processor"
) -> None:
    about = {
        "when": "2026-01-01T00:00:00+00:00", "quick": False, "threads": 2, "processor": processor,
        "others": 0.0, "versions": {"hibana": "0.1.0"}, "missing": {},
    }  # fmt: skip
    (folder / name).mkdir()
    content = {job: {"about": about, "rows": rows} for job, rows in results.items()}
    (folder / name / "results.json").write_text(json.dumps(content))


@pytest.fixture
def small() -> recurrent.Size:
    return recurrent.Size(12, 4, 24, 100)


def test_a_recurrent_network_fires_at_the_rate_and_windows_are_measured(small):
    inputs, _ = recurrent.sample(small)
    weights, measured = recurrent.tune_weights(small, inputs)
    first, layer, *_ = recurrent.network(weights, hb.surrogate.Step()).children()
    with torch.no_grad():
        firing = float(layer(first(inputs)).mean())
    assert firing == pytest.approx(measured["firing"])
    assert measured["firing"] == pytest.approx(recurrent.RATE, abs=0.005)
    assert measured["firing"] == measured["hibana"] < measured["hibana-box"] < measured["hibana-atan"] == 1


@pytest.mark.parametrize("surrogate", recurrent.OURS.values(), ids=str)
def test_a_recurrent_network_agrees_with_the_reference(small, surrogate):
    inputs, targets = recurrent.sample(small)
    weights, _ = recurrent.tune_weights(small, inputs)
    assert recurrent.disagreement(weights, surrogate, inputs, targets) is None


def test_the_check_detects_one_different_recurrent_weight(monkeypatch, small):
    inputs, targets = recurrent.sample(small)
    weights, _ = recurrent.tune_weights(small, inputs)
    network = recurrent.network

    def wrong_network(weights, surrogate, *, reference=False):
        changed = {name: value.clone() for name, value in weights.items()}
        changed["recurrent"][3] += 0.0 if reference else 1.0
        return network(changed, surrogate, reference=reference)

    monkeypatch.setattr(recurrent, "network", wrong_network)
    message = recurrent.disagreement(weights, hb.surrogate.Step(), inputs, targets)
    assert message is not None
    assert message.startswith("outputs differ in ")


def test_a_recurrent_network_is_timed_with_torchs_and_reported(monkeypatch, tmp_path: Path):
    report = pytest.importorskip("benchmarks.report")
    monkeypatch.setattr(hb, "keep_memory", lambda: True)  # only set in subprocesses
    monkeypatch.delenv(recurrent_spyx.VARIABLE, raising=False)
    jobs = recurrent.jobs(quick=True)
    assert list(jobs) == ["recurrent/5x4x16", "recurrent/memory/5x4x16"]
    rows = jobs["recurrent/5x4x16"]()
    timed = {(row["contender"], row["pass"]) for row in rows if "ms" in row}
    assert {(name, "training step") for name in (*recurrent.OURS, "gru", "lstm", "rnn")} <= timed
    assert {("hibana", "inference"), ("gru", "inference")} <= timed
    _write_results(tmp_path, {"recurrent/5x4x16": rows})
    page = report.write(tmp_path)
    assert (tmp_path / "benchmarks" / "recurrent.png").stat().st_size > 10_000
    assert "![Recurrent](benchmarks/recurrent.png)" in page
    assert "| 5, 4, 16 | training step | ATan | " in page
    assert "**Not timed:** 5x4x16, spyx: --spyx names no Python of an environment with spyx" in page


def test_every_rule_learns_the_benchmarks_sequence(monkeypatch):
    monkeypatch.setattr(online, "NEURONS", 16)
    monkeypatch.setattr(online, "STEPS", 6)
    monkeypatch.setattr(online, "BATCH", 4)
    x, labels, net = online._spikes(6, 4), online._labels(), online._network("recurrent")
    online._backpropagation(net, x, labels)
    exact = [weights.grad.clone() for weights in net.parameters()]
    for rule in online.RULES:
        online._online_sequence(hb.learn.online(net, rule), x, labels, 4)
        torch.testing.assert_close(net[2].weight.grad, exact[2])  # the readout's gradient is exact
        assert all(weights.grad.abs().sum() > 0 for weights in net.parameters())


def test_contenders_of_sparse_synapses_compute_the_same_gradients():
    x, gradient = (torch.rand(2, 3, 40) < 0.3).float().requires_grad_(), torch.randn(2, 3, 40)
    gradients = []
    for name in sparse.CONTENDERS:
        layer, parameters = sparse._layer_and_parameters(name, 0.2, 40)
        sparse._training_step(layer, parameters, x, gradient, None)
        gradients.append((x.grad, parameters[1].grad, layer(x)))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def test_pages_of_several_machines_name_each_other(tmp_path: Path):
    report = pytest.importorskip("benchmarks.report")
    row = {"what": "import hibana, after import torch", "s": 0.1}
    _write_results(tmp_path, {"compile/first-use": [row]}, name="there", processor="another processor")
    report.write(tmp_path, "there")
    _write_results(tmp_path, {"compile/first-use": [row]})
    assert "[another processor](there.md)" in report.write(tmp_path)
    assert "[a processor](benchmarks.md)" in report.write(tmp_path, "there")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_report_states_that_there_is_no_gpu(tmp_path: Path):
    report = pytest.importorskip("benchmarks.report")
    assert list(gpu.jobs(quick=False)) == ["gpu"]
    _write_results(tmp_path, {"gpu": gpu.jobs(quick=False)["gpu"]()})
    assert "**Not timed:** everybody: there is no CUDA device" in report.write(tmp_path)


def test_a_bandwidth_is_a_fraction_of_that_of_a_copy():
    inputs, cell = torch.rand(8, 512), hb.IFCell(detach_reset=True)
    leaf = inputs.clone().requires_grad_()
    calls = {
        "copy": lambda: torch.empty_like(inputs).copy_(inputs),
        "hibana": lambda: hb.unroll(cell, leaf)[0].sum().backward(),
        "broken": lambda: torch.rand(2) @ torch.rand(3),
    }
    rows = {row["contender"]: row for row in gpu._measure_calls(calls, cell, inputs, "forward+backward", 0.0)}
    assert rows["broken"]["error"].startswith("RuntimeError: ")
    assert rows["copy"]["of_copy"] == pytest.approx(1.0)
    assert rows["hibana"]["of_copy"] == pytest.approx(rows["hibana"]["gb_s"] / rows["copy"]["gb_s"])
    sequence = inputs.numel() * 4
    training, inference = (gpu._bytes_per_pass("hibana", cell, inputs, x) for x in ("forward+backward", ""))
    assert (training, inference) == (4 * sequence + 2 * inputs.numel() / 8, 2 * sequence)


def test_the_report_shows_the_speedup_of_a_recurrent_network(tmp_path: Path):
    report = pytest.importorskip("benchmarks.report")
    columns = {"size": "100x64x128", "pass": "training step", "firing": 0.045, "is": "x"}
    ms = {"hibana": 5.0, "hibana-box": 8.0, "hibana-atan": 20.0, "gru": 80.0, "norse": 60.0, "spyx": 15.0}
    windows = {"hibana": 0.045, "hibana-box": 0.07, "hibana-atan": 1.0}
    rows = [{**columns, "contender": name, "ms": ms, "window": windows.get(name)} for name, ms in ms.items()]
    _write_results(tmp_path, {"recurrent/100x64x128": rows})
    page = report.write(tmp_path)
    assert "| Step | 4.5% | 4.5% | **16.0** | ≥ 12 ✓ | 12.0 | ≥ 8 ✓ | 3.00 |" in page
    assert "| Box | 4.5% | 7.0% | **10.0** | ≥ 12 ✗ | 7.50 | ≥ 8 ✗ | 1.88 |" in page
    assert "| ATan | 4.5% | 100.0% | **4.00** |  | 3.00 |  | 0.75 |" in page


def test_the_memory_of_a_recurrent_training_step_is_measured(small, tmp_path: Path):
    weights, _ = recurrent.tune_weights(small, recurrent.sample(small)[0])
    torch.save(weights, tmp_path / "weights.pt")
    arguments = ("hibana", list(small), str(tmp_path / "weights.pt"))
    assert measure.in_process("benchmarks.recurrent", "peak", *arguments)["mb"] >= 0


@pytest.mark.skipif(importlib.util.find_spec("jax") is not None, reason="this Python has JAX")
@pytest.mark.parametrize(
    ("python", "message"),
    [(sys.executable, "ModuleNotFoundError: No module named 'jax'"), ("/nowhere/python", "/nowhere/python")],
)
def test_an_environment_without_spyx_is_reported(monkeypatch, python, message):
    monkeypatch.setenv(recurrent_spyx.VARIABLE, python)
    (row,) = recurrent_spyx.measure_times(5, 4, 16, 700, 20, 0.02, 20.0, 1, True)
    assert row["contender"] == "spyx"
    assert message in row["error"]


def test_the_report_compares_learning_online_with_backpropagation():
    rows = [
        {"kind": "sequence", "contender": "backpropagation", "least_ms": 40.0},
        {"kind": "sequence", "contender": "d-rtrl, chunk=100", "least_ms": 30.0},
        {"kind": "step", "contender": "d-rtrl", "least_ms": 20.0},
        {"kind": "memory", "contender": "d-rtrl", "steps": 10_000, "mb": 30.0, "baseline_mb": 370.0},
    ]
    page = "\n".join(online.section(rows))
    assert "| d-rtrl, chunk=100 | 30.0 | 0.75 |" in page
    assert "| d-rtrl | 20.0 |" in page
    assert "| d-rtrl | 10,000 | 400 | 370 |" in page


def test_the_page_has_the_recorded_table_of_estimators():
    from benchmarks import estimators

    root = Path(__file__).parents[2]
    (record,) = (root / "benchmarks").glob("estimators-*.json")
    recorded = json.loads(record.read_text(encoding="utf-8"))
    assert len(recorded) == 10
    rows = estimators.report(recorded).strip().splitlines()
    for page in ("scikit-learn.md", "scikit-learn.ja.md"):
        lines = (root / "docs" / page).read_text(encoding="utf-8").splitlines()
        assert [row for row in rows[1:] if row not in lines] == []
    inputs, labels, test, answers = estimators.split_table("iris", 0)
    accuracy, _ = estimators.trial("LogisticRegression", (inputs, labels, test, answers), 0)
    assert accuracy > 0.9
