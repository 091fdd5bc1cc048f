"""What the benchmark promises of itself: a red gate, turns, and a report of what was measured."""

import json
from pathlib import Path

import pytest
import torch

import hibana as hb
from benchmarks import agreement, gpu, measure, run


@pytest.fixture
def sequence() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 40, generator=generator), torch.randn(6, 40, generator=generator)


def _broken(monkeypatch: pytest.MonkeyPatch, breaks) -> None:
    unroll = hb.unroll

    def wrong(cell, inputs, state=None, *, backend="auto"):
        outputs, state = unroll(cell, inputs, state, backend="reference")
        return (outputs, state) if backend == "reference" else breaks(outputs, state)

    monkeypatch.setattr(hb, "unroll", wrong)


def test_the_gate_is_green_where_hibana_agrees_with_its_reference(sequence):
    assert agreement.disagreement(hb.IFCell(), *sequence) is None


def test_a_flipped_spike_turns_the_gate_red(monkeypatch, sequence):
    def flipped(outputs, state):
        flip = torch.zeros_like(outputs)
        flip[2, 3] = 1.0
        return (outputs - flip).abs(), state

    _broken(monkeypatch, flipped)
    assert agreement.disagreement(hb.IFCell(), *sequence) == "outputs differ in 1 of 240 places"


def test_a_gradient_off_by_one_percent_turns_the_gate_red(monkeypatch, sequence):
    def scaled(outputs, state):
        return outputs.detach() + 1.01 * (outputs - outputs.detach()), state

    _broken(monkeypatch, scaled)
    red = agreement.disagreement(hb.IFCell(), *sequence)
    assert red is not None
    assert red.startswith("gradient of input is off by")


def test_a_gradient_that_is_no_number_turns_the_gate_red():
    right = torch.ones(3)
    assert agreement.gradients_differ({"w": right / 0 * 0}, {"w": right}) is not None


def test_contenders_are_called_in_turn_and_each_is_timed_as_often():
    called: list[str] = []
    seconds = measure.rounds(
        {name: lambda name=name: called.append(name) for name in "ab"},
        budget_s=0.0,
        at_least=3,
        stretch_s=0.0,
    )
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(called[4:]) == "abbaab"  # after two calls each that are not timed


def test_the_summary_is_the_median_and_the_quartiles_in_milliseconds():
    assert measure.summary([3e-3, 1e-3, 2e-3]) == pytest.approx(
        {"ms": 2.0, "ms_low": 1.0, "ms_high": 3.0, "calls": 3}
    )


def test_a_process_of_its_own_returns_what_the_function_returns():
    assert measure.in_process("math", "hypot", 3, 4) == 5.0


def test_a_failure_in_a_process_of_its_own_is_not_swallowed():
    with pytest.raises(RuntimeError, match=r"(?s)math\.sqrt.*math domain error"):
        measure.in_process("math", "sqrt", -1)


def test_jobs_are_picked_by_whole_parts_of_their_names():
    assert run.wanted("layers/warm/16x65536", ["layers"])
    assert run.wanted("layers/warm/16x65536", ["layers/warm/16x65536"])
    assert not run.wanted("layers/warm/16x65536", ["layers/w", "networks"])


def test_the_report_shows_ratios_what_was_promised_and_what_was_not_timed(tmp_path: Path):
    report = pytest.importorskip("benchmarks.report")
    about = {
        "when": "2026-01-01T00:00:00+00:00", "quick": False, "threads": 2, "processor": "a processor",
        "others": 0.0, "versions": {"hibana": "0.1.0"}, "missing": {"norse": "could not be installed: why"},
    }  # fmt: skip
    row = {"size": "16x65536", "heap": "warm", "case": "step", "pass": "forward+backward", "is": "x"}
    taken = {"relu": 2.0, "hibana": 1.8, "sinabs": 36.0}
    rows = [{**row, "contender": name, "ms": ms} for name, ms in taken.items()]
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


