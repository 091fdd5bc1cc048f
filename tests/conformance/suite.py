"""Parameters of the suite: the backends, and the package's cells and surrogates, which are discovered.

A new backend is one more name in ``BACKENDS``; a new cell or surrogate needs no edit.
"""

import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import hibana as hb
from conformance.compare import reference
from hibana import cells, surrogate
from hibana.cells.surrogate import Formula, Surrogate

SHAPE = (9, 3, 23)
"""Default shape of sequences: 69 neurons, no multiple of a vector width; kernels process four steps at once,
so 9 steps are two such groups and a rest of one."""


@dataclass(frozen=True)
class Backend:
    """A function that runs a cell on one backend, and the device of its tensors."""

    name: str
    device: str = "cpu"
    many: int = 20001
    """Number of neurons that span several rows or blocks."""

    def __call__(
        self, cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return hb.unroll(cell, inputs, state, backend=self.name)


CPU = Backend("cpu")
TRITON = Backend("triton", many=301)
"""Triton's kernels in Triton's interpreter, on the CPU."""


def _no_interpreter() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if importlib.metadata.version("triton").startswith("3.6."):
        return "the interpreter of Triton 3.6 fails with NumPy 2.4"
    return "" if os.environ.get("TRITON_INTERPRET") == "1" else "TRITON_INTERPRET=1 is not set"


interpreted = pytest.mark.skipif(bool(_no_interpreter()), reason=_no_interpreter() or "runs")
BACKENDS = [pytest.param(CPU, id="cpu"), pytest.param(TRITON, id="triton", marks=interpreted)]
if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    BACKENDS.append(pytest.param(Backend("triton", "cuda"), id="triton on CUDA", marks=pytest.mark.gpu))

each_backend = pytest.mark.parametrize("run", BACKENDS)


def final_kinds(root: type, module: str) -> list[type]:
    """The final subclasses of `root` that `module` defines, by name."""

    def below(kind: type) -> Iterator[type]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    kinds = {kind for kind in below(root) if kind.__module__ == module and getattr(kind, "__final__", False)}
    return sorted(kinds, key=lambda kind: kind.__name__)


CELLS = final_kinds(hb.Cell, cells.__name__)
SURROGATES = final_kinds(Surrogate, surrogate.__name__)


REPRESENTATIVE = ("CubaLIFCell", "IFCell", "LICell", "PLIFCell")
"""Cells with two states before the spikes, with no parameter, without spikes, with a parameter."""


def few(kinds: list[type]) -> list:
    """`kinds` for tests of modules, not equations: all but representative cells are marked exhaustive."""
    representative = [kind.__name__ in REPRESENTATIVE for kind in kinds]
    return [
        pytest.param(kind, marks=() if is_default else pytest.mark.exhaustive)
        for kind, is_default in zip(kinds, representative, strict=True)
    ]


def few_values(values: list[tuple[type, str]]) -> list:
    """Pairs of cell and name: all but the first of each cell and of each name are marked exhaustive."""
    kinds, names, cases = set(), set(), []
    for kind, name in values:
        is_default = kind not in kinds or name not in names
        kinds.add(kind), names.add(name)
        cases.append(pytest.param(kind, name, marks=() if is_default else pytest.mark.exhaustive))
    return cases


def takes(kind: type, name: str) -> bool:
    """Whether cells of `kind` have a hyper-parameter called `name`."""
    return name in inspect.signature(kind).parameters


def gaussian_bell(x: Tensor) -> Tensor:
    """A user-defined derivative."""
    return torch.exp(-(x * x))


def build(kind: type[Surrogate]) -> Surrogate:
    """Returns a surrogate of `kind`."""
    return Formula(gaussian_bell) if kind is Formula else kind()


def drive(cell: hb.Cell, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    """Input that is raised until more than 15% of the outputs are spikes."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.25
    for exponent in range(-4, 40):
        inputs = (1.4**exponent * noise).to(dtype)
        with torch.no_grad():
            outputs, _ = reference(cell, inputs, None)
        if not isinstance(getattr(cell, "surrogate", None), Surrogate) or outputs.mean() > 0.15:
            assert 0 < outputs.count_nonzero() <= outputs.numel()
            return inputs
    raise AssertionError(f"{cell} can't be made to spike")
