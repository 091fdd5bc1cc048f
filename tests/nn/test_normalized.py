"""``hb.Normalized``: equal to `nn.Sequential`, and when it normalizes in the neurons' pass."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.nn import normalized

STEPS, BATCH = 4, 3
IN_PASS = "normalized in the neurons' pass"
ONLY = "only evaluation without a gradient normalizes in the neurons' pass"


@pytest.fixture
def _small_too(monkeypatch):
    monkeypatch.setattr(normalized, "FUSED_FROM", 0)


def twins(below, neurons):
    """A layer, and the same modules one after the other."""
    each = hb.EachStep(below)
    return hb.Normalized(each, neurons), nn.Sequential(copy.deepcopy(each), copy.deepcopy(neurons))


def images(channels=8, size=9, batch=BATCH):
    return (torch.rand(STEPS, batch, channels, size, size) < 0.3).float()


def convolved(outputs, inputs=8, **options):
    norm = nn.BatchNorm2d(outputs, **options)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
    convolution = hb.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    convolution.mode = "events"
    return nn.Sequential(convolution, norm)


def gradients(net, x):
    """The output, and the gradients of the input and all parameters."""
    x = x.clone().requires_grad_()
    out = net(x)
    factors = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
    return out.detach(), *torch.autograd.grad((out * factors).sum(), [x, *net.parameters()])


SHAPES = {
    "of a few channels": lambda: (convolved(5), images()),
    "of 64": lambda: (convolved(64), images()),
    "of 100": lambda: (convolved(100), images(size=7)),
    "without weight and bias": lambda: (convolved(16, affine=False), images()),
    "alone": lambda: (
        nn.BatchNorm2d(8),
        images().flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (STEPS, BATCH)),
    ),
    "channels first": lambda: (nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)), images()),
    "of rows": lambda: (nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10)), torch.randn(STEPS, BATCH, 6)),
    "of an average over batches": lambda: (convolved(16, momentum=None), images()),
    "to a threshold": lambda: (nn.Sequential(convolved(16)[0], hb.ThresholdBatchNorm2d(16, 0.5)), images()),
    "the same image at each step": lambda: (convolved(16), images()[:1].expand(STEPS, -1, -1, -1, -1)),
    "large": lambda: (convolved(64, inputs=2), images(2, 32, 2)),
}


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch's kernels round a product by itself"
)
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.usefixtures("_small_too")
def test_evaluation_equals_the_modules_bit_for_bit(case):
    below, x = SHAPES[case]()
    ours, theirs = twins(below, hb.LI())
    theirs(x)
    ours.load_state_dict(theirs.state_dict())
    ours.eval(), theirs.eval()
    with torch.no_grad():
        for _ in range(2):  # the second call uses the compiled run of the first
            assert torch.equal(ours(x), theirs(x))
    assert ours.explain() == IN_PASS


@pytest.mark.parametrize("training", [True, False])
def test_with_a_gradient_the_modules_are_called_one_after_the_other(training):
    ours, theirs = twins(convolved(16), hb.IF(surrogate=hb.surrogate.ATan()))
    ours.train(training), theirs.train(training)
    x = images()
    for found, wanted in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        assert torch.equal(found, wanted)
    for found, wanted in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(found, wanted)
    assert ours.explain() == f"normalized separately: {ONLY}"


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.usefixtures("_small_too")
@torch.no_grad()
def test_tensors_of_another_size_raise_the_error_of_torch(name):
    for layer in twins(convolved(16), hb.IF()):
        norm = layer.eval()[0].module[-1]
        tensor = getattr(norm, name)
        setattr(norm, name, type(tensor)(tensor.detach()[:5].clone()))
        with pytest.raises(RuntimeError, match="16"):
            layer(images())


@torch.no_grad()
@pytest.mark.usefixtures("_small_too")
def test_a_negative_eps_raises_the_error_of_torch():
    layer, _ = twins(convolved(16), hb.IF())
    layer.eval()(images())
    layer[0].module[1].eps = -1e-5
    with pytest.raises(ValueError, match="eps must be"):
        layer(images())


@torch.no_grad()
@pytest.mark.usefixtures("_small_too")
def test_changes_between_two_calls_are_followed():
    layer, modules = twins(convolved(16), hb.IF())
    layer.eval(), modules.eval()
    x = images()
    changes = [
        lambda net: None,
        lambda net: nn.init.constant_(net[0].module[1].weight, 1.5),
        lambda net: setattr(net[1].cell, "threshold", 0.4),
        lambda net: net[0].module[1].running_mean.add_(0.3),
        lambda net: setattr(net[1], "cell", hb.LIFCell(tau=3.0)),
        lambda net: setattr(net[0].module[1], "eps", 0.5),
    ]
    before = torch.zeros(())
    for change in changes:
        change(layer), change(modules)
        outputs = layer(x)
        assert torch.equal(outputs, modules(x))
        assert not torch.equal(outputs, before)
        assert layer.explain() == IN_PASS
        before = outputs


def test_parameters_and_buffers_have_the_names_of_a_sequence_and_fold():
    ours, theirs = twins(convolved(16), hb.IF())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = images()
    theirs(x)
    ours.load_state_dict(theirs.state_dict())
    folded = hb.fold_batchnorm(ours)
    assert type(folded[0].module[1]) is nn.Identity
    assert torch.equal(folded(x), hb.fold_batchnorm(theirs)(x))
    assert "its modules were replaced by others" in folded.explain()


def _add_hook(net):
    net[0].module[1].register_forward_hook(lambda module, given, out: out + 1)


def _replace_neurons(net):
    net[1] = nn.ReLU()


class Shifted(nn.BatchNorm2d):
    def forward(self, images):
        return super().forward(images) + 1


def _replace_norm(net):
    net[0].module[1] = Shifted(4).eval()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_add_hook, "hooks must run between the modules"),
        (lambda net: setattr(net[1], "backend", "reference"), "the neurons run on backend 'reference'"),
        (_replace_neurons, "its modules were replaced by others"),
        (_replace_norm, "its modules were replaced by others"),
        (lambda net: net.double(), "the input is not float32 on the CPU, or a transform is active"),
    ],
)
@pytest.mark.usefixtures("_small_too")
@torch.no_grad()
def test_otherwise_the_modules_are_called_and_explain_gives_the_reason(change, reason):
    ours, theirs = twins(convolved(4), hb.IF())
    change(ours), change(theirs)
    ours.eval(), theirs.eval()
    x = images().to(next(ours.parameters()).dtype)
    assert torch.equal(ours(x), theirs(x))
    assert ours.explain() == f"normalized separately: {reason}"
    assert reason in hb.explain(ours)


@torch.no_grad()
def test_few_numbers_are_normalized_separately():
    layer = twins(convolved(4), hb.IF())[0].eval()
    layer(images())
    assert layer.explain() == "normalized separately: 3,888 numbers are too few"


@torch.no_grad()
@pytest.mark.usefixtures("_small_too")
def test_hooks_and_functions_that_replace_a_convolution_are_called():
    layer, x, seen = twins(convolved(16), hb.IF())[0].eval(), images(), []
    convolution = layer[0].module[0]
    convolution.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    layer(x)
    assert seen == [(STEPS * BATCH, 16, 9, 9)]
    convolution.forward = lambda images: torch.ones(len(images), 16, 9, 9)
    outputs = layer(x)
    assert len(seen) == 2
    assert torch.equal(outputs, outputs[:, :1, :, :1, :1].expand_as(outputs))


@torch.no_grad()
@pytest.mark.usefixtures("_small_too")
def test_a_cell_that_is_not_compiled_is_called_after_the_normalization():
    class Sorted(hb.Cell):
        def forward(self, input_, v_previous, s_previous):
            v = v_previous + input_.sort(-1)[0]
            return v, hb.Heaviside.apply(v - 1)

    ours, theirs = twins(convolved(4), hb.OverTime(Sorted()))
    ours.eval(), theirs.eval()
    x = images()
    with pytest.warns(hb.SlowPathWarning):
        assert torch.equal(ours(x), theirs(x))
    assert "sort" in ours.explain()


@torch.no_grad()
@pytest.mark.usefixtures("_small_too")
def test_a_run_in_chunks_equals_one_run():
    ours, _ = twins(convolved(4), hb.IF())
    x = images()
    ours.eval()
    outputs = ours(x)
    first, state = hb.run(ours, x[:2])
    rest, _ = hb.run(ours, x[2:], state)
    assert torch.equal(torch.cat([first, rest]), outputs)


@pytest.mark.parametrize(
    ("each", "neurons", "message"),
    [
        (nn.BatchNorm2d(3), hb.IF(), "each must be an EachStep that ends in a batch .*, got BatchNorm2d"),
        (hb.EachStep(nn.Conv2d(3, 3, 1)), hb.IF(), "each must be an EachStep that ends in .*, got Conv2d"),
        (hb.EachStep(nn.BatchNorm2d(3)), nn.ReLU(), r"neurons must be a layer of a cell, as .*, got ReLU"),
    ],
)
def test_other_modules_are_refused(each, neurons, message):
    with pytest.raises(TypeError, match=message):
        hb.Normalized(each, neurons)


KINDS = {
    **{name: getattr(hb, name) for name in ("LIF", "PLIF", "CubaLIF", "ALIF", "AdLIF", "Izhikevich")},
    "RefractoryLIF": hb.RefractoryLIF,
    "a learned time constant": lambda: hb.LIF(learn="tau"),
    "a threshold for each channel": lambda: hb.IF(torch.rand(16, 1, 1) + 0.5),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("_small_too")
@torch.no_grad()
def test_every_kind_of_neuron_may_follow(name):
    ours, theirs = twins(convolved(16), KINDS[name]())
    ours.eval(), theirs.eval()
    for _ in range(2):
        x = images()
        assert torch.equal(ours(x), theirs(x))
        assert ours.explain() == IN_PASS
