"""Learning online: gradients against backpropagation through time, each rule against its formula by hand."""

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
    """Two states that act on each other, no reset, a parameter of its own: no cell of hibana's."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.tensor(0.4, dtype=torch.get_default_dtype()))

    def forward(self, input_, w_previous, v_previous, s_previous):
        w = 0.9 * w_previous + self.turn * v_previous
        v = 0.8 * v_previous - self.turn * w_previous + input_
        return w, v, ATan()(v - 1)


def grads(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def spikes(*shape, seed=0, dtype=DOUBLE):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3).to(dtype)


def loss_of(x, outputs, signals="each"):
    """The loss of a step: a linear and a quadratic term, at each step or at the last four alone."""
    weight = torch.randn(outputs, dtype=x.dtype, generator=torch.Generator().manual_seed(1))

    def loss(t, y):
        if signals == "end" and t < len(x) - 4:
            return None
        return (y * weight * (t % 3 - 0.7)).sum() + 0.1 * y.square().sum()

    return loss


def through_time(net, x, loss):
    net.zero_grad()
    losses = [loss(t, y) for t, y in enumerate(net(x))]
    sum(one for one in losses if one is not None).backward()
    return grads(net)


def by_steps(net, x, loss, rule):
    net.zero_grad()
    learner = hb.learn.online(net, rule)
    for t, input_ in enumerate(x):
        one = loss(t, learner.step(input_))
        if one is not None:
            one.backward()
    return grads(net)


def by_sequence(net, x, loss, rule, chunk):
    net.zero_grad()
    hb.learn.online(net, rule).sequence(x, loss, chunk=chunk)
    return grads(net)


def likeness(found, exact):
    """Cosine and ratio of the norms."""
    a, b = (torch.cat([one[name].flatten() for name in exact]) for one in (found, exact))
    return float(a @ b / (a.norm() * b.norm())), float(a.norm() / b.norm())


def check_exact(found, exact, part=1e-9, names=True):
    assert not names or found.keys() == exact.keys()
    for name, one in exact.items():
        assert one.abs().max() > 0, name
        assert (found[name] - one).abs().max() <= part * one.abs().max(), name


def strong(net, x):
    """`net`, the weights of its first layer made so large that its neurons spike."""
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
    behind = [] if readout == "linear" else [hb.LI(tau=4.0)]
    return nn.Sequential(nn.Linear(inputs, neurons), layer, nn.Linear(neurons, 3), *behind).double()


@pytest.mark.cover(1)
@pytest.mark.parametrize("signals", ["each", "end"])
@pytest.mark.parametrize("readout", ["linear", "leaky"])
@pytest.mark.parametrize("kind", [*SPIKING, Resonate], ids=lambda kind: kind.__name__)
def test_one_layer_has_the_gradient_of_backpropagation_through_time(kind, readout, signals):
    cell = kind() if kind is Resonate else kind(surrogate=ATan())
    x = spikes(15, 3, 6)
    net = strong(network(hb.OverTime(cell), readout), x)
    loss = loss_of(x, 3, signals)
    exact = through_time(net, x, loss)
    check_exact(by_steps(net, x, loss, "d-rtrl"), exact)
    check_exact(by_sequence(net, x, loss, "d-rtrl", 7), exact)


class AfterReset(hb.Cell):
    """Its potential is that after the reset, and no function of its spike, nor the spike of it."""

    def forward(self, input_, v_previous, s_previous):
        v = 0.8 * v_previous + input_
        s = ATan()(v - 1)
        return v - s, s


class Repeating(hb.Cell):
    """It emits a state, and keeps one that has no derivative."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, input_, s_previous, v_previous, y_previous):
        v = torch.sigmoid(self.gain * v_previous + input_)
        return y_previous.detach(), v, v


