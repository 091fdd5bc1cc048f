"""Source text to native functions, kept on disk.

A kernel's source is written to ``<cache>/<toolchain>/<digest>/kernel.py`` and imported from there, so
Numba's own cache keeps the object code beside it. Around that stands what Numba leaves out: the folder
is private to the user, one process builds at a time, every file is checked against a recorded digest
before it is used, and the toolchain's name covers hibana, torch, Numba, Python and the processor.

``HIBANA_CACHE`` names another folder, or ``off`` keeps nothing.
"""

import hashlib
import importlib.util
import json
import linecache
import os
import platform
import shutil
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

__all__ = ["Kernel", "build", "cache_folder"]

HEADER = "from hibana.native.vocabulary import *\n"


@dataclass(frozen=True)
class Kernel:
    """A native function ``void (int64 begin, int64 end, void *args)``, and the source it came from."""

    name: str
    address: int
    source: str
    module: ModuleType
    """Keeps the code alive."""


def build(source: str, names: tuple[str, ...]) -> tuple[Kernel, ...]:
    """The kernels called `names` in `source`, compiled now or taken from the cache.

    Args:
        source: a Python module that may use all of :mod:`hibana.native.vocabulary`; each kernel is
            decorated with its ``@kernel``.
        names: the kernels in it.
    """
    module = _module(HEADER + source)
    return tuple(Kernel(name, getattr(module, name).address, source, module) for name in names)


@cache
def _module(text: str) -> ModuleType:
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    name = f"hibana_kernel_{digest}"
    home = _toolchain_folder()
    if home is None:
        return _executed(name, text)
    folder = home / digest
    with _only_us(folder):
        _drop_if_damaged(folder, text)
        module = _imported(name, folder, text)
        _record(folder)
    return module


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: ``HIBANA_CACHE``, or the user's cache folder; None if off."""
    wanted = os.environ.get("HIBANA_CACHE", "")
    if wanted.lower() in ("off", "0"):
        return None
    if wanted:
        return Path(wanted).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hibana"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "hibana"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hibana"


@cache
def _toolchain_folder() -> Path | None:
    """This toolchain's part of the cache, or None (said once) if it can't be used."""
    base = cache_folder()
    if base is None:
        return None
    folder = base / _toolchain()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid"):
            _require_private(base)
            _require_private(folder)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, PermissionError) as error:
        warnings.warn(
            f"compiled kernels are not kept: {error}; set HIBANA_CACHE to a folder of yours, or to 'off'",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return folder


def _require_private(folder: Path) -> None:
    """Object code is run, so a folder that somebody else can write to is not trusted."""
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} can be written by others")


def _toolchain() -> str:
    import llvmlite.binding as llvm
    import numba
    import torch

    import hibana

    features = ",".join(sorted(name for name, there in llvm.get_host_cpu_features().items() if there))
    parts = (
        hibana.__version__,
        *(_digest(Path(__file__).with_name(name)) for name in ("build.py", "vocabulary.py")),
        torch.__version__,
        numba.__version__,
        platform.python_version(),
        platform.machine(),
        llvm.get_host_cpu_name(),
        features,
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _only_us(folder: Path) -> Iterator[None]:
    from filelock import FileLock

    folder.mkdir(mode=0o700, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        yield


def _imported(name: str, folder: Path, text: str) -> ModuleType:
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "kernel.py"
    if not path.exists():
        path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Numba finds a cached function's module by its name
    spec.loader.exec_module(module)
    return module


def _executed(name: str, text: str) -> ModuleType:
    """`text` as a module of its own, with nothing on disk."""
    module = ModuleType(name)
    filename = f"<{name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    exec(compile(text, filename, "exec"), module.__dict__)
    return module


def _kept_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "digests.json")


def _record(folder: Path) -> None:
    digests = {str(p.relative_to(folder)): _digest(p) for p in _kept_files(folder)}
    record = folder / "digests.json"
    if not record.exists() or json.loads(record.read_text()) != digests:
        fresh = record.with_suffix(".new")
        fresh.write_text(json.dumps(digests))
        fresh.replace(record)


def _drop_if_damaged(folder: Path, text: str) -> None:
    """Empties `folder` unless each file in it is what was recorded, and the source is `text`."""
    try:
        recorded = json.loads((folder / "digests.json").read_text())
        sound = (folder / "kernel.py").read_text() == text and recorded == {
            str(p.relative_to(folder)): _digest(p) for p in _kept_files(folder)
        }
    except (OSError, ValueError):
        sound = False
    if not sound:
        shutil.rmtree(folder)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
