"""Which settings can have an effect beside the others: what was chosen and would do nothing is refused."""

import inspect
from collections.abc import Callable, Collection
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from hibana.train.architecture import span
from hibana.train.augment import OF_RECORDINGS
from hibana.train.choices import CELLS, OF_KINDS
from hibana.train.start import spiking_layers
from hibana.train.usual import Of, usual

if TYPE_CHECKING:
    from hibana.train.network import Network
    from hibana.train.settings import Settings

__all__ = ["changed", "check", "check_data"]


class _Known(NamedTuple):
    """What a run is known by: its settings, and the network for its data, once that is made."""

    settings: "Settings"
    model: "Network | None"


class _Rule(NamedTuple):
    """Settings, what they are of, whether a run is so, and what it is instead."""

    names: tuple[str, ...]
    of: str
    serves: Callable[[_Known], bool]
    instead: Callable[[_Known], str]


def _data(run: _Known) -> str:
    return f"{run.settings.data} is {run.settings.what}"


def _layers(run: _Known) -> str:
    return f"layers {run.settings.layers} has none"


def _is_of_classes(run: _Known) -> bool:
    return run.settings.task != "regression" and (run.model is None or not run.model.is_regression)


def _takes(name: str) -> Callable[[_Known], bool]:
    """Whether the class of a data set by name takes the option `name`."""
    return lambda run: run.settings.kind is not None or name in _parameters(run.settings.data_set)


def _parameters(made: Callable[..., Any]) -> Collection[str]:
    return inspect.signature(made).parameters


def _is_of(kinds: tuple[str, ...]) -> Callable[[_Known], bool]:
    return lambda run: run.settings.kind in kinds


def _is_above_0(name: str) -> Callable[[_Known], bool]:
    return lambda run: bool(getattr(run.settings, name) > 0)


_WITH_TAU = ", ".join(name for name, cell in CELLS.items() if "tau" in _parameters(cell))
_OF_DATA = (
    *(
        _Rule((name,), f"data of your own ({', '.join(kinds)})", _is_of(kinds), _data)
        for name, kinds in OF_KINDS.items()
    ),
    _Rule(
        ("root", "download"),
        "data sets by name",
        lambda run: run.settings.kind is None,
        lambda run: f"{_data(run)} of your own",
    ),
)
_RULES = (
    *_OF_DATA,
    *(
        _Rule((name,), f"data sets that {what}", _takes(name), lambda run: f"{run.settings.data} is none")
        for name, what in (("root", "lie in files"), ("download", "can be fetched"))
    ),
    _Rule(
        ("delta_threshold",),
        "delta coding",
        lambda run: run.settings.coding == "delta",
        lambda run: f"coding is {run.settings.coding}",
    ),
    _Rule(
        ("tau",),
        f"cells with a time constant ({_WITH_TAU})",
        lambda run: "tau" in _parameters(CELLS[run.settings.cell]),
        lambda run: f"cell is {run.settings.cell}",
    ),
    _Rule(
        ("readout_tau",),
        "layers that are described in words",
        lambda run: ":" not in run.settings.layers and span(run.settings.layers) is None,
        lambda run: f"{run.settings.layers} brings a readout of its own",
    ),
    _Rule(("rate_target",), "a rate_penalty above 0", _is_above_0("rate_penalty"), lambda run: "it is 0"),
    _Rule(
        ("least_rate",), "a silence_penalty above 0", _is_above_0("silence_penalty"), lambda run: "it is 0"
    ),
    _Rule(
        ("loss",),
        "outputs that spike",
        lambda run: run.settings.loss != "first-spike" or ":" in run.settings.layers,
        lambda run: f"layers {run.settings.layers} end in potentials, which have no first spike",
    ),
    _Rule(("class_weights",), "data of your own", lambda run: run.settings.kind is not None, _data),
    _Rule(
        ("class_weights", "smoothing"),
        "classes",
        _is_of_classes,
        lambda run: f"what is to be learned of {run.settings.title} is a quantity",
    ),
    _Rule(
        ("augment",),
        "images",
        lambda run: run.model is None or len(run.model.hyper["shape"]) > 1,
        lambda run: f"{run.settings.data} has none",
    ),
    _Rule(
        ("augment",),
        "recordings of events where it says roll, drop or mix",
        lambda run: (
            run.settings.is_sequential or not {*str(run.settings.augment).split("-")} & {*OF_RECORDINGS}
        ),
        _data,
    ),
    _Rule(
        ("augment",),
        "classes where it says mix",
        lambda run: _is_of_classes(run) or "mix" not in str(run.settings.augment).split("-"),
        lambda run: f"what is to be learned of {run.settings.title} is a quantity",
    ),
    _Rule(
        ("cell", "tau", "surrogate", "threshold", "detach_reset"),
        "neurons that are made as the settings say",
        lambda run: run.model is None or run.model.takes_cells,
        _layers,
    ),
    _Rule(
        ("start_rate", "rate_target", "rate_penalty", "least_rate", "silence_penalty"),
        "layers that spike",
        lambda run: run.model is None or bool(spiking_layers(run.model.net)),
        _layers,
    ),
)
_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("augment", "class_weights"), "none"),
    **dict.fromkeys(("start_rate", "rate_penalty", "silence_penalty", "smoothing", "denoise"), 0),
    "download": False,
}
"""Values by which nothing is asked for."""


def check(settings: "Settings", given: Collection[str], model: "Network | None" = None) -> None:
    """Refuses settings that would change nothing.

    Args:
        settings: of a run.
        given: the names of those that somebody chose.
        model: the network for its data, if that is made.

    Raises:
        ValueError: naming the first of `given` that nothing depends on, what it is of, and what there is.
    """
    _check(_RULES, settings, given, model)


def check_data(settings: "Settings") -> None:
    """As :func:`check`, of what was changed and is of data of one's own, or by name."""
    _check(_OF_DATA, settings, changed(settings), None)


def changed(settings: "Settings") -> list[str]:
    """The names of the settings that are not as usual for any data."""
    each = [usual(of, settings.steps) for of in get_args(Of)]
    return [
        field.name
        for field in fields(settings)
        if getattr(settings, field.name) not in (field.default, *(values.get(field.name) for values in each))
    ]


def _check(
    rules: Collection[_Rule], settings: "Settings", given: Collection[str], model: "Network | None"
) -> None:
    run = _Known(settings, model)
    for rule in rules:
        for name in rule.names:
            asks = name in given and getattr(settings, name) != _NOTHING.get(name)
            if asks and not rule.serves(run):
                raise ValueError(f"{name} is of {rule.of}; {rule.instead(run)}")
