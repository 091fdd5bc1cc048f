"""A padded batch equals its samples one by one: losses, gradients, penalties, rates, predictions."""

import pytest
import torch
from torch import nn

import hibana as hb
from hibana import lengths as padding
from hibana import loss
from hibana.train import activity, scale_to_rate

OBJECTIVES = [*(loss.named(name) for name in loss._BY_NAME), loss.TET(0.3), loss.MembraneMean(smoothing=0.2)]
LENGTHS = torch.tensor([9, 1, 4, 6])


def network():
    torch.manual_seed(4)
    return nn.Sequential(
        hb.Window(3, 12, 2),
        hb.LIF(tau=3.0, threshold=0.2, surrogate=hb.surrogate.ATan()),
        hb.Recurrent(hb.ALIFCell(threshold=0.3, surrogate=hb.surrogate.ATan()), 12),
        nn.Linear(12, 5),
        hb.LI(tau=4.0),
    ).double()


def samples():
    return [torch.rand(int(length), 3, dtype=torch.float64) for length in LENGTHS]


def padded(sequences):
    """Inputs ``[T, batch, features]``, padded with 0.7, and their lengths."""
    inputs, lengths = padding.pad(sequences)
    return padding.masked(inputs, lengths, 0.7), lengths


def gradients(net, value):
    return torch.autograd.grad(value, list(net.parameters()))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_loss_gradients_and_accuracy_are_those_of_the_samples_alone(objective):
    net, sequences, target = network(), samples(), torch.tensor([0, 3, 1, 4])
    inputs, lengths = padded(sequences)
    outputs = net(inputs)
    alone = [net(sequence[:, None]) for sequence in sequences]
    each = torch.stack([objective(one, label[None]) for one, label in zip(alone, target, strict=True)])
    batched = objective(outputs, target, lengths)
    torch.testing.assert_close(batched, each.mean())
    for one, other in zip(gradients(net, batched), gradients(net, each.mean()), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(objective.scores(outputs, lengths), torch.cat([*map(objective.scores, alone)]))
    accuracies = [objective.accuracy(one, label[None]) for one, label in zip(alone, target, strict=True)]
    torch.testing.assert_close(objective.accuracy(outputs, target, lengths), torch.stack(accuracies).mean())


def test_full_lengths_equal_no_lengths():
    outputs, target = torch.rand(7, 3, 4, dtype=torch.float64), torch.tensor([0, 3, 1])
    for objective in OBJECTIVES:
        value = objective(outputs, target, torch.full([3], 7))
        torch.testing.assert_close(value, objective(outputs, target))


def test_penalties_ignore_padded_steps():
    net, sequences = network(), samples()
    inputs, lengths = padded(sequences)
    spikes = net[:2](inputs)
    joined = torch.cat([net[:2](sequence[:, None]) for sequence in sequences])
    for penalty in (loss.rate_penalty, loss.silence_penalty):
        bound = 0.01 if penalty is loss.rate_penalty else 0.9
        result, expected = penalty(spikes, bound, lengths), penalty(joined, bound)
        assert expected > 0
        torch.testing.assert_close(result, expected)
        parameters = list(net[0].parameters())
        for one, other in zip(
            torch.autograd.grad(result, parameters, retain_graph=True),
            torch.autograd.grad(expected, parameters, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


def test_activity_is_that_of_the_samples_alone():
    net, sequences = network(), samples()
    inputs, lengths = padded(sequences)
    _, spikes = activity(net, inputs, lengths)
    alone = [activity(net, sequence[:, None])[1] for sequence in sequences]
    for name, layer in spikes.items():
        assert layer.sum() == sum(one[name].sum() for one in alone)
        joined = torch.cat([one[name] for one in alone])
        assert spikes.rates()[name] == pytest.approx(joined.detach().mean().item())
        assert spikes.silent()[name] == int((joined.sum((0, 1)) == 0).sum())
    assert spikes.keys() == {"1", "2"}


def test_scale_to_rate_ignores_padded_steps():
    lengths = torch.randint(1, 20, (40,))
    inputs, _ = padded([torch.rand(int(length), 6) for length in lengths])
    inputs = padding.masked(inputs, lengths, 50.0)
    net = nn.Sequential(nn.Linear(6, 80), hb.LIF(), nn.Linear(80, 80), hb.LIF())
    scaled = scale_to_rate(net, inputs, 0.1, lengths)
    rates = activity(net, inputs, lengths)[1].rates()
    assert rates == pytest.approx(scaled)
    assert list(rates.values()) == pytest.approx([0.1, 0.1], abs=0.01)


def test_a_target_at_each_step():
    outputs = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (6, 3))
    target[2:4, 0] = -100
    lengths = torch.tensor([6, 2, 5])
    objective = loss.EveryStep()
    losses, hits = [], []
    for sample, length in enumerate(lengths):
        labelled = [t for t in range(int(length)) if target[t, sample] != -100]
        steps = outputs[labelled, sample]
        losses.append(nn.functional.cross_entropy(steps, target[labelled, sample]))
        hits += (steps.argmax(1) == target[labelled, sample]).tolist()
    torch.testing.assert_close(objective(outputs, target, lengths), torch.stack(losses).mean())
    assert objective.accuracy(outputs, target, lengths).item() == pytest.approx(sum(hits) / len(hits))
    with pytest.raises(ValueError, match=r"one class index per step and sample, \[6, 3\], got shape \(3,\)"):
        objective(outputs, target[0])


def test_padding_and_the_last_step():
    sequences = [torch.ones(2, 3), 2 * torch.ones(5, 3)]
    inputs, lengths = padding.pad(sequences)
    assert inputs.shape == (5, 2, 3)
    assert lengths.tolist() == [2, 5]
    assert inputs[2:, 0].sum() == 0
    numbered = torch.arange(10.0).view(5, 2)
    assert padding.last(numbered, lengths).tolist() == [2.0, 9.0]
    assert torch.equal(padding.last(numbered), numbered[-1])


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (
            torch.tensor([0, 3]),
            ValueError,
            r"lengths must lie in \[1, 4\], the number of steps, got \[0, 3\]",
        ),
        (torch.tensor([5, 3]), ValueError, r"lengths must lie in \[1, 4\]"),
        (torch.tensor([3]), ValueError, r"lengths must be one for each sample, \[2\], got shape \(1,\)"),
        (torch.tensor([3.0, 1.0]), TypeError, "lengths must be whole numbers of steps, got torch.float32"),
    ],
)
def test_invalid_lengths_are_refused(lengths, error, message):
    with pytest.raises(error, match=message):
        loss.Rate()(torch.zeros(4, 2, 3), torch.tensor([0, 1]), lengths)
    with pytest.raises(error, match=message):
        loss.rate_penalty(torch.zeros(4, 2, 3), 0.1, lengths)


def test_a_network_without_spiking_layers_warns():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.warns(
        UserWarning, match="net has no spiking layer of hibana, so that no rate can be set; its"
    ):
        assert scale_to_rate(net, torch.rand(5, 2, 3), 0.1) == {}
    with pytest.warns(
        UserWarning, match="so that no spikes are counted; its modules are Sequential, Linear, ReLU"
    ):
        assert activity(net, torch.rand(5, 2, 3))[1] == {}
