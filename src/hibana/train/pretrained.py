"""A trained network as a folder for others: weights in safetensors, a JSON configuration and a model card.

Files and verbs are those of ``huggingface_hub``: ``model.safetensors``, ``config.json`` and ``README.md``;
``save_pretrained`` and ``from_pretrained`` of :class:`hibana.train.Network`. ``hf upload USER/NAME FOLDER``
publishes such a folder. Nothing in it is run. Its contents are checked like those of a checkpoint, see
:mod:`hibana.train.loading`.
"""

import hashlib
import json
import math
import re
from dataclasses import fields
from pathlib import Path
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hibana import __version__
from hibana.data import user_data
from hibana.runtime import files
from hibana.runtime.extras import explain_import_error
from hibana.train import model_card, settings_file
from hibana.train.run_folder import SETTINGS
from hibana.train.settings import Settings

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train.network import Network

__all__ = [
    "NAMES",
    "SHIPPED",
    "check_folder",
    "content",
    "download",
    "is_pretrained",
    "pretrained",
    "write",
]

CARD, CONFIG, WEIGHTS = "README.md", "config.json", "model.safetensors"
FORMAT = 1
"""Version of ``config.json``; increased by changes that older versions of hibana would misread."""
SHIPPED = Path(__file__).with_name("networks")
"""Folder of the networks that come with hibana, which ``examples/pretrained.py`` trained."""
NAMES = ("digits", "mnist-1d", "spoken-digits")
_EXPECTED = "folder must be one that save_pretrained wrote"
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@explain_import_error("hibana.pretrained")
def pretrained(name: str) -> "Network":
    """A small trained network that comes with hibana; nothing is downloaded.

    ``digits`` names handwritten digits of 8x8 pixels, ``mnist-1d`` shapes in series of 40 values, and
    ``spoken-digits`` digits in 40 frames of 13 cepstral coefficients: the data sets of the same names, see
    :mod:`hibana.data`. Its card, ``README.md`` in ``hibana.train.pretrained.SHIPPED / name``, has its
    accuracy on the test part.

    Args:
        name: ``digits``, ``mnist-1d`` or ``spoken-digits``.

    Returns:
        The network, in evaluation: ``net(inputs)`` gives scores ``[N, classes]`` for ``[N, ...]``, and
        :func:`hibana.train.predict` answers by name.

    Raises:
        ModuleNotFoundError: if the extras ``train`` and ``hub`` are not installed.
        ValueError: if there is no network of that name; the message lists all names.

    >>> import torch
    >>> net = pretrained("digits")
    >>> net(torch.zeros(2, 8, 8)).shape
    torch.Size([2, 10])
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    from hibana.train.loading import load

    return load(SHIPPED / name)


def is_pretrained(path: Path) -> bool:
    """Whether `path` is a folder with a configuration; a run's folder has none."""
    return path.is_dir() and (path / CONFIG).is_file()


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Checks that a network may be written to a folder.

    Args:
        folder: may be missing.
        overwrite: also accept a folder that hibana did not write.

    Raises:
        ValueError: if it holds runs, or is neither empty nor written by :func:`write` without `overwrite`.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder, and {folder} is a file")
    if any(True for pattern in (SETTINGS, f"*/{SETTINGS}") for _ in folder.glob(pattern)):
        raise ValueError(f"folder must not hold runs of hibana train, {folder} does; choose another folder")
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or config.get("library_name") != "hibana":
        raise ValueError(
            f"folder must be empty or one that hibana share wrote, {folder} holds other files; "
            f"choose another folder, or replace {WEIGHTS} and {CONFIG} in it with --overwrite"
        )


def write(model: "Network", folder: Path, samples: "DataSet | None" = None, *, name: str = "") -> None:
    """Writes weights, configuration and card, see :meth:`hibana.train.Network.save_pretrained`."""
    with explain_import_error("save_pretrained"):
        from safetensors.torch import save

    facts = model.result if samples is None else model_card.measure(model, samples)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    weights = save(tensors, {"format": "pt"})
    settings = {
        key: "inf" if value == math.inf else value
        for key, value in model_card.portable(model.settings).items()
    }
    config = {
        "library_name": "hibana",
        "hibana_version": __version__,
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "settings": settings,
        "shape": model.hyper["shape"],
        "classes": model.hyper["classes"],
        **({} if model.description is None else {"description": model.description.to_plain()}),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, weights)
    files.write(folder / CONFIG, f"{text}\n".encode())
    before = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).exists() else ""
    files.write(folder / CARD, model_card.text(model, facts, name or folder.absolute().name, before).encode())


def content(folder: Path) -> dict[str, Any]:
    """Contents of `folder`, in the form of :func:`hibana.train.checkpoint.read`.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
        ValueError: if a file is missing, damaged, of a later format, or holds something else.
    """
    try:
        config = _config(folder / CONFIG)
        weights = _weights(folder / WEIGHTS, config["weights_sha256"])
    except OSError as error:
        raise ValueError(f"{_EXPECTED}; {error.filename} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{_EXPECTED}; {folder} has a {settings_file.line(error)}") from error
    hyper = {**config["settings"], "shape": config["shape"], "classes": config["classes"]}
    described = {"description": config["description"]} if "description" in config else {}
    return {"hyper_parameters": hyper, "state_dict": weights, **described}


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{CONFIG} that is no JSON: {error}") from error
    types = {"format": int, "weights_sha256": str, "settings": dict, "shape": list, "classes": int}
    if not isinstance(config, dict) or any(type(config.get(name)) is not of for name, of in types.items()):
        raise ValueError(f"{CONFIG} without {', '.join(types)} of the right types")
    options = {field.name: field.type for field in fields(Settings)}
    config["settings"] = user_data.without_removed_options(config["settings"])
    unknown = [name for name in config["settings"] if name not in options]
    if config["format"] != FORMAT or unknown:
        version = short_repr(config.get("hibana_version"))
        what = short_repr(unknown[0]) if unknown else f"format {short_repr(config['format'])}"
        raise ValueError(f"{CONFIG} of version {version} with {what}, which {__version__} does not know")
    for name, value in config["settings"].items():
        if value == "inf" and options[name] in (float, float | None):
            config["settings"][name] = math.inf
    return config


def _weights(path: Path, digest: str) -> dict[str, Tensor]:
    with explain_import_error("from_pretrained"):
        from safetensors import SafetensorError
        from safetensors.torch import load

    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"{WEIGHTS} that was changed since it was written: its digest is another")
    try:
        weights: dict[str, Tensor] = load(raw)
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS} that is none: {error}") from error
    return weights


def download(name: str | Path, **options: Any) -> Path:
    """The folder `name`, or of that name on the Hub, see :meth:`hibana.train.Network.from_pretrained`."""
    if Path(name).exists():
        if not is_pretrained(Path(name)):
            raise ValueError(f"{_EXPECTED}; {name} has no {CONFIG}")
        return Path(name)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"name must be a folder, or USER/NAME on the Hub; there is no folder {name}")
    with explain_import_error("from_pretrained"):
        from huggingface_hub import snapshot_download
    return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **options))
