"""``hb.Normalized``: equal to `nn.Sequential`, with the same names in its state dict."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(16), nn.BatchNorm2d(16, affine=False), hb.ThresholdBatchNorm2d(16, 0.5)],
    ids=["affine", "plain", "threshold"],
)
def test_it_equals_the_modules_one_after_the_other_and_folds(norm):
    each = hb.EachStep(nn.Sequential(hb.Conv2d(8, 16, 3, padding=1, bias=False), norm))
    ours, theirs = hb.Normalized(each, hb.IF()), nn.Sequential(copy.deepcopy(each), hb.IF())
    x = (torch.rand(4, 3, 8, 9, 9) < 0.3).float()
    assert torch.equal(ours(x), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(map(torch.equal, ours.buffers(), theirs.buffers()))
    ours.eval(), theirs.eval()
    assert torch.equal(ours(x), theirs(x))
    folded = hb.fold_batchnorm(ours)
    assert type(folded[0].module[1]) is nn.Identity
    assert torch.equal(folded(x), hb.fold_batchnorm(theirs)(x))


@pytest.mark.parametrize(
    ("each", "neurons", "message"),
    [
        (nn.BatchNorm2d(3), hb.IF(), "each must be an EachStep that ends in a batch .*, got BatchNorm2d"),
        (hb.EachStep(nn.Conv2d(3, 3, 1)), hb.IF(), "each must be an EachStep that ends in .*, got Conv2d"),
        (hb.EachStep(nn.BatchNorm2d(3)), nn.ReLU(), r"neurons must be a layer of a cell, as .*, got ReLU"),
    ],
)
def test_other_modules_are_refused(each, neurons, message):
    with pytest.raises(TypeError, match=message):
        hb.Normalized(each, neurons)
