"""Opens checkpoints and shared folders, which another process or person wrote."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hibana.data import user_data
from hibana.train import architecture, checkpoint, shared_folder
from hibana.train.checkpoint import EXPECTED, one_line
from hibana.train.run_folder import LAST, SETTINGS
from hibana.train.settings import Settings, read

CHANGEABLE = {"epochs", "patience", "devices", "nodes", "accelerator", "precision"}
CHANGEABLE |= {"data", "test", "root", "download"}
"""Options that may differ when a run is resumed."""


def resume_settings(
    path: Path | str, *, trust: Collection[str] = (), **changes: Any
) -> tuple[Settings, Path | None]:
    """Returns the settings and the checkpoint to resume a run from.

    The checkpoint is ``None`` if the run stopped before its first epoch ended.

    Args:
        path: a checkpoint, or a run's folder.
        trust: functions ``module:function`` that the file may name as its layers. They are executed.
        changes: options that replace the run's. Only :data:`CHANGEABLE` options may differ.

    Raises:
        ValueError: if there is no checkpoint or run at `path`, the file names a function that is not in
            `trust`, another option differs, or `epochs` is below that of the run.
    """
    path = Path(path)
    checkpoint_path: Path | None = path / LAST if path.is_dir() else path
    if checkpoint_path is not None and (checkpoint_path == path or checkpoint_path.exists()):
        settings, _, _ = open_checkpoint(checkpoint_path, trust, resume=True)
    elif (path / SETTINGS).exists():
        settings, checkpoint_path = read(path / SETTINGS, trust=trust), None
    else:
        raise ValueError(f"{EXPECTED}; folder {path} holds no run of hibana train")
    for name, value in changes.items():
        setting = getattr(settings, name)  # the value in the resumed run
        if name not in CHANGEABLE and value != setting:
            raise ValueError(
                f"{name} must be {setting!r}, as in {path}, which is resumed, got {value!r}; "
                f"only {', '.join(sorted(CHANGEABLE))} may change"
            )
    if changes.get("epochs", settings.epochs) < settings.epochs:
        raise ValueError(f"epochs must be at least the run's {settings.epochs}, got {changes['epochs']}")
    return replace(settings, **changes), checkpoint_path


def open_checkpoint(
    path: Path, trust: Collection[str], *, resume: bool = False
) -> tuple[Settings, dict[str, torch.Tensor], dict[str, Any]]:
    """Reads and checks a checkpoint; returns settings, weights, and the other arguments of ``Network``.

    Args:
        path: a checkpoint or shared folder.
        trust: functions ``module:function`` that the file may name as its layers.
        resume: whether the training is resumed; then options of earlier versions are not dropped.
    """
    content = shared_folder.read(path) if shared_folder.is_pretrained(path) else checkpoint.read(path)
    try:
        options = user_data.without_removed_options(content["hyper_parameters"])
        weights = dict(content["state_dict"])
        shape, classes = options.pop("shape"), options.pop("classes")
        plain = content.get("description")
        description = None if plain is None else user_data.description_from_plain(plain)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{EXPECTED}; {path} holds something else: {one_line(error)}") from error
    for name in ("layers", "data"):
        architecture.check_trust(options.get(name), trust, f"checkpoint {path}")
    if not resume and isinstance(options.get("augment"), str):  # version 0.2.0 had two more words
        words = [word for word in options["augment"].split("-") if word not in ("drop", "mix")]
        options["augment"] = "-".join(words) or None
    if options.get("kind") != (None if description is None else description.kind):
        raise ValueError(f"{EXPECTED}; {path} does not describe how its inputs are read")
    try:
        settings = Settings(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{EXPECTED}; {path} holds other settings: {error}") from error
    expected = settings.data_set if description is None else description.inputs
    outputs = settings.data_set.classes if description is None else description.target.outputs
    if (shape, classes) != (list(expected.shape), outputs):  # a user's function is called with these
        raise ValueError(f"{EXPECTED}; {path} is of other inputs than {settings.data}")
    return settings, weights, {"shape": tuple(shape), "classes": classes, "description": description}
