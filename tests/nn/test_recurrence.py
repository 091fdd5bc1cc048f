"""The recurrent layer: its equation, its state over chunks, its gradient and its compilation."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import hibana as hb
from conformance.suite import CELLS as KINDS
from conformance.suite import drive, few
from hibana.cells.surrogate import ATan, Box, Step, Triangle
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.plan import gradients, has_gradient
from hibana.compiler.graph.synapses import with_masks
from hibana.compiler.graph.trace import trace

SPIKING = [kind for kind in KINDS if kind is not hb.LICell]
CELLS = [hb.IFCell(), hb.LIFCell(tau=3.0), hb.CubaLIFCell(), hb.ALIFCell(), hb.LICell()]


def detached(state):
    return {name: tuple(part.detach() for part in parts) for name, parts in state.items()}


def test_the_step_is_the_cells_on_input_and_fed_back_spikes():
    torch.manual_seed(0)
    layer, x = hb.Recurrent(hb.IFCell(), 4), torch.rand(10, 3, 4)
    v = s = torch.zeros(3, 4)
    for input_, emitted in zip(x, layer(x), strict=True):
        v, s = hb.IFCell()(input_ + s @ layer.recurrent.weight.T, v, s)
        assert torch.equal(emitted, s)
    assert s.sum() > 0


def test_without_feedback_it_is_the_layer_over_time():
    layer, x = hb.Recurrent(hb.IFCell(), 4), torch.rand(10, 3, 4)
    nn.init.zeros_(layer.recurrent.weight)
    assert torch.equal(layer(x), hb.IF()(x))


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)
def test_chunks_equal_the_full_sequence(cell):
    net = nn.Sequential(hb.Recurrent(cell, 4), hb.Recurrent(hb.LIFCell(), 4), hb.LI())
    x = torch.rand(12, 3, 4)
    full, final = hb.run(net, x)
    state, parts = None, []
    for chunk in x.split(5):
        outputs, state = hb.run(net, chunk, state)
        parts.append(outputs)
    assert torch.equal(torch.cat(parts), full)
    assert all(torch.equal(a, b) for k in final for a, b in zip(final[k], state[k], strict=True))


def test_the_gradient_stops_where_the_state_is_detached():
    layer = hb.Recurrent(hb.IFCell(surrogate=hb.surrogate.ATan()), 4)
    early, late = (torch.rand(3, 2, 4, requires_grad=True) for _ in range(2))
    _, state = hb.run(layer, early)
    outputs, _ = hb.run(layer, late, detached(state))
    outputs.sum().backward()
    assert early.grad is None
    assert late.grad.abs().sum() > 0
    outputs, _ = hb.run(layer, late, hb.run(layer, early)[1])
    outputs.sum().backward()
    assert early.grad.abs().sum() > 0


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_the_gradient_of_the_weights_is_autograds_through_the_written_loop(scale):
    torch.manual_seed(1)
    cell = hb.LIFCell(surrogate=hb.surrogate.ATan())
    layer = hb.Recurrent(cell, 4, gradient_scale=scale).double()
    x = torch.rand(8, 3, 4, dtype=torch.float64)
    layer(x).square().sum().backward()
    weight = layer.recurrent.weight.detach().clone().requires_grad_()
    v = s = torch.zeros(3, 4, dtype=torch.float64)
    total = 0.0
    for input_ in x:
        fed_back = s @ weight.T
        v, s = cell(input_ + scale * fed_back + (1 - scale) * fed_back.detach(), v, s)
        total = total + s.square().sum()
    total.backward()
    assert torch.allclose(layer.recurrent.weight.grad, weight.grad, rtol=0, atol=1e-10)
    assert bool(weight.grad.abs().sum() > 0) is (scale > 0)


@pytest.mark.parametrize("recurrent", [None, nn.Sequential(nn.Linear(8, 8))])
def test_the_gradient_through_the_synapses_is_scaled_and_the_spikes_are_not(recurrent):
    x = (2 * torch.rand(12, 3, 8)).requires_grad_()
    layer = hb.Recurrent(hb.LIFCell(tau=20.0, surrogate="ATan"), 8, recurrent, gradient_scale=1.0)
    for parameter in layer.recurrent.parameters():
        nn.init.uniform_(parameter, 0.0, 0.2)  # positive, so that the gradients through them add up
    spikes, sizes = [], []
    for scale in (1.0, 0.5, 0.0):
        layer.gradient_scale = scale
        spikes.append(layer(x))
        sizes.append(torch.autograd.grad(spikes[-1][-1].sum(), x)[0][0].norm())
    assert all(torch.equal(spikes[0], other) for other in spikes[1:])
    assert sizes[0] > sizes[1] > sizes[2] > 0


class Endless(nn.Module):
    """Sends an infinite current back from each spike."""

    def forward(self, spikes):
        return torch.where(spikes > 0, torch.inf, 0.0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_infinite_current_through_the_synapses_is_infinite(backend):
    layer = hb.Recurrent(hb.IFCell(), 4, Endless(), backend=backend)
    x = torch.full((2, 2, 4), 1.5).requires_grad_()
    outputs, (potential, _) = layer(x, return_state=True)
    assert (outputs == 1).all()
    assert (potential == torch.inf).all()


def test_a_scaled_gradient_is_no_operation_of_the_step():
    plain, scaled = (
        hb.explain(hb.Recurrent(hb.LIFCell(), 4, gradient_scale=scale).step()).split("source")[0]
        for scale in (1.0, 0.5)
    )
    forward = [text.partition("its gradient")[0].partition("one step")[2] for text in (plain, scaled)]
    assert forward[0] == forward[1]
    assert plain != scaled


def test_over_many_steps_the_default_gradient_grows_less_than_the_full_one():
    torch.manual_seed(0)
    x = (0.3 * torch.rand(100, 8, 64)).requires_grad_()
    growth = {}
    for scale in (1.0, None):
        options = {} if scale is None else {"gradient_scale": scale}
        torch.manual_seed(0)
        layer = hb.Recurrent(hb.LIFCell(tau=10.0, surrogate="ATan", detach_reset=True), 64, **options)
        with torch.no_grad():
            layer.recurrent.weight.mul_(3)  # as after some training
        (gradient,) = torch.autograd.grad(layer(x)[-1].sum(), x)
        growth[scale] = (gradient[0].norm() / gradient[-1].norm()).item()
    assert growth[1.0] > 100
    assert growth[None] < 1


def test_half_precision_carries_its_state_in_float32():
    layer, x = hb.Recurrent(hb.IFCell(), 4), torch.rand(5, 2, 4)
    outputs, state = layer.bfloat16()(x.bfloat16(), return_state=True)
    assert outputs.dtype == torch.bfloat16
    assert {part.dtype for part in state} == {torch.float32}


def test_errors_name_the_bad_argument():
    with pytest.raises(TypeError, match=r"cell must be a hibana\.Cell"):
        hb.Recurrent(hb.IF(), 4)
    with pytest.raises(ValueError, match=r"inputs must be \[T, B, 4\].*\(3, 2, 5\)"):
        hb.Recurrent(hb.IFCell(), 4)(torch.rand(3, 2, 5))


def compiled(layer):
    return "sample by sample" in hb.explain(layer)


def quantize_weights(layer):
    """`layer` with weights whose sums over spikes are exact in any order."""
    with torch.no_grad():
        layer.recurrent.weight.copy_(torch.randint(-8, 9, layer.recurrent.weight.shape) / 16)
    return layer


@pytest.mark.parametrize("kind", few(SPIKING), ids=lambda kind: kind.__name__)
def test_every_cell_of_the_package_is_compiled_and_spikes_as_its_loop_does(kind):
    torch.manual_seed(2)
    layer = quantize_weights(hb.Recurrent(kind(), 21))
    x = drive(layer.cell, (14, 5, 21)).requires_grad_()
    spikes = layer(x)
    grads = torch.autograd.grad(spikes.square().sum(), [x, *layer.parameters()], allow_unused=True)
    assert compiled(layer)
    layer.backend = "reference"
    expected = layer(x)
    assert torch.equal(spikes, expected)
    assert spikes.any()
    grads_expected = torch.autograd.grad(expected.square().sum(), [x, *layer.parameters()], allow_unused=True)
    for one, other in zip(grads, grads_expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max() + 1e-6))


def test_a_recurrent_convolution_runs_step_by_step_and_explain_says_so():
    torch.manual_seed(3)
    for convolution in (nn.Conv2d(4, 4, 3, padding=1), hb.Conv2d(4, 4, 3, padding=1)):
        layer, x = hb.Recurrent(hb.LIFCell(tau=3.0), 4, convolution), 2 * torch.rand(6, 2, 4, 5, 7)
        v = s = torch.zeros(2, 4, 5, 7)
        for input_, emitted in zip(x, layer(x), strict=True):
            v, s = layer.cell(input_ + convolution(s), v, s)
            assert torch.equal(emitted, s)
        assert "each step is called in Python" in hb.explain(layer)


def test_a_replaced_module_is_used():
    layer, x = hb.Recurrent(hb.IFCell(), 4), 2 * torch.rand(10, 3, 4)
    layer(x)
    layer.recurrent = nn.Linear(4, 4, bias=False)
    nn.init.zeros_(layer.recurrent.weight)
    layer.cell = hb.IFCell(threshold=0.5)
    assert torch.equal(layer(x), hb.IF(threshold=0.5)(x))
    assert len(list(layer.parameters())) == 1


def test_weights_may_be_parametrized():
    torch.manual_seed(4)
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6, bias=False))
    layer, x = hb.Recurrent(hb.LIFCell(surrogate=hb.surrogate.ATan()), 6, linear), 3 * torch.rand(8, 3, 6)
    assert compiled(layer)
    grads = []
    for backend in ("auto", "reference"):
        layer.backend = backend
        grads.append(torch.autograd.grad(layer(x).sum(), list(layer.parameters())))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("surrogate", "gates"), [(Step(), 1), (Box(), 1), (Triangle(), 1), (ATan(), 0)], ids=str
)
def test_a_product_gives_its_gradient_only_where_the_surrogate_lets_it_through(surrogate, gates):
    layer = hb.Recurrent(hb.LIFCell(surrogate=surrogate, detach_reset=True), 16)
    step = trace(layer.step(), torch.Size([2, 16]), torch.float32, "cpu")
    values = reachable(gradients(with_masks(step)[0]))
    back = [value for value in values if value.op == "product" and has_gradient(value.args[0])]
    assert [len(value.args) - 1 for value in back] == [gates]


class AddedLast(hb.Cell):
    """A leaky neuron whose code no other test compiles."""

    def forward(self, input_, v_previous, s_previous):
        v = v_previous * 0.5 * (1 - s_previous) + input_
        return v, Box()(v - 1)


class AddedFirst(hb.Cell):
    """The same neuron with other code, which is compiled separately."""

    def forward(self, input_, v_previous, s_previous):
        v = input_ + v_previous * 0.5 * (1 - s_previous)
        return v, Box()(v - 1)


@pytest.mark.cover(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.0, 0.03, 0.24, 1.0])
@pytest.mark.parametrize("kind", [AddedLast, AddedFirst])
def test_both_ways_to_list_spikes_agree(kind, density, dtype, monkeypatch):
    from hibana.compiler.cpu import product

    if kind is AddedFirst:
        monkeypatch.setattr(product, "compresses", lambda: False)
    generator = torch.Generator().manual_seed(2)
    driven = (torch.rand(5, 3, 70, generator=generator) < density).to(dtype)
    weights = torch.randint(-8, 9, (70, 70), generator=generator).to(dtype) / 64  # sums are exact
    results = []
    for backend in ("cpu", "reference"):
        layer = hb.Recurrent(kind(), 70, backend=backend).to(dtype)
        with torch.no_grad():
            layer.recurrent.weight.copy_(weights)
        x = (2 * driven).requires_grad_()
        spikes = layer(x)
        spikes.square().sum().backward()
        results.append((spikes.detach(), x.grad, layer.recurrent.weight.grad))
    (spikes, *grads), (expected, *expected_grads) = results
    assert torch.equal(spikes, expected)
    assert bool(expected.any()) == (density > 0)
    torch.testing.assert_close(grads, expected_grads)


def _optimized(layer):
    hb.optimize(layer, verbose=False)
    return layer


class Doubling(hb.Linear):
    def forward(self, input):  # noqa: A002 - torch.nn.Linear's name for it
        return 2 * super().forward(input)


@pytest.mark.parametrize("change", [_optimized, hb.events.adopt], ids=lambda change: change.__name__)
def test_a_linear_layer_that_works_per_spike_is_compiled_as_torchs(change, monkeypatch):
    torch.manual_seed(0)
    plain = nn.Linear(8, 8)
    changed = change(copy.deepcopy(plain))
    assert type(changed) is hb.Linear
    layers = [hb.Recurrent(hb.LIFCell(threshold=0.3), 8, synapses) for synapses in (plain, changed)]
    texts = [hb.explain(layer) for layer in layers]
    assert texts[0] == texts[1]
    assert "one native kernel" in texts[1]
    x = torch.rand(9, 3, 8)
    monkeypatch.setattr(hb.Linear, "forward", None)
    outputs = [layer(x) for layer in layers]
    for synapses in outputs:
        synapses.square().sum().backward()
    assert outputs[0].sum() > 0
    assert torch.equal(*outputs)
    assert torch.equal(plain.weight.grad, changed.weight.grad)
    assert torch.equal(plain.bias.grad, changed.bias.grad)


def test_calling_the_synapses_alone_recompiles_nothing():
    layer = hb.Recurrent(hb.LIFCell(), 512, hb.Linear(512, 512))
    x = torch.rand(3, 2, 512)
    layer(x)
    before = dependencies_of(layer.step()).key
    layer.recurrent((torch.rand(256, 512) < 0.05).float())
    assert layer.recurrent.explain() != "not called yet"
    assert dependencies_of(layer.step()).key == before


def test_an_overridden_forward_of_a_linear_layer_is_used():
    torch.manual_seed(0)
    twice, plain = Doubling(8, 8), nn.Linear(8, 8)
    bound = copy.deepcopy(twice)
    bound.__class__ = hb.Linear
    bound.forward = lambda x: 2 * functional.linear(x, bound.weight, bound.bias)
    with torch.no_grad():
        plain.weight.copy_(2 * twice.weight)
        plain.bias.copy_(2 * twice.bias)
    x = torch.rand(9, 3, 8)
    expected, *rest = (hb.Recurrent(hb.LIFCell(threshold=0.3), 8, each)(x) for each in (plain, twice, bound))
    for each in rest:
        torch.testing.assert_close(each, expected)


def test_a_convolution_per_spike_feeds_back_the_same_as_torchs():
    torch.manual_seed(0)
    plain = nn.Conv2d(2, 2, 3, padding=1)
    adopted = hb.events.adopt(copy.deepcopy(plain))
    x = torch.rand(6, 2, 2, 5, 5)
    expected, result = (hb.Recurrent(hb.LIFCell(threshold=0.3), 2, each)(x) for each in (plain, adopted))
    torch.testing.assert_close(expected, result)
