"""`run`: the state in threads, checkpoints, compiled graphs and nested runs."""

import contextvars
import sys
import threading

import pytest
import torch
from torch import nn
from torch.distributed._composable import checkpoint as composable
from torch.utils.checkpoint import checkpoint

import hibana as hb
from hibana.compiler import call_context


def network():
    """A network in which each layer spikes for inputs up to 4."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(3, 8), hb.LIF(tau=3.0, threshold=0.2), nn.Linear(8, 4), hb.PLIF(threshold=0.1), hb.LI()
    )


class Checkpointed(nn.Module):
    """`net` with a checkpoint around each pair of layers, and one around all of them, if `nested`."""

    def __init__(self, net, use_reentrant, nested=False):
        super().__init__()
        self.net, self.how, self.nested = net, {"use_reentrant": use_reentrant}, nested

    def forward(self, x):
        if self.nested:
            return checkpoint(self.parts, x, **self.how)
        return self.parts(x)

    def parts(self, x):
        for part in (self.net[:2], self.net[2:4], self.net[4:]):
            x = checkpoint(part, x, **self.how)
        return x


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the outer one
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_part_of_a_run_is_refused(use_reentrant, nested):
    with pytest.raises(RuntimeError, match=r"call hibana\.run within the checkpointed function"):
        hb.run(Checkpointed(network(), use_reentrant, nested), torch.rand(4, 2, 3, requires_grad=True))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_run_is_recomputed_from_its_initial_state(use_reentrant):
    net, x = network(), 4 * torch.rand(4, 2, 3)
    _, state = hb.run(net, 4 * torch.rand(5, 2, 3))
    state = {k: tuple(v.detach() for v in values) for k, values in state.items()}
    x = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(hb.run(net, x, state)[0].square().sum(), x)
    assert not torch.equal(expected, torch.autograd.grad(net(x).square().sum(), x)[0])
    outputs = checkpoint(lambda x: hb.run(net, x, state)[0], x, use_reentrant=use_reentrant)
    outputs.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_without_gradients_runs_as_a_plain_call(use_reentrant):
    net, x = network(), 4 * torch.rand(9, 2, 3)
    _, state = hb.run(net, x)
    renamed = {f"net.{name}": values for name, values in state.items()}
    with torch.no_grad():
        outputs, _ = hb.run(Checkpointed(net, use_reentrant), x, renamed)
    assert torch.equal(outputs, hb.run(net, x, state)[0])


def test_a_checkpoint_of_torch_distributed_is_refused():
    net = network()
    for part in net:
        composable(part)
    with pytest.raises(RuntimeError, match=r"call hibana\.run within the checkpointed function"):
        hb.run(net, torch.rand(4, 2, 3, requires_grad=True))


def test_unroll_within_recurrent_synapses_is_not_part_of_the_run():
    def averaged(net, x):
        return hb.unroll(hb.LICell(), x[None])[0][0]

    layer, x = hb.Recurrent(hb.IFCell(), 3, Calls(averaged)), torch.rand(6, 2, 3)
    assert torch.equal(hb.run(layer, x)[0], layer(x))


def test_no_run_is_active_after_a_run():
    hb.run(network(), torch.rand(4, 2, 3))
    assert not call_context.run_active


def test_a_run_that_ends_in_another_context_is_not_active():
    context = call_context.RunContext(object())
    contextvars.copy_context().run(context.__enter__)
    assert call_context.run_active
    with pytest.raises(ValueError, match="different Context"):
        context.__exit__()
    assert not call_context.run_active


def test_a_run_and_plain_calls_of_one_network_in_threads_are_independent():
    net, x, stop = network(), 4 * torch.rand(6, 2, 3), threading.Event()
    plain = net(x)
    _, state = hb.run(net, x)
    resumed, _ = hb.run(net, x, state)
    assert not torch.equal(resumed, plain)
    failures = []

    def running():
        while not stop.is_set():
            if not torch.equal(hb.run(net, x, state)[0], resumed):
                failures.append("a run")

    threads = [threading.Thread(target=running) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        failures.extend("a plain call" for _ in range(300) if not torch.equal(net(x), plain))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


class Inner(nn.Module):
    """A network that calls `run` for one of its parts."""

    def __init__(self):
        super().__init__()
        self.before, self.part, self.states = hb.LIF(tau=2.0), network(), []

    def forward(self, x):
        outputs, state = hb.run(self.part, self.before(x))
        self.states.append(state)
        return outputs


def test_a_nested_run_carries_a_separate_state():
    net, x = Inner(), torch.rand(6, 2, 3)
    outputs, state = hb.run(net, x)
    assert state.keys() == {"before"}
    assert net.states[0].keys() == {"1", "3", "4"}
    assert torch.equal(outputs, net(x))


class Direct(nn.Module):
    """Calls ``forward`` of its layer and requests the state."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = hb.LIF(tau=3.0, threshold=0.2), None

    def forward(self, x):
        outputs, self.last = self.layer.forward(x, return_state=True)
        return outputs


