"""Sequences at hand, recordings kept as bits, and samples of unequal length in batches."""

import gzip
import random

import numpy as np
import pytest
import torch

from hibana import data
from hibana.data.cached import AsBits


def test_mnist_1d_is_made_by_its_authors_package_from_its_seed():
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
    again = data.MNIST1D(steps=20)
    again.setup()
    assert torch.equal(again.test.labels, sequences.test.labels)
    assert torch.equal(again.test.inputs[:, [0, -1]], sequences.test.inputs[:, [0, -1]])  # stretched


def test_mnist_1d_without_its_package_gets_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mnist1d", None)
    with pytest.raises(ModuleNotFoundError, match="pip install mnist1d"):
        data.MNIST1D().setup()


@pytest.fixture
def clothes(tmp_path):
    """Fashion-MNIST's four files with 5,003 and 2 images."""
    made = {}
    for part, count in (("train", 5003), ("t10k", 2)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        made[part] = torch.from_numpy(images)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            with gzip.open(tmp_path / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + array.tobytes())
    return tmp_path, made


def test_fashion_mnist_row_by_row_and_pixel_by_pixel(clothes):
    root, images = clothes
    rows, pixels = data.FashionRows(root=root), data.load("fashion-mnist-pixels", root=root, steps=196)
    for sequences in (rows, pixels):
        sequences.setup()
        assert [len(sequences.training), len(sequences.validation), len(sequences.test)] == [3, 5000, 2]
    inputs, labels = rows.test.__getitems__([0, 1])
    torch.testing.assert_close(inputs, images["t10k"].float() / 255)
    assert labels.tolist() == [0, 1]
    inputs, _ = pixels.test.__getitems__([0, 1])
    assert inputs.shape == (2, 196, 1)
    corner = images["t10k"][1, 26:28, 26:28].float().mean() / 255
    torch.testing.assert_close(inputs[1, -1, 0], corner)
    with pytest.raises(ValueError, match="steps must be 28, one for each of them, got 14"):
        data.FashionRows(root=root, steps=14)


def test_bits_on_disk_are_the_spikes_and_are_read_once(tmp_path):
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    spikes = [((torch.rand(7, 2, 5) < 0.3).float(), torch.tensor(n)) for n in range(4)]
    samples = Counted(spikes)
    kept = AsBits(samples, (7, 2, 5), tmp_path, {"steps": 7})
    for _ in range(2):
        for (found, label), (wanted, n) in zip((kept[i] for i in range(4)), spikes, strict=True):
            assert torch.equal(found, wanted)
            assert label == n
    assert samples.reads == 4
    assert sum(file.stat().st_size for file in kept.folder.glob("0*")) == 4 * (8 + 9)
    (kept.folder / "0000002").write_bytes(b"cut short")
    assert torch.equal(kept[2][0], spikes[2][0])
    AsBits(samples, (7, 2, 5), tmp_path, {"steps": 8})[0]
    assert samples.reads == 6
