"""The options of a training run with their checks, and the YAML file that stores them."""

import difflib
import math
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, NamedTuple, Self

from hibana import cells
from hibana.cells import peer_aliases, surrogate
from hibana.data import DATA_SETS, DataSet, Description, UserData, user_data
from hibana.nn import loss
from hibana.train import architecture, checkpoint
from hibana.train.recipes import MIN_VALIDATION_ROWS, defaults, rocket

CELLS: dict[str, Callable[..., cells.Cell]] = {
    name: getattr(cells, f"{name}Cell")
    for name in ("IF", "LIF", "PLIF", "CubaLIF", "ALIF", "AdLIF", "RefractoryLIF")
}
"""Spiking cells with a threshold, a surrogate and a reset."""
CODINGS = ("constant", "poisson", "latency", "population", "delta", "none")
"""The first four are for still inputs, the others for sequences."""
UNIT_CODINGS = ("poisson", "latency", "population")
"""Codings of values in [0, 1]."""
IN_MEMORY = "in memory"
"""Value of `data` for samples in memory, which can't be read again."""
_CLASS = re.compile(r"[A-Za-z_][\w.]*:\w+")


class _Range(NamedTuple):
    """The numbers that an option accepts: their description in error messages, and a test."""

    description: str
    accepts: Callable[[Any], bool]


