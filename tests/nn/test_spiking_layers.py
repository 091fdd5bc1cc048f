"""Whether a cell emits spikes is derived from its step, not from the names of its states."""

import threading

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.suite import CELLS, takes
from hibana import train
from hibana.cells.surrogate import ATan
from hibana.compiler import emits_spikes


def cell(step, start=None, **attributes):
    """A cell with the states `u` and `out`; `step` returns their next values."""

    class UserCell(hb.Cell):
        def forward(self, input_, u_previous, out_previous):
            return step(self, input_, u_previous, out_previous)

        if start is not None:

            def initial_state(self, input_):
                return start(input_)

    user_cell = UserCell()
    for name, value in attributes.items():
        setattr(user_cell, name, value)
    return user_cell


def integrated(x, u, out):
    return u * (1 - out) + x


BINARY = {
    "a surrogate": lambda self, x, u, out: (u + x, ATan()(u + x - 1)),
    "a comparison": lambda self, x, u, out: (u + x, (u + x > 1).float()),
    "another dtype's comparison": lambda self, x, u, out: (u + x, (u > 1).type_as(x)),
    "a choice of numbers": lambda self, x, u, out: (u + x, torch.where(u > 1, 1.0, 0.0)),
    "a choice of tensors": lambda self, x, u, out: (
        u + x,
        torch.where(u > 1, torch.ones_like(x), torch.zeros_like(x)),
    ),
    "a product of two": lambda self, x, u, out: (u + x, ATan()(u - 1) * (x > 0)),
    "a negation": lambda self, x, u, out: (u + x, 1 - ATan()(u - 1)),
    "one or the other": lambda self, x, u, out: (u + x, torch.maximum(ATan()(u - 1), out)),
    "the previous state": lambda self, x, u, out: (ATan()(x - 1), u),
    "a random draw": lambda self, x, u, out: (u + x, torch.bernoulli(torch.sigmoid(u))),
    "a random threshold": lambda self, x, u, out: (u + x, (u > torch.rand_like(u)).to(x.dtype)),
    "written in place": lambda self, x, u, out: (u + x, torch.empty_like(x).copy_(u > 1)),
    "a mask filled in": lambda self, x, u, out: (u + x, torch.zeros_like(x).masked_fill(u > 1, 1.0)),
    "with synapses": lambda self, x, u, out: (u + self.synapses(out), (u > 1).float()),
    "of each neuron": lambda self, x, u, out: (u * self.leak + x, ATan()(u - self.leak)),
}
OTHER = {
    "a potential": lambda self, x, u, out: (ATan()(u - 1), u + x),
    "graded spikes": lambda self, x, u, out: (u + x, ATan()(u - 1) * u),
    "a sign": lambda self, x, u, out: (u + x, torch.neg(ATan()(u - 1))),
    "two spikes": lambda self, x, u, out: (u + x, ATan()(u - 1) + ATan()(u - 2)),
    "signed spikes": lambda self, x, u, out: (u + x, ATan()(u - 1) - ATan()(-u - 1)),
    "spikes of a height": lambda self, x, u, out: (u + x, ATan()(u - 1) * 0.5),
    "a trace": lambda self, x, u, out: (u + x, 0.9 * out + ATan()(u - 1)),
    "its own state": lambda self, x, u, out: (out, u + x),
    "overwritten": lambda self, x, u, out: (u + x, (u > 1).float().mul_(u)),
    "overwritten through another": lambda self, x, u, out: (u + x, alter((u > 1).float(), u)),
}


def alter(spikes, u):
    spikes.detach().add_(u)
    return spikes


def extra(name):
    return {"with synapses": {"synapses": nn.Linear(5, 5)}, "of each neuron": {"leak": torch.rand(5)}}.get(
        name, {}
    )


@pytest.mark.parametrize("kind", CELLS)
def test_each_cell_with_a_surrogate_spikes(kind):
    assert emits_spikes(kind()) == takes(kind, "surrogate")
    assert emits_spikes(kind().double()) == takes(kind, "surrogate")


@pytest.mark.parametrize("name", BINARY)
def test_a_binary_output_is_recognized(name):
    user_cell = cell(BINARY[name], **extra(name))
    assert emits_spikes(user_cell)
    outputs, _ = hb.unroll(user_cell, torch.rand(9, 4, 5), backend="reference")
    assert bool(((outputs == 0) | (outputs == 1)).all())


