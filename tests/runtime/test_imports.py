"""What `import hibana` loads."""

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


def printed(code, *options):
    """What a process of its own prints, started with `options` of Python."""
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_import_hibana_loads_no_extra_and_no_compiler():
    code = f"import sys, hibana; print([name for name in {HEAVY} if name in sys.modules])"
    assert printed(code, "-W", "error").strip() == "[]"


@pytest.mark.parametrize("line", [["train", "--help"], ["train", "--learnin-rate", "1"], ["runs", "nowhere"]])
def test_a_command_that_does_not_train_loads_no_lightning(line):
    pytest.importorskip("lightning", reason="the extra train is not installed")
    code = (
        "import sys, hibana.cli, hibana.data\n"
        f"try: hibana.cli.main({line})\n"
        "except SystemExit: pass\n"
        "print(); print([name for name in ('lightning', 'torchmetrics', 'scipy') if name in sys.modules])"
    )
    assert printed(code).splitlines()[-1] == "[]"


def test_a_trained_network_is_opened_and_used_without_lightning(tmp_path):
    pytest.importorskip("lightning", reason="the extra train is not installed")
    from play.test_play import untrained

    path = untrained(tmp_path / "checkpoint.ckpt")
    code = (
        "import sys, torch; from pathlib import Path; from hibana.train import load, predict\n"
        f"model = load(Path({str(path)!r}))\n"
        "print(tuple(model(torch.rand(2, *model.hyper['shape'])).shape))\n"
        "print([name for name in ('lightning', 'torchmetrics') if name in sys.modules])"
    )
    assert printed(code).splitlines() == ["(2, 10)", "[]"]


def test_what_a_first_network_need_not_use_is_loaded_when_it_is_touched():
    later = (
        "hibana.network",
        "hibana.spikes",
        "hibana.nn.loss",
        "hibana.runtime.kernels",
        "hibana.compiler.cpu",
    )
    code = (
        "import sys, hibana;"
        f"print([name for name in {later} if f'hibana.{{name}}' in sys.modules]);"
        "print([name for name in hibana.__all__ if getattr(hibana, name, None) is None]);"
        "print(hibana.Linear is hibana.spikes.Linear, 'Linear' in dir(hibana))"
    )
    assert printed(code).split() == ["[]", "[]", "True", "True"]


def test_the_gradient_of_a_matrix_in_a_step_is_added_up_per_spike_though_no_event_layer_was_touched():
    code = (
        "import sys, torch, hibana as hb;"
        "layer = hb.Recurrent(hb.IFCell(), 70);"
        "y = layer(2 * torch.rand(5, 4, 70)).sum();"
        "seen = lambda: print('hibana.spikes.linear.product' in sys.modules);"
        "seen(); y.backward(); seen()"
    )
    assert printed(code).split() == ["False", "True"]


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_version_is_said_without_torch(argument):
    command = [sys.executable, "-X", "importtime", "-m", "hibana", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert bool(re.search(r"\btorch$", done.stderr, re.MULTILINE)) == (argument == "--help")
    assert argument == "--help" or done.stdout == f"{hibana.__version__}\n"


def test_a_network_is_trained_without_numba():
    code = (
        "import sys; sys.modules['numba'] = None; import torch, hibana as hb;"
        "net = torch.nn.Sequential(hb.EachStep(hb.Conv2d(1, 16, 3)), hb.IF(),"
        "hb.EachStep(hb.events.MaxPool2d(2)), torch.nn.Flatten(2), hb.Linear(576, 20), hb.IF());"
        "net[0].module.mode = net[4].mode = 'events';"
        "net((torch.rand(3, 100, 1, 14, 14) < 0.1).float()).sum().backward();"
        "print(net[0].module.explain()[:6], net[4].explain()[:6], net[0].module.weight.grad.shape)"
    )
    assert printed(code).strip() == "events events torch.Size([16, 1, 3, 3])"
