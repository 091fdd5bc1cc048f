"""Shared folders of trained networks: weights in safetensors, a JSON configuration and a model card.

File and method names are those of ``huggingface_hub``: ``model.safetensors``, ``config.json`` and
``README.md``; ``save_pretrained`` and ``from_pretrained`` of :class:`hibana.train.Network`.
``hf upload USER/NAME FOLDER`` publishes such a folder. Opening a folder runs no code from it. Its contents
are checked like those of a checkpoint, see :mod:`hibana.train.loading`.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, fields
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from torch import nn

from hibana.data import Description
from hibana.data.user_data.samples import reading
from hibana.runtime import files
from hibana.runtime.extras import explain_import_error
from hibana.train.results import Measurements
from hibana.train.run_folder import SETTINGS
from hibana.train.settings import IN_MEMORY, Settings
from hibana.version import __version__

CARD, CONFIG, WEIGHTS = "README.md", "config.json", "model.safetensors"
FORMAT = 1
"""Version of ``config.json``; increased by changes that older versions of hibana would misread."""
_EXPECTED = "folder must be one that save_pretrained wrote"
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def is_pretrained(path: Path) -> bool:
    """Whether `path` is a shared folder: it contains a configuration, which a run's folder does not."""
    return path.is_dir() and (path / CONFIG).is_file()


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Checks that a network may be written to a folder, which may be missing.

    Raises ValueError if `folder` contains a run, or, without `overwrite`, files that :func:`write` did not
    write.
    """
    if any(True for pattern in (SETTINGS, f"*/{SETTINGS}") for _ in folder.glob(pattern)):
        raise ValueError(f"folder must not hold runs of hibana train, {folder} does; choose another folder")
    if overwrite or not folder.is_dir() or not any(folder.iterdir()):
        return
    config = folder / CONFIG
    if not config.is_file() or b'"library_name": "hibana"' not in config.read_bytes():
        raise ValueError(
            f"folder must be empty or one that hibana share wrote, {folder} holds other files; "
            f"choose another folder, or replace {WEIGHTS} and {CONFIG} in it with --overwrite"
        )


def write(
    model: nn.Module,
    folder: Path,
    name: str,
    settings: Settings,
    hyper: dict[str, Any],
    description: Description | None,
    result: Measurements | None,
) -> None:
    """Writes weights, configuration and model card; see :meth:`hibana.train.Network.save_pretrained`.

    Args:
        model: the network.
        folder: the folder; created if it is missing.
        name: the network's name in the card; the folder's name if empty.
        settings: settings of the run.
        hyper: contents of a checkpoint besides the weights.
        description: how the user's data are read.
        result: results of the run on the test part.
    """
    with explain_import_error("save_pretrained"):
        from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    weights = save(tensors, {"format": "pt"})
    options = {key: value for key, value in _portable(settings).items() if value is not None}
    config = {
        "library_name": "hibana",
        "hibana_version": __version__,
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "settings": {key: "inf" if value == math.inf else value for key, value in options.items()},
        "shape": hyper["shape"],
        "classes": hyper["classes"],
        **({} if description is None else {"description": description.to_plain()}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, weights)
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
    files.write(folder / CONFIG, f"{text}\n".encode())
    if not (folder / CARD).exists():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        card = _model_card(name or folder.absolute().name, settings, hyper, parameters, description, result)
        files.write(folder / CARD, card.encode())


def _portable(settings: Settings) -> dict[str, Any]:
    """Returns the options of `settings` by name, without the folders of this machine.

    >>> _portable(Settings(data="/home/me/flowers.csv", kind="table"))["data"]
    './flowers.csv'
    """
    options = {**asdict(settings), "root": None}
    if settings.kind is not None:
        for name in ("data", "test"):
            if options[name] not in (None, IN_MEMORY):
                options[name] = f"./{Path(options[name]).name}"
    return options


def _model_card(
    name: str,
    settings: Settings,
    hyper: dict[str, Any],
    parameters: int,
    description: Description | None,
    result: Measurements | None,
) -> str:
    """Returns a model card in Markdown: data, network, results of the run, and how to use it."""
    data, layers = _portable(settings)["data"], settings.layers
    shape = "x".join(map(str, hyper["shape"]))
    accuracy = firing = "not measured"
    if result is not None and result.value is not None:
        unit = "of the variance explained" if result.measure == "explained" else "right"
        accuracy = f"{result.value:.1%} {unit}, on its test part"
        rates = ", ".join(f"`{layer}` {rate:.1%}" for layer, rate in result.rates.items())
        firing = f"{rates} (spikes per neuron and step)" if rates else "no layer spikes"
    is_regression = description is not None and not description.target.classes
    rows = {
        "data": f"`{data}`, {settings.data_kind}, {shape} at each of {settings.steps} steps",
        "answers": "a quantity" if is_regression else f"{hyper['classes']} classes",
        "network": f"`{layers}` of {settings.cell}, {settings.coding} coding",
        "parameters": f"{parameters:,}",
        "accuracy": accuracy,
        "firing": firing,
    }
    table = "\n".join(f"| {title} | {text} |" for title, text in rows.items())
    return f"""---
