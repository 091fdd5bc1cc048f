"""Private names of torch are used in one file only, which imports with this release of torch."""

import importlib
import importlib.util
import re
from pathlib import Path

import torch

import hibana as hb
from hibana.runtime import torch_internals

SOURCE = Path(hb.__file__).parent
PRIVATE = re.compile(
    r"\b(?:torch(?:\.[a-z]\w*)*|forward_ad)\._(?!_)\w+(?:\.\w+)*|from torch[.\w]*\._\w+ import.*"
)
ALLOWED = ("torch.ops.", "torch._dynamo", "torch._utils")
"""Operators, whose names are saved in graphs; a key of ``sys.modules``; a name in pickles."""


def test_private_names_of_torch_are_used_in_one_file():
    used = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path in SOURCE.rglob("*.py")
        if path != Path(torch_internals.__file__)
        for name in PRIVATE.findall(path.read_text(encoding="utf-8"))
        if not name.startswith(ALLOWED)
    }
    assert not used, "move private names to runtime/torch_internals.py, with their purpose"


def test_this_release_of_torch_has_every_private_name():
    """Also those that a function of `torch_internals` reads only when it is called."""
    source = Path(torch_internals.__file__).read_text(encoding="utf-8")
    names = {name for name in re.findall(r"\btorch(?:\.\w+)+", source) if "._" in name}
    assert len(names) > 10
    missing = [name for name in names if not exists(name) and name != "torch.ops.mkldnn._linear_pointwise"]
    assert not missing, f"torch {torch.__version__} lacks {missing}"


def exists(name):
    """Whether torch has the object `name`, in modules that are imported here."""
    place = torch
    for part in name.split(".")[1:]:
        if not hasattr(place, part) and importlib.util.find_spec(f"{place.__name__}.{part}"):
            importlib.import_module(f"{place.__name__}.{part}")
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True
