"""All that decides a run, in plain types, and the YAML file that it is written to."""

import difflib
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hibana import cells, loss, surrogate
from hibana.data import DATA_SETS, DataSet
from hibana.train import architecture, durable, record

__all__ = ["CELLS", "CODINGS", "Settings", "read"]

CELLS: dict[str, Callable[..., cells.Cell]] = {
    "IF": cells.IFCell,
    "LIF": cells.LIFCell,
    "PLIF": cells.PLIFCell,
    "CubaLIF": cells.CubaLIFCell,
    "ALIF": cells.ALIFCell,
    "AdLIF": cells.AdLIFCell,
    "RefractoryLIF": cells.RefractoryLIFCell,
}
"""The cells that spike, with a threshold, a surrogate and a reset, by the names of their layers."""
CODINGS = ("constant", "poisson", "latency", "population", "delta", "none")
"""Of still inputs the first four; of sequences ``delta``, or ``none`` where they are spikes already."""
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
AUGMENTATIONS = ("none", "flip", "shift", "flip-shift")


@dataclass(frozen=True)
class Settings:
    """All that decides a run.

    Args:
        data: the data set's name.
        root: the folder of its files, where it needs one.
        download: fetch them into `root` if they are not there.
        layers: a description as :mod:`hibana.train.architecture` reads it, or ``module:function``.
        cell: the hidden neurons.
        tau: their membrane time constant in steps, where they have one; the cell's own default if ``None``.
        surrogate: the name of what to call the derivative of the step.
        threshold: of the hidden neurons.
        detach_reset: stop the gradient at the reset.
        readout_tau: time constant of the readout in steps; infinite sums its input.
        steps: time steps T for which an input is shown.
        coding: how inputs become spikes or currents.
        delta_threshold: of delta coding, in units of the signal.
        loss: the name of the objective.
        smoothing: of the labels, in [0, 1).
        augment: what is done to training images: ``flip`` left to right, ``shift`` by up to one pixel,
            ``flip-shift``, ``none``; what the data set bears if ``None``.
        epochs: passes over the training set.
        patience: epochs without a better validation accuracy after which training ends; 0 is never.
        batch_size: samples in a batch, over all processes together.
        learning_rate: the peak of the one-cycle schedule.
        weight_decay: of AdamW.
        clip: the largest norm of a gradient.
        start_rate: spikes per neuron and step that the layers are scaled to before training; 0 leaves them.
        rate_target: spikes per neuron and step above which a layer is penalised.
        rate_penalty: weight of that penalty; 0 is none.
        least_rate: spikes per neuron and step below which a neuron is penalised as silent.
        silence_penalty: weight of that penalty; 0 is none.
        seed: of everything random.
        devices: processes to train on, on each machine.
        nodes: machines.
        accelerator: what they run on, as Lightning names it.
        precision: as Lightning names it; state is carried in float32 at least.
    """

    data: str = "digits"
    root: str | None = None
    download: bool = False
    layers: str = "256,256"
    cell: str = "IF"
    tau: float | None = None
    surrogate: str = "Step"
    threshold: float = 1.0
    detach_reset: bool = True
    readout_tau: float = math.inf
    steps: int = 8
    coding: str = "constant"
    delta_threshold: float = 0.5
    loss: str = "membrane-mean"
    smoothing: float = 0.0
    augment: str | None = None
    epochs: int = 40
    patience: int = 0
    batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    clip: float = 1.0
    start_rate: float = 0.2
    rate_target: float = 0.07
    rate_penalty: float = 0.1
    least_rate: float = 0.01
    silence_penalty: float = 0.0
    seed: int = 0
    devices: int = 1
    nodes: int = 1
    accelerator: str = "cpu"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        _among("data", self.data, DATA_SETS)
        _among("cell", self.cell, CELLS)
        _among("coding", self.coding, CODINGS)
        if self.augment is not None:
            _among("augment", self.augment, AUGMENTATIONS)
        _among("precision", self.precision, PRECISIONS)
        surrogate.named(self.surrogate)
        loss.named(self.loss, self.smoothing)
        architecture.check(self.layers)
        for name in ("steps", "epochs", "batch_size", "devices", "nodes"):
            _check(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
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
        if sequential != DATA_SETS[self.data].sequential:
            right = CODINGS[4:] if DATA_SETS[self.data].sequential else CODINGS[:4]
            raise ValueError(f"coding of {self.data} must be one of {', '.join(right)}; got {self.coding!r}")

    def samples(self) -> DataSet:
        """The data set, in batches of this run."""
        made = DATA_SETS[self.data]
        options: dict[str, Any] = {"seed": self.seed}
        if made.sequential:
            options["steps"] = self.steps
        if self.root is not None:
            options["root"] = self.root
        if self.download:
            options["download"] = True
        try:
            return made(self.batch_size, **options)
        except TypeError as error:
            raise ValueError(f"data {self.data!r} can't be opened with these settings: {error}") from error

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

    def write(self, path: Path, run: str | None = None) -> None:
        """Writes a YAML file from which :func:`read` gives an equal object; `run` is who writes it."""
        durable.replace(path, record.text(asdict(self), run).encode())


def read(path: Path, *, trust: Collection[str] = (), **changes: Any) -> Settings:
    """The settings in the YAML file `path`, less `changes`; what neither names is at its default.

    Args:
        path: of the file.
        trust: functions that the file may name as its layers, ``module:function``. They will be run.
        changes: settings to put in the place of the file's.

    Raises:
        ValueError: if the file can't be read, was cut short, is not YAML, has a name or value that is no
            setting, or names a function that is not in `trust`.
    """
    said = record.read(path)
    if not said.unchanged:
        logging.getLogger(__name__).warning("settings %s were changed since a run wrote them", path)
    names = [field.name for field in fields(Settings)]
    for name in said.content:
        if name not in names:
            near = difflib.get_close_matches(str(name)[:80], names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"settings {path} has {record.shown(name)}, which is no setting{hint}")
    content = {name: _number(name, value) for name, value in said.content.items()}
    if "layers" not in changes:
        architecture.check_trust(content.get("layers"), trust, f"settings {path}")
    return Settings(**{**content, **changes})


def _number(name: str, value: Any) -> Any:
    """`value`, which YAML 1.1 takes for text where it is a float without a point, such as 1e-3."""
    wanted = {field.name: field.type for field in fields(Settings)}[name]
    if wanted in (float, float | None) and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


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
