"""Online learning: gradients compared with backpropagation through time, and rules with their formulas."""

import copy
import functools
import gc
import itertools
import pickle

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.suite import CELLS as KINDS
from hibana.cells.surrogate import ATan
from learn import specification

DOUBLE = torch.float64
SPIKING = [kind for kind in KINDS if kind is not hb.LICell]
RULES = ("d-rtrl", "e-prop", "ottt", "pp-prop")


class Resonate(hb.Cell):
    """A user-defined cell: two states that act on each other, no reset, and a learned parameter."""

    def __init__(self):
        super().__init__()
        self.coupling = nn.Parameter(torch.tensor(0.4, dtype=torch.get_default_dtype()))

    def forward(self, input_, w_previous, v_previous, s_previous):
        w = 0.9 * w_previous + self.coupling * v_previous
        v = 0.8 * v_previous - self.coupling * w_previous + input_
        return w, v, ATan()(v - 1)


def grads(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def spikes(*shape, seed=0, dtype=DOUBLE):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3).to(dtype)


def loss_of(x, outputs, signals="each"):
    """The loss of a step: a linear plus a quadratic term; for `signals` "end" only at the last four steps."""
    weight = torch.randn(outputs, dtype=x.dtype, generator=torch.Generator().manual_seed(1))

    def loss(t, y):
        if signals == "end" and t < len(x) - 4:
            return None
        return (y * weight * (t % 3 - 0.7)).sum() + 0.1 * y.square().sum()

    return loss


def bptt(net, x, loss):
    net.zero_grad()
    losses = [loss(t, y) for t, y in enumerate(net(x))]
    sum(term for term in losses if term is not None).backward()
    return grads(net)


def by_steps(net, x, loss, rule):
    net.zero_grad()
    learner = hb.learn.online(net, rule)
    for t, input_ in enumerate(x):
        term = loss(t, learner.step(input_))
        if term is not None:
            term.backward()
    return grads(net)


def by_sequence(net, x, loss, rule, chunk):
    net.zero_grad()
    hb.learn.online(net, rule).sequence(x, loss, chunk=chunk)
    return grads(net)


def similarity(result, exact):
    """The cosine between all gradients of `result` and of `exact`, and the ratio of their norms."""
    a, b = (torch.cat([g[name].flatten() for name in exact]) for g in (result, exact))
    return float(a @ b / (a.norm() * b.norm())), float(a.norm() / b.norm())


def check_exact(result, exact, tolerance=1e-9, names=True):
    assert not names or result.keys() == exact.keys()
    for name, grad in exact.items():
        assert grad.abs().max() > 0, name
        assert (result[name] - grad).abs().max() <= tolerance * grad.abs().max(), name


def amplify(net, x):
    """Scales the weights of the first layer of `net` until its neurons spike, and returns `net`."""
    weights = net[0]
    for _ in range(40):
        with torch.no_grad():
            if net[:2](x).mean() > 0.05:
                return net
            for parameter in weights.parameters():
                parameter.mul_(1.3)
    raise AssertionError(f"{net[1]} can't be made to spike")


def network(layer, readout, inputs=6, neurons=5):
    torch.manual_seed(0)
    end = [] if readout == "linear" else [hb.LI(tau=4.0)]
    return nn.Sequential(nn.Linear(inputs, neurons), layer, nn.Linear(neurons, 3), *end).double()


@pytest.mark.cover(1)
@pytest.mark.parametrize("signals", ["each", "end"])
@pytest.mark.parametrize("readout", ["linear", "leaky"])
@pytest.mark.parametrize("kind", [*SPIKING, Resonate], ids=lambda kind: kind.__name__)
def test_one_layer_has_the_gradients_of_backpropagation_through_time(kind, readout, signals):
    cell = kind() if kind is Resonate else kind(surrogate=ATan())
    x = spikes(15, 3, 6)
    net = amplify(network(hb.OverTime(cell), readout), x)
    loss = loss_of(x, 3, signals)
    exact = bptt(net, x, loss)
    check_exact(by_steps(net, x, loss, "d-rtrl"), exact)
    check_exact(by_sequence(net, x, loss, "d-rtrl", 7), exact)


