"""The kernel that runs neurons over a sequence while a pair rule changes their weights.

Weights are stored as ``[inputs, outputs]``: an input spike adds one row to the neurons' input, and depression
changes the same row. Potentiation at a neuron's spike would change a column; instead it waits until the next
spike of each input, or the end, and is then applied to the row step by step. Each weight undergoes the same
changes in the same order.
"""

from hibana.learn.plasticity.cell_step import VECTOR, CellStep
from hibana.learn.plasticity.pairs import Pairs
from hibana.runtime.kernels import (
    BYTE,
    FLOAT,
    INT,
    LONG,
    Bytes,
    Code,
    Floats,
    Group,
    Ints,
    Launcher,
    Longs,
    Pointer,
    Value,
    kernel,
)

__all__ = ["BLOCK", "build_kernel"]

BLOCK = 2 * VECTOR
"""Outputs that are computed at once; a row of weights is padded to a multiple of it."""
NEVER = -1
"""Number of finished steps of a row whose input has no trace: it can't be potentiated."""


class Sizes(Group):
    """Sizes of a call."""

    steps: Value
    batch: Value
    inputs_count: Value
    outputs_count: Value
    stride: Value
    """Numbers of a row of weights, a multiple of BLOCK."""


class Rates(Group):
    """The numbers of a rule, as the bits of float32 numbers."""

    decay_pre: Value
    decay_post: Value
    a_plus: Value
    a_minus: Value
    lower: Value
    upper: Value


def build_kernel(neurons: CellStep, pairs: Pairs) -> Launcher:
    """The kernel for `neurons` and the form of `pairs`; the numbers of `pairs` are its arguments."""
    states = neurons.states

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
        parameters: Floats,
        constants: Floats,
        matrices: Floats,
        functions: Longs,
        status: Longs,
        sizes: Sizes,
        rates: Rates,
    ) -> None:
        """Runs all steps of a call: neurons, traces of their spikes, and changes of the weights.

        If an input is neither 0 nor 1, it sets `status` to 1 and changes nothing.
        """
        batch, ins, outs, stride = sizes.batch, sizes.inputs_count, sizes.outputs_count, sizes.stride
        decay_pre, decay_post = (x.to(INT).float_from_bits() for x in (rates.decay_pre, rates.decay_post))
        not_spikes = _has_other_than_spikes(code, inputs, sizes.steps * batch * ins)
        with code.when(not_spikes):
            status[0] = 1
        steps = not_spikes.select(0, sizes.steps)
        with code.scratch(
            (Floats, stride),
            (Floats, stride * neurons.scratch_rows),
            (Bytes, steps * batch * stride),
            (Ints, steps),
            (Ints, ins),
            (Ints, ins),
        ) as (current, scratch, spikes, any_spike, spiking, done):
            tensors: dict[str, Pointer] = {"parameters": parameters, "constants": constants}
            tensors |= {"matrices": matrices, "functions": functions, "scratch": scratch}
            with code.loop(0, ins) as i:
                done[i] = NEVER
                with code.loop(0, batch) as b, code.when(pre[i * batch + b].differs(0)):
                    done[i] = 0

            def apply_step(i: Value, step: Value, sent: Pointer | None) -> None:
                """Updates the weights and the trace of input `i` by a step.

                `sent` points to the input's spikes; None if it has none at this step.
                """
                trace, step_spikes = pre + i * batch, spikes + step * (batch * stride)
                with code.loop(0, batch) as b:
                    spike = code.constant(0, FLOAT) if sent is None else sent[b * ins]
                    trace[b] = _next_trace(pairs, trace[b], decay_pre, spike)
                row = code, pairs, weights + i * stride, trace, step_spikes, sent, post, sizes, rates
                if sent is not None:
                    _change_row(*row)
                else:
                    with code.when(any_spike[step].differs(0)):
                        _change_row(*row)

            def apply_steps_before(i: Value, stop: Value) -> None:
                """Updates the weights of input `i` by its steps up to `stop` since its last spike."""
                with code.when(done[i].differs(NEVER)), code.loop(done[i].to(LONG), stop) as step:
                    apply_step(i, step, None)

            with code.loop(0, steps) as t:
                sent, emitted = inputs + t * (batch * ins), outputs + t * (batch * outs)
                with code.loop(0, ins) as i:
                    spiking[i] = 0
                    with code.loop(0, batch) as b, code.when(sent[b * ins + i].differs(0)):
                        spiking[i] = 1
                    with code.when(spiking[i].differs(0)):
                        apply_steps_before(i, t)
                with code.loop(0, batch) as b:
                    _add_rows(code, current, weights, bias, sent + b * ins, ins, stride)
                    earlier = (emitted + (0 - batch * outs)).replace_if(t.equals(0), before)
                    rows = {"x": current, "emitted_before": earlier + b * outs}
                    for s, name in enumerate(states[:-1]):
                        rows[name] = states_at + (batch * s + b) * outs
                    rows[states[-1]] = emitted + b * outs
                    neurons.emit(code, rows, tensors, outs, stride)
                as_bytes = spikes + t * (batch * stride)
                any_spike[t] = _trace_neurons(code, pairs, emitted, as_bytes, post, sizes, decay_post)
                with code.loop(0, ins) as i, code.when(spiking[i].differs(0)):
                    apply_step(i, t, sent + i)
                    done[i] = (t + 1).to(INT)
            with code.loop(0, ins) as i:
                apply_steps_before(i, steps)

    return kernel(stdp)