_COUNT = _Range("at least 1 and below 2^31", lambda value: 1 <= value < 2**31)
_POSITIVE = _Range("positive and finite", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE = _Range("finite and at least 0", lambda value: 0 <= value < math.inf)


def _option(default: Any, accepted: Any = None, group: str = "training") -> Any:
    """Returns a dataclass field for an option of :class:`Settings`.

    Args:
        default: the default for inputs without a time axis; ``None`` for `steps` and `coding`, whose default
            depends on the data.
        accepted: a :class:`_Range`, a tuple of words, or a function that raises for other values.
        group: ``reading`` for arguments of the data set's class, ``files`` for other options of files and
            folders, ``training`` for all others.
    """
    return field(default=default, metadata={"accepted": accepted, "group": group})


def _sides(size: str) -> tuple[int, int]:
    """Returns height and width in pixels from ``32`` or ``28x34``."""
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", size)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not (min(sides) > 0 and max(sides) <= 4096):
        raise ValueError(f"size must be pixels such as 32 or 28x34, at most 4096, got {short_repr(size)}")
    return sides


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of a training run, with their checks. The command line has an option for each.

    The defaults are those for still inputs. :mod:`hibana.train.recipes` defines the different defaults for
    sequences, images, recordings of events and small tables.

    Args:
        data: name of a data set; or a file or folder; or ``module:class`` of a :class:`hibana.data.DataSet`.
        kind: kind of a file or folder: table, images, arrays, sequences, events, sound. Default: detected.
        label: the column or array to predict. Default: detected.
        columns: input columns of a table, separated by commas. Default: all usable columns.
        group: the column of a long table that identifies the sequence of each row.
        task: classification or regression; or anomaly, on long series (:func:`hibana.train.fit_anomalies`).
            Default: detected from the labels.
        test: a file or folder with the test set. Default: a random fifth of the data.
        encoding: character encoding of text files, such as ``cp932``; also used for later predictions.
            Default: detected.
        lengths: how sequences of unequal length get one length: ``stretch`` resamples them; ``pad`` appends
            zeros or cuts; ``mask`` pads, and ignores the steps after a sequence's end.
        scale: mean 0 and deviation 1 of each feature of ``all`` sequences together, or of ``each`` sequence,
            whose level and size are then ignored.
        bins: value of a bin of events: ``spikes``, 1 if it contains an event, or ``counts``.
        size: height and width in pixels to which images are scaled, or of a sensor: ``32`` or ``28x34``.
        class_weights: ``balanced`` gives all classes the same weight in the loss, whatever their number of
            samples; ``none`` gives all samples the same weight.
        root: folder of the data set's files, if it has any.
        download: download the files to `root` if they are missing.
        layers: the network, such as ``512,512`` or ``32c3-p2-128``, see :mod:`hibana.train.architecture`; or
            ``module:function``. Default: ``256,256``; ``32-skip`` for tables with fewer than 2,000 training
            rows; ``16c3b-p2-32c3b-p2-128`` for images; ``16c5s2b-32c5s2b-128`` for recordings of events;
            ``96w5b-96w5d2b-96w5d4b`` for sequences of 40 steps; ``rocket40`` for the user's own series of 40
            steps.
        connectivity: fraction of the synapses of all fully connected layers together that exist, in (0, 1];
            below 1, only these synapses are stored and computed. Small layers lose fewer synapses; see
            :class:`hibana.train.synapses.Synapses`.
        rewire: rule that moves synapses during training if the connectivity is below 1: ``deep-r``
            (hibana.learn.DeepR), ``set`` (SET, after each epoch), ``rigl`` (RigL, every 100 steps or after
            each epoch), or ``none``.
        cell: cell of the hidden neurons. Default: IF, for sequences LIF.
        tau: membrane time constant of the hidden neurons in steps. Default: that of the cell.
        surrogate: surrogate derivative of the spike function. Default: Step; ATan for sequences, and with a
            connectivity below 1.
        threshold: threshold of the hidden neurons.
        detach_reset: stop the gradient at the reset.
        readout_tau: time constant of the readout in steps; if infinite, the readout sums its input. Default:
            infinite, for sequences 20. Layers ``module:function`` and the Rocket have their own readout.
        steps: number of time steps T. Default: that of the data.
        coding: how inputs become spikes or currents. Default: that of the data.
        delta_threshold: threshold of delta coding, in units of the signal.
        loss: the loss function. Default: membrane-mean, for sequences membrane-last.
        smoothing: label smoothing, in [0, 1). Default: 0, for sequences 0.1.
        augment: random changes of training samples. Images: ``flip`` mirrors left and right, ``shift`` moves
            by up to one pixel. Recordings: ``shift`` moves by up to an eighth of each side, ``roll`` moves as
            far around the edges. Join words by a dash: ``flip-shift``. Default: that of the data set.
        epochs: passes over the training set. Default: 40, for small tables 60, for the Rocket 0, which keeps
            its closed-form solution.
        patience: epochs without a smaller validation loss after which training stops; then the epoch with the
            smallest loss is tested. 0 disables this. Default: 0; 30 for small tables.
        batch_size: samples in a batch, over all processes together. Default: 64, for small tables 16.
        learning_rate: peak of the one-cycle schedule. Default: 0.005, for sequences 0.003; twice as much
            with a connectivity below 1.
        weight_decay: weight decay of AdamW; biases and time constants do not decay. Default: 0.01, for small
            tables 2, for sequences 0.1.
        clip: largest norm of the gradient.
        start_rate: firing rate, in spikes per neuron and step, that each layer has before training: weights
            are scaled to reach it; 0 disables the scaling. Default: 0.2, for sequences 0.15.
        rate_target: firing rate, in spikes per neuron and step, above which a layer is penalized. Default:
            0.07, for sequences 0.15.
        rate_penalty: weight of that penalty; 0 disables it.
        seed: seed of all random numbers.
        devices: number of processes on each machine.
        nodes: number of machines.
        accelerator: device type in Lightning, such as ``cpu`` or ``gpu``.
        precision: numerical precision in Lightning; 16-mixed needs a GPU. States are at least float32.

    Raises:
        TypeError: if there is no option of that name.
        ValueError: if the data do not exist, or an option does not accept its value.
    """

    data: str = field(default="digits", kw_only=False)
    kind: str | None = _option(None, tuple(user_data.KINDS), group="files")
    label: str | None = _option(None, group="reading")
    columns: str | None = _option(None, group="reading")
    group: str | None = _option(None, group="reading")
    task: str | None = _option(None, user_data.TASKS, group="reading")
    test: str | None = _option(None, group="reading")
    encoding: str | None = _option(None, group="reading")
    lengths: str = _option("stretch", user_data.LENGTHS, group="reading")
    scale: str = _option("all", user_data.SCALES, group="reading")
    bins: str = _option("spikes", user_data.BINS, group="reading")
    size: str | None = _option(None, _sides, group="reading")
    class_weights: str = _option("none", ("none", "balanced"), group="files")
    root: str | None = None
    download: bool = False
    layers: str = _option("256,256", architecture.check)
    connectivity: float = _option(1.0, _Range("in (0, 1]", lambda value: 0 < value <= 1))
    rewire: str = _option("none", ("none", "deep-r", "set", "rigl"))
    cell: str = _option("IF", tuple(CELLS))
    tau: float | None = None
    surrogate: str = _option("Step", surrogate.NAMES)
    threshold: float = _option(1.0, _POSITIVE)
    detach_reset: bool = True
    readout_tau: float = _option(math.inf, _Range("at least 1 step", lambda value: value >= 1))
    steps: int = _option(None, _COUNT)
    coding: str = _option(None, CODINGS)
    delta_threshold: float = _option(0.5, _POSITIVE)
    loss: str = _option("membrane-mean", loss.NAMES)
    smoothing: float = 0.0
    augment: str | None = _option(None, ("none", "flip", "shift", "roll"))
    epochs: int = _option(40, _Range("at least 0 and below 2^31", lambda value: 0 <= value < 2**31))
    patience: int = _option(0, _NOT_NEGATIVE)
    batch_size: int = _option(64, _COUNT)
    learning_rate: float = _option(5e-3, _POSITIVE)
    weight_decay: float = _option(1e-2, _NOT_NEGATIVE)
    clip: float = _option(1.0, _POSITIVE)
    start_rate: float = _option(0.2, _Range("in [0, 1), spikes per step", lambda value: 0 <= value < 1))
    rate_target: float = _option(0.07, _Range("in (0, 1], spikes per step", lambda value: 0 < value <= 1))
    rate_penalty: float = _option(0.1, _NOT_NEGATIVE)
    seed: int = _option(0, _Range("in [0, 2^32)", lambda value: 0 <= value < 2**32))
    devices: int = _option(1, _COUNT)
    nodes: int = _option(1, _COUNT)
    accelerator: str = "cpu"
    precision: str = _option("32-true", ("32-true", "64-true", "bf16-mixed", "16-mixed"))

    explicit = frozenset[str]()
    """Names of the options that the caller passed."""

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Creates the object, and stores the names of the options that are passed and not None."""
        for name in options:
            if name not in cls.__dataclass_fields__:
                raise TypeError(_missing("setting ", name, cls.__dataclass_fields__))
        settings = super().__new__(cls)
        explicit = frozenset(name for name, value in options.items() if value is not None)
        object.__setattr__(settings, "explicit", explicit)  # not a field: files contain all options
        return settings

    def __post_init__(self) -> None:
        """Checks the options, and replaces absent ones by their defaults for the data."""
        if self.task == "anomaly":
            raise ValueError("task anomaly has settings of its own: use hb.train.AnomalySettings")
        for option in fields(self):
            value = getattr(self, option.name)
            if value is not None or option.name not in ("steps", "coding"):
                _check_option(option, value)
        is_file = self.data not in DATA_SETS and not _CLASS.fullmatch(self.data)
        if self.kind is not None and not is_file:
            raise ValueError(f"kind is for files and folders, and {self.data} is {self.data_kind}")
        if is_file and not (self.data == IN_MEMORY and self.kind is not None):
            path = Path(self.data).expanduser()
            test = None if self.test is None else str(Path(self.test).expanduser().absolute())
            self._set(kind=self.kind or _kind_of(self.data, self.group), data=str(path.absolute()), test=test)
        rocket_steps = architecture.rocket_parameters(self.layers) if self.is_sequential else None
        default_steps = user_data.default_steps(self.kind, self.data) or self.data_set.usual_steps
        self._set_default(steps=rocket_steps[0] if rocket_steps else default_steps)
        self._set_default(coding=self.data_set.coding or ("none" if self.is_sequential else "constant"))
        self._set_default(**self._defaults(self.data))
        self._check()

    def _set(self, **values: Any) -> None:
        """Sets fields of the frozen object."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _set_default(self, **values: Any) -> None:
        """Sets the fields that the caller did not pass."""
        self._set(**{name: value for name, value in values.items() if name not in self.explicit})

    def _defaults(self, source: Any, rows: int | None = None) -> dict[str, Any]:
        """Returns the defaults for the data at `source` with `rows` training samples; see :mod:`recipes`."""
        if self.is_sequential and architecture.rocket_parameters(self.layers) is not None:
            return rocket(self.steps)
        values = defaults(self.kind, self.data_set, self.steps, source=source, rows=rows)
        if self.connectivity < 1:  # with fewer synapses per neuron, each has a larger weight
            values["learning_rate"] = 2 * values.get("learning_rate", Settings.learning_rate)
            values["surrogate"] = "ATan"  # its gradient reaches the many neurons that do not fire at first
        return values

    def _check(self) -> None:
        """Raises ValueError, naming the options, if options that depend on each other do not fit."""
        codings = CODINGS[4:] if self.is_sequential else CODINGS[:4]
        if self.coding not in codings:
            raise ValueError(
                f"coding of {self.data} must be one of {', '.join(codings)}; got {short_repr(self.coding)}"
            )
        surrogate.named(self.surrogate)
        loss.named(self.loss, self.smoothing)
        is_rocket = architecture.rocket_parameters(self.layers) is not None
        if self.epochs == 0 and not is_rocket:
            raise ValueError("epochs must be at least 1, got 0")
        processes = self.devices * self.nodes
        if self.batch_size % processes:
            raise ValueError(f"batch_size must be divisible by {processes} processes, got {self.batch_size}")
        if self.connectivity < 1 and (is_rocket or ":" in self.layers):
            raise ValueError(f"connectivity must be 1 for layers {self.layers}, got {self.connectivity}")
        if self.rewire != "none" and self.connectivity == 1:
            raise ValueError(f"rewire {self.rewire} needs a connectivity below 1, such as connectivity 0.05")
        if self.loss == "first-spike" and ":" not in self.layers:
            raise ValueError(f"loss first-spike needs outputs that spike; layers {self.layers} have none")

    @property
    def data_kind(self) -> str:
        """Kind of the data, for messages: that of files, ``a data set by name`` or ``a class``."""
        return self.kind or ("a data set by name" if self.data in DATA_SETS else "a class")

    @property
    def title(self) -> str:
        """Short name of the data: a data set's name, or a file's name without folder and suffix."""
        return Path(self.data).stem if self.kind is not None else self.data.replace(":", ".")

    @property
    def data_set(self) -> type[DataSet]:
        """Class of the data set. Imports the module if `data` is ``module:class``."""
        if self.data in DATA_SETS:
            return DATA_SETS[self.data]
        if self.kind is not None:
            return user_data.KINDS[self.kind]
        data_set = architecture.import_object(self.data, "data")
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
        """Returns the data set of these settings, in batches of `batch_size`.

        Args:
            description: how the files of the training were read; further files are read in the same way.
                Only the user's own files need it; named data sets and classes ignore it.

        Raises:
            TypeError: if the class of the data has no argument for one of the options.
            ValueError: if the samples were in memory.
        """
        if self.data == IN_MEMORY:
            raise ValueError("data of this run were in memory and can't be read again; pass the samples")
        data_set: Any = self.data_set
        options = {"seed": self.seed, **self._reading_options()}
        if self.kind is not None or self.is_sequential:
            options["steps"] = self.steps
        if self.kind is None:  # a data set by name, or a class of the user
            return data_set(self.batch_size, **options)  # type: ignore[no-any-return]
        options |= {"unit": self.coding in UNIT_CODINGS, "description": description}
        return data_set(self.data, batch_size=self.batch_size, **options)  # type: ignore[no-any-return]

    def _reading_options(self) -> dict[str, Any]:
        """Returns the arguments for the data set's class that differ from their defaults."""
        options = {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if (option.metadata.get("group") == "reading" or option.name in ("root", "download"))
            and getattr(self, option.name) != option.default
        }
        if "size" in options:
            options["size"] = _sides(options["size"])
        if "columns" in options:
            options["columns"] = [name.strip() for name in options["columns"].split(",")]
        return options

    def on(self, samples: UserData) -> "Settings":
        """Returns these settings with the defaults for `samples`, which depend on their kind and number.

        Settings without a kind become settings of `samples`, which may be in memory. If the user passed
        `layers`, the other defaults for small tables do not apply: they suit only the default layers.

        Raises:
            ValueError: if `samples` are in memory and the user passed an option for reading files.
        """
        samples.setup()
        settings = self
        if self.kind is None:
            if options := self._reading_options():
                raise ValueError(f"{', '.join(options)} must be passed to the samples, which are in memory")
            path = str(samples.source.absolute()) if isinstance(samples.source, Path) else IN_MEMORY
            changes: dict[str, Any] = {"data": path, "kind": samples.kind}
            if samples.sequential:
                changes |= {"steps": samples.steps, "coding": None}
            settings = Settings(**{name: getattr(self, name) for name in self.explicit} | changes)
        rows = None if "layers" in self.explicit else len(samples.training)  # type: ignore[arg-type] # all splits have a length
        values = settings._defaults(samples.source, rows)
        if len(samples.validation) < MIN_VALIDATION_ROWS:  # type: ignore[arg-type] # all splits have a length
            values["patience"] = 0
        if samples.batch_size != Settings.batch_size:  # the user passed it to the class of the samples
            values["batch_size"] = samples.batch_size
        return replace(
            settings, **{name: value for name, value in values.items() if name not in self.explicit}
        )

    def make_cell(self) -> cells.Cell:
        """Returns a new cell for one layer of hidden neurons.

        Raises:
            TypeError: if `tau` is set and the cell has no time constant.
        """
        options: dict[str, Any] = {} if self.tau is None else {"tau": self.tau}
        options |= {"threshold": self.threshold, "detach_reset": self.detach_reset}
        return CELLS[self.cell](surrogate=surrogate.named(self.surrogate), **options)

    def write(self, path: Path | str) -> None:
        """Writes a YAML file from which :func:`read` returns an equal object."""
        checkpoint.write_settings(asdict(self), Path(path))


CHOICES: dict[str, tuple[str, ...]] = {
    option.name: option.metadata["accepted"]
    for option in fields(Settings)
    if type(option.metadata.get("accepted")) is tuple
}
"""The words that an option accepts, by its name."""
FILE_OPTIONS = tuple(o.name for o in fields(Settings) if o.metadata.get("group") in ("files", "reading"))
"""Options for the user's files and folders."""


def read(path: Path | str, *, trust: Collection[str] = (), **changes: Any) -> Settings:
    """Reads settings from a YAML file. Options that the file does not contain have their defaults.

    Args:
        path: the file.
        trust: functions ``module:function`` that the file may name as its layers. They are executed.
        changes: options that replace the file's.

    Raises:
        ValueError: if the file can't be read, is not YAML, contains an option that does not exist or a value
            that is not accepted, or names a function that is not in `trust`.
    """
    content = user_data.without_removed_options(checkpoint.read_settings(Path(path)))
    for name, value in content.items():
        if name not in Settings.__dataclass_fields__:
            raise ValueError(f"settings {path}: {_missing('setting ', name, Settings.__dataclass_fields__)}")
        if Settings.__dataclass_fields__[name].type in (float, float | None) and isinstance(value, str):
            with suppress(ValueError):  # YAML 1.1 reads 1e-3, a float without a point, as text
                content[name] = float(value)
    for name in ("layers", "data"):
        if name not in changes:
            architecture.check_trust(content.get(name), trust, f"settings {path}")
    return Settings(**{**content, **changes})


def _missing(kind: str, name: object, names: Collection[str]) -> str:
    """Returns ``there is no KIND NAME``, and the most similar of `names`, also of other libraries."""
    text = str(name)
    alias = peer_aliases.OPTIONS.get(text.replace("_", "-"), "").replace("-", "_")
    similar = [alias] if alias in names else difflib.get_close_matches(text[:80], names, 1)
    return f"there is no {kind}{short_repr(name)}" + (f"; did you mean {similar[0]}?" if similar else "")


def _kind_of(data: str, group: str | None) -> str:
    """Detects the kind of the file or folder `data`; `group` is the option of that name.

    Raises ValueError if there is no such file, or its kind is unknown.
    """
    path = Path(data).expanduser()
    if os.path.exists(path):  # noqa: PTH110 - Path.exists raises for impossible names
        return user_data.kind_of(path, grouped=group is not None)
    names = ", ".join(DATA_SETS)
    raise ValueError(f"data must be one of {names}, or a file or folder, and {_missing('', data, DATA_SETS)}")


def _check_option(option: Field[Any], value: Any) -> None:
    """Raises ValueError, naming the option and what it accepts, unless `option` accepts `value`."""
    name, accepted = option.name, option.metadata.get("accepted")
    kind: Any = option.type
    types = {float: int | float, float | None: int | float | None}.get(kind, kind)  # floats may be integers
    if (isinstance(value, bool) and kind is not bool) or not isinstance(value, types):
        raise ValueError(f"{name} must be of type {getattr(kind, '__name__', kind)}, got {short_repr(value)}")
    if value is None:
        return
    if isinstance(accepted, _Range):
        if not accepted.accepts(value):
            raise ValueError(f"{name} must be {accepted.description}, got {short_repr(value)}")
    elif isinstance(accepted, tuple):
        for word in value.split("-") if name == "augment" else [value]:
            if word not in accepted and name != "surrogate":  # named() ignores case and dashes
                same_case = {choice.lower(): choice for choice in accepted}
                similar = difflib.get_close_matches(word[:80].lower(), same_case, 1)
                hint = f"; did you mean {same_case[similar[0]]}?" if similar else ""
                raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {short_repr(word)}{hint}")
    elif accepted is not None:
        accepted(value)
