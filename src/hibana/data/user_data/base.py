"""Base classes of the user's data: :class:`UserData`, :class:`Inputs` and :class:`Description`.

Each kind of data has a file next to this one. It contains a subclass of :class:`UserData`, which reads a
source into :class:`RawSamples`, and a subclass of :class:`Inputs`, which converts values to network inputs.
"""

import json
import math
import types
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from hibana.data.base import DataSet, InMemory, Samples
from hibana.data.user_data.samples import RawSamples, draw_parts
from hibana.data.user_data.target import TASKS, Target, fit_target, guess_task

KINDS: dict[str, type["UserData"]] = {}
"""The subclasses of :class:`UserData` by kind."""

REMOVED: dict[str, tuple[Any, ...]] = {"dates": ("refuse", "drop"), "denoise": (0.0,), "split_by": ("time",)}
REMOVED |= {"columns": ("",), "event_columns": (None,), "missing": ("median",)}
REMOVED |= {"rule": (None,), "least_rate": (0.01,), "silence_penalty": (0.0,)}
"""Options of earlier versions, and the values with which their files are still read."""


class Inputs(ABC):
    """Conversion of values to network inputs: a frozen dataclass that is stored in the checkpoint."""

    sequential: ClassVar[bool] = False
    shape: tuple[int, ...]
    """Shape of one step of an input."""

    @abstractmethod
    def tensor(self, values: Any) -> Tensor:
        """The inputs, ``[N, *shape]`` or ``[N, T, *shape]``, for the values of N samples."""

    def step_counts(self, values: Any) -> Tensor | None:
        """Steps of each sequence that count, ``[N]``; ``None`` if all T steps count."""
        return None

    @abstractmethod
    def difference_from_training(self, values: Any) -> str:
        """A clause that describes how `values` differ from the training data; empty if they do not.

        Raises ValueError if they have another shape.
        """


@dataclass(frozen=True)
class Description:
    """What is needed to read more data of a kind, and to name the network's outputs."""

    kind: str
    inputs: Inputs
    target: Target

    def read(self, source: Any) -> RawSamples:
        """The samples in `source`, read like the training data; labels may be missing.

        Raises:
            OSError, ValueError: if `source` can't be read.
        """
        return KINDS[self.kind](source, description=self).read(source)

    def to_plain(self) -> dict[str, Any]:
        """The description as dictionaries, lists, texts and numbers."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def description_from_plain(plain: Any) -> Description:
    """The description whose :meth:`Description.to_plain` is `plain`.

    Raises ValueError if `plain` is not the plain form of a description.
    """
    is_complete = isinstance(plain, dict) and set(plain) == {"kind", "inputs", "target"}
    if not is_complete or plain["kind"] not in KINDS:
        raise ValueError("a description must have a kind, inputs and a target")
    kind = KINDS[plain["kind"]].inputs
    inputs: Inputs = _from_plain(kind, without_removed_options(plain["inputs"]), kind.__name__.lower())
    target: Target = _from_plain(Target, plain["target"], "target")
    if len(target.counts) != len(target.classes) or not all(0 < side < 1 << 24 for side in inputs.shape):
        raise ValueError("a description must have a count for each class, and a shape")
    return Description(plain["kind"], inputs, target)


def _from_plain(kind: Any, plain: Any, name: str) -> Any:
    """`plain`, made of dictionaries, lists, texts and numbers, as a value of type `kind`.

    Args:
        kind: a dataclass, ``tuple[X, ...]``, ``X | None``, ``str``, ``int``, ``float`` or ``bool``.
        plain: its plain value. Fields with a default may be missing.
        name: describes the value in messages.

    Raises:
        ValueError: naming the entry, if an entry is missing, unknown, or of another type.
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        is_required = {field.name: field.default is MISSING for field in fields(kind)}
        required = {key for key in is_required if is_required[key]}
        if not isinstance(plain, dict) or not required <= set(plain) <= set(is_required):
            raise ValueError(f"{name} must have the entries {', '.join(hints)}")
        return kind(**{key: _from_plain(hints[key], plain[key], f"{name}.{key}") for key in plain})  # type: ignore[operator]
    if get_origin(kind) in (Union, types.UnionType):
        return None if plain is None else _from_plain(get_args(kind)[0], plain, name)
    if get_origin(kind) is tuple:
        if not isinstance(plain, list):
            raise ValueError(f"{name} must be a list, got a {type(plain).__name__}")
        return tuple(_from_plain(get_args(kind)[0], item, name) for item in plain)
    if type(plain) is not kind or (kind is float and not math.isfinite(plain)):
        raise ValueError(f"{name} must be a finite {kind.__name__}, got a {type(plain).__name__}")
    return plain