SPECIFIED = {
    "Repeating": Repeating,
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
@pytest.mark.parametrize("cell", SPECIFIED)
def test_rules_are_their_specification(cell, scale, readout, rule):
    """Of a layer with recurrent synapses, whose gradient has this scale, or without."""
    torch.manual_seed(0)
    cell = SPECIFIED[cell]()
    layer = hb.OverTime(cell) if scale is None else hb.Recurrent(cell, 5, gradient_scale=scale)
    behind = [] if readout == "linear" else [hb.LI(tau=4.0)]
    x, bias = spikes(20, 4, 6), {"bias": False}
    net = nn.Sequential(nn.Linear(6, 5, **bias), layer, nn.Linear(5, 3, **bias), *behind)
    net = strong(net.double(), x)
    loss = loss_of(x, 3)
    if type(cell) is Resonate and readout == "linear" and isinstance(rule, hb.learn.PPProp):
        rule = hb.learn.EProp()  # where the trace of each input serves all neurons, PP-Prop keeps it
    exact = specification.gradients(net, x, loss, rule)
    check_exact(by_steps(net, x, loss, rule), exact, names=False)
    for chunk in (7, 20):
        check_exact(by_sequence(net, x, loss, rule, chunk), exact, names=False)


def test_ottt_has_the_whole_gradient_of_what_a_cell_learns():
    x = spikes(25, 4, 6)
    cell = hb.LIFCell(tau=3.0, surrogate=ATan(), learn=("tau", "threshold"))
    net = strong(network(hb.OverTime(cell), "linear"), x)
    loss = loss_of(x, 3)
    exact, found = (
        {name: one for name, one in all_.items() if "cell" in name}
        for all_ in (through_time(net, x, loss), by_sequence(net, x, loss, "ottt", 7))
    )
    assert len(exact) == 2
    check_exact(found, exact)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [hb.IFCell, hb.LIFCell, hb.CubaLIFCell], ids=lambda kind: kind.__name__)
def test_where_all_neurons_have_the_same_trace_every_rule_has_the_whole_gradient(kind, rule):
    layer = hb.OverTime(kind(surrogate=ATan(), reset="subtract", detach_reset=True))
    x = spikes(20, 4, 6)
    net = strong(network(layer, "linear"), x)
    exact = through_time(net, x, loss_of(x, 3))
    check_exact(by_steps(net, x, loss_of(x, 3), rule), exact)
    check_exact(by_sequence(net, x, loss_of(x, 3), rule, 7), exact)


@pytest.mark.parametrize(("pool", "changes"), [(nn.AvgPool2d(2), False), (nn.MaxPool2d(2), True)], ids=str)
def test_a_readout_remembers_what_linear_maps_made_of_spikes(pool, changes):
    torch.manual_seed(0)
    x = spikes(15, 3, 1, 6, 6)
    convolution = hb.EachStep(nn.Conv2d(1, 4, 3))
    nn.init.uniform_(convolution.module.weight, -0.2, 0.4)
    layers = convolution, hb.LIF(surrogate=ATan()), hb.EachStep(pool), nn.Flatten(2), nn.Linear(16, 3)
    net = strong(nn.Sequential(*layers, hb.LI(tau=4.0)).double(), x)
    exact = through_time(net, x, loss_of(x, 3))
    found = by_steps(net, x, loss_of(x, 3), "d-rtrl")
    said = "left out: the derivative of '2' at the earlier steps that '5' remembers"
    assert (said in hb.learn.explain(net)) == changes
    if changes:
        assert likeness(found, exact)[0] < 0.9999
    else:
        check_exact(found, exact)


def learned_readout():
    net = network(hb.LIF(), "leaky")
    net[3] = hb.LI(tau=4.0, learn="tau")
    return net, spikes(20, 4, 6)


def frozen_layer():
    net = network(hb.LIF(surrogate=ATan()), "linear")
    net[0].requires_grad_(False)
    return net, spikes(10, 4, 6)


def convolved(layer, *shape):
    """A convolution, neurons, and a linear readout, for images of this shape."""
    torch.manual_seed(0)
    convolution = hb.EachStep(layer)
    x = spikes(12, 2, *shape)
    outputs = convolution(x.float()).flatten(2).shape[2]
    net = nn.Sequential(convolution, hb.LIF(surrogate=ATan()), nn.Flatten(2), nn.Linear(outputs, 3))
    return net, x


