"""The example of a digit spotter that continues to learn from a stream."""

import copy

import torch

from examples import drifting_microphone


def test_a_spotter_learns_from_the_stream_and_a_fixed_copy_does_not():
    torch.manual_seed(0)
    digits = 2 * torch.randn(40, 2, 13)
    net = drifting_microphone.network(digits)
    learning = drifting_microphone.Spotter(net, "d-rtrl", 1e-2)
    fixed = drifting_microphone.Spotter(copy.deepcopy(net), None, 1e-2)
    before = [weights.clone() for weights in net.parameters()]
    for count in range(60):
        for spotter in (learning, fixed):
            spotter.hear(digits[:, count % 2][:, None], torch.tensor([3 + count % 2]))
    assert not any(map(torch.equal, before, learning.net.parameters()))
    assert all(map(torch.equal, before, fixed.net.parameters()))
    assert learning.accuracy(20) == 1.0
    assert fixed.accuracy(20) < 1.0
