"""The command that injects faults: its quick form passes, and it detects faults."""

import sys

import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("nir", reason="the extra nir is not installed")
if not sys.platform.startswith("linux"):
    pytest.skip("faults are injected on Linux", allow_module_level=True)

from benchmarks.faults import __main__ as faults
from benchmarks.faults.trial import Result, Tally, run


@pytest.mark.slow
@pytest.mark.parametrize(
    "section",
    [
        "flips",
        "elastic",
        "first-calls",
        "forks",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("concurrent", "growth")),
    ],
)
def test_a_section_passes_in_its_quick_form(section, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["faults", "--quick", "--only", section])
    assert faults.main() == 0, capsys.readouterr().out
    assert " trials," in capsys.readouterr().out


def test_a_failure_is_counted_printed_and_sets_the_exit_code(monkeypatch, capsys):
    def failing_section(quick):
        tally = Tally("a kind")
        tally.add(None, 0.5)
        tally.add("it broke", 1.5)
        yield tally

    monkeypatch.setitem(faults.SECTIONS, "forks", failing_section)
    monkeypatch.setattr("sys.argv", ["faults", "--only", "forks"])
    assert faults.main() == 1
    out = capsys.readouterr().out
    assert "2 trials,     1 failed, at most 1.50 s" in out
    assert "it broke" in out


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Result(0, "", "", 1.0), None),
        (Result(2, "", "refused", 1.0), "exit code 2: refused"),
        (Result(None, "", "", 1.0), "the process hung"),
        (Result(0, "", "Traceback (most recent call last)", 1.0), "exit code 0: Traceback"),
    ],
)
def test_faults_are_described(result, expected):
    fault = result.fault(0)
    assert fault is None if expected is None else fault.startswith(expected)


def test_different_numbers_in_a_thread_are_detected():
    from benchmarks.faults.threads import CONCURRENT

    changed = CONCURRENT.replace("expected[at][index]))", "expected[at][index - 1]))")
    assert int(run(["-c", changed, 80]).out) == 80
