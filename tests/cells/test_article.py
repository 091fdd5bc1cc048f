"""The package reproduces the article's system, number for number."""

import pytest
import torch

import article
import hibana as hb
from hibana import demo


def random_inputs():
    return torch.rand(60, 7, 11) - 0.2


def tied_inputs(threshold=1.0):
    """Multiples of 1/8, so that sums are exact; 40% of them raise the potential exactly to the threshold."""
    v = s = torch.zeros(7, 11)
    inputs = []
    for _ in range(60):
        rested = v * (1 - s)
        tie = torch.rand(7, 11) < 0.4
        inputs.append(torch.where(tie, threshold - rested, torch.randint(-8, 9, (7, 11)) / 8))
        v = rested + inputs[-1]
        s = (v > threshold).float()
    return torch.stack(inputs)


def test_demo_1_prints_what_the_article_prints_in_english(capsys):
    demo.one_step()
    assert capsys.readouterr().out == article.DEMO_1.replace("backwardした", "after the backward")


def test_demo_2_is_the_articles_loop():
    torch.manual_seed(3)
    result = demo.over_time(timesteps=100)
    torch.manual_seed(3)
    x_input = torch.rand(100) / 15
    if_func = article.IF(threshold=1)
    v_list = torch.zeros_like(x_input)
    s_list = torch.zeros_like(x_input)
    for t in range(99):
        v_list[t + 1], s_list[t + 1] = if_func(x_input[t], v_list[t], s_list[t])
    assert torch.equal(result.potentials, v_list)
    assert torch.equal(result.spikes, s_list)
    assert result.spikes.sum() >= 2


def test_ties_are_ties():
    potentials, spikes = article.over_time(tied_inputs())
    assert (potentials == 1).float().mean() > 0.35
    assert spikes[potentials == 1].sum() == 0
    assert spikes.mean() > 0.05


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("make", [random_inputs, tied_inputs])
def test_the_cell_over_time_is_the_articles_code(make, detach_reset):
    inputs = make()
    theirs, ours = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    potentials, spikes = article.over_time(theirs, detach_reset=detach_reset)

    cell = hb.IFCell(detach_reset=detach_reset)
    v = s = torch.zeros_like(ours[0])
    states = []
    for input_ in ours:
        v, s = cell(input_, v, s)
        states.append((v, s))
    v, s = (torch.stack(state) for state in zip(*states, strict=True))

    assert torch.equal(v, potentials)
    assert torch.equal(s, spikes)
    weights = torch.randn(2, *inputs.shape)
    (weights[0] * potentials + weights[1] * spikes).sum().backward()
    (weights[0] * v + weights[1] * s).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    assert theirs.grad.count_nonzero() > inputs.numel() / 2


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("make", [random_inputs, tied_inputs])
def test_the_layer_is_the_articles_code(make, detach_reset):
    inputs = make()
    theirs, ours = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    _, spikes = article.over_time(theirs, detach_reset=detach_reset)
    emitted, _ = hb.unroll(hb.IFCell(detach_reset=detach_reset), ours, backend="reference")
    assert torch.equal(emitted, spikes)
    assert torch.equal(hb.IF(detach_reset=detach_reset)(inputs), spikes)
    weights = torch.randn_like(inputs)
    (weights * spikes).sum().backward()
    (weights * emitted).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_the_reset_carries_gradient_unless_detached():
    grads = []
    for detach_reset in (False, True):
        inputs = torch.full([3, 1], 1.5, requires_grad=True)
        hb.IF(detach_reset=detach_reset)(inputs).sum().backward()
        grads.append(inputs.grad.flatten().tolist())
    # by hand, from the last step back, with v = 1.5 and s = 1 throughout: g = 1 - 1.5 * g_next
    assert grads == [[1 - 1.5 * (1 - 1.5), 1 - 1.5, 1.0], [1.0, 1.0, 1.0]]


def test_a_potential_on_the_threshold_does_not_spike():
    v, s = hb.IFCell(threshold=0.5)(torch.tensor([0.25]), torch.tensor([0.25]), torch.tensor([0.0]))
    assert (v.item(), s.item()) == (0.5, 0.0)
