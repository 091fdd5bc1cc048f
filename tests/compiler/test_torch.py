"""Private names of torch are used in one file only, which imports with this release of torch."""

import re
from pathlib import Path

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