def test_run_continues_a_layer_whose_forward_is_called_directly():
    net, x = Direct(), torch.rand(8, 2, 3)
    full, ended = hb.run(net, x)
    _, state = hb.run(net, x[:3])
    rest, last = hb.run(net, x[3:], state)
    assert torch.equal(rest, full[3:])
    assert last.keys() == {"layer"}
    assert all(torch.equal(a, b) for a, b in zip(last["layer"], ended["layer"], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(last["layer"], net.last, strict=True))


class Calls(nn.Module):
    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Calls(lambda net, x: hb.unroll(net.cell, x)[0], cell=hb.IFCell()), "hibana.OverTime"),
        (Calls(lambda net, x: hb.record(net.cell, x)["v"], cell=hb.IFCell()), "hibana.OverTime"),
        (nn.Sequential(nn.GRU(3, 3)), "'0', GRU, would be lost"),
        (nn.LSTMCell(3, 3), "'net', LSTMCell, would be lost"),
        (Calls(lambda net, x: net.hidden[0](x), hidden=(hb.IF(),)), "no module of the network"),
        (
            Calls(lambda net, x: net.layer(x, (x[0], x[0])), layer=hb.IF()),
            "'layer' was given a state within hibana.run",
        ),
    ],
)
def test_states_that_a_run_would_lose_are_refused(net, message):
    x = torch.rand(4, 2, 3)
    with pytest.raises(ValueError, match=message):
        hb.run(net, x)
    assert hb.IF()(x).shape == x.shape  # the failed run has ended


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch reads .grad
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # Dynamo does, of Function
def test_a_run_of_a_compiled_network_continues_from_its_state():
    net, x = network(), 4 * torch.rand(8, 2, 3)
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(compiled(x), net(x))
    full, _ = hb.run(net, x)
    _, state = hb.run(compiled, x[:3])
    rest, _ = hb.run(compiled, x[3:], state)
    torch.testing.assert_close(rest, full[3:])
    assert torch.equal(compiled(x), net(x))


@pytest.mark.parametrize("layer", [hb.LIF(), hb.LI(), hb.Recurrent(hb.LIFCell(), 4)], ids=repr)
def test_the_error_of_a_second_backward_says_to_detach_the_state(layer):
    net = nn.Sequential(nn.Linear(3, 4), layer)
    outputs, state = hb.run(net, torch.rand(5, 2, 3))
    outputs.sum().backward()
    outputs, state = hb.run(net, torch.rand(5, 2, 3), state)
    with pytest.raises(RuntimeError, match=r"(?s)graph a second time.*detach it between the calls"):
        outputs.sum().backward()
    state = {name: tuple(part.detach() for part in parts) for name, parts in state.items()}
    hb.run(net, torch.rand(5, 2, 3), state)[0].sum().backward()


