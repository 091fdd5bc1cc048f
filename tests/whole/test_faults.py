"""The command that injects faults: its quick form passes, and what it looks for it finds."""

import sys

import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("nir", reason="the extra nir is not installed")
if not sys.platform.startswith("linux"):
    pytest.skip("faults are injected on Linux", allow_module_level=True)

from benchmarks.faults import __main__ as faults
from benchmarks.faults.trial import Ended, Tally, run


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
    assert " tried," in capsys.readouterr().out


def test_a_failure_is_counted_shown_and_the_exit_code(monkeypatch, capsys):
    def broken(quick):
        tally = Tally("a kind")
        tally.add(None, 0.5)
        tally.add("it broke", 1.5)
        yield tally

    monkeypatch.setitem(faults.SECTIONS, "forks", broken)
    monkeypatch.setattr("sys.argv", ["faults", "--only", "forks"])
    assert faults.main() == 1
    out = capsys.readouterr().out
    assert "2 tried,     1 failed, at most 1.50 s" in out
    assert "it broke" in out


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (Ended(0, "", "", 1.0), None),
        (Ended(2, "", "refused", 1.0), "it ended with 2: refused"),
        (Ended(None, "", "", 1.0), "it hung"),
        (Ended(0, "", "Traceback (most recent call last)", 1.0), "it ended with 0: Traceback"),
    ],
)
def test_an_end_is_judged(end, says):
    fault = end.fault(0)
    assert fault is None if says is None else fault.startswith(says)


def test_other_numbers_in_a_thread_are_found():
    from benchmarks.faults.threads import CONCURRENT

    spoilt = CONCURRENT.replace("wanted[at][which]))", "wanted[at][which - 1]))")
    end = run(["-c", spoilt, 80])
    assert int(end.out) == 80
