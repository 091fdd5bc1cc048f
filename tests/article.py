"""The unchanged code of the article, as a reference."""

import torch


class Heaviside(torch.autograd.Function):
    def forward(ctx, input_):
        out = (input_ > 0).float()
        ctx.save_for_backward(out.bool())
        return out

    def backward(ctx, grad_output):
        (out,) = ctx.saved_tensors
        grad = grad_output * out
        return grad


class IF(torch.nn.Module):
    def __init__(self, threshold=1):
        super().__init__()

        self.threshold = threshold

    def forward(self, input_, v_previous, s_previous):
        x = v_previous * (1 - s_previous) + input_
        spikes = Heaviside.apply(x - self.threshold)
        return x, spikes


def over_time(inputs, threshold=1, detach_reset=False):
    """Potentials and spikes, each ``[T, ...]``, of the article's neuron from rest."""
    neuron = IF(threshold)
    v = s = torch.zeros_like(inputs[0])
    potentials, spikes = [], []
    for input_ in inputs:
        v, s = neuron(input_, v, s.detach() if detach_reset else s)
        potentials.append(v)
        spikes.append(s)
    return torch.stack(potentials), torch.stack(spikes)


DEMO_1 = """\
vt = tensor([0.0000, 0.0500, 0.1000, 0.1500, 0.2000, 0.2500, 0.3000, 0.3500, 0.4000,
        0.4500, 0.5000, 0.5500, 0.6000, 0.6500, 0.7000, 0.7500, 0.8000, 0.8500,
        0.9000, 0.9500, 1.0000, 1.0500, 1.1000, 1.1500, 1.2000, 1.2500, 1.3000,
        1.3500, 1.4000, 1.4500, 1.5000, 1.5500, 1.6000, 1.6500, 1.7000, 1.7500,
        1.8000, 1.8500, 1.9000, 1.9500], requires_grad=True)
o = tensor([0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.,
        0., 0., 0., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.,
        1., 1., 1., 1.], grad_fn=<HeavisideBackward>)
vt.grad = None
backwardした
vt.grad = tensor([0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.,
        0., 0., 0., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.,
        1., 1., 1., 1.])
"""
