"""What stands without extras: every command and every public name, while all extras are hidden."""

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
SAYS = re.compile(
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


def required():
    """The distributions that come with hibana without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, ahead = set(), [*project["dependencies"]]
    while ahead:
        wanted = Requirement(ahead.pop())
        name = wanted.name.lower().replace("_", "-").replace(".", "-")
        if name in found or (wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        ahead += metadata.requires(wanted.name) or []
    return found


def hidden():
    """Every module that only an extra, or nothing of hibana's, brings."""
    kept = required()
    return {
        module
        for module, brought in metadata.packages_distributions().items()
        if module != "hibana"
        and not {each.lower().replace("_", "-").replace(".", "-") for each in brought} & kept
    }


def run(code, folder, *arguments):
    """What `code` prints as JSON, in a process that has no extra."""
    whole = f"HIDDEN = {hidden()!r}\n{HIDE}\n{code}"
    command = [sys.executable, "-c", whole, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_all_extras_are_hidden():
    away, optional = (
        hidden(),
        {"lightning", "matplotlib", "yaml", "sklearn", "pandas", "nir", "onnx", "bokeh"},
    )
    assert away >= {module for module in optional if module in metadata.packages_distributions()}
    assert not away & {"torch", "numpy", "llvmlite", "cyclopts"}


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
    ],
}
TRIED = """
import contextlib, io, json, traceback
from hibana.cli import main

seen = []
for tokens in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(tokens)
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            code = traceback.format_exc()
    seen.append([tokens, code, said.getvalue()])
print(json.dumps(seen))
"""


def test_each_command_does_its_work_or_names_the_extra(tmp_path):
    from hibana.cli import _COMMANDS

    tried = [tokens for group in COMMANDS.values() for tokens in group]
    assert {tokens[0] for tokens in tried} | {"build"} == {*_COMMANDS, "--help", "--version"}
    for tokens, code, said in run(TRIED, tmp_path, json.dumps(tried)):
        assert tokens in COMMANDS.get(code, ()), (tokens, code, said)
        assert said.count("\n") == (1 if code else 0)
        assert not code or re.fullmatch(rf"hibana {tokens[0]}: {SAYS.pattern}\n", said), (tokens, said)


NAMES = """
import importlib, json, types
import hibana

found, ahead = [], ["hibana", *(f"hibana.{name}" for name in hibana._PUBLIC)]
for place in ahead:
    try:
        module = importlib.import_module(place)
    except Exception as error:
        found.append([place, type(error).__name__, str(error)])
        continue
    for name in module.__all__:
        try:
            getattr(module, name)
        except Exception as error:
            found.append([f"{place}.{name}", type(error).__name__, str(error)])
print(json.dumps(found))
"""


def test_each_public_name_is_there_or_names_the_extra(tmp_path):
    away = {place: (kind, said) for place, kind, said in run(NAMES, tmp_path)}
    assert {*away} >= {
        "hibana.nir",
        "hibana.plot",
        "hibana.metrics",
        "hibana.train.load",
        "hibana.train.fit",
    }
    assert not {*away} & {"hibana.IF", "hibana.convert", "hibana.train.activity", "hibana.data.Table"}
    for place, (kind, said) in away.items():
        assert kind == "ModuleNotFoundError"
        assert re.fullmatch(rf"{re.escape(place)} {SAYS.pattern}", said), said


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
CALLED = """
import json, pathlib, torch
import hibana as hb

net, x = torch.nn.Sequential(torch.nn.Linear(3, 2), hb.IF()), torch.rand(4, 1, 3)
pathlib.Path("x.csv").write_text("a,b\\n1,x\\n2,y\\n" * 20)
for name in "ab":
    pathlib.Path("pictures", name).mkdir(parents=True)
    for number in range(5):
        pathlib.Path("pictures", name, f"{number}.png").write_bytes(b"")
found = []
for line in json.loads(sys.argv[1]):
    try:
        exec(line, {"hb": hb, "net": net, "x": x})
        found.append("")
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""


def test_what_needs_an_extra_when_it_is_called_names_it(tmp_path):
    for (line, extra), said in zip(CALLS.items(), run(CALLED, tmp_path, json.dumps([*CALLS])), strict=True):
        assert SAYS.search(said), (line, said)
        assert f"'.[{extra}]'" in said, (line, said)


def test_a_module_of_nobodys_is_brought_by_no_extra():
    from hibana import extras

    assert (
        extras.missing_module_message(ModuleNotFoundError("", name="mine"))
        == "needs mine, which is not installed"
    )
