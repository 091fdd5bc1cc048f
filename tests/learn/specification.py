"""The rules of :mod:`hibana.learn` as a loop over steps in plain PyTorch: what the engine must compute.

Each neuron has a trace of each of its synapses and parameters, for each of its states, in full.
"""

import torch
from torch import Tensor
from torch.func import functional_call

import hibana as hb


def gradients(net, x, loss, rule):
    """The gradients of a layer's weights, recurrent weights and own parameters by D-RTRL, e-prop or PP-Prop.

    Args:
        net: a linear map, a layer of neurons, a linear map, and maybe a leaky readout; no biases.
        x: ``[T, batch, inputs]``.
        loss: from the number of a step and the output there.
        rule: the rule.

    Returns:
        By the name of the parameter in `net`.
    """
    layer, cell = net[1], net[1].cell
    leak = 1 - 1 / net[3].cell.tau if len(net) > 3 else 0.0
    recurrent = layer.recurrent.weight.detach() if isinstance(layer, hb.Recurrent) else None
    state = cell.initial_state(net[0](x[0]).detach())
    remembered = torch.zeros((), dtype=x.dtype)
    traces, found = {}, {}
    for t, inputs in enumerate(x):
        sent = {"0.weight": inputs}
        total = net[0](inputs).detach()
        if recurrent is not None:
            sent["1.recurrent.weight"] = state[-1]
            total = total + state[-1] @ recurrent.T
        after, by_input, by_state, by_parameter = jacobians(cell, total, state)
        if recurrent is not None and rule.keeps_self_synapse:
            by_state[:, -1] += by_input * recurrent.diagonal() * layer.gradient_scale
        emitted = after[-1].requires_grad_()
        outputs = net[2](emitted) + leak * remembered
        signal = torch.autograd.grad(loss(t, outputs), emitted)[0]
        for name, one in sent.items():
            scale = layer.gradient_scale if "recurrent" in name else 1.0
            move = rank_one if isinstance(rule, hb.learn.PPProp) else whole
            traces[name], of_emitted = move(traces.get(name), one, by_input, by_state, leak, rule)
            found[name] = found.get(name, 0) + scale * torch.einsum("bn,bnm->nm", signal, of_emitted)
        for name, direct in by_parameter.items():
            traces[name], of_emitted = moved(traces.get(name), direct[..., None], by_state, leak)
            grad = (signal * of_emitted[..., 0]).sum_to_size(cell.get_parameter(name).shape)
            found[f"1.cell.{name}"] = found.get(f"1.cell.{name}", 0) + grad
        state, remembered = tuple(one.detach() for one in after), outputs.detach()
    return found


def jacobians(cell, input_, state):
    """The states after a step, and derivatives of each, ``[states, batch, neurons]``: by the input, by the
    states before (second index), and by each parameter."""
    values = {name: p.detach().expand(input_.shape).clone() for name, p in cell.named_parameters()}
    leaves = [one.detach().clone().requires_grad_() for one in (input_, *state, *values.values())]
    count = 1 + len(state)
    given = dict(zip(values, leaves[count:], strict=True))
    after = functional_call(cell, given, tuple(leaves[:count]))
    rows = []
    for one in after:
        ones = torch.ones_like(one)
        grads = torch.autograd.grad(one + 0 * leaves[0], leaves, ones, retain_graph=True, allow_unused=True)
        rows.append(torch.stack([torch.zeros_like(one) if g is None else g for g in grads]))
    all_ = torch.stack(rows)
    by_parameter = {name: all_[:, count + i] for i, name in enumerate(values)}
    return [one.detach() for one in after], all_[:, 0], all_[:, 1:count].clone(), by_parameter


def moved(before, direct, by_state, leak, decay=1.0):
    """Traces ``[states, batch, neurons, n]`` and the memory of a readout after a step; and what is emitted.

    e_t = decay J e_(t-1) + direct,   z_t = decay leak z_(t-1) + e_t of the emitted state
    """
    if before is None:
        return (direct, direct[-1]), direct[-1]
    e, z = before
    e = decay * torch.einsum("ijbn,jbnm->ibnm", by_state, e) + direct
    z = decay * leak * z + e[-1]
    return (e, z), z


def whole(before, sent: Tensor, by_input, by_state, leak, _):
    """D-RTRL and e-prop: a trace of each synapse."""
    direct = by_input[..., None] * sent[:, None]
    return moved(before, direct, by_state, leak)


def rank_one(before, sent: Tensor, by_input, by_state, leak, rule):
    """PP-Prop: the product of a trace of the neuron and one of the input."""
    of_neuron, of_input = before or (None, torch.zeros_like(sent))
    direct = (1 - rule.decay) * by_input[..., None]
    of_neuron, emitted = moved(of_neuron, direct, by_state, leak, rule.decay)
    of_input = rule.decay * of_input + sent
    return (of_neuron, of_input), emitted * of_input[:, None]