@pytest.mark.parametrize("name", OTHER)
def test_an_output_that_is_not_binary_is_recognized(name):
    user_cell = cell(OTHER[name])
    assert not emits_spikes(user_cell)
    outputs, _ = hb.unroll(user_cell, 3 * torch.rand(9, 4, 5) - 1, backend="reference")
    assert not bool(((outputs == 0) | (outputs == 1)).all())


def test_the_name_of_a_state_does_not_matter():
    class Graded(hb.Cell):
        def forward(self, input_, v_previous, s_previous):
            v = v_previous + input_
            return v, v * ATan()(v - 1)

    assert not emits_spikes(Graded())


def test_a_delayed_state_with_a_nonbinary_initial_value_is_not_binary():
    step = BINARY["the previous state"]
    assert not emits_spikes(cell(step, start=lambda x: (torch.full_like(x, -65.0), torch.zeros_like(x))))


def test_a_changed_cell_is_read_again():
    user_cell = cell(lambda self, x, u, out: (u + x, ATan()(u - 1) * (u if self.how["graded"] else 1)))
    user_cell.how = {"graded": False}
    assert emits_spikes(user_cell)
    user_cell.how["graded"] = True
    assert not emits_spikes(user_cell)


def test_a_step_that_cannot_be_read_takes_the_users_answer():
    def step(self, x, u, out):
        return u + x, (u > float(self.expected[0])).float()

    unread = cell(step, expected=[])
    with pytest.raises(RuntimeError, match=r"UserCell emits spikes .*IndexError.*emits_spikes = True"):
        emits_spikes(unread)
    with pytest.raises(RuntimeError, match=r"layer '1'.*emits_spikes = True"):
        train.spiking_layers(nn.Sequential(nn.Linear(2, 2), hb.OverTime(unread)))
    for answer in (True, False):
        unread.emits_spikes = answer
        assert emits_spikes(unread) is answer


def test_reading_a_step_draws_no_random_number_and_changes_nothing():
    user_cell = cell(BINARY["a random threshold"], synapses=nn.Linear(5, 5))
    before = {name: tensor.clone() for name, tensor in user_cell.state_dict().items()}
    state = torch.get_rng_state()
    assert emits_spikes(user_cell)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(user_cell.state_dict()[name], value) for name, value in before.items())


def test_the_device_of_tensors_does_not_matter():
    user_cell = cell(BINARY["of each neuron"], leak=nn.Parameter(torch.rand(5)))
    assert emits_spikes(user_cell.to("meta"))
    with torch.device("meta"), torch.autocast("cpu"):
        assert emits_spikes(hb.IFCell(torch.ones(3)))


def test_training_functions_recognize_a_user_defined_layer():
    def net():
        torch.manual_seed(1)
        user_cell = cell(lambda self, x, u, out: (integrated(x, u, out), ATan()(integrated(x, u, out) - 1)))
        return nn.Sequential(nn.Linear(20, 50), hb.OverTime(user_cell), nn.Linear(50, 3), hb.LI())

    inputs = torch.rand(10, 8, 20)
    network = net()
    assert [*train.spiking_layers(network)] == ["1"]
    rates = train.scale_to_rate(network, inputs, 0.1)
    assert rates["1"] == pytest.approx(0.1, abs=0.01)
    _, spikes = train.activity(network, inputs)
    assert spikes["1"].mean().item() == pytest.approx(rates["1"])


def test_autocast_adds_weights_per_spike_and_leaves_dense_products_to_torch():
    net = nn.Sequential(hb.Linear(256, 512), hb.IF(threshold=0.5, detach_reset=True), hb.Linear(512, 64))
    net[2].mode = "events"
    x = torch.rand(20, 32, 256)

    def gradients():
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            currents = net[0](x)
            spikes = net[1](currents)
            outputs = net[2](spikes)
            outputs.square().mean().backward()  # also within autocast
        return currents, spikes, outputs, [p.grad.clone() for p in net.parameters()]

    currents, spikes, outputs, grads = gradients()
    assert currents.dtype == torch.bfloat16
    assert net[0].explain().startswith("dense")
    assert spikes.dtype == outputs.dtype == torch.float32
    assert net[2].explain().startswith("events")
    torch.testing.assert_close(outputs, nn.functional.linear(spikes, net[2].weight, net[2].bias))
    net[2].mode = "dense"
    for result, expected in zip(grads, gradients()[3], strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_several_threads_may_read_one_cell():
    cells = [cell(BINARY["of each neuron"], leak=nn.Parameter(torch.rand(5))) for _ in range(20)]
    wrong = []

    def read():
        wrong.extend(each for each in cells if not emits_spikes(each))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
