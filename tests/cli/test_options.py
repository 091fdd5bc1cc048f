"""Each option of a command has an effect in all uses, or is declared with the uses that read it."""

import itertools
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("nir", reason="the extra nir is not installed")

from hibana.cli import _APP, _COMMANDS, convert, main
from hibana.cli.options import USES

ALWAYS = {
    "convert": {"arduino"},
    "demo": {"out", "seed"},
    "explain": {"surrogate", "detach_reset", "code"},
    "play": {"port", "browser", "trust"},
    "predict": {"stream", "trust"},
    "share": {"overwrite", "trust"},
    "simulate": {
        *("neurons", "activate", "rate", "silence", "seconds", "trials", "seed", "out", "csv", "source"),
        *("target", "weight", "sign", "transmitter", "id"),
    },
    "train": {
        *("settings", "out", "resume", "overwrite", "threads", "data", "layers", "connectivity", "rewire"),
        *("steps", "coding", "loss", "batch_size", "epochs", "seed", "devices", "nodes", "accelerator"),
        "precision",
    },
}
"""Options that have an effect in all uses of their command, or are refused where they have none."""
PASSED = {
    **{"dt": 0.25, "steps": 71, "bits": 3, "ram": 1001, "flash": 1002, "samples": 31, "adders": 16},
    **{"top": "ecp5-85k", "report": True, "trust": ("mine:net",), "data": Path("samples.npz")},
}
"""A value for each option of `convert` except --arduino, that no other argument has."""
USELESS = {
    (".pt2", "run"): {"data", "dt", "bits", "ram", "flash", "samples", "adders", "top", "report"},
    (".nir", "run"): {"data", "steps", "bits", "ram", "flash", "samples", "adders", "top", "report"},
    (".onnx", "run"): {"data", "dt", "steps", "ram", "flash", "samples", "adders", "top", "report"},
    (".html", "run"): {"data", "dt", "steps", "ram", "flash", "samples", "adders", "top", "report"},
    (".v", "run"): {"data", "dt", "steps", "ram", "flash", "report"},
    (".c", "run"): {"data", "dt", "steps", "samples", "adders", "top", "report"},
    (".pt2", "net.nir"): {"data", "bits", "ram", "flash", "samples", "adders", "top", "report", "trust"},
    (".c", "net.nir"): {"samples", "adders", "top", "trust"},
    ("--arduino", "run"): {"data", "dt", "steps", "samples", "adders", "top", "report"},
}
"""For pairs of a target and a source, all options without an effect."""


def parsed_options(command):
    """The names of the options that the parser knows for `command`."""
    arguments = _APP[command].assemble_argument_collection()
    return {a.field_info.name for a in arguments if a.field_info.kind is a.field_info.KEYWORD_ONLY}


@pytest.mark.parametrize("command", _COMMANDS)
def test_each_option_that_the_parser_knows_is_declared(command):
    declared, always = set(USES.get(command, ())), ALWAYS.get(command, set())
    assert not declared & always
    assert parsed_options(command) == declared | always


@pytest.fixture
def received(monkeypatch, tmp_path):
    """All arguments that `convert` passes to its readers and writers, which are replaced."""
    values = []

    def receive(*args, **kwargs):
        values.extend([*args, *kwargs.values()])
        return source

    class Source:
        net, shape, model = None, (3,), None

    source = Source()
    for name in ("Source", "_write_c", "_write_page", "_write_onnx", "_write_program", "_write_circuit"):
        monkeypatch.setattr(convert, name, receive)
    monkeypatch.setattr("hibana.network.nir.write", receive)
    monkeypatch.setattr(sys, "path", [*sys.path])  # --trust adds the current folder
    monkeypatch.chdir(tmp_path)
    return values


@pytest.mark.parametrize(
    ("source", "target", "option"),
    list(itertools.product(("run", "net.nir"), [*convert._SUFFIXES, "--arduino"], PASSED)),
)
def test_convert_passes_an_option_on_or_refuses_it(source, target, option, received, tmp_path, capsys):
    path = "out" if target == "--arduino" else f"out{target}"
    options = {option: PASSED[option]}
    if target == "--arduino":
        options["arduino"] = True
    else:
        (tmp_path / path).touch()  # in place of what the writers write
    line = ["convert", source, path]
    for name, value in options.items():
        line += [f"--{name}"] if value is True else [f"--{name}", value[0] if name == "trust" else str(value)]
    kind = "sources in NIR" if source == "net.nir" else "checkpoints"
    uses = USES["convert"][option].split(", ")
    has_effect = bool({target, kind, f"{target} from {kind}"} & {*uses})
    assert main(line) == (0 if has_effect else 2)
    assert (PASSED[option] in received) == has_effect
    message = f"--{option} has no effect from {source} to {path}: it is for {USES['convert'][option]}"
    assert (message in capsys.readouterr().err) != has_effect
    if (target, source) in USELESS:
        assert (option in USELESS[target, source]) != has_effect


def test_a_report_needs_a_board(received, tmp_path, capsys):
    (tmp_path / "out.v").touch()
    assert main(["convert", "run", "out.v", "--report"]) == 2
    assert "it is for .v with --top" in capsys.readouterr().err
    assert main(["convert", "run", "out.v", "--report", "--top", "ecp5-85k"]) == 0
