"""The residuals of a step: no set of up to three values is cheaper."""

from itertools import combinations

import pytest
import torch

import hibana as hb
from conformance.suite import CELLS, SURROGATES, build, takes
from hibana.compiler.graph.plan import make_plan
from hibana.compiler.graph.residuals import Search, cheapest_residuals
from hibana.compiler.graph.trace import trace


def kinds():
    for kind in CELLS:
        for surrogate in SURROGATES if takes(kind, "surrogate") else [None]:
            yield kind, surrogate


@pytest.mark.parametrize(("kind", "surrogate"), list(kinds()), ids=lambda kind: kind and kind.__name__)
def test_no_set_of_up_to_three_values_is_better(kind, surrogate):
    cell = kind(surrogate=build(surrogate)) if surrogate else kind()
    step = trace(cell, torch.Size([5]), torch.float32)
    roots = [g for g in (step.grad_input, *step.grad_states, *step.grad_sums) if g is not None]
    search, residuals = Search(step, roots), cheapest_residuals(step, roots)
    small_sets = (few for size in range(4) for few in combinations(search.candidates, size))
    least = search.cost(residuals)
    assert not [few for few in small_sets if search.bits(few) < least and search.cost(few) < least]


def test_four_booleans_are_stored_instead_of_a_number():
    cell = hb.RefractoryLIFCell(surrogate=hb.surrogate.Box(), detach_reset=True)
    assert make_plan(trace(cell, torch.Size([5]), torch.float32)).bits() == 4
