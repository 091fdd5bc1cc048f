"""`hb.DelayedRecurrent`: its equation and gradients, runs in pieces, learned delays, errors."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.train import activity, scale_to_rate

NEURONS, MAX_DELAY = 5, 4


def by_equation(layer, inputs):
    """The outputs of `layer` for `inputs`, by the equation: one step and one delay at a time."""
    kernel, scale = (
        layer.recurrent.kernel(),
        layer.gradient_scale,
    )  # [outputs, inputs, steps], the present last
    state, spikes = layer.cell.initial_state(inputs[0]), [torch.zeros_like(inputs[0])]
    for input_ in inputs:
        fed_back = sum(
            spikes[-1 - delay] @ kernel[..., -1 - delay].T
            for delay in range(min(layer.recurrent.max_delay + 1, len(spikes)))
        )
        fed_back = fed_back * scale + (fed_back * (1 - scale)).detach()
        emitted, state = hb.unroll(layer.cell, (input_ + fed_back)[None], state, backend="reference")
        spikes.append(emitted[0])
    return torch.stack(spikes[1:])


def build_layer(longest=MAX_DELAY, **options):
    torch.manual_seed(0)
    cell = hb.LIFCell(tau=3.0, surrogate="ATan", detach_reset=True)
    layer = hb.DelayedRecurrent(cell, NEURONS, longest, **options)
    with torch.no_grad():
        layer.recurrent.weight.mul_(3)
    return layer


@pytest.mark.cover(1)
@pytest.mark.parametrize("longest", [0, 1, MAX_DELAY, 20])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_those_of_the_equation(longest, training):
    layer = build_layer(longest).train(training).double()
    inputs = torch.rand(12, 3, NEURONS, dtype=torch.float64)
    outputs, expected = layer(inputs), by_equation(layer, inputs)
    assert torch.equal(outputs, expected)
    assert 0.1 < outputs.mean() < 0.9
    tensors = [layer.recurrent.weight, *([layer.recurrent.delay] if training and longest else [])]
    factors = torch.randn_like(outputs)
    for grad, expected_grad in zip(
        *(torch.autograd.grad((each * factors).sum(), tensors) for each in (outputs, expected)), strict=True
    ):
        torch.testing.assert_close(grad, expected_grad)
        assert grad.abs().sum() > 0


def test_without_delays_it_is_the_recurrent_layer():
    layer, plain = build_layer(0), hb.Recurrent(build_layer().cell, NEURONS)
    with torch.no_grad():
        plain.recurrent.weight.copy_(layer.recurrent.weight)
    inputs = torch.rand(12, 3, NEURONS)
    torch.testing.assert_close(layer(inputs), plain(inputs))


def test_a_recurrent_layer_takes_delayed_synapses_with_a_bias():
    layer, inputs = build_layer().eval(), torch.rand(12, 3, NEURONS)
    synapses = hb.DelayedLinear(NEURONS, NEURONS, MAX_DELAY)
    synapses.load_state_dict(layer.recurrent.state_dict() | {"bias": synapses.bias})
    outputs = hb.Recurrent(layer.cell, NEURONS, synapses, gradient_scale=1.0).eval()(inputs)
    torch.testing.assert_close(outputs, layer(inputs + synapses.bias))
    assert not torch.equal(outputs, layer(inputs))


def test_a_spike_comes_back_after_one_step_and_its_delay():
    layer = hb.DelayedRecurrent(hb.IFCell(), 2, 5).eval()
    with torch.no_grad():
        layer.recurrent.weight.copy_(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        layer.recurrent.delay.fill_(3.0)
    inputs = torch.zeros(8, 1, 2)
    inputs[1, 0, 0] = 2.0
    assert layer(inputs)[:, 0].nonzero().tolist() == [[1, 0], [5, 1]]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_pieces_equal_the_full_sequence(size):
    net = nn.Sequential(build_layer().eval(), nn.Linear(NEURONS, 2), hb.LI())
    inputs = torch.rand(12, 3, NEURONS)
    full, final = hb.run(net, inputs)
    state, parts = None, []
    for piece in inputs.split(size):
        outputs, state = hb.run(net, piece, state)
        parts.append(outputs)
    torch.testing.assert_close(torch.cat(parts), full)
    for name in final:
        for one, other in zip(final[name], state[name], strict=True):
            torch.testing.assert_close(one, other)
    assert state["0"][-1].shape == (MAX_DELAY, 3, NEURONS)


def test_it_is_a_spiking_layer_whose_delays_are_narrowed_and_fixed():
    net = nn.Sequential(hb.Linear(3, NEURONS), build_layer())
    inputs = torch.rand(10, 4, 3)
    assert scale_to_rate(net, inputs, 0.2)["1"] == pytest.approx(0.2, abs=0.03)
    assert list(activity(net, inputs)[1]) == ["1"]
    hb.narrow_delays(net, 0.0)
    assert net[1].recurrent.sigma == MAX_DELAY / 2
    hb.fix_delays(net)
    assert torch.equal(net.train()(inputs), net.eval()(inputs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hb.DelayedRecurrent(hb.IFCell(), 3, 2, gradient_scale=2.0), "gradient_scale must lie"),
        (lambda: hb.DelayedRecurrent(hb.IFCell(), 3, -1), "max_delay must be"),
        (lambda: hb.DelayedRecurrent(hb.IFCell(), 0, 2), "must be a whole number"),
        (lambda: hb.DelayedRecurrent(hb.IFCell(), 3, 2)(torch.rand(4, 2, 5)), r"inputs must be \[T, B, 3\]"),
        (
            lambda: hb.DelayedRecurrent(hb.IFCell(), 3, 2)(torch.rand(4, 1, 3), (*[torch.zeros(1, 3)] * 2,)),
            "state must end in",
        ),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nir_refuses_it_by_name():
    pytest.importorskip("nir", reason="the extra nir is not installed")
    net = nn.Sequential(nn.Linear(3, NEURONS), build_layer())
    with pytest.raises(ValueError, match="DelayedRecurrent has no NIR form"):
        hb.nir.write(net)


@pytest.mark.cover(1)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("longest", [0, 3])
@pytest.mark.dynamo
def test_an_exported_program_computes_the_same(dynamic, longest):
    net = nn.Sequential(nn.Linear(3, NEURONS), build_layer(longest)).eval()
    hb.fix_delays(net)
    x = torch.rand(9, 4, 3) * 3
    program = hb.convert.export(net, x, dynamic_batch=dynamic, dynamic_time=dynamic).module()
    for inputs in (x, torch.rand(5, 7, 3) * 3) if dynamic else (x,):
        assert net(inputs).any()
        torch.testing.assert_close(program(inputs), net(inputs))


@pytest.mark.dynamo
def test_it_is_copied_saved_and_compiled(tmp_path):
    net = nn.Sequential(nn.Linear(3, NEURONS), build_layer()).eval()
    x = torch.rand(9, 4, 3) * 3
    expected = net(x)
    other = nn.Sequential(nn.Linear(3, NEURONS), build_layer()).eval()
    other.load_state_dict(net.state_dict())
    torch.save(net, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    for each in (other, loaded, copy.deepcopy(net), torch.compile(net, backend="eager", fullgraph=True)):
        assert torch.equal(each(x), expected)


def test_its_synapses_are_counted_as_those_of_the_recurrent_layer():
    weights = torch.randn(NEURONS, NEURONS)
    counts = []
    for layer in (build_layer(0), hb.Recurrent(build_layer().cell, NEURONS)):
        layer.recurrent.weight.data[:] = weights
        metric = hb.metrics.SynOps()
        net = nn.Sequential(layer.eval())
        torch.manual_seed(0)
        with metric.watch(net):
            net(torch.rand(9, 4, NEURONS) * 3)
        counts.append(metric.compute())
    assert counts[0] == counts[1]
    assert counts[0]["acs"] > 0


def unsupported_conversions():
    net, x = nn.Sequential(nn.Linear(3, NEURONS), build_layer()).eval(), torch.rand(4, 2, 3)
    yield lambda: hb.quantize(net, x)
    yield lambda: hb.convert.quantization_aware(net, x)
    yield lambda: hb.convert.to_onnx(net, x)


@pytest.mark.parametrize("call", list(unsupported_conversions()), ids=["quantize", "aware", "onnx"])
def test_conversions_without_a_form_for_it_refuse_it_by_name(call):
    with pytest.raises(Exception, match=r"layer '1': .*Delayed(Recurrent has|Linear have) no \w+ form"):
        call()