def without_removed_options(options: dict[str, Any]) -> dict[str, Any]:
    """`options` without options of earlier versions whose value has no effect."""
    return {name: value for name, value in options.items() if value not in REMOVED.get(name, ())}


class UserData(DataSet):
    """Data in files or memory of the user.

    Args:
        source: a file or folder, or data in memory in the form that the subclass describes.
        label: name of the column or array to learn, if the source has several.
        task: ``classification`` or ``regression``; inferred from the labels if ``None``.
        test: the test samples, in a form that `source` may have; a fifth of `source` if ``None``.
        encoding: encoding of text files, such as ``cp932``; detected if ``None``.
        unit: scale to [0, 1] instead of mean 0 and deviation 1, for codings into spikes.
        steps: number of steps of each input, for data with a time axis.
        batch_size: samples per batch, summed over all processes.
        seed: seed of the random split, and of the order of the training samples.
        description: description of the training data, to read `source` in the same way.

    Raises:
        OSError, ValueError: on :meth:`setup`, if the data can't be read.
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
        encoding: str | None = None,
        unit: bool = False,
        steps: int = 64,
        batch_size: int = 64,
        seed: int = 0,
        workers: int = 0,
        description: Description | None = None,
    ) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        if task is not None and task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
        self.source = Path(source).expanduser() if isinstance(source, str | Path) else source
        self.test_source = Path(test).expanduser() if isinstance(test, str | Path) else test
        self.label, self.task, self.encoding = label, task, encoding
        self.unit, self.steps = unit, steps
        self._description = description
        self.summary = ""

    def __init_subclass__(cls) -> None:
        """Registers the subclass in ``KINDS`` under its `kind`."""
        KINDS[cls.kind] = cls

    @abstractmethod
    def read(self, source: Any) -> RawSamples:
        """The samples in `source`, read like the training data if the description is already set."""

    @abstractmethod
    def learn(self, raw: RawSamples, training: Sequence[int]) -> Inputs:
        """The conversion of `raw` to inputs; scales are fitted on the samples with the indices `training`."""

    def option(self, name: str) -> Any:
        """An option of reading: the training data's if their description stores it, else this object's."""
        inputs = None if self._description is None else self._description.inputs
        return getattr(inputs if hasattr(inputs, name) else self, name)

    def splits(self) -> tuple[Samples, Samples, Samples]:
        """Reads the source and the test source; also sets the description and the summary."""
        raw = self.read(self.source).labelled(self.source_name)
        assert raw.labels is not None
        task = self.task or guess_task(raw.labels)
        fit_target(raw.label, raw.labels, range(len(raw.labels)), task)  # raises before parts are drawn
        parts = raw.parts or draw_parts(
            raw.labels, self.seed, stratified=task == "classification", has_test=self.test_source is None
        )
        if self._description is None:
            target = fit_target(raw.label, raw.labels, parts[0], task)
            self._description = Description(self.kind, self.learn(raw, parts[0]), target)
        samples = self._in_memory(raw)
        tensors = [samples.inputs, samples.labels, *([] if samples.lengths is None else [samples.lengths])]
        training, validation, test = (InMemory(*(tensor[part] for tensor in tensors)) for part in parts)
        self.summary = f"{raw.describe(self.source_name)}, {self._description.target}"
        if self.test_source is not None:
            name = source_name(self.test_source, "test")
            raw = self.read(self.test_source).labelled(name)
            test = self._in_memory(raw)
            self.summary += f"\n{raw.describe(name)}"
        return training, validation, test

    def _in_memory(self, raw: RawSamples) -> InMemory:
        """Inputs and labels of `raw`."""
        assert raw.labels is not None
        inputs, labels = self.description.inputs, self.description.target.encoded(raw.labels)
        return InMemory(inputs.tensor(raw.values), labels, inputs.step_counts(raw.values))

    @property
    def source_name(self) -> str:
        """The name of the source in sentences."""
        return source_name(self.source, type(self).__name__)

    @property
    def description(self) -> Description:
        """The description of the data; the first access calls :meth:`setup`."""
        if self._description is None:
            self.setup()
        assert self._description is not None
        return self._description

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # depends on the data
        """Shape of one step of one input."""
        return self.description.inputs.shape

    @property
    def classes(self) -> int:  # type: ignore[override] # depends on the data
        """Number of the network's outputs."""
        return self.description.target.outputs

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes; empty for regression."""
        return self.description.target.classes

    @property
    def sequential(self) -> bool:  # type: ignore[override] # depends on the data
        """Whether inputs have a time axis, ``[T, *shape]``."""
        return self.description.inputs.sequential


def source_name(source: Any, default: str) -> str:
    """The name of the file `source`, or `default` for data in memory."""
    return source.name if isinstance(source, Path) else default
