"""Conversion of ReLU networks to spiking networks, and export to programs that run without hibana."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.network import accuracy_over_time, export
from hibana.network.fold import fold_batchnorm


def calibrated(model, x):
    """`model` in evaluation mode, with random normalization weights and the running statistics of `x`."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    for _ in range(20):
        model(x)
    return model.eval()


class NamedLayer(nn.Module):
    """A layer called `name`, another, and a ReLU between them."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, nn.Linear(3, 8))
        self.name, self.out = name, nn.Linear(8, 2)

    def forward(self, x):
        return self.out(torch.relu(self.get_submodule(self.name)(x)))


@pytest.mark.parametrize("name", ['a"b', "import", "graph", "meta", "readout", "relu", "new\nline"])
def test_a_layer_may_have_any_name(name):
    model, x = NamedLayer(name), torch.rand(50, 3)
    network, _ = hb.from_ann(model, x, T=256, percentile=100)
    assert len([*network.children()]) == 4
    torch.testing.assert_close(network(x.expand(256, 50, 3))[-1] / 256, model(x), rtol=0.0, atol=0.05)


def mlp():
    return nn.Sequential(
        nn.Linear(6, 20, bias=False), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 12),
        nn.ReLU(inplace=True), nn.Linear(12, 4),
    )  # fmt: skip


class Residual(nn.Module):
    """Functions, modules, one ReLU used twice, a shortcut, both poolings, and a norm before any layer."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.conv1, self.bn1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(6)
        self.relu, self.out = nn.ReLU(), nn.Linear(6 * 2 * 2, 3)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(self.norm(x))))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        x = nn.functional.max_pool2d(x, 2, padding=1)
        x = nn.functional.avg_pool2d(torch.relu(x), 2)
        return self.out(torch.flatten(x, 1))


