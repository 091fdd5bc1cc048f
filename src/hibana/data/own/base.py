"""What all kinds of user data share: samples are read, split, scaled on the training part, and described.

A kind of data is a file next to this one: a subclass of :class:`Own` that reads a source into a :class:`Raw`,
and a subclass of :class:`Inputs`, which stores how values become network inputs. The :class:`Description` is
stored in the checkpoint, and suffices to read more data of the kind.
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
from hibana.data.own.samples import Raw, draw_parts
from hibana.data.own.target import Target

__all__ = ["KINDS", "MISSING", "Description", "Inputs", "Own", "described", "source_name"]
__all__ += ["without_removed"]

MISSING = ("median", "drop", "refuse")
"""Missing values are replaced by the training part's median, dropped with their samples, or refused."""
KINDS: dict[str, type["Own"]] = {}
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
        """More data of the kind that was trained on; labels may be missing.

        Raises:
            ValueError: if it can't be read, or has missing values that the training data must not have.
        """
        return KINDS[self.kind](source, description=self).read_checked(source)

    def said(self) -> dict[str, Any]:
        """The description in plain values."""
        return {"kind": self.kind, "inputs": plain.said(self.inputs), "target": plain.said(self.target)}


def described(plain_values: Any) -> Description:
    """The description whose :meth:`Description.said` is `plain_values`.

    Raises:
        ValueError: if there is none.
    """
    if (
        not isinstance(plain_values, dict)
        or set(plain_values) != {"kind", "inputs", "target"}
        or plain_values["kind"] not in KINDS
    ):
        raise ValueError("a description must have a kind, inputs and a target")
    inputs = plain.made(KINDS[plain_values["kind"]].inputs, without_removed(plain_values["inputs"]))
    outputs = plain.made(Target, plain_values["target"])
    if len(outputs.counts) != len(outputs.classes) or not all(0 < side < 1 << 24 for side in inputs.shape):
        raise ValueError("a description must have a count for each class, and a shape")
    return Description(plain_values["kind"], inputs, outputs)


def without_removed(options: dict[str, Any]) -> dict[str, Any]:
    """`options` without those of earlier versions that change nothing."""
    return {name: value for name, value in options.items() if value not in REMOVED.get(name, ())}


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
        self.description = description
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
        described = None if self.description is None else self.description.inputs
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
        target.learned_from(
            raw.label, raw.labels, range(len(raw.labels)), task
        )  # refuse before drawing parts
        parts = raw.parts or draw_parts(
            raw.labels, self.seed, stratified=task == "classification", tested=self.test_source is None
        )
        if self.description is None:
            outputs = target.learned_from(raw.label, raw.labels, parts[0], task)
            self.description = Description(self.kind, self.learn(raw, parts[0]), outputs)
        samples = self._samples(raw)
        self.summary = f"{raw.describe(self.called)}, {self.description.target}"
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
        assert self.description is not None
        assert raw.labels is not None
        inputs, labels = self.description.inputs, self.description.target.encoded(raw.labels)
        return InMemory(inputs.tensor(raw.values), labels, inputs.own_steps(raw.values))

    @property
    def called(self) -> str:
        """The name of the source in sentences."""
        return source_name(self.source, type(self).__name__)

    @property
    def trained(self) -> Description:
        """The description of the data; reads them if that was not done yet."""
        if self.description is None:
            self.setup()
        assert self.description is not None
        return self.description

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # depends on the data
        """Of one step of one input."""
        return self.trained.inputs.shape

    @property
    def classes(self) -> int:  # type: ignore[override] # as above
        """Number of the network's outputs."""
        return self.trained.target.outputs

    @property
    def names(self) -> tuple[str, ...]:
        return self.trained.target.classes

    @property
    def sequential(self) -> bool:  # type: ignore[override] # as above
        return self.trained.inputs.sequential


def source_name(source: Any, otherwise: str) -> str:
    """A file's name, or `otherwise` for data in memory."""
    return source.name if isinstance(source, Path) else otherwise


def _select(samples: InMemory, indices: Sequence[int]) -> InMemory:
    chosen = torch.tensor(indices, dtype=torch.int64, device="cpu")
    lengths = None if samples.lengths is None else samples.lengths[chosen]
    return InMemory(samples.inputs[chosen], samples.labels[chosen], lengths)
