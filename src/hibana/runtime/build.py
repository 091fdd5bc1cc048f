"""Compiles LLVM IR to native functions, with a cache of object code on disk.

The name of a cache file is a hash of the IR and of the versions of hibana, LLVM, torch, Python and processor.
A file is used only if its digest is right and no other user can write to its folder. The environment variable
``HIBANA_CACHE`` sets the folder; ``off`` disables the cache.
"""

import hashlib
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
from hibana.version import __version__

COMPILING = threading.RLock()
"""Held while a thread records a step, or compiles, links or loads native code."""
if hasattr(os, "register_at_fork"):  # otherwise a forked child could inherit a locked lock
    os.register_at_fork(
        before=COMPILING.acquire, after_in_parent=COMPILING.release, after_in_child=COMPILING.release
    )


_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True, eq=False)
class Kernel:
    """A native function ``void (int64 begin, int64 end, void *args)``, freed with its last reference."""

    name: str
    address: int
    source: str
    """The LLVM IR of its module."""
    engine: Any = field(repr=False)
    """Reference that keeps the native code loaded."""


_LOADED: weakref.WeakValueDictionary[str, Kernel] = weakref.WeakValueDictionary()
"""Kernels of this process by a hash of their name and source; all threads share them."""


def assemble(source: str, name: str) -> Kernel:
    """The kernel `name` of an LLVM IR module, compiled or read from the cache.

    Raises RuntimeError if LLVM can't read `source`.
    """
    key = hashlib.sha256(f"{name}\n{source}".encode()).hexdigest()
    with COMPILING:
        kernel = _LOADED.get(key)
        if kernel is None:
            folder = toolchain_folder()
            path = None if folder is None else folder / f"{key[:40]}.kernel"
            object_code = None if path is None else _read_object_code(path)
            if object_code is None:
                object_code = _compile(source)
                if path is not None:
                    _write_object_code(path, object_code)
            kernel = _LOADED[key] = _load(object_code, name, source)
        return kernel


def _digest(path: Path, code: bytes) -> bytes:
    """The first bytes of the cache file `path`. They depend on its name: a renamed file is not used."""
    return hashlib.sha256(f"{path.parent.name}/{path.name}".encode() + code).digest()


def _read_object_code(path: Path) -> bytes | None:
    """The object code in a cache file; None if it is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[_DIGEST:] if data[:_DIGEST] == _digest(path, data[_DIGEST:]) else None


def _write_object_code(path: Path, code: bytes) -> None:
    """Writes a cache file; warns once for each error."""
    try:
        files.write(path, _digest(path, code) + code, mode=0o600, durable=False)
    except OSError as error:
        if isinstance(error, PermissionError) and path.is_file():
            return  # Windows: another process has the file open, and equal names mean equal kernels
        _warn_uncached(f"{path.parent}: {error.strerror or error}")


@cache  # one warning for each reason: a full disk fails at every kernel
def _warn_uncached(reason: str) -> None:
    """Warns that kernels are not cached on disk, and why; once for each reason."""
    warnings.warn(
        f"compiled kernels are not kept: {reason}; set HIBANA_CACHE to a folder of yours, or to 'off'",
        RuntimeWarning,
        stacklevel=3,
    )


def _compile(source: str) -> bytes:
    """Compiles a module to object code, without LLVM's vectorizer: kernels are written with vectors."""
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
    llvm.set_option("", "-disable-lsr=true")  # skips a slow search for the cheapest address computation
    try:
        return bytes(machine.emit_object(module))
    finally:
        llvm.set_option("", "-disable-lsr=false")  # the option is global, and other libraries use LLVM too


def host() -> tuple[Any, Any]:
    """The LLVM bindings, and a target machine for the host processor.

    Raises:
        ImportError, OSError, RuntimeError: if llvmlite can't be loaded, or does not support the processor.
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


def _load(object_code: bytes, name: str, source: str) -> Kernel:
    """Loads the object code of `source`, with the function `name`, into this process."""
    llvm, machine = host()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(object_code))
    engine.finalize_object()
    return Kernel(name, engine.get_function_address(name), source, engine)


@cache
def processor() -> tuple[str, frozenset[str]]:
    """LLVM's names of the processor and of its features."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return llvm.get_host_cpu_name(), frozenset(name for name, is_on in features.items() if is_on)


def compresses() -> bool:
    """Whether the processor compresses vectors of 16-bit integers in one instruction (AVX-512 VBMI2).

    Listing the positions of spikes is fast with this instruction.
    """
    return "avx512vbmi2" in processor()[1]


def is_amd() -> bool:
    """Whether the processor is one of AMD's (Zen), on which MKL does not use its fastest kernels."""
    return processor()[0].startswith("znver")


def multiplies_full_vectors() -> bool:
    """Whether a core multiplies two vectors of 16 float32 numbers per cycle: AVX-512, except on AMD's Zen 4.

    The units of Zen 4 are half as wide. So are, in effect, those of Intel's AVX-512 cores with a single unit,
    which no feature tells apart.
    """
    name, features = processor()
    return "avx512f" in features and name != "znver4"


def cache_folder() -> Path | None:
    """The folder of compiled kernels: ``HIBANA_CACHE``, or the user's cache folder; None if off.

    Raises RuntimeError if the folder is in the user's home folder, and the user has no home folder.
    """
    setting = os.environ.get("HIBANA_CACHE", "")
    if setting.lower() in ("off", "0"):
        return None
    if setting:
        return Path(setting).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hibana"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "hibana"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hibana"


@cache
def toolchain_folder() -> Path | None:
    """The cache folder of this toolchain; None, with one warning, if it can't be used."""
    try:
        base = cache_folder()
        if base is None:
            return None
        folder = base / _toolchain()
        for parent in (base, folder):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.require_private(parent)
    except (ImportError, OSError, RuntimeError) as error:  # llvmlite is damaged, or there is no home folder
        _warn_uncached(str(error))
        return None
    files.sweep(folder)
    return folder


def _toolchain() -> str:
    """A hash of the versions, settings and processor that object code depends on besides the IR."""
    import torch

    name, features = processor()
    modules = [Path(__file__).with_name(name).read_bytes() for name in ("build.py", "files.py")]
    parts = (
        __version__,
        hashlib.sha256(b"".join(modules)).hexdigest(),
        torch.__version__,
        version("llvmlite"),
        platform.python_version(),
        platform.machine(),
        name,
        ",".join(sorted(features)),
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
