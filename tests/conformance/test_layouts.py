"""Memory in any order of dimensions: the reference's values, and outputs with the strides of the input."""

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.compare import on_its_device, reference
from conformance.suite import each_backend
from hibana.compiler.memory_layout import expand_over_time

SHAPE = (5, 2, 3, 4, 6)


def _channels_last(*shape):
    values = 2 * torch.rand(shape)
    return values.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])


class PerChannel(hb.Cell):
    """IF with a learned threshold per channel and a learned leak per neuron."""

    def __init__(self):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor([0.5, 1.0, 1.5]).view(3, 1, 1))
        self.leak = nn.Parameter(torch.linspace(0.1, 0.9, 72).view(3, 4, 6))

    def forward(self, input_, v_previous, spikes_previous):
        v = self.leak * v_previous * (1 - spikes_previous) + input_
        return v, hb.surrogate.ATan()(v - self.threshold)


def _results(call, cell, inputs, state):
    inputs, state = inputs.detach().requires_grad_(), tuple(s.detach().requires_grad_() for s in state)
    outputs, last = call(cell, inputs, state)
    weights = torch.linspace(-1, 2, outputs.numel()).view(SHAPE).to(inputs)
    (outputs * weights).sum().add((last[0] * weights[0]).sum()).backward()
    gradients = [inputs.grad, *(s.grad for s in state), *(p.grad.clone() for p in cell.parameters())]
    cell.zero_grad()
    return outputs, last, gradients


@each_backend
@pytest.mark.parametrize("make", [PerChannel, hb.IFCell, hb.CubaLIFCell], ids=lambda m: m.__name__)
def test_channels_last(run, make):
    cell, (inputs,) = on_its_device(run, make(), _channels_last(*SHAPE))
    state = tuple(torch.rand(SHAPE[1:]).to(inputs) for _ in cell.state_names())
    outputs, last, gradients = _results(run, cell, inputs, state)
    expected, expected_last, expected_gradients = _results(reference, cell, inputs, state)
    assert torch.equal(outputs, expected)
    assert outputs.stride() == inputs.stride()
    for result, value in zip(last, expected_last, strict=True):
        assert torch.equal(result, value)
    for result, value in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        repeated, _ = run(cell, inputs, state)
    assert torch.equal(repeated, expected)
    assert repeated.stride() == inputs.stride()


@each_backend
def test_the_output_has_the_layers_node_and_may_be_changed_in_place(run):
    cell, (inputs,) = on_its_device(run, hb.IFCell(), _channels_last(*SHAPE))
    outputs, _ = run(cell, inputs.requires_grad_(), None)
    assert hasattr(outputs.grad_fn, "support")
    outputs.mul_(2).sum().backward()


@each_backend
def test_a_constant_current_in_channels_last(run):
    cell, (current,) = on_its_device(run, hb.IFCell(), _channels_last(1, *SHAPE[1:]))
    current.requires_grad_()
    spikes, _ = run(cell, current.expand(SHAPE), None)
    assert torch.equal(spikes, reference(cell, current.expand(SHAPE), None)[0])
    spikes.sum().backward()
    grad, current.grad = current.grad, None
    reference(cell, current.expand(SHAPE), None)[0].sum().backward()
    torch.testing.assert_close(grad, current.grad)


@each_backend
def test_an_expanded_step_keeps_its_memory_order(run):
    step = torch.rand(2, 8, 3, 5).contiguous(memory_format=torch.channels_last)
    cell, (step,) = on_its_device(run, hb.IFCell(surrogate=hb.surrogate.Box()), step)
    grads = []
    for call in (run, reference):
        leaf = step.detach().requires_grad_()
        inputs = expand_over_time(leaf, 6)
        assert torch.equal(inputs, leaf.expand(6, 2, 8, 3, 5))
        assert inputs.stride() == (0, *step.stride())
        outputs, _ = call(cell, inputs, None)
        weighted = outputs * torch.linspace(-1, 1, 6, device=outputs.device).view(6, 1, 1, 1, 1)
        weighted.sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_the_gradient_of_an_expanded_step_has_its_strides():
    step = torch.rand(2, 8, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    strides = []
    middle = step * 1
    middle.register_hook(lambda grad: strides.append(grad.stride()))
    spikes = hb.OverTime(hb.IFCell(detach_reset=True))(expand_over_time(middle, 6))
    spikes.sum().backward()
    assert strides == [step.stride()]


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x,
    "every other step": lambda x: x.repeat_interleave(2, 0)[::2],
    "samples and steps turned": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "one step for all": lambda x: x[:1].expand(SHAPE),
    "rows with gaps": lambda x: torch.cat([x, x], 4)[..., : SHAPE[-1]],
}


@each_backend
def test_one_cell_takes_layouts_in_turn(run):
    cell, (inputs,) = on_its_device(run, hb.IFCell(), _channels_last(*SHAPE))
    for name in (*LAYOUTS, *reversed(LAYOUTS), *LAYOUTS):
        results = []
        for call in (run, reference):
            x = LAYOUTS[name](inputs).detach().requires_grad_()
            outputs, _ = call(cell, x, None)
            outputs.mul(torch.linspace(-1, 2, outputs.numel()).view(SHAPE).to(x)).sum().backward()
            with torch.no_grad():
                without_grad, _ = call(cell, x, None)
            results.append([outputs.detach(), without_grad, x.grad])
        for result, expected in zip(*results, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6, msg=name)