class AfterReset(hb.Cell):
    """Its state is the potential after the reset; neither v nor s is a function of the other."""

    def forward(self, input_, v_previous, s_previous):
        v = 0.8 * v_previous + input_
        s = ATan()(v - 1)
        return v - s, s


class DelayedOutput(hb.Cell):
    """Emits the previous output, and has one state without a derivative."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, input_, s_previous, v_previous, y_previous):
        v = torch.sigmoid(self.gain * v_previous + input_)
        return y_previous.detach(), v, v


CELLS = {
    "DelayedOutput": DelayedOutput,
    "LIF": lambda: hb.LIFCell(tau=3.0, surrogate=ATan()),
    "ALIF": lambda: hb.ALIFCell(surrogate=ATan()),
    "ResonateAndFire": lambda: hb.ResonateAndFireCell(surrogate=ATan()),
    "AfterReset": AfterReset,
    "learned": lambda: hb.LIFCell(tau=hb.log_uniform(2, 20, 5), surrogate=ATan(), learn=("tau", "threshold")),
    "PLIF": lambda: hb.PLIFCell(surrogate=ATan()),
    "Resonate": Resonate,
}


@pytest.mark.cover(2)
@pytest.mark.parametrize("rule", [hb.learn.DRTRL(), hb.learn.EProp(), hb.learn.PPProp(decay=0.8)], ids=str)
@pytest.mark.parametrize("readout", ["linear", "leaky"])
@pytest.mark.parametrize("scale", [None, 1.0, 0.5])
@pytest.mark.parametrize("cell", CELLS)
def test_rules_equal_their_specification(cell, scale, readout, rule):
    """`scale` is the gradient scale of recurrent synapses; None for a layer without them."""
    torch.manual_seed(0)
    cell = CELLS[cell]()
    layer = hb.OverTime(cell) if scale is None else hb.Recurrent(cell, 5, gradient_scale=scale)
    end = [] if readout == "linear" else [hb.LI(tau=4.0)]
    x, bias = spikes(20, 4, 6), {"bias": False}
    net = nn.Sequential(nn.Linear(6, 5, **bias), layer, nn.Linear(5, 3, **bias), *end)
    net = amplify(net.double(), x)
    loss = loss_of(x, 3)
    if type(cell) is Resonate and readout == "linear" and isinstance(rule, hb.learn.PPProp):
        rule = hb.learn.EProp()  # PP-Prop equals e-prop if all neurons share the traces of inputs
    exact = specification.gradients(net, x, loss, rule)
    check_exact(by_steps(net, x, loss, rule), exact, names=False)
    for chunk in (7, 20):
        check_exact(by_sequence(net, x, loss, rule, chunk), exact, names=False)


def test_ottt_has_the_full_gradient_of_cell_parameters():
    x = spikes(25, 4, 6)
    cell = hb.LIFCell(tau=3.0, surrogate=ATan(), learn=("tau", "threshold"))
    net = amplify(network(hb.OverTime(cell), "linear"), x)
    loss = loss_of(x, 3)
    exact, result = (
        {name: grad for name, grad in gradients.items() if "cell" in name}
        for gradients in (bptt(net, x, loss), by_sequence(net, x, loss, "ottt", 7))
    )
    assert len(exact) == 2
    check_exact(result, exact)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [hb.IFCell, hb.LIFCell, hb.CubaLIFCell], ids=lambda kind: kind.__name__)
def test_every_rule_has_the_full_gradient_if_neurons_share_a_trace(kind, rule):
    layer = hb.OverTime(kind(surrogate=ATan(), reset="subtract", detach_reset=True))
    x = spikes(20, 4, 6)
    net = amplify(network(layer, "linear"), x)
    exact = bptt(net, x, loss_of(x, 3))
    check_exact(by_steps(net, x, loss_of(x, 3), rule), exact)
    check_exact(by_sequence(net, x, loss_of(x, 3), rule, 7), exact)


@pytest.mark.parametrize(("pool", "omits"), [(nn.AvgPool2d(2), False), (nn.MaxPool2d(2), True)], ids=str)
def test_layers_between_neurons_and_readout_are_exact_if_linear(pool, omits):
    torch.manual_seed(0)
    x = spikes(15, 3, 1, 6, 6)
    convolution = hb.EachStep(nn.Conv2d(1, 4, 3))
    nn.init.uniform_(convolution.module.weight, -0.2, 0.4)
    layers = convolution, hb.LIF(surrogate=ATan()), hb.EachStep(pool), nn.Flatten(2), nn.Linear(16, 3)
    net = amplify(nn.Sequential(*layers, hb.LI(tau=4.0)).double(), x)
    exact = bptt(net, x, loss_of(x, 3))
    result = by_steps(net, x, loss_of(x, 3), "d-rtrl")
    note = "left out: the derivative of '2' at the earlier steps that '5' remembers"
    assert (note in hb.learn.explain(net)) == omits
    if omits:
        assert similarity(result, exact)[0] < 0.9999
    else:
        check_exact(result, exact)


def learned_readout():
    net = network(hb.LIF(), "leaky")
    net[3] = hb.LI(tau=4.0, learn="tau")
    return net, spikes(20, 4, 6)


def frozen_layer():
    net = network(hb.LIF(surrogate=ATan()), "linear")
    net[0].requires_grad_(False)
    return net, spikes(10, 4, 6)


def convolutional(layer, *shape):
    """A convolution, neurons, and a linear readout, with spikes of the image shape `shape`."""
    torch.manual_seed(0)
    convolution = hb.EachStep(layer)
    x = spikes(12, 2, *shape)
    outputs = convolution(x.float()).flatten(2).shape[2]
    net = nn.Sequential(convolution, hb.LIF(surrogate=ATan()), nn.Flatten(2), nn.Linear(outputs, 3))
    return net, x


EXACT = {
    "a learned readout": learned_readout,
    "a frozen layer": frozen_layer,
    "a convolution": lambda: convolutional(nn.Conv2d(2, 3, 3), 2, 7, 6),
    "a stride": lambda: convolutional(nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), 2, 7, 6),
    "a dilation": lambda: convolutional(nn.Conv2d(2, 3, 3, dilation=2), 2, 7, 6),
    "one dimension": lambda: convolutional(hb.events.Conv1d(2, 3, 4, padding=1), 2, 9),
}


@pytest.mark.parametrize("name", EXACT)
def test_gradients_equal_backpropagation_through_time(name):
    net, x = EXACT[name]()
    net = amplify(net.double(), x)
    exact = bptt(net, x, loss_of(x, 3))
    check_exact(by_steps(net, x, loss_of(x, 3), "d-rtrl"), exact)
    check_exact(by_sequence(net, iter(x), loss_of(x, 3), "d-rtrl", 5), exact)


def chain(*layers, sizes=(6, 5, 8, 3)):
    """Two layers of neurons, and a leaky readout."""
    torch.manual_seed(0)
    maps = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    nn.init.uniform_(maps[1].weight, -1, 3)  # the second layer spikes too
    return nn.Sequential(maps[0], layers[0], maps[1], layers[1], maps[2], hb.LI(tau=4.0))


CHAINS = {
    "recurrent LIF": lambda: chain(hb.Recurrent(hb.LIFCell(surrogate=ATan()), 5), hb.ALIF(surrogate=ATan())),
    "CubaLIF, equal neurons": lambda: chain(
        hb.CubaLIF(surrogate=ATan()), hb.LIF(surrogate=ATan(), reset="subtract", detach_reset=True)
    ),
    "with a bias": lambda: chain(
        hb.Recurrent(hb.LIFCell(surrogate=ATan(), reset="subtract"), 5, nn.Linear(5, 5)),
        hb.LIF(surrogate=ATan()),
    ),
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CHAINS)
def test_chunks_equal_single_steps(name, rule):
    x, loss = spikes(17, 4, 6), loss_of(spikes(17, 4, 6), 3)
    net = amplify(CHAINS[name]().double(), x)
    exact = by_steps(net, x, loss, rule)
    for chunk in (3, 30):
        check_exact(by_sequence(net, x, loss, rule, chunk), exact)
    net.zero_grad()
    outputs = hb.learn.online(net, rule)(x)  # the full sequence, for any loss
    torch.testing.assert_close(outputs, net(x))
    sum(loss(t, y) for t, y in enumerate(outputs)).backward()
    check_exact(grads(net), exact)


def test_a_loss_may_be_called_once_per_chunk():
    x, loss = spikes(17, 4, 6), loss_of(spikes(17, 4, 6), 3)
    net = amplify(CHAINS["recurrent LIF"]().double(), x)
    exact, calls = by_sequence(net, x, loss, "d-rtrl", 5), []

    def chunk_loss(first, outputs):
        calls.append((first, tuple(outputs.shape)))
        return sum(loss(first + t, y) for t, y in enumerate(outputs))

    net.zero_grad()
    hb.learn.online(net).sequence(x, chunk_loss, chunk=5, by_chunk=True)
    check_exact(grads(net), exact)
    assert calls == [(0, (5, 4, 3)), (5, (5, 4, 3)), (10, (5, 4, 3)), (15, (2, 4, 3))]


def test_large_layers_in_float32_agree_with_small_steps():
    x = spikes(20, 32, 40, dtype=torch.float32)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(40, 160), hb.Recurrent(hb.LIFCell(surrogate=ATan()), 160), nn.Linear(160, 3), hb.LI(tau=4.0)
    )
    net = amplify(net, x)
    exact = by_sequence(net.double(), x.double(), loss_of(x.double(), 3), "d-rtrl", 20)
    net.float()
    for chunk in (1, 7, 20):  # with kernels for traces (1) and for products of bits
        result = by_sequence(net, x, loss_of(x, 3), "d-rtrl", chunk)
        cosine, norm = similarity({k: g.double() for k, g in result.items()}, exact)
        assert cosine >= 0.9999
        assert abs(norm - 1) < 1e-3


def test_two_losses_of_a_step_may_have_a_backward_each():
    x = spikes(12, 4, 6, dtype=torch.float32)
    torch.manual_seed(0)
    net = amplify(nn.Sequential(nn.Linear(6, 5), hb.LIF(surrogate=ATan()), nn.Linear(5, 3), hb.LI()), x)
    exact = by_steps(net, x, loss_of(x, 3), "d-rtrl")
    net.zero_grad()
    learner = hb.learn.online(net)
    for t, inputs in enumerate(x):
        loss = loss_of(x, 3)(t, learner.step(inputs))
        (loss / 4).backward(retain_graph=True)
        (loss * 3 / 4).backward()
    result = grads(net)
    for name, grad in exact.items():
        torch.testing.assert_close(result[name], grad, rtol=1e-4, atol=1e-5)


def test_outputs_equal_the_networks_outputs():
    torch.manual_seed(0)
    x = spikes(20, 4, 6, dtype=torch.float32)
    layers = nn.Linear(6, 5), hb.Recurrent(hb.LIFCell(), 5), nn.Linear(5, 3), hb.LI()
    net = amplify(nn.Sequential(*layers), x)
    learner = hb.learn.online(net)
    with torch.no_grad():
        outputs = torch.stack([learner.step(inputs) for inputs in x])
    torch.testing.assert_close(outputs, net(x))
    learner.reset()
    torch.testing.assert_close(learner.step(x[0]), outputs[0])


def presynaptic(x, decay):
    trace, traces = torch.zeros_like(x[0]), []
    for inputs in x:
        trace = decay * trace + inputs
        traces.append(trace)
    return torch.stack(traces)


def signals_and_states(net, x, loss, names):
    """The loss gradients of the first layer's spikes, and its states `names`; for a linear readout."""
    with torch.no_grad():
        states = hb.record(net[1].cell, net[0](x))
    emitted = states["s"].clone().requires_grad_()
    sum(loss(t, y) for t, y in enumerate(net[2](emitted))).backward()
    return emitted.grad, [states[name] for name in names]


