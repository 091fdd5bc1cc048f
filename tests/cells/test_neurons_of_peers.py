"""Neurons of other libraries: hibana's neurons emit the same spikes. Skipped if a library is not installed.

Install the libraries as in ``test_nir_peers.py``. If the order of operations differs, inputs are multiples
of a power of two.
"""

import pytest
import torch

import hibana as hb

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of the other libraries
X = torch.randint(-16, 40, (60, 4, 9), generator=torch.Generator().manual_seed(3)) / 64


def grid(x):
    return x * 4


@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
@pytest.mark.parametrize("late", [True, False])
def test_snntorchs_leaky(mechanism, late):
    snn = pytest.importorskip("snntorch")
    peer = snn.Leaky(beta=0.875, reset_mechanism=mechanism, reset_delay=late)
    memory, expected = peer.reset_mem(), []
    for step in X:
        spikes, memory = peer(step, memory)
        expected.append(spikes)
    subtracts = mechanism == "subtract"
    layer = hb.LIF(tau=8.0, reset="subtract" if subtracts else 0.0, leak_first=late and subtracts)
    assert torch.equal(layer(X), torch.stack(expected))
    assert layer(X).any()


def test_snntorchs_learned_beta():
    snn = pytest.importorskip("snntorch")
    peer = snn.Leaky(beta=0.875, learn_beta=True, learn_threshold=True, spike_grad=snn.surrogate.atan())
    layer = hb.LIF(8.0, learn=("tau", "threshold"), reset="subtract", leak_first=True, surrogate="atan")
    memory, expected = peer.reset_mem(), []
    for step in X:
        spikes, memory = peer(step, memory)
        expected.append(spikes)
    outputs = layer(X)
    assert torch.equal(outputs, torch.stack(expected))
    assert {"log_tau", "log_threshold"} == {name for name, _ in layer.cell.named_parameters()}
    assert all(p.grad is not None for p in _backward(outputs, layer))


def _backward(outputs, layer):
    outputs.square().sum().backward()
    return list(layer.parameters())


@pytest.mark.parametrize("bound", [None, -0.5])
@pytest.mark.parametrize("most", [1, 4])
def test_sinabs_leak_with_a_lower_bound_and_many_spikes(bound, most):
    layers = pytest.importorskip("sinabs.layers")
    activation = pytest.importorskip("sinabs.activation")
    alpha = 0.875
    spikes = activation.SingleSpike if most == 1 else activation.MaxSpike(most)
    tau = -1 / torch.log(torch.tensor(alpha, dtype=torch.float64))
    peer = layers.LIF(tau_mem=tau.item(), spike_fn=spikes, min_v_mem=bound, norm_input=False).double()
    x = 2 * grid(X).double() + 1 / 256  # off the threshold, at which sinabs spikes and hibana does not
    expected = peer(x.transpose(0, 1)).transpose(0, 1)
    layer = hb.LIF(tau=8.0, reset="subtract", lower_bound=bound, most_spikes=most)
    outputs = layer(x)
    assert torch.equal(outputs, expected)
    assert outputs.max() == most


@pytest.mark.parametrize("reset", [0.0, -0.5, None])
@pytest.mark.parametrize("decay_input", [True, False])
def test_spikingjellys_leak(reset, decay_input):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    peer = neuron.LIFNode(tau=4.0, decay_input=decay_input, v_reset=reset, step_mode="m").double()
    x = (grid(X) * (4 if decay_input else 1)).double() + 1 / 256  # off the threshold
    expected = peer(x)
    rest = {} if reset is None else {"rest": reset}
    layer = hb.LIF(tau=4.0, reset="subtract" if reset is None else reset, decay_input=decay_input, **rest)
    assert torch.equal(layer(x), expected)
    assert expected.any()


def test_spikingjellys_plif():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    peer = neuron.ParametricLIFNode(init_tau=4.0, step_mode="m").double()
    x = 4 * grid(X).double() + 1 / 256
    assert torch.equal(hb.PLIF(tau=4.0).double()(x), peer(x))
