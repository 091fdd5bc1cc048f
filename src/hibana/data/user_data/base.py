"""Base classes of the user's data: :class:`UserData`, :class:`Inputs` and :class:`Description`.

Each kind of data has a file next to this one. It contains a subclass of :class:`UserData`, which reads a
source into a :class:`Raw`, and a subclass of :class:`Inputs`, which converts values to network inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.data.base import DataSet, InMemory, Samples
from hibana.data.user_data import plain_values, target
from hibana.data.user_data.folders import readable
from hibana.data.user_data.samples import Raw, draw_parts
from hibana.data.user_data.table_files import check_encoding
from hibana.data.user_data.target import Target

__all__ = ["KINDS", "MISSING", "Description", "Inputs", "UserData", "description_from_plain", "source_name"]
__all__ += ["without_removed_options"]

MISSING = ("median", "drop", "refuse")
"""Missing values are replaced by the training part's median, dropped with their samples, or refused."""
KINDS: dict[str, type["UserData"]] = {}
"""The classes of user data by kind; each registers itself."""

REMOVED: dict[str, tuple[Any, ...]] = {"dates": ("refuse", "drop"), "denoise": (0.0,), "split_by": ("time",)}
REMOVED |= {"rule": (None,), "least_rate": (0.01,), "silence_penalty": (0.0,)}  # options of the training
"""Options of earlier versions, and the values with which what they wrote is still read."""


class Inputs(ABC):
    """How values become network inputs: a frozen dataclass of plain values, stored in the checkpoint."""

    sequential: ClassVar[bool] = False
    shape: tuple[int, ...]

    @abstractmethod
    def tensor(self, values: Any) -> Tensor:
        """The inputs, ``[N, *shape]`` or ``[N, T, *shape]``."""

    def step_counts(self, values: Any) -> Tensor | None:
        """The length of each sequence, ``[N]``, if the steps after its end do not count."""
        return None

    @abstractmethod
    def difference_from_training(self, values: Any) -> str:
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
        """More data of the kind that was trained on; labels may be missing.

        Raises:
            ValueError: if it can't be read, or has missing values that the training data must not have.
        """
        return KINDS[self.kind](source, description=self).read_checked(source)

    def to_plain(self) -> dict[str, Any]:
        """The description in plain values."""
        return {
            "kind": self.kind,
            "inputs": plain_values.to_plain(self.inputs),
            "target": plain_values.to_plain(self.target),
        }


def description_from_plain(plain: Any) -> Description:
    """The description whose :meth:`Description.to_plain` is `plain`.

    Raises:
        ValueError: if there is none.
    """
    if (
        not isinstance(plain, dict)
        or set(plain) != {"kind", "inputs", "target"}
        or plain["kind"] not in KINDS
    ):
        raise ValueError("a description must have a kind, inputs and a target")
    inputs = plain_values.from_plain(KINDS[plain["kind"]].inputs, without_removed_options(plain["inputs"]))
    outputs = plain_values.from_plain(Target, plain["target"])
    if len(outputs.counts) != len(outputs.classes) or not all(0 < side < 1 << 24 for side in inputs.shape):
        raise ValueError("a description must have a count for each class, and a shape")
    return Description(plain["kind"], inputs, outputs)


def without_removed_options(options: dict[str, Any]) -> dict[str, Any]:
    """`options` without those of earlier versions that change nothing."""
    return {name: value for name, value in options.items() if value not in REMOVED.get(name, ())}


