"""Objectives and penalties against closed forms."""

import math
import pickle

import pytest
import torch

from hibana import loss, surrogate

OBJECTIVES = ["rate", "count", "membrane-max", "membrane-mean", "first-spike", "tet"]


def cross_entropy(scores, target):
    """-log softmax, written out."""
    return math.log(sum(math.exp(s) for s in scores)) - scores[target]


@pytest.fixture
def spikes():
    """[T = 4, batch = 1, classes = 3]: first spikes at 1, 0 and never; counts 3, 1 and 0."""
    trains = [[0, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]
    return torch.tensor(trains, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("rate", [0.75, 0.25, 0.0]),
        ("count", [3.0, 1.0, 0.0]),
        ("membrane-max", [1.0, 1.0, 0.0]),
        ("membrane-mean", [0.75, 0.25, 0.0]),
        ("first-spike", [-1.0, 0.0, -4.0]),
    ],
)
def test_scores_and_loss(spikes, name, scores):
    objective = loss.named(name)
    assert objective.scores(spikes).tolist() == [pytest.approx(scores)]
    for target in range(3):
        value = objective(spikes, torch.tensor([target])).item()
        assert value == pytest.approx(cross_entropy(scores, target))


def test_tet_is_the_mean_over_time_of_each_steps_loss():
    potentials = torch.randn(5, 3, 4, dtype=torch.float64)
    target = torch.tensor([0, 3, 1])
    each = [cross_entropy(potentials[t, b].tolist(), target[b].item()) for t in range(5) for b in range(3)]
    assert loss.TET()(potentials, target).item() == pytest.approx(sum(each) / 15)
    drawn = (potentials - 1).square().mean().item()
    weighted = loss.TET(weight=0.2)(potentials, target).item()
    assert weighted == pytest.approx(0.8 * sum(each) / 15 + 0.2 * drawn)


