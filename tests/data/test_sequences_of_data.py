"""The data set MNIST-1D, which a package generates."""

import random

import numpy as np
import pytest
import torch

from hibana import data


@pytest.mark.slow
def test_mnist_1d_is_generated_by_its_package_and_leaves_random_states_unchanged():
    pytest.importorskip("mnist1d")
    sequences = data.MNIST1D()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    sequences.setup()
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    parts = sequences.training, sequences.validation, sequences.test
    assert [len(split) for split in parts] == [3600, 400, 1000]
    assert sequences.test.inputs.shape == (1000, 40, 1)
    joined = torch.cat([split.inputs for split in parts])
    assert joined.mean().abs() < 1e-4
    assert (joined.std() - 1).abs() < 1e-3
    assert torch.cat([split.labels for split in parts]).bincount().tolist() == [500] * 10
    shorter = data.MNIST1D(steps=20)
    shorter.setup()
    assert torch.equal(shorter.test.labels, sequences.test.labels)
    assert torch.equal(shorter.test.inputs[:, [0, -1]], sequences.test.inputs[:, [0, -1]])  # stretched
