"""Recordings of event cameras and event cochleas, through tonic, as spikes in time bins."""

from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.utils.data import Subset

from hibana.data.base import DataSet, Samples
from hibana.runtime.extras import explain_import_error


class _Recordings(DataSet):
    """Recordings on disk, read one at a time as spikes ``[steps, *shape]``.

    The first `duration` microseconds of a recording are cut into `steps` bins of equal width. A bin is 1 if
    it has at least one event. Later events are ignored.

    Args:
        batch_size: samples per batch, summed over all processes.
        root: the folder that contains the unpacked folder of the data set.
        steps: number of bins, at least 1.
        download: download the archives to `root` through tonic if they are missing.
        workers: number of loading processes.

    Raises:
        FileNotFoundError: on :meth:`setup`, if there are no recordings and `download` is off.
    """

    sequential = True
    usual_steps = 25
    unit = True
    duration: ClassVar[int]
    """Microseconds of a recording that are used."""
    suffix: ClassVar[str]
    """Suffix of the files of the recordings."""
    parts: ClassVar[tuple[dict[str, Any], ...]] = ({"train": True}, {"train": False})
    """Arguments of the tonic class for each official part."""

    def __init__(
        self,
        batch_size: int = 64,
        *,
        root: str | Path = "hibana-data",
        steps: int = 25,
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        self.root, self.steps = Path(root).expanduser(), steps
        self.download = download

    def prepare_data(self) -> None:
        """Downloads and unpacks missing files if `download` is set; called once per machine."""
        for part in self.parts:
            self._open(part)

    def splits(self) -> tuple[Samples, Samples, Samples]:
        """The official parts in bins; without a validation part, it is drawn from the training part."""
        parts = [self._open(part) for part in self.parts]
        if len(parts) == 3:
            return parts[0], parts[1], parts[2]
        validation = self.validation_indices(parts[0])
        training = sorted(set(range(len(parts[0]))) - set(validation))
        return Subset(parts[0], training), Subset(parts[0], validation), parts[1]

    def validation_indices(self, training: Any) -> list[int]:
        """Indices of the validation samples in the official training set: every tenth."""
        return list(range(9, len(training), 10))

    def _open(self, part: dict[str, Any]) -> Any:
        """The tonic data set of one official part, sorted by file name, with recordings as binned spikes."""
        name, suffix, may_download = type(self).__name__, self.suffix, self.download
        with explain_import_error(f"hibana.data.{name}"):
            import tonic
        base: Any = getattr(tonic.datasets, name)
        width = self.duration // self.steps
        to_frames = tonic.transforms.ToFrame(
            base.sensor_size, time_window=width, start_time=0, end_time=width * self.steps
        )

        def to_spikes(events: Any) -> Tensor:
            """The spikes of one recording, ``[steps, *shape]``."""
            spikes = torch.from_numpy(to_frames(events)) > 0
            return spikes.float().reshape(self.steps, *self.shape)

        def to_label(label: Any) -> Tensor:
            """The class index of one recording."""
            return torch.tensor(int(label), dtype=torch.int64, device="cpu")

        class Local(base):  # type: ignore[misc]
            """The tonic class without checksums of the archives."""

            def _check_exists(self) -> bool:
                """Whether the folder contains the data file or, without such a file, any recording."""
                folder = Path(self.location_on_system, self.folder_name)
                file = getattr(self, "data_filename", None)
                if isinstance(file, str):
                    return Path(folder, file).is_file()
                return next(folder.rglob(f"*{suffix}"), None) is not None

            def download(self) -> None:
                """Downloads the recordings, or raises an error if downloads are off."""
                folder = Path(self.location_on_system)
                if not may_download:
                    raise FileNotFoundError(
                        f"root must hold the unpacked files of {name}, {folder} holds none; give the folder "
                        f"that holds {folder.name}, or ask for the download"
                    )
                super().download()

        Local.__name__ = name  # names the folder of the data set
        recordings = Local(str(self.root), transform=to_spikes, target_transform=to_label, **part)
        order = sorted(range(len(recordings.data)), key=recordings.data.__getitem__)
        for field in ("data", "targets", "users", "lighting"):
            if values := getattr(recordings, field, None):
                setattr(recordings, field, [values[index] for index in order])
        return recordings


@final
class NMNIST(_Recordings):
    """N-MNIST: MNIST's digits seen by an event camera in three saccades, 34x34 pixels, on and off.

    The test set is the official test set. Every tenth recording of the official training set, in the order of
    class and name, is in the validation set.

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

    700 channels, 20 classes, the first second of each recording. The test set is the official test set.
    Every tenth recording of the official training set, in the order of its file, is in the validation set.
    The official data have no validation part: most published accuracies, such as 95%, belong to the epoch
    with the best test accuracy. hibana selects nothing on the test set.

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

    The first 1.5 seconds of each recording. The test set is the official test set, with other people's
    gestures. Users 21 to 23 of the official training set are the validation set.

    Source: Amir et al. (2017), *A low power, fully event-based gesture recognition system*.
    """

    shape = (2, 128, 128)
    classes = 11
    duration = 1_500_000
    suffix = ".npy"

    def validation_indices(self, training: Any) -> list[int]:
        """Indices of the recordings of users 21 to 23."""
        return [index for index, user in enumerate(training.users) if user >= 21]