EXACT = {
    "a learned readout": learned_readout,
    "a frozen layer": frozen_layer,
    "a convolution": lambda: convolved(nn.Conv2d(2, 3, 3), 2, 7, 6),
    "a stride": lambda: convolved(nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), 2, 7, 6),
    "a dilation": lambda: convolved(nn.Conv2d(2, 3, 3, dilation=2), 2, 7, 6),
    "one dimension": lambda: convolved(hb.events.Conv1d(2, 3, 4, padding=1), 2, 9),
}


@pytest.mark.parametrize("name", EXACT)
def test_gradients_are_those_of_backpropagation_through_time(name):
    net, x = EXACT[name]()
    net = strong(net.double(), x)
    exact = through_time(net, x, loss_of(x, 3))
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
    "CubaLIF, all alike": lambda: chain(
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
def test_chunks_are_their_steps(name, rule):
    x, loss = spikes(17, 4, 6), loss_of(spikes(17, 4, 6), 3)
    net = strong(CHAINS[name]().double(), x)
    exact = by_steps(net, x, loss, rule)
    for chunk in (3, 30):
        check_exact(by_sequence(net, x, loss, rule, chunk), exact)
    net.zero_grad()
    outputs = hb.learn.online(net, rule)(x)  # all of the sequence, for any loss
    torch.testing.assert_close(outputs, net(x))
    sum(loss(t, y) for t, y in enumerate(outputs)).backward()
    check_exact(grads(net), exact)


def test_a_loss_may_be_asked_once_a_chunk():
    x, loss = spikes(17, 4, 6), loss_of(spikes(17, 4, 6), 3)
    net = strong(CHAINS["recurrent LIF"]().double(), x)
    exact, asked = by_sequence(net, x, loss, "d-rtrl", 5), []

    def of_chunk(first, outputs):
        asked.append((first, tuple(outputs.shape)))
        return sum(loss(first + t, y) for t, y in enumerate(outputs))

    net.zero_grad()
    hb.learn.online(net).sequence(x, of_chunk, chunk=5, by_chunk=True)
    check_exact(grads(net), exact)
    assert asked == [(0, (5, 4, 3)), (5, (5, 4, 3)), (10, (5, 4, 3)), (15, (2, 4, 3))]


def test_large_layers_in_float32_agree_with_small_steps():
    x = spikes(20, 32, 40, dtype=torch.float32)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(40, 160), hb.Recurrent(hb.LIFCell(surrogate=ATan()), 160), nn.Linear(160, 3), hb.LI(tau=4.0)
    )
    net = strong(net, x)
    exact = by_sequence(net.double(), x.double(), loss_of(x.double(), 3), "d-rtrl", 20)
    net.float()
    for chunk in (1, 7, 20):  # of which one goes through the traces by their kernel, and one products by bits
        found = by_sequence(net, x, loss_of(x, 3), "d-rtrl", chunk)
        cosine, norm = likeness({k: g.double() for k, g in found.items()}, exact)
        assert cosine >= 0.9999
        assert abs(norm - 1) < 1e-3


def test_two_losses_of_a_step_may_have_a_backward_each():
    x = spikes(12, 4, 6, dtype=torch.float32)
    torch.manual_seed(0)
    net = strong(nn.Sequential(nn.Linear(6, 5), hb.LIF(surrogate=ATan()), nn.Linear(5, 3), hb.LI()), x)
    exact = by_steps(net, x, loss_of(x, 3), "d-rtrl")
    net.zero_grad()
    learner = hb.learn.online(net)
    for t, one in enumerate(x):
        loss = loss_of(x, 3)(t, learner.step(one))
        (loss / 4).backward(retain_graph=True)
        (loss * 3 / 4).backward()
    found = grads(net)
    for name, one in exact.items():
        torch.testing.assert_close(found[name], one, rtol=1e-4, atol=1e-5)


