"""Networks that `hb.run` steps without their modules' calls: the same numbers, and all changes are seen."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hibana as hb
from hibana.nn.step_node import TASKS


class Called(nn.Module):
    """`net` by calls of its layers."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def dyadic(net):
    """`net` with weights whose sums are exact, and with which its layers spike."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 3 * 256).round() / 256)
    return net


def mlp(linear=nn.Linear, dtype=torch.float32, **options):
    torch.manual_seed(3)
    surrogate = {"surrogate": "ATan", **options}
    net = nn.Sequential(
        linear(6, 20), hb.LIF(threshold=0.3, **surrogate), linear(20, 12, bias=False),
        hb.IF(threshold=0.4, **surrogate), nn.Identity(), linear(12, 4), hb.LI(tau=3.0),
    )  # fmt: skip
    return dyadic(net).to(dtype)


def images():
    torch.manual_seed(3)
    return dyadic(
        nn.Sequential(
            hb.EachStep(nn.Conv2d(2, 4, 3, padding=1)), hb.LIF(threshold=0.3, surrogate="ATan"),
            hb.EachStep(nn.MaxPool2d(2)), nn.Flatten(2), nn.Linear(36, 5),
            hb.OverTime(hb.ALIFCell(threshold=0.2, surrogate="ATan")),
        )
    )  # fmt: skip


def others():
    """Cells with tensors, recurrence, a neuron first, neurons in a row."""
    torch.manual_seed(3)
    return dyadic(
        nn.Sequential(
            hb.IF(0.4, surrogate="ATan"), nn.Linear(6, 8), hb.PLIF(threshold=0.3, surrogate="ATan"),
            nn.Linear(8, 8), hb.Recurrent(hb.LIFCell(threshold=0.3, surrogate="ATan"), 8),
            hb.LIF(threshold=torch.full((8,), 0.2), surrogate="ATan"), hb.LI(), nn.Linear(8, 3),
        )
    )  # fmt: skip


NETWORKS = {
    "mlp": (mlp, (6,)),
    "hibana's linear layers": (lambda: mlp(hb.Linear), (6,)),
    "float64": (lambda: mlp(dtype=torch.float64), (6,)),
    "detached": (lambda: mlp(detach_reset=True), (6,)),
    "images": (images, (2, 6, 6)),
    "others": (others, (6,)),
}


def inputs_of(net, shape, steps=9, batch=2):
    torch.manual_seed(5)
    return (torch.rand(steps, batch, *shape) < 0.5).to(next(net.parameters()).dtype)


def stepped(net, inputs, state=None):
    outputs = []
    for x in inputs:
        one, state = hb.run(net, x[None], state)
        outputs.append(one)
    return torch.cat(outputs), state


def gradients(net, outputs, *others):
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
    return torch.autograd.grad((outputs * weights).sum(), [*others, *net.parameters()])


def is_stepped(outputs):
    return outputs.grad_fn.name() == "_StepBackward"


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_give_what_calls_of_the_layers_give(name):
    make, shape = NETWORKS[name]
    net = make()
    inputs = inputs_of(net, shape)
    for _ in range(2):  # the second time all is prepared
        with torch.no_grad():
            found, state = stepped(net, inputs)
            wanted, ended = stepped(Called(net), inputs)
        assert found.std() > 0.01
        assert torch.equal(found, wanted)
        assert all(map(torch.equal, *([t for s in each.values() for t in s] for each in (state, ended))))
        with torch.no_grad():
            torch.testing.assert_close(found, net(inputs))
        found, state = stepped(net, inputs)
        assert torch.equal(found, wanted)
        assert list(state) == [key.removeprefix("net.") for key in ended]


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_have_the_gradient_of_the_sequence(name):
    make, shape = NETWORKS[name]
    net = make()
    inputs = inputs_of(net, shape).requires_grad_()
    _, begun = stepped(net, inputs[:3].detach())
    begun = {key: tuple(t.detach().requires_grad_() for t in state) for key, state in begun.items()}
    parts = [t for state in begun.values() for t in state]
    for _ in range(2):
        found, ended = stepped(net, inputs, begun)
        wanted, last = hb.run(Called(net), inputs, {f"net.{key}": state for key, state in begun.items()})
        torch.testing.assert_close(found, wanted)
        tails = [torch.cat([t.flatten() for s in each.values() for t in s]) for each in (ended, last)]
        both = [
            torch.autograd.grad(
                (outputs.square().sum() + tail.square().sum()),
                [inputs, *parts, *net.parameters()],
                allow_unused=True,
            )
            for outputs, tail in zip((found, wanted), tails, strict=True)
        ]
        for one, other in zip(*both, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_weights_is_that_of_a_backward_of_its_own():
    net = mlp()
    inputs = inputs_of(net, (6,))
    stepped(net, inputs)
    outputs, _ = stepped(net, inputs)
    assert is_stepped(hb.run(net, inputs[:1], hb.run(net, inputs[:1])[1])[0])
    wanted = gradients(Called(net), Called(net)(inputs))

    def check(found, factor=1):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, factor * other, rtol=1e-4, atol=1e-5)

    weights = torch.linspace(-1, 2, outputs.numel()).view(outputs.shape)
    loss = (outputs * weights).sum()
    check(torch.autograd.grad(loss, [*net.parameters()], retain_graph=True))
    loss.backward(retain_graph=True)
    loss.backward()
    check([p.grad for p in net.parameters()], 2)
    outputs, _ = stepped(net, inputs)
    other, _ = stepped(net, inputs)  # two graphs in one backward, and each in one of its own
    outputs, _ = stepped(net, inputs)
    net.zero_grad()
    ((outputs + other) * weights).sum().backward()
    check([p.grad for p in net.parameters()], 2)
    assert all(not link.sums.parts for link in _links(net))
    again, state = hb.run(net, inputs[:1], hb.run(net, inputs[:1])[1])
    again.sum().backward()
    with pytest.raises(RuntimeError, match="detach it between the calls"):
        hb.run(net, inputs[:1], state)[0].sum().backward()


def _links(net):
    segments = [link for link in net.__dict__["_hibana_run"].chain.links if hasattr(link, "links")]
    return [link for segment in segments for link in segment.links if link.sums]


def test_a_state_that_the_loss_does_not_reach_has_no_gradient():
    class Cubed(hb.Cell):
        def forward(self, input_, u, v, e):
            return 0.5 * u + input_, 2 * (e * 1e18) ** 3, 1e5 * input_

    net = nn.Sequential(hb.OverTime(Cubed()), hb.OverTime(Cubed()))
    inputs = torch.rand(3, 2, 4, requires_grad=True)
    found = []
    for backend in ("reference", "auto", "auto"):  # a second time by what the first prepared
        for layer in net:
            layer.backend = backend
        _, state = stepped(net, inputs)
        found.append(torch.autograd.grad(state["0"][0].sum(), inputs)[0])
    assert is_stepped(hb.run(net, inputs[:1], state)[0])
    assert found[0].isfinite().all()
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_what_is_not_asked_for_is_not_left_behind():
    net = mlp()
    inputs = inputs_of(net, (6,)).requires_grad_()
    stepped(net, inputs)
    outputs, _ = stepped(net, inputs)
    (found,) = torch.autograd.grad(outputs.square().sum(), inputs, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(net(inputs).square().sum(), inputs)[0])
    assert all(not link.sums.parts for link in _links(net))
    outputs.square().sum().backward(inputs=[net[2].weight])
    assert net[0].weight.grad is None
    wanted = torch.autograd.grad(net(inputs).square().sum(), net[2].weight)[0]
    torch.testing.assert_close(net[2].weight.grad, wanted, rtol=1e-4, atol=1e-5)
    assert all(not link.sums.parts for link in _links(net))


def test_where_too_many_backwards_left_parts_a_step_has_a_product_of_its_own():
    net = mlp()
    inputs = inputs_of(net, (6,))
    stepped(net, inputs)
    outputs, _ = stepped(net, inputs)
    for link in _links(net):
        link.sums.parts.update({key: [] for key in range(-TASKS, 0)})
    found = gradients(net, outputs)
    for one, other in zip(found, gradients(net, net(inputs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_batch_of_gradients_and_of_gradients():
    net = mlp()
    inputs = inputs_of(net, (6,)).requires_grad_()
    stepped(net, inputs)
    outputs, _ = stepped(net, inputs)
    batch = torch.randn(3, *outputs.shape)
    asked = [inputs, *net.parameters()]
    found = torch.autograd.grad(outputs, asked, batch, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(batch):
        for one, other in zip(found, torch.autograd.grad(net(inputs), asked, grad), strict=True):
            torch.testing.assert_close(one[i], other, rtol=1e-4, atol=1e-5)
    first = torch.autograd.grad(outputs.square().sum(), asked, create_graph=True)
    for one, other in zip(first, torch.autograd.grad(net(inputs).square().sum(), asked), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(sum(g.square().sum() for g in first), net[0].weight)


@pytest.mark.parametrize(
    "frozen", [["0.weight"], ["0.bias"], ["0.weight", "0.bias", "2.weight"], ["5.weight"]]
)
def test_frozen_parameters_have_no_gradient_and_the_others_have(frozen):
    net = mlp()
    inputs = inputs_of(net, (6,))
    stepped(net, inputs)
    outputs, _ = stepped(net, inputs)
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    outputs, _ = stepped(net, inputs)
    outputs.square().sum().backward()
    found = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    net(inputs).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert (found[name] is None) == (parameter.grad is None) == (name in frozen)
        if name not in frozen:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_training_step_between_sequences_and_a_weight_in_the_place_of_another():
    net = mlp()
    inputs = inputs_of(net, (6,))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    state = None
    for _ in range(4):
        outputs, state = stepped(net, inputs, state)
        optimizer.zero_grad()
        outputs.square().sum().backward()
        optimizer.step()
        state = {key: tuple(t.detach() for t in each) for key, each in state.items()}
    net[0].weight.data = net[0].weight.data.clone() * 2
    net[2].weight = nn.Parameter(net[2].weight.detach() * 2)
    with torch.no_grad():
        net[5].bias.data.fill_(1.0)
    found, _ = stepped(net, inputs)
    wanted = Called(net)(inputs)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(gradients(net, found), gradients(net, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learning", [False, True])
def test_hooks_put_on_later_are_called(learning):
    net = mlp()
    inputs = inputs_of(net, (6,))
    seen = []
    with torch.set_grad_enabled(learning):
        wanted, _ = stepped(net, inputs)
        for layer in (net, *net):
            for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
                seen.clear()
                handle = register(lambda module, *_: seen.append(module))
                found, _ = stepped(net, inputs)
                handle.remove()
                assert seen == [layer] * len(inputs)
                assert torch.equal(found, wanted)
        seen.clear()
        handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
        stepped(net, inputs)
        handle.remove()
        assert {*net} <= {*seen}
        _, state = stepped(net, inputs)
        for layer in (net[0], net[1]):
            layer.forward = lambda inputs: inputs.new_full((*inputs.shape[:2], 20), 9.0)
            outputs, ended = hb.run(
                net,
                inputs[:1],
                {k: v for k, v in state.items() if k in ("3", "6")}
                | ({"1": state["1"]} if layer is net[0] else {}),
            )
            del layer.forward
            assert not torch.equal(outputs, wanted[:1])
            assert ("1" in ended) == (layer is net[0])
        cell = net[1].cell
        handle = cell.register_forward_hook(lambda module, *_: seen.append(module))
        seen.clear()
        found, _ = stepped(net, inputs)
        handle.remove()
        assert seen.count(cell) >= len(inputs)
        assert torch.equal(found, wanted)
    if learning:
        handle = net[2].register_full_backward_hook(lambda module, *_: seen.append(module))
        outputs, _ = stepped(net, inputs)
        seen.clear()
        outputs.sum().backward()
        handle.remove()
        assert seen == [net[2]] * len(inputs)


@pytest.mark.parametrize("learning", [False, True])
def test_what_changes_in_a_network_counts_at_the_next_step(learning):
    net, other = mlp(), None
    inputs = inputs_of(net, (6,))

    def check():
        nonlocal other
        found, _ = stepped(net, inputs)
        wanted, _ = stepped(Called(net), inputs)
        assert torch.equal(found, wanted)
        assert other is None or not torch.equal(found, other)
        other = found

    with torch.set_grad_enabled(learning):
        check()
        net[1].cell.threshold = 0.6
        check()
        net[3] = hb.LIF(tau=5.0, threshold=0.2)
        check()
        net[1].cell = hb.LIFCell(tau=1.5, threshold=0.1)
        check()
        net.append(nn.Linear(4, 4))
        check()
        last, before = net._modules.pop("6"), net._modules.pop("7")
        net._modules["7"], net._modules["6"] = before, last  # of the same names, in another order
        check()
        net.insert(1, nn.Dropout(0.5))
        net.eval()
        check()
        net.train()
        torch.manual_seed(0)
        found, _ = stepped(net, inputs)
        torch.manual_seed(0)
        assert torch.equal(found, stepped(Called(net), inputs)[0])
        net[0] = nn.LSTM(6, 20)
        with pytest.raises(ValueError, match="no recurrent layer of torch"):
            hb.run(net, inputs[:1])


def test_a_layer_in_two_places_has_a_state_for_each():
    torch.manual_seed(0)
    shared = hb.LIF(threshold=0.3)
    net = dyadic(nn.Sequential(nn.Linear(6, 6), shared, nn.Linear(6, 6), shared))
    inputs = inputs_of(net, (6,))
    found, state = stepped(net, inputs)
    assert [*state] == ["1", "1#1"]
    torch.testing.assert_close(found, net(inputs))


def test_states_that_do_not_fit_are_refused_and_others_are_taken():
    net = mlp()
    inputs = inputs_of(net, (6,))
    with torch.no_grad():
        _, state = stepped(net, inputs[:3])
        with pytest.raises(ValueError, match="no entry for layer '3'"):
            hb.run(net, inputs[:1], {key: value for key, value in state.items() if key != "3"})
        with pytest.raises(ValueError, match="not called: more"):
            hb.run(net, inputs[:1], {**state, "more": state["1"]})
        for wrong in (state["1"][:1], [state["1"][0], 0.0], (state["1"][0][:1], state["1"][1])):
            with pytest.raises((ValueError, TypeError), match="state"):
                hb.run(net, inputs[:1], {**state, "1": wrong})
        with pytest.raises(RuntimeError):
            hb.run(net, inputs[:1, :, :5], state)
        v, s = state["1"]
        wanted = hb.run(Called(net), inputs[3:4], {f"net.{k}": each for k, each in state.items()})[0]
        strided = v.T.contiguous().T
        for other in ([v, s], (v.double(), s), (strided, s), (torch._neg_view(-v), s)):
            assert torch.equal(hb.run(net, inputs[3:4], {**state, "1": other})[0], wanted)
        negated = torch._neg_view(-inputs[3:4])
        for x in (inputs[3:4].transpose(1, 2).contiguous().transpose(1, 2), negated):
            assert torch.equal(hb.run(net, x, state)[0], wanted)
        assert torch.equal(stepped(net, inputs[:, :1])[0], stepped(net, inputs)[0][:, :1])  # another batch


def test_a_step_writes_to_no_tensor_that_it_was_given():
    net = mlp()
    inputs = inputs_of(net, (6,))
    with torch.no_grad():
        _, state = stepped(net, inputs)
        kept = copy.deepcopy(state)
        outputs, ended = hb.run(net, inputs[:1], state)
        before = copy.deepcopy(ended)
        outputs.fill_(7)
        assert all(torch.equal(a, b) for key in state for a, b in zip(state[key], kept[key], strict=True))
        assert all(torch.equal(a, b) for key in ended for a, b in zip(ended[key], before[key], strict=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_steps_within_a_checkpoint_are_computed_again(use_reentrant):
    net = mlp()
    inputs = inputs_of(net, (6,)).requires_grad_()
    wanted = gradients(net, net(inputs), inputs)
    for _ in range(2):
        outputs = checkpoint(lambda x: stepped(net, x)[0], inputs, use_reentrant=use_reentrant)
        net.zero_grad()
        inputs.grad = None
        weights = torch.linspace(-1, 2, outputs.numel()).view(outputs.shape)
        (outputs * weights).sum().backward()
        for one, other in zip([inputs.grad, *(p.grad for p in net.parameters())], wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_under_autocast_linear_layers_are_called():
    net = mlp()
    inputs = inputs_of(net, (6,))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, _ = stepped(net, inputs)
        wanted, _ = stepped(Called(net), inputs)
    assert torch.equal(found, wanted)
    assert found.dtype == wanted.dtype


def test_a_network_that_was_run_is_copied_pickled_and_let_go():
    net = mlp()
    inputs = inputs_of(net, (6,))
    outputs, _ = stepped(net, inputs)
    wanted, _ = stepped(net, inputs)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.copy(net)):
        assert torch.equal(stepped(other, inputs)[0], wanted)
    outputs.sum().backward()
    gone = weakref.ref(net)
    del net, other, outputs, wanted, _
    gc.collect()
    assert gone() is None


def test_threads_step_one_network_each_with_its_own_state():
    net = mlp()
    inputs = [inputs_of(net, (6,), 30)[:, i : i + 1] for i in range(2)]
    wanted = [gradients(net, net(x)) for x in inputs]
    found = [None, None]

    def work(i):
        for _ in range(5):
            found[i] = gradients(net, stepped(net, inputs[i])[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
