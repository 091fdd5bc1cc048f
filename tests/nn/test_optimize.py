"""``hb.optimize``: plain networks of ``torch.nn``, changed in place to faster layers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import hibana as hb
from hibana.compiler.memory_layout import expand_over_time
from hibana.compiler.torch_layers import faster_layers
from hibana.nn.optimize import table
from hibana.nn.over_steps import OVER_STEPS

X = torch.rand(4, 3, 2, 16, 16)


def build_network():
    return nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1, bias=False),  # a bias's gradient would be rounding errors
        nn.BatchNorm2d(16),
        hb.IF(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        hb.LIF(),
        nn.AvgPool2d(2),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
        hb.LI(),
    )


def with_each_step(net):
    """A copy of `net` with each image layer in an EachStep."""
    needs = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten)
    return nn.Sequential(*(hb.EachStep(m) if isinstance(m, needs) else m for m in copy.deepcopy(net)))


def results(net, inputs, factors=None):
    net.zero_grad()
    x = inputs.clone().requires_grad_()
    outputs = net(x)
    factors = torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)
    (outputs * factors).sum().backward()
    tensors = {"outputs": outputs.detach(), "input": x.grad}
    tensors |= {name.replace("module.", ""): p.grad for name, p in net.named_parameters()}
    return tensors | {name.replace("module.", ""): b.clone() for name, b in net.named_buffers()}


def same(result, expected, bound=2e-4):
    assert result.keys() == expected.keys()
    for name, value in result.items():
        scale = expected[name].abs().max().item()  # some sums over a batch are near zero
        torch.testing.assert_close(value, expected[name], rtol=0, atol=bound * scale + min(bound, 1e-6))


def test_the_network_itself_is_returned():
    net = build_network()
    assert hb.optimize(net, verbose=False) is net
    assert hb.optimize(net, X, verbose=False) is net
    assert hb.optimize(net, undo=True) is net
    assert type(net) is nn.Sequential


def test_the_table_is_printed_and_explain_names_the_changed_layers(capsys):
    net = hb.optimize(build_network())
    assert capsys.readouterr().out == table(net) + "\n"
    assert "0      Conv2d       per spike, over time" in table(net)
    assert "Conv2d, optimized" in hb.explain(net, X)
    hb.optimize(net, undo=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_statistics_equal_those_with_each_step(training):
    net = build_network()
    reference = with_each_step(net).train(training)
    names = [*net.state_dict()]
    tensors = [id(p) for p in (*net.parameters(), *net.buffers())]
    hb.optimize(net, verbose=False)
    net.train(training)
    for _ in range(2):
        same(results(net, X), results(reference, X))
    assert [*net.state_dict()] == names
    assert [id(p) for p in (*net.parameters(), *net.buffers())] == tensors


def test_an_image_shown_at_each_step_is_computed_once():
    net = hb.optimize(build_network(), verbose=False)
    image, batches = torch.rand(3, 2, 16, 16), []
    convolution = net[0]._conv_forward
    net[0]._conv_forward = lambda images, *rest: batches.append(len(images)) or convolution(images, *rest)
    expanded = net(image.expand(4, *image.shape))
    copied = net(image.expand(4, *image.shape).contiguous())
    assert batches == [3, 12]
    torch.testing.assert_close(expanded, copied, rtol=1e-4, atol=1e-4)


def test_undo_restores_types_and_attributes():
    net = build_network()
    user_layer = hb.Linear(10, 4)
    net.append(nn.Sequential(user_layer, nn.Linear(4, 2)))
    before = [(type(m), {k: v for k, v in vars(m).items() if k != "_reason"}.keys()) for m in net.modules()]
    hb.optimize(net, verbose=False)
    assert "10     Linear       per spike" in table(net)
    hb.optimize(net, undo=True, verbose=False)
    assert [type(m) for m in net.modules()] == [kind for kind, _ in before]
    assert type(user_layer) is hb.Linear
    for module, (_, names) in zip(net.modules(), before, strict=True):
        assert not {name for name in vars(module) if "was" in name}
        assert {*names} <= {*vars(module)}


def test_a_network_without_images_computes_the_same(capsys):
    net = nn.Sequential(
        nn.Linear(20, 64), hb.IF(), nn.BatchNorm1d(5), nn.Flatten(2), nn.Linear(64, 3), hb.LI()
    )
    x = torch.rand(6, 5, 20)
    expected = net.eval()(x)
    hb.optimize(net, x)
    torch.testing.assert_close(net(x), expected)
    assert "2      BatchNorm1d  left: takes axis 1 for features" in capsys.readouterr().out


def of_features():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), hb.IF(), nn.Flatten(), nn.Linear(8, 3), hb.LI())


def of_sequences():
    return nn.Sequential(
        *(nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8), hb.IF(), nn.MaxPool1d(2), nn.Dropout1d(0.0)),
        *(nn.Upsample(scale_factor=2), nn.Conv1d(8, 8, 3, 2), nn.AvgPool1d(2, 1), nn.AdaptiveMaxPool1d(2)),
        *(hb.IF(0.1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3), nn.BatchNorm1d(3), hb.LI()),
    )


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize(("build", "shape"), [(of_features, (5, 3, 6)), (of_sequences, (5, 3, 6, 16))])
def test_layers_of_features_and_sequences_take_time(build, shape, with_example):
    torch.manual_seed(0)
    net, x = build(), torch.rand(shape)
    reference = nn.Sequential(
        *(module if isinstance(module, hb.OverTime) else hb.EachStep(module) for module in copy.deepcopy(net))
    )
    hb.optimize(net, *[x] * with_example, verbose=False)
    assert "1      BatchNorm1d" in table(net)
    assert "left" not in table(net)
    for training in (True, False):
        same(results(net.train(training), x), results(reference.train(training), x))
    assert results(net, x)["outputs"].std() > 0
    hb.optimize(net, undo=True)
    assert [type(module) for module in net] == [type(module) for module in build()]


@pytest.mark.parametrize("batch", [3, 8])
def test_a_network_that_joins_time_and_batch_itself_keeps_its_axes(batch):
    class Joins(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Flatten())
            self.neurons = hb.IF()

        def forward(self, x):
            return self.neurons(self.layers(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    net, x = Joins(), torch.rand(5, batch, 6, 8)  # as many pixels as channels
    reference = copy.deepcopy(net)
    hb.optimize(net, x, verbose=False)
    assert "layers.1  BatchNorm1d  left: takes axis 1 for features, and" in table(net)
    same(results(net, x), results(reference, x))


def test_a_mean_that_torch_takes_over_time_stays():
    """``AdaptiveAvgPool2d(1)`` of torch is a mean over the last two axes, of any number of axes."""
    net = nn.Sequential(hb.EachStep(nn.Conv2d(2, 4, 3)), hb.IF(), nn.AdaptiveAvgPool2d(1), nn.Flatten(2))
    expected = net(X)
    torch.testing.assert_close(hb.optimize(net, X, verbose=False)(X), expected)


def test_normalization_of_other_axes_is_named():
    net = hb.optimize(nn.Sequential(nn.BatchNorm1d(8), hb.IF()), verbose=False)
    with pytest.raises(ValueError, match=r"must be \[T, batch, 8\] or .*, got shape \(5, 8, 3\)"):
        net(torch.rand(5, 8, 3))


def test_check_takes_an_optimized_network():
    for build, shape in ((of_features, (5, 3, 6)), (of_sequences, (5, 3, 6, 16)), (build_network, X.shape)):
        hb.check(hb.optimize(build(), verbose=False), torch.rand(shape))


def test_layers_in_each_step_compute_the_same():
    each = hb.EachStep(nn.Sequential(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)))
    net = nn.Sequential(each, hb.IF(), nn.Flatten(2), hb.EachStep(nn.BatchNorm1d(8 * 16 * 16)))
    reference = copy.deepcopy(net)
    hb.optimize(net, X, verbose=False)
    assert "BatchNorm1d" not in table(net)
    same(results(net, X), results(reference, X))


def test_images_without_time_give_the_same_outputs():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)
    )
    images = torch.rand(5, 2, 16, 16)
    expected = net.eval()(images)
    hb.optimize(net, images, verbose=False)
    torch.testing.assert_close(net(images), expected)


def test_subclasses_and_hooks_stay():
    class UserLinear(nn.Linear):
        pass

    net, calls = nn.Sequential(nn.Linear(3, 4), hb.IF(), UserLinear(4, 2)), []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    hb.optimize(net, verbose=False)
    assert type(net[2]) is UserLinear
    assert "left: a subclass of Linear" in table(net)
    net(torch.rand(2, 5, 3))
    assert calls


def test_it_is_copied_and_pickled():
    net = build_network()
    hb.optimize(net, verbose=False)
    net(X)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(copied[0]) is type(net[0]) is OVER_STEPS[nn.Conv2d]
        torch.testing.assert_close(copied.eval()(X), net.eval()(X))
    modules = dict(net.named_modules())
    assert [*modules] == ["", *map(str, range(12)), *(f"{i}.cell" for i in (2, 6, 11))] or len(modules) == 16


def test_modules_added_later_are_called():
    net = nn.Sequential(nn.Linear(3, 4), hb.IF())
    hb.optimize(net, verbose=False)
    net(torch.rand(2, 5, 3))
    net.append(nn.Linear(4, 7))
    assert net(torch.rand(2, 5, 3)).shape == (2, 5, 7)


def test_a_different_result_is_an_error_and_changes_nothing(monkeypatch):
    net = nn.Sequential(nn.Linear(20, 64), hb.LI())
    monkeypatch.setattr(hb.Linear, "forward", lambda self, x: torch.zeros(*x.shape[:-1], 64))
    with pytest.raises(RuntimeError, match="gives something else"):
        hb.optimize(net, torch.rand(3, 2, 20))
    assert type(net) is nn.Sequential
    assert type(net[0]) is nn.Linear


def test_an_error_of_the_network_is_raised_and_changes_nothing():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), hb.IF(), nn.Flatten(), nn.Linear(5, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        hb.optimize(net, X, verbose=False)
    assert [type(module) for module in net] == [nn.Conv2d, hb.IF, nn.Flatten, nn.Linear]


def test_hibana_train_optimizes_its_network():
    from hibana.train import Settings, architecture
    from hibana.train.firing_rates import activity
    from hibana.train.network import Network

    model = Network(Settings(layers="8c3b-p2-16c3b-32", data="digits"), (8, 8), 10)
    reference = architecture.build("8c3b-p2-16c3b-32", (8, 8), 10, hb.IFCell)
    assert [*model.net.state_dict()] == [*reference.state_dict()]
    reference.load_state_dict(model.net.state_dict())
    assert any(isinstance(module, hb.Conv2d) for module in model.net.modules())
    x = torch.rand(4, 3, 8, 8)
    outputs, spikes = activity(model.net, x)
    assert [*spikes] == [*activity(reference, x)[1]]
    torch.testing.assert_close(outputs, model.net(x), rtol=1e-3, atol=1e-4)


class Drawing(hb.Cell):
    """A neuron that fires at random."""

    def forward(self, input_, s_previous):
        return ((torch.rand_like(input_) < input_).to(input_.dtype),)


def test_optimizing_a_random_network_leaves_the_generator_unchanged():
    net = nn.Sequential(nn.Linear(8, 16), hb.OverTime(Drawing()), nn.Linear(16, 3))
    example, before = torch.rand(4, 3, 8), torch.get_rng_state()
    assert "per spike" in table(hb.optimize(net, example, verbose=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_optimized_network_can_be_exported():
    from hibana.convert import export

    net = build_network().eval()
    hb.optimize(net, verbose=False)
    torch.testing.assert_close(export(net, X).module()(X), net(X), rtol=1e-3, atol=1e-4)


def test_recurrent_synapses_stay_layers_of_torch():
    net = nn.Sequential(hb.Linear(6, 8), hb.Recurrent(hb.LIFCell(threshold=0.2), 8), nn.Linear(8, 3), hb.LI())
    x = torch.rand(5, 2, 6)
    before = net(x)
    assert list(faster_layers(net)) == ["2"]
    assert "recurrent" not in table(hb.optimize(net, x, verbose=False))
    assert type(net[1].recurrent) is nn.Linear
    assert type(net[2]) is hb.Linear
    torch.testing.assert_close(net(x), before)


class UserForward(nn.Module):
    """Two layers, called in a user-defined `forward`."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 8), hb.IF(), nn.Linear(8, 3)])

    def forward(self, x):
        first, neurons, last = self.layers
        return last(neurons(first(x)))


