"""Hints at layers of ``torch.nn`` that ``hb.optimize`` would change: a warning, an error's note, a table."""

import copy
import importlib
import itertools
import re
import warnings

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler import checks, torch_layers

explain = importlib.import_module("hibana.compiler.explain")  # whose name the function has taken


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(checks, "_SAID", set())
    monkeypatch.setattr(torch_layers, "MANY", 4 * 2 * 8 * 36)


X = torch.rand(4, 2, 1, 6, 6)


def network():
    return nn.Sequential(hb.EachStep(nn.Conv2d(1, 8, 3, padding=1)), hb.EachStep(nn.BatchNorm2d(8)), hb.IF())


def silent(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error", hb.SlowPathWarning)
        return call()


def test_the_first_slow_call_says_so_once():
    said = (
        r"layer '2' \(IF\) takes 2,304 numbers.*beside 1\.module \(BatchNorm2d\).*hibana\.optimize\(net, x\)"
    )
    net = network()
    with pytest.warns(hb.SlowPathWarning, match=said) as found:
        net(X)
    assert len(found) == 1
    silent(lambda: net(X))
    silent(lambda: network()(X))


def test_layers_per_spike_are_named_where_they_may_take_spikes():
    net = nn.Sequential(nn.Linear(36, 64), hb.IF(), nn.Linear(64, 64), hb.IF(), nn.Linear(64, 10), hb.LI())
    with pytest.warns(hb.SlowPathWarning, match=r"beside 2 \(Linear\), 4 \(Linear\) of torch\.nn"):
        net(torch.rand(4, 9, 36))
    silent(lambda: nn.Sequential(nn.Linear(36, 64), hb.IF())(torch.rand(4, 9, 36)))


def test_nothing_is_said_where_nothing_is_gained():
    def without_gradient():
        with torch.no_grad():
            return network()(X)

    silent(without_gradient)
    silent(lambda: network()(X[:1].expand(2, 2, 1, 6, 6)))  # half the numbers
    optimised = network()
    hb.optimize(optimised, X, verbose=False)
    silent(lambda: optimised(X))
    below = hb.EachStep(nn.Sequential(hb.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)))
    silent(lambda: nn.Sequential(hb.Normalized(below, hb.IF()))(X))
    net = network()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    silent(lambda: torch.func.functional_call(net, parameters, (X,)))
    silent(lambda: torch.compile(network(), backend="eager")(X))
    with pytest.warns(hb.SlowPathWarning):
        network()(X)


def spiking_first(*layers):
    return nn.Sequential(hb.IF(), *layers)


REFUSED = {
    "encoder": (spiking_first(nn.Conv2d(1, 8, 3)), X, "'1' (Conv2d)"),
    "linear before": (nn.Sequential(nn.Linear(6, 6), hb.LIF(), nn.MaxPool2d(2)), X, "'2' (MaxPool2d)"),
    "normalisation": (spiking_first(nn.Dropout(), nn.BatchNorm2d(1)), X, "'2' (BatchNorm2d)"),
    "features": (nn.Sequential(nn.Linear(6, 8), hb.IF(), nn.BatchNorm1d(8)), X[0], "'2' (BatchNorm1d)"),
    "nested": (
        nn.Sequential(nn.Sequential(hb.IF()), nn.Sequential(nn.Conv2d(1, 2, 3))), X, "'1.0' (Conv2d)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("gradient", [True, False])
def test_a_bare_call_names_the_layer_behind_neurons_that_takes_no_time(name, gradient):
    net, x, layer = copy.deepcopy(REFUSED[name])
    x = x[:, 0] if name == "features" else x
    said = (
        rf"layer {re.escape(layer)} was given .* takes no time: wrap it in hibana\.EachStep.*hibana\.optimize"
    )
    with torch.set_grad_enabled(gradient):
        for _ in range(2):  # each time, not only at the first call of the neurons
            with pytest.raises(ValueError, match=said):
                net(x)
        of_images = next(module for module in net.modules() if type(module) in torch_layers.OF_IMAGES)
        with pytest.raises((RuntimeError, ValueError)):  # torch refuses too
            of_images(torch.rand(*x.shape[:-1], 8) if name == "features" else x)
        hb.optimize(net, verbose=False)
        if name != "features":
            net(x)


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.Conv1d(4, 2, 1), nn.Conv2d(4, 2, 1), nn.ConvTranspose2d(4, 2, 1)),
        *(nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.MaxPool2d(1), nn.AvgPool2d(1)),
        *(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(1)),
    ],
    ids=repr,
)
def test_only_what_torch_refuses_is_refused(layer):
    for sizes in itertools.product(*[(3, 4)] * 2):
        for more in range(4):
            shape = torch.Size((*sizes, *[4] * more))
            try:
                layer(torch.rand(shape))
            except (IndexError, RuntimeError, ValueError):
                continue
            assert torch_layers._fits(layer, shape), shape


