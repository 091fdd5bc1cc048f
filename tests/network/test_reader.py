"""Reading networks as graphs: programs return the network's outputs, and errors name unsupported layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import hibana as hb
from hibana.compiler.graph.ops import Unsupported
from ordered import in_order


class Net(nn.Module):
    """Layers without a forward method, for subclasses."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.neurons = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), hb.IF(0.3)
        self.out = nn.Linear(64, 3)


class JoinsTimeAndBatch(Net):
    """Joins time and batch itself."""

    def forward(self, x, scale=1.0, *, spikes=False):
        steps, batch = x.shape[0], x.size(1)
        x = self.norm(self.conv(x.flatten(0, 1))).view(steps, batch, 4, 4, 4)
        s = self.neurons(x * scale)
        return s if spikes else self.out(s.reshape(steps, batch, -1))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.gain


class Multiplies(nn.Module):
    """Multiplies two values."""

    def forward(self, x):
        return x * torch.sigmoid(x)


class Drops(nn.Module):
    """Also drops values in evaluation mode."""

    def forward(self, x):
        return functional.dropout(x, 0.9)


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x, x


class Applied(nn.Module):
    """Applies `function` to the input, then `neurons` if there are any."""

    def __init__(self, function, neurons=None):
        super().__init__()
        self.function, self.neurons = function, nn.Identity() if neurons is None else neurons

    def forward(self, x):
        return self.neurons(self.function(x))


def reshape_by_shape(x):
    steps, batch, *_ = x.shape
    return x.reshape(steps * batch, 3).reshape(steps, batch, 3)


def reshape_by_slice(x):
    steps, batch, *_ = x.shape[:2]
    return x.reshape(steps * batch, 3).reshape(steps, batch, 3)


