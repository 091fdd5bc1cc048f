"""Hints at layers of ``torch.nn`` that ``hb.optimize`` would change: a warning, an error's note, a table."""

import re
import warnings

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler import checks, torch_layers


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
    net = nn.Sequential(nn.Conv2d(1, 8, 3), hb.IF())
    with pytest.warns(hb.NetworkWarning, match=r"axis 1 is channels.*hb\.optimize\(net, x\)"):
        net(X[0])


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
