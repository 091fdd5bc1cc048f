"""Mistakes in a network that raise nothing by themselves, NaN, no gradient, axes: said once, by layer."""

import warnings

import pytest
import torch
from torch import nn

import hibana as hb

pytestmark = pytest.mark.filterwarnings("error::hibana.NetworkWarning")  # those of silent layers too


def over_time(*layers, features=5):
    """A network whose spiking layer is at place 1, and an input that makes most neurons spike."""
    torch.manual_seed(0)
    linear = nn.Linear(features, 8)
    nn.init.constant_(linear.weight, 0.5)
    return nn.Sequential(linear, *layers), torch.ones(6, 2, features)


class Compared(hb.Cell):
    """Spikes without a derivative."""

    def forward(self, input_, v_previous, s_previous):
        v = v_previous * (1 - s_previous) + input_
        return v, (v > 1).float()


class ComparedInPython(Compared):
    """The same, which no kernel serves."""

    def forward(self, input_, v_previous, s_previous):
        if input_.detach().sum().item() < 0:
            raise ValueError
        return super().forward(input_, v_previous, s_previous)


@pytest.mark.parametrize("cell", [Compared(), ComparedInPython()], ids=["compiled", "reference"])
def test_a_step_without_a_derivative_is_named_once(cell):
    net, x = over_time(hb.OverTime(cell), nn.Linear(8, 3))
    with pytest.warns(hb.NetworkWarning, match=r"layer '1' \(OverTime\) passes no gradient on.*hb.Heaviside"):
        net(x).sum().backward()
    assert net[0].weight.grad is None or not net[0].weight.grad.any()
    net(x).sum().backward()  # a warning would be an error