class HidesLayer(nn.Module):
    """Holds a layer in a list, where PyTorch does not register it."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(3, 3)]

    def forward(self, x):
        return self.layers[0](x)


IMAGES, ROWS = torch.rand(5, 2, 1, 6, 6), torch.rand(5, 2, 3)
ONE = torch.rand(4, 1, 1, 5, 5)
"""One sample of one channel."""


def test_time_and_batch_may_be_joined_by_hand():
    torch.manual_seed(0)
    net = JoinsTimeAndBatch()
    for _ in range(5):
        net(IMAGES)
    net.eval()
    program = hb.compile(net, IMAGES)
    torch.testing.assert_close(program(IMAGES), in_order(net, IMAGES)(IMAGES))
    kinds = [node.kind for node in program.graph.nodes]
    assert kinds == ["input", "convolution", "scale", "neurons", "linear"]
    other = torch.rand(8, 3, 1, 6, 6)
    torch.testing.assert_close(program(other), in_order(net, other)(other))
    assert program(IMAGES).std() > 0


def test_rates_of_sums_are_measured_on_the_example():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = hb.IF(0.5), hb.IF(0.9)

        def forward(self, x):
            return self.one(x) + self.two(x)

    net = Sum()
    graph = hb.compile(net, ROWS).graph
    assert graph.nodes[3].density == pytest.approx(net(ROWS).count_nonzero().item() / ROWS.numel())
    assert graph.nodes[3].value_range == (0, 2)


def test_parametrized_layers_are_read_with_their_computed_weights():
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Conv2d(1, 4, 3))
    layers = hb.EachStep(nn.Sequential(layer, nn.BatchNorm2d(4)))
    net = nn.Sequential(layers, hb.IF(0.3), nn.Flatten(2), parametrizations.weight_norm(nn.Linear(64, 3)))
    net(IMAGES)
    nn.init.uniform_(layers.module[1].weight, 1, 2)
    net.eval()
    torch.testing.assert_close(hb.compile(net, IMAGES)(IMAGES), in_order(net, IMAGES)(IMAGES))
    torch.testing.assert_close(in_order(net, IMAGES)(IMAGES).mean(), net(IMAGES).mean(), rtol=0.05, atol=0.01)
    assert isinstance(net[3].parametrizations, nn.ModuleDict)


def test_pruned_layers_are_read_with_their_masked_weights():
    net = nn.Sequential(nn.Linear(3, 8), hb.IF(0.1), nn.Linear(8, 2)).eval()
    prune.l1_unstructured(net[0], "weight", 0.5)
    program = hb.compile(net, ROWS)
    torch.testing.assert_close(program(ROWS), net(ROWS))
    assert program.graph.nodes[1].module.weight.count_nonzero() == 12
    assert prune.is_pruned(net)


def test_a_network_of_one_layer_is_read():
    for layer in (nn.Linear(3, 2), hb.IF(0.3), hb.EachStep(nn.Linear(3, 2))):
        torch.testing.assert_close(hb.compile(layer, ROWS)(ROWS), layer(ROWS))
        assert type(hb.fold_batchnorm(layer)) is type(layer)


UNREADABLE = [
    (nn.Sequential(nn.Linear(3, 3), Branching()), r"layer '1': Branching\.forward cannot be traced: "),
    (nn.Sequential(nn.Linear(3, 3), Multiplies()), "'sigmoid' in layer '1': sigmoid is not supported"),
    (nn.Sequential(nn.Linear(3, 3), Scaled()), r"'1\.gain' is a tensor outside of a layer"),
    (nn.Sequential(nn.Linear(3, 3), Drops()), "'dropout' in layer '1' .*, and drops some in evaluation"),
    (Applied(lambda x: nn.functional.layer_norm(x, (3,))), "layer_norm is not .*; call nn.LayerNorm or"),
    (Applied(lambda x: torch.cat([x, x])), r"'cat' in Applied.forward must concatenate along a dimension"),
    (Applied(lambda x: torch.cat([x, torch.ones(5, 2, 3)], -1)), "is a tensor outside of a layer"),
    (Applied(nn.functional.gelu), "gelu is not supported"),
    (nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 3)), "layer '1': GRU is not a supported layer"),
    (nn.Sequential(nn.Linear(3, 3), nn.Flatten()), r"layer '1' makes \[5, 6\] of \[5, 2, 3\]"),
    (nn.Sequential(hb.IF(), HidesLayer()), r"layer '1': HidesLayer\.forward cannot be traced: "),
    (TwoInputs(), r"TwoInputs\.forward cannot be traced: it takes a second input, 'y'"),
    (TwoOutputs(), "net must return one tensor"),
    (Applied(reshape_by_shape), r"Applied\.forward cannot be traced"),
    (Applied(reshape_by_slice), "Applied"),
    (Applied(lambda x: x.flatten(1), hb.IF()), r"'flatten' in Applied\.forward makes \[5, 72\]", IMAGES),
    (Applied(lambda x: x.flatten(0, 1), hb.IF()), "IF is called with time and batch joined", IMAGES),
    (Applied(lambda x: x.flatten(0, 1), hb.IF()), "IF is called with time and batch joined", ONE),
    (Applied(lambda x: x.reshape(4, 1, 25)), r"'reshape' in Applied\.forward: shape", ONE),
    (Applied(lambda x: x * x.size(0)), "computes with a number that depends on T or batch", ONE),
    (nn.Sequential(nn.MaxPool2d(2)), "which have no channels", ONE[:, :, 0]),
    (nn.Sequential(nn.MaxPool1d(2)), "which have no channels", ONE[:, :, 0, 0]),
    (nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)), "samples for channels", torch.rand(5, 8, 3)),
]  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE, ids=lambda case: type(case[0]).__name__)
def test_unreadable_networks_are_named_in_the_error(case):
    net, message, example = (*case, ROWS)[:3]
    with pytest.raises((Unsupported, ValueError), match=message):
        hb.compile(net.eval(), example)


def test_a_layer_that_rejects_the_example_is_named():
    with pytest.raises(RuntimeError) as raised:
        hb.compile(nn.Sequential(nn.Linear(4, 3), hb.IF()), ROWS)
    assert raised.value.__notes__ == ["layer '0' (Linear) was given the shape [5, 2, 3]"]


def test_recurrent_neurons_are_named_and_counted_in_the_table():
    neurons = hb.Recurrent(hb.LIFCell(), 3), hb.DelayedRecurrent(hb.LIFCell(), 3, max_delay=2)
    graph = hb.compile(nn.Sequential(*neurons).eval(), ROWS).graph
    _, _, one, two, _ = str(graph).splitlines()
    assert one.split()[1:3] == ["recurrent", "LIF"]
    assert two.split()[1:4] == ["delayed", "recurrent", "LIF"]
    assert [row.split()[-2] for row in (one, two)] == [str(3 * 7 + 9), str(3 * 6 + 9)]


class JoinedConvolution(nn.Module):
    """A convolution on images, which joins time and batch by flatten and unflatten."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x.flatten(0, 1)).unflatten(0, (x.size(0), x.size(1)))


