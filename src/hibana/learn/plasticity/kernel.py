"""The kernel that runs neurons over a sequence while a pair rule changes their weights.

Weights lie as ``[inputs, outputs]``: what an input spike adds to the neurons is one row, which depression
changes as well. Potentiation at a neuron's spike would change a column; instead the spikes of the neurons are
kept, as bits of a block of neurons at a step (an *event*), and a row takes those that it has missed when its
input spikes next, or at the end of a chunk of steps. Each weight sees the same changes in the same order.
"""

from hibana.learn.plasticity.neurons import NeuronStep, Numbers
from hibana.learn.plasticity.rows import (
    BLOCK,
    GROUP,
    Events,
    Rule,
    RuleNumbers,
    catch_up_of,
    spiked_of,
)
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
    Variable,
    kernel,
)

__all__ = ["build"]


class Sizes(Group):
    """Sizes of a call."""

    steps: Value
    batch: Value
    groups: Value
    """Groups of samples; an input has a trace for each of their samples, also those beyond the batch."""
    inputs_count: Value
    outputs_count: Value
    stride: Value
    """Numbers of a row of weights, a multiple of BLOCK."""
    chunk: Value
    """Steps after which all rows take what they have missed."""


class Change(Group):
    """The numbers of a rule: the bits of float32 numbers."""

    decay_pre: Value
    decay_post: Value
    a_plus: Value
    a_minus: Value
    lower: Value
    upper: Value


def build(neurons: NeuronStep, *, clipped: bool, soft: bool, nearest: bool) -> Launcher:
    """The kernel for these neurons and this kind of rule."""
    rule = Rule(clipped, soft, nearest)
    catch_up, spiked = catch_up_of(rule), spiked_of(rule)
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
        change: Change,
    ) -> None:
        batch, ins, outs, stride = sizes.batch, sizes.inputs_count, sizes.outputs_count, sizes.stride
        tiles, chunk, groups = (outs + (BLOCK - 1)) // BLOCK, sizes.chunk, sizes.groups
        traces = groups * GROUP
        numbers = RuleNumbers(*[getattr(change, name).to(INT).number() for name in RuleNumbers.NAMES])
        wrong = _others_than_spikes(code, inputs, sizes.steps * batch * ins)
        with code.when(wrong):
            status[0] = 1
        steps = wrong.select(0, sizes.steps)
        with code.scratch(
            (Floats, stride),
            (Floats, stride),
            (Floats, stride),
            (Floats, stride * neurons.scratch),
            (Floats, chunk * groups * 2**GROUP),
            (Bytes, chunk * tiles * groups * BLOCK),
            (Ints, chunk * tiles),
            (Ints, chunk * tiles),
            (Longs, chunk + 1),
            (Ints, batch * ins),
            (Longs, batch),
            (Ints, ins + 1),
            (Ints, ins),
            (Ints, ins),
            (Ints, ins),
        ) as (current, plus, minus, scratch, table, bits, tile_of, step_of, first, lists, counts, *of_inputs):
            rows, seen, alive, done = of_inputs
            assert isinstance(scratch, Floats)
            at = Numbers(parameters, constants, matrices, functions, scratch)
            events = Events(tile_of, step_of, bits, first, table)  # type: ignore[arg-type] # as they were asked for
            plus.clear(stride)
            seen.clear(ins)
            with code.loop(0, ins) as i:
                alive[i] = 0
                with code.loop(0, batch) as b, code.when(pre[i * traces + b].differs(0)):
                    alive[i] = 1

            def take_missed(i: Value, until: Value) -> None:
                with code.when(alive[i].differs(0)):
                    given = (weights + i * stride, pre + i * traces, *events.all)
                    catch_up.do(code, *given, done[i].to(LONG), until, groups, *numbers.all)

            with code.loop(0, steps, chunk) as top:
                length = (steps - top).smaller(chunk)
                done.clear(ins)
                first[0] = 0
                count = code.variable(0)
                with code.loop(0, length) as step:
                    t = top + step
                    sent, fired = inputs + t * (batch * ins), outputs + t * (batch * outs)
                    spiking = _listed(code, sent, batch, ins, t, lists, counts, rows, seen)
                    with code.loop(0, spiking) as k:
                        i = rows[k].to(LONG)
                        take_missed(i, step)
                    with code.loop(0, batch) as b:
                        _summed(code, current, weights, bias, lists + b * ins, counts[b], stride)
                        earlier = (fired + (0 - batch * outs)).instead(t.equals(0), before)
                        given = {"x": current, "emitted_before": earlier + b * outs}
                        for s, name in enumerate(states[:-1]):
                            given[name] = states_at + (batch * s + b) * outs
                        given[states[-1]] = fired + b * outs
                        neurons.emit(code, given, at, outs, stride)
                    _keep_events(code, rule, fired, post, events, count, step, sizes, numbers)
                    first[step + 1] = count.value
                    with code.loop(0, spiking) as k:
                        i = rows[k].to(LONG)
                        given_row = (weights + i * stride, pre + i * traces, sent + i, post, plus, minus)
                        counts_of = (step, batch, groups, ins, stride)
                        spiked.do(code, *given_row, *events.all, *counts_of, *numbers.all)
                        alive[i] = 1
                        done[i] = (step + 1).to(INT)
                with code.loop(0, ins) as i:
                    take_missed(i, length)

    return kernel(stdp)