class UserData(DataSet):
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
        description: of the data that were trained on, to read `source` the same way.

    Raises:
        ValueError: on :meth:`setup`, if the data can't be read.
    """

    kind: ClassVar[str]
    inputs: ClassVar[type[Inputs]]

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
        for name, value, words in (("task", task, target.TASKS), ("missing", missing, MISSING)):
            if value is not None and value not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}; got {value!r}")
        self.source = Path(source).expanduser() if isinstance(source, str | Path) else source
        self.test_source = Path(test).expanduser() if isinstance(test, str | Path) else test
        self.encoding = None if encoding is None else check_encoding(encoding)
        self.label, self.task, self.missing, self.unit, self.steps = label, task, missing, unit, steps
        self._description = description
        self.summary = ""

    def __init_subclass__(cls) -> None:
        KINDS[cls.kind] = cls

    @abstractmethod
    def read(self, source: Any) -> Raw:
        """The contents of `source`, read with the options of the description if there is one."""

    @abstractmethod
    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        """How `raw` becomes inputs, with scales computed on the training part."""

    def option(self, name: str) -> Any:
        """An option of reading: that of the training data if there is a description which stores it."""
        described = None if self._description is None else self._description.inputs
        return getattr(described if hasattr(described, name) else self, name)

    def read_checked(self, source: Any) -> Raw:
        """As :meth:`read`; missing values are refused if `missing` says so.

        Raises:
            ValueError: if the data can't be read, or have missing values that are refused.
        """
        with readable(source):
            raw = self.read(source)
        incomplete = [index for index, feature in enumerate(raw.gaps) if feature]
        if incomplete and self.option("missing") == "refuse":
            name, feature = raw.names[incomplete[0]], raw.gaps[incomplete[0]]
            raise ValueError(
                f"{self.kind} must have no missing values, {name} has one in {feature!r}; --missing median "
                f"fills them, --missing drop leaves out their samples"
            )
        return raw

    def splits(self) -> tuple[Samples, Samples, Samples]:
        raw = self._usable(self.source, self.called)
        assert raw.labels is not None
        task = self.task or target.guess_task(raw.labels)
        target.fit_target(raw.label, raw.labels, range(len(raw.labels)), task)  # refuse before drawing parts
        parts = raw.parts or draw_parts(
            raw.labels, self.seed, stratified=task == "classification", tested=self.test_source is None
        )
        if self._description is None:
            outputs = target.fit_target(raw.label, raw.labels, parts[0], task)
            self._description = Description(self.kind, self.learn(raw, parts[0]), outputs)
        samples = self._samples(raw)
        self.summary = f"{raw.describe(self.called)}, {self._description.target}"
        training, validation, test = (_select(samples, part) for part in parts)
        if self.test_source is not None:
            name = source_name(self.test_source, "test")
            raw = self._usable(self.test_source, name)
            test = self._samples(raw)
            self.summary += f"\n{raw.describe(name)}"
        return training, validation, test

    def _usable(self, source: Any, name: str) -> Raw:
        return self.read_checked(source).usable(name, drop_gaps=self.option("missing") == "drop")

    def _samples(self, raw: Raw) -> InMemory:
        assert self._description is not None
        assert raw.labels is not None
        inputs, labels = self._description.inputs, self._description.target.encoded(raw.labels)
        return InMemory(inputs.tensor(raw.values), labels, inputs.step_counts(raw.values))

    @property
    def called(self) -> str:
        """The name of the source in sentences."""
        return source_name(self.source, type(self).__name__)

    @property
    def description(self) -> Description:
        """The description of the data; reads them if that was not done yet."""
        if self._description is None:
            self.setup()
        assert self._description is not None
        return self._description

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # depends on the data
        """Of one step of one input."""
        return self.description.inputs.shape

    @property
    def classes(self) -> int:  # type: ignore[override] # as above
        """Number of the network's outputs."""
        return self.description.target.outputs

    @property
    def names(self) -> tuple[str, ...]:
        return self.description.target.classes

    @property
    def sequential(self) -> bool:  # type: ignore[override] # as above
        return self.description.inputs.sequential


def source_name(source: Any, otherwise: str) -> str:
    """A file's name, or `otherwise` for data in memory."""
    return source.name if isinstance(source, Path) else otherwise


def _select(samples: InMemory, indices: Sequence[int]) -> InMemory:
    chosen = torch.tensor(indices, dtype=torch.int64, device="cpu")
    lengths = None if samples.lengths is None else samples.lengths[chosen]
    return InMemory(samples.inputs[chosen], samples.labels[chosen], lengths)