def test_pages_of_several_machines_lie_side_by_side_and_name_each_other(tmp_path: Path):
    report = pytest.importorskip("benchmarks.report")
    row = {"what": "import hibana, after import torch", "s": 0.1}
    _written(tmp_path, {"compile/first-use": [row]}, name="there", processor="another processor")
    report.write(tmp_path, "there")
    _written(tmp_path, {"compile/first-use": [row]})
    assert "Measured elsewhere too: [another processor](there.md)." in report.write(tmp_path)
    assert "Measured elsewhere too: [a processor](benchmarks.md)." in report.write(tmp_path, "there")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_report_says_so_in_one_sentence(tmp_path: Path):
    report = pytest.importorskip("benchmarks.report")
    assert list(gpu.jobs(quick=False)) == ["gpu"]
    _written(tmp_path, {"gpu": gpu.jobs(quick=False)["gpu"]()})
    page = report.write(tmp_path)
    assert "**Not timed:** everybody: there is no CUDA device here, so nothing was measured on one" in page


def test_on_a_gpu_the_report_has_ratios_and_the_share_of_the_copy_bandwidth(tmp_path: Path):
    report = pytest.importorskip("benchmarks.report")
    about = {"size": "32x4194304", "case": "step", "pass": "forward+backward"}
    about |= {"device": "a card", "driver": "1.2", "cuda": "13.0"}
    rows = [
        {**about, "contender": "relu", "ms": 2.0},
        {**about, "contender": "copy", "ms": 1.0, "gb_s": 900.0, "of_copy": 1.0},
        {**about, "contender": "hibana", "ms": 1.8, "gb_s": 810.0, "of_copy": 0.9},
        {**about, "contender": "spikingjelly", "ms": 2.7},
        {**about, "contender": "loop+compile", "error": "OutOfMemoryError: why"},
    ]
    _written(tmp_path, {"gpu/32x4194304/step": rows})
    page = report.write(tmp_path)
    assert "a card, driver 1.2, CUDA 13.0." in page
    assert "| 2000 | 900 | **0.90** | 90% | ≥ 0.8 ✓ | 1.35 | – | – | ≥ 1.3 ✓ |" in page
    assert "**Not timed:** 32x4194304, step, loop+compile: OutOfMemoryError: why" in page


def _written(
    folder: Path, results: dict[str, list[dict]], name: str = "benchmarks", processor: str = "a processor"
) -> None:
    about = {
        "when": "2026-01-01T00:00:00+00:00", "quick": False, "threads": 2, "processor": processor,
        "others": 0.0, "versions": {"hibana": "0.1.0"}, "missing": {},
    }  # fmt: skip
    (folder / name).mkdir()
    kept = {job: {"about": about, "rows": rows} for job, rows in results.items()}
    (folder / name / "results.json").write_text(json.dumps(kept))


def test_shares_are_of_what_a_copy_moves():
    inputs, cell = torch.rand(8, 512), hb.IFCell(detach_reset=True)
    wanted = inputs.clone().requires_grad_()
    calls = {
        "copy": lambda: torch.empty_like(inputs).copy_(inputs),
        "hibana": lambda: hb.unroll(cell, wanted)[0].sum().backward(),
        "broken": lambda: torch.rand(2) @ torch.rand(3),
    }
    rows = {row["contender"]: row for row in gpu._timed(calls, cell, inputs, "forward+backward", 0.0)}
    assert rows["broken"]["error"].startswith("RuntimeError: ")
    assert rows["copy"]["of_copy"] == pytest.approx(1.0)
    sequence = inputs.numel() * 4
    assert gpu._bytes("hibana", cell, inputs, "forward+backward") == 4 * sequence + 2 * inputs.numel() / 8
    assert gpu._bytes("hibana", cell, inputs, "inference") == 2 * sequence
    share = rows["hibana"]["gb_s"] / rows["copy"]["gb_s"]
    assert rows["hibana"]["of_copy"] == pytest.approx(share)
