"""The kernel that runs neurons over a sequence while a pair rule changes their weights.

Weights are stored as ``[inputs, outputs]``: an input's spike adds one row to the neurons' input. After each
step, the rows of inputs that take part in a pair of spikes change.
"""

from hibana.learn.plasticity.cell_step import VECTOR, CellStep
from hibana.learn.plasticity.pairs import Pairs
from hibana.runtime.kernels import FLOAT, INT, Code, Floats, Launcher, Longs, Pointer, Value, kernel

__all__ = ["build_kernel"]

BLOCK = 2 * VECTOR
"""Outputs that are computed at once."""


def build_kernel(neurons: CellStep, pairs: Pairs) -> Launcher:
    """The kernel for `neurons` and the form of `pairs`; the numbers of `pairs` are its arguments."""
    states = neurons.step.states

    def stdp(
        code: Code,
        begin: Value,
        end: Value,
        *,
        inputs: Floats,
        outputs: Floats,
        weights: Floats,
        bias: Floats,
        states_at: Floats,
        before: Floats,
        pre: Floats,
        post: Floats,
        rates: Floats,
        parameters: Floats,
        constants: Floats,
        matrices: Floats,
        functions: Longs,
        steps: Value,
        batch: Value,
        ins: Value,
        outs: Value,
    ) -> None:
        """Runs all steps of a call: neurons, traces of spikes, and changes of the weights."""
        decay_pre, decay_post, *change_rates = [rates[i] for i in range(6)]
        with code.scratch((Floats, outs), (Floats, outs * neurons.scratch_rows)) as (current, scratch):
            tensors: dict[str, Pointer] = {"parameters": parameters, "constants": constants}
            tensors |= {"matrices": matrices, "functions": functions, "scratch": scratch}
            with code.loop(0, steps) as t:
                sent, emitted = inputs + t * (batch * ins), outputs + t * (batch * outs)
                with code.loop(0, batch) as b:
                    _add_rows(code, current, weights, bias, sent + b * ins, ins, outs)
                    earlier = (emitted + (0 - batch * outs)).replace_if(t.equals(0), before)
                    rows = {"x": current, "emitted_before": earlier + b * outs}
                    for s, name in enumerate(states[:-1]):
                        rows[name] = states_at + (batch * s + b) * outs
                    rows[states[-1]] = emitted + b * outs
                    neurons.emit(code, rows, tensors, outs, outs)
                _update_traces(code, pairs, pre, sent, batch * ins, decay_pre)
                any_spike = _update_traces(code, pairs, post, emitted, batch * outs, decay_post)
                with code.loop(0, ins) as i:
                    has_pair = code.variable(0)
                    with code.loop(0, batch) as b:
                        number = any_spike.select(pre[b * ins + i], sent[b * ins + i])
                        has_pair.value = number.differs(0).select(1, has_pair.value)
                    with code.when(has_pair.value.differs(0)):
                        _change_row(
                            code,
                            pairs,
                            weights + i * outs,
                            (pre + i, sent + i, ins),
                            (post, emitted, outs),
                            batch,
                            change_rates,
                        )

    return kernel(stdp)


def _add_rows(
    code: Code, current: Pointer, weights: Floats, bias: Floats, sent: Pointer, ins: Value, outs: Value
) -> None:
    """Adds code that sets `current`, ``[outputs]``, to the bias plus the weights of inputs that spike."""
    current.copy(bias, outs)
    with code.loop(0, ins) as i, code.when(sent[i].differs(0)):
        for j, mask in code.vectors(outs, BLOCK):
            total = (current + j).load(BLOCK, mask) + (weights + (i * outs + j)).load(BLOCK, mask)
            (current + j).store(total, mask)


def _update_traces(
    code: Code, pairs: Pairs, traces: Pointer, spikes: Pointer, count: Value, decay: Value
) -> Value:
    """Adds code that updates `traces` by the `spikes` of a step; returns whether there is a spike.

    Both are `count` numbers; a trace decays by the factor `decay`.
    """
    any_spike = code.variable(0, INT)
    for at, mask in code.vectors(count, BLOCK):
        spike = (spikes + at).load(BLOCK, mask)
        any_spike.value = any_spike.value | spike.differs(0).word()
        decayed = (traces + at).load(BLOCK, mask) * decay.spread(BLOCK)
        updated = (spike > decayed).select(spike, decayed) if pairs.nearest else decayed + spike
        (traces + at).store(updated, mask)
    return any_spike.value.differs(0)


def _change_row(
    code: Code,
    pairs: Pairs,
    row: Pointer,
    source: tuple[Pointer, Pointer, Value],
    targets: tuple[Pointer, Pointer, Value],
    batch: Value,
    rates: list[Value],
) -> None:
    """Adds code that changes the weights of one input, ``[outputs]``, by the pairs of a step.

    Args:
        code: the kernel under construction.
        pairs: the rule.
        row: the weights.
        source: the trace and the spike of the input, for the first sample, and the distance to the next.
        targets: the traces and the spikes of the neurons, ``[batch, outputs]``, and the number of outputs.
        batch: number of samples.
        rates: the rates of potentiation and depression, and the lower and the upper bound.
    """
    trace, sent, ins = source
    post, emitted, outs = targets
    a_plus, a_minus, lower, upper = [rate.spread(BLOCK) for rate in rates]
    for j, mask in code.vectors(outs, BLOCK):
        plus, minus = code.variable(0, FLOAT.of(BLOCK)), code.variable(0, FLOAT.of(BLOCK))
        with code.loop(0, batch) as b:
            has_spike = (emitted + (b * outs + j)).load(BLOCK, mask).differs(0)
            plus.value = plus.value + has_spike.select(trace[b * ins].spread(BLOCK), 0)
            post_traces = (post + (b * outs + j)).load(BLOCK, mask)
            minus.value = minus.value + sent[b * ins].spread(BLOCK) * post_traces
        weight = (row + j).load(BLOCK, mask)
        potentiation, depression = plus.value * a_plus, minus.value * a_minus
        if pairs.soft:
            potentiation, depression = potentiation * (upper - weight), depression * (weight - lower)
        total = weight + potentiation - depression
        if pairs.bounds is not None:
            total = (total < lower).select(lower, total)
            total = (total > upper).select(upper, total)
        (row + j).store(total, mask)
