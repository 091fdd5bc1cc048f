"""Every layer evaluates each parametrization once per call, whichever kernel runs it."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import hibana as hb
from every_layer import CASES, build
from hibana.compiler.graph.ops import Unsupported

SURROGATE = hb.surrogate.ATan()


class CallCounter(nn.Module):
    """The identity; a buffer counts the evaluations, because a step may be traced only once."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, value):
        calls = self.calls.add_(1)
        return value * (calls / calls).to(value.dtype)


def count_calls(module):
    """Parametrizes each parameter of `module` by a :class:`CallCounter`; returns the counts by name."""
    counts = {}
    for path, inner in list(module.named_modules()):
        for name in list(inner._parameters):
            if inner._parameters[name] is not None:
                parametrize.register_parametrization(inner, name, CallCounter())
                counts[f"{path}.{name}"] = inner.parametrizations[name][0]
    for each in counts.values():
        each.calls.zero_()
    return counts


OTHERS = {
    "small sizes left to torch": lambda: (hb.Linear(8, 8), torch.rand(4, 8)),
    "a large dense product": lambda: (hb.Linear(512, 512), torch.rand(128, 512)),
    "spikes": lambda: (hb.Linear(512, 512), (torch.rand(256, 512) < 0.02).float()),
    "one step for all": lambda: (hb.Linear(64, 64), torch.rand(4, 64).expand(5, 4, 64)),
    "half": lambda: (hb.Linear(8, 8).half(), torch.rand(4, 8).half()),
    "a misfit": lambda: (hb.Conv2d(2, 2, 1), torch.rand(1, 2, 4, 4, dtype=torch.float64).float()[0]),
    "groups": lambda: (hb.Conv2d(4, 4, 3, groups=2), torch.rand(1, 4, 8, 8)),
    "padding alone": lambda: (hb.Conv2d(1, 1, 2, 2, 1, 2), torch.rand(1, 1, 1, 1)),
    "pixels that are skipped": lambda: (hb.Conv2d(2, 2, 1, 2), torch.rand(1, 2, 8, 8)),
    "channels last": lambda: (
        hb.Conv2d(16, 16, 3),
        torch.rand(2, 16, 8, 8).contiguous(memory_format=torch.channels_last),
    ),
    "a convolution of spikes": lambda: (
        hb.Conv2d(64, 64, 3, padding=1),
        (torch.rand(8, 64, 16, 16) < 0.02).float(),
    ),
    "synapses between two steps": lambda: (
        hb.DelayedLinear(64, 64, 20, sigma=0.0),
        (torch.rand(50, 16, 64) < 0.02).float(),
    ),
    "a learned delay": lambda: (hb.Delay(torch.rand(4), 3, learn=True), torch.rand(5, 2, 4)),
}


def build_layer(case):
    layer, x = OTHERS[case]() if case in OTHERS else build(case)
    if hasattr(layer, "mode") and case in OTHERS:
        assert layer.mode == "auto"
    return layer, x


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
@pytest.mark.parametrize("grad_enabled", [True, False])
def test_every_layer_reads_each_of_its_tensors_once_a_call(case, grad_enabled):
    layer, x = build_layer(case)
    counts = count_calls(layer)
    with torch.set_grad_enabled(grad_enabled):
        for calls in (1, 2, 3):
            layer(x)
            assert {name: each.calls.item() for name, each in counts.items()} == dict.fromkeys(counts, calls)


@pytest.mark.parametrize("kind", [hb.Window, hb.Delay, hb.DelayedLinear, hb.Recurrent])
def test_a_layer_with_a_state_reads_each_of_its_tensors_once_a_call(kind):
    layer, x = build_layer(kind.__name__)
    counts = count_calls(layer)
    _, state = layer(x, return_state=True)
    layer(x, state, return_state=True)
    assert {each.calls.item() for each in counts.values()} <= {2.0}


