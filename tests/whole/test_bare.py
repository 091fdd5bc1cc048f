"""hibana without extras: every command and public name works or names the missing extra."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PUBLIC_MODULES = sorted({path.stem for path in (ROOT / "docs" / "api").glob("*.md")} - {"hibana", "commands"})
HINT = re.compile(
    r"needs \S+, which is not installed; pip install '\.\[[a-z]+\]' in a clone of hibana brings it"
)
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def required_distributions():
    """The names of the distributions that hibana needs without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names, pending = set(), [*project["dependencies"]]
    while pending:
        needed = Requirement(pending.pop())
        name = needed.name.lower().replace("_", "-").replace(".", "-")
        if name in names or (needed.marker is not None and not needed.marker.evaluate({"extra": ""})):
            continue
        names.add(name)
        pending += metadata.requires(needed.name) or []
    return names


def hidden_modules():
    """The installed modules that hibana without extras does not need."""
    required = required_distributions()
    return {
        module
        for module, distributions in metadata.packages_distributions().items()
        if module != "hibana"
        and not {name.lower().replace("_", "-").replace(".", "-") for name in distributions} & required
    }


def run(code, folder, *arguments):
    """Runs `code` in a process in which all extras are hidden, and returns the JSON that it prints last."""
    program = f"HIDDEN = {hidden_modules()!r}\n{HIDE}\n{code}"
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_all_extras_are_hidden():
    hidden, optional = (
        hidden_modules(),
        {"lightning", "matplotlib", "yaml", "sklearn", "pandas", "nir", "onnx", "bokeh"},
    )
    assert hidden >= {module for module in optional if module in metadata.packages_distributions()}
    assert not hidden & {"torch", "numpy", "llvmlite", "cyclopts"}


COMMANDS = {
    0: [
        ["--help"],
        ["--version"],
        ["explain", "IF"],
        *([each, "--help"] for each in ("demo", "play", "convert")),
    ],
    2: [
        *(["train"], ["train", "--help"], ["train", "--data", "digits"], ["runs"], ["runs", "."], ["demo"]),
        *(["play"], ["play", "digits"], ["predict", "x.ckpt"], ["predict", "x.ckpt", "y.csv"]),
        *(["convert", "x.ckpt", f"x{ending}"] for ending in (".c", ".html", ".nir", ".onnx", ".pt2")),
        *(["convert", "x.nir", "y.c"], ["share", "x.ckpt", "folder"]),
        ["simulate", "x.csv", "--activate", "1"],
    ],
}
RUN_COMMANDS = """
import contextlib, io, json, traceback
from hibana.cli import main

results = []
for tokens in json.loads(sys.argv[1]):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(tokens)
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            code = traceback.format_exc()
    results.append([tokens, code, errors.getvalue()])
print(json.dumps(results))
"""


def test_each_command_works_or_names_the_extra(tmp_path):
    from hibana.cli import _COMMANDS

    commands = [tokens for group in COMMANDS.values() for tokens in group]
    assert {tokens[0] for tokens in commands} == {*_COMMANDS, "--help", "--version"}
    for tokens, code, text in run(RUN_COMMANDS, tmp_path, json.dumps(commands)):
        assert tokens in COMMANDS.get(code, ()), (tokens, code, text)
        assert text.count("\n") == (1 if code else 0)
        assert not code or re.fullmatch(rf"hibana {tokens[0]}: {HINT.pattern}\n", text), (tokens, text)


FIND_MISSING = """
import importlib, json, sys, types
import hibana

missing, modules = [], ["hibana", *(f"hibana.{name}" for name in sys.argv[1:])]
for path in modules:
    try:
        module = importlib.import_module(path)
    except Exception as error:
        missing.append([path, type(error).__name__, str(error)])
        continue
    for name in module.__all__:
        try:
            getattr(module, name)
        except Exception as error:
            missing.append([f"{path}.{name}", type(error).__name__, str(error)])
print(json.dumps(missing))
"""


def test_each_public_name_is_available_or_names_the_extra(tmp_path):
    missing = {name: (kind, message) for name, kind, message in run(FIND_MISSING, tmp_path, *PUBLIC_MODULES)}
    assert {*missing} >= {
        "hibana.nir",
        "hibana.plot",
        "hibana.metrics",
        "hibana.train.load",
        "hibana.train.fit",
    }
    assert not {*missing} & {"hibana.IF", "hibana.convert", "hibana.train.activity", "hibana.data.Table"}
    for name, (kind, message) in missing.items():
        assert kind == "ModuleNotFoundError"
        assert re.fullmatch(rf"{re.escape(name)} {HINT.pattern}", message), message


CALLS = {
    "hb.convert.to_onnx(net, x)": "onnx",
    "hb.convert.to_snntorch(net, x)": "snntorch",
    "hb.convert.to_neo(hb.SpikeTrains.from_dense(x), 1.0)": "neuro",
    "hb.convert.to_nwb(hb.SpikeTrains.from_dense(x), 1.0, 'noise')": "neuro",
    "hb.data.Digits().setup()": "train",
    "hb.data.MNIST1D().setup()": "data",
    "hb.data.SpokenDigits().setup()": "data",
    "hb.data.SHD(root='.').setup()": "data",
    "hb.data.SHD(root='.').prepare_data()": "data",
    "hb.data.MNIST(root='.', download=True).prepare_data()": "data",
    "hb.data.Table('x.csv').setup()": "train",
    "hb.data.Images('pictures').setup()": "train",
    "hb.train.linear(net, hb.data.Digits())": "train",
    "hb.nir.write": "nir",
    "hb.plot.raster": "train",
    "hb.metrics.SynOps": "train",
    "from hibana.train import load": "train",
    "from hibana import plot": "train",
}
SCRIPT = """
import json, pathlib, torch
import hibana as hb

net, x = torch.nn.Sequential(torch.nn.Linear(3, 2), hb.IF()), torch.rand(4, 1, 3)
pathlib.Path("x.csv").write_text("a,b\\n1,x\\n2,y\\n" * 20)
for name in "ab":
    pathlib.Path("pictures", name).mkdir(parents=True)
    for number in range(5):
        pathlib.Path("pictures", name, f"{number}.png").write_bytes(b"")
messages = []
for line in json.loads(sys.argv[1]):
    try:
        exec(line, {"hb": hb, "net": net, "x": x})
        messages.append("")
    except Exception as error:
        messages.append(f"{type(error).__name__}: {error}")
print(json.dumps(messages))
"""


def test_calls_that_need_an_extra_name_it(tmp_path):
    for (line, extra), text in zip(CALLS.items(), run(SCRIPT, tmp_path, json.dumps([*CALLS])), strict=True):
        assert HINT.search(text), (line, text)
        assert f"'.[{extra}]'" in text, (line, text)


def test_the_message_about_an_unknown_module_names_no_extra():
    from hibana import extras

    assert (
        extras.missing_module_message(ModuleNotFoundError("", name="mine"))
        == "needs mine, which is not installed"
    )
