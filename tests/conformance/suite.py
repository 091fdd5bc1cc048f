"""What the suite runs over: the backends, and the package's own cells and surrogates, discovered.

A new backend is one more name in ``BACKENDS``; a new cell or surrogate edits nothing here.
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
"""Sequences of the suite, but where the shape is the point: 69 neurons, no multiple of anything; twice the
four steps that kernels do at once, and one."""


@dataclass(frozen=True)
class Backend:
    """Runs of one backend, and where its tensors lie."""

    name: str
    device: str = "cpu"
    many: int = 20001
    """Neurons that take several rows or blocks."""

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

    found = {kind for kind in below(root) if kind.__module__ == module and getattr(kind, "__final__", False)}
    return sorted(found, key=lambda kind: kind.__name__)


CELLS = final_kinds(hb.Cell, cells.__name__)
SURROGATES = final_kinds(Surrogate, surrogate.__name__)


REPRESENTATIVE = ("CubaLIFCell", "IFCell", "LICell", "PLIFCell")
"""Cells with two states before the spikes, none learned, no spikes, one learned."""


def few(kinds: list[type]) -> list:
    """`kinds` for a test that is about modules, not equations: representative cells, and all exhaustively."""
    stand = [kind.__name__ in REPRESENTATIVE for kind in kinds]
    return [
        pytest.param(kind, marks=() if stands else pytest.mark.exhaustive)
        for kind, stands in zip(kinds, stand, strict=True)
    ]


def few_values(values: list[tuple[type, str]]) -> list:
    """Of hyper-parameters by kind and name the first of each kind and of each name, and all exhaustively."""
    kinds, names, found = set(), set(), []
    for kind, name in values:
        stands = kind not in kinds or name not in names
        kinds.add(kind), names.add(name)
        found.append(pytest.param(kind, name, marks=() if stands else pytest.mark.exhaustive))
    return found


def takes(kind: type, name: str) -> bool:
    """Whether cells of `kind` have a hyper-parameter called `name`."""
    return name in inspect.signature(kind).parameters


def bell(x: Tensor) -> Tensor:
    """A derivative of a user's own."""
    return torch.exp(-(x * x))


def made(kind: type[Surrogate]) -> Surrogate:
    """A surrogate of `kind`."""
    return Formula(bell) if kind is Formula else kind()


def drive(cell: hb.Cell, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    """Input so strong that a part of the neurons spikes at each step, found by raising it."""
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
