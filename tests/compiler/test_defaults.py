"""Torch's global defaults, of dtype and of device, change nothing of what a layer computes."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import hibana as hb

SOURCE = Path(hb.__file__).parent

FACTORIES = {"arange", "as_tensor", "asarray", "empty", "empty_permuted", "empty_strided", "eye", "full"}
FACTORIES |= {"linspace", "logspace", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor"}
FACTORIES |= {"tensor", "tril_indices", "triu_indices", "zeros"}
"""Of ``torch``: what they make depends on a global default, unless they are told dtype and device."""


def _bare(source):
    """Line and name of each call of a factory that leaves its dtype or its device to a global default."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        named = {keyword.arg for keyword in node.keywords}
        if of_torch and node.func.attr in FACTORIES and not {"dtype", "device"} <= named:
            yield node.lineno, node.func.attr


def test_every_tensor_made_says_its_dtype_and_its_device():
    bare = [
        f"{path.relative_to(SOURCE)}:{line}: torch.{name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, name in _bare(path.read_text())
    ]
    assert not bare, "say dtype= and device=, or use a *_like or new_*:\n" + "\n".join(bare)


def test_factories_are_not_imported_by_name():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert not FACTORIES & {alias.name for alias in node.names}, path


def _networks():
    """Every layer over time, at rest and from a state, and every layer of events, with an input for each."""
    spikes = (torch.rand([8, 256, 64], dtype=torch.float32) < 0.1).float()
    currents = 2 * torch.rand([6, 4, 64], dtype=torch.float32)
    images = (torch.rand([8, 16, 8, 8], dtype=torch.float32) < 0.2).float()
    images = images.contiguous(memory_format=torch.channels_last)
    made = {
        name: (layer(), currents)
        for name, layer in vars(hb.nn.layers).items()
        if inspect.isclass(layer) and issubclass(layer, hb.OverTime) and layer is not hb.OverTime
    }
    made["Recurrent"] = hb.Recurrent(hb.LIFCell(), 64), currents
    for sigma in (hb.surrogate.Step(), hb.surrogate.Box(), hb.surrogate.ATan()):
        layer = hb.IF(1.0, sigma, detach_reset=True)
        made[f"Linear above {sigma}"] = nn.Sequential(layer, hb.Linear(64, 70)), 2 * spikes
        conv = nn.Sequential(layer, hb.EachStep(hb.Conv2d(16, 8, 3, padding=1)))
        made[f"Conv2d above {sigma}"] = conv, 1.5 * images[None].expand(3, *images.shape).contiguous()
        pooled = nn.Sequential(layer, hb.EachStep(hb.events.MaxPool2d(2)), hb.events.Flatten(2))
        made[f"MaxPool2d and Flatten above {sigma}"] = pooled, torch.stack([images] * 3)
    made["Linear"] = hb.Linear(64, 70), spikes
    made["Linear of 2,000 rows"] = hb.Linear(64, 512), spikes.view(-1, 64)[:2000]
    made["Conv2d"] = hb.Conv2d(16, 33, 3, padding=1), images
    made["Conv2d, stride 2"] = hb.Conv2d(16, 33, 3, 2), images
    made["MaxPool2d"] = hb.events.MaxPool2d(2), images
    made["MaxPool2d of numbers"] = hb.events.MaxPool2d(2), images / 3
    return made


def _results(made):
    """What each layer puts out, and the gradients of its input and parameters."""
    results = {}
    for name, (layer, x) in made.items():
        x = x.detach().clone().requires_grad_()
        out = layer(x)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device="cpu").view(out.shape)
        (out * weights * (weights.abs() < 0.3)).sum().backward()
        parameters = [p.grad for p in layer.parameters() if p.grad is not None]
        results[name] = [out.detach(), x.grad, *parameters]
        if isinstance(layer, hb.OverTime):
            state = layer(x.detach(), return_state=True)[1]
            results[name] += layer(x.detach(), state), *state
    return results


DEFAULTS = {
    "a meta device": 'torch.set_default_device("meta")',
    "a cuda device": 'torch.set_default_device("cuda")',
    "bfloat16": "torch.set_default_dtype(torch.bfloat16)",
    "float64": "torch.set_default_dtype(torch.float64)",
}

CHILDREN = """
import multiprocessing, sys, torch
tests, folder = sys.argv[1:]
sys.path.insert(0, tests)
from compiler import test_defaults

def child(name, default):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    made = test_defaults._networks()
    exec(default)
    torch.save(test_defaults._results(made), f"{folder}/{name}.pt")

for name, default in {"plain": "", **test_defaults.DEFAULTS}.items():
    forked = multiprocessing.get_context("fork").Process(target=child, args=(name, default))
    forked.start()
    forked.join()
"""
"""Nothing was computed before a fork: each child compiles with its own default."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The file of each default's results, where there are any, and what the processes said of errors."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-W", "ignore", "-c", CHILDREN, str(Path(__file__).parents[1]), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, ended.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no forks")
@pytest.mark.parametrize("default", DEFAULTS)
def test_no_global_default_changes_what_a_layer_computes(default, results):
    folder, said = results
    assert (folder / f"{default}.pt").is_file(), said[-3000:]
    plain, found = (torch.load(folder / f"{name}.pt") for name in ("plain", default))
    assert found.keys() == plain.keys()
    for name, wanted in plain.items():
        for one, other in zip(found[name], wanted, strict=True):
            assert one.dtype == other.dtype, name
            assert one.device == other.device, name
            assert torch.equal(one, other), name
