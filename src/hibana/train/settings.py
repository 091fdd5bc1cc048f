"""All that decides a run, in plain types, and the YAML file that it is written to."""

import difflib
import importlib
import logging
import math
import os
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hibana import cells
from hibana.cells import surrogate
from hibana.data import DATA_SETS, DataSet, Description, Own, own
from hibana.nn import loss
from hibana.train import architecture, durable, record, serving
from hibana.train.choices import AUGMENTATIONS, CELLS, CLASS_WEIGHTS, CODINGS, PRECISIONS, RULES, UNIT
from hibana.train.usual import BATCH, FEW, JUDGES, NAMES, Of, usual

__all__ = ["Settings", "of_what", "read"]

_CLASS = re.compile(r"[A-Za-z_][\w.]*:\w+")


@dataclass(frozen=True)
class Settings:
    """All that decides a run.

    What is not said is as usual for such data. "Of sequences" is of sequences of numbers: three windows, each
    over five steps, together over as much of the sequence as they reach, one recipe for all.

    Args:
        data: the data set's name; or a file or folder of your own; or ``module:class`` of a DataSet of yours.
        kind: what that file or folder is: table, images, arrays, sequences, events; seen from it if ``None``.
        label: the column, or array, that is to be learned; seen from the data if ``None``.
        columns: those of a table to learn from, by commas; all others if ``None``.
        dates: what is done about dates in a table: ``refuse``; ``drop``, which leaves them out; ``parts``,
            which makes numbers of them: days, day of year, day of week, hour.
        group: the column of a long table that says which sequence a row is of.
        task: classification or regression; seen from the labels if ``None``.
        test: a file or folder to test with; a fifth of the data, drawn by the seed, if ``None``.
        missing: what is done about missing values: filled with the ``median`` of the training part, their
            samples left out (``drop``), or refused (``refuse``).
        lengths: how sequences come to one length: ``stretch``; ``pad`` with zeros, and cut; or ``mask``:
            padded, and what follows a sequence's end does not count.
        bins: what a bin of events holds: ``spikes``, 1 where one fell into it, or ``counts``.
        split_by: what bins of events have alike: their ``time``, or the ``number`` of their events.
        denoise: leave out events of which none of the eight pixels around had one at most so long before, in
            the recordings' unit of time (microseconds, of most cameras); 0 keeps all.
        event_columns: the order of the columns of events in files that do not name them, such as ``xytp``; as
            their values say if ``None``.
        size: pixels that pictures are brought to, or that a sensor has: ``32`` or ``28x34``, height first.
        class_weights: ``balanced`` has all classes count alike, however many samples they have; ``none``.
        root: the folder of its files, where it needs one.
        download: fetch them into `root` if they are not there.
        layers: a description as :mod:`hibana.train.architecture` reads it, or ``module:function``; 256,256 if
            not said, of tables of fewer than 2,000 training rows ``32-skip``, of pictures in folders
            ``16c3b-p2-32c3b-p2-128``, of recordings of one's own ``16c5s2b-32c5s2b-128``, of sequences
            ``96w5b-96w5d2b-96w5d4b`` at 40 steps, or ``rocket40`` where it validates better.
        cell: the hidden neurons; IF, of sequences LIF.
        tau: their membrane time constant in steps, where they have one; the cell's own default if ``None``.
        surrogate: the name of what to call the derivative of the step; Step, of sequences ATan.
        rule: by which gradients go over time, of :func:`hibana.learn.online`; backpropagation through time
            if ``None``. With a rule `layers` are 128 if not said, and no penalty on spikes is taken: its
            gradient would reach traces that hold what the readout remembers.
        threshold: of the hidden neurons.
        detach_reset: stop the gradient at the reset.
        readout_tau: time constant of the readout in steps; infinite, which sums its input, of sequences 20.
        steps: time steps T for which an input is shown; as the data usually are if ``None``.
        coding: how inputs become spikes or currents; as the data usually are if ``None``.
        delta_threshold: of delta coding, in units of the signal.
        loss: the name of the objective; membrane-mean, of sequences membrane-last.
        smoothing: of the labels, in [0, 1); 0, of sequences 0.1.
        augment: what is done to training images: ``flip`` left to right, ``shift`` by up to one pixel; of
            recordings of events ``shift`` by up to an eighth of each side, ``roll`` around the sensor as far,
            ``drop`` of a part, ``mix`` of two; several joined by ``-``, such as ``flip-shift``; ``none``;
            what the data set bears if ``None``.
        epochs: passes over the training set; 40, of few rows 60; of the Rocket 0, which is what its closed
            form gives.
        patience: epochs without a smaller validation loss after which training ends, and the epoch with the
            smallest is kept; 0, which is never, of few rows 30 where at least 10 validate.
        batch_size: samples in a batch, over all processes together; 64, of few rows 16.
        learning_rate: the peak of the one-cycle schedule; 0.005, of sequences 0.003.
        weight_decay: of AdamW, of weights alone; 0.01, of few rows 2, of sequences 0.1.
        clip: the largest norm of a gradient.
        start_rate: spikes per neuron and step that the layers are scaled to before training; 0 leaves them.
            0.2, of sequences 0.15.
        rate_target: spikes per neuron and step above which a layer is penalised; 0.07, of sequences 0.15.
        rate_penalty: weight of that penalty; 0 is none. 0.1, with a `rule` 0.
        least_rate: spikes per neuron and step below which a neuron is penalised as silent.
        silence_penalty: weight of that penalty; 0 is none.
        seed: of everything random.
        devices: processes to train on, on each machine.
        nodes: machines.
        accelerator: what they run on, as Lightning names it.
        precision: as Lightning names it, 16-mixed on a GPU; state is carried in float32 at least.
    """

    data: str = "digits"
    kind: str | None = None
    label: str | None = None
    columns: str | None = None
    dates: str = "refuse"
    group: str | None = None
    task: str | None = None
    test: str | None = None
    missing: str = "median"
    lengths: str = "stretch"
    bins: str = "spikes"
    split_by: str = "time"
    denoise: float = 0.0
    event_columns: str | None = None
    size: str | None = None
    class_weights: str = "none"
    root: str | None = None
    download: bool = False
    layers: str = field(default=None)  # type: ignore[assignment] # of the data's kind, filled in below
    cell: str = field(default=None)  # type: ignore[assignment] # likewise
    tau: float | None = None
    surrogate: str = field(default=None)  # type: ignore[assignment] # likewise
    rule: str | None = None
    threshold: float = 1.0
    detach_reset: bool = True
    readout_tau: float = field(default=None)  # type: ignore[assignment] # likewise
    steps: int = field(default=None)  # type: ignore[assignment] # likewise
    coding: str = field(default=None)  # type: ignore[assignment] # likewise
    delta_threshold: float = 0.5
    loss: str = field(default=None)  # type: ignore[assignment] # likewise
    smoothing: float = field(default=None)  # type: ignore[assignment] # likewise
    augment: str | None = None
    epochs: int = field(default=None)  # type: ignore[assignment] # likewise
    patience: int = field(default=None)  # type: ignore[assignment] # likewise
    batch_size: int = field(default=None)  # type: ignore[assignment] # likewise
    learning_rate: float = field(default=None)  # type: ignore[assignment] # likewise
    weight_decay: float = field(default=None)  # type: ignore[assignment] # likewise
    clip: float = 1.0
    start_rate: float = field(default=None)  # type: ignore[assignment] # likewise
    rate_target: float = field(default=None)  # type: ignore[assignment] # likewise
    rate_penalty: float = field(default=None)  # type: ignore[assignment] # likewise
    least_rate: float = 0.01
    silence_penalty: float = 0.0
    seed: int = 0
    devices: int = 1
    nodes: int = 1
    accelerator: str = "cpu"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.name not in ("steps", "coding", *NAMES):
                _check_type(each.name, value, each.type)
        said = frozenset(name for name in ("steps", "coding", *NAMES) if getattr(self, name) is not None)
        object.__setattr__(self, "_said", said)  # no field: what a file says was said
        self._fill_in()
        self._check_own()
        _among("class_weights", self.class_weights, CLASS_WEIGHTS)
        _among("cell", self.cell, CELLS)
        _among("coding", self.coding, CODINGS)
        if self.augment is not None:
            for word in self.augment.split("-"):
                _among("augment", word, AUGMENTATIONS)
        _among("precision", self.precision, PRECISIONS)
        surrogate.named(self.surrogate)
        self._check_rule()
        loss.named(self.loss, self.smoothing)
        architecture.check(self.layers)
        fitted = architecture.span(self.layers) is not None
        at_least = "at least 0" if fitted else "at least 1"
        _check("epochs", self.epochs, at_least, self.epochs >= (0 if fitted else 1))
        for name in ("steps", "batch_size", "devices", "nodes"):
            _check(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("steps", "epochs", "batch_size", "devices", "nodes"):
            _check(name, getattr(self, name), "below 2^31", getattr(self, name) < 2**31)
        for name in ("threshold", "learning_rate", "clip", "delta_threshold"):
            value = getattr(self, name)
            _check(name, value, "positive and finite", math.isfinite(value) and value > 0)
        for name in ("weight_decay", "rate_penalty", "silence_penalty", "patience"):
            value = getattr(self, name)
            _check(name, value, "finite and at least 0", math.isfinite(value) and value >= 0)
        for name in ("rate_target", "least_rate"):
            value = getattr(self, name)
            _check(name, value, "in (0, 1], spikes per step", 0 < value <= 1)
        _check("start_rate", self.start_rate, "in [0, 1), spikes per step", 0 <= self.start_rate < 1)
        _check("seed", self.seed, "in [0, 2^32)", 0 <= self.seed < 2**32)
        _check("readout_tau", self.readout_tau, "at least 1 step", self.readout_tau >= 1)
        shared = self.batch_size % (self.devices * self.nodes) == 0
        _check("devices", self.devices, "such that devices times nodes divides batch_size", shared)
        sequential = self.coding in ("delta", "none")
        if sequential != self.is_sequential:
            right = CODINGS[4:] if self.is_sequential else CODINGS[:4]
            raise ValueError(f"coding of {self.data} must be one of {', '.join(right)}; got {self.coding!r}")

    def on(self, samples: Own) -> "Settings":
        """These for `samples`: what nobody said is as usual for data of their kind and number.

        The recipe for few rows is one for its own layers: where others were said, the rest is as for many.
        Without a kind of their own they become settings of `samples`, which may be in memory.
        """
        samples.setup()
        changes: dict[str, Any] = {}
        said: frozenset[str] = vars(self)["_said"]
        if self.kind is None:
            path = str(samples.source.absolute()) if isinstance(samples.source, Path) else IN_MEMORY
            changes = {"data": path, "kind": samples.kind}
            if samples.sequential:
                changes |= {"steps": samples.steps, "coding": None}
        rows = None if "layers" in said else len(samples.training)  # type: ignore[arg-type] # all splits have a length
        fitted = architecture.span(self.layers) is not None
        of: Of = "rocket" if fitted else of_what(samples.kind, None, samples.source, rows=rows)
        each = usual(of, changes.get("steps", self.steps))
        each = {**each, **self._with_rule()}
        if len(samples.validation) < JUDGES:  # type: ignore[arg-type] # likewise
            each = {**each, "patience": 0}
        if samples.batch_size != BATCH:  # chosen where they were made
            each = {**each, "batch_size": samples.batch_size}
        return replace(self, **changes, **{name: value for name, value in each.items() if name not in said})

    def _fill_in(self) -> None:
        """Puts what the data decide in the place of ``None``, looking at names of files and of columns."""
        filled: dict[str, Any] = {}
        held = self.data == IN_MEMORY and self.kind is not None
        if self.data not in DATA_SETS and not _CLASS.fullmatch(self.data) and not held:
            path = Path(self.data).expanduser()
            if self.kind is None:
                if not os.path.exists(path) and (path.parent == Path() or len(self.data) > 255):  # noqa: PTH110 - of names that are none Path raises
                    if path.suffix and len(self.data) <= 255:
                        raise ValueError(
                            f"data must be a data set's name, a file or folder: there is no file {self.data}"
                        )
                    near = difflib.get_close_matches(self.data, DATA_SETS, 1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise ValueError(
                        f"data must be one of {', '.join(DATA_SETS)}, or a file or folder of yours; "
                        f"got {record.shown(self.data)}{hint}"
                    )
                filled["kind"] = own.kind_of(path, grouped=self.group is not None)
            filled["data"] = str(path.absolute())
            if self.test is not None:
                filled["test"] = str(Path(self.test).expanduser().absolute())
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        if self.kind is not None:
            _among("kind", self.kind, own.KINDS)
        made = self.data_set
        coding = made.coding or ("none" if self.is_sequential else "constant")
        span = architecture.span(self.layers) if self.is_sequential else None
        steps = self.steps or span or own.usual_steps(self.kind, self.data) or made.usual_steps
        self._fill({"steps": steps, "coding": coding})
        of = of_what(self.kind, made, self.data) if span is None else "rocket"
        self._fill(self._with_rule())
        self._fill(usual(of, self.steps))

    def _fill(self, values: dict[str, Any]) -> None:
        """Puts `values` where nothing was said."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _with_rule(self) -> dict[str, Any]:
        """What a rule has otherwise than is usual."""
        return {} if self.rule is None else {"layers": "128", "rate_penalty": 0.0}

    def _check_rule(self) -> None:
        if self.rule is None:
            return
        _among("rule", self.rule, RULES)
        for name in ("rate_penalty", "silence_penalty"):
            if getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be 0 with rule {self.rule}: the gradient of a penalty on hidden spikes "
                    f"would reach the traces of what the readout remembers; got {getattr(self, name)!r}"
                )

    def _check_own(self) -> None:
        serving.check_data(self)
        of_words = {"missing": own.MISSING, "dates": own.DATES, "lengths": own.LENGTHS, "bins": own.BINS}
        of_words["split_by"] = own.SPLITS
        own.check_denoise(self.denoise)
        for name, known in of_words.items():
            _among(name, getattr(self, name), known)
        if self.task is not None:
            _among("task", self.task, own.TASKS)
        if self.event_columns is not None:
            own.check_event_columns(self.event_columns)
        if self.size is not None and self._sides is None:
            raise ValueError(
                f"size must be pixels such as 32 or 28x34, at most 4096, got {record.shown(self.size)}"
            )

    @property
    def what(self) -> str:
        """What the data are, in a word."""
        return self.kind or ("a class" if self.data not in DATA_SETS else "a data set by name")

    @property
    def title(self) -> str:
        """What the data are called."""
        return Path(self.data).stem if self.kind is not None else self.data.replace(":", ".")

    @property
    def data_set(self) -> type[DataSet]:
        """The class of the data set; of ``module:class``, that module is imported."""
        if self.data in DATA_SETS:
            return DATA_SETS[self.data]
        return own.KINDS[self.kind] if self.kind is not None else _imported(self.data)

    @property
    def is_sequential(self) -> bool:
        """Whether an input has a time axis of its own."""
        return self.kind in ("sequences", "events", "sound") if self.kind else bool(self.data_set.sequential)

    @property
    def _sides(self) -> tuple[int, int] | None:
        found = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", self.size or "")
        sides = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        return sides if min(sides) > 0 and max(sides) <= 4096 else None

    def samples(self, description: Description | None = None) -> DataSet:
        """The data set, in batches of this run, of one's own read again as `description` says.

        Raises:
            ValueError: if the data were in memory, and are in no file that could be read.
        """
        if self.data == IN_MEMORY:
            raise ValueError(
                "data of this run were in memory and can't be read again; give a file, or samples in memory"
            )
        made = self.data_set
        options: dict[str, Any] = {"seed": self.seed}
        if issubclass(made, Own):
            return made(
                self.data, batch_size=self.batch_size, description=description, **options, **self._own()
            )
        if self.is_sequential:
            options["steps"] = self.steps
        if self.root is not None:
            options["root"] = self.root
        if self.download:
            options["download"] = True
        try:
            return made(self.batch_size, **options)
        except TypeError as error:
            raise ValueError(f"data {self.data!r} can't be opened with these settings: {error}") from error

    def _own(self) -> dict[str, Any]:
        """The options of data of one's own."""
        options: dict[str, Any] = {"label": self.label, "task": self.task, "test": self.test}
        options |= {"missing": self.missing, "unit": self.coding in UNIT, "steps": self.steps}
        match self.kind:
            case "table":
                names = None if self.columns is None else [name.strip() for name in self.columns.split(",")]
                options |= {"columns": names, "dates": self.dates}
            case "sequences":
                options |= {"group": self.group, "lengths": self.lengths}
            case "sound":
                options["lengths"] = self.lengths
            case "images":
                options["size"] = self._sides
            case "events":
                options |= {"size": self._sides, "bins": self.bins, "columns": self.event_columns}
                options |= {"split_by": self.split_by, "denoise": self.denoise}
        return options

    def make_cell(self) -> cells.Cell:
        """One hidden neuron's cell."""
        step = surrogate.named(self.surrogate)
        time = {} if self.tau is None else {"tau": self.tau}
        try:
            return CELLS[self.cell](
                threshold=self.threshold, surrogate=step, detach_reset=self.detach_reset, **time
            )
        except TypeError as error:
            raise ValueError(f"cell {self.cell} can't be made with these settings: {error}") from error

    def write(self, path: Path | str, run: str | None = None) -> None:
        """Writes a YAML file from which :func:`read` gives an equal object; `run` is who writes it."""
        durable.replace(Path(path), record.text(asdict(self), run).encode())


IN_MEMORY = "in memory"
"""What stands for `data` that no file holds."""


def of_what(
    kind: str | None, made: type[DataSet] | None, source: Any = None, *, rows: int | None = None
) -> Of:
    """What data of this `kind`, or of the class that they are `made` by, are of; arrays as `source` says.

    `rows` are the samples that train, where their number is known.
    """
    if kind == "arrays" and source is not None and own.are_pictures(source):
        return "pictures"
    if kind is not None or made is None:
        of_kinds: dict[str | None, Of] = {
            "images": "pictures",
            "events": "recordings",
            "sequences": "sequences",
            "sound": "sequences",
        }
        few = kind is not None and rows is not None and rows < FEW
        return of_kinds.get(kind, "few" if few else "still")
    shape = vars(made).get("shape")
    of_numbers = made.sequential and isinstance(shape, tuple) and len(shape) == 1
    return "sequences" if of_numbers else "still"


def read(path: Path | str, *, trust: Collection[str] = (), **changes: Any) -> Settings:
    """The settings in the YAML file `path`, less `changes`; what neither names is at its default.

    Args:
        path: of the file.
        trust: functions that the file may name as its layers, ``module:function``. They will be run.
        changes: settings to put in the place of the file's.

    Raises:
        ValueError: if the file can't be read, was cut short, is not YAML, has a name or value that is no
            setting, or names a function that is not in `trust`.
    """
    said = record.read(Path(path))
    if not said.unchanged:
        logging.getLogger(__name__).warning("settings %s were changed since a run wrote them", path)
    names = [each.name for each in fields(Settings)]
    for name in said.content:
        if name not in names:
            near = difflib.get_close_matches(str(name)[:80], names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"settings {path} has {record.shown(name)}, which is no setting{hint}")
    content = {name: _number(name, value) for name, value in said.content.items()}
    for name in ("layers", "data"):
        if name not in changes:
            architecture.check_trust(content.get(name), trust, f"settings {path}")
    return Settings(**{**content, **changes})


def _number(name: str, value: Any) -> Any:
    """`value`, which YAML 1.1 takes for text where it is a float without a point, such as 1e-3."""
    wanted = {each.name: each.type for each in fields(Settings)}[name]
    if wanted in (float, float | None) and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _imported(data: str) -> type[DataSet]:
    """The class at ``module:class``."""
    module, _, name = data.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"data {data!r} can't be found: {error}") from error
    if not (isinstance(found, type) and issubclass(found, DataSet)):
        raise ValueError(  # noqa: TRY004 - it is a value of the settings
            f"data {data!r} must be a class that derives from hibana.data.DataSet, got {found!r}"
        )
    return found


def _check_type(name: str, value: object, wanted: Any) -> None:
    allowed: Any = (int, float) if wanted is float else wanted
    if wanted == float | None:
        allowed = int | float | None
    if (isinstance(value, bool) and wanted is not bool) or not isinstance(value, allowed):
        expected = getattr(wanted, "__name__", wanted)
        raise ValueError(f"{name} must be of type {expected}, got {record.shown(value)}")
    if isinstance(value, int):
        _check(name, value, "below 2^63", abs(value) < 2**63)


def _among(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {record.shown(value)}")


def _check(name: str, value: object, wanted: str, right: bool) -> None:
    if not right:
        raise ValueError(f"{name} must be {wanted}, got {record.shown(value)}")
