"""NeuroBench's metrics of a network: those that it finds of the same network in snnTorch, or by hand."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hibana as hb

pytestmark = pytest.mark.filterwarnings("ignore")  # of what NeuroBench loads
with pytest.MonkeyPatch.context() as patch:
    patch.setattr("warnings.warn", lambda *ignored, **named: None)
    pytest.importorskip("neurobench", reason="neurobench is not installed")
    import snntorch
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics import static, workload
    from neurobench.models import SNNTorchModel

    from hibana.network.neurobench import Model, NeuronOperations

STATIC = [static.ParameterCount, static.ConnectionSparsity]
COUNTS = [
    workload.ActivationSparsity,
    workload.ActivationSparsityByLayer,
    workload.MembraneUpdates,
    workload.SynapticOperations,
]


def measured(model, inputs, metrics, capsys, post=lambda outputs: outputs):
    """What the harness says of `model`; it swallows errors of metrics, and prints them."""
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    batches = DataLoader(TensorDataset(inputs, labels), batch_size=4)
    capsys.readouterr()
    found = Benchmark(model, batches, [], [post], [STATIC, metrics]).run()
    assert "Error running workload metric" not in capsys.readouterr().out
    return found


class InSnnTorch(nn.Module):
    def __init__(self, first, second, reset):
        super().__init__()
        self.first, self.second = first, second
        settings = {"beta": 1.0, "threshold": 0.5, "reset_mechanism": reset, "init_hidden": True}
        self.one = snntorch.Leaky(**settings)
        self.two = snntorch.Leaky(**settings, output=True)

    def forward(self, x):
        return self.two(self.second(self.one(self.first(x))))


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_the_figures_are_those_of_the_same_network_in_snntorch(reset, capsys):
    first, second = nn.Linear(6, 16), nn.Linear(16, 3)
    with torch.no_grad():
        first.weight[3] = 0.0
    inputs = (torch.rand(10, 12, 6) * 16).round() / 16
    inputs[:, 3:5] = 0.0
    theirs = measured(SNNTorchModel(InSnnTorch(first, second, reset)), inputs, COUNTS, capsys)
    kind = {} if reset == "zero" else {"reset": "subtract"}
    net = nn.Sequential(first, hb.IF(0.5, **kind), second, hb.IF(0.5, **kind))
    ours = measured(Model(net), inputs, COUNTS, capsys)
    by_layer = theirs.pop("ActivationSparsityByLayer")
    assert ours.pop("ActivationSparsityByLayer") == {"1": by_layer["one"], "3": by_layer["two"]}
    assert 0.3 < ours["ActivationSparsity"] < 0.99
    assert ours == theirs


def test_synapses_within_a_step_are_counted(capsys):
    net = nn.Sequential(nn.Linear(6, 16), hb.Recurrent(hb.IFCell(0.5), 16))
    inputs = torch.rand(10, 12, 6)
    net.eval()
    with torch.no_grad():
        spikes = net(inputs.transpose(0, 1))
    found = measured(Model(net), inputs, COUNTS, capsys)["SynapticOperations"]
    assert found["Effective_ACs"] * 10 == spikes[:-1].sum() * 16
    assert found["Effective_MACs"] * 10 == inputs.count_nonzero() * 16
    assert found["Dense"] == 12 * (6 * 16 + 16 * 16)


@pytest.mark.parametrize("given", ["without time", "at each step"])
def test_a_constant_input_counts_at_each_step(given, capsys):
    conv = hb.Conv2d(2, 5, 3, padding=1)
    net = nn.Sequential(hb.EachStep(conv), hb.IF(0.5), nn.Flatten(2), hb.Linear(5 * 16, 3), hb.LI())
    images = torch.rand(10, 2, 4, 4)
    once = nn.functional.conv2d(torch.ones(10, 2, 4, 4), torch.ones(5, 2, 3, 3), padding=1).sum() / 10
    still = given == "without time"
    inputs = images if still else images[:, None].repeat(1, 7, 1, 1, 1)
    found = measured(Model(net, steps=7 if still else None), inputs, COUNTS, capsys)
    assert found["SynapticOperations"]["Effective_MACs"] == 7 * once
    assert found["SynapticOperations"]["Dense"] == 7 * (once + 5 * 16 * 3)


def test_a_readout_has_a_potential_and_activates_nothing(capsys):
    net = nn.Sequential(nn.Linear(6, 16), hb.IF(0.5), nn.Linear(16, 3), hb.LI())
    found = measured(Model(net), torch.rand(10, 12, 6), COUNTS, capsys)
    assert list(found["ActivationSparsityByLayer"]) == ["1"]
    assert 12 * 16 < found["MembraneUpdates"] <= 12 * (16 + 3)


def test_operations_of_neurons_are_those_of_a_step_for_each_update(capsys):
    class Plain(hb.Cell):
        def forward(self, input_, v_previous):
            return (0.5 * v_previous + input_,)  # two operations

    inputs = torch.rand(10, 12, 6)
    inputs[:, :5] = 0.0  # at rest: nothing changes, but that the first step counts
    found = measured(Model(nn.Sequential(hb.OverTime(Plain()))), inputs, [NeuronOperations], capsys)
    assert found["NeuronOperations"] == {
        "Effective Neuron Ops": 2 * 6 * (1 + 7),
        "Neuron Dense Ops": 2 * 6 * 12,
    }


def test_batches_come_first_and_what_loses_its_steps_is_refused():
    net = nn.Sequential(nn.Linear(6, 3), hb.IF(0.5))
    inputs = torch.rand(10, 12, 6)
    assert torch.equal(Model(net)(inputs), net(inputs.transpose(0, 1)).transpose(0, 1))

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(0)

    with pytest.raises(ValueError, match=r"net must give \[T, batch, \.\.\.\], here \[12, 10, \.\.\.\]"):
        Model(nn.Sequential(net, Mean()))(inputs)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        Model(net, steps=0)


def test_what_can_not_be_counted_is_refused_and_not_counted_as_nothing():
    class Raw(hb.Cell):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, input_, v_previous, s_previous):
            v = v_previous * (1 - s_previous) + input_ + s_previous @ self.weight
            return v, hb.Heaviside.apply(v - 1)

    class Unnamed(hb.Cell):
        def forward(self, input_, u_previous, s_previous):
            u = u_previous * (1 - s_previous) + input_
            return u, hb.Heaviside.apply(u - 1)

    raw = Model(nn.Sequential(hb.OverTime(Raw())))
    raw.register_hooks()
    with pytest.raises(TypeError, match="a step of layer '0' multiplies by what is no module"):
        raw(torch.rand(2, 4, 3))
    with pytest.raises(TypeError, match=r"'0' is Window, which sees several steps.*metrics\.SynOps has"):
        Model(nn.Sequential(hb.Window(3, 3, 2))).register_hooks()
    with pytest.raises(ValueError, match=r"layer '0' has no state 'v', but u, s.*potential="):
        Model(nn.Sequential(hb.OverTime(Unnamed()))).register_hooks()
    Model(nn.Sequential(hb.OverTime(Unnamed())), potential="u").register_hooks()


def test_hooks_that_are_removed_leave_nothing(capsys):
    net = nn.Sequential(hb.EachStep(nn.Linear(6, 3)), hb.Recurrent(hb.IFCell(), 3))
    model = Model(net)
    measured(model, torch.rand(4, 5, 6), COUNTS, capsys)
    model.cleanup_hooks()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def example(monkeypatch, capsys, *arguments):
    path = Path(__file__).parents[2] / "examples" / "neurobench_tasks.py"
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    assert "Error" not in said
    return {line[:40].strip(): float(line[40:].replace(",", "")) for line in said.splitlines()}


def test_the_example_runs_its_two_tasks_over_files(tmp_path, monkeypatch, capsys):
    drawn = np.random.default_rng(0)
    parts = []
    for count in (200, 40, 60):
        labels = drawn.integers(0, 3, count)
        wave = np.sin(np.arange(40)[None] * (1 + labels[:, None]) / 5)
        parts.append((wave[..., None] + 0.1 * drawn.normal(size=(count, 40, 6)), np.eye(3)[labels]))
    np.savez(tmp_path / "watch.npz", *(part[0] for part in parts), *(part[1] for part in parts))
    found = example(monkeypatch, capsys, "wisdm", tmp_path / "watch.npz", "--epochs", 20)
    assert found["ClassificationAccuracy"] > 0.8
    assert found["SynapticOperations Effective_ACs"] > 0

    series = [1.2] * 18
    for _ in range(1600):
        series.append(series[-1] + 0.2 * series[-18] / (1 + series[-18] ** 10) - 0.1 * series[-1])
    np.save(tmp_path / "series.npy", np.array(series[18:]))
    found = example(
        monkeypatch, capsys, "mackey-glass", tmp_path / "series.npy", "--epochs", 60, "--times", 1
    )
    assert 0 < found["SMAPE"] < 200
    assert 0 < found["ActivationSparsity"] < 1