library_name: hibana
tags:
- hibana
- spiking-neural-network
- pytorch
---
# {name}

A spiking network for PyTorch, trained by hibana.

| | |
|---|---|
{table}

## Use

`pip install '.[train,hub]'` in a clone of hibana, then, for a folder or a name on the Hub:

```python
import hibana as hb

model = hb.train.Network.from_pretrained("{name}")
answers = hb.train.predict(model, "samples")  # a file or folder of the kind that was trained on
```
"""


def read(folder: Path) -> dict[str, Any]:
    """Returns the contents of a shared folder in the layout of :func:`hibana.train.checkpoint.read`.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
        ValueError: if a file is missing, damaged, of a later format, or has other contents.
    """
    with explain_import_error("from_pretrained"):
        from safetensors.torch import load
    with reading(f"configuration {folder / CONFIG}"):
        config = _read_config(folder / CONFIG)
    with reading(f"weights {folder / WEIGHTS}"):
        content = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() != config["weights_sha256"]:
            raise ValueError("they were changed since they were written: their digest differs")
        weights = load(content)
    description = {name: config[name] for name in ("description",) if name in config}
    options = {**config["settings"], "shape": config["shape"], "classes": config["classes"]}
    return {"hyper_parameters": options, "state_dict": weights, **description}


def _read_config(path: Path) -> dict[str, Any]:
    """Returns the contents of a configuration; raises ValueError if its form is not that of this version."""
    config = json.loads(path.read_bytes())
    types = {"format": int, "weights_sha256": str, "settings": dict, "shape": list, "classes": int}
    if not isinstance(config, dict) or any(type(config.get(name)) is not types[name] for name in types):
        raise ValueError(f"it must have {', '.join(types)} of the right types")
    if config["format"] != FORMAT:
        version = short_repr(config.get("hibana_version"))
        reason = f"has format {short_repr(config['format'])}, which {__version__} can't read"
        raise ValueError(f"it is of version {version} and {reason}")
    infinite = [field.name for field in fields(Settings) if field.type in (float, float | None)]
    settings = config["settings"]
    settings |= {name: math.inf for name in infinite if settings.get(name) == "inf"}
    return config


def download(name: str | Path, **options: Any) -> Path:
    """Returns the local folder `name`, or downloads it; see :meth:`hibana.train.Network.from_pretrained`."""
    if Path(name).exists():
        if not is_pretrained(Path(name)):
            raise ValueError(f"{_EXPECTED}; {name} has no {CONFIG}")
        return Path(name)
    if not isinstance(name, str) or not _HUB_NAME.fullmatch(name):
        raise ValueError(f"name must be a folder, or USER/NAME on the Hub; there is no folder {name}")
    with explain_import_error("from_pretrained"):
        from huggingface_hub import snapshot_download
    return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **options))