def test_outputs_and_states_are_those_of_the_network():
    torch.manual_seed(0)
    x = spikes(20, 4, 6, dtype=torch.float32)
    net = strong(nn.Sequential(nn.Linear(6, 5), hb.Recurrent(hb.LIFCell(), 5), nn.Linear(5, 3), hb.LI()), x)
    learner = hb.learn.online(net)
    with torch.no_grad():
        wanted = torch.stack([learner.step(one) for one in x])
    torch.testing.assert_close(wanted, net(x))
    learner.reset()
    torch.testing.assert_close(learner.step(x[0]), wanted[0])


def presynaptic(x, decay):
    trace, found = torch.zeros_like(x[0]), []
    for one in x:
        trace = decay * trace + one
        found.append(trace)
    return torch.stack(found)


def signals_and_states(net, x, loss, names):
    """For each step, the loss's gradient of the spikes and the states of the first layer, readout linear."""
    with torch.no_grad():
        states = hb.record(net[1].cell, net[0](x))
    emitted = states["s"].clone().requires_grad_()
    sum(loss(t, y) for t, y in enumerate(net[2](emitted))).backward()
    return emitted.grad, [states[name] for name in names]


@pytest.mark.parametrize("reset", [0.0, "subtract"])
def test_ottt_is_a_trace_of_the_input(reset):
    x = spikes(25, 4, 6)
    net = strong(network(hb.LIF(tau=4.0, surrogate=ATan(), reset=reset), "linear"), x)
    found = by_steps(net, x, loss_of(x, 3), "ottt")["0.weight"]
    signal, (v,) = signals_and_states(net, x, loss_of(x, 3), "v")
    by_hand = torch.einsum("tbj,tbi->ji", signal * ATan().derivative(v - 1), presynaptic(x, 0.75))
    torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_of_earlier_steps_is_kept(rule):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), hb.Recurrent(hb.LIFCell(), 5), nn.Linear(5, 3), hb.LI(tau=4.0))
    learner, optimizer = hb.learn.online(net, rule), torch.optim.SGD(net.parameters(), 0.01)

    def live():
        gc.collect()
        return sum(one.numel() for one in gc.get_objects() if type(one) in (torch.Tensor, nn.Parameter))

    counts = []
    for _ in range(4):
        for one in spikes(10, 4, 6, dtype=torch.float32):
            learner.step(one).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        counts.append(live())
    assert counts[3] <= counts[2]  # less where tensors of other tests were released meanwhile


def test_where_all_neurons_leak_alike_an_input_has_one_trace():
    torch.manual_seed(0)
    layer = hb.LIF(surrogate=ATan(), reset="subtract", detach_reset=True)
    net = nn.Sequential(nn.Linear(6, 5), layer, nn.Linear(5, 3)).double()
    learner = hb.learn.online(net)
    x = spikes(3, 4, 6)
    for one in x:
        learner.step(one)
    assert learner.trace_numbers == {"1": 4 * 7}
    net[1].cell.detach_reset = False
    learner.step(x[0])
    with pytest.raises(ValueError, match=r"layer '1' has the traces of a cell .* call reset\(\)"):
        learner.step(x[1])
    learner.reset()
    for one in x:
        learner.step(one)
    assert learner.trace_numbers == {"1": 4 * 5 * 7}


def test_a_hyper_parameter_may_change():
    x = spikes(10, 4, 6)
    net = strong(network(hb.LIF(surrogate=ATan()), "linear"), x)
    learner = hb.learn.online(net)
    learner.sequence(x, loss_of(x, 3))
    net[1].cell.tau = 7.0
    exact = through_time(net, x, loss_of(x, 3))
    net.zero_grad()
    learner.sequence(x, loss_of(x, 3))
    check_exact(grads(net), exact)


