"""Still images: scikit-learn's embedded digits, MNIST and Fashion-MNIST."""

import gzip
import zlib
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.base import DataSet, InMemory, Samples
from hibana.runtime.extras import explain_import_error

__all__ = ["MNIST", "Digits", "FashionMNIST"]

DEBIAN = Path("/usr/share/datasets")
"""Where Debian's ``dataset-fashion-mnist`` puts its files."""


@final
class Digits(DataSet):
    """Handwritten digits, 8x8 pixels in [0, 1], embedded in scikit-learn: nothing is downloaded.

    The test set is the last 360 of the 1,797 samples in the data set's own order, which other people
    wrote than the rest; validation is the 137 before them; training the first 1,300. Training images are
    shifted by at most one pixel each way.

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
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        inputs = torch.as_tensor(images, dtype=torch.float32, device="cpu").reshape(-1, *self.shape) / 16
        targets = torch.as_tensor(labels, dtype=torch.int64, device="cpu")
        parts = (slice(0, -497), slice(-497, -360), slice(-360, None))
        training, validation, test = (InMemory(inputs[part], targets[part]) for part in parts)
        return training, validation, test


class _IDX(DataSet):
    """28x28 grey pixels in [0, 1]; see :class:`FashionMNIST`."""

    shape = (28, 28)
    classes = 10
    unit = True
    folder: ClassVar[str]

    def __init__(
        self,
        batch_size: int = 64,
        *,
        root: str | Path | None = None,
        download: bool = False,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        if download and root is None:
            raise ValueError("root must name the folder to download to")
        self.root = None if root is None else Path(root).expanduser()
        self.download = download

    def prepare_data(self) -> None:
        """Downloads, if that was asked for and is needed; once on each machine."""
        if self.download and self._folder() is None:
            with explain_import_error("the download"):
                import torchvision

            getattr(torchvision.datasets, type(self).__name__)(self.root, download=True)

    def splits(self) -> tuple[Samples, Samples, Samples]:
        folder = self._folder()
        if folder is None:
            raise FileNotFoundError(
                f"root must hold {type(self).__name__}'s four idx files, such as "
                f"train-images-idx3-ubyte.gz; looked in {', '.join(map(str, self._places()))}. "
                f"Give their folder as root, or ask for the download"
            )
        images, labels = (_read(folder / f"train-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        test = InMemory(*(_read(folder / f"t10k-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")))
        return InMemory(images[:-5000], labels[:-5000]), InMemory(images[-5000:], labels[-5000:]), test

    def _places(self) -> list[Path]:
        if self.root is None:
            return [DEBIAN / self.folder]
        return [self.root, self.root / type(self).__name__ / "raw"]

    def _folder(self) -> Path | None:
        """The first place that holds the files, packed or not."""
        return next((place for place in self._places() if any(place.glob("train-images-idx3-ubyte*"))), None)


@final
class MNIST(_IDX):
    """Handwritten digits; the files and splits are those of :class:`FashionMNIST`.

    Source: LeCun, Bottou, Bengio & Haffner (1998), *Gradient-based learning applied to document
    recognition*.
    """

    folder = "mnist"


@final
class FashionMNIST(_IDX):
    """Pictures of clothes, 28x28 grey pixels in [0, 1], 60,000 to train and 10,000 to test.

    The test set is the official one; validation is the last 5,000 of the official training set in its own
    order; training the 55,000 before them. Training images are mirrored left to right, every second one.

    Args:
        batch_size: samples in a batch, over all processes together.
        root: a folder that holds the four idx files, packed (``.gz``) or not, or torchvision's layout of
            them; looked for in ``/usr/share/datasets`` if none is given.
        download: fetch them into `root` through torchvision if they are not there.

    Raises:
        FileNotFoundError: on :meth:`setup`, if there are no files and `download` is off.

    Source: Xiao, Rasul & Vollgraf (2017), *Fashion-MNIST: a novel image dataset for benchmarking machine
    learning algorithms*.
    """

    folder = "fashion-mnist"
    augmentation = "flip"


def _read(path: Path) -> Tensor:
    """One idx file, packed or not: images as bytes, labels as int64."""
    packed = path.with_name(f"{path.name}.gz")
    name = path if path.is_file() else packed
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
        sides = np.frombuffer(content, ">i4", content[3], offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(sides)).reshape(sides)
    except (EOFError, gzip.BadGzipFile, zlib.error, IndexError, ValueError) as error:
        raise ValueError(f"{name} is not a whole idx file: {error or type(error).__name__}") from error
    read = torch.from_numpy(values.copy())
    return read if read.ndim > 1 else read.long()