class TwoBranches(nn.Module):
    """Max-pooling before the ReLU, two activated branches added, a ReLU at the end."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
        self.pool, self.mean = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.pool(self.left(x)).relu() + self.pool(self.right(x)).relu()
        return self.mean(x).flatten(1).relu()


CASES = {
    "mlp": (mlp, (6,)),
    "residual": (Residual, (2, 6, 6)),
    "branches": (TwoBranches, (2, 6, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_error_falls_as_one_over_t(case):
    make, shape = CASES[case]
    x = torch.randn(64, *shape)
    model = calibrated(make(), x)
    before = copy.deepcopy(model.state_dict())
    network, _ = hb.from_ann(model, x, T=1, percentile=100)
    with torch.no_grad():
        expected = model(x)
        outputs = network(x.expand(512, *x.shape))
    means = {steps: outputs[steps - 1] / steps for steps in (32, 512)}
    error = {steps: float((mean - expected).abs().mean() / expected.std()) for steps, mean in means.items()}
    assert error[512] < 0.01
    assert error[512] < error[32] / 8  # 16 times the steps
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_max_pooling_emits_spikes_whose_count_is_the_largest_count():
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.MaxPool1d(2))
    x = torch.rand(5, 3, 8)
    network, _ = hb.from_ann(model, x, T=1, percentile=100)
    spikes = {}
    for name in ("_1", "_2"):
        network.get_submodule(name).register_forward_hook(lambda m, i, o, n=name: spikes.update({n: o}))
    with torch.no_grad():
        network(x.expand(20, *x.shape))
    pooled = spikes["_2"]
    assert set(pooled.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(pooled.sum(0), nn.functional.max_pool1d(spikes["_1"].sum(0), 2))


def test_an_initial_potential_of_half_a_threshold_rounds_to_the_nearest():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    nn.init.ones_(model[0].weight)
    x = torch.linspace(0, 1, 33)[:, None]
    network, _ = hb.from_ann(model, x, T=4, percentile=100)
    with torch.no_grad():
        rates = network(x.expand(4, 33, 1))[-1] / 4
    assert (rates - x).abs().max() <= 1 / 8 + 1e-6


def test_the_threshold_is_the_percentile_of_the_activations():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
    nn.init.ones_(model[0].weight)
    x = torch.randperm(1000)[:, None] / 1000  # 0, 0.001, … 0.999
    for percentile, threshold in ((100, 0.999), (99, 0.989), (50, 0.499)):
        network, report = hb.from_ann(model, list(x.split(130)), T=1, percentile=percentile)
        assert report.layers[0].threshold == pytest.approx(threshold)
        assert report.layers[0].saturated == pytest.approx(1 - percentile / 100)
        cell = next(m.cell for m in network.modules() if isinstance(m, hb.IF))
        assert (cell.reset, cell.initial) == ("subtract", pytest.approx(threshold / 2))


def test_the_report_lists_layers_errors_and_accuracy():
    x = torch.randn(100, 6)
    model = calibrated(mlp(), x)
    labels = model(x).argmax(1)
    network, report = hb.from_ann(model, (x, labels), T=100)
    assert [layer.neurons for layer in report.layers] == [20, 12]
    for layer in report.layers:
        assert layer.rate == pytest.approx(layer.activation, abs=0.02)
        assert layer.error < 0.03
    assert list(report.accuracy) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert report.ann_accuracy == 1.0
    assert report.labelled
    assert report.accuracy[100] > 0.95
    over_time = accuracy_over_time(network, x, labels, 100)
    assert {steps: float(over_time[steps - 1]) for steps in report.accuracy} == pytest.approx(report.accuracy)
    text = str(report)
    assert "accuracy against the labels" in text
    assert all(layer.name in text for layer in report.layers)
    assert "the classes of the ReLU network" in str(hb.from_ann(model, x, T=2)[1])


class Sigmoidal(nn.Module):
    def forward(self, x):
        return torch.sigmoid(x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.GELU()), "layer '1': GELU"),
        (nn.Sequential(nn.Linear(3, 3), Sigmoidal()), "sigmoid"),
        (Branching(), "cannot be traced"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), "layer 1: no linear layer"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), "running statistics"),
    ],
)
def test_unsupported_layers_are_named_in_the_error(model, message):
    with pytest.raises(ValueError, match=message):
        hb.from_ann(model, torch.rand(8, 3))


def torchvision_network(name):
    """A small network of the torchvision family `name`."""
    models = pytest.importorskip("torchvision.models")
    if name == "resnet":
        return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    if name == "mobilenet":
        settings = [[1, 8, 1, 1], [6, 8, 2, 2]]
        return models.MobileNetV2(num_classes=5, width_mult=0.25, inverted_residual_setting=settings)
    return models.DenseNet(4, (2, 2), 8, num_classes=5)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "densenet"])
def test_networks_of_torchvision(name):
    x = torch.rand(6, 3, 32, 32)
    model = calibrated(torchvision_network(name), x)
    network, _ = hb.from_ann(model, x, T=2, percentile=100)
    with torch.no_grad():
        expected = model(x)
        errors = [
            float((network(x.expand(T, *x.shape))[-1] / T - expected).abs().max() / expected.abs().max())
            for T in (16, 256)
        ]
    assert errors[1] < 0.1
    assert errors[1] < errors[0] / 2


def test_relu6_is_clipped_at_six():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU6(), nn.Linear(1, 1, bias=False))
    nn.init.ones_(model[0].weight)
    nn.init.ones_(model[2].weight)
    x = torch.tensor([[9.0], [3.0], [-1.0]])
    network, report = hb.from_ann(model, x, T=256, percentile=100)
    assert report.layers[0].threshold == 6.0
    torch.testing.assert_close(network(x.expand(256, 3, 1))[-1] / 256, model(x), rtol=0.0, atol=0.03)


class Concatenation(nn.Module):
    def __init__(self, axis):
        super().__init__()
        self.one, self.two, self.out, self.axis = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2), axis

    def forward(self, x):
        return self.out(torch.cat([torch.relu(self.one(x)), self.two(x)], dim=self.axis))


@pytest.mark.parametrize("axis", [1, -1])
def test_values_of_different_thresholds_are_concatenated(axis):
    model, x = Concatenation(axis), torch.rand(20, 3)
    network, _ = hb.from_ann(model, x, T=256, percentile=100)
    torch.testing.assert_close(network(x.expand(256, 20, 3))[-1] / 256, model(x), rtol=0.0, atol=0.05)
    with pytest.raises(ValueError, match="concatenated"):
        hb.from_ann(Concatenation(0), x)


def test_a_silent_layer_is_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    nn.init.constant_(model[0].bias, -100.0)
    with pytest.raises(ValueError, match=r"layer '_1'.*positive"):
        hb.from_ann(model, torch.rand(8, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T": 0}, "T must"),
        ({"T": 2.5}, "T must"),
        ({"percentile": 0}, "perc"),
        ({"percentile": 101}, "perc"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        hb.from_ann(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.rand(4, 2), **arguments)
    with pytest.raises(ValueError, match="calibration_data"):
        hb.from_ann(nn.ReLU(), [])


# ---- folding, layers at each step, an initial potential --------------------------------------------


def test_normalization_is_not_folded_into_a_layer_used_twice():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            x = self.conv(x)
            return x + self.bn(x)

    x = torch.randn(64, 2, 3, 3)
    model = calibrated(Shared(), x)
    torch.testing.assert_close(fold_batchnorm(torch.fx.symbolic_trace(model))(x), model(x))


def test_each_step_applies_the_module_to_each_step():
    x, module = torch.randn(4, 3, 2, 5, 5), nn.Conv2d(2, 3, 3)
    expected = torch.stack([module(step) for step in x])
    torch.testing.assert_close(hb.EachStep(module)(x), expected)
    constant = x[:1].expand(4, *x.shape[1:])
    outputs = hb.EachStep(module).eval()(constant)
    assert outputs.stride(0) == 0
    torch.testing.assert_close(outputs, hb.EachStep(module).train()(constant))
    with pytest.raises(ValueError, match="inputs must be"):
        hb.EachStep(nn.Linear(2, 2))(torch.rand(3, 2))


def test_if_starts_at_its_initial_potential():
    x = torch.full([3, 2], 0.25)
    spikes, _ = hb.unroll(hb.IFCell(initial=torch.tensor([0.8, 0.0])), x)
    assert spikes.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="initial must be finite"):
            hb.IF(initial=wrong)
    with pytest.raises(TypeError, match="initial"):
        hb.IF(initial="half")


# ---- programs --------------------------------------------------------------------------------------

WITHOUT_HIBANA = """
import sys
sys.modules["hibana"] = None  # importing it raises
import torch
cases = torch.load(sys.argv[1], weights_only=True)
for path, (inputs, outputs) in cases.items():
    program = torch.export.load(path).module()
    for x, y in zip(inputs, outputs, strict=True):
        assert torch.equal(program(x), y), (path, (program(x) - y).abs().max())