def test_modules_of_single_steps_refuse_layers_over_time():
    for make in (hb.EachStep, lambda inner: hb.Recurrent(hb.IFCell(), 3, inner)):
        for layer in (hb.IF(), hb.Recurrent(hb.IFCell(), 3)):
            with pytest.raises(ValueError, match=f"'1' is {type(layer).__name__}"):
                make(nn.Sequential(nn.Linear(3, 3), layer))
            with pytest.raises(ValueError, match="is IF"):
                make(hb.IF())


def test_inputs_without_a_time_axis_are_refused():
    for layer in (hb.IF(), hb.LI()):
        for call in (
            layer,
            lambda x, one=layer: one(x, return_state=True),
            lambda x, one=layer: hb.run(one, x),
        ):
            with pytest.raises(ValueError, match=r"time first, got shape \(5,\)"):
                call(torch.rand(5))
    with pytest.raises(ValueError, match=r"one step of the input, \[\], got shape \[5\]"):
        hb.unroll(hb.IFCell(torch.ones(5)), torch.rand(5))
    with pytest.raises(ValueError, match=r"one step of the input, \[5\], got shape \[4, 1\]"):
        hb.IF(torch.ones(4, 1))(torch.rand(4, 5))

    class Own(hb.Cell):
        def forward(self, input_, v_previous, s_previous):
            v = v_previous * (1 - s_previous) + input_
            return v, hb.spike(v - torch.ones(5))

    with pytest.raises(ValueError, match=r"got shape \(5,\): of a step of \(\) Own makes \(5,\)"):
        hb.unroll(Own(), torch.rand(5), backend="reference")


