"""Leaves of passes: each has a text of its own within a kernel."""

import pytest
import torch

import hibana as hb
from conformance.suite import CELLS, build
from hibana.compiler.graph.leaf import INPUT, Leaf
from hibana.compiler.graph.loops import backward_loop, forward_loop
from hibana.compiler.graph.passes import leaves
from hibana.compiler.graph.plan import make_plan
from hibana.compiler.graph.trace import trace


class NamedLikeLeaves(hb.Cell):
    """Names of states that are those of other leaves."""

    def forward(self, input_, x, p0, c0, x_grad, emitted, residual0, sum0, s):
        x = 0.5 * x * p0 + input_ * torch.rand_like(input_)
        new = torch.tanh(x + c0), x_grad * x, x_grad + p0, emitted * x, residual0 - x, sum0 + emitted
        return x, *new, hb.surrogate.ATan()(x - 1 + s * emitted)


@pytest.mark.parametrize(
    "cell", [*map(build, CELLS), NamedLikeLeaves()], ids=lambda cell: type(cell).__name__
)
def test_no_two_leaves_of_a_kernel_have_the_same_text(cell):
    step = trace(cell, torch.Size([3, 4]), torch.float32, draws=True)
    plan = make_plan(step)
    for loop in (forward_loop(step, plan), backward_loop(step, plan, wants_input=True)):
        read = leaves(loop.stores), loop.stores, leaves(loop.before), loop.before, loop.sequences, loop.states
        kernel = {leaf for leaves_ in read for leaf in leaves_}
        assert len({str(leaf) for leaf in kernel}) == len(kernel)


def test_the_text_of_a_leaf_has_its_gradient_and_its_distance_in_time():
    texts = {
        "x": INPUT,
        "x_grad": INPUT.gradient,
        "x_before": INPUT.at(-1),
        "residual2_after3": Leaf("residual", 2, 3),
        "p1": Leaf("parameter", 1),
        "v_state_grad_before2": Leaf("state", 0, -2, is_gradient=True, name="v_state"),
    }
    assert {str(leaf): leaf for leaf in texts.values()} == texts


def test_the_name_of_a_leaf_is_no_part_of_its_identity():
    assert Leaf("state", 1, name="v_state") == Leaf("state", 1)
    assert Leaf("state", 1) != Leaf("state", 1, -1)
