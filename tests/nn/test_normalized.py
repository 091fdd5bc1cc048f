"""Batch normalisation within the neurons' pass: what `nn.Sequential` of the same modules gives, and when."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.nn.normalized import layer as normalized
from hibana.nn.normalized.autograd import moments

STEPS, BATCH = 4, 3


@pytest.fixture
def _however_few(monkeypatch):
    monkeypatch.setattr(normalized, "FUSED_FROM", 0)


def twins(below, neurons):
    """A layer, and the same modules one after the other."""
    each = hb.EachStep(below)
    return hb.Normalized(each, neurons), nn.Sequential(copy.deepcopy(each), copy.deepcopy(neurons))


def images(channels=8, size=9, batch=BATCH):
    return (torch.rand(STEPS, batch, channels, size, size) < 0.3).float()


def lookup(outputs, inputs=8, **options):
    norm = nn.BatchNorm2d(outputs, **options)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
    convolution = hb.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    convolution.mode = "events"
    return nn.Sequential(convolution, norm)


def gradients(net, x, double=False):
    """What comes out, and the gradients of the input and all parameters for one of what comes out."""
    net = copy.deepcopy(net).double() if double else net
    x = (x.double() if double else x).clone().requires_grad_()
    out = net(x)
    seen = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
    found = torch.autograd.grad((out * seen).sum(), [x, *net.parameters()])
    return out.detach(), *found


def check_close(found, wanted, rtol=2e-5):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


def check_as_near(found, other, exact):
    """`found` lies about as near to `exact` as the `other`, which is of the same precision."""
    for a, b, c in zip(found, other, exact, strict=True):
        ours, theirs = (float((value - c).abs().max() / c.abs().max()) for value in (a, b))
        assert ours <= 4 * theirs + 2e-6, (ours, theirs)


SHAPES = {
    "of a few channels": lambda: (lookup(5), images()),
    "of 64": lambda: (lookup(64), images()),
    "of 100": lambda: (lookup(100), images(size=7)),
    "without weight and bias": lambda: (lookup(16, affine=False), images()),
    "without running statistics": lambda: (lookup(16, track_running_stats=False), images()),
    "alone": lambda: (
        nn.BatchNorm2d(8),
        images().flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (STEPS, BATCH)),
    ),
    "of rows": lambda: (nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10)), torch.randn(STEPS, BATCH, 6)),
    "of an average over batches": lambda: (lookup(16, momentum=None), images()),
    "to a threshold": lambda: (nn.Sequential(lookup(16)[0], hb.ThresholdBatchNorm2d(16, 0.5)), images()),
    "large enough": lambda: (lookup(64, inputs=2), images(2, 32, 2)),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.usefixtures("_however_few")
def test_training_gives_what_the_modules_give_one_after_the_other(case):
    made, x = SHAPES[case]()
    ours, theirs = twins(made, hb.LI())
    for _ in range(2):  # running statistics count each
        check_as_near(gradients(ours, x), gradients(theirs, x), gradients(theirs, x, double=True))
        ours(x), theirs(x)
    assert ours.explain() == "normalised in the neurons' own pass"
    for (name, a), (other, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch's kernels round a product by itself"
)
@pytest.mark.parametrize("case", sorted(SHAPES.keys() - {"without running statistics"}))
@pytest.mark.usefixtures("_however_few")
def test_evaluation_gives_it_to_the_bit(case):
    made, x = SHAPES[case]()
    ours, theirs = twins(made, hb.LI())
    theirs(x)
    ours.load_state_dict(theirs.state_dict())
    ours.eval(), theirs.eval()
    assert torch.equal(ours(x), theirs(x))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert ours.explain() == "normalised in the neurons' own pass"
    check_as_near(gradients(ours, x), gradients(theirs, x), gradients(theirs, x, double=True))


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("_however_few")
def test_tensors_of_another_size_are_torchs_error(name, training):
    for layer in twins(lookup(16), hb.IF()):
        norm = layer[0].module[-1].train(training)
        held = getattr(norm, name)
        setattr(norm, name, type(held)(held.detach()[:5].clone()))
        with pytest.raises(RuntimeError, match="16"):
            layer(images())


@pytest.mark.usefixtures("_however_few")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("eps", [0.0, -1e-5])
def test_an_eps_that_torch_refuses_is_refused(eps, training):
    x = torch.randn(4, 8, 16, 48, 48)
    layer = hb.Normalized(hb.EachStep(nn.Sequential(hb.Conv2d(16, 16, 1), nn.BatchNorm2d(16))), hb.IF())
    layer.train(training)
    assert layer(x).shape == x.shape
    assert "own pass" in layer.explain()
    layer[0].module[1].eps = eps
    for each in (nn.Sequential(*layer), layer):
        if training or eps < 0:
            with pytest.raises(ValueError, match="eps must be"):
                each(x)
        else:
            assert each(x).shape == x.shape  # torch takes zero in evaluation


def test_neurons_spike_alike_and_their_gradients_too():
    x = images()
    ours, theirs = twins(lookup(64), hb.IF(1.0, hb.surrogate.ATan()))
    found, wanted = gradients(ours, x), gradients(theirs, x)
    assert 0.05 < found[0].mean() < 0.5
    assert torch.equal(found[0], wanted[0])
    check_close(found, wanted)


@pytest.mark.usefixtures("_however_few")
def test_what_is_changed_between_two_calls_is_heeded():
    layer, modules = twins(lookup(16), hb.IF())
    x = images()
    changes = [
        lambda net: None,
        lambda net: nn.init.constant_(net[0].module[1].weight, 1.5),
        lambda net: setattr(net[1].cell, "threshold", 0.4),
        lambda net: net[0].module[1].running_mean.add_(0.3),
        lambda net: setattr(net[1], "cell", hb.LIFCell(tau=3.0)),
        lambda net: setattr(net[0].module[1], "eps", 0.5),
    ]
    for change in changes:
        change(layer), change(modules)
        for training in (False, True):
            for net in (layer, modules):
                net[0].module[1].train(training)
            check_close(gradients(layer, x), gradients(modules, x))
            assert layer.explain().endswith("own pass")
        layer.eval(), modules.eval()
        assert torch.equal(layer(x), modules(x))


class Divides(hb.Cell):
    """One whose step can make of zeros what is no number, so that nothing may be left out."""

    states = ("s",)

    def forward(self, input_, s):
        v = input_ + input_ / (input_ + 50.0)
        return (hb.surrogate.ATan()(v - 1.0 + 0.0 * s),)


@pytest.mark.cover(1)
@pytest.mark.usefixtures("_however_few")
@pytest.mark.parametrize(
    "neurons",
    [
        hb.IF(1.0, hb.surrogate.ATan()),
        hb.IF(1.0, hb.surrogate.Step(), detach_reset=True),
        hb.OverTime(Divides()),
        hb.LIF(tau=torch.rand(64, 1, 1) + 2, surrogate=hb.surrogate.ATan()),
    ],
)
@pytest.mark.parametrize("steps", [3, 4])
def test_an_image_shown_at_each_step_is_normalised_once(neurons, steps):
    image = torch.randn(BATCH, 8, 9, 9)
    ours, theirs = twins(lookup(64), neurons)
    ours[0].module[0].mode = theirs[0].module[0].mode = "dense"
    seen = torch.randn(steps, BATCH, 64, 9, 9)
    for _ in range(3):  # the first call makes ready what the later ones find
        found = []
        for net in (ours, theirs):
            x = image.clone().requires_grad_()
            out = net(x.expand(steps, *x.shape))
            learned = [x, *(p for p in net.parameters() if p.requires_grad)]
            found.append((out.detach(), *torch.autograd.grad((out * seen).sum(), learned)))
        assert ours.explain().endswith("own pass")
        assert torch.equal(found[0][0], found[1][0])
        check_close(*found, rtol=1e-4)
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(
                ours(image.expand(steps, *image.shape)), theirs(image.expand(steps, *image.shape))
            )


@pytest.mark.usefixtures("_however_few")
@pytest.mark.parametrize("training", [True, False])
def test_a_normalisation_alone_learns_after_a_call_that_learned_nothing(training):
    layer, modules = twins(lookup(16), hb.IF())
    x = images()
    found = []
    for net in (layer.train(training), modules.train(training)):
        net[0].module[0].requires_grad_(False)
        for learns in (False, False, True, True, False, True):
            with torch.set_grad_enabled(learns):
                out = net(x)
            assert out.requires_grad == learns
            if learns:
                (x.mean((1, 2, 3, 4)).cumsum(0)[:, None, None, None, None] * out).sum().backward()
        found.append([net[0].module[1].weight.grad, net[0].module[1].bias.grad])
    assert layer.explain().endswith("own pass")
    check_close(*found)


@pytest.mark.cover(1)
@pytest.mark.usefixtures("_however_few")
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("order", [(0, 4, 1, 2, 3), (0, 2, 1, 3, 4), (0, 4, 3, 1, 2), (0, 1, 4, 2, 3)])
def test_spikes_that_lie_in_any_order_are_taken_as_they_are(channels, order):
    shape = (STEPS, 8, channels, 8, 64 if channels == 1 else 8)  # rows of whole words
    lying = torch.randn([shape[order.index(d)] for d in range(5)]).permute(order)
    assert lying.shape == shape
    layer, modules = twins(lookup(16, channels), hb.LIF(surrogate=hb.surrogate.ATan()))
    modules[0].module[0].mode = "dense"
    first = hb.IF(0.5, hb.surrogate.Box(), detach_reset=True)
    for _ in range(2):
        check_close(*(gradients(nn.Sequential(first, net), lying) for net in (layer, modules)), rtol=1e-4)
        assert layer.explain().endswith("own pass") or order != (0, 1, 4, 2, 3)
    assert layer[0].module[0].explain().startswith("events")


@pytest.mark.parametrize("shape", [(7, 3), (1, 5), (1000, 64), (257, 100), (3, 20000), (5000, 1)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_are_those_in_float64(shape, offset):
    rows, eps = torch.randn(shape) + offset, 2**-20
    found, exact = moments(rows, None, None, eps), rows.double()
    torch.testing.assert_close(found.mean.double(), exact.mean(0), rtol=1e-7, atol=1e-7)
    variance = exact.var(0, correction=0)
    torch.testing.assert_close(found.inverse.double() ** -2 - eps, variance, rtol=3e-6, atol=1e-12)
    if len(rows) > 1:
        torch.testing.assert_close(found.unbiased.double(), exact.var(0), rtol=2e-6, atol=1e-12)


def test_parameters_and_buffers_have_the_names_of_a_sequence_and_fold():
    ours, theirs = twins(lookup(16), hb.IF())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = images()
    theirs(x)
    ours.load_state_dict(theirs.state_dict())
    folded = hb.fold_batchnorm(ours)
    assert type(folded[0].module[1]) is nn.Identity
    assert folded(x).ne(hb.fold_batchnorm(theirs)(x)).sum() == 0
    assert "there is no batch normalisation of torch.nn any more" in folded.explain()


def _hooked(net):
    net[0].module[1].register_forward_hook(lambda module, given, out: out + 1)


def _swapped(net):
    net[1] = nn.ReLU()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net: None, "3888 numbers are too few for it to pay"),
        (_hooked, "hooks are to run between"),
        (lambda net: setattr(net[1], "backend", "reference"), "the neurons are served by 'reference'"),
        (_swapped, "other modules have taken the place of those that it was made of"),
        (lambda net: net.double(), "the input is not float32 on the CPU, or something watches the call"),
    ],
)
def test_where_it_is_not_done_so_the_modules_are_called_and_it_says_why(change, reason):
    ours, theirs = twins(lookup(4), hb.IF())
    change(ours), change(theirs)
    x = images().to(next(ours.parameters()).dtype)
    assert torch.equal(ours(x), theirs(x))
    assert ours.explain() == f"normalised apart: {reason}"
    assert reason in hb.explain(ours)


@pytest.mark.cover(1)
@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["a hook", "a function in its place"])
@pytest.mark.usefixtures("_however_few")
def test_what_watches_a_convolution_or_takes_its_place_is_called(way, training):
    ours, _ = twins(lookup(16), hb.IF())
    convolution, x, seen = ours[0].module[0], images(), []
    ours.train(training)
    ours(x)
    if way == "a hook":
        convolution.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    else:
        convolution.forward = lambda images: (
            seen.append(tuple(images.shape))
            or convolution._conv_forward(images, convolution.weight, convolution.bias)
        )
    ours(x)
    assert len(seen) == 1


@pytest.mark.usefixtures("_however_few")
def test_channels_first_and_cells_that_are_not_compiled_are_normalised_apart():
    class Sorted(hb.Cell):
        def forward(self, input_, v_previous, s_previous):
            v = v_previous + input_.sort(-1)[0]
            return v, hb.Heaviside.apply(v - 1)

    x = images()
    for made, neurons, reason in (
        (
            nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)),
            hb.IF(),
            "channels do not come last in memory",
        ),
        (lookup(4), hb.OverTime(Sorted()), "sort"),
    ):
        ours, theirs = twins(made, neurons)
        assert torch.equal(ours(x), theirs(x))
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
        assert reason in ours.explain()


@pytest.mark.usefixtures("_however_few")
def test_a_run_in_chunks_is_the_whole():
    ours, _ = twins(lookup(4), hb.IF())
    x = images()
    ours(x)
    ours.eval()
    whole = ours(x)
    first, state = hb.run(ours, x[:2])
    rest, _ = hb.run(ours, x[2:], state)
    assert torch.equal(torch.cat([first, rest]), whole)


@pytest.mark.usefixtures("_however_few")
def test_a_second_derivative_is_refused():
    ours, _ = twins(nn.BatchNorm1d(6), hb.LI())
    x = torch.randn(STEPS, BATCH, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"torch\.nn\.Sequential in the place of hb\.Normalized"):
        torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)[0].sum().backward()


@pytest.mark.parametrize(
    ("each", "neurons", "message"),
    [
        (nn.BatchNorm2d(3), hb.IF(), "each must be an EachStep that ends in a batch .*, got BatchNorm2d"),
        (hb.EachStep(nn.Conv2d(3, 3, 1)), hb.IF(), "each must be an EachStep that ends in .*, got Conv2d"),
        (hb.EachStep(nn.BatchNorm2d(3)), nn.ReLU(), r"neurons must be a layer of a cell, as .*, got ReLU"),
    ],
)
def test_what_can_not_be_is_refused(each, neurons, message):
    with pytest.raises(TypeError, match=message):
        hb.Normalized(each, neurons)


@pytest.mark.usefixtures("_however_few")
def test_losses_of_a_training_are_those_of_the_modules_one_after_the_other():
    smooth = hb.surrogate.ATan()
    first, second = (hb.EachStep(lookup(16, inputs)) for inputs in (8, 16))
    layers = [
        first,
        hb.IF(surrogate=smooth),
        second,
        hb.IF(surrogate=smooth),
        nn.Flatten(2),
        nn.Linear(1296, 3),
    ]
    theirs = nn.Sequential(*copy.deepcopy(layers))
    ours = nn.Sequential(hb.Normalized(*layers[:2]), hb.Normalized(*layers[2:4]), *layers[4:])
    x, classes = images(), torch.arange(BATCH)
    losses = []
    for net in (ours, theirs):
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        losses.append([])
        for _ in range(4):
            loss = nn.functional.cross_entropy(net(x).mean(0), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.usefixtures("_however_few")
def test_a_checkpointed_layer_has_the_same_gradients_and_counts_a_batch_once():
    ours, _ = twins(lookup(16), hb.IF(surrogate=hb.surrogate.ATan()))
    kept = hb.Checkpointed(copy.deepcopy(ours))
    x = images()
    check_close(gradients(kept, x), gradients(ours, x))
    kept(x.requires_grad_()).sum().backward()
    ours(x).sum().backward()
    for a, b in zip(kept.buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert kept.module.explain() == "normalised in the neurons' own pass"


KINDS = {
    **{name: getattr(hb, name) for name in ("LIF", "PLIF", "CubaLIF", "ALIF", "AdLIF", "Izhikevich")},
    "RefractoryLIF": hb.RefractoryLIF,
    "a time constant learned": lambda **options: hb.LIF(learn="tau", **options),
    "a threshold for each channel": lambda **options: hb.IF(torch.rand(16, 1, 1) + 0.5, **options),
}


STAND = ("CubaLIF", "PLIF", "a threshold for each channel")
"""Kinds for the rest: two states, a learned one, a tensor."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in STAND else pytest.mark.exhaustive) for name in KINDS]
)
@pytest.mark.usefixtures("_however_few")
def test_every_kind_of_neuron_may_be_behind_it_and_be_called_again(name):
    ours, theirs = twins(lookup(16), KINDS[name](surrogate=hb.surrogate.ATan()))
    for training in (True, False):
        for net in (ours, theirs):
            net[0].module[1].train(training)
        for _ in range(2):
            x = images()
            found, wanted = gradients(ours, x), gradients(theirs, x)
            assert ours.explain() == "normalised in the neurons' own pass"
            assert torch.equal(found[0], wanted[0])
            check_close(found, wanted, 1e-4)
