"""hibana (火花, spark): integrate-and-fire spiking networks for PyTorch.

Write one step; hibana runs it over time.

>>> import torch, hibana as hb
>>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), hb.IF(), torch.nn.Linear(8, 3), hb.LI())
>>> potentials = net(torch.rand(25, 4, 2))  # [T, batch, ...]
>>> potentials.shape
torch.Size([25, 4, 3])

``__init__.pyi`` lists the public names. This module imports cells, their layers and the loop over time; other
names are imported when first accessed.
"""

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hibana.runtime import openmp_spin  # must be imported before torch
from hibana.version import __version__ as __version__

if openmp_spin.is_command() and sys.argv[1:] == ["--version"]:  # the imports below take seconds
    print(__version__)
    raise SystemExit

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "hibana needs Python's global interpreter lock, which is off in this process: threads share its "
        "caches of kernels; start Python with PYTHON_GIL=1 or -X gil=1"
    )

# isort: split
from hibana import cells, event_gradients  # noqa: F401 - the second sets hooks of the compiler
from hibana.cells import *
from hibana.cells import peer_aliases
from hibana.nn import layers
from hibana.nn.layers import *
from hibana.runtime import extras

_SOURCES = {
    alias.asname: (statement.module, alias.name)
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
    if alias.asname
}
"""For each public name, the module that it is imported from and its name there."""
_MODULES_WITH_EXTRAS = {"data", "demo", "learn", "metrics", "nir", "play", "plot", "sklearn", "train"}
"""Public modules that ``from hibana import *`` leaves out: most of them need packages of an extra."""

__all__ = sorted({*cells.__all__, *layers.__all__, *_SOURCES} - _MODULES_WITH_EXTRAS - {"__version__"})


def __dir__() -> list[str]:
    return sorted({*globals(), *_SOURCES})


def __getattr__(name: str) -> Any:
    """The public module, function or class `name`, imported now.

    Raises:
        AttributeError: if the name does not exist, or a module needs a package that is not installed.
        ModuleNotFoundError: if a function or class needs a package that is not installed.
    """
    if name not in _SOURCES:
        raise peer_aliases.unknown_name_error(name, __dir__())
    package, source_name = _SOURCES[name]
    try:
        with extras.explain_import_error(f"hibana.{name}"):
            if package == "hibana":
                value = importlib.import_module(f"hibana.{source_name}")
            else:
                value = getattr(__import__(package, fromlist=[source_name]), source_name)
    except ModuleNotFoundError as error:
        if name not in _MODULES_WITH_EXTRAS:
            raise
        raise AttributeError(str(error)) from error  # so that hasattr returns False
    if isinstance(value, ModuleType):
        peer_aliases.suggest_attributes(value, f"hibana.{name}")
    return globals().setdefault(name, value)
