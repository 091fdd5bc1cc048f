"""What is kept for a backward: the cut, and that no set of few values is better."""

import random
from itertools import combinations

import pytest
import torch

import hibana as hb
from conformance.suite import CELLS, SURROGATES, made, takes
from hibana.compiler.graph.cut import INFINITE, Network
from hibana.compiler.graph.plan import make_plan
from hibana.compiler.graph.residuals import _Split, cheapest_residuals, cost_in_bits
from hibana.compiler.graph.trace import trace


def cut_by_trying(nodes, edges, source, sink):
    """The price of the cheapest cut, of all ways to split the nodes."""
    others = [node for node in range(nodes) if node not in (source, sink)]
    sides = ({source, *chosen} for size in range(len(others) + 1) for chosen in combinations(others, size))
    return min(sum(c for a, b, c in edges if a in side and b not in side) for side in sides)


@pytest.mark.parametrize("seed", range(60))
def test_a_cut_is_the_cheapest(seed):
    chance = random.Random(seed)
    nodes = chance.randint(2, 8)
    edges = [
        (chance.randrange(nodes), chance.randrange(nodes), chance.choice([0, 1, 2, 5, 30]))
        for _ in range(chance.randint(0, 25))
    ]
    network = Network(nodes)
    for start, end, capacity in edges:
        network.add(start, end, capacity)
    near = network.source_side(0, 1)
    assert near[0]
    assert not near[1]
    price = sum(c for a, b, c in edges if near[a] and not near[b])
    assert price == cut_by_trying(nodes, edges, 0, 1)


def test_a_cut_has_no_depth():
    length = 5000
    network = Network(length)
    for node in range(length - 1):
        network.add(node, node + 1, INFINITE if node != 4000 else 7)
    near = network.source_side(0, length - 1)
    assert near == [node <= 4000 for node in range(length)]


def kinds():
    for kind in CELLS:
        for surrogate in SURROGATES if takes(kind, "surrogate") else [None]:
            yield kind, surrogate


@pytest.mark.parametrize(("kind", "surrogate"), list(kinds()), ids=lambda kind: kind and kind.__name__)
def test_no_set_of_up_to_three_values_is_better(kind, surrogate):
    cell = kind(surrogate=made(surrogate)) if surrogate else kind()
    step = trace(cell, torch.Size([5]), torch.float32)
    roots = [g for g in (step.grad_input, *step.grad_states, *step.grad_sums) if g is not None]
    split, found = _Split(step, roots), cheapest_residuals(step, roots)
    few = split.small_set()
    assert few is not None
    assert split.price(found) <= split.price(few)
    assert sum(map(cost_in_bits, found)) <= sum(map(cost_in_bits, few))


def test_four_truth_values_are_kept_instead_of_a_number():
    cell = hb.RefractoryLIFCell(surrogate=hb.surrogate.Box(), detach_reset=True)
    assert make_plan(trace(cell, torch.Size([5]), torch.float32)).bits() == 4
