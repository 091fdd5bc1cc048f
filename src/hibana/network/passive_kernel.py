"""The native program of :func:`hibana.simulate` for passive neurons: only those that could fire take a step.

At each step, one thread

1. adds the weights of the spikes that arrive, and the events of the input, and marks their targets as *due*;
2. lists the due neurons in ascending order, and brings them up to date: n steps that they missed at once;
3. computes their step by the row functions that the compiler writes for the cell, in blocks;
4. marks those that are not passive (:mod:`hibana.compiler.analysis.passive`) as due at the next step, and
   those that a stimulus moves after the step.

Weights are added in the same order as in :mod:`hibana.network.simulate_kernel`. All numbers of a neuron are
one record, so that an update reads one or two cache lines.
"""

from functools import partial
from itertools import product

import torch

from hibana.compiler.analysis.passive import BASE_BITS, LEVELS, PassiveForm
from hibana.compiler.cpu.kernel_writer import write_call
from hibana.compiler.graph.leaf import INPUT, OUTPUT
from hibana.compiler.graph.passes import forward_pass
from hibana.compiler.graph.step import Step
from hibana.network.simulate_kernel import WORD, WORDS, NeuronProgram
from hibana.runtime.kernels import DOUBLE, LONG, Doubles, Ints, Kind, Longs, Pointer, Value

__all__ = ["PassiveProgram"]

BLOCK = 256
"""Neurons that take a step at once, fewer than in :mod:`hibana.network.simulate_kernel`."""
LINE = 8
"""Numbers in a cache line; a record has a multiple of them."""
HEADER = ("emitted", "last", "group")
"""What a record holds between the states and the other numbers of the neuron."""
INTEGERS = ("steps", "time", "delays", "words", "capacity", "every", "selected")
"""Integer arguments: the steps, or 0 to record the states only; the number of the first step; the number of
delays; the words of bits of the due neurons; the spikes that fit into their array; and how many neurons are
recorded at which steps."""


