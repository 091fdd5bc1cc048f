"""hibana in a process that cannot compile or run native code."""

import copy
import ctypes
import re
import sys

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler import checks
from hibana.compiler.graph.ops import Unsupported
from hibana.runtime import available, build, threads
from hibana.spikes import select

NO_LLVM = "llvmlite can't compile for this processor"


def _without_llvmlite(monkeypatch):
    build.processor.cache_clear()  # as in a process that has not loaded llvmlite
    select._is_promising.cache_clear()
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)


def _on_a_processor_that_llvm_lacks(monkeypatch):
    import llvmlite.binding as llvm

    def missing():
        raise RuntimeError("No available targets are compatible with triple 'riscv128'")

    monkeypatch.setattr(llvm.Target, "from_default_triple", missing)


def _without_libtorch(monkeypatch):
    monkeypatch.setattr(threads, "libtorch", lambda: ctypes.CDLL("/none/libtorch_cpu.so"))
    threads.parallel_for.cache_clear()


def _with_an_old_libtorch(monkeypatch):
    monkeypatch.setattr(threads, "libtorch", lambda: ctypes.pythonapi)  # a library without it
    threads.parallel_for.cache_clear()


DAMAGES = {
    _without_llvmlite: NO_LLVM,
    _on_a_processor_that_llvm_lacks: f"{NO_LLVM}.*riscv128",
    _without_libtorch: "PyTorch's library can't be called.*libtorch_cpu",
    _with_an_old_libtorch: "PyTorch's library can't be called.*torch_parallel_for",
}


@pytest.fixture(params=DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def reason(request, monkeypatch):
    """Makes compilation fail; returns a pattern of the reported reason."""
    request.param(monkeypatch)
    monkeypatch.setattr(checks, "_WARNED", set())
    available.unavailable_reason.cache_clear()
    yield DAMAGES[request.param]
    monkeypatch.undo()
    available.unavailable_reason.cache_clear()
    threads.parallel_for.cache_clear()
    assert available.unavailable_reason() == ""


def _results(net, inputs):
    outputs = net(inputs)
    outputs.sum().backward()
    return [outputs, *(each.grad for each in net.parameters())]


def _by_torch(net):
    """Sets `net` to run no kernel, and returns it."""
    for module in net.modules():
        if isinstance(module, hb.OverTime):
            module.backend = "reference"
        if isinstance(module, (hb.Linear, hb.Conv2d)):
            module.mode = "dense"
    return net


@pytest.mark.filterwarnings("default::hibana.SlowPathWarning")
def test_a_network_is_run_by_torch_and_one_warning_names_the_reason(reason):
    layers = [hb.Linear(256, 512), hb.IF(), hb.Linear(512, 256), hb.LIF(), hb.Linear(256, 10), hb.LI()]
    net = nn.Sequential(*layers)
    inputs = (torch.rand(8, 64, 256) < 0.05).float()
    expected = _results(_by_torch(copy.deepcopy(net)), inputs)
    with pytest.warns(hb.SlowPathWarning) as warned:
        results = _results(net, inputs)
    (message,) = [str(each.message) for each in warned]
    assert re.match(f"every cell is run by the reference loop, .* because {reason}", message)
    assert all(map(torch.equal, results, expected))
    assert re.match(f"dense: {reason}", layers[0].explain())
    assert re.search(f"reference loop, because {reason}", str(hb.explain(net, inputs)))


@pytest.mark.filterwarnings("ignore::hibana.SlowPathWarning")
def test_normalized_convolutions_and_pooled_spikes_are_torchs(reason):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16), hb.IF(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), hb.IF(), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip
    hb.optimize(net, verbose=False)
    inputs = (torch.rand(4, 16, 2, 16, 16) < 0.3).float()
    expected = _results(_by_torch(copy.deepcopy(net)), inputs)
    results = _results(net, inputs)
    assert all(map(torch.allclose, results, expected))


def test_errors_of_native_features_name_the_reason(reason):
    net, inputs = nn.Sequential(nn.Linear(4, 4), hb.IF()), torch.rand(3, 2, 4)
    with pytest.raises(Unsupported, match=f"backend 'cpu' can't serve this call: {reason}"):
        hb.IF(backend="cpu")(inputs)
    with pytest.raises(Unsupported, match=reason):
        hb.compile(net, inputs)


@pytest.mark.filterwarnings("ignore::hibana.SlowPathWarning")
def test_plasticity_runs_step_by_step(reason):
    inputs = (torch.rand(20, 1, 8) < 0.3).float()
    weights = []
    for backend in ("auto", "reference"):
        torch.manual_seed(2)
        linear = nn.Linear(8, 4, bias=False)
        rule = hb.learn.STDP(linear, hb.IF(0.2), tau_pre=5.0, tau_post=5.0, backend=backend)
        rule(inputs)
        weights.append(linear.weight.detach().clone())
    assert torch.equal(*weights)