assert [name for name in sys.modules if name.partition(".")[0] == "hibana"] == ["hibana"]
print(len(cases), "equal")
"""


def spiking():
    conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.AvgPool2d(2))
    return nn.Sequential(
        hb.EachStep(conv), hb.LIF(3.0, 0.1, surrogate=hb.surrogate.ATan()), nn.Flatten(2), nn.Linear(27, 8),
        hb.Recurrent(hb.CubaLIFCell(threshold=0.2), 8), nn.Linear(8, 4), hb.PLIF(), hb.LI(5.0),
    )  # fmt: skip


def converted():
    x = torch.rand(32, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    )
    return hb.from_ann(calibrated(model, x), x, T=1)[0]


@pytest.mark.slow
def test_an_exported_program_runs_without_hibana(tmp_path):
    cases = {}
    for make, *sizes in (
        *((make, (6, 2)) for make in (spiking, converted)),
        *((make, (6, 3), (6, 5), (6, 1)) for make in (spiking, converted)),
        (spiking, (6, 3), (25, 2), (1, 1)),
    ):
        net = make().eval()
        inputs = [torch.rand(*size, 1, 8, 8) for size in sizes]
        dynamic_time = len({steps for steps, _ in sizes}) > 1
        classes = [type(module) for module in net.modules()]
        program = export(net, inputs[0], dynamic_batch=len(sizes) > 1, dynamic_time=dynamic_time)
        assert [type(module) for module in net.modules()] == classes
        path = str(tmp_path / f"{len(cases)}.pt2")
        torch.export.save(program, path)
        with torch.no_grad():
            cases[path] = inputs, [net(x) for x in inputs]
    torch.save(cases, tmp_path / "cases.pt")
    command = [sys.executable, "-c", WITHOUT_HIBANA, tmp_path / "cases.pt"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "5 equal", run.stderr


class ManyLayers(nn.Module):
    """Layers in parallel, each with a gain of the input that makes it spike."""

    def __init__(self):
        super().__init__()
        cells = hb.IF, hb.LIF, hb.PLIF, hb.CubaLIF, hb.ALIF, hb.AdLIF, hb.RefractoryLIF, hb.EIF, hb.QIF
        self.layers = nn.ModuleList([cell() for cell in cells] + [hb.Izhikevich()])
        self.windows = nn.Sequential(
            hb.Delay(torch.rand(9) * 3), hb.Window(9, 9, 3), hb.DelayedLinear(9, 9, 4)
        )

    def forward(self, x):
        gains = [2.0] * 5 + [30.0] + [2.0] * 3 + [60.0]
        spikes = [layer(gain * x) for gain, layer in zip(gains, self.layers, strict=True)]
        return torch.stack([*spikes, self.windows(x)])


@pytest.mark.slow
def test_every_layer_exported_with_dynamic_time_returns_the_same_outputs():
    net = ManyLayers().eval()
    program = export(net, torch.rand(5, 2, 9), dynamic_time=True, dynamic_batch=True).module()
    for steps, batch in ((1, 1), (40, 3)):
        x = torch.rand(steps, batch, 9)
        with torch.no_grad():
            outputs = net(x)
            assert torch.equal(program(x)[:-1], outputs[:-1])
            torch.testing.assert_close(program(x)[-1], outputs[-1])
    for spikes in outputs[:-1]:
        assert 0 < spikes.mean() < 1


def test_dynamic_batch_works_after_an_export_with_a_fixed_batch():
    net = nn.Sequential(nn.Linear(6, 9), hb.IF()).eval()
    export(net, torch.rand(4, 2, 6), dynamic_time=True)
    program = export(net, torch.rand(4, 2, 6), dynamic_time=True, dynamic_batch=True).module()
    x = torch.rand(7, 3, 6)
    assert torch.equal(program(x), net(x))
    with pytest.raises(ValueError, match="at least 2 steps or samples where dynamic"):
        export(net, torch.rand(4, 1, 6), dynamic_batch=True)


@pytest.mark.parametrize("dynamic", [False, True])
def test_windows_and_delays_are_exported_for_any_time(dynamic):
    net = nn.Sequential(
        hb.Window(3, 8, 3, dilation=2), hb.IF(0.2), hb.Delay(torch.arange(8) % 3.0),
        hb.DelayedLinear(8, 5, 4), hb.IF(0.1), hb.Window(5, 5, 2, groups=5), hb.LIF(threshold=0.1),
    ).eval()  # fmt: skip
    counts = []
    for steps in (3, 12):
        program = export(net, torch.rand(steps, 2, 3), dynamic_time=dynamic, dynamic_batch=dynamic)
        x = torch.rand(steps + 4, 3, 3) if dynamic else torch.rand(steps, 2, 3)
        with torch.no_grad():
            assert torch.equal(program.module()(x), net(x))
            assert 0 < net(x).mean() < 1
        graphs = [module for module in program.graph_module.modules() if hasattr(module, "graph")]
        counts.append(sum(len(module.graph.nodes) for module in graphs))
    assert (counts[0] == counts[1]) == dynamic