def test_e_prop_equals_the_papers_formula_for_lif():
    """Bellec et al. 2020, Methods: the product of psi and the input filtered by the leak."""
    cell = hb.LIFCell(tau=4.0, surrogate=ATan(), detach_reset=True, reset="subtract")
    x = spikes(25, 4, 6)
    net = amplify(network(hb.OverTime(cell), "linear"), x)
    result = by_steps(net, x, loss_of(x, 3), "e-prop")["0.weight"]
    signal, (v,) = signals_and_states(net, x, loss_of(x, 3), "v")
    psi = ATan().derivative(v - 1)
    torch.testing.assert_close(result, torch.einsum("tbj,tbj,tbi->ji", signal, psi, presynaptic(x, 0.75)))


def test_e_prop_equals_the_papers_formula_for_alif():
    """Bellec et al. 2020, Methods, for a potential that is set to 0 after a spike.

    With x the input, s the spikes, psi the surrogate's derivative at v_t - 1 - beta a_t:

        eps_v_t = alpha (1 - s_(t-1)) eps_v_(t-1) + x_t
        eps_a_t = rho eps_a_(t-1) + e_(t-1)
        e_t = psi_t (eps_v_t - beta eps_a_t)
    """
    alpha, rho, beta = 1 - 1 / 4, 1 - 1 / 20, 0.3
    cell = hb.ALIFCell(tau=4.0, tau_adaptation=20.0, strength=beta, surrogate=ATan(), detach_reset=True)
    x = spikes(25, 4, 6)
    net = amplify(network(hb.OverTime(cell), "linear"), x)
    result = by_steps(net, x, loss_of(x, 3), "e-prop")["0.weight"]
    signal, (v, a, s) = signals_and_states(net, x, loss_of(x, 3), ("v", "a", "s"))
    psi = ATan().derivative(v - (1 + beta * a))
    epsilon_v, epsilon_a, eligibility = torch.zeros(3, 4, 5, 6, dtype=DOUBLE)
    expected, previous_spikes = torch.zeros(5, 6, dtype=DOUBLE), torch.zeros(4, 5, dtype=DOUBLE)
    for t in range(len(x)):
        epsilon_v = (alpha * (1 - previous_spikes))[..., None] * epsilon_v + x[t][:, None]
        epsilon_a = rho * epsilon_a + eligibility
        eligibility = psi[t][..., None] * (epsilon_v - beta * epsilon_a)
        expected += torch.einsum("bj,bji->ji", signal[t], eligibility)
        previous_spikes = s[t]
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("reset", [0.0, "subtract"])
def test_ottt_is_the_product_of_a_signal_and_an_input_trace(reset):
    x = spikes(25, 4, 6)
    net = amplify(network(hb.LIF(tau=4.0, surrogate=ATan(), reset=reset), "linear"), x)
    result = by_steps(net, x, loss_of(x, 3), "ottt")["0.weight"]
    signal, (v,) = signals_and_states(net, x, loss_of(x, 3), "v")
    expected = torch.einsum("tbj,tbi->ji", signal * ATan().derivative(v - 1), presynaptic(x, 0.75))
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("rule", RULES)
def test_earlier_steps_are_not_stored(rule):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), hb.Recurrent(hb.LIFCell(), 5), nn.Linear(5, 3), hb.LI(tau=4.0))
    learner, optimizer = hb.learn.online(net, rule), torch.optim.SGD(net.parameters(), 0.01)

    def live_numbers():
        gc.collect()
        return sum(x.numel() for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter))

    counts = []
    for _ in range(4):
        for inputs in spikes(10, 4, 6, dtype=torch.float32):
            learner.step(inputs).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        counts.append(live_numbers())
    assert counts[3] <= counts[2]  # less if tensors of other tests were released meanwhile


