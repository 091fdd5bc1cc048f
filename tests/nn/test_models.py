"""Networks of the literature: their sizes, images of any shape, and gradients against dense networks."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb
from examples.deep_networks import sew_resnet, spikformer, spiking_vgg
from hibana.train import architecture

SMALL = {
    "sew_resnet": lambda shape, classes: sew_resnet(shape, classes, depth=10, width=8),
    "sew_resnet-50": lambda shape, classes: sew_resnet(shape, classes, depth=50, width=2),
    "spiking_vgg": lambda shape, classes: spiking_vgg(shape, classes, depth=8, width=8),
    "spikformer": lambda shape, classes: spikformer(shape, classes, depth=1, width=16),
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(28, 28), (3, 5, 8), (1, 1, 1), (2, 65, 70)], ids=str)
def test_any_image_and_number_of_classes(name, shape):
    net = SMALL[name](shape, 7)
    assert net(torch.rand(2, 3, *shape)).shape == (2, 3, 7)


@pytest.mark.parametrize(
    ("depth", "parameters"),  # of torchvision's networks of these names for 1,000 classes
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_sew_resnet_has_the_weights_of_resnet(depth, parameters):
    with torch.device("meta"):
        net = sew_resnet((3, 224, 224), 1000, depth=depth)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_spiking_vgg_has_the_layers_of_vgg_but_two(depth):
    with torch.device("meta"):
        net = spiking_vgg((3, 32, 32), 10, depth=depth)
    weighted = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth - 2  # one linear layer reads out instead of three
    assert weighted[-2].weight.shape == (512, 512, 3, 3)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_and_gradients_are_those_of_the_dense_network(name):
    torch.manual_seed(3)
    net = SMALL[name]((3, 16, 16), 5).double()  # sums of batch normalization cancel
    x = torch.rand(3, 4, 3, 16, 16)
    exact = copy.deepcopy(net)
    for inner in exact.modules():
        if isinstance(inner, hb.OverTime):
            inner.backend = "reference"
    events = copy.deepcopy(net).float()
    results = []
    for each, input_ in ((net, x.double()), (exact, x.double()), (events, x)):
        out = each(input_)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in each.parameters())])
    for result, expected in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(result, expected)
    assert all(gradient.isfinite().all() for gradient in results[2])
    assert any(gradient.count_nonzero() for gradient in results[2][1:])


def test_a_residual_network_works_per_spike_above_its_sums():
    net = sew_resnet((3, 16, 16), 5, depth=10, width=16)
    for inner in net.modules():
        if isinstance(inner, hb.Conv2d):
            inner.mode = "events"
    net(torch.rand(2, 4, 3, 16, 16))
    explanations = [inner.explain() for inner in net.modules() if isinstance(inner, hb.Conv2d)]
    assert sum(each.startswith("events: whole numbers") for each in explanations) >= 3
    assert [each for each in explanations if each.startswith("dense")] == explanations[:1]  # reads the image


def test_the_product_of_attention_is_the_same_in_either_order():
    torch.manual_seed(0)
    net = spikformer((4, 4), 3, depth=1, width=16, heads=2, poolings=0)
    (attention,) = (m for m in net.modules() if hasattr(m, "query"))
    products = []
    attention.neurons.register_forward_pre_hook(lambda _, args: products.append(args[0]))
    maps = {}
    for part in ("query", "key", "value"):
        getattr(attention, part).register_forward_hook(lambda _, __, out, part=part: maps.update({part: out}))
    for shape in ((4, 4), (2, 2)):  # 16 tokens, and 4, of 8 spikes in each head
        attention(torch.randint(0, 2, (3, 2, 16, *shape)).float())
        query, key, value = (maps[part].flatten(3).unflatten(2, (2, 8)) for part in ("query", "key", "value"))
        similarity = torch.einsum("tbhci,tbhcj->tbhij", query, key)
        expected = torch.einsum("tbhij,tbhcj->tbhci", similarity, value) * 0.25
        assert torch.equal(products.pop(), expected.flatten(2, 3).unflatten(3, shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sew_resnet((3, 8, 8), 10, depth=20), "depth must be one of 10, 18, .* got 20"),
        (lambda: spiking_vgg((3, 8, 8), 10, depth=12), "depth must be one of 8, 11, .* got 12"),
        (
            lambda: spikformer((3, 8, 8), 10, width=30),
            "width must be a multiple of 8 and of heads=4, got 30",
        ),
        (lambda: sew_resnet((700,), 10), r"shape must be .* got \(700,\)"),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_hibana_train_builds_networks_by_name():
    net = architecture.build("examples.deep_networks:spiking_vgg", (1, 8, 8), 4, hb.LIFCell)
    assert net(torch.rand(1, 2, 1, 8, 8)).shape == (1, 2, 4)
    assert all(isinstance(m.cell, hb.LIFCell) for m in net.modules() if type(m) is hb.OverTime)
