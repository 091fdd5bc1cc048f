"""Source text to native functions, kept on disk.

A kernel's source, in LLVM's language, is compiled once; its object code is then kept in one file, whose name
says what it was made from and by: the source, and the versions of hibana, LLVM, torch, Python and the
processor. A file is believed only if its digest is right, it was written under the name that it bears, and
nobody else can have written it. Where it can't be kept, the kernel is compiled in memory, and that is said
once.

``HIBANA_CACHE`` names another folder than the user's own cache, or ``off`` keeps nothing.
"""

import hashlib
import json
import os
import platform
import sys
import threading
import warnings
import weakref
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hibana.native import files

__all__ = ["COMPILING", "Kernel", "assemble", "cache_folder", "compresses", "kept_in"]

COMPILING = threading.RLock()
"""Held by the one thread that compiles, links or loads native code."""
if hasattr(os, "register_at_fork"):  # a child would wait for a thread that it does not have
    os.register_at_fork(
        before=COMPILING.acquire, after_in_parent=COMPILING.release, after_in_child=COMPILING.release
    )


@dataclass(frozen=True)
class Kernel:
    """A native function ``void (int64 begin, int64 end, void *args)``, and the source it came from."""

    name: str
    address: int
    source: str
    code: Any = field(repr=False)
    """Keeps the code alive."""


@dataclass(frozen=True)
class _Object:
    """Object code, and the kernels that it defines."""

    code: bytes
    names: tuple[str, ...]
    key: str = ""
    """Of the file that it was read from: what :func:`_key` was when it was written."""

    def packed(self, key: str) -> bytes:
        head = json.dumps({"key": key, "names": self.names}).encode()
        body = len(head).to_bytes(8, "little") + head + self.code
        return hashlib.sha256(body).digest() + body

    @classmethod
    def unpacked(cls, data: bytes) -> "_Object | None":
        """The object in `data`, or None if it is damaged."""
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() != digest:
            return None
        end = 8 + int.from_bytes(body[:8], "little")
        head = json.loads(body[8:end])
        return cls(body[end:], tuple(head["names"]), head["key"])


def assemble(source: str, names: tuple[str, ...]) -> tuple[Kernel, ...]:
    """The kernels called `names` in a module of LLVM's language, compiled now or taken from the cache.

    Args:
        source: the module.
        names: of the functions in it that are called from outside.

    Raises:
        RuntimeError: if LLVM can't read `source`.
    """
    code = _linked_source(source, names)
    return tuple(Kernel(name, code.addresses[name], source, code) for name in names)


@dataclass(eq=False)
class _Code:
    """Native code in this process, which goes when nobody holds it any more."""

    addresses: dict[str, int]
    engine: Any


_LINKED: weakref.WeakValueDictionary[str, _Code] = weakref.WeakValueDictionary()


def _linked_source(source: str, names: tuple[str, ...]) -> _Code:
    """The code of `source`, one in the process however many threads ask for it."""
    text = "\n".join((*names, source))
    key = hashlib.sha256(text.encode()).hexdigest()
    with COMPILING:
        code = _LINKED.get(key)
        if code is None:
            path = _file(text)
            found = None if path is None else _read(path)
            if found is None:
                found = _compiled(source, names)
                if path is not None:
                    _write(path, found.packed(_key(path)))
            code = _LINKED[key] = _linked(found)
        return code


def _file(text: str) -> Path | None:
    folder = kept_in()
    return None if folder is None else folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.kernel"


def _key(path: Path) -> str:
    """What a file was made from and by, as its place says it: under another name it is another kernel."""
    return f"{path.parent.name}/{path.name}"


def _read(path: Path) -> _Object | None:
    data = files.read(path)
    found = None if data is None else _Object.unpacked(data)
    return found if found is not None and found.key == _key(path) else None


def _write(path: Path, data: bytes) -> None:
    try:
        files.write(path, data)
    except OSError as error:
        _said_once(f"{path.parent}: {error.strerror or error}")  # a full disk fails at every kernel


def _say_not_kept(reason: str) -> None:
    warnings.warn(
        f"compiled kernels are not kept: {reason}; set HIBANA_CACHE to a folder of yours, or to 'off'",
        RuntimeWarning,
        stacklevel=3,
    )


_said_once = cache(_say_not_kept)


def _compiled(source: str, names: tuple[str, ...]) -> _Object:
    """The object code of a module.

    In its text what does not change in a loop stands before it, and vectors are written as such: passes of
    LLVM that look for either would take half as long again to find nothing, and are left out.
    """
    llvm, machine = _llvm()
    module = llvm.parse_assembly(source)
    module.verify()
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()  # variables to registers
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    passes.add_loop_rotate_pass()  # one branch each time, at the end
    passes.add_reassociate_pass()
    passes.add_new_gvn_pass()
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    llvm.set_option("", "-disable-lsr=true")  # no search for the cheapest way to count through addresses
    try:
        return _Object(machine.emit_object(module), names)
    finally:
        llvm.set_option("", "-disable-lsr=false")  # it holds for the process, in which others compile too


def _llvm() -> tuple[Any, Any]:
    """LLVM, and this very processor as its target."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, codemodel="jitdefault", jit=True
    )
    return llvm, machine


def _linked(found: _Object) -> _Code:
    llvm, machine = _llvm()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(found.code))
    engine.finalize_object()
    return _Code({name: engine.get_function_address(name) for name in found.names}, engine)


@cache
def compresses() -> bool:
    """Whether one instruction of this processor puts chosen elements of a vector together.

    With it, listing spikes costs little, and adding them one by one pays up to a higher density of them.
    """
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("avx512vbmi2"))


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: ``HIBANA_CACHE``, or the user's cache folder; None if off.

    Raises:
        RuntimeError: if it lies in the user's home, and this user has none.
    """
    wanted = os.environ.get("HIBANA_CACHE", "")
    if wanted.lower() in ("off", "0"):
        return None
    if wanted:
        return Path(wanted).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hibana"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "hibana"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hibana"


@cache
def kept_in() -> Path | None:
    """This toolchain's part of the cache, or None (said once) if it can't be used."""
    try:
        base = cache_folder()
        if base is None:
            return None
        folder = base / _toolchain()
        for each in (base, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.require_private(each)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        _say_not_kept(str(error))
        return None
    files.sweep(folder)
    return folder


@cache
def _toolchain() -> str:
    """A name for everything but the source that a kernel's code depends on."""
    import llvmlite.binding as llvm
    import torch

    import hibana

    features = ",".join(sorted(name for name, there in llvm.get_host_cpu_features().items() if there))
    own = [Path(__file__).with_name(name).read_bytes() for name in ("build.py", "files.py")]
    parts = (
        hibana.__version__,
        hashlib.sha256(b"".join(own)).hexdigest(),
        torch.__version__,
        version("llvmlite"),
        platform.python_version(),
        platform.machine(),
        llvm.get_host_cpu_name(),
        features,
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
