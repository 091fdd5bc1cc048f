"""The modules that `import hibana` loads."""

import json
import re
import subprocess
import sys

import pytest

import hibana

HEAVY = [
    "bokeh",
    "lightning",
    "matplotlib",
    "nir",
    "llvmlite",
    "rich",
    "sklearn",
    "tonic",
    "torchmetrics",
    "torchvision",
    "triton",
]


def output_of(code):
    """Returns the output of `code` in a new process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


LAZY = [
    "hibana.network",
    "hibana.spikes",
    "hibana.nn.loss",
    "hibana.runtime.kernels",
    "hibana.compiler.cpu",
]
"""Modules that a simple network does not need."""
PRODUCT = "hibana.spikes.linear.product"
FIRST = f"""
import json, sys, warnings
warnings.simplefilter("error")
import hibana
warnings.resetwarnings()
loaded = lambda names: [name for name in names if name in sys.modules]
seen = {{"heavy": loaded({HEAVY}), "later": loaded({LAZY})}}

import torch
layer = hibana.Recurrent(hibana.IFCell(), 70)
y = layer(2 * torch.rand(5, 4, 70)).sum()
seen["forward"] = loaded(["{PRODUCT}"])
y.backward()
seen["backward"] = loaded(["{PRODUCT}"])
seen["nowhere"] = [name for name in hibana.__all__ if getattr(hibana, name, None) is None]
seen["Linear"] = hibana.Linear is hibana.spikes.Linear and "Linear" in dir(hibana)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def report():
    """The modules that a process has loaded before and after it runs its first network."""
    return json.loads(output_of(FIRST))


def test_import_hibana_loads_no_extra_and_no_compiler(report):
    assert report["heavy"] == []


def test_other_modules_are_loaded_on_access(report):
    assert (report["later"], report["nowhere"], report["Linear"]) == ([], [], True)


def test_the_backward_of_a_recurrent_layer_loads_the_event_kernels(report):
    assert (report["forward"], report["backward"]) == ([], [PRODUCT])


def test_a_command_that_does_not_train_loads_no_lightning():
    pytest.importorskip("lightning", reason="the extra train is not installed")
    lines = [["train", "--help"], ["train", "--learnin-rate", "1"], ["runs", "nowhere"]]
    code = (
        "import sys, hibana.cli, hibana.data; from hibana.train import activity, scale_to_rate\n"
        f"for line in {lines}:\n"
        "    try: hibana.cli.main(line)\n"
        "    except SystemExit: pass\n"
        "    found = {'lightning', 'torchmetrics', 'scipy', 'sklearn'} & {*sys.modules}\n"
        "    print(); print('loaded', sorted(found))"
    )
    assert [line for line in output_of(code).splitlines() if line.startswith("loaded")] == ["loaded []"] * 3


def test_a_trained_network_is_loaded_and_used_without_lightning(tmp_path):
    pytest.importorskip("lightning", reason="the extra train is not installed")
    from cli.play.test_play import untrained

    path = untrained(tmp_path / "checkpoint.ckpt")
    code = (
        "import sys, torch; from pathlib import Path; from hibana.train import load, predict\n"
        f"model = load(Path({str(path)!r}))\n"
        "print(tuple(model(torch.rand(2, *model.hyper['shape'])).shape))\n"
        "print([name for name in ('lightning', 'torchmetrics') if name in sys.modules])"
    )
    assert output_of(code).splitlines() == ["(2, 10)", "[]"]


def test_the_version_is_printed_without_torch():
    command = [sys.executable, "-X", "importtime", "-m", "hibana", "--version"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"\bhibana$", process.stderr, re.MULTILINE)
    assert not re.search(r"\btorch$", process.stderr, re.MULTILINE)
    assert process.stdout == f"{hibana.__version__}\n"


@pytest.mark.slow
def test_a_network_is_trained_without_numba():
    code = (
        "import sys; sys.modules['numba'] = None; import torch, hibana as hb;"
        "net = torch.nn.Sequential(hb.EachStep(hb.Conv2d(1, 16, 3)), hb.IF(),"
        "hb.EachStep(hb.events.MaxPool2d(2)), torch.nn.Flatten(2), hb.Linear(576, 20), hb.IF());"
        "net[0].module.mode = net[4].mode = 'events';"
        "net((torch.rand(3, 100, 1, 14, 14) < 0.1).float()).sum().backward();"
        "print(net[0].module.explain()[:6], net[4].explain()[:6], net[0].module.weight.grad.shape)"
    )
    assert output_of(code).strip() == "events events torch.Size([16, 1, 3, 3])"
