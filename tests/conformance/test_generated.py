"""Generated cells: random steps of common operations."""

from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from conformance.compare import assert_conforms
from conformance.suite import each_backend
from hibana.cells.surrogate import ATan, Box, Step, Triangle
from selection import examples

NEURONS = 13


@dataclass(frozen=True)
class Term:
    """A function of numbers, as Python text."""

    text: str
    arguments: int


TERMS = [
    *(Term(f"({{0}} {sign} {{1}})", 2) for sign in "+-*"),
    *(Term(text, 1) for text in ("(-{0})", "{0}.abs()", "torch.tanh({0})", "torch.relu({0})")),
    *(Term(text, 1) for text in ("torch.exp(-{0}.abs())", "({0} * 0.5) ** 2", "torch.tanh({0}) ** 3")),
    *(
        Term(text, 1)
        for text in ("({0}.abs() + 0.5) ** 0.5", "({0} * {0} + 1) ** -1", "{0}.clamp(-0.6, 0.7)")
    ),
    *(
        Term(text, 1)
        for text in ("torch.sin({0})", "torch.atan({0})", "{0}.detach()", "{0}.clone().mul_(0.7)")
    ),
    *(
        Term(text, 2)
        for text in ("torch.maximum({0}, {1})", "torch.minimum({0}, {1})", "{0} / ({1}.abs() + 1)")
    ),
    *(
        Term(text, 2)
        for text in ("({0} >= {1}).to({0})", "{0}.clone().add_({1})", "{0}.masked_fill({1} < 0, 0.2)")
    ),
    Term("torch.where({0} > {1}, {2}, {0})", 3),
    Term("torch.where(({0} > 0) & ({1} <= {2}), {1}, {2})", 3),
    Term("torch.where(~({0} < {1}) | ({2} != 0), {2}, {1})", 3),
]
LEAVES = ["x", "u", "v", "s", "self.number", "self.each", "self.learned", "self.learned_each", "(x - 0.3)"]
LEAVES += ["(x * 0 + 0.5)", "(x * 0 + 2)"]


def expressions():
    leaf = st.sampled_from(LEAVES).map(lambda name: f"(x * 0 + {name})" if "self" in name else name)
    return st.recursive(
        leaf,
        lambda inner: st.sampled_from(TERMS).flatmap(
            lambda word: st.tuples(*[inner] * word.arguments).map(lambda parts: word.text.format(*parts))
        ),
        max_leaves=8,
    )


@st.composite
def cells(draw):
    """A cell with three states; the last one is binary or smooth."""
    lines = [
        f"u_next = 0.6 * u + 0.5 * torch.tanh({draw(expressions())})",
        f"v_next = {draw(st.sampled_from(['v * (1 - s)', 'v - s', 'torch.where(s > 0, 0.1, v)']))} * 0.8 + "
        f"torch.tanh({draw(expressions())})",
    ]
    emitted = draw(st.sampled_from(["self.surrogate(v_next - 0.4 - 0.2 * u_next)", "torch.tanh(v_next)"]))
    body = "\n    ".join([*lines, f"return u_next, v_next, {emitted}"])
    namespace = {"torch": torch}
    exec(f"def forward(self, x, u, v, s):\n    {body}", namespace)
    kind = type("Generated", (hb.Cell,), {"forward": namespace["forward"], "__doc__": body})
    cell = kind()
    cell.surrogate = draw(st.sampled_from([Step(), Box(), ATan(), Triangle()]))
    cell.number = draw(st.floats(-2, 2, width=32))
    cell.each = torch.linspace(-1, 1, NEURONS)
    cell.learned = nn.Parameter(torch.tensor(0.3))
    cell.learned_each = nn.Parameter(torch.linspace(0.5, -0.5, NEURONS))
    return cell


@each_backend
@settings(
    max_examples=examples(4),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(cell=cells(), seed=st.integers(0, 99))
def test_a_generated_cell(run, cell, seed):
    inputs = 2 * torch.rand(9, 2, NEURONS, generator=torch.Generator().manual_seed(seed)) - 0.5
    assert_conforms(run, cell, inputs, uses=["outputs and states"])
