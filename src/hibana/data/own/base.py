"""What all kinds of user data share: they are read, split, scaled on the training part, and described.

A kind of data is a file next to this one: a subclass of :class:`Own` that reads a file into :class:`Raw`, and
a subclass of :class:`Inputs`, which stores in plain values how the file's contents become network inputs. The
description (:class:`Description`) is stored in the checkpoint, and suffices to read more data of the kind.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.data.base import DataSet, InMemory, Samples
from hibana.data.own import plain, target
from hibana.data.own.folders import readable
from hibana.data.own.opening import check_encoding
from hibana.data.own.parts import Parts, drawn
from hibana.data.own.target import Target, text_of

__all__ = ["MISSING", "Description", "Inputs", "Own", "Raw", "called", "listed"]

MISSING = ("median", "drop", "refuse")
"""Missing values are replaced by the training part's median, dropped with their samples, or refused."""


@dataclass
class Raw:
    """What was read from a file: `values` as the kind stores them, and the label and name of each sample.

    `labels` are texts, or ``None`` if there are none; `label` is their name. `parts` is ``None`` unless the
    file gives a split. `how` are notes on how the text was parsed.
    """

    values: Any
    labels: list[str] | None
    names: list[str]
    summary: str = ""
    parts: Parts | None = None
    label: str = "class"
    how: Sequence[str] = ()

    def said(self, name: str) -> str:
        """The line about the file called `name`: how it was parsed, and its summary."""
        return f"{name}: {', '.join([*self.how, *([self.summary] if self.summary else [])])}"

    def only(self, kept: Sequence[int]) -> "Raw":
        """The samples `kept`, for `values` in a list; a given split is dropped."""
        labels = None if self.labels is None else [self.labels[index] for index in kept]
        values, names = ([each[index] for index in kept] for each in (self.values, self.names))
        return Raw(values, labels, names, self.summary, None, self.label, self.how)


class Inputs(ABC):
    """How the contents of a file become network inputs, in plain values: a frozen dataclass."""

    sequential: ClassVar[bool] = False
    shape: tuple[int, ...]

    @abstractmethod
    def read(self, source: Any, label: str | None = None) -> Raw:
        """More data of the kind; labels, which are called `label`, may be missing."""

    @abstractmethod
    def tensor(self, values: Any) -> Tensor:
        """The inputs, ``[N, *shape]`` or ``[N, T, *shape]``."""

    def own_steps(self, values: Any) -> Tensor | None:
        """The length of each sequence, ``[N]``, if the steps after its end do not count."""
        return None

    @abstractmethod
    def unlike(self, values: Any) -> str:
        """How `values` differ from the training data, as a clause; empty if they do not.

        Raises:
            ValueError: if they have another shape.
        """


@dataclass(frozen=True)
class Description:
    """All that is needed to read more data of a kind, and to name the network's outputs."""

    kind: str
    inputs: Inputs
    target: Target

    def read(self, source: Any) -> Raw:
        """More data of the kind that was trained on; labels may be missing."""
        with readable(source):
            return self.inputs.read(source, self.target.name)

    def said(self) -> dict[str, Any]:
        """The description in plain values."""
        return {"kind": self.kind, "inputs": plain.said(self.inputs), "target": plain.said(self.target)}