def test_calls_that_torch_takes_are_left_alone():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.neurons, self.conv = hb.IF(), nn.Conv2d(1, 8, 3)

        def forward(self, x):
            return self.conv(self.neurons(x).flatten(0, 1))

    class Flat(hb.IF):
        def forward(self, x):
            return super().forward(x).flatten(0, 1)

    assert Joined()(X).shape == (8, 8, 4, 4)
    assert nn.Sequential(Flat(), nn.Conv2d(1, 8, 3))(X).shape == (8, 8, 4, 4)
    hooked = spiking_first(nn.Conv2d(1, 8, 3))
    hooked[0].register_forward_hook(lambda module, args, output: output.flatten(0, 1))
    assert hooked(X).shape == (8, 8, 4, 4)
    over_time = spiking_first(hb.EachStep(nn.Conv2d(1, 8, 3)))
    assert over_time(X).shape == (4, 2, 8, 4, 4)


def test_an_error_of_torchs_names_the_layer_and_the_way_out():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), hb.IF(), nn.MaxPool2d(2))
    for call in (hb.run, hb.explain):
        with pytest.raises(RuntimeError, match="to conv2d") as found:
            call(net, X)
        (note,) = found.value.__notes__
        assert "layer '0' (Conv2d) was given [T, batch, ...], shape [4, 2, 1, 6, 6]" in note
        assert "wrap it in hibana.EachStep(Conv2d(...)), or call hibana.optimize(net, x)" in note
    with pytest.raises(ValueError, match=r"hb\.EachStep\(Conv2d.*hb\.optimize\(net, x\)"):
        hb.check(net, X)
    hb.optimize(net, X, verbose=False)
    assert hb.run(net, X)[0].shape == (4, 2, 8, 2, 2)


def test_images_taken_for_time_name_the_way_out():
    said = r"axis 1 is channels.*the first of which is '0' \(Conv2d\),.*hb\.EachStep.*hb\.optimize\(net, x\)"
    for gradient in (True, False):
        net = nn.Sequential(nn.Conv2d(1, 8, 3), hb.IF())
        with pytest.warns(hb.NetworkWarning, match=said), torch.set_grad_enabled(gradient):
            net(X[0])


def test_a_resnet_of_images_without_time_names_the_way_out():
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18(num_classes=3).eval()
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.ReLU):
            net.set_submodule(name, hb.IF())
    said = r"layer 'relu' \(IF\).*a convolution.*the first of which is 'conv1' \(Conv2d\)"
    with torch.no_grad(), pytest.warns(hb.NetworkWarning, match=said):
        net(torch.rand(2, 3, 32, 32))


def test_explain_has_each_layers_share_of_the_time_and_what_is_faster():
    net = network()
    _, header, *rows = hb.explain(net, X).splitlines()
    assert "time" in header.split()
    shares = [int(re.search(r"% -> +\d+% +(\d+)%", row)[1]) for row in rows[:3]]
    assert abs(sum(shares) - 100) <= 2
    assert re.search(
        r"hb\.optimize\(net, x\) would change 1\.module \(BatchNorm2d\), \d+% of the time", rows[3]
    )
    hb.optimize(net, X, verbose=False)
    assert "would change" not in hb.explain(net, X)
