"""The kernel that runs neurons over a sequence while a pair rule changes their weights.

Weights are stored as ``[inputs, outputs]``: an input's spike adds one row to the neurons' input. After each
step, the rows of inputs that take part in a pair of spikes change.
"""

from hibana.runtime.kernels import FLOAT, INT, LONG, Bytes, Code, Floats, Function, Pointer, Value, kernel

__all__ = ["run_steps"]

BLOCK = 32
"""Outputs that are computed at once."""


@kernel
def run_steps(
    code: Code,
    begin: Value,
    end: Value,
    *,
    inputs: Floats,
    outputs: Floats,
    weights: Floats,
    bias: Floats,
    currents: Floats,
    emitted: Floats,
    before: Floats,
    pre: Floats,
    post: Floats,
    rates: Floats,
    step_arguments: Bytes,
    step_address: Value,
    step_pieces: Value,
    steps: Value,
    batch: Value,
    ins: Value,
    outs: Value,
    soft: bool,
    nearest: bool,
) -> None:
    """Runs all steps of a call: neurons, traces of spikes, and changes of the weights.

    Args:
        code: the function under construction.
        begin: unused; a call has one work item.
        end: unused.
        inputs: spikes, ``[steps, batch, ins]``.
        outputs: the neurons' spikes, ``[steps, batch, outs]``.
        weights: ``[ins, outs]``, which change.
        bias: ``[outs]``.
        currents: memory for the neurons' input, ``[batch, outs]``.
        emitted: memory for the neurons' spikes at a step, ``[batch, outs]``.
        before: the spikes at the previous step, ``[batch, outs]``.
        pre: traces of the inputs' spikes, ``[batch, ins]``.
        post: traces of the neurons' spikes, ``[batch, outs]``.
        rates: the decays of both traces, the rates of potentiation and depression, and the two bounds.
        step_arguments: the arguments of the neurons' compiled step (``CpuKernels.bind_step``), which reads
            `currents` and `before`, updates the neurons' states, and writes `emitted`.
        step_address: the address of the compiled step.
        step_pieces: the number of its work items.
        steps: number of steps.
        batch: number of samples.
        ins: number of inputs.
        outs: number of neurons.
        soft: whether changes get smaller towards the bounds.
        nearest: whether only pairs of nearest spikes count.
    """
    decay_pre, decay_post, *change_rates = [rates[i] for i in range(6)]
    step = Function.at_address(Pointer.from_address(step_address), LONG, LONG, Bytes)
    with code.loop(0, steps) as t:
        sent, fired = inputs + t * (batch * ins), outputs + t * (batch * outs)
        with code.loop(0, batch) as b:
            _add_rows(code, currents + b * outs, weights, bias, sent + b * ins, ins, outs)
        step.do(code, code.constant(0), step_pieces, step_arguments)
        before.copy(emitted, batch * outs)
        fired.copy(emitted, batch * outs)
        _update_traces(code, nearest, pre, sent, batch * ins, decay_pre)
        any_spike = _update_traces(code, nearest, post, fired, batch * outs, decay_post)
        with code.loop(0, ins) as i:
            has_pair = code.variable(0)
            with code.loop(0, batch) as b:
                number = any_spike.select(pre[b * ins + i], sent[b * ins + i])
                has_pair.value = number.differs(0).select(1, has_pair.value)
            with code.when(has_pair.value.differs(0)):
                source, targets = (pre + i, sent + i, ins), (post, fired, outs)
                _change_row(code, weights + i * outs, source, targets, batch, change_rates, soft)


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
    code: Code, nearest: bool, traces: Pointer, spikes: Pointer, count: Value, decay: Value
) -> Value:
    """Adds code that updates `traces` by the `spikes` of a step; returns whether there is a spike.

    Both are `count` numbers; a trace decays by the factor `decay`. With `nearest`, a spike sets its trace to
    1 instead of adding 1.
    """
    any_spike = code.variable(0, INT)
    for at, mask in code.vectors(count, BLOCK):
        spike = (spikes + at).load(BLOCK, mask)
        any_spike.value = any_spike.value | spike.differs(0).word()
        decayed = (traces + at).load(BLOCK, mask) * decay.spread(BLOCK)
        updated = (spike > decayed).select(spike, decayed) if nearest else decayed + spike
        (traces + at).store(updated, mask)
    return any_spike.value.differs(0)


def _change_row(
    code: Code,
    row: Pointer,
    source: tuple[Pointer, Pointer, Value],
    targets: tuple[Pointer, Pointer, Value],
    batch: Value,
    rates: list[Value],
    soft: bool,
) -> None:
    """Adds code that changes the weights of one input, ``[outputs]``, by the pairs of a step.

    Args:
        code: the kernel under construction.
        row: the weights.
        source: the trace and the spike of the input, for the first sample, and the distance to the next.
        targets: the traces and the spikes of the neurons, ``[batch, outputs]``, and the number of outputs.
        batch: number of samples.
        rates: the rates of potentiation and depression, and the lower and the upper bound.
        soft: whether changes get smaller towards the bounds.
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
        if soft:
            potentiation, depression = potentiation * (upper - weight), depression * (weight - lower)
        total = weight + potentiation - depression
        total = (total < lower).select(lower, total)
        total = (total > upper).select(upper, total)
        (row + j).store(total, mask)