@pytest.mark.parametrize("surrogate", [hb.surrogate.Step(), hb.surrogate.Triangle()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_threshold_that_is_never_reached_is_named_once(surrogate, dtype):
    net, x = over_time(hb.IF(threshold=100.0, surrogate=surrogate), nn.Linear(8, 3))
    net, x = net.to(dtype), x.to(dtype)
    with pytest.warns(
        hb.NetworkWarning, match=r"layer '1' \(IF\) passed no gradient on.*lower the threshold"
    ):
        net(x).sum().backward()
    assert not net[0].weight.grad.any()
    net(x).sum().backward()


def test_neurons_of_a_tensor_of_thresholds_are_named():
    net, x = over_time(hb.LIF(tau=2.0, threshold=torch.full([8], 100.0)), nn.Linear(8, 3))
    with pytest.warns(hb.NetworkWarning, match=r"layer '1' \(LIF\) passed no gradient on"):
        net(x).sum().backward()


@pytest.mark.parametrize(
    "layer",
    [
        hb.IF(),
        hb.IF(threshold=100.0, surrogate=hb.surrogate.FastSigmoid()),
        hb.LI(),
        hb.Recurrent(hb.LIFCell(), 8),
        hb.OverTime(hb.IFCell(), backend="reference"),
    ],
    ids=["spikes", "smooth", "readout", "recurrent", "reference"],
)
def test_of_a_layer_that_passes_a_gradient_on_nothing_is_said(layer):
    net, x = over_time(layer, nn.Linear(8, 3))
    net(x).sum().backward()
    assert net[0].weight.grad.any()


def test_of_a_gradient_that_is_zero_above_nothing_is_said():
    net, x = over_time(hb.IF(), nn.Linear(8, 3))
    (0 * net(x)).sum().backward()


@pytest.mark.parametrize("steps", [1, 3])
def test_few_steps_from_rest_say_nothing_of_the_gradient(steps):
    net, x = over_time(hb.IF(threshold=100.0))
    outputs, _ = hb.run(net, x[:steps])
    outputs.sum().backward()


def test_a_batch_of_gradients_is_left_to_a_later_backward():
    class Passes(torch.autograd.Function):
        """A node whose backward takes a batch of gradients, as a layer's may."""

        @staticmethod
        def forward(ctx, x):
            ctx.support = None
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    cell, x = hb.IFCell(), torch.ones(6, 2, 4, requires_grad=True)
    outputs = Passes.apply(x)
    hb.compiler.first_call.check_first_call(cell, x, outputs, "cpu")
    grads = torch.rand(3, 6, 2, 4)
    (got,) = torch.autograd.grad(outputs, x, grads, is_grads_batched=True)
    assert torch.equal(got, grads)


def test_of_no_sample_nothing_is_said():
    net, x = over_time(hb.IF())
    net(x[:, :0]).sum().backward()


def test_a_normalisation_over_the_batch_is_seen_where_it_raises_nothing():
    net, _ = over_time(nn.BatchNorm1d(8), hb.IF())
    with pytest.warns(hb.NetworkWarning, match=r"layer '2' \(IF\).*axis 1 is channels.*hb.EachStep"):
        net(torch.rand(4, 8, 5))
    apart, _ = over_time(hb.EachStep(nn.BatchNorm1d(8)), hb.IF())
    apart(torch.rand(4, 8, 5))


@pytest.mark.parametrize("gradient", [True, False])
def test_a_normalisation_behind_neurons_is_seen_where_it_raises_nothing(gradient):
    with torch.set_grad_enabled(gradient):
        net, _ = over_time(hb.IF(), nn.BatchNorm1d(8), nn.Linear(8, 3), hb.LI())
        with pytest.warns(hb.NetworkWarning, match=r"layer '2' \(BatchNorm1d\).*takes no time.*EachStep"):
            net(torch.rand(4, 8, 5))
        net(torch.rand(4, 8, 5))  # a warning would be an error
        apart, _ = over_time(hb.IF(), hb.EachStep(nn.BatchNorm1d(8)), nn.Linear(8, 3), hb.LI())
        apart(torch.rand(4, 8, 5))


def test_a_normalisation_of_groups_of_channels_is_seen():
    net = nn.Sequential(nn.GroupNorm(2, 8), hb.IF())
    with pytest.warns(hb.NetworkWarning, match=r"layer '1' \(IF\).*a group normalisation whose axis 1 is"):
        net(torch.rand(4, 8, 5, 5))
    nn.Sequential(hb.EachStep(nn.GroupNorm(2, 8)), hb.IF())(torch.rand(4, 3, 8, 5, 5))


@pytest.mark.parametrize("convolution", [nn.Conv2d, hb.Conv2d])
def test_images_without_time_are_seen(convolution):
    net = nn.Sequential(convolution(3, 4, 3), hb.IF())
    with pytest.warns(hb.NetworkWarning, match=r"layer '1' \(IF\).*axis 1 is channels.*hb.encode.constant"):
        net(torch.rand(4, 3, 8, 8))


def test_features_without_time_are_seen():
    net, _ = over_time(hb.IF())
    with pytest.warns(hb.NetworkWarning, match=r"layer '1' \(IF\).*axis 1 is features"):
        net(torch.rand(16, 5))


IMAGES = torch.rand(4, 2, 3, 8, 8)


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (hb.Conv2d(3, 4, 3), "height, width"),
        (hb.events.MaxPool2d(2), "height, width"),
        (hb.events.AvgPool2d(2), "height, width"),
        (hb.events.Conv1d(3, 4, 3), "length"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_that_knows_no_time_says_each_step(layer, sizes):
    name = type(layer).__name__
    with pytest.raises(
        ValueError, match=rf"input of {name} must be \[N, channels, {sizes}\].*EachStep\({name}"
    ):
        layer(IMAGES)


def test_each_step_says_how_it_read_the_axes():
    with pytest.raises(RuntimeError) as raised:
        hb.EachStep(hb.Conv2d(3, 4, 3))(IMAGES[0])
    assert "[2, 3, 8, 8] as 2 steps of 3 samples" in raised.value.__notes__[0]


WRONG = {
    "batch norm": ([nn.Linear(8, 8), nn.BatchNorm1d(8), hb.IF()], (4, 8, 8), r"'1' \(BatchNorm1d\)"),
    "convolution": ([nn.Conv2d(3, 4, 3), hb.IF()], (4, 2, 3, 8, 8), r"'0' \(Conv2d\)"),
    "pooling": (
        [hb.EachStep(hb.Conv2d(3, 4, 3)), hb.IF(), nn.MaxPool2d(2)],
        (4, 2, 3, 8, 8),
        r"'2' \(MaxPool2d\)",
    ),
    "flatten": ([nn.Flatten(), nn.Linear(384, 4), hb.IF()], (4, 2, 3, 8, 8), r"'0' \(Flatten\)"),
    "images without time": ([nn.Conv2d(3, 4, 3), hb.IF()], (4, 3, 8, 8), r"'0' \(Conv2d\)"),
    "rows without time": ([nn.Linear(8, 4), hb.IF()], (16, 8), r"'1' \(IF\)"),
}


@pytest.mark.parametrize("name", WRONG)
@torch.no_grad()
def test_check_names_the_first_layer_with_a_wrong_axis(name):
    layers, shape, named = WRONG[name]
    with pytest.raises(ValueError, match=rf"layer {named}.*(EachStep|Flatten\(2\))"):
        hb.check(nn.Sequential(*layers), torch.rand(shape))


def convolutional():
    torch.manual_seed(0)
    convolution = nn.Sequential(hb.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return nn.Sequential(
        hb.Normalized(hb.EachStep(convolution), hb.IF()),
        hb.EachStep(nn.MaxPool2d(2)),
        nn.Flatten(2),
        nn.Linear(36, 8),
        hb.Recurrent(hb.LIFCell(), 8),
        hb.LI(),
    )


def test_check_of_a_sound_network_says_nothing_and_changes_nothing():
    net = convolutional()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.get_rng_state()
    hb.check(net, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_check_names_every_layer_that_passes_no_gradient_on_though_it_was_said_before():
    net, x = over_time(hb.IF(threshold=100.0), nn.Linear(8, 3))
    for _ in range(2):
        with pytest.warns(hb.NetworkWarning, match=r"layer '1' \(IF\) passed no gradient on"):
            hb.check(net, x)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_in_an_input_is_found_though_no_output_shows_it(value):
    net, x = over_time(hb.LIF(), nn.Linear(8, 3), hb.LI())
    x[3, 1, 2] = value
    silent, outputs = nn.Sequential(net[0], net[1]), net(x)
    assert silent(x).isfinite().all()
    assert outputs.isfinite().all()
    with hb.check(net), pytest.raises(ValueError, match="came in with the input of the network, at step 3"):
        net(x)
    with pytest.raises(ValueError, match="at step 3"):
        hb.check(net, x)


def test_check_names_the_parameter_that_holds_nan():
    net = convolutional()
    with torch.no_grad():
        net[0][0].module[0].weight[0, 0, 0, 0] = torch.nan
    with (
        hb.check(net),
        pytest.raises(ValueError, match=r"layer '0.0.module.0' \(Conv2d\), whose weight holds it"),
    ):
        net(IMAGES)


class Late(nn.Module):
    """Divides by zero at one step."""

    def forward(self, x):
        return x / (torch.arange(x.shape[0]) != 4).to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def test_check_names_the_module_and_the_step_that_make_infinity():
    net, x = over_time(Late(), hb.IF())
    with (
        hb.check(net),
        pytest.raises(ValueError, match=r"output of layer '1' \(Late\).*finite numbers, at step 4"),
    ):
        net(x)


class Grows(hb.Cell):
    """Its hidden state overflows; what it emits does not show it."""

    def forward(self, input_, u_previous, v_previous):
        u = u_previous * 1e20 + input_
        return u, v_previous + (u > 1).float()


def test_check_looks_at_the_states_of_a_cell():
    net, x = over_time(hb.OverTime(Grows()))
    with torch.no_grad(), hb.check(net), pytest.raises(ValueError, match=r"state u of layer '1' .*at step 2"):
        net(x)


def test_another_error_within_check_says_in_which_layer():
    net = nn.Sequential(hb.IF(), nn.Linear(4, 2))
    with pytest.raises(RuntimeError) as raised, hb.check(net):
        net(torch.rand(3, 2, 5))
    assert raised.value.__notes__ == ["in layer '1' (Linear) of the network, given [3, 2, 5]"]


def test_no_call_but_the_first_with_a_gradient_is_checked(monkeypatch):
    calls = []
    monkeypatch.setattr(
        hb.compiler.first_call, "_layer_called", lambda cell, _: calls.append(cell) or "layer"
    )
    net, x = over_time(hb.IF())
    with torch.no_grad():
        net(x)
    assert not calls
    for _ in range(3):
        net(x).sum().backward()
    net(x[:4]).sum().backward()
    assert len(calls) == 1


def test_what_is_warned_of_may_be_ignored():
    net, x = over_time(hb.IF(threshold=100.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hb.NetworkWarning)
        net(x).sum().backward()
