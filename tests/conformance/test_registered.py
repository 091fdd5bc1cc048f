"""A backend registered outside of hibana passes the suite with the attributes that the page lists."""

import re
from pathlib import Path

import pytest
import torch

import hibana as hb
import torch_backend
from conformance.compare import assert_conforms
from conformance.suite import CELLS, SURROGATES, Backend, build, drive
from hibana.compiler.backend import Kernels, register

TORCH = Backend("torch")
register(torch_backend.BACKEND)


@pytest.mark.parametrize("kind", CELLS)
def test_each_cell(kind):
    cell = kind()
    assert_conforms(TORCH, cell, drive(cell))


@pytest.mark.parametrize("kind", SURROGATES)
def test_each_surrogate(kind):
    cell = hb.IFCell(surrogate=build(kind))
    assert_conforms(TORCH, cell, drive(cell), uses=["outputs and states"])


def test_learned_tensors_per_neuron():
    cell = hb.LIFCell(tau=torch.nn.Parameter(torch.rand(23) + 1.5))
    assert_conforms(TORCH, cell, drive(cell), uses=["outputs and states"])


def test_the_page_lists_all_attributes_of_kernels():
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text().partition("## A backend")[2]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall("`([a-z_]+)`", row)}
    attributes = {name for name in (*vars(Kernels), *Kernels.__annotations__) if not name.startswith("_")}
    assert listed == attributes - {"step", "plan", "dtype"}


def test_a_backend_of_another_name_is_refused_by_name():
    with pytest.raises(ValueError, match="'torch' is there already"):
        register(torch_backend.BACKEND)
    with pytest.raises(ValueError, match=r"backend must be one of auto, reference, cpu, triton, torch"):
        hb.unroll(hb.IFCell(), torch.rand(2, 3), backend="nothing")
