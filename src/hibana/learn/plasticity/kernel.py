"""The kernel that runs neurons over a sequence while a pair rule changes their weights.

Weights lie as ``[inputs, outputs]``: an input spike adds one row to the neurons, and depression changes the
same row. Potentiation at a neuron's spike would change a column; instead a row takes the potentiation of the
steps that it has missed when its input spikes next, or at the end. Each weight sees the same changes in the
same order.
"""

from dataclasses import dataclass

from hibana.learn.plasticity.neurons import VECTOR, NeuronStep, Numbers
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

__all__ = ["BLOCK", "build"]

BLOCK = 2 * VECTOR
"""Outputs that are computed at once; a row of weights is padded to a multiple of it."""
NEVER = -1
"""In place of the steps that a row has taken in: its input has not spiked."""


class Sizes(Group):
    """Sizes of a call."""

    steps: Value
    batch: Value
    inputs_count: Value
    outputs_count: Value
    stride: Value
    """Numbers of a row of weights, a multiple of BLOCK."""


class Change(Group):
    """The numbers of a rule: the bits of float32 numbers."""

    decay_pre: Value
    decay_post: Value
    a_plus: Value
    a_minus: Value
    lower: Value
    upper: Value


@dataclass(frozen=True)
class Rule:
    """How traces and weights change."""

    clipped: bool
    soft: bool
    nearest: bool

    def traced(self, trace: Value, decay: Value, spikes: Value) -> Value:
        """The trace after a step."""
        faded = trace * decay
        return (spikes > faded).select(spikes, faded) if self.nearest else faded + spikes

    def changed(self, weight: Value, plus: Value, minus: Value | None, numbers: Change) -> Value:
        """The weights after a step, from the two sums over pairs."""
        lower, upper, a_plus, a_minus = (
            bits.to(INT).float_from_bits().spread(BLOCK)
            for bits in (numbers.lower, numbers.upper, numbers.a_plus, numbers.a_minus)
        )
        plus = plus * a_plus
        total = weight + (plus * (upper - weight) if self.soft else plus)
        if minus is not None:
            minus = minus * a_minus
            total = total - (minus * (weight - lower) if self.soft else minus)
        if not self.clipped:
            return total
        total = (total < lower).select(lower, total)
        return (total > upper).select(upper, total)


def build(neurons: NeuronStep, *, clipped: bool, soft: bool, nearest: bool) -> Launcher:
    """The kernel for these neurons and this kind of rule."""
    rule, states = Rule(clipped, soft, nearest), neurons.states

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
        change: Change,
    ) -> None:
        batch, ins, outs, stride = sizes.batch, sizes.inputs_count, sizes.outputs_count, sizes.stride
        decay_pre, decay_post = (x.to(INT).float_from_bits() for x in (change.decay_pre, change.decay_post))
        wrong = _has_other_than_spikes(code, inputs, sizes.steps * batch * ins)
        with code.when(wrong):
            status[0] = 1
        steps = wrong.select(0, sizes.steps)
        with code.scratch(
            (Floats, stride),
            (Floats, stride * neurons.scratch),
            (Bytes, steps * batch * stride),
            (Ints, steps),
            (Ints, ins),
            (Ints, ins),
        ) as (current, scratch, spikes, any_spike, spiking, done):
            assert isinstance(scratch, Floats)
            at = Numbers(parameters, constants, matrices, functions, scratch)
            with code.loop(0, ins) as i:
                done[i] = NEVER
                with code.loop(0, batch) as b, code.when(pre[i * batch + b].differs(0)):
                    done[i] = 0

            def move(i: Value, step: Value, sent: Pointer | None) -> None:
                """Takes a step into row `i` and the traces of its input, which spiked if it has `sent`."""
                trace, fired = pre + i * batch, spikes + step * (batch * stride)
                with code.loop(0, batch) as b:
                    spike = code.constant(0, FLOAT) if sent is None else sent[b * ins]
                    trace[b] = rule.traced(trace[b], decay_pre, spike)
                given = code, rule, weights + i * stride, trace, fired, sent, post, sizes, change
                if sent is not None:
                    _change(*given)
                else:
                    with code.when(any_spike[step].differs(0)):
                        _change(*given)

            def take_missed(i: Value, until: Value) -> None:
                with code.when(done[i].differs(NEVER)), code.loop(done[i].to(LONG), until) as step:
                    move(i, step, None)

            with code.loop(0, steps) as t:
                sent, fired = inputs + t * (batch * ins), outputs + t * (batch * outs)
                with code.loop(0, ins) as i:
                    spiking[i] = 0
                    with code.loop(0, batch) as b, code.when(sent[b * ins + i].differs(0)):
                        spiking[i] = 1
                    with code.when(spiking[i].differs(0)):
                        take_missed(i, t)
                with code.loop(0, batch) as b:
                    _add_rows(code, current, weights, bias, sent + b * ins, ins, stride)
                    earlier = (fired + (0 - batch * outs)).replace_if(t.equals(0), before)
                    given = {"x": current, "emitted_before": earlier + b * outs}
                    for s, name in enumerate(states[:-1]):
                        given[name] = states_at + (batch * s + b) * outs
                    given[states[-1]] = fired + b * outs
                    neurons.emit(code, given, at, outs, stride)
                kept = spikes + t * (batch * stride)
                any_spike[t] = _trace_neurons(code, rule, fired, kept, post, sizes, decay_post)
                with code.loop(0, ins) as i, code.when(spiking[i].differs(0)):
                    move(i, t, sent + i)
                    done[i] = (t + 1).to(INT)
            with code.loop(0, ins) as i:
                take_missed(i, steps)

    return kernel(stdp)