def test_neurons_with_equal_leaks_share_one_trace_per_input():
    torch.manual_seed(0)
    layer = hb.LIF(surrogate=ATan(), reset="subtract", detach_reset=True)
    net = nn.Sequential(nn.Linear(6, 5), layer, nn.Linear(5, 3)).double()
    learner = hb.learn.online(net)
    x = spikes(3, 4, 6)
    for inputs in x:
        learner.step(inputs)
    assert learner.trace_numbers == {"1": 4 * 7}
    net[1].cell.detach_reset = False
    learner.step(x[0])
    with pytest.raises(ValueError, match=r"layer '1' has the traces of a cell .* call reset\(\)"):
        learner.step(x[1])
    learner.reset()
    for inputs in x:
        learner.step(inputs)
    assert learner.trace_numbers == {"1": 4 * 5 * 7}


def test_a_hyperparameter_may_change():
    x = spikes(10, 4, 6)
    net = amplify(network(hb.LIF(surrogate=ATan()), "linear"), x)
    learner = hb.learn.online(net)
    learner.sequence(x, loss_of(x, 3))
    net[1].cell.tau = 7.0
    exact = bptt(net, x, loss_of(x, 3))
    net.zero_grad()
    learner.sequence(x, loss_of(x, 3))
    check_exact(grads(net), exact)


