"""Layers of ``torch.nn`` that ``hb.optimize`` would change: notes on errors, and ``hb.explain``."""

import re

import pytest
import torch
from torch import nn

import hibana as hb

X = torch.rand(4, 2, 1, 6, 6)


def network():
    return nn.Sequential(hb.EachStep(nn.Conv2d(1, 8, 3, padding=1)), hb.EachStep(nn.BatchNorm2d(8)), hb.IF())


def test_an_error_of_torch_names_the_layer_and_the_fix():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), hb.IF(), nn.MaxPool2d(2))
    for call in (hb.run, hb.explain):
        with pytest.raises(RuntimeError, match="to conv2d") as raised:
            call(net, X)
        (note,) = raised.value.__notes__
        assert "layer '0' (Conv2d) was given [T, batch, ...], shape [4, 2, 1, 6, 6]" in note
        assert "wrap it in hibana.EachStep(Conv2d(...)), or call hibana.optimize(net, x)" in note
    with pytest.raises(ValueError, match=r"hb\.EachStep\(Conv2d.*hb\.optimize\(net, x\)"):
        hb.check(net, X)
    hb.optimize(net, X, verbose=False)
    assert hb.run(net, X)[0].shape == (4, 2, 8, 2, 2)


def test_explain_prints_each_layers_share_of_the_time():
    net = network()
    _, header, *rows = hb.explain(net, X).splitlines()
    assert "time" in header.split()
    shares = [int(re.search(r"% -> +\d+% +(\d+)%", row)[1]) for row in rows[:3]]
    assert abs(sum(shares) - 100) <= 2
