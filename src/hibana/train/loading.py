"""Networks and runs read from checkpoints and shared folders, which another process or person wrote."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hibana import data
from hibana.data import user_data
from hibana.train import architecture, checkpoint, pretrained, results, settings_file
from hibana.train.network import Network
from hibana.train.run_folder import BEST, LAST, SETTINGS, checkpoint_of
from hibana.train.settings import Settings, read

__all__ = ["CHANGEABLE", "described", "load", "resume_settings"]

_EXPECTED = "checkpoint must be a file that `hibana train` wrote"
_STATES = {"epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers"}
"""Contents that a run is resumed from."""
CHANGEABLE = {"epochs", "patience", "devices", "nodes", "accelerator", "precision"}
CHANGEABLE |= {"data", "test", "root", "download"}
"""Options that may differ when a run is resumed."""


def resume_settings(
    path: Path | str, *, trust: Collection[str] = (), **changes: Any
) -> tuple[Settings, Path | None]:
    """Settings and checkpoint to resume a run from; no checkpoint if it stopped before its first epoch ended.

    Args:
        path: a checkpoint, or a run's folder.
        trust: functions that the file may name as its layers, ``module:function``. They will be run.
        changes: options that replace the run's, if they are among :data:`CHANGEABLE`.

    Raises:
        ValueError: if `path` holds neither, or names a function that is not in `trust`, or if another option
            differs, or there would be fewer epochs.
    """
    path = Path(path)
    checkpoint_path: Path | None = path / LAST if path.is_dir() else path
    if checkpoint_path is not None and (checkpoint_path == path or checkpoint_path.exists()):
        settings = _opened(checkpoint_path, trust, resume=True).settings
    elif (path / SETTINGS).exists():
        settings, checkpoint_path = read(path / SETTINGS, trust=trust), None
    else:
        raise ValueError(f"{_EXPECTED}; folder {path} holds no run of hibana train")
    for name, value in changes.items():
        before = getattr(settings, name)
        if name not in CHANGEABLE and value != before:
            raise ValueError(
                f"{name} must be {before!r}, as in {path}, which is resumed, got {value!r}; "
                f"only {', '.join(sorted(CHANGEABLE))} may change"
            )
    if changes.get("epochs", settings.epochs) < settings.epochs:
        raise ValueError(
            f"epochs must be at least the {settings.epochs} of the resumed run, got {changes['epochs']}"
        )
    return replace(settings, **changes), checkpoint_path


def load(path: Path | str, *, trust: Collection[str] = ()) -> Network:
    """The network that :func:`hibana.train.fit` or ``save_pretrained`` wrote to `path`.

    Args:
        path: a checkpoint, a run's folder, or a folder of :meth:`Network.save_pretrained`.
        trust: functions that it may name as its layers, ``module:function``. They will be run.

    Raises:
        ValueError: if there is no checkpoint of hibana, or only a part of one, or one that was changed
            since it was written, or it names a function that is not in `trust`.
    """
    path = checkpoint_of(Path(path))
    saved = _opened(path, trust)
    try:
        most = sum(weight.numel() for weight in saved.weights.values())
        model = Network(
            saved.settings, saved.shape, saved.classes, description=saved.description, most_weights=most
        )
        model.load_state_dict(saved.weights)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{_EXPECTED}; {path} holds something else: {settings_file.line(error)}") from error
    if path.name in (BEST, LAST) and checkpoint_of(path.parent) == path:
        model.result = results.read(path.parent)
    return model.eval()


class _Saved(NamedTuple):
    """A checkpoint in plain types, checked; no network is built yet."""

    settings: Settings
    shape: tuple[int, ...]
    classes: int
    weights: dict[str, torch.Tensor]
    description: data.Description | None


def _opened(path: Path, trust: Collection[str], *, resume: bool = False) -> _Saved:
    """The checkpoint at `path`; to `resume` from it, it needs the state of the training."""
    content = pretrained.content(path) if pretrained.is_pretrained(path) else checkpoint.read(path)
    try:
        hyper = user_data.without_removed_options(content["hyper_parameters"])
        weights = dict(content["state_dict"])
        shape, classes = hyper.pop("shape"), hyper.pop("classes")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{_EXPECTED}; {path} holds something else") from error
    if resume and not content.keys() >= _STATES:
        raise ValueError(f"{_EXPECTED}; {path} holds a network, and nothing that a training goes on from")
    for name in ("layers", "data"):
        architecture.check_trust(hyper.get(name), trust, f"checkpoint {path}")
    if not resume and isinstance(hyper.get("augment"), str):  # version 0.2.0 had two more words
        words = [word for word in hyper["augment"].split("-") if word not in ("drop", "mix")]
        hyper["augment"] = "-".join(words) or None
    description = _description(path, content)
    if hyper.get("kind") != (None if description is None else description.kind):
        raise ValueError(f"{_EXPECTED}; {path} does not say how its inputs are read")
    try:
        settings = Settings(**hyper)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_EXPECTED}; {path} holds other settings: {error}") from error
    expected = settings.data_set if description is None else description.inputs
    outputs = settings.data_set.classes if description is None else description.target.outputs
    if (shape, classes) != (list(expected.shape), outputs):  # a function of the user is called with these
        raise ValueError(f"{_EXPECTED}; {path} is of other inputs than {settings.data}")
    return _Saved(settings, tuple(shape), classes, weights, description)


def described(path: Path) -> data.Description | None:
    """How the user's data were read that the checkpoint at `path` was trained on; ``None`` for data sets."""
    return _description(path, checkpoint.read(path))


def _description(path: Path, content: dict[str, Any]) -> data.Description | None:
    if "description" not in content:
        return None
    try:
        return user_data.description_from_plain(content["description"])
    except (ValueError, TypeError) as error:
        message = f"{path} describes its inputs otherwise: {settings_file.line(error)}"
        raise ValueError(f"{_EXPECTED}; {message}") from error