@pytest.mark.parametrize("batch", [1, 2])
def test_one_channel_of_one_sample_is_not_mistaken_for_the_batch(batch):
    torch.manual_seed(0)
    net = nn.Sequential(JoinedConvolution(), hb.EachStep(nn.Conv2d(2, 3, 3, padding=1)), hb.LI()).eval()
    x = torch.rand(4, batch, 1, 5, 5)
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(hb.compile(net, x)(x), expected)
    torch.testing.assert_close(in_order(net, x)(x), expected)
    assert hb.compile(net, x).graph.nodes[1].input_shapes == ((1, 5, 5),)


@pytest.mark.parametrize("shape", [(3,), (5, 1), (5, 3), (3, 1, 1), (1, 3, 1, 1)])
def test_cell_parameters_broadcast_as_in_pytorch_if_width_equals_channels(shape):
    torch.manual_seed(0)
    threshold = torch.rand(shape) * 0.5 + 0.1
    neurons = hb.LIF(threshold=threshold)
    x = torch.rand(6, 2, 1, 5, 3)
    net = nn.Sequential(hb.EachStep(nn.Conv2d(1, 3, 3, padding=1)), neurons).eval()
    with torch.no_grad():
        expected = net(x)
    assert 0 < expected.mean() < 1
    assert torch.equal(hb.compile(net, x)(x), expected)
    assert torch.equal(in_order(net, x)(x), expected)
    quantized = hb.quantize(net, x)[0]
    with torch.no_grad():
        assert torch.equal(hb.compile(quantized, x)(x), quantized(x))
    windowed = nn.Sequential(hb.Window(3, 3, 2), neurons).eval()
    images = torch.rand(6, 2, 3, 5, 3)
    with torch.no_grad():
        assert torch.equal(hb.compile(windowed, images)(images), windowed(images))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_tensors_whose_sizes_contradict_the_settings_are_refused(name):
    """PyTorch takes sizes from tensors, and broadcasts a bias of one number."""
    layer = nn.Linear(3, 4)
    setattr(layer, name, nn.Parameter(torch.rand((2, 3) if name == "weight" else 1)))
    if name == "weight":
        layer.bias = None
    net = nn.Sequential(layer, hb.IF())
    net(ROWS)
    with pytest.raises(RuntimeError, match="layer '0': the settings of Linear imply"):
        hb.compile(net, ROWS)


def test_a_mean_over_a_sequence_covers_all_of_it():
    mean = hb.EachStep(nn.AdaptiveAvgPool1d(1))
    net = nn.Sequential(hb.EachStep(nn.Conv1d(1, 3, 3, padding=1)), mean, hb.LI()).eval()
    x = torch.rand(6, 2, 1, 5)
    with torch.no_grad():
        torch.testing.assert_close(hb.compile(net, x)(x), net(x))


def build_normalized():
    return nn.Sequential(
        nn.Linear(3, 8), hb.EachStep(nn.BatchNorm1d(8)), hb.IF(0.5), nn.Linear(8, 2), hb.LI()
    )


def normalized_outputs(net):
    """The outputs of `net` in evaluation, after five batches have set the statistics of its normalization."""
    for _ in range(5):
        net(ROWS)
    net.eval()
    with torch.no_grad():
        outputs = net(ROWS)
    assert outputs.std() > 0
    return outputs


@pytest.mark.parametrize("change", [lambda net: net, lambda net: hb.optimize(net, ROWS, verbose=False)])
def test_normalization_in_each_step_after_a_layer_over_time(change):
    torch.manual_seed(0)
    net = change(build_normalized())
    expected = normalized_outputs(net)
    torch.testing.assert_close(hb.compile(net, ROWS)(ROWS), expected)
    torch.testing.assert_close(in_order(net, ROWS)(ROWS), expected)
    assert "net_step" in hb.convert.to_c(net, ROWS).source
    quantized, _ = hb.quantize(net, ROWS)
    with torch.no_grad():
        assert torch.equal(hb.compile(quantized, ROWS)(ROWS), quantized(ROWS))


def test_normalization_without_weights():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False))
    net = nn.Sequential(hb.EachStep(layers), hb.IF(0.5), nn.Linear(8, 2), hb.LI())
    expected = normalized_outputs(net)
    torch.testing.assert_close(hb.compile(net, ROWS)(ROWS), expected)
    torch.testing.assert_close(hb.fold_batchnorm(net)(ROWS), expected)
    hb.quantize(net, ROWS)
    assert "net_step" in hb.convert.to_c(net, ROWS).source
