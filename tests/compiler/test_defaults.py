"""Torch's default dtype and default device do not change the results of a layer."""

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
"""Functions of ``torch`` whose result depends on global defaults unless dtype and device are given."""


def _factories_with_defaults(source):
    """Line and name of each factory call that uses a default dtype or device."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        named = {keyword.arg for keyword in node.keywords}
        if of_torch and node.func.attr in FACTORIES and not {"dtype", "device"} <= named:
            yield node.lineno, node.func.attr


def test_every_factory_call_names_dtype_and_device():
    calls = [
        f"{path.relative_to(SOURCE)}:{line}: torch.{name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, name in _factories_with_defaults(path.read_text())
    ]
    assert not calls, "say dtype= and device=, or use a *_like or new_*:\n" + "\n".join(calls)


def test_factories_are_not_imported_by_name():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert not FACTORIES & {alias.name for alias in node.names}, path


def _networks():
    """Every layer over time and every layer of events, each with an input, by name."""
    spikes = (torch.rand([8, 256, 64], dtype=torch.float32) < 0.1).float()
    currents = 2 * torch.rand([6, 4, 64], dtype=torch.float32)
    images = (torch.rand([8, 16, 8, 8], dtype=torch.float32) < 0.2).float()
    images = images.contiguous(memory_format=torch.channels_last)
    cases = {
        name: (layer(), currents)
        for name, layer in vars(hb.nn.layers).items()
        if inspect.isclass(layer) and issubclass(layer, hb.OverTime) and layer is not hb.OverTime
    }
    cases["Recurrent"] = hb.Recurrent(hb.LIFCell(), 64), currents
    for sigma in (hb.surrogate.Step(), hb.surrogate.Box(), hb.surrogate.ATan()):
        layer = hb.IF(1.0, sigma, detach_reset=True)
        cases[f"Linear above {sigma}"] = nn.Sequential(layer, hb.Linear(64, 70)), 2 * spikes
        conv = nn.Sequential(layer, hb.EachStep(hb.Conv2d(16, 8, 3, padding=1)))
        cases[f"Conv2d above {sigma}"] = conv, 1.5 * images[None].expand(3, *images.shape).contiguous()
        pooled = nn.Sequential(layer, hb.EachStep(hb.events.MaxPool2d(2)), hb.events.Flatten(2))
        cases[f"MaxPool2d and Flatten above {sigma}"] = pooled, torch.stack([images] * 3)
    cases["Linear"] = hb.Linear(64, 70), spikes
    cases["Linear of 2,000 rows"] = hb.Linear(64, 512), spikes.view(-1, 64)[:2000]
    cases["Conv2d"] = hb.Conv2d(16, 33, 3, padding=1), images
    cases["Conv2d, stride 2"] = hb.Conv2d(16, 33, 3, 2), images
    cases["MaxPool2d"] = hb.events.MaxPool2d(2), images
    cases["MaxPool2d of numbers"] = hb.events.MaxPool2d(2), images / 3
    return cases


def _results(cases):
    """Outputs of each layer, and the gradients of its input and parameters."""
    results = {}
    for name, (layer, x) in cases.items():
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
    cases = test_defaults._networks()
    exec(default)
    torch.save(test_defaults._results(cases), f"{folder}/{name}.pt")

for name, default in {"plain": "", **test_defaults.DEFAULTS}.items():
    forked = multiprocessing.get_context("fork").Process(target=child, args=(name, default))
    forked.start()
    forked.join()
"""
"""The parent computes nothing before a fork, so each child compiles with its default."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder with one result file per default, and the processes' error output."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-W", "ignore", "-c", CHILDREN, str(Path(__file__).parents[1]), str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert process.returncode == 0, process.stderr[-3000:]
    return folder, process.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no forks")
@pytest.mark.parametrize("default", DEFAULTS)
def test_no_global_default_changes_what_a_layer_computes(default, results):
    folder, errors = results
    assert (folder / f"{default}.pt").is_file(), errors[-3000:]
    plain, results_ = (torch.load(folder / f"{name}.pt") for name in ("plain", default))
    assert results_.keys() == plain.keys()
    for name, tensors in plain.items():
        for one, other in zip(results_[name], tensors, strict=True):
            assert one.dtype == other.dtype, name
            assert one.device == other.device, name
            assert torch.equal(one, other), name
