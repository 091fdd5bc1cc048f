"""Options of a training run, each defined once with its check, and the YAML file that they are written to."""

import difflib
import math
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, NamedTuple, Self

from hibana import cells
from hibana.cells import peer_aliases, surrogate
from hibana.data import DATA_SETS, DataSet, Description, UserData, user_data
from hibana.nn import loss
from hibana.runtime import files
from hibana.train import architecture, settings_file
from hibana.train.recipes import LEAST_JUDGES, defaults, rocket

__all__ = ["CELLS", "CHOICES", "IN_MEMORY", "OF_FILES", "UNIT", "Settings", "read"]

CELLS: dict[str, Callable[..., cells.Cell]] = {
    name: getattr(cells, f"{name}Cell")
    for name in ("IF", "LIF", "PLIF", "CubaLIF", "ALIF", "AdLIF", "RefractoryLIF")
}
"""Spiking cells with a threshold, a surrogate and a reset."""
CODINGS = ("constant", "poisson", "latency", "population", "delta", "none")
"""The first four are for still inputs, the others for sequences."""
UNIT = ("poisson", "latency", "population")
"""Codings of values in [0, 1]."""
IN_MEMORY = "in memory"
"""Value of `data` for samples that no file holds."""
_CLASS = re.compile(r"[A-Za-z_][\w.]*:\w+")


class _Range(NamedTuple):
    """Numbers that an option accepts: their description in messages, and the test."""

    description: str
    accepts: Callable[[Any], bool]