class PassiveProgram(NeuronProgram):
    """The native program of neurons that take `step`, in float64, and have the passive form `form`.

    A record holds the states, the output, the step of the last update, the group, then :attr:`numbers`.

    Args:
        step: the traced step.
        form: its passive form.
        weights: the dtype of the synapses' weights.
        terms: the numbers of each neuron that are added to its input in order, ``"bias"`` or ``"inputs"``.
    """

    def __init__(self, step: Step, form: PassiveForm, weights: torch.dtype, terms: tuple[str, ...]) -> None:
        super().__init__(step, forward_pass(step, None), torch.float64)
        self.form, self.terms, self.emitted = form, terms, step.carried[-1]
        leaves = [leaf for call in self.neurons_pass.sequence for leaf in call.rows]
        rows = dict.fromkeys([*self.carried, self.emitted, INPUT, OUTPUT, *leaves])
        self.rows = {leaf: i * BLOCK for i, leaf in enumerate(rows)}
        """Where the row of each leaf begins in the scratch memory."""
        self.scratch_rows = len(rows)
        self.parameters = [leaf for leaf in rows if leaf.kind == "parameter"]
        """The parameters that differ between neurons."""
        self.numbers = [*terms, *map(str, self.parameters)]
        self.places = {name: i for i, name in enumerate((*map(str, self.carried), *HEADER, *self.numbers))}
        """The place of each number in a record."""
        self.size = -(-len(self.places) // LINE) * LINE
        """Numbers in a record."""
        tables: dict[str, Kind] = dict.fromkeys(("due", "starts", "results"), Longs)
        tables |= dict.fromkeys(("spikes", "listed"), Ints)
        names = ("sums", "records", "rest", "powers", "guards", "fixed", "scratch", "constants", "samples")
        scalars = [
            str(leaf)
            for leaf, value in self.neurons_pass.leaves.items()
            if value.is_scalar and leaf.kind == "parameter"
        ]
        tables |= dict.fromkeys((*names, *scalars), Doubles)
        self.assemble(INTEGERS, tables, weights)

    def write(self) -> None:
        """Writes all steps, until the spikes of a step might not fit; or only records the states."""
        code, a = self.code, self.arguments
        step, spikes, updates = code.variable(0), code.variable(a["starts"][a["delays"]]), code.variable(0)
        with code.when(a["steps"].equals(0)):
            self._sample(code.constant(0), a["time"] - 1)
        with code.when(a["steps"] > 0), code.do_while() as repeat_if:
            t = step.value
            now = a["time"] + t
            self._deliver(t)
            self.each_event("input", t, self._receive)
            count = self._list()
            with code.loop(0, count, BLOCK) as first:
                spikes.value = self._update(
                    a["listed"] + first, (count - first).smaller(BLOCK), now, spikes.value
                )
            for i, leaf in enumerate(self.carried):
                self.each_event(str(leaf), t, partial(self._move, now, i))
            with code.when(((now + 1) % a["every"]).equals(0)):
                self._sample((now + 1) // a["every"] - a["time"] // a["every"] - 1, now)
            updates.value = updates.value + count
            step.value = t + 1
            a["starts"][a["delays"] + t + 1] = spikes.value
            fits = ~(a["capacity"] < spikes.value + a["words"] * WORD)
            repeat_if((t + 1 < a["steps"]) & fits)
        a["results"][0] = step.value
        a["results"][1] = updates.value

    def _mark(self, neuron: Value, is_due: Value | None = None) -> None:
        """Marks `neuron` as due, if `is_due`."""
        word, bit = self.arguments["due"] + (neuron >> 6), self.code.constant(1) << (neuron & (WORD - 1))
        word.store(word.load() | (bit if is_due is None else is_due.select(bit, 0)))

    def _receive(self, neuron: Value, value: Value) -> None:
        """Adds `value` to the sum of `neuron`."""
        place = self.arguments["sums"] + neuron
        place.store(place.load() + value)
        self._mark(neuron)

    def _deliver(self, t: Value) -> None:
        """Adds the weights of the spikes that arrive at step `t`."""
        code, a = self.code, self.arguments
        with code.loop(0, a["delays"]) as delay:
            fired = a["starts"] + (t + a["delays"] - 1 - delay)
            with code.loop(fired[0], fired[1]) as spike:
                source = a["spikes"][spike].to(LONG)
                entry, row = a["index"] + (source * (a["delays"] + 1) + delay), a["row_starts"][source]
                with code.loop(row + entry[0].to(LONG), row + entry[1].to(LONG)) as synapse:
                    self._receive(a["targets"][synapse].to(LONG), a["weights"][synapse].to(DOUBLE))

    def _move(self, now: Value, state: int, neuron: Value, value: Value) -> None:
        """Adds `value` to a state of `neuron` after step `now`."""
        record = self._record(neuron)
        states = self._up_to_date(record, now)
        states[state] = states[state] + value
        for i, number in enumerate(states):
            record[i] = number
        self._last(record)[0] = now
        self._mark(neuron)

    def _record(self, neuron: Value) -> Pointer:
        """The record of `neuron`."""
        record: Pointer = self.arguments["records"] + neuron * self.size
        return record

    def _last(self, record: Pointer) -> Longs:
        """The place of the last step of a record."""
        return (record + self.places["last"]).of(Longs)

    def _list(self) -> Value:
        """Lists the due neurons in ascending order, and unmarks them; returns their number."""
        code, a, count = self.code, self.arguments, self.code.variable(0)
        with (
            code.loop(0, a["words"], WORDS) as first,
            code.each_bit((a["due"] + first).load(WORDS).differs(0).word().to(LONG)) as place,
        ):
            word = a["due"] + (first + place)
            with code.each_bit(word.load()) as bit:
                neuron = (first + place) * WORD + bit
                self._record(neuron).prefetch(to_write=True)
                a["listed"][count.value] = neuron.to(a["listed"].element)
                count.value = count.value + 1
            word[0] = 0
        return count.value

    def _up_to_date(self, record: Pointer, now: Value) -> list[Value]:
        """The states of a neuron after step `now`, of which it took none since its last one."""
        code, a, free = self.code, self.arguments, self.form.free
        states = [code.variable(record[i], DOUBLE) for i in range(len(self.carried))]
        missed, size = now - self._last(record)[0], len(free)
        with code.when(missed > 0):
            group = (record + self.places["group"]).of(Longs)[0]
            rest = [a["rest"][group * size + i] for i in range(size)]
            gaps = [
                code.variable(states[i].value - center, DOUBLE) for i, center in zip(free, rest, strict=True)
            ]
            remaining, digits = code.variable(missed), (1 << BASE_BITS) - 1
            level = code.variable(group * (LEVELS * digits))
            with code.do_while() as repeat_if:
                digit = remaining.value & digits
                with code.when(digit > 0):
                    map_ = a["powers"] + (level.value + digit - 1) * (size * (size + 1))
                    moved = [map_[i * (size + 1) + size] for i in range(size)]
                    for i, j in product(range(size), repeat=2):
                        moved[i] = moved[i] + map_[i * (size + 1) + j] * gaps[j].value
                    for gap, value in zip(gaps, moved, strict=True):
                        gap.value = value
                remaining.value = remaining.value >> BASE_BITS
                level.value = level.value + digits
                repeat_if(remaining.value > 0)
            for i, gap, center in zip(free, gaps, rest, strict=True):
                states[i].value = gap.value + center
        return [state.value for state in states]

    def _update(self, listed: Ints, size: Value, now: Value, spikes: Value) -> Value:
        """Computes step `now` of `size` neurons; returns the number of spikes after it."""
        code, a, places = self.code, self.arguments, self.places
        rows = {leaf: a["scratch"] + offset for leaf, offset in self.rows.items()}
        with code.loop(0, size) as i:
            neuron = listed[i].to(LONG)
            record = self._record(neuron)
            for leaf, state in zip(self.carried, self._up_to_date(record, now - 1), strict=True):
                rows[leaf][i] = state
            rows[self.emitted][i] = record[places["emitted"]]
            total = a["sums"][neuron]
            for name in self.terms:
                total = record[places[name]] + total
            rows[INPUT][i] = total
            a["sums"][neuron] = 0.0
            for leaf in self.parameters:
                rows[leaf][i] = record[places[str(leaf)]]
        for call in self.neurons_pass.sequence:
            write_call(code, call, [rows[leaf] for leaf in call.rows], self.scalars, self.functions, size)
        count = code.variable(spikes)
        with code.loop(0, size) as i:
            neuron = listed[i].to(LONG)
            record = self._record(neuron)
            states = [rows[leaf][i] for leaf in self.carried]
            for place, state in enumerate(states):
                record[place] = state
            emitted = rows[OUTPUT][i]
            record[places["emitted"]] = emitted
            self._last(record)[0] = now
            a["spikes"][count.value] = listed[i]
            fires = emitted.differs(0)
            count.value = fires.select(count.value + 1, count.value)
            self._mark(neuron, ~self._is_passive(record, states, fires))
        return count.value

    def _is_passive(self, record: Pointer, states: list[Value], fires: Value) -> Value:
        """Whether a neuron needs no update until something arrives."""
        a, form, size = self.arguments, self.form, len(self.form.free)
        group, passive = (record + self.places["group"]).of(Longs)[0], ~fires
        for i, state in enumerate(form.fixed):
            passive = passive & states[state].equals(a["fixed"][group * len(form.fixed) + i])
        gaps = [states[state] - a["rest"][group * size + i] for i, state in enumerate(form.free)]
        count, width = form.guards.shape[1:]
        for i in range(count):
            row = a["guards"] + (group * count + i) * width
            bound = row[2 * size]
            for j, gap in enumerate(gaps):
                low, high = row[2 * j] * gap, row[2 * j + 1] * gap
                bound = bound + (low > high).select(low, high)
            passive = passive & (bound <= 0)
        return passive

    def _sample(self, row: Value, now: Value) -> None:
        """Records the states of the selected neurons after step `now`, as row `row` of the samples."""
        code, a = self.code, self.arguments
        with code.loop(0, a["selected"]) as i:
            states = self._up_to_date(self._record(a["neurons"][i].to(LONG)), now)
            for j, state in enumerate(states):
                a["samples"][(row * len(states) + j) * a["selected"] + i] = state
