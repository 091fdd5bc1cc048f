"""The node of autograd in C++, ``node.cpp``: built by ``hibana build``, used where it was built.

A node in Python costs tens of microseconds, more than a small kernel takes. The node in C++ serves the most
frequent calls: a cell without tensors, over contiguous inputs on a CPU, from rest. All others go through
:class:`hibana.compiler.autograd._Run`, with the same bits. It is built once for each version of torch and
Python, next to the compiled kernels; ``HIBANA_NODE=off`` disables it in a process.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from hibana.compiler.backend import Launch
from hibana.compiler.cpu.binding import Binding
from hibana.compiler.cpu.body import LINE
from hibana.compiler.cpu.row_walk import BUFFER_OFFSET, OUTPUT_OFFSET, PAGE
from hibana.compiler.cpu.walk import ALIASING_FROM
from hibana.compiler.graph.plan import Plan
from hibana.runtime import files
from hibana.runtime.kernels import COMPILING, Work, kept_in

SOURCE = Path(__file__).with_name("node.cpp")
_NAME = "hibana_node"


@cache
def built() -> Any:
    """The extension module of ``node.cpp``; None if it is not built, damaged, or disabled."""
    if os.environ.get("HIBANA_NODE", "").lower() in ("off", "0"):
        return None
    folder = kept_in()
    if folder is None:
        return None
    for path in sorted(folder.glob(f"{_stem()}.*")):
        library = files.read(path)
        if library is not None and path.name == _name_of(library):
            with COMPILING:
                return _loaded(path)
    return None


def called(
    work: Work,
    binding: Binding,
    given: Mapping[str, int],
    singles: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """A kernel as ``node.cpp`` takes it: work items, arguments, and the positions of those that change.

    `given` are known besides those of `binding`; at each launch the arguments `singles` are written, and
    those of each of the `groups`.
    """
    at: dict[str, Any] = dict(zip(singles, binding.places(singles), strict=True))
    at |= {name: binding.places(names) for name, names in groups.items()}
    arguments = Binding(binding.arguments, {**binding.known, **given}).filled()
    size = {"address": work.address, "count": work.pieces, "grain": work.grain}
    return {**size, "arguments": arguments, "at": at}


def launch(node: Any, plan: Plan | None, facts: Mapping[str, Any]) -> Launch:
    """A run by `node`, the module that :func:`built` gives; `facts` are its kernels and sizes."""
    marks = (None, None) if plan is None else (plan.support_at, plan.spikes_at)
    support_at, spikes_at = (-1 if at is None else at for at in marks)
    known = {
        **facts,
        **{"keeps": plan is not None, "reads_input": plan is not None and plan.reads_input},
        **{"support_at": support_at, "spikes_at": spikes_at},
        **{"aliasing_from": ALIASING_FROM, "output_offset": OUTPUT_OFFSET},
        **{"buffer_offset": BUFFER_OFFSET, "page": PAGE, "line": LINE},
    }
    return partial(node.run, node.launch(known))


def build() -> Path:
    """Builds the node with the C++ compiler of this machine, ``CXX`` or torch's choice; takes half a minute.

    Returns:
        Where it is. Processes that begin after this use it.

    Raises:
        RuntimeError: if there is no folder to keep it in, or it can't be built; the reason is its message.
    """
    folder = kept_in()
    if folder is None:
        raise RuntimeError("there is no folder to keep the node in: HIBANA_CACHE is off, or can't be used")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=files.UNFINISHED) as scratch:
            made = _compiled(Path(scratch))
            path = folder / _name_of(made.read_bytes())
            made.chmod(0o700)  # the linker follows the umask, and what others can write to is not loaded
            made.replace(path)  # in one move, so that nobody loads half of it
    except OSError as error:
        raise RuntimeError(f"the node can't be kept in {folder}: {error}") from error
    built.cache_clear()
    return path


def _compiled(folder: Path) -> Path:
    """``node.cpp`` as a library in `folder`."""
    try:
        from setuptools import Distribution
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        raise RuntimeError(f"building the node needs setuptools: {error}") from error
    options = {"extra_compile_args": ["-O2", "-g0"]}
    extension = CppExtension(_NAME, [str(SOURCE)], **options)  # type: ignore[no-untyped-call] # torch leaves it so
    command = BuildExtension.with_options(use_ninja=False)  # type: ignore[no-untyped-call] # as above
    distribution = Distribution({"ext_modules": [extension], "cmdclass": {"build_ext": command}})
    building = distribution.get_command_obj("build_ext")
    building.build_lib = building.build_temp = str(folder)
    try:
        distribution.run_command("build_ext")
    except Exception as error:
        raise RuntimeError(f"the C++ compiler did not build the node: {error}") from error
    (made,) = (path for path in folder.glob(f"{_NAME}.*") if path.suffix in (".so", ".pyd", ".dylib"))
    return made


def _name_of(library: bytes) -> str:
    """The file name, of hashes of the source and of the library."""
    return f"{_stem()}.{hashlib.sha256(library).hexdigest()[:40]}"


@cache
def _stem() -> str:
    return f"node-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:20]}"


@cache
def _loaded(path: Path) -> Any:
    """The library at `path` as a module; it may register its type with torch once."""
    loader = ExtensionFileLoader(_NAME, str(path))
    spec = spec_from_loader(_NAME, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
