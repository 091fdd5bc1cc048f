"""Behaviour that depends on the operating system, simulated for other systems."""

import ast
import ctypes
import sys
from pathlib import Path

import pytest
import torch

import hibana as hb
from hibana.runtime import build, files, threads

NAMES = {
    "linux": "libtorch_cpu.so",
    "freebsd14": "libtorch_cpu.so",
    "darwin": "libtorch_cpu.dylib",
    "win32": "torch_cpu.dll",
}


@pytest.mark.parametrize("system", NAMES)
def test_libtorch_is_loaded_by_its_name_on_each_system(system, monkeypatch):
    paths = []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", paths.append)
    threads.libtorch()
    assert [Path(path) for path in paths] == [Path(torch.__file__).parent / "lib" / NAMES[system]]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_keep_memory_returns_false_without_glibc(system, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", None)  # called, it would raise
    assert hb.keep_memory() is False


def test_a_c_library_without_mallopt_keeps_no_memory(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # as musl's
    assert hb.keep_memory() is False


@pytest.mark.parametrize(
    ("system", "variables", "folder"),
    [
        ("linux", {}, "home/.cache/hibana"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/hibana"),
        ("darwin", {"XDG_CACHE_HOME": "xdg"}, "home/Library/Caches/hibana"),
        ("win32", {}, "home/AppData/Local/hibana"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/hibana"),
    ],
)
def test_kernels_are_in_the_cache_folder_of_the_system(system, variables, folder, monkeypatch):
    for name in ("HIBANA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: Path("home"))
    monkeypatch.setattr(sys, "platform", system)
    assert build.cache_folder() == Path(folder)


def _refuse_renames(monkeypatch):
    """Makes a rename fail as on Windows if another process has opened the target."""

    def replace(self, target):
        raise PermissionError(13, "The process cannot access the file", str(target))

    monkeypatch.setattr(Path, "replace", replace)


def test_a_kernel_that_another_process_reads_stays_on_windows(tmp_path, monkeypatch):
    path = tmp_path / "a.kernel"
    path.write_bytes(b"theirs")
    _refuse_renames(monkeypatch)
    build._write_object_code(path, b"ours")
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_may_not_be_written_to_is_an_error_on_windows_too(tmp_path, monkeypatch):
    _refuse_renames(monkeypatch)
    build._warn_uncached.cache_clear()
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept"):
        build._write_object_code(tmp_path / "a.kernel", b"ours")
    assert list(tmp_path.iterdir()) == []


def test_permissions_are_not_checked_without_user_ids(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written by others"):
        files.require_private(tmp_path)
    monkeypatch.delattr("os.getuid")
    files.require_private(tmp_path)


SOURCES = sorted(Path(hb.__file__).parent.rglob("*.py"))


def test_text_is_always_written_and_read_as_utf_8():
    """Without an argument, Windows reads and writes another encoding."""
    calls = [
        (f"{path.name}:{call.lineno}", {each.arg for each in call.keywords})
        for path in SOURCES
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("read_text", "write_text")
    ]
    assert calls
    assert [place for place, keywords in calls if "encoding" not in keywords] == []
