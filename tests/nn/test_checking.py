"""``hb.check``: NaN, missing gradients and wrong axes, by layer; and the warning about derivatives."""

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.nn import checking

pytestmark = pytest.mark.filterwarnings("error::hibana.NetworkWarning")  # also for silent layers


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
    """The same neuron with a branch in Python, which no kernel supports."""

    def forward(self, input_, v_previous, s_previous):
        if input_.detach().sum().item() < 0:
            raise ValueError
        return super().forward(input_, v_previous, s_previous)


@pytest.mark.parametrize("cell", [Compared(), ComparedInPython()], ids=["compiled", "reference"])
def test_a_step_without_a_derivative_is_named_once(cell):
    net, x = over_time(hb.OverTime(cell), nn.Linear(8, 3))
    with pytest.warns(hb.NetworkWarning, match=rf"{type(cell).__name__} passes no gradient on.*hb.Heaviside"):
        net(x).sum().backward()
    assert net[0].weight.grad is None or not net[0].weight.grad.any()
    net(x).sum().backward()  # a warning would be an error
    with pytest.warns(hb.NetworkWarning, match=r"layer '1' \(OverTime\) passes no gradient on"):
        assert "layer '1' (OverTime) passes no gradient on" in repr(hb.check(net, x))


@pytest.mark.parametrize("surrogate", [hb.surrogate.Step(), hb.surrogate.Triangle()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_check_reports_a_threshold_that_is_never_reached(surrogate, dtype):
    net, x = over_time(hb.IF(threshold=100.0, surrogate=surrogate), nn.Linear(8, 3))
    net, x = net.to(dtype), x.to(dtype)
    net(x).sum().backward()  # a warning would be an error
    for _ in range(2):
        with pytest.warns(
            hb.NetworkWarning, match=r"layer '1' \(IF\) passed no gradient on.*lower the threshold"
        ):
            hb.check(net, x)


def test_neurons_of_a_tensor_of_thresholds_are_named():
    net, x = over_time(hb.LIF(tau=2.0, threshold=torch.full([8], 100.0)), nn.Linear(8, 3))
    with pytest.warns(hb.NetworkWarning, match=r"layer '1' \(LIF\) passed no gradient on"):
        hb.check(net, x)


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
def test_a_layer_that_passes_a_gradient_on_gets_no_hint(layer):
    net, x = over_time(layer, nn.Linear(8, 3))
    net(x).sum().backward()
    assert net[0].weight.grad.any()
    assert not hb.check(net, x).hints


@pytest.mark.parametrize("steps", [1, 3])
def test_few_steps_from_rest_give_no_hint(steps):
    net, x = over_time(hb.IF(threshold=100.0))
    assert not hb.check(net, x[:steps]).hints


def test_an_empty_batch_is_accepted():
    net, x = over_time(hb.IF())
    net(x[:, :0]).sum().backward()
    assert "read as 6 steps of 0 samples" in repr(hb.check(net, x[:, :0]))


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
def test_the_error_of_an_image_layer_recommends_each_step(layer, sizes):
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
    "group norm": ([nn.GroupNorm(2, 8), hb.IF()], (4, 8, 5, 5), r"'0' \(GroupNorm\)"),
    "group norm of as many samples as channels": (
        [hb.EachStep(hb.Conv2d(3, 8, 3)), nn.GroupNorm(2, 8), hb.IF()],
        (4, 8, 3, 8, 8),
        r"'1' \(GroupNorm\)",
    ),
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
    layers, shape, layer_name = WRONG[name]
    with pytest.raises(ValueError, match=rf"layer {layer_name}.*(EachStep|Flatten\(2\))"):
        hb.check(nn.Sequential(*layers), torch.rand(shape))


def test_group_normalization_in_each_step_normalizes_channels():
    net, x = nn.Sequential(hb.EachStep(nn.GroupNorm(2, 8)), hb.IF()), torch.rand(4, 3, 8, 5, 5)
    assert "nothing is wrong" in repr(hb.check(net, x))
    assert torch.equal(net[0](x), torch.stack([net[0].module(step) for step in x]))


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


def test_check_of_a_correct_network_reports_and_changes_nothing():
    net = convolutional()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator_state = torch.get_rng_state()
    checked = hb.check(net, IMAGES)
    assert repr(checked).splitlines() == [
        "<hb.check of Sequential>",
        "read as 4 steps of 2 samples: time is the first axis, the batch the second",
        "nothing is wrong",
    ]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    "layer",
    [
        hb.DelayedRecurrent(hb.LIFCell(), 8, 3),
        hb.Recurrent(hb.LIFCell(), 8, hb.SparseLinear(8, 8, 0.5, delays=2)),
    ],
    ids=["learned delays", "sparse delays"],
)
def test_check_of_recurrent_layers_with_delays(layer):
    assert "nothing is wrong" in repr(hb.check(nn.Sequential(nn.Linear(3, 8), layer), torch.rand(6, 2, 3)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_in_an_input_is_reported_even_if_all_outputs_are_finite(value):
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


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_check_names_a_parameter_that_no_spike_reads(value):
    net = nn.Sequential(hb.Linear(8, 4), hb.IF())
    net[0].mode = "events"
    with torch.no_grad():
        net[0].weight[:, 3] = value
    x = torch.ones(5, 2, 8)
    x[:, :, 3] = 0
    assert net(x).isfinite().all()
    with pytest.raises(ValueError, match=r"weight of layer '0' \(Linear\) holds NaN or infinity"):
        hb.check(net, x)
    with hb.check(net), pytest.raises(ValueError, match="weight of layer '0'"):
        net(x)


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
    """Its hidden state overflows while its output stays finite."""

    def forward(self, input_, u_previous, v_previous):
        u = u_previous * 1e20 + input_
        return u, v_previous + (u > 1).float()


def test_check_inspects_the_states_of_a_cell():
    net, x = over_time(hb.OverTime(Grows()))
    with torch.no_grad(), hb.check(net), pytest.raises(ValueError, match=r"state u of layer '1' .*at step 2"):
        net(x)


def test_another_error_within_check_says_in_which_layer():
    net = nn.Sequential(hb.IF(), nn.Linear(4, 2))
    with pytest.raises(RuntimeError) as raised, hb.check(net):
        net(torch.rand(3, 2, 5))
    assert raised.value.__notes__ == ["in layer '1' (Linear) of the network, with inputs [3, 2, 5]"]


def test_check_names_the_layers_that_optimize_would_make_faster(monkeypatch):
    monkeypatch.setattr(checking, "LEAST_NUMBERS", 1)
    net, x = over_time(hb.IF(), nn.Linear(8, 3), hb.LI())
    assert hb.check(net, x).hints == ["hb.optimize(net, x) would make 2 (Linear) faster"]
    assert not hb.check(hb.optimize(net, verbose=False), x).hints


def test_check_takes_an_optimized_network_of_images():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), hb.IF())
    assert "nothing is wrong" in repr(hb.check(hb.optimize(net, verbose=False), IMAGES))


def test_a_layer_in_place_of_a_cell_is_refused_with_a_hint():
    with pytest.raises(TypeError, match=r"cell must be a hibana.Cell, .* got IF; pass its cell, layer\.cell"):
        hb.record(hb.IF(), torch.rand(3, 2))


def test_check_reports_a_network_without_neurons():
    report = repr(hb.check(nn.Sequential(nn.Linear(4, 3)), torch.rand(5, 2, 4)))
    assert "nothing is wrong" not in report
    assert "the network has no neurons: add layers such as hb.LIF()" in report
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module.*, got 'x'"):
        hb.check("x")


@pytest.mark.parametrize(("readout", "steps", "is_far"), [(hb.LI(), 200, True), (hb.LI(), 4, False)])
def test_check_reports_a_readout_that_sums_over_many_steps(readout, steps, is_far):
    layer = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1], [0.0], [-0.1]]).expand(3, 4))
    inputs = torch.full((steps, 2, 4), 0.5)
    report = repr(hb.check(nn.Sequential(layer, readout), inputs))
    message = (
        f"layer '1' (LI) sums its input over {steps} steps: its mean potentials differ by 20 between classes"
    )
    assert (message in report) == is_far
    assert ("nothing is wrong" in report) != is_far
    assert "nothing is wrong" in repr(hb.check(nn.Sequential(layer, hb.LI(tau=20.0)), inputs))