@pytest.mark.dynamo
@pytest.mark.parametrize("user_forward", [False, True])
def test_under_torch_compile_an_optimized_network_keeps_its_layers_per_spike(user_forward):
    net = UserForward() if user_forward else nn.Sequential(nn.Linear(6, 8), hb.IF(), nn.Linear(8, 3))
    assert hb.optimize(net, verbose=False) is net
    first, _, last = net.layers if user_forward else net
    last.mode = "events"
    x = torch.rand(5, 2, 6)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(net, backend="aot_eager")(x), net(x))
    last.__dict__.pop("_reason")
    torch.compile(net, backend="aot_eager")(x).sum().backward()
    assert last.explain().startswith("events")
    assert first.weight.grad is not None
    copied = pickle.loads(pickle.dumps(net))
    assert torch.equal(copied(x), net(x))
    assert type(hb.optimize(net, undo=True)) in (UserForward, nn.Sequential)


@pytest.mark.parametrize("how", ["zeros", "prune"])
def test_a_pruned_layer_of_a_network_without_gradients_becomes_sparse(how, capsys):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 50), hb.IF(0.1), nn.Linear(50, 30), hb.LI())
    if how == "prune":
        prune.random_unstructured(net[0], "weight", 0.96)
    else:
        net[0].weight.data *= torch.rand(50, 40) < 0.04
    x = torch.rand(6, 3, 40).round()
    layers, expected = list(net), net(x).detach()
    hb.optimize(net, x, verbose=False)
    assert type(net[0]) is hb.Linear  # an optimizer may have its parameters
    hb.optimize(net.eval().requires_grad_(False), x)
    assert type(net[0]) is hb.SparseLinear
    assert type(net[2]) is hb.Linear
    assert f"sparse, {net[0].targets.numel()} of 2,000 weights" in capsys.readouterr().out
    torch.testing.assert_close(net(x), expected)
    hb.optimize(net, undo=True)
    assert list(net) == layers
    assert type(net[0]) is nn.Linear


def test_the_gradient_of_a_step_for_all_steps_has_its_memory_order():
    """A gradient in another order takes ten times as long to sum over time."""
    step = torch.rand(3, 8, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    results = []
    for inputs in (expand_over_time(step, 4), step.expand(4, *step.shape).contiguous()):
        strides = []
        inputs.grad_fn.register_prehook(lambda grads, strides=strides: strides.append(grads[0].stride()[1:]))
        outputs = OVER_STEPS[nn.BatchNorm2d](8)(inputs)
        (outputs * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
        results.append(step.grad)
        step.grad = None
        if len(results) == 1:
            assert strides == [step.stride()]
    torch.testing.assert_close(*results)