def _next_trace(pairs: Pairs, trace: Value, decay: Value, spikes: Value) -> Value:
    """The trace after a step: decayed by the factor `decay`, and raised by `spikes` (0 or 1)."""
    decayed = trace * decay
    return (spikes > decayed).select(spikes, decayed) if pairs.nearest else decayed + spikes


def _next_weight(pairs: Pairs, weight: Value, plus: Value, minus: Value | None, rates: Rates) -> Value:
    """The weights after a step, from the sums of potentiating and (if any) depressing pairs."""
    lower, upper, a_plus, a_minus = (
        bits.to(INT).float_from_bits().spread(BLOCK)
        for bits in (rates.lower, rates.upper, rates.a_plus, rates.a_minus)
    )
    plus = plus * a_plus
    total = weight + (plus * (upper - weight) if pairs.soft else plus)
    if minus is not None:
        minus = minus * a_minus
        total = total - (minus * (weight - lower) if pairs.soft else minus)
    if pairs.bounds is None:
        return total
    total = (total < lower).select(lower, total)
    return (total > upper).select(upper, total)


def _change_row(
    code: Code,
    pairs: Pairs,
    row: Pointer,
    trace: Pointer,
    spikes: Pointer,
    sent: Pointer | None,
    post: Pointer,
    sizes: Sizes,
    rates: Rates,
) -> None:
    """Adds code that changes the weights of one input by one step.

    Args:
        code: the kernel under construction.
        pairs: the rule.
        row: the input's weights to all neurons, ``[stride]``.
        trace: the trace of the input's spikes, ``[batch]``.
        spikes: the neurons' spikes at the step as bytes, ``[batch, stride]``.
        sent: the input's spikes, one every ``sizes.inputs_count`` numbers; None if it does not spike.
        post: the traces of the neurons' spikes, ``[batch, stride]``.
        sizes: the sizes of the call.
        rates: the numbers of the rule.
    """
    with code.loop(0, sizes.outputs_count, BLOCK) as j:
        plus, minus = code.variable(0, FLOAT.of(BLOCK)), code.variable(0, FLOAT.of(BLOCK))
        with code.loop(0, sizes.batch) as b:
            has_spike = (spikes + (b * sizes.stride + j)).load(BLOCK).differs(0)
            plus.value = plus.value + has_spike.select(trace[b].spread(BLOCK), 0)
            if sent is not None:
                spike = sent[b * sizes.inputs_count].spread(BLOCK)
                minus.value = minus.value + spike * (post + (b * sizes.stride + j)).load(BLOCK)
        depression = None if sent is None else minus.value
        (row + j).store(_next_weight(pairs, (row + j).load(BLOCK), plus.value, depression, rates))


def _trace_neurons(
    code: Code, pairs: Pairs, emitted: Pointer, as_bytes: Pointer, post: Pointer, sizes: Sizes, decay: Value
) -> Value:
    """Adds code that updates the neurons' traces by the spikes of a step; returns 0 if no neuron spikes.

    `emitted` are the spikes as floats, ``[batch, outputs]``; the code also stores them in `as_bytes`. That
    array and the traces `post` are ``[batch, stride]``.
    """
    any_spike = code.variable(0, INT)
    with code.loop(0, sizes.batch) as b, code.loop(0, sizes.outputs_count, BLOCK) as j:
        mask = code.first_lanes((sizes.outputs_count - j).smaller(BLOCK), BLOCK)
        spikes = (emitted + (b * sizes.outputs_count + j)).load(BLOCK, mask)
        has_spike = spikes.differs(0)
        any_spike.value = any_spike.value | has_spike.word()
        (as_bytes + (b * sizes.stride + j)).store(has_spike.select(code.constant(1, BYTE.of(BLOCK)), 0))
        trace = post + (b * sizes.stride + j)
        trace.store(_next_trace(pairs, trace.load(BLOCK), decay.spread(BLOCK), spikes))
    return any_spike.value


def _add_rows(
    code: Code, current: Pointer, weights: Floats, bias: Floats, sent: Pointer, ins: Value, stride: Value
) -> None:
    """Adds code that sets `current`, ``[stride]``, to the bias plus the weights of inputs that spike."""
    for j, _ in code.vectors(stride, BLOCK):
        (current + j).store((bias + j).load(BLOCK))
    with code.loop(0, ins) as i, code.when(sent[i].differs(0)):
        for j, _ in code.vectors(stride, BLOCK):
            at = current + j
            at.store(at.load(BLOCK) + (weights + (i * stride + j)).load(BLOCK))


def _has_other_than_spikes(code: Code, inputs: Floats, count: Value) -> Value:
    """Whether any of `count` numbers is neither 0 nor 1."""
    flags, zeros = code.variable(0, BYTE.of(BLOCK)), code.constant(0, BYTE.of(BLOCK))
    for at, mask in code.vectors(count, BLOCK):
        x = (inputs + at).load(BLOCK, mask)
        is_other = x.differs(0) & x.differs(1)
        flags.value = flags.value | is_other.select(code.constant(1, BYTE.of(BLOCK)), 0)
    return flags.value.differs(zeros).word().differs(0)
