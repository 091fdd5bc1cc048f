"""A trained network as a folder for others: weights in safetensors, a JSON configuration and a model card.

Files and verbs are those of ``huggingface_hub``: ``model.safetensors``, ``config.json`` and ``README.md``;
``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of :class:`hibana.train.Network`. Nothing in such
a folder is run. It is read as a stranger's: sizes are bounded, and what it says of a network is held to all
that :mod:`hibana.train.restoring` asks of a checkpoint. What the card says is in :mod:`hibana.train.card`.
"""

import hashlib
import json
import math
import re
from dataclasses import fields
from pathlib import Path
from reprlib import repr as short_repr
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from hibana import __version__
from hibana.runtime import files
from hibana.runtime.extras import needing
from hibana.train import card, record
from hibana.train.folder import SETTINGS
from hibana.train.settings import Settings

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train.network import Network

__all__ = [
    "CARD",
    "CONFIG",
    "WEIGHTS",
    "Commit",
    "check_folder",
    "content",
    "fetched",
    "is_pretrained",
    "push",
    "write",
]

CARD, CONFIG, WEIGHTS = "README.md", "config.json", "model.safetensors"
FORMAT = 1
"""Version of ``config.json``; a change that older versions of hibana would misread raises it."""
_WANTED = "folder must be one that save_pretrained wrote"
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Commit(NamedTuple):
    """What :meth:`hibana.train.Network.push_to_hub` asks the Hub for, as ``huggingface_hub`` names it."""

    message: str
    private: bool | None = None
    token: str | bool | None = None
    branch: str | None = None
    create_pr: bool = False


def is_pretrained(path: Path) -> bool:
    """Whether `path` is a folder with a configuration, which a run's folder has not."""
    return path.is_dir() and (path / CONFIG).is_file()


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Refuses to write a network to a folder that holds something else.

    Args:
        folder: may be missing.
        overwrite: also take a folder that hibana did not write.

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
    """Writes `model` to `folder`: weights, configuration and card.

    Args:
        model: a trained network.
        folder: made if it is not there. Of a card that is there, only the part that hibana wrote is replaced.
        samples: data whose test part the card's accuracy, firing and operations are measured on; those of
            the run, without operations, if ``None``.
        name: what the card calls the network; the folder's name if empty.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
        OSError: if it can't be written.
    """
    with needing("save_pretrained"):
        from safetensors.torch import save

    facts = model.result if samples is None else card.measured(model, samples)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    weights = save(tensors, {"format": "pt"})
    said = _said(model, hashlib.sha256(weights).hexdigest())
    text = json.dumps(said, indent=2, ensure_ascii=False, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, weights)
    files.write(folder / CONFIG, f"{text}\n".encode())
    before = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).exists() else ""
    written = card.text(model, facts, name or folder.absolute().name, before)
    files.write(folder / CARD, written.encode())


def _said(model: "Network", digest: str) -> dict[str, Any]:
    """The configuration, in values of JSON; infinity is the text ``inf``."""
    settings = card.portable(model.settings)
    settings = {name: "inf" if value == math.inf else value for name, value in settings.items()}
    description = {} if model.description is None else {"description": model.description.said()}
    return {
        "library_name": "hibana",
        "hibana_version": __version__,
        "format": FORMAT,
        "weights_sha256": digest,
        "settings": settings,
        "shape": model.hyper["shape"],
        "classes": model.hyper["classes"],
        **description,
    }


def content(folder: Path) -> dict[str, Any]:
    """What `folder` says of a network, as :func:`hibana.train.checkpoint.read` gives it.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
        ValueError: if a file is missing, damaged, too large, of a later format, or holds something else.
    """
    try:
        config = _config(folder / CONFIG)
        weights = _weights(folder / WEIGHTS, config["weights_sha256"])
    except OSError as error:
        raise ValueError(f"{_WANTED}; {error.filename} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{_WANTED}; {folder} has a {record.line(error)}") from error
    settings = config["settings"]
    hyper = {**settings, "shape": config["shape"], "classes": config["classes"]}
    described = {"description": config["description"]} if "description" in config else {}
    return {"hyper_parameters": hyper, "state_dict": weights, **described}


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{CONFIG} that is no JSON: {error}") from error
    wanted = {"format": int, "weights_sha256": str, "settings": dict, "shape": list, "classes": int}
    if not isinstance(config, dict) or any(type(config.get(name)) is not of for name, of in wanted.items()):
        raise ValueError(f"{CONFIG} without {', '.join(wanted)} of the right types")
    known = {field.name: field.type for field in fields(Settings)}
    later = [name for name in config["settings"] if name not in known]
    if config["format"] != FORMAT or later:
        version = short_repr(config.get("hibana_version"))
        what = short_repr(later[0]) if later else f"format {short_repr(config['format'])}"
        raise ValueError(f"{CONFIG} of version {version} with {what}, which {__version__} does not know")
    for name, value in config["settings"].items():
        if value == "inf" and known[name] in (float, float | None):
            config["settings"][name] = math.inf
    return config


def _weights(path: Path, digest: str) -> dict[str, Tensor]:
    with needing("from_pretrained"):
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


def fetched(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder `name`, or the one that the Hub has under that name, through ``huggingface_hub``'s cache.

    Raises:
        ModuleNotFoundError: if it is no folder, and huggingface_hub is not installed.
        ValueError: if it is neither a folder with a network nor a name on the Hub.
    """
    if Path(name).exists():
        if not is_pretrained(Path(name)):
            raise ValueError(f"{_WANTED}; {name} has no {CONFIG}")
        return Path(name)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"name must be a folder, or USER/NAME on the Hub; there is no folder {name}")
    with needing("from_pretrained"):
        from huggingface_hub import snapshot_download
    options: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
    options |= {"force_download": force_download, "local_files_only": local_files_only}
    return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **options))


def push(model: "Network", name: str, commit: Commit, samples: "DataSet | None" = None) -> str:
    """Writes `model` to the repository `name` of the Hub, which is made if it is not there; its address.

    Raises:
        ModuleNotFoundError: if huggingface_hub or safetensors is not installed.
    """
    with needing("push_to_hub"):
        from huggingface_hub import HfApi

    api = HfApi(token=commit.token)
    repository = api.create_repo(name, private=commit.private, exist_ok=True).repo_id
    if commit.branch is not None:
        api.create_branch(repository, branch=commit.branch, exist_ok=True)
    with TemporaryDirectory() as folder:
        if api.file_exists(repository, CARD, revision=commit.branch):
            api.hf_hub_download(repository, CARD, revision=commit.branch, local_dir=folder)
        write(model, Path(folder), samples, name=repository.rpartition("/")[2])
        return str(
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=commit.message,
                revision=commit.branch,
                create_pr=commit.create_pr,
                allow_patterns=[CARD, CONFIG, WEIGHTS],
            )
        )
