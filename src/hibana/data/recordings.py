"""Recordings of event cameras and event cochleas, through tonic, as spikes in time bins."""

from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from hibana.data.base import DataSet, Samples, check_steps
from hibana.runtime.extras import explain_import_error

__all__ = ["NMNIST", "SHD", "SSC", "DVSGesture"]


class _Recordings(DataSet):
    """Recordings on disk, read one at a time as spikes ``[steps, *shape]``.

    Time from the start of a recording to `duration` is cut into `steps` bins of equal width; a bin is 1 if it
    has at least one event. Later events are ignored.

    Args:
        batch_size: samples in a batch, over all processes together.
        root: the folder that contains the unpacked folder of the data set.
        steps: length in time, in bins, at least 1.
        download: download the archives into `root` through tonic if they are not there.
        workers: processes that read.

    Raises:
        FileNotFoundError: on :meth:`setup`, if there are no recordings and `download` is off.
    """

    sequential = True
    usual_steps = 25
    unit = True
    duration: ClassVar[int]
    """What is used of a recording, in microseconds."""
    suffix: ClassVar[str]
    """What the names of its files end in."""
    parts: ClassVar[tuple[dict[str, Any], ...]] = ({"train": True}, {"train": False})
    """The official training and test set, as tonic is asked for them."""

    def __init__(
        self,
        batch_size: int = 64,
        *,
        root: str | Path = "hibana-data",
        steps: int = 25,
        download: bool = False,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        self.root, self.steps = Path(root).expanduser(), check_steps(steps, 1)
        self.download = download

    def prepare_data(self) -> None:
        """Downloads, if that was asked for and is needed, and unpacks; once on each machine."""
        for part in self.parts:
            self._open(part)

    def splits(self) -> tuple[Samples, Samples, Samples]:
        training, *others = map(self._open, self.parts)
        if len(others) == 2:
            return _Binned(training, self), _Binned(others[0], self), _Binned(others[1], self)
        held_out = self.held_out(training)
        kept = sorted(set(range(len(training))) - set(held_out))
        binned = _Binned(training, self)
        return Subset(binned, kept), Subset(binned, held_out), _Binned(others[0], self)

    def held_out(self, official: Any) -> list[int]:
        """The indices into the official training set that validate: every tenth."""
        return list(range(9, len(official), 10))

    def _open(self, part: dict[str, Any]) -> Any:
        """Tonic's own reader of one of the official parts."""
        kind = type(self).__name__
        with explain_import_error(f"hibana.data.{kind}"):
            import tonic

        asked, suffix = self.download, self.suffix

        def present(reader: Any) -> bool:
            folder = Path(reader.location_on_system, reader.folder_name)
            file = getattr(reader, "data_filename", None)
            if isinstance(file, str):
                return Path(folder, file).is_file()
            return next(folder.rglob(f"*{suffix}"), None) is not None

        def fetch(reader: Any) -> None:
            place = Path(reader.location_on_system)
            if not asked:
                raise FileNotFoundError(
                    f"root must hold the unpacked files of {kind}, {place} holds none; give the folder that "
                    f"holds {place.name}, or ask for the download"
                )
            base.download(reader)

        base = getattr(tonic.datasets, kind)
        local = type(kind, (base,), {"_check_exists": present, "download": fetch})
        reader = local(str(self.root), **part)
        by_name = sorted(range(len(reader.data)), key=reader.data.__getitem__)
        for each in ("data", "targets", "users", "lighting"):
            if getattr(reader, each, None):
                setattr(reader, each, [getattr(reader, each)[index] for index in by_name])
        return reader


@final
class NMNIST(_Recordings):
    """N-MNIST: MNIST's digits seen by an event camera in three saccades, 34x34 pixels, on and off.

    The test set is the official one; validation is every tenth recording of the official training set, in
    order of class and name.

    Source: Orchard, Jayawant, Cohen & Thakor (2015), *Converting static image datasets to spiking
    neuromorphic datasets using saccades*.
    """

    shape = (2, 34, 34)
    classes = 10
    duration = 300_000
    suffix = ".bin"


@final
class SHD(_Recordings):
    """Spiking Heidelberg Digits: digits spoken in German and English, through a model of the cochlea.

    700 channels, 20 classes, the first second of each recording. The test set is the official one;
    validation is every tenth recording of the official training set, in the order of its file. The official
    set has no validation part, and most published accuracies, those of 95% among them, are of the epoch that
    was best on the test set; here nothing is chosen on it.

    Source: Cramer, Stradmann, Schemmel & Zenke (2022), *The Heidelberg spiking data sets for the systematic
    evaluation of spiking neural networks*.
    """

    shape = (700,)
    classes = 20
    usual_steps = 100
    duration = 1_000_000
    suffix = ".h5"


@final
class SSC(_Recordings):
    """Spiking Speech Commands: 35 words through a model of the cochlea, in the three official parts.

    700 channels, 35 classes, the first second of each recording.

    Source: Cramer, Stradmann, Schemmel & Zenke (2022), *The Heidelberg spiking data sets for the systematic
    evaluation of spiking neural networks*, of Warden (2018), *Speech commands*.
    """

    shape = (700,)
    classes = 35
    usual_steps = 100
    duration = 1_000_000
    suffix = ".h5"
    parts = ({"split": "train"}, {"split": "valid"}, {"split": "test"})


@final
class DVSGesture(_Recordings):
    """IBM's gestures of hands and arms seen by an event camera, 128x128 pixels, on and off, 11 classes.

    The first 1.5 seconds of each recording. The test set is the official one, other people's gestures;
    validation is those of users 21 to 23 of the official training set.

    Source: Amir et al. (2017), *A low power, fully event-based gesture recognition system*.
    """

    shape = (2, 128, 128)
    classes = 11
    duration = 1_500_000
    suffix = ".npy"

    def held_out(self, official: Any) -> list[int]:
        return [index for index, user in enumerate(official.users) if user >= 21]


class _Binned(Dataset[tuple[Tensor, ...]]):
    """A reader's recordings as ``(spikes [steps, *shape], label)``, read on access."""

    def __init__(self, reader: Any, data: _Recordings) -> None:
        import tonic

        width = data.duration // data.steps
        self.reader, self.shape = reader, (data.steps, *data.shape)
        self.frames = tonic.transforms.ToFrame(
            reader.sensor_size, time_window=width, start_time=0, end_time=width * data.steps
        )

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        events, label = self.reader[index]
        spikes = torch.from_numpy(self.frames(events)) > 0
        return spikes.float().reshape(self.shape), torch.tensor(int(label), dtype=torch.int64, device="cpu")
