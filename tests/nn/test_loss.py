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


def test_the_gradient_of_the_first_spike_time_is_the_number_of_saved_steps(spikes):
    spikes.requires_grad_()
    loss.FirstSpike().scores(spikes)[0].sum().backward()
    assert spikes.grad[:, 0, 1].tolist() == [4.0, 0.0, 0.0, 0.0]  # without it: never, at T = 4
    assert spikes.grad[:, 0, 0].tolist() == [1.0, 1.0, 0.0, 0.0]  # earlier by one; the next is one later
    assert spikes.grad[:, 0, 2].tolist() == [4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_label_smoothing_mixes_in_the_mean_loss_of_all_classes(name):
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
def test_the_gradient_of_a_penalty_is_exact_and_expanded_over_spikes(penalty):
    spikes = (torch.rand(5, 3, 4, 2) < 0.3).float().requires_grad_()
    level = 0.1 if penalty is loss.rate_penalty else 0.9
    (grad,) = torch.autograd.grad(penalty(spikes, level), spikes)
    if penalty is loss.rate_penalty:
        expected = (spikes.mean() / level - 1).square()
    else:
        expected = (1 - spikes.mean((0, 1)) / level).clamp(min=0).square().mean()
    assert torch.equal(penalty(spikes, level), expected)
    assert torch.equal(grad, torch.autograd.grad(expected, spikes)[0])
    assert grad.any()
    assert grad.stride()[:2] == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("penalty", [loss.rate_penalty, loss.silence_penalty])
def test_penalties_of_many_spikes_in_half_precision_are_finite(penalty, dtype):
    spikes = torch.ones(700, 100, 2, dtype=dtype).requires_grad_()
    means = spikes.mean() if penalty is loss.rate_penalty else spikes.mean((0, 1))
    assert torch.equal(means, torch.ones_like(means))
    penalty_value = penalty(spikes, 0.5)
    assert penalty_value.dtype == dtype
    assert penalty_value == (1.0 if penalty is loss.rate_penalty else 0.0)
    (grad,) = torch.autograd.grad(penalty_value, spikes)
    wanted = torch.autograd.grad((means / 0.5 - 1).relu().square(), spikes) if means.ndim == 0 else [0 * grad]
    assert torch.equal(grad, wanted[0])


def test_penalties_of_no_neurons_are_nan_like_an_empty_mean():
    assert loss.rate_penalty(torch.ones(3, 2, 0), 0.5).isnan()
    assert loss.silence_penalty(torch.ones(3, 2, 0), 0.5).isnan()


def test_the_silence_penalty_is_computed_per_neuron():
    spikes = torch.zeros(10, 1, 4)
    spikes[0, :, 0] = 1.0  # rates 0.1, 0, 0, 0
    assert loss.silence_penalty(spikes, 0.1).item() == pytest.approx(3 / 4)
    assert loss.silence_penalty(spikes, 0.2).item() == pytest.approx((0.25 + 3) / 4)


def test_silent_neurons_get_a_gradient_from_smooth_surrogates_only():
    for surrogate_, has_gradient in [(surrogate.ATan(), True), (surrogate.Step(), False)]:
        v = torch.full([1, 1, 1], -0.5, requires_grad=True)
        loss.silence_penalty(surrogate_(v), 0.1).backward()
        assert bool(v.grad < 0) is has_gradient


@pytest.mark.parametrize(
    ("call", "error", "message"),
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
def test_invalid_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("objective", [loss.Rate(), loss.TET(), loss.MembraneMax(smoothing=0.1)], ids=repr)
def test_a_class_out_of_range_is_refused(objective, label):
    message = rf"target must hold class indices in \[0, 3\), as outputs have 3 classes, got {label}"
    with pytest.raises(ValueError, match=message):
        objective(torch.rand(5, 2, 3), torch.tensor([0, label]))