@pytest.mark.parametrize("rule", RULES)
def test_without_kernels_the_gradients_are_the_same(rule, monkeypatch):
    x = spikes(12, 4, 6)
    net = strong(network(hb.Recurrent(Repeating(), 5), "leaky"), x)
    exact = by_sequence(net, x, loss_of(x, 3), rule, 5)
    by_reference = functools.partial(hb.learn.rule_cells.unroll_layer, backend="reference")
    monkeypatch.setattr(hb.learn.rule_cells, "unroll_layer", by_reference)
    check_exact(by_sequence(net, x, loss_of(x, 3), rule, 5), exact)


class Hard(hb.Cell):
    """A spike without a derivative."""

    def forward(self, input_, v_previous, s_previous):
        v = 0.8 * v_previous * (1 - s_previous) + input_
        return v, (v > 0.5).to(v.dtype)


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_whose_spikes_have_no_derivative_learns_nothing(rule):
    x = spikes(10, 4, 6)
    net = strong(network(hb.OverTime(Hard()), "leaky"), x)
    exact = through_time(net, x, loss_of(x, 3))
    found = by_sequence(net, x, loss_of(x, 3), rule, 4)
    check_exact(found, {name: one for name, one in exact.items() if name[0] == "2"}, names=False)
    assert not exact["0.weight"].any()
    assert not found["0.weight"].any()


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


@pytest.mark.parametrize(("net", "kind", "said"), REFUSED, ids=[one[2] for one in REFUSED])
def test_a_network_that_no_rule_knows_is_refused(net, kind, said):
    with pytest.raises(kind, match=said):
        hb.learn.online(net)


def test_a_rule_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="rule must be one of d-rtrl, e-prop, ottt, pp-prop; got 'rtrl'"):
        hb.learn.online(sequential(), "rtrl")
    with pytest.raises(TypeError, match=r"rule must be a hibana.learn.Rule or its name, got 3"):
        hb.learn.online(sequential(), 3)


def test_a_cell_that_no_rule_can_follow_is_named():
    learner = hb.learn.online(nn.Sequential(nn.Linear(6, 5), hb.OverTime(Counting())), "ottt")
    with pytest.raises(ValueError, match="layer '1', Counting, can't be learned online"):
        learner.step(torch.rand(4, 6))


class Shared(hb.Cell):
    """A learned parameter of which each neuron uses more than its own number."""

    emits_spikes = True

    def __init__(self, numbers, read):
        super().__init__()
        self.read, self.leak = read, nn.Parameter(torch.linspace(0.5, 0.9, numbers))

    def forward(self, input_, v_previous, s_previous):
        v = self.read(self.leak) * v_previous + input_
        return v, ATan()(v - 1)


@pytest.mark.parametrize(
    ("numbers", "read", "said"),
    [
        (5, torch.mean, "is not used neuron by neuron"),
        (5, lambda leak: leak[0], "is not used neuron by neuron"),
        (5, lambda leak: torch.softmax(leak, -1), "can't be learned online"),
        (2, lambda leak: leak[0], "does not broadcast to its neurons"),
    ],
)
def test_a_learned_parameter_that_neurons_share_is_refused(numbers, read, said):
    learner = hb.learn.online(nn.Sequential(nn.Linear(6, 5), hb.OverTime(Shared(numbers, read))))
    with pytest.raises(ValueError, match=f"layer '1', Shared, .*{said}"):
        learner.step(torch.rand(4, 6))


@pytest.mark.parametrize("cell", [hb.LIFCell(tau=torch.rand(5) + 2), hb.QIFCell()], ids=["tau", "QIF"])
def test_ottt_needs_one_leak(cell):
    learner = hb.learn.online(nn.Sequential(nn.Linear(6, 5), hb.OverTime(cell), nn.Linear(5, 3)), "ottt")
    with pytest.raises(ValueError, match=r"layer '1', .*: rule 'ottt' keeps one trace for each input"):
        learner.step(torch.rand(4, 6))


def test_a_wrong_call_is_named():
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