def _change(
    code: Code,
    rule: Rule,
    row: Pointer,
    trace: Pointer,
    fired: Pointer,
    sent: Pointer | None,
    post: Pointer,
    sizes: Sizes,
    change: Change,
) -> None:
    """Changes a row of weights by a step: by the spikes of the neurons, and of its input if it has `sent`."""
    with code.loop(0, sizes.outputs_count, BLOCK) as j:
        plus, minus = code.variable(0, FLOAT.of(BLOCK)), code.variable(0, FLOAT.of(BLOCK))
        with code.loop(0, sizes.batch) as b:
            spikes = (fired + (b * sizes.stride + j)).load(BLOCK).differs(0)
            plus.value = plus.value + spikes.select(trace[b].spread(BLOCK), 0)
            if sent is not None:
                spike = sent[b * sizes.inputs_count].spread(BLOCK)
                minus.value = minus.value + spike * (post + (b * sizes.stride + j)).load(BLOCK)
        lost = None if sent is None else minus.value
        (row + j).store(rule.changed((row + j).load(BLOCK), plus.value, lost, change))


def _trace_neurons(
    code: Code, rule: Rule, fired: Pointer, kept: Pointer, post: Pointer, sizes: Sizes, decay: Value
) -> Value:
    """Takes the spikes of a step into the traces of the neurons, keeps them as bytes; 0 if there are none."""
    found = code.variable(0, INT)
    with code.loop(0, sizes.batch) as b, code.loop(0, sizes.outputs_count, BLOCK) as j:
        there = code.first_lanes((sizes.outputs_count - j).smaller(BLOCK), BLOCK)
        spikes = (fired + (b * sizes.outputs_count + j)).load(BLOCK, there)
        spiked = spikes.differs(0)
        found.value = found.value | spiked.word()
        (kept + (b * sizes.stride + j)).store(spiked.select(code.constant(1, BYTE.of(BLOCK)), 0))
        trace = post + (b * sizes.stride + j)
        trace.store(rule.traced(trace.load(BLOCK), decay.spread(BLOCK), spikes))
    return found.value


def _add_rows(
    code: Code, current: Pointer, weights: Floats, bias: Floats, sent: Pointer, ins: Value, stride: Value
) -> None:
    """Writes the bias and the rows of the inputs that spike, added up, to `current`."""
    for j, _ in code.vectors(stride, BLOCK):
        (current + j).store((bias + j).load(BLOCK))
    with code.loop(0, ins) as i, code.when(sent[i].differs(0)):
        for j, _ in code.vectors(stride, BLOCK):
            at = current + j
            at.store(at.load(BLOCK) + (weights + (i * stride + j)).load(BLOCK))


def _has_other_than_spikes(code: Code, inputs: Floats, count: Value) -> Value:
    """Whether any of `count` numbers is neither 0 nor 1."""
    found, none = code.variable(0, BYTE.of(BLOCK)), code.constant(0, BYTE.of(BLOCK))
    for at, there in code.vectors(count, BLOCK):
        x = (inputs + at).load(BLOCK, there)
        other = x.differs(0) & x.differs(1)
        found.value = found.value | other.select(code.constant(1, BYTE.of(BLOCK)), 0)
    return found.value.differs(none).word().differs(0)
