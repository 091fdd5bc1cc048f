"""Compiled kernels on disk: used only if complete, private and of the same toolchain."""

import ctypes
import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import hibana as hb
from hibana.runtime import build as module
from hibana.runtime import files
from hibana.runtime.kernels import Code, Longs, Value, assemble, kernel, pack_arguments, run


def _source(factor):
    @kernel
    def count(code: Code, begin: Value, end: Value, *, out: Longs) -> None:
        with code.loop(begin, end) as i:
            out[i] = i * factor

    return count.source()


SOURCE, TWICE = _source(3), _source(6)


def _clear_caches():
    module._LOADED.clear()
    for function in (module.toolchain_folder, module.processor):
        function.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HIBANA_CACHE", str(tmp_path / "kernels"))
    _clear_caches()
    yield tmp_path / "kernels"
    _clear_caches()


@pytest.fixture
def compilations(monkeypatch):
    """A list that grows by one whenever a kernel is compiled."""
    calls, compile_ = [], module._compile

    def recording(*arguments):
        calls.append(arguments)
        return compile_(*arguments)

    monkeypatch.setattr(module, "_compile", recording)
    return calls


def _counts(source=SOURCE):
    """The numbers that the kernel computes, read from disk or compiled."""
    module._LOADED.clear()
    built = assemble(source, "count")
    out = (ctypes.c_int64 * 8)()
    run(built.address, 8, pack_arguments([ctypes.addressof(out)]))
    return list(out)


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_kernel_is_compiled_once(folder, monkeypatch):
    assert _counts() == [0, 3, 6, 9, 12, 15, 18, 21]
    (path,) = _files(folder)
    assert path.stat().st_mode & 0o077 == 0

    def never(*arguments):
        raise AssertionError("compiled again")

    monkeypatch.setattr(module, "_compile", never)
    assert _counts() == [0, 3, 6, 9, 12, 15, 18, 21]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: b"\xff" * len(data),
    ],
    ids=["empty", "head only", "cut", "longer", "one bit", "noise"],
)
def test_a_damaged_file_is_replaced_by_a_new_compilation(folder, damage):
    _counts()
    (path,) = _files(folder)
    data = path.read_bytes()
    path.write_bytes(damage(data))
    assert _counts() == [0, 3, 6, 9, 12, 15, 18, 21]
    assert module._read_object_code(path) is not None
    assert _files(folder) == [path]


def _make_unreadable(path):
    path.chmod(0)


def _replace_by_a_link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs modes and links")
@pytest.mark.parametrize("change", [_make_unreadable, _replace_by_a_link_to_itself])
def test_a_file_that_cannot_be_opened_is_replaced(folder, change):
    _counts()
    (path,) = _files(folder)
    change(path)
    assert _counts()[1] == 3
    assert path.is_file()
    assert not path.is_symlink()
    assert module._read_object_code(path) is not None


def test_a_folder_in_the_place_of_a_file_warns_once(folder):
    _counts()
    (path,) = _files(folder)
    path.unlink()
    (path / "full").mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept: .*; set HIBANA_CACHE"):
        assert _counts()[1] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _counts()[1] == 3
    assert [each.name for each in path.parent.iterdir()] == [path.name], "an unfinished file is left"


def test_swapped_files_are_compiled_again_and_not_run(folder):
    assert _counts() == [0, 3, 6, 9, 12, 15, 18, 21]
    (first,) = _files(folder)
    assert _counts(TWICE) == [0, 6, 12, 18, 24, 30, 36, 42]
    second = next(path for path in _files(folder) if path != first)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert _counts() == [0, 3, 6, 9, 12, 15, 18, 21]
    assert _counts(TWICE) == [0, 6, 12, 18, 24, 30, 36, 42]


def test_a_file_of_another_toolchain_is_not_run(folder, monkeypatch):
    _counts()
    (before,) = _files(folder)
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    _clear_caches()
    copied = module.toolchain_folder() / before.name
    copied.write_bytes(before.read_bytes())
    assert module._read_object_code(before) is not None
    assert module._read_object_code(copied) is None


def test_a_full_disk_warns_once_and_leaves_no_files(folder, monkeypatch):
    _counts(TWICE)
    before = _files(folder)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept: .*No space left.*; set HIBANA"):
        assert _counts()[1] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _counts()[1] == 3
        assert _counts(TWICE)[1] == 6
    assert _files(folder) == before


