"""Speech Commands: one second of sound each, as mel bands over time."""

from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from hibana.data.base import DataSet, Samples, check_steps
from hibana.data.own.sound import BANDS, HIGHEST, HOP, RANGE, WINDOW, read_levels

__all__ = ["SpeechCommands"]

FRAMES = round((1 - WINDOW) / HOP) + 1
"""Frames in a second."""


@final
class SpeechCommands(DataSet):
    """Speech Commands: 35 spoken words, as 40 bands of frequency (log mel) over `steps` steps.

    Validation and test are the lists ``validation_list.txt`` and ``testing_list.txt`` that come with the
    recordings, training is the rest. A recording is a second long, shorter ones end in silence; its levels
    are those of :class:`hibana.data.Sound`, stretched to `steps` and standardized.

    Args:
        batch_size: samples in a batch, over all processes together.
        root: the folder that holds the folders of the words and the two lists.
        steps: length in time, at least 2.
        workers: processes that read.

    Raises:
        FileNotFoundError: on :meth:`setup`, if there are no lists or no recordings.
        ValueError: when a recording is read that is damaged.

    Source: Warden (2018), *Speech commands: a dataset for limited-vocabulary speech recognition*.
    """

    shape = (BANDS,)
    classes = 35
    sequential = True

    def __init__(
        self, batch_size: int = 64, *, root: str | Path, steps: int = 100, seed: int = 0, workers: int = 0
    ) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        self.root, self.steps = Path(root).expanduser(), check_steps(steps, 2)

    def splits(self) -> tuple[Samples, Samples, Samples]:
        lists = [self.root / f"{name}_list.txt" for name in ("validation", "testing")]
        words = sorted(path.name for path in self.root.glob("[!_.]*") if path.is_dir())
        if not all(path.is_file() for path in lists) or len(words) != self.classes:
            raise FileNotFoundError(
                f"root must hold validation_list.txt, testing_list.txt and the folders of {self.classes} "
                f"words of Speech Commands, version 2; {self.root} holds {len(words)} folders"
            )
        validation, test = (path.read_text(encoding="utf-8").split() for path in lists)
        held = {*validation, *test}
        names = sorted(path.relative_to(self.root).as_posix() for path in self.root.glob("[!_.]*/*.wav"))
        training = [name for name in names if name not in held]
        parts = (_Recordings(self.root, part, words, self.steps) for part in (training, validation, test))
        return next(parts), next(parts), next(parts)


class _Recordings(Dataset[tuple[Tensor, ...]]):
    """``(bands [steps, 40], label)`` by index, computed on access."""

    def __init__(self, root: Path, names: list[str], words: list[str], steps: int) -> None:
        self.root, self.names, self.words, self.steps = root, names, words, steps

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.names[index]
        levels = torch.from_numpy(read_levels(self.root / name, HIGHEST)[:FRAMES]).float()
        levels = functional.pad(levels, (0, 0, 0, FRAMES - len(levels)), value=-RANGE).T[None]
        bands = functional.interpolate(levels, size=self.steps, mode="linear", align_corners=True)[0].T
        label = torch.tensor(self.words.index(name.partition("/")[0]), dtype=torch.int64, device="cpu")
        return (bands - bands.mean()) / bands.std().clamp(min=1e-3), label