_COUNT = _Range("at least 1 and below 2^31", lambda value: 1 <= value < 2**31)
_COUNT_OR_0 = _Range("at least 0 and below 2^31", lambda value: 0 <= value < 2**31)
_POSITIVE = _Range("positive and finite", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE = _Range("finite and at least 0", lambda value: 0 <= value < math.inf)
_RATE = _Range("in (0, 1], spikes per step", lambda value: 0 < value <= 1)
_START_RATE = _Range("in [0, 1), spikes per step", lambda value: 0 <= value < 1)
_AT_LEAST_1 = _Range("at least 1 step", lambda value: value >= 1)
_SEED = _Range("in [0, 2^32)", lambda value: 0 <= value < 2**32)


def _option(default: Any, accepted: Any = None, of: str = "training") -> Any:
    """A field of :class:`Settings`.

    Args:
        default: the default for still inputs; ``None`` for `steps` and `coding`, which the data decide.
        accepted: a :class:`_Range`, a tuple of the accepted words, or a function that raises for others.
        of: ``reading`` for arguments of the data set's class, ``files`` for other options of files and
            folders.
    """
    return field(default=default, metadata={"accepted": accepted, "of": of})


def _sides(size: str) -> tuple[int, int]:
    """Height and width from ``32`` or ``28x34``."""
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", size)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not (min(sides) > 0 and max(sides) <= 4096):
        raise ValueError(f"size must be pixels such as 32 or 28x34, at most 4096, got {short_repr(size)}")
    return sides


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of a training run, with their checks; the command line has an option for each.

    The defaults are those for still inputs. :mod:`hibana.train.recipes` has those of sequences, images,
    recordings of events and tables of few rows.

    Args:
        data: name of a data set; or a file or folder; or ``module:class`` of a :class:`hibana.data.DataSet`.
        kind: kind of a file or folder: table, images, arrays, sequences, events, sound. Detected if ``None``.
        label: the column or array to learn; detected if ``None``.
        columns: columns of a table to learn from, separated by commas; all others if ``None``.
        group: the column of a long table that names the sequence of a row.
        task: classification or regression; detected from the labels if ``None``.
        test: a file or folder to test with; a fifth of the data, drawn by the seed, if ``None``.
        encoding: encoding of text files, also of those that are shown to the network later, such as
            ``cp932``; detected if ``None``.
        lengths: how sequences get one length: ``stretch``; ``pad`` with zeros, and cut; ``mask``: padded, and
            steps after a sequence's end do not count.
        bins: value of a bin of events: ``spikes``, 1 if it contains an event, or ``counts``.
        size: pixels that images are scaled to, or of a sensor: ``32`` or ``28x34``, height first.
        class_weights: ``balanced`` weights all classes equally, however many samples they have; ``none``.
        root: folder of the data set's files, if it needs one.
        download: download the files to `root` if they are missing.
        layers: a description as :mod:`hibana.train.architecture` reads it, or ``module:function``. Default:
            256,256; ``32-skip`` for tables of fewer than 2,000 training rows; ``16c3b-p2-32c3b-p2-128`` for
            images; ``16c5s2b-32c5s2b-128`` for recordings of events; three windows for sequences
            (``96w5b-96w5d2b-96w5d4b`` at 40 steps), or ``rocket40`` if it has the higher validation accuracy.
        cell: cell of the hidden neurons. Default: IF, for sequences LIF.
        tau: membrane time constant of the hidden neurons in steps; the cell's default if ``None``.
        surrogate: derivative of the step function. Default: Step, for sequences ATan.
        threshold: threshold of the hidden neurons.
        detach_reset: stop the gradient at the reset.
        readout_tau: time constant of the readout in steps. Default: infinite, which sums the input; for
            sequences 20. Layers ``module:function`` and the Rocket have their own readout.
        steps: number of time steps T for which an input is shown; the default of the data if ``None``.
        coding: how inputs become spikes or currents; the default of the data if ``None``.
        delta_threshold: threshold of delta coding, in units of the signal.
        loss: the objective. Default: membrane-mean, for sequences membrane-last.
        smoothing: label smoothing, in [0, 1). Default: 0, for sequences 0.1.
        augment: random changes of training samples. Images: ``flip`` left to right, ``shift`` by up to one
            pixel. Recordings of events: ``shift`` by up to an eighth of each side, ``roll`` as far around the
            sensor. Several words are joined by ``-``, such as ``flip-shift``; ``none``; the default of the
            data set if ``None``.
        epochs: passes over the training set. Default: 40; 60 for few rows; 0 for the Rocket, which keeps its
            closed-form solution.
        patience: epochs without a smaller validation loss after which training stops. The epoch with the
            smallest loss is then tested. 0 never stops. Default: 0; 30 for few rows if at least 10 validate.
        batch_size: samples in a batch, over all processes together. Default: 64, for few rows 16.
        learning_rate: peak of the one-cycle schedule. Default: 0.005, for sequences 0.003.
        weight_decay: weight decay of AdamW, for weights only. Default: 0.01, for few rows 2, for sequences
            0.1.
        clip: largest norm of the gradient.
        start_rate: spikes per neuron and step to which the layers are scaled before training; 0 disables the
            scaling. Default: 0.2, for sequences 0.15.
        rate_target: spikes per neuron and step above which a layer is penalised. Default: 0.07, for sequences
            0.15.
        rate_penalty: weight of that penalty; 0 disables it.
        seed: seed of all random numbers.
        devices: number of processes on each machine.
        nodes: number of machines.
        accelerator: device type, as Lightning names it.
        precision: numerical precision, as Lightning names it; 16-mixed needs a GPU. States are at least
            float32.

    Raises:
        TypeError: if there is no option of that name.
        ValueError: if there are no such data, or the value of an option is not accepted.
    """

    data: str = field(default="digits", kw_only=False)
    kind: str | None = _option(None, tuple(user_data.KINDS), of="files")
    label: str | None = _option(None, of="reading")
    columns: str | None = _option(None, of="reading")
    group: str | None = _option(None, of="reading")
    task: str | None = _option(None, user_data.TASKS, of="reading")
    test: str | None = _option(None, of="reading")
    encoding: str | None = _option(None, user_data.check_encoding, of="reading")
    lengths: str = _option("stretch", user_data.LENGTHS, of="reading")
    bins: str = _option("spikes", user_data.BINS, of="reading")
    size: str | None = _option(None, _sides, of="reading")
    class_weights: str = _option("none", ("none", "balanced"), of="files")
    root: str | None = None
    download: bool = False
    layers: str = _option("256,256", architecture.check)
    cell: str = _option("IF", tuple(CELLS))
    tau: float | None = None
    surrogate: str = _option("Step", surrogate.NAMES)
    threshold: float = _option(1.0, _POSITIVE)
    detach_reset: bool = True
    readout_tau: float = _option(math.inf, _AT_LEAST_1)
    steps: int = _option(None, _COUNT)
    coding: str = _option(None, CODINGS)
    delta_threshold: float = _option(0.5, _POSITIVE)
    loss: str = _option("membrane-mean", loss.NAMES)
    smoothing: float = 0.0
    augment: str | None = _option(None, ("none", "flip", "shift", "roll"))
    epochs: int = _option(40, _COUNT_OR_0)
    patience: int = _option(0, _NOT_NEGATIVE)
    batch_size: int = _option(64, _COUNT)
    learning_rate: float = _option(5e-3, _POSITIVE)
    weight_decay: float = _option(1e-2, _NOT_NEGATIVE)
    clip: float = _option(1.0, _POSITIVE)
    start_rate: float = _option(0.2, _START_RATE)
    rate_target: float = _option(0.07, _RATE)
    rate_penalty: float = _option(0.1, _NOT_NEGATIVE)
    seed: int = _option(0, _SEED)
    devices: int = _option(1, _COUNT)
    nodes: int = _option(1, _COUNT)
    accelerator: str = "cpu"
    precision: str = _option("32-true", ("32-true", "64-true", "bf16-mixed", "16-mixed"))

    explicit = frozenset[str]()
    """Names of the options that the caller passed."""

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        for name in options:
            if name not in cls.__dataclass_fields__:
                raise TypeError(_unknown(name))
        settings = super().__new__(cls)
        explicit = frozenset(name for name, value in options.items() if value is not None)
        object.__setattr__(settings, "explicit", explicit)  # not a field: files state all options
        return settings

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name not in ("steps", "coding") or getattr(self, each.name) is not None:
                _check_type(each.name, getattr(self, each.name), each.type)
        _check_choice("kind", self.kind, CHOICES["kind"])
        is_file = self.data not in DATA_SETS and not _CLASS.fullmatch(self.data)
        if self.kind is not None and not is_file:
            raise ValueError(f"kind is for files and folders, and {self.data} is {self.what}")
        if is_file and not (self.data == IN_MEMORY and self.kind is not None):
            path = Path(self.data).expanduser()
            test = None if self.test is None else str(Path(self.test).expanduser().absolute())
            self._set(kind=self.kind or _kind_of(self.data, self.group), data=str(path.absolute()), test=test)
        span = architecture.span(self.layers) if self.is_sequential else None
        self._set_default(
            steps=span or user_data.default_steps(self.kind, self.data) or self.data_set.usual_steps
        )
        self._set_default(coding=self.data_set.coding or ("none" if self.is_sequential else "constant"))
        self._set_default(**self._defaults(self.data))
        self._check()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _set_default(self, **values: Any) -> None:
        self._set(**{name: value for name, value in values.items() if name not in self.explicit})

    def _defaults(self, source: Any, rows: int | None = None) -> dict[str, Any]:
        """Defaults for the data at `source`, with `rows` training samples, that differ from the class's."""
        if self.is_sequential and architecture.span(self.layers) is not None:
            return rocket(self.steps)
        return defaults(self.kind, self.data_set, self.steps, source=source, rows=rows)

    def _check(self) -> None:
        """Checks each option, and options that depend on each other.

        Raises:
            ValueError: naming the option and what it accepts.
        """
        codings = CODINGS[4:] if self.is_sequential else CODINGS[:4]
        _check_choice(f"coding of {self.data}", self.coding, codings)
        for each in fields(self):
            accepted, value = each.metadata.get("accepted"), getattr(self, each.name)
            if isinstance(accepted, _Range) and not accepted.accepts(value):
                raise ValueError(f"{each.name} must be {accepted.description}, got {short_repr(value)}")
            if type(accepted) is tuple and each.name not in ("surrogate", "loss"):  # checked below
                for word in value.split("-") if each.name == "augment" and value else [value]:
                    _check_choice(each.name, word, accepted)
            elif callable(accepted) and value is not None:
                accepted(value)
        surrogate.named(self.surrogate)
        loss.named(self.loss, self.smoothing)
        if self.epochs == 0 and architecture.span(self.layers) is None:
            raise ValueError("epochs must be at least 1, got 0")
        processes = self.devices * self.nodes
        if self.batch_size % processes:
            raise ValueError(
                f"batch_size must be divisible by devices times nodes, {processes}, got {self.batch_size}"
            )
        if self.loss == "first-spike" and ":" not in self.layers:
            raise ValueError(
                f"loss first-spike needs outputs that spike; layers {self.layers} end in potentials"
            )

    @property
    def what(self) -> str:
        """Kind of the data, for messages."""
        return self.kind or ("a data set by name" if self.data in DATA_SETS else "a class")

    @property
    def title(self) -> str:
        """Short name of the data."""
        return Path(self.data).stem if self.kind is not None else self.data.replace(":", ".")

    @property
    def data_set(self) -> type[DataSet]:
        """Class of the data set; imports the module of ``module:class``."""
        if self.data in DATA_SETS:
            return DATA_SETS[self.data]
        if self.kind is not None:
            return user_data.KINDS[self.kind]
        data_set = architecture.imported(self.data, "data")
        if not (isinstance(data_set, type) and issubclass(data_set, DataSet)):
            raise ValueError(  # noqa: TRY004 - it is a value of the settings
                f"data {self.data!r} must be a class that derives from hibana.data.DataSet, got {data_set!r}"
            )
        return data_set

    @property
    def is_sequential(self) -> bool:
        """Whether inputs have a time axis."""
        return self.kind in ("sequences", "events", "sound") if self.kind else bool(self.data_set.sequential)

    def samples(self, description: Description | None = None) -> DataSet:
        """The data set, in batches of this run.

        Args:
            description: how files were read before, to read more of them in the same way.

        Raises:
            TypeError: if the class of the data has no argument for one of the options.
            ValueError: if the samples were in memory.
        """
        if self.data == IN_MEMORY:
            raise ValueError(
                "data of this run were in memory and can't be read again; give a file, or samples in memory"
            )
        made: Any = self.data_set
        options = {"seed": self.seed, **self._reading()}
        if self.kind is not None or self.is_sequential:
            options["steps"] = self.steps
        if self.kind is None:
            return made(self.batch_size, **options)  # type: ignore[no-any-return]
        options |= {"unit": self.coding in UNIT, "description": description}
        return made(self.data, batch_size=self.batch_size, **options)  # type: ignore[no-any-return]

    def _reading(self) -> dict[str, Any]:
        """Arguments of the data set's class, without those at their default."""
        names = [each.name for each in fields(self) if each.metadata.get("of") == "reading"]
        default = type(self).__dataclass_fields__
        options = {name: getattr(self, name) for name in (*names, "root", "download")}
        options = {name: value for name, value in options.items() if value != default[name].default}
        if "size" in options:
            options["size"] = _sides(options["size"])
        if "columns" in options:
            options["columns"] = [name.strip() for name in options["columns"].split(",")]
        return options

    def on(self, samples: UserData) -> "Settings":
        """These settings with the defaults for `samples`, which depend on their kind and number.

        Settings without a kind become settings of `samples`, which may be in memory. If `layers` were passed,
        defaults for few rows do not apply, because they belong to their own layers.

        Raises:
            ValueError: if `samples` are in memory and an option says how to read them.
        """
        samples.setup()
        settings = self
        if self.kind is None:
            if options := self._reading():
                raise ValueError(f"{', '.join(options)} must be passed to the samples, which are in memory")
            path = str(samples.source.absolute()) if isinstance(samples.source, Path) else IN_MEMORY
            changes: dict[str, Any] = {"data": path, "kind": samples.kind}
            if samples.sequential:
                changes |= {"steps": samples.steps, "coding": None}
            settings = Settings(**{name: getattr(self, name) for name in self.explicit} | changes)
        rows = None if "layers" in self.explicit else len(samples.training)  # type: ignore[arg-type] # all splits have a length
        values = settings._defaults(samples.source, rows)
        if len(samples.validation) < LEAST_JUDGES:  # type: ignore[arg-type] # likewise
            values["patience"] = 0
        if samples.batch_size != Settings.batch_size:  # chosen where the samples were made
            values["batch_size"] = samples.batch_size
        return replace(
            settings, **{name: value for name, value in values.items() if name not in self.explicit}
        )

    def make_cell(self) -> cells.Cell:
        """A cell for one layer of hidden neurons.

        Raises:
            TypeError: if `tau` was set and the cell has no time constant.
        """
        options: dict[str, Any] = {} if self.tau is None else {"tau": self.tau}
        options |= {"threshold": self.threshold, "detach_reset": self.detach_reset}
        return CELLS[self.cell](surrogate=surrogate.named(self.surrogate), **options)

    def write(self, path: Path | str, job: str = "") -> None:
        """Writes a YAML file from which :func:`read` gives an equal object; `job` identifies its writer."""
        files.write(Path(path), settings_file.text(asdict(self), job).encode())


CHOICES: dict[str, tuple[str, ...]] = {
    each.name: each.metadata["accepted"]
    for each in fields(Settings)
    if type(each.metadata.get("accepted")) is tuple
}
"""Words that options accept."""
OF_FILES = tuple(each.name for each in fields(Settings) if each.metadata.get("of") in ("files", "reading"))
"""Options of files and folders."""


def read(path: Path | str, *, trust: Collection[str] = (), **changes: Any) -> Settings:
    """Settings from a YAML file. Options that the file does not name have their defaults.

    Args:
        path: of the file.
        trust: functions that the file may name as its layers, ``module:function``. They will be run.
        changes: options that replace those of the file.

    Raises:
        ValueError: if the file can't be read, is not YAML, has an option that does not exist
            or a value that is not accepted, or names a function that is not in `trust`.
    """
    file = settings_file.read(Path(path))
    content = user_data.without_removed_options(file.content)
    for name, value in content.items():
        if name not in Settings.__dataclass_fields__:
            raise ValueError(f"settings {path}: {_unknown(str(name))}")
        if Settings.__dataclass_fields__[name].type in (float, float | None) and isinstance(value, str):
            with suppress(ValueError):  # YAML 1.1 reads 1e-3, a float without a point, as text
                content[name] = float(value)
    for name in ("layers", "data"):
        if name not in changes:
            architecture.check_trust(content.get(name), trust, f"settings {path}")
    return Settings(**{**content, **changes})


def _unknown(name: str) -> str:
    names = list(Settings.__dataclass_fields__)
    alias = peer_aliases.OPTIONS.get(name.replace("_", "-"), "").replace("-", "_")
    near = [alias] if alias in names else difflib.get_close_matches(name[:80], names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no setting {short_repr(name)}{hint}"


def _kind_of(data: str, group: str | None) -> str:
    """Kind of the file or folder `data`."""
    path = Path(data).expanduser()
    if os.path.exists(path) or (path.parent != Path() and len(data) <= 255):  # noqa: PTH110 - Path.exists raises for impossible names
        return user_data.kind_of(path, grouped=group is not None)
    if path.suffix and len(data) <= 255:
        raise ValueError(f"data must be a data set's name, a file or folder: there is no file {data}")
    near = difflib.get_close_matches(data[:80], DATA_SETS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    names = ", ".join(DATA_SETS)
    raise ValueError(
        f"data must be one of {names}, or a file or folder of yours; got {short_repr(data)}{hint}"
    )


def _check_choice(name: str, value: str | None, words: tuple[str, ...]) -> None:
    if value is not None and value not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}; got {short_repr(value)}")


def _check_type(name: str, value: object, accepted: Any) -> None:
    types = {float: int | float, float | None: int | float | None}.get(accepted, accepted)
    if (isinstance(value, bool) and accepted is not bool) or not isinstance(value, types):
        expected = getattr(accepted, "__name__", accepted)
        raise ValueError(f"{name} must be of type {expected}, got {short_repr(value)}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{name} must be below 2^63, got {short_repr(value)}")