@pytest.mark.parametrize("cell", [hb.IF, hb.CubaLIF, hb.PLIF])
def test_single_steps_equal_one_call_over_all_steps(cell):
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(4, 6), cell()), torch.rand(9, 2, 4) * 3
    net[0].weight.data.abs_()
    full = net(inputs)
    assert 0 < full.mean() < 1
    outputs, state = hb.run(net, inputs[:1])
    steps = [outputs]
    for x in inputs[1:]:
        outputs, state = hb.run(net, x[None], state)
        steps.append(outputs)
    assert torch.equal(torch.cat(steps), full)
    weights = torch.rand_like(full)
    for full_grad, step_grad in zip(
        torch.autograd.grad((full * weights).sum(), [*net.parameters()]),
        torch.autograd.grad((torch.cat(steps) * weights).sum(), [*net.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(full_grad, step_grad)


def test_a_state_of_another_form_is_checked():
    layer, x = hb.LIF(), torch.rand(1, 2, 4)
    _, state = hb.run(layer, x)
    expected, ended = hb.run(layer, x, state)
    v, s = state[""]
    wide = torch.stack([v, s], -1)
    for same in (
        [v, s],
        (v.double(), s),
        (wide[..., 0], wide[..., 1]),
        (torch._neg_view(-v), s),
        (nn.Parameter(v), s),
    ):
        outputs, last = hb.run(layer, x, {"": same})
        assert torch.equal(outputs, expected)
        assert all(map(torch.equal, last[""], ended[""]))
    for wrong, message in (
        ((v[:1], s), r"state v must have the shape of one step of inputs, \(2, 4\), got \(1, 4\)"),
        ((v,), r"state must be the tensors \(v, s\) of LIFCell, got 1 tensors"),
        ((v, s.bool()), "state s must be floating point"),
        ((v, None), "state s must be a tensor, got NoneType"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            hb.run(layer, x, {"": wrong})
    ended[""][1].zero_()  # shares no memory with the outputs
    assert torch.equal(hb.run(layer, x, state)[0], expected)
    layer.cell.threshold = 1e-3
    assert hb.run(layer, x, state)[0].all()


def steps_of(net, inputs):
    """The outputs of `net` for each of `inputs`, one step per call, and the last state."""
    state, steps = None, []
    for x in inputs:
        outputs, state = hb.run(net, x[None], state)
        steps.append(outputs)
    return torch.cat(steps), state


@pytest.mark.parametrize("learning", [False, True])
def test_hooks_that_are_registered_between_single_steps_are_called(learning):
    net, inputs, calls = network(), 4 * torch.rand(6, 2, 3), []

    def hook(module, *arguments):
        calls.append(module)

    with torch.set_grad_enabled(learning):
        expected, _ = steps_of(net, inputs)
        for module in (net, *net):
            for register in (module.register_forward_hook, module.register_forward_pre_hook):
                calls.clear()
                handle = register(hook)
                outputs, _ = steps_of(net, inputs)
                handle.remove()
                assert calls == [module] * len(inputs)
                assert torch.equal(outputs, expected)
        calls.clear()
        handle = net[1].cell.register_forward_hook(hook)
        outputs, _ = steps_of(net, inputs)
        handle.remove()
        assert calls.count(net[1].cell) >= len(inputs)
        torch.testing.assert_close(outputs, expected)
    if learning:
        calls.clear()
        handle = net[2].register_full_backward_hook(hook)
        steps_of(net, inputs)[0].sum().backward()
        handle.remove()
        assert calls == [net[2]] * len(inputs)


def test_a_forward_that_replaces_a_layers_own_between_single_steps_is_called():
    net, inputs = network(), 4 * torch.rand(1, 2, 3)
    expected, state = hb.run(net, inputs)
    net[0].forward = lambda inputs: inputs.new_full((*inputs.shape[:2], 8), -9.0)
    assert not torch.equal(hb.run(net, inputs, state)[0], hb.run(network(), inputs, state)[0])
    del net[0].forward
    assert torch.equal(hb.run(net, inputs)[0], expected)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("cell", [hb.IF, hb.CubaLIF, hb.LI])
def test_repeated_calls_with_a_state_have_the_gradients_of_the_reference(cell, learns, steps):
    torch.manual_seed(1)
    x, weights = 2 * torch.rand(steps, 2, 5), torch.rand(steps, 2, 5)
    state = tuple(torch.rand(2, 5) for _ in cell().cell.state_names())
    states = (state, *(tuple(torch.rand(5, 2).T for _ in state) for _ in range(2)))
    layers = cell(), cell(backend="reference")
    for initial in (*states[:1] * 3, *states):  # the first call prepares the others; some states are strided
        results = []
        for layer in layers:
            inputs = x.clone().requires_grad_(learns[0])
            first = tuple(t.detach().clone().requires_grad_(learns[1]) for t in initial)
            outputs, last = hb.run(layer, inputs, {"": first})
            sources = [*[inputs] * learns[0], *first * learns[1]]
            for loss in (
                (outputs * weights).sum() + sum(t.square().sum() for t in last[""]),
                last[""][-1].sum(),
                outputs.sum(),
            ):
                gradients = torch.autograd.grad(loss, sources, retain_graph=True, allow_unused=True)
                zeros = [torch.zeros_like(t) for t in sources]
                results += [z if g is None else g for g, z in zip(gradients, zeros, strict=True)]
            results += [outputs, *last[""]]
        half = len(results) // 2
        for actual, expected in zip(results[:half], results[half:], strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("learns", [False, True])
def test_a_step_from_a_state_repeats_a_prepared_call(learns):
    net = nn.Sequential(nn.Linear(8, 6), hb.LIF(), nn.Linear(6, 6), hb.LIF(), nn.Linear(6, 2), hb.LIF())
    calls = 0

    def count(_frame, event, _function):
        nonlocal calls
        calls += event in ("call", "c_call")

    with torch.set_grad_enabled(learns):
        _, state = hb.run(net, torch.rand(1, 1, 8))
        for _ in range(3):
            _, state = hb.run(net, torch.rand(1, 1, 8), state)
        x = torch.rand(1, 1, 8)
        sys.setprofile(count)
        hb.run(net, x, state)
        sys.setprofile(None)
    assert calls < 450, calls  # more than 540 where each call prepares its kernels
