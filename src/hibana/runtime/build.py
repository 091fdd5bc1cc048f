"""Compiles LLVM IR to native functions, with a cache of object code on disk.

A cache file is named by a hash of the IR and of the versions of hibana, LLVM, torch, Python and processor. It
is used only if its digest and key are right, and no other user can have written it. ``HIBANA_CACHE`` names
another folder; ``off`` disables the cache.
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

from hibana.runtime import files

COMPILING = threading.RLock()
"""Held while a thread compiles, links or loads native code."""
if hasattr(os, "register_at_fork"):  # or a forked child could inherit the lock as held
    os.register_at_fork(
        before=COMPILING.acquire, after_in_parent=COMPILING.release, after_in_child=COMPILING.release
    )


@dataclass(frozen=True)
class Kernel:
    """A native function ``void (int64 begin, int64 end, void *args)`` and its LLVM IR."""

    name: str
    address: int
    source: str
    code: Any = field(repr=False)
    """Keeps the code alive."""


@dataclass(frozen=True)
class _Object:
    """Object code and the names of the kernels in it."""

    code: bytes
    names: tuple[str, ...]
    key: str = ""
    """The value of :func:`_key` when the file was written."""

    def packed(self, key: str) -> bytes:
        head = json.dumps({"key": key, "names": self.names}).encode()
        body = len(head).to_bytes(8, "little") + head + self.code
        return hashlib.sha256(body).digest() + body

    @classmethod
    def unpacked(cls, data: bytes) -> "_Object | None":
        """Parses `data`; None if its digest does not match."""
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() != digest:
            return None
        end = 8 + int.from_bytes(body[:8], "little")
        head = json.loads(body[8:end])
        return cls(body[end:], tuple(head["names"]), head["key"])


def assemble(source: str, names: tuple[str, ...]) -> tuple[Kernel, ...]:
    """The kernels `names` of an LLVM IR module, compiled or read from the cache.

    Raises:
        RuntimeError: if LLVM can't read `source`.
    """
    code = _linked_source(source, names)
    return tuple(Kernel(name, code.addresses[name], source, code) for name in names)


@dataclass(eq=False)
class _Code:
    """Native code loaded into this process; freed with its last reference."""

    addresses: dict[str, int]
    engine: Any


_LINKED: weakref.WeakValueDictionary[str, _Code] = weakref.WeakValueDictionary()


def _linked_source(source: str, names: tuple[str, ...]) -> _Code:
    """The code of `source`, loaded once in the process however many threads ask for it."""
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
    """The key stored in a cache file: its folder and name, so that a renamed file is not used."""
    return f"{path.parent.name}/{path.name}"


def _read(path: Path) -> _Object | None:
    data = files.read(path)
    found = None if data is None else _Object.unpacked(data)
    return found if found is not None and found.key == _key(path) else None


def _write(path: Path, data: bytes) -> None:
    try:
        files.write(path, data, mode=0o600, durable=False)
    except OSError as error:
        if isinstance(error, PermissionError) and path.is_file():
            return  # Windows: another process has it open, and equal names mean equal kernels
        _said_once(f"{path.parent}: {error.strerror or error}")  # a full disk fails at every kernel


def _say_not_kept(reason: str) -> None:
    warnings.warn(
        f"compiled kernels are not kept: {reason}; set HIBANA_CACHE to a folder of yours, or to 'off'",
        RuntimeWarning,
        stacklevel=3,
    )


_said_once = cache(_say_not_kept)


def _compiled(source: str, names: tuple[str, ...]) -> _Object:
    """Compiles a module to object code; vectors and hoisting are explicit, and need no passes of LLVM's."""
    llvm, machine = host()
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


def host() -> tuple[Any, Any]:
    """The LLVM bindings, and a target machine for the host processor.

    Raises:
        ImportError, OSError, RuntimeError: if llvmlite can't be loaded, or has no such target.
    """
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
    llvm, machine = host()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(found.code))
    engine.finalize_object()
    return _Code({name: engine.get_function_address(name) for name in found.names}, engine)


@cache
def compresses() -> bool:
    """Whether the processor compresses vectors of 16-bit integers in one instruction (AVX-512 VBMI2).

    It makes listing the positions of spikes cheap.
    """
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("avx512vbmi2"))


def cache_folder() -> Path | None:
    """The folder of compiled kernels: ``HIBANA_CACHE``, or the user's cache folder; None if off.

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
    """The cache folder of this toolchain; None, with one warning, if it can't be used."""
    try:
        base = cache_folder()
        if base is None:
            return None
        folder = base / _toolchain()
        for each in (base, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.require_private(each)
    except (ImportError, OSError, RuntimeError) as error:  # llvmlite is damaged; this user has no home
        _say_not_kept(str(error))
        return None
    files.sweep(folder)
    return folder


@cache
def _toolchain() -> str:
    """A hash of everything but the IR that object code depends on."""
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