@pytest.mark.parametrize("rule", RULES)
def test_the_reference_loop_has_the_same_gradients(rule, monkeypatch):
    x = spikes(12, 4, 6)
    net = amplify(network(hb.Recurrent(DelayedOutput(), 5), "leaky"), x)
    exact = by_sequence(net, x, loss_of(x, 3), rule, 5)
    by_reference = functools.partial(hb.learn.rule_cells.unroll_layer, backend="reference")
    monkeypatch.setattr(hb.learn.rule_cells, "unroll_layer", by_reference)
    check_exact(by_sequence(net, x, loss_of(x, 3), rule, 5), exact)


class HardThreshold(hb.Cell):
    """A spike without a derivative."""

    def forward(self, input_, v_previous, s_previous):
        v = 0.8 * v_previous * (1 - s_previous) + input_
        return v, (v > 0.5).to(v.dtype)


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_of_spikes_without_derivative_learns_nothing(rule):
    x = spikes(10, 4, 6)
    net = amplify(network(hb.OverTime(HardThreshold()), "leaky"), x)
    exact = bptt(net, x, loss_of(x, 3))
    result = by_sequence(net, x, loss_of(x, 3), rule, 4)
    check_exact(result, {name: grad for name, grad in exact.items() if name[0] == "2"}, names=False)
    assert not exact["0.weight"].any()
    assert not result["0.weight"].any()