def test_a_backward_that_comes_too_late_is_named():
    learner = hb.learn.online(sequential(nn.Linear(5, 3)))
    early = learner.step(torch.rand(4, 6))
    learner.step(torch.rand(4, 6))
    with pytest.raises(RuntimeError, match="layer '1' is past the step that this backward is of"):
        early.sum().backward()


def test_a_network_that_was_optimised_learns_as_before():
    found = []
    for optimised in (False, True):
        torch.manual_seed(0)
        convolution = nn.Conv2d(1, 4, 3)
        net = nn.Sequential(
            convolution if optimised else hb.EachStep(convolution),
            hb.IF(threshold=0.3),
            nn.Flatten() if optimised else nn.Flatten(2),
            nn.Linear(4 * 36, 2),
            hb.LI(),
        )
        if optimised:
            hb.optimize(net, verbose=False)
        learner = hb.learn.online(net)
        for x in torch.rand(4, 3, 1, 8, 8):
            learner.step(x).square().sum().backward()
        found.append([parameter.grad for parameter in net.parameters()])
    for one, other in zip(*found, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Late(hb.Cell):
    """Emits from its state before the step, so a step's output does not depend on its input."""

    def forward(self, x, u_previous, s_previous):
        return 0.9 * u_previous + x, hb.spike(u_previous - 0.5, 1 / (1 + (u_previous - 0.5) ** 2))


@pytest.mark.parametrize("rule", ["d-rtrl", "e-prop", "pp-prop"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_later_layer_may_emit_before_it_uses_its_input(rule, backend):
    torch.manual_seed(0)
    x, found = torch.rand(12, 2, 3), []
    layers = nn.Linear(3, 8), hb.LIF(threshold=0.2), nn.Linear(8, 4), hb.OverTime(Late(), backend=backend)
    net = nn.Sequential(*layers)
    for weights in net.parameters():
        nn.init.uniform_(weights, 0.1, 0.5)
    learner = hb.learn.online(net, rule)
    for way in ("step", "steps", "sequence"):
        net.zero_grad()
        learner.reset()
        if way == "sequence":
            learner.sequence(x, lambda _, y: y.square().sum(), chunk=5)
        for part in x.split(1 if way == "step" else 5) if way != "sequence" else ():
            learner.steps(part).square().sum().backward()
        found.append(layers[2].weight.grad.clone())
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


SAVED = {
    "recurrent": lambda: [nn.Linear(3, 8), hb.Recurrent(hb.LIFCell(threshold=0.2), 8)],
    "learned": lambda: [nn.Linear(3, 8), hb.PLIF(threshold=0.2)],
    "subtracted": lambda: [nn.Linear(3, 8), hb.LIF(threshold=0.2, reset="subtract", detach_reset=False)],
    "alike": lambda: [nn.Linear(3, 8), hb.IF(0.2, detach_reset=True, reset="subtract")],
}


def saved_and_loaded(learner, tmp_path):
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    new = hb.learn.online(copy.deepcopy(learner.net), learner.rule)
    new.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    return new


@pytest.mark.cover(1)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("how", ["state", "pickle", "deepcopy"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_a_learner_that_is_saved_and_loaded_goes_on_as_before(rule, name, how, chunk, tmp_path):
    torch.manual_seed(0)
    learner = hb.learn.online(nn.Sequential(*SAVED[name](), nn.Linear(8, 2), hb.LI(tau=5.0)), rule)
    x = torch.rand(16, 2, 3)

    def learn(one, steps):
        for part in steps.split(chunk):
            one.steps(part).square().sum().backward()

    learn(learner, x[:8])
    learner.net.zero_grad()
    if how == "state":
        other = saved_and_loaded(learner, tmp_path)
    else:
        other = pickle.loads(pickle.dumps(learner)) if how == "pickle" else copy.deepcopy(learner)
    assert other.net is not learner.net
    for one in (learner, other):
        learn(one, x[8:])
    for here, there in zip(learner.net.parameters(), other.net.parameters(), strict=True):
        assert here.grad.abs().max() > 0
        assert torch.equal(here.grad, there.grad)
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
