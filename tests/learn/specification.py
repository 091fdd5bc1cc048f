"""The rules of :mod:`hibana.learn` as a loop over steps in plain PyTorch: the reference for the engine.

Each neuron stores one trace for each pair of a synapse (or parameter) and a state, without approximation.
"""

import torch
from torch import Tensor
from torch.func import functional_call

import hibana as hb


def gradients(net, x, loss, rule):
    """The gradients of a layer's weights, recurrent weights and cell parameters by D-RTRL, e-prop or PP-Prop.

    Args:
        net: a linear map, a layer of neurons, a linear map, and optionally a leaky readout; no biases.
        x: ``[T, batch, inputs]``.
        loss: a function of the step's index and the output ``[batch, outputs]``.
        rule: the rule.

    Returns:
        The gradients by the parameter's name in `net`.
    """
    layer, cell = net[1], net[1].cell
    leak = 1 - 1 / net[3].cell.tau if len(net) > 3 else 0.0
    recurrent = layer.recurrent.weight.detach() if isinstance(layer, hb.Recurrent) else None
    state = cell.initial_state(net[0](x[0]).detach())
    readout = torch.zeros((), dtype=x.dtype)
    traces, grads = {}, {}
    for t, inputs in enumerate(x):
        presynaptic = {"0.weight": inputs}
        total = net[0](inputs).detach()
        if recurrent is not None:
            presynaptic["1.recurrent.weight"] = state[-1]
            total = total + state[-1] @ recurrent.T
        after, by_input, by_state, by_parameter = jacobians(cell, total, state)
        if recurrent is not None and rule.keeps_self_synapse:
            by_state[:, -1] += by_input * recurrent.diagonal() * layer.gradient_scale
        emitted = after[-1].requires_grad_()
        outputs = net[2](emitted) + leak * readout
        signal = torch.autograd.grad(loss(t, outputs), emitted)[0]
        for name, activity in presynaptic.items():
            scale = layer.gradient_scale if "recurrent" in name else 1.0
            advance = rank_one if isinstance(rule, hb.learn.PPProp) else full_rank
            traces[name], trace = advance(traces.get(name), activity, by_input, by_state, leak, rule)
            grads[name] = grads.get(name, 0) + scale * torch.einsum("bn,bnm->nm", signal, trace)
        for name, direct in by_parameter.items():
            traces[name], trace = next_traces(traces.get(name), direct[..., None], by_state, leak)
            grad = (signal * trace[..., 0]).sum_to_size(cell.get_parameter(name).shape)
            grads[f"1.cell.{name}"] = grads.get(f"1.cell.{name}", 0) + grad
        state, readout = tuple(tensor.detach() for tensor in after), outputs.detach()
    return grads


def jacobians(cell, input_, state):
    """The states after a step, and the derivatives of each, ``[states, batch, neurons]``: by the input, by
    previous states (second index), and by each parameter (a dictionary)."""
    values = {name: p.detach().expand(input_.shape).clone() for name, p in cell.named_parameters()}
    leaves = [x.detach().clone().requires_grad_() for x in (input_, *state, *values.values())]
    count = 1 + len(state)
    parameters = dict(zip(values, leaves[count:], strict=True))
    after = functional_call(cell, parameters, tuple(leaves[:count]))
    rows = []
    for x in after:
        ones = torch.ones_like(x)
        grads = torch.autograd.grad(x + 0 * leaves[0], leaves, ones, retain_graph=True, allow_unused=True)
        rows.append(torch.stack([torch.zeros_like(x) if g is None else g for g in grads]))
    derivatives = torch.stack(rows)
    by_parameter = {name: derivatives[:, count + i] for i, name in enumerate(values)}
    after = [x.detach() for x in after]
    return after, derivatives[:, 0], derivatives[:, 1:count].clone(), by_parameter


def next_traces(before, direct, by_state, leak, decay=1.0):
    """Traces e ``[states, batch, neurons, n]`` and z (filtered by the readout) after a step, as ((e, z), z).

    e_t = decay J e_(t-1) + direct,   z_t = decay leak z_(t-1) + e_t[last state]
    """
    if before is None:
        return (direct, direct[-1]), direct[-1]
    e, z = before
    e = decay * torch.einsum("ijbn,jbnm->ibnm", by_state, e) + direct
    z = decay * leak * z + e[-1]
    return (e, z), z


def full_rank(before, activity: Tensor, by_input, by_state, leak, _):
    """D-RTRL and e-prop: one trace for each synapse."""
    direct = by_input[..., None] * activity[:, None]
    return next_traces(before, direct, by_state, leak)


def rank_one(before, activity: Tensor, by_input, by_state, leak, rule):
    """PP-Prop: the product of a trace for each neuron and a trace for each input."""
    neuron_traces, input_trace = before or (None, torch.zeros_like(activity))
    direct = (1 - rule.decay) * by_input[..., None]
    neuron_traces, filtered = next_traces(neuron_traces, direct, by_state, leak, rule.decay)
    input_trace = rule.decay * input_trace + activity
    return (neuron_traces, input_trace), filtered * input_trace[:, None]
