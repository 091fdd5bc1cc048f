"""Settings and fixtures of all tests: NaN in uninitialized memory, and repeatable random examples."""

import gc
import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker, as threads compete for cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

import selection
import workers

pytest_xdist_make_scheduler = workers.pytest_xdist_make_scheduler

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=12)
hypothesis.settings.register_profile("thorough", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.register_profile("search", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")  # no test of instruction sets: half the time
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required for determinism on CUDA
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("PYTHONUNBUFFERED", None)  # as for users: a kill loses unflushed output
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything loads Triton


def pytest_configure(config):
    workers.pytest_configure(config)
    # Many tests compare steps that only the reference loop runs. Not in pyproject.toml: pytest would load
    # hibana for it, and torch with all its threads, before this file.
    config.addinivalue_line("filterwarnings", "ignore::hibana.SlowPathWarning")
    # Many layers in tests do not spike in the few steps of a test, or have no derivative.
    silent_layers = "ignore:.* pass(es|ed) no gradient on:hibana.NetworkWarning"
    config.addinivalue_line("filterwarnings", silent_layers)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    selection.mark(items)
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12):
        for item in items:
            if item.get_closest_marker("dynamo"):
                item.add_marker(pytest.mark.skip(reason="torch.compile takes layers from torch 2.12 on"))


def pytest_collection_finish():
    gc.freeze()  # excludes the objects of tests and modules from later garbage collections


@pytest.fixture(autouse=True)
def _uninitialized_memory_is_nan():
    """`torch.empty` returns NaN (the largest integer), so that reading uninitialized memory is detected."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _denormal_numbers_are_not_flushed():
    torch.set_flush_denormal(False)  # commands of hibana set it for the process


@pytest.fixture(autouse=True)
def _reset_torch_compile():
    """``torch.compile`` counts recompilations by the code of a function, over all tests of a process."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _no_run_is_active():
    """An active ``hibana.run`` breaks the graphs of ``torch.compile`` in later tests."""
    yield
    context = sys.modules.get("hibana.compiler.call_context")
    assert context is None or not context.run_active, "the test left a hibana.run that did not end"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_collectstart():
    """Seeds the random numbers that a test module draws when it is imported."""
    torch.manual_seed(0)
