"""Every cell and every surrogate of the package on every backend, with losses of outputs and of states."""

import pytest
import torch

from conformance.compare import assert_conforms, assert_same_gradients, assert_same_values
from conformance.suite import CELLS, SHAPE, SURROGATES, build, drive, each_backend, few, takes
from hibana.cells import IFCell, LIFCell
from hibana.cells.surrogate import ATan

SPIKING = [kind for kind in CELLS if takes(kind, "surrogate")]
RESETTING = [kind for kind in SPIKING if takes(kind, "reset")]


def test_there_are_cells_and_surrogates():
    assert len(CELLS) >= 10
    assert len(SURROGATES) >= 13
    assert len(RESETTING) >= 8


@each_backend
@pytest.mark.parametrize("kind", CELLS)
def test_each_cell(run, kind):
    cell = kind()
    assert_same_values(run, cell, drive(cell))
    assert_conforms(run, cell, drive(cell))


@each_backend
@pytest.mark.parametrize("kind", few(SPIKING))
def test_each_cell_with_a_smooth_surrogate(run, kind):
    cell = kind(surrogate=ATan())
    assert_conforms(run, cell, drive(cell), uses=["outputs and states"])


@each_backend
@pytest.mark.parametrize("kind", CELLS)
def test_each_cell_in_float64(run, kind):
    cell = (kind(surrogate=ATan()) if takes(kind, "surrogate") else kind()).double()
    assert_conforms(run, cell, drive(cell, dtype=torch.float64), uses=["outputs and states"])


@each_backend
@pytest.mark.parametrize("kind", SURROGATES)
def test_each_surrogate(run, kind):
    cell = IFCell(surrogate=build(kind), detach_reset=True)
    assert_conforms(run, cell, drive(cell), uses=["outputs and states"])


@pytest.mark.cover(1)
@each_backend
@pytest.mark.parametrize(("reset", "detach_reset"), [(0.25, True), ("subtract", False)], ids=str)
@pytest.mark.parametrize("kind", RESETTING)
def test_each_reset(run, kind, reset, detach_reset):
    cell = kind(reset=reset, detach_reset=detach_reset)
    assert_conforms(run, cell, drive(cell), uses=["outputs and states"])


@each_backend
def test_a_potential_at_its_lower_bound_passes_its_gradient(run):
    """Also in releases of torch whose clamp has a derivative of 0 at its bound."""
    cell = LIFCell(tau=2.0, reset="subtract", lower_bound=0.0, surrogate=ATan())
    inputs = torch.zeros(3, 1, 1, requires_grad=True)
    outputs, _ = run(cell, inputs, None)
    (grad,) = torch.autograd.grad(outputs[-1].sum(), inputs)
    assert grad.all()


def tied(cell, shape=SHAPE):
    """Input that takes 40% of the neurons exactly to their threshold, by Newton's method."""
    arguments = []

    def recording(x):
        arguments.append(x)
        return surrogate(x)

    surrogate, noise = cell.surrogate, drive(cell, shape)
    state, inputs, ties = cell.initial_state(noise[0]), [], []
    vars(cell)["surrogate"] = recording
    for input_ in noise:
        target = input_
        for _ in range(4):
            target = target.detach().requires_grad_()
            cell(target, *state)
            if not arguments[-1].requires_grad:
                pytest.skip("the input acts on the potential of the next step")
            (slope,) = torch.autograd.grad(arguments[-1].sum(), target, allow_unused=True)
            target = (target - arguments[-1] / slope).detach()
        chosen = (torch.rand(shape[1:]) < 0.4) & target.isfinite()
        inputs.append(torch.where(chosen, target, input_))
        state = tuple(value.detach() for value in cell(inputs[-1], *state))
        ties.append(arguments[-1] == 0)
    vars(cell)["surrogate"] = surrogate
    assert torch.stack(ties).float().mean() > 0.1
    return torch.stack(inputs)


@each_backend
@pytest.mark.parametrize("kind", SPIKING)
def test_a_potential_on_the_threshold(run, kind):
    cell = kind()
    inputs = tied(cell)
    assert_same_values(run, cell, inputs)
    assert_same_gradients(run, cell, inputs, None, "outputs and states")