CELLS = {
    "LIF": lambda backend: hb.LIF(nn.Parameter(torch.full((4,), 2.0)), surrogate=SURROGATE, backend=backend),
    "Recurrent": lambda backend: hb.Recurrent(
        hb.LIFCell(nn.Parameter(torch.full((4,), 2.0)), surrogate=SURROGATE), 4, backend=backend
    ),
    "a convolution": lambda backend: hb.Recurrent(
        hb.LIFCell(nn.Parameter(torch.full((4, 1), 2.0)), surrogate=SURROGATE),
        4,
        nn.Conv1d(4, 4, 3, padding=1),
        backend=backend,
    ),
    "delayed": lambda backend: hb.DelayedRecurrent(
        hb.LIFCell(nn.Parameter(torch.full((4,), 2.0)), surrogate=SURROGATE), 4, 2, backend=backend
    ),
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_neurons_read_each_of_their_tensors_once_a_call(name, backend):
    if (name, backend) == ("a convolution", "cpu"):
        backend = "auto"
    torch.manual_seed(0)
    plain = CELLS[name](backend)
    layer = copy.deepcopy(plain)
    x = torch.rand(*((7, 2, 4, 5) if name == "a convolution" else (7, 2, 4)))
    counts = count_calls(layer)
    for calls in (1, 2):
        outputs = layer(x)
        assert {each.calls.item() for each in counts.values()} == {calls}
    torch.testing.assert_close(outputs, plain(x))
    outputs.square().sum().backward()
    plain(x).square().sum().backward()
    for (_, parameter), (_, expected) in zip(
        sorted(
            (n.replace("parametrizations.", "").replace(".original", ""), p)
            for n, p in layer.named_parameters()
        ),
        sorted(plain.named_parameters()),
        strict=True,
    ):
        torch.testing.assert_close(parameter.grad, expected.grad)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_parametrized_value_stays_in_its_range_as_a_parameter_does(backend):
    plain = hb.LIF(nn.Parameter(torch.full((4,), 2.0)), surrogate=SURROGATE, backend=backend)
    layer = copy.deepcopy(plain)
    count_calls(layer)
    tensors = plain.cell._parameters["tau"], layer.cell.parametrizations.tau.original
    with torch.no_grad():
        for each in tensors:
            each.copy_(torch.tensor([0.25, 1.0, 1.5, -0.5]))  # tau must be at least 1
    x = 1.5 * torch.rand(30, 2, 4)
    outputs = layer(x), plain(x)
    assert torch.equal(*outputs)
    for each in outputs:
        each.sum().backward()
    torch.testing.assert_close(*[each.grad for each in tensors])


def test_recording_reads_each_tensor_of_a_cell_once():
    cell = hb.LIFCell(nn.Parameter(torch.full((4,), 2.0)))
    counts = count_calls(cell)
    hb.record(cell, torch.rand(7, 2, 4))
    assert [each.calls.item() for each in counts.values()] == [1]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda module: module.Linear(16, 16), (2, 16)),
        (lambda module: module.Conv2d(3, 8, 3), (2, 3, 8, 8)),
    ],
    ids=["Linear", "Conv2d"],
)
def test_spectral_norm_iterates_once_per_call_as_for_torchs_layer(make, shape):
    layer, dense = make(hb), make(nn)
    dense.load_state_dict(layer.state_dict())
    for each in (layer, dense):
        torch.manual_seed(1)  # for the vectors of the power iteration
        parametrizations.spectral_norm(each)
    x = torch.rand(shape)
    for _ in range(3):
        torch.testing.assert_close(layer(x), dense(x))
        for own, other in zip(layer.buffers(), dense.buffers(), strict=True):
            torch.testing.assert_close(own, other)


def test_spectral_norm_of_recurrent_synapses_iterates_once_per_call():
    layer = hb.Recurrent(hb.LIFCell(threshold=0.3, surrogate=SURROGATE), 16)
    parametrizations.spectral_norm(layer.recurrent)
    looped, synapses = copy.deepcopy(layer), copy.deepcopy(layer.recurrent)
    looped.backend = "reference"
    x = torch.rand(7, 2, 16)
    for _ in range(3):
        synapses(x)  # one iteration
        outputs, gradients = [], []
        for each in (layer, looped):
            each.zero_grad()
            outputs.append(each(x))
            outputs[-1].square().sum().backward()
            gradients.append(each.recurrent.parametrizations.weight.original.grad)
            u = each.recurrent.parametrizations.weight[0]._u
            torch.testing.assert_close(u, synapses.parametrizations.weight[0]._u)
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_graph_computes_recurrent_synapses_once(backend):
    # In a new process: after thousands of other tests Dynamo may break this graph.
    code = "import sys; from nn.test_parametrized import recurrent_graph; recurrent_graph(sys.argv[1])"
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run(
        [sys.executable, "-c", code, backend], env={**os.environ, **path}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


def recurrent_graph(backend):
    """The test's body, which the new process runs."""
    torch.manual_seed(0)
    layer = hb.Recurrent(hb.LIFCell(threshold=0.3, surrogate=SURROGATE), 16, backend=backend)
    parametrizations.spectral_norm(layer.recurrent)
    eager, compiled = copy.deepcopy(layer), torch.compile(layer, backend="eager")
    x = torch.rand(7, 2, 16)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), eager(x))
    u, expected = (each.recurrent.parametrizations.weight[0]._u for each in (layer, eager))
    torch.testing.assert_close(u, expected)


def test_explain_evaluates_no_parametrization():
    layer = hb.Recurrent(hb.LIFCell(surrogate=SURROGATE), 4)
    counts = count_calls(layer)
    assert "backend    cpu" in hb.explain(layer)
    assert [each.calls.item() for each in counts.values()] == [0]


def test_a_step_that_writes_to_its_tensors_is_refused_by_name():
    class Writes(hb.Cell):
        def __init__(self):
            super().__init__()
            self.total = torch.zeros(4)

        def forward(self, input_, v):
            return (input_ + torch.add(self.total, 1.0, out=self.total),)

    with pytest.raises(Unsupported, match="writes"):
        hb.unroll(Writes(), torch.rand(3, 2, 4), backend="cpu")