class Counting(hb.Cell):
    emits_spikes = True

    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, input_, s_previous):
        self.steps += 1
        return (torch.relu(input_) + 0 * s_previous,)


def sequential(*layers):
    return nn.Sequential(nn.Linear(6, 5), hb.LIF(), *layers)


def convolution(**options):
    return hb.EachStep(nn.Conv2d(2, 4, 3, **options))


NORM = hb.EachStep(nn.BatchNorm2d(4, affine=False))
REFUSED = [
    ("net", TypeError, "net must be a torch.nn.Module, got str"),
    (nn.Sequential(nn.Linear(6, 5)), ValueError, "a layer of neurons"),
    (sequential(hb.Delay(2, 3), nn.Linear(5, 3), hb.LIF()), TypeError, "'2': no rule knows Delay"),
    (sequential(nn.GRU(5, 3)), TypeError, "'2': no rule knows GRU; use hibana.Recurrent"),
    (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), hb.LIF()), ValueError, "'0', Linear, has parameters"),
    (sequential(nn.Linear(5, 3), hb.LI(tau=torch.rand(3) + 2)), ValueError, "'3', LICell: a layer"),
    (sequential(nn.Linear(5, 3), hb.LI(), nn.Linear(3, 3), hb.LI()), ValueError, "'3' and '5'"),
    (nn.Sequential(convolution(groups=2), hb.LIF()), ValueError, "'0': a convolution must have groups=1"),
    (nn.Sequential(convolution(), NORM, hb.LIF()), ValueError, "'1': BatchNorm2d in training"),
    (
        nn.Sequential(hb.Recurrent(hb.LIFCell(), 4, nn.Sequential(nn.Linear(4, 4)))),
        TypeError,
        "'0': recurrent must be an nn.Linear",
    ),
]