def _keep_events(
    code: Code,
    rule: Rule,
    fired: Floats,
    post: Floats,
    events: Events,
    count: Variable,
    step: Value,
    sizes: Sizes,
    numbers: RuleNumbers,
) -> None:
    """Appends the events of a step, and takes its spikes into the traces of the neurons."""
    decay = numbers.decay_post.spread(BLOCK)
    batch, outs, stride = sizes.batch, sizes.outputs_count, sizes.stride
    with code.loop(0, outs, BLOCK) as j:
        there = code.first((outs - j).smaller(BLOCK), BLOCK)
        place, any_spike = count.value, code.variable(0, INT)
        with code.loop(0, sizes.groups) as group:
            bits, begin = code.variable(0, BYTE.of(BLOCK)), group * GROUP
            with code.loop(begin, batch.smaller(begin + GROUP)) as b:
                spikes = (fired + (b * outs + j)).load(BLOCK, there)
                spiked = spikes.differs(0)
                bit = (code.constant(1, BYTE) << (b - begin).to(BYTE)).spread(BLOCK)
                bits.value = bits.value | spiked.select(bit, 0)
                any_spike.value = any_spike.value | spiked.word()
                trace = post + (b * stride + j)
                trace.store(rule.traced(trace.load(BLOCK) * decay, spikes))
            (events.bits + (place * sizes.groups + group) * BLOCK).store(bits.value)
        events.tiles[place] = (j // BLOCK).to(INT)
        events.at_step[place] = step.to(INT)
        count.value = place + any_spike.value.differs(0).select(code.constant(1), 0)


def _listed(
    code: Code,
    sent: Floats,
    batch: Value,
    ins: Value,
    t: Value,
    lists: Pointer,
    counts: Pointer,
    rows: Pointer,
    seen: Pointer,
) -> Value:
    """Lists the inputs that spike in each sample, and in `rows` those that do in any; how many these are."""
    found, mark = code.variable(0), (t + 1).to(INT)
    with code.loop(0, batch) as b:
        own = code.variable(0)
        for j, there in code.vectors(ins, BLOCK):
            word = (sent + (b * ins + j)).load(BLOCK, there).differs(0).word().to(LONG)
            with code.each_bit(word) as bit:
                i = j + bit
                lists[b * ins + own.value] = i.to(INT)
                own.value = own.value + 1
                rows[found.value] = i.to(INT)
                found.value = found.value + seen[i].differs(mark).select(code.constant(1), 0)
                seen[i] = mark
        counts[b] = own.value
    return found.value


def _summed(
    code: Code,
    target: Pointer,
    weights: Floats,
    bias: Floats,
    listed: Pointer,
    count: Value,
    stride: Value,
) -> None:
    """``target = bias`` and the rows of the inputs that spike."""
    with code.loop(0, stride, BLOCK) as j:
        total = code.variable(0, FLOAT.of(BLOCK))
        total.value = (bias + j).load(BLOCK)
        with code.loop(0, count) as k:
            total.value = total.value + (weights + (listed[k].to(LONG) * stride + j)).load(BLOCK)
        (target + j).store(total.value)


def _others_than_spikes(code: Code, inputs: Floats, count: Value) -> Value:
    """Whether any of `count` numbers is neither 0 nor 1."""
    found, none = code.variable(0, BYTE.of(BLOCK)), code.constant(0, BYTE.of(BLOCK))
    for at, there in code.vectors(count, BLOCK):
        x = (inputs + at).load(BLOCK, there)
        other = x.differs(0) & x.differs(1)
        found.value = found.value | other.select(code.constant(1, BYTE.of(BLOCK)), 0)
    return found.value.differs(none).word().differs(0)