class Own(DataSet):
    """Data in files or memory of the user.

    Args:
        source: a file or folder, or data in memory as the kind takes them.
        label: the name of the column or array to learn, if there are several.
        task: ``classification`` or ``regression``; inferred from the labels if ``None``.
        test: samples to test with, as `source`; a fifth of `source` if ``None``.
        missing: how missing values are handled, one of :data:`MISSING`.
        encoding: of text files, such as ``cp932``; detected if ``None``.
        unit: scale to [0, 1] instead of mean 0 and deviation 1, for codings into spikes.
        steps: length in time, if there is a time axis.
        batch_size: samples in a batch, over all processes together.
        seed: of the random split, and of the order of the training samples.
        description: of the data that were trained on, to read them the same way.

    Raises:
        ValueError: on :meth:`setup`, if the data can't be read.
    """

    kind: ClassVar[str]
    trained: Description

    def __init__(
        self,
        source: Any,
        *,
        label: str | None = None,
        task: str | None = None,
        test: Any = None,
        missing: str = "median",
        encoding: str | None = None,
        unit: bool = False,
        steps: int = 64,
        batch_size: int = 64,
        seed: int = 0,
        workers: int = 0,
        description: Description | None = None,
    ) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        if task is not None and task not in target.TASKS:
            raise ValueError(f"task must be one of {', '.join(target.TASKS)}; got {task!r}")
        if missing not in MISSING:
            raise ValueError(f"missing must be one of {', '.join(MISSING)}; got {missing!r}")
        self.source = Path(source).expanduser() if isinstance(source, str | Path) else source
        self.given_test = Path(test).expanduser() if isinstance(test, str | Path) else test
        self.encoding = None if encoding is None else check_encoding(encoding)
        self.label, self.task, self.missing, self.unit, self.steps = label, task, missing, unit, steps
        self.description = description
        self.summary = ""

    @abstractmethod
    def read(self, source: Any) -> Raw:
        """The contents of `source`."""

    @abstractmethod
    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        """How `raw` becomes inputs, with scales computed on the training part."""

    def splits(self) -> tuple[Samples, Samples, Samples]:
        with readable(self.source):
            raw = self.read(self.source)
        if raw.labels is None:
            raise ValueError(f"{self.called} must have labels to learn from; {raw.summary or 'it has none'}")
        guessed = target.learned_from(raw.label, raw.labels, range(len(raw.labels)), self.task)
        split = raw.parts or drawn(
            raw.labels, self.seed, stratified=bool(guessed.classes), tested=self.given_test is None
        )
        if self.description is None:
            learned = target.learned_from(raw.label, raw.labels, split[0], self.task)
            self.description = Description(self.kind, self.learn(raw, split[0]), learned)
        self.trained = self.description
        made = self._samples(raw)
        self.summary = f"{raw.said(self.called)}, {self.trained.target}"
        if self.given_test is None:
            return _part(made, split[0]), _part(made, split[1]), _part(made, split[2])
        with readable(self.given_test):
            held = self.read(self.given_test)  # as the training part was described
        self.summary += f"\n{held.said(called(self.given_test, 'test'))}"
        return _part(made, split[0]), _part(made, split[1]), self._samples(held)

    def _samples(self, raw: Raw) -> InMemory:
        if raw.labels is None:
            raise ValueError(f"{self.called}: samples to test with must have labels")
        known = self.trained.inputs
        labels = self.trained.target.encoded(raw.labels)
        return InMemory(known.tensor(raw.values), labels, known.own_steps(raw.values))

    @property
    def called(self) -> str:
        """What to call the source in a sentence."""
        return called(self.source, type(self).__name__)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # known once it is read
        """Of one step of one input."""
        return self._known.inputs.shape

    @property
    def classes(self) -> int:  # type: ignore[override] # as above
        """Numbers that a network is to put out."""
        return self._known.target.outputs

    @property
    def names(self) -> tuple[str, ...]:
        return self._known.target.classes

    @property
    def sequential(self) -> bool:  # type: ignore[override] # as above
        return self._known.inputs.sequential

    @property
    def _known(self) -> Description:
        if self.description is None:
            self.setup()
        assert self.description is not None
        return self.description


def called(source: Any, otherwise: str) -> str:
    """A file's name, or `otherwise` of what is in memory."""
    return source.name if isinstance(source, Path) else otherwise


def _part(samples: InMemory, indices: Sequence[int]) -> InMemory:
    chosen = torch.tensor(indices, dtype=torch.int64, device="cpu")
    lengths = None if samples.lengths is None else samples.lengths[chosen]
    return InMemory(samples.inputs[chosen], samples.labels[chosen], lengths)


def listed(labels: Sequence[object] | None) -> list[str] | None:
    """Labels as they are written."""
    return None if labels is None else [text_of(label) for label in labels]
