"""The example of a spiking policy on a cart: its training, and equal forces from a stream and the network."""

import torch

import hibana as hb
from examples import cart_pole


def test_a_stream_and_the_network_push_alike():
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