@pytest.mark.skipif(sys.platform == "win32", reason="the home is found otherwise")
def test_a_user_without_a_home_compiles_in_memory(monkeypatch):
    for name in ("HIBANA_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])  # as for a container's user
    _clear_caches()
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept: .*home.*; set HIBANA_CACHE"):
        assert _counts()[1] == 3
    _clear_caches()


def test_only_old_unfinished_files_are_removed(folder):
    _counts()
    (path_,) = _files(folder)
    old, new = (path_.with_name(f"{files.UNFINISHED}{name}") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    _clear_caches()
    _counts()
    assert _files(folder) == sorted([path_, new])


@pytest.mark.skipif(sys.platform == "win32", reason="folders here have no owner's mode")
def test_a_lenient_umask_keeps_a_cache_nobody_else_can_write_to(folder):
    before = os.umask(0)
    try:
        assert _counts()[1] == 3
    finally:
        os.umask(before)
    assert len(_files(folder)) == 1


@pytest.mark.slow
def test_two_processes_that_compile_at_once(folder):
    program = (
        "import torch, hibana as hb, sys; x = torch.full([4, 3], 0.4);"
        "sys.stdin.read(1); print(hb.unroll(hb.IFCell(), x, backend='cpu')[0].sum().item())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    assert [process.communicate()[0].strip() for process in processes] == ["3.0"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    files = _files(folder)
    assert files
    assert all(module._read_object_code(path) is not None for path in files)


def test_a_folder_that_cannot_be_created_warns_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HIBANA_CACHE", str(tmp_path / "file" / "kernels"))
    _clear_caches()
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept: .*; set HIBANA_CACHE"):
        assert _counts()[1] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _counts()[1] == 3
    _clear_caches()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders here have no owner's mode")
def test_a_folder_that_others_can_write_to_is_not_trusted(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="can be written by others"):
        assert _counts()[1] == 3
    assert _files(folder) == []


@pytest.mark.parametrize("word", ["off", "OFF", "0"])
def test_the_cache_can_be_switched_off(tmp_path, monkeypatch, word):
    monkeypatch.setenv("HIBANA_CACHE", word)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _clear_caches()
    assert _counts()[1] == 3
    assert _files(tmp_path) == []
    _clear_caches()


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(module, "__version__", "0.0.0"),
        lambda patch: patch.setattr(torch, "__version__", "2.99.0"),
        lambda patch: patch.setattr(module, "version", lambda name: "9.9"),
        lambda patch: patch.setattr("llvmlite.binding.get_host_cpu_name", lambda: "another"),
    ],
    ids=["hibana", "torch", "llvmlite", "processor"],
)
def test_another_toolchain_uses_no_old_kernel(folder, monkeypatch, change):
    _counts()
    (before,) = _files(folder)
    change(monkeypatch)
    _clear_caches()
    assert _counts()[1] == 3
    _, after = sorted(_files(folder), key=lambda path: path != before)
    assert after.parent != before.parent


class Scaled(hb.Cell):
    """A cell that no other test compiles, as kernels of equal cells are shared."""

    def __init__(self, threshold: float, decay: float = 0.9375) -> None:
        super().__init__()
        self.threshold, self.decay = threshold, decay

    def forward(self, input_, v_previous, s_previous):
        v = v_previous * (1 - s_previous) * self.decay + input_ * 1.0625
        return v, hb.surrogate.ATan()(v - self.threshold)


def test_another_value_of_a_hyperparameter_compiles_nothing(folder, compilations):
    inputs, results = torch.full([8, 3], 0.4, requires_grad=True), []

    def call(cell):
        outputs, _ = hb.unroll(cell, inputs, backend="cpu")
        (grad,) = torch.autograd.grad(outputs.sum(), inputs)
        results.append((outputs.sum().item(), grad.sum().item()))

    call(Scaled(threshold=1.0))
    files, count = _files(folder), len(compilations)
    assert len(files) == count > 0
    cell = Scaled(threshold=0.5)
    call(cell)
    cell.decay = 0.5
    call(cell)
    assert len(set(results)) == 3
    assert (_files(folder), len(compilations)) == (files, count)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_that_trains_has_one_openmp_runtime():
    program = (
        "import re, torch, hibana as hb; net = torch.nn.Sequential(hb.Linear(64, 64), hb.IF());"
        "net(torch.ones(300, 64).view(3, 100, 64)).sum().backward();"
        "found = re.findall(r'/.*/lib[gi]?omp[^/\\s]*$', open('/proc/self/maps').read(), re.M);"
        "print(*set(found))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert len(out.split()) == 1, out


@pytest.mark.slow
def test_every_process_writes_the_same_source():
    cells = "(hb.IFCell, hb.ALIFCell, hb.IzhikevichCell)"
    code = f"import hibana as hb; print(*(hb.explain(c(), code=True) for c in {cells}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
