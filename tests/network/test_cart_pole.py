"""The example of a spiking policy on a cart: its physics, and that a stream pushes as the network does."""

import torch

import hibana as hb
from examples import cart_pole


def test_a_pole_stands_falls_and_is_pushed_as_it_should():
    state = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0.01, 0], [0, 0, 0, 0]])
    force = torch.tensor([0.0, 0, 10])
    for _ in range(100):
        state = cart_pole.next_state(state, force)
    upright, leaning, pushed = state
    assert upright.abs().max() == 0
    assert leaning[2] > 0.2  # falls to where it leans
    assert pushed[0] > 1  # the cart goes where it is pushed
    assert cart_pole.is_lost(state).tolist() == [False, True, True]
    first = cart_pole.next_state(torch.zeros(1, 4), torch.tensor([10.0]))[0]
    assert first[3] < 0 < first[1]  # and the pole leans back
    assert abs(float(first[1]) - 0.195) < 0.001  # 10 N on 1.1 kg and a pole that gives way, for 0.02 s


def test_a_stream_pushes_as_the_network_does():
    torch.manual_seed(0)
    net = cart_pole.policy(16)
    before = [weights.clone() for weights in net.parameters()]
    cart_pole.train(net, 1)
    assert not any(map(torch.equal, before, net.parameters()))
    stream = hb.compile(net, torch.zeros(1, 1, 4)).stream()
    state = other = cart_pole.initial_state(1, cart_pole.WIDE)
    carried = None
    with torch.no_grad():
        for _ in range(20):
            state = cart_pole.next_state(state, cart_pole.to_force(stream.step(cart_pole.scaled(state))))
            outputs, carried = hb.run(net, cart_pole.scaled(other)[None], carried)
            other = cart_pole.next_state(other, cart_pole.to_force(outputs[0]))
    torch.testing.assert_close(state, other, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        steps, seconds = cart_pole.balance(stream, 10)
    assert steps == 10
    assert seconds > 0