def test_the_time_to_first_spike_answers_where_a_spike_would_have_saved_time(spikes):
    spikes.requires_grad_()
    loss.FirstSpike().scores(spikes)[0].sum().backward()
    assert spikes.grad[:, 0, 1].tolist() == [4.0, 0.0, 0.0, 0.0]  # without it: never, at T = 4
    assert spikes.grad[:, 0, 0].tolist() == [1.0, 1.0, 0.0, 0.0]  # earlier by one; the next is one later
    assert spikes.grad[:, 0, 2].tolist() == [4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_smoothed_labels_ask_a_little_of_every_class(name):
    outputs = torch.rand(1, 1, 3, dtype=torch.float64)
    plain = [loss.named(name)(outputs, torch.tensor([target])).item() for target in range(3)]
    smoothed = loss.named(name, 0.3)(outputs, torch.tensor([1])).item()
    assert smoothed == pytest.approx(0.7 * plain[1] + 0.3 * sum(plain) / 3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_agree_with_finite_differences(name):
    outputs = torch.rand(3, 2, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, 3])
    assert torch.autograd.gradcheck(lambda x: loss.named(name)(x, target), outputs)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_accuracy_counts_the_highest_score(name):
    outputs = torch.zeros(4, 3, 5)
    for sample, label in enumerate([2, 0, 4]):
        outputs[1:, sample, label] = 1.0
    assert loss.named(name).accuracy(outputs, torch.tensor([2, 0, 3])).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_pickle_and_equal_by_value(name):
    objective = loss.named(name)
    assert pickle.loads(pickle.dumps(objective)) == objective == loss.named(name)


def test_the_rate_penalty_acts_above_its_target_only():
    spikes = torch.zeros(10, 2, 5)
    spikes[0] = 1.0  # rate 0.1
    assert loss.rate_penalty(spikes, 0.1).item() == 0.0
    assert loss.rate_penalty(spikes, 0.05).item() == pytest.approx(1.0)
    assert loss.rate_penalty(spikes, 0.2).item() == 0.0


@pytest.mark.parametrize("penalty", [loss.rate_penalty, loss.silence_penalty])
def test_the_gradient_of_a_penalty_is_that_of_a_mean_and_takes_no_memory_for_each_spike(penalty):
    spikes = (torch.rand(5, 3, 4, 2) < 0.3).float().requires_grad_()
    level = 0.1 if penalty is loss.rate_penalty else 0.9
    (found,) = torch.autograd.grad(penalty(spikes, level), spikes)
    if penalty is loss.rate_penalty:
        wanted = (spikes.mean() / level - 1).square()
    else:
        wanted = (1 - spikes.mean((0, 1)) / level).clamp(min=0).square().mean()
    assert torch.equal(penalty(spikes, level), wanted)
    assert torch.equal(found, torch.autograd.grad(wanted, spikes)[0])
    assert found.any()
    assert found.stride()[:2] == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("penalty", [loss.rate_penalty, loss.silence_penalty])
def test_more_spikes_than_a_half_number_counts_are_no_infinity(penalty, dtype):
    spikes = torch.ones(700, 100, 2, dtype=dtype).requires_grad_()
    means = spikes.mean() if penalty is loss.rate_penalty else spikes.mean((0, 1))
    assert torch.equal(means, torch.ones_like(means))
    found = penalty(spikes, 0.5)
    assert found.dtype == dtype
    assert found == (1.0 if penalty is loss.rate_penalty else 0.0)
    (grad,) = torch.autograd.grad(found, spikes)
    wanted = torch.autograd.grad((means / 0.5 - 1).relu().square(), spikes) if means.ndim == 0 else [0 * grad]
    assert torch.equal(grad, wanted[0])


def test_of_no_neurons_the_penalties_are_no_number_as_a_mean_of_none_is():
    assert loss.rate_penalty(torch.ones(3, 2, 0), 0.5).isnan()
    assert loss.silence_penalty(torch.ones(3, 2, 0), 0.5).isnan()


def test_the_silence_penalty_looks_at_single_neurons():
    spikes = torch.zeros(10, 1, 4)
    spikes[0, :, 0] = 1.0  # rates 0.1, 0, 0, 0
    assert loss.silence_penalty(spikes, 0.1).item() == pytest.approx(3 / 4)
    assert loss.silence_penalty(spikes, 0.2).item() == pytest.approx((0.25 + 3) / 4)


def test_a_silent_neuron_is_reached_below_the_threshold_except_by_step():
    for shape, moved in [(surrogate.ATan(), True), (surrogate.Step(), False)]:
        v = torch.full([1, 1, 1], -0.5, requires_grad=True)
        loss.silence_penalty(shape(v), 0.1).backward()
        assert bool(v.grad < 0) is moved


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: loss.Rate()(torch.ones(2, 3), torch.ones(2).long()), ValueError, r"\[T, batch, classes\]"),
        (lambda: loss.Rate()(torch.ones(0, 2, 3), torch.ones(2).long()), ValueError, "T at least 1"),
        (lambda: loss.Rate()(torch.ones(1, 2, 3), torch.ones(3).long()), ValueError, r"\[2\]"),
        (lambda: loss.Rate()(torch.ones(1, 2, 3), torch.ones(2)), TypeError, "int64"),
        (lambda: loss.Rate(smoothing=1.0), ValueError, r"smoothing must lie in \[0, 1\)"),
        (lambda: loss.FirstSpike(tau=0.0), ValueError, "tau must be positive"),
        (lambda: loss.TET(weight=1.5), ValueError, r"\[0, 1\]"),
        (lambda: loss.rate_penalty(torch.ones(1, 1, 1), 0.0), ValueError, "target must be a rate"),
        (lambda: loss.silence_penalty(torch.ones(1, 1, 1), 2.0), ValueError, "least must be a rate"),
        (lambda: loss.named("hinge"), ValueError, "first-spike, tet; got 'hinge'"),
    ],
)
def test_bad_input_gets_a_sentence(call, error, words):
    with pytest.raises(error, match=words):
        call()