@pytest.mark.parametrize(("net", "error", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_unsupported_networks_are_refused(net, error, message):
    with pytest.raises(error, match=message):
        hb.learn.online(net)


def test_explain_states_what_each_rule_leaves_out():
    net = nn.Sequential(
        nn.Linear(6, 5), hb.Recurrent(hb.ALIFCell(), 5),
        nn.Linear(5, 5), hb.LIF(tau=torch.rand(5) + 2),
        nn.Linear(5, 3), hb.LI(),
    )  # fmt: skip
    text = hb.learn.explain(net, "d-rtrl")
    assert "layer '1', ALIFCell: 3 numbers for each sample and synapse, 1 of them" in text
    assert "left out: how its neurons act on one another over time" in text
    assert "left out: the memory of the neurons of '3' at earlier steps" in text
    assert text.count("nothing is left out") == 2  # of the last layer of spikes and of the readout
    text = hb.learn.explain(net[:2], "ottt")
    assert "left out: the reset and other effects of its spikes" in text
    assert "through recurrent synapses over time" in text
    text = hb.learn.explain(net, "pp-prop")
    assert "left out: the correlation between single inputs and states of a neuron" in text
    assert "layer '5', LICell: 1 number for each sample and input" in text
    with pytest.raises(ValueError, match="layer '3', LIFCell"):
        hb.learn.explain(net, "ottt")


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="rule must be one of d-rtrl, e-prop, ottt, pp-prop; got 'rtrl'"):
        hb.learn.online(sequential(), "rtrl")
    with pytest.raises(TypeError, match=r"rule must be a hibana.learn.Rule or its name, got 3"):
        hb.learn.online(sequential(), 3)


def test_unsupported_cells_are_named():
    learner = hb.learn.online(nn.Sequential(nn.Linear(6, 5), hb.OverTime(Counting())), "ottt")
    with pytest.raises(ValueError, match="layer '1', Counting, can't be learned online"):
        learner.step(torch.rand(4, 6))


class SharedParameter(hb.Cell):
    """A learned parameter whose elements are not used neuron by neuron."""

    emits_spikes = True

    def __init__(self, numbers, read):
        super().__init__()
        self.read, self.leak = read, nn.Parameter(torch.linspace(0.5, 0.9, numbers))

    def forward(self, input_, v_previous, s_previous):
        v = self.read(self.leak) * v_previous + input_
        return v, ATan()(v - 1)


@pytest.mark.parametrize(
    ("numbers", "read", "message"),
    [
        (5, torch.mean, "is not used neuron by neuron"),
        (5, lambda leak: leak[0], "is not used neuron by neuron"),
        (5, lambda leak: torch.softmax(leak, -1), "can't be learned online"),
        (2, lambda leak: leak[0], "does not broadcast to its neurons"),
    ],
)
def test_a_learned_parameter_that_neurons_share_is_refused(numbers, read, message):
    learner = hb.learn.online(nn.Sequential(nn.Linear(6, 5), hb.OverTime(SharedParameter(numbers, read))))
    with pytest.raises(ValueError, match=f"layer '1', SharedParameter, .*{message}"):
        learner.step(torch.rand(4, 6))


@pytest.mark.parametrize("cell", [hb.LIFCell(tau=torch.rand(5) + 2), hb.QIFCell()], ids=["tau", "QIF"])
def test_ottt_needs_one_leak(cell):
    learner = hb.learn.online(nn.Sequential(nn.Linear(6, 5), hb.OverTime(cell), nn.Linear(5, 3)), "ottt")
    with pytest.raises(ValueError, match=r"layer '1', .*: rule 'ottt' keeps one trace for each input"):
        learner.step(torch.rand(4, 6))


def test_wrong_arguments_are_named():
    learner = hb.learn.online(sequential(nn.Linear(5, 3)))
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch.int64"):
        learner.step(torch.zeros(4, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must be \[T, batch, ...\]"):
        learner.sequence(torch.rand(4, 6), lambda t, y: y.sum())
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1, got 0"):
        learner.sequence(torch.rand(3, 4, 6), lambda t, y: y.sum(), chunk=0)
    with pytest.raises(
        TypeError, match=r"loss must give a tensor of one number, or None, got shape \(4, 3\)"
    ):
        learner.sequence(torch.rand(3, 4, 6), lambda t, y: y)
    with pytest.raises(ValueError, match="None at all of them"):
        learner.sequence(torch.rand(3, 4, 6), lambda t, y: None)
    with pytest.raises(TypeError, match="layer '1' must be given float32 or float64"):
        hb.learn.online(sequential().bfloat16()).step(torch.rand(4, 6).bfloat16())
    learner.step(torch.rand(4, 6))
    with pytest.raises(ValueError, match="call reset"):
        learner.step(torch.rand(3, 6))
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1"):
        hb.learn.PPProp(decay=1)


def test_a_backward_pass_after_the_next_step_is_refused():
    learner = hb.learn.online(sequential(nn.Linear(5, 3)))
    early = learner.step(torch.rand(4, 6))
    learner.step(torch.rand(4, 6))
    with pytest.raises(RuntimeError, match="layer '1' is past the step that this backward is of"):
        early.sum().backward()


def test_an_optimized_network_learns_as_before():
    gradients = []
    for optimized in (False, True):
        torch.manual_seed(0)
        convolution = nn.Conv2d(1, 4, 3)
        net = nn.Sequential(
            convolution if optimized else hb.EachStep(convolution),
            hb.IF(threshold=0.3),
            nn.Flatten() if optimized else nn.Flatten(2),
            nn.Linear(4 * 36, 2),
            hb.LI(),
        )
        if optimized:
            hb.optimize(net, verbose=False)
        learner = hb.learn.online(net)
        for x in torch.rand(4, 3, 1, 8, 8):
            learner.step(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for grad, expected in zip(*gradients, strict=True):
        assert grad.abs().sum() > 0
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


class Delayed(hb.Cell):
    """Emits from its state before the step, so a step's output does not depend on its input."""

    def forward(self, x, u_previous, s_previous):
        return 0.9 * u_previous + x, hb.spike(u_previous - 0.5, 1 / (1 + (u_previous - 0.5) ** 2))


@pytest.mark.parametrize("rule", ["d-rtrl", "e-prop", "pp-prop"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_later_layer_may_emit_before_it_uses_its_input(rule, backend):
    torch.manual_seed(0)
    x, gradients = torch.rand(12, 2, 3), []
    layers = nn.Linear(3, 8), hb.LIF(threshold=0.2), nn.Linear(8, 4), hb.OverTime(Delayed(), backend=backend)
    net = nn.Sequential(*layers)
    for weights in net.parameters():
        nn.init.uniform_(weights, 0.1, 0.5)
    learner = hb.learn.online(net, rule)
    for method in ("step", "steps", "sequence"):
        net.zero_grad()
        learner.reset()
        if method == "sequence":
            learner.sequence(x, lambda _, y: y.square().sum(), chunk=5)
        for part in x.split(1 if method == "step" else 5) if method != "sequence" else ():
            learner.steps(part).square().sum().backward()
        gradients.append(layers[2].weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


LAYERS = {
    "recurrent": lambda: [nn.Linear(3, 8), hb.Recurrent(hb.LIFCell(threshold=0.2), 8)],
    "learned": lambda: [nn.Linear(3, 8), hb.PLIF(threshold=0.2)],
    "subtracted": lambda: [nn.Linear(3, 8), hb.LIF(threshold=0.2, reset="subtract", detach_reset=False)],
    "equal": lambda: [nn.Linear(3, 8), hb.IF(0.2, detach_reset=True, reset="subtract")],
}


def save_and_load(learner, tmp_path):
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    new = hb.learn.online(copy.deepcopy(learner.net), learner.rule)
    new.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    return new


@pytest.mark.cover(1)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", ["state", "pickle", "deepcopy"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_a_saved_and_loaded_learner_continues_as_before(rule, name, method, chunk, tmp_path):
    torch.manual_seed(0)
    learner = hb.learn.online(nn.Sequential(*LAYERS[name](), nn.Linear(8, 2), hb.LI(tau=5.0)), rule)
    x = torch.rand(16, 2, 3)

    def learn(learner, steps):
        for part in steps.split(chunk):
            learner.steps(part).square().sum().backward()

    learn(learner, x[:8])
    learner.net.zero_grad()
    if method == "state":
        other = save_and_load(learner, tmp_path)
    else:
        other = pickle.loads(pickle.dumps(learner)) if method == "pickle" else copy.deepcopy(learner)
    assert other.net is not learner.net
    for continued in (learner, other):
        learn(continued, x[8:])
    for parameter, copied in zip(learner.net.parameters(), other.net.parameters(), strict=True):
        assert parameter.grad.abs().max() > 0
        assert torch.equal(parameter.grad, copied.grad)
    fresh = hb.learn.online(copy.deepcopy(learner.net), rule)
    fresh.net.zero_grad()
    learn(fresh, x[8:])
    assert not torch.equal(fresh.net[0].weight.grad, learner.net[0].weight.grad)


def test_the_state_of_another_learner_is_refused():
    learner = hb.learn.online(nn.Sequential(nn.Linear(3, 8), hb.LIF()))
    with pytest.raises(ValueError, match="by rule 'd-rtrl', got 'e-prop'"):
        learner.load_state_dict(hb.learn.online(learner.net, "e-prop").state_dict())
    other = hb.learn.online(nn.Sequential(nn.Linear(3, 8), hb.LIF(), nn.Linear(8, 2), hb.LI()))
    with pytest.raises(ValueError, match="state must be that of layers"):
        learner.load_state_dict(other.state_dict())
