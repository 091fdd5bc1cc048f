"""The loop nest over samples, for steps with matrix products, which need all neurons of a sample.

A thread runs all T steps over a few samples at a time; their states, and the lists of their spikes, stay in
cache. A step is cut at its products: pointwise parts run sample by sample
(:mod:`hibana.compiler.cpu.row_pass`), a product takes all current samples at once
(:mod:`hibana.compiler.cpu.product`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from hibana.compiler.cpu.kernel_writer import Schedule, Source
from hibana.compiler.cpu.product import product, product_at
from hibana.compiler.cpu.row_pass import Call, Pass
from hibana.compiler.cpu.time_loop import Moving, Parts
from hibana.compiler.graph.step import Step
from hibana.runtime.kernels import Bytes, Ints, Longs, Pointer, Value

_SIZES = ("steps", "samples", "neurons", "padded", "per_tile", "blocks", "blocks_each", "workspace_bytes")
_STRIDES = ("input_step", "grad_outputs_step", "row_bytes", "sample_bytes", "wants_first")


class SampleWalk(Schedule):
    """A kernel over samples that is being written: the first current sample, how many, and a row of zeros."""

    sample: Value
    count: Value
    zeros: Pointer

    def __init__(
        self,
        name: str,
        step: Step,
        parts: Parts,
        calls: frozenset[str],
        carried: Sequence[str],
        edge: Mapping[str, str],
    ) -> None:
        super().__init__(name, parts.number, parts.single(), calls)
        self.step = step
        self.parts = parts
        self.edge = edge
        """For a leaf that differs at time 0: the argument that it is there."""
        self.begun: Mapping[str, str] = {}
        """For a row of state, the argument that it starts with; else it starts at 0."""
        self.ends: Mapping[str, str] = {}
        """For a row of state, the argument that it is copied to at the end."""
        scratch = [row for pass_ in self.passes for row in (*pass_.scratch, *pass_.products)]
        self.own = list(dict.fromkeys([*carried, *scratch]))
        self.carried = carried
        self.by_matrix, self.by_rows = product(parts.number), product_at(parts.number)
        self.rows: dict[str, Pointer] = {}

    def made(self) -> Source:
        """The kernel and its functions, as a module."""
        code = self.code
        moving = self.parts.moving.values()
        bits = [row.base for row in moving if row.bits]
        self.take(self._arguments(), (*_SIZES, *_STRIDES, "seed"), ["workspace", *bits])
        size = self.size
        size["step"] = size["samples"] * size["neurons"]
        with code.loop(self.begin, self.end) as piece:
            self._workspace(piece)
            first = piece * size["blocks_each"]
            last = (first + size["blocks_each"]).smaller(size["blocks"])
            with code.loop(first, last) as block:
                self.sample = block * size["per_tile"]
                self.count = size["per_tile"].smaller(size["samples"] - self.sample)
                self._begin()
                self._steps()
                self._end()
        return self.source(len(self.own))

    def _arguments(self) -> list[str]:
        moving = [row.base for row in self.parts.moving.values()]
        tables = sorted(
            {_table(call) for p in self.passes for call in p.sequence if call.function == "product"}
        )
        parameters = [i for i in range(self.step.parameters) if {f"p{i}", f"p{i}[0]"} & self.leaves]
        return [
            *_SIZES,
            *_STRIDES,
            "workspace",
            *dict.fromkeys([*moving, *self.edge.values(), *self.begun.values(), *self.ends.values()]),
            *(f"p{i}_at" for i in parameters),
            "constants",
            *(["seed"] if self.step.draws else []),
            *tables,
        ]

    def _workspace(self, piece: Value) -> None:
        """Divides a thread's memory: rows, a row of zeros, lists, and bits that are all one or zero."""
        size = self.size
        at = self.at["workspace"] + piece * size["workspace_bytes"]
        at.clear(size["workspace_bytes"])
        padded, per_tile = size["padded"], size["per_tile"]
        numbers, octets = per_tile * padded, padded >> 3

        def taken(kind: type[Pointer], count: Value) -> Any:
            nonlocal at
            found = at.of(kind)
            at = found + count
            return found

        self.rows = {name: taken(self.number, numbers) for name in self.own}
        self.zeros = taken(self.number, padded)
        self.all_bits, self.no_bits = taken(Bytes, octets), taken(Bytes, octets)
        lists = (self.number, numbers), (Ints, numbers), (Longs, padded)
        self.values, self.places, self.indices = [taken(kind, count) for kind, count in lists]
        self.counts = taken(Longs, per_tile)
        self.all_bits.clear(octets, 0xFF)

    @contextmanager
    def _each_sample(self) -> Iterator[tuple[Value, Value]]:
        """Loops over the current samples: its number among them, and in the batch."""
        with self.code.loop(0, self.count) as s:
            yield s, self.sample + s

    def _begin(self) -> None:
        """Initialises the rows of state."""
        with self._each_sample() as (s, sample):
            for name in self.carried:
                begun = self._given(self.begun[name], sample) if name in self.begun else self.zeros
                self._own_row(name, s).copy(begun, self.size["neurons"])

    def _end(self) -> None:
        """Copies what the walk ends in to the arguments given for it.

        The last states; of a backward the gradients of the first states and the sums over time.
        """
        for name, argument in self.ends.items():
            wanted = self.at[argument]
            with self.code.when(wanted.is_not_null()), self._each_sample() as (s, sample):
                (wanted + self._first_of(sample)).copy(self._own_row(name, s), self.size["neurons"])

    def _steps(self) -> None:
        code, parts, steps = self.code, self.parts, self.size["steps"]
        zero, edge = code.constant(0), parts.edge_step
        if self.name == "forward":
            if edge is not None:
                self._do(edge, zero, edge=True)
            with code.loop(0 if edge is None else 1, steps) as t:
                self._inside(t)
            return
        with code.loop(0, steps if edge is None else steps - 1) as done:
            self._inside(steps - 1 - done)
        if edge is not None:
            self._do(edge, zero, edge=True)

    def _inside(self, t: Value) -> None:
        if self.parts.before is not None:
            self._do(self.parts.before, t, edge=False)
        self._do(self.parts.step, t, edge=False)

    def _do(self, pass_: Pass, t: Value, *, edge: bool) -> None:
        """The calls of a pass at step `t`: sample by sample, and products for all samples at once."""
        for products, calls in groupby(pass_.sequence, key=lambda call: call.function == "product"):
            if products:
                for call in calls:
                    self._product(call, t, edge=edge)
                continue
            with self._each_sample() as (s, sample):
                rows: dict[str, Pointer] = {}
                for call in calls:
                    for name in call.rows:
                        if name not in rows:
                            rows[name] = self._row(name, t, s, sample, edge=edge)
                    given = [rows[name] for name in call.rows]
                    none, first = self.code.constant(0), self._first_of(sample)
                    self.call(call, given, self.size["neurons"], none, t, first)

    def _row(self, name: str, t: Value, s: Value, sample: Value, *, edge: bool) -> Pointer:
        """The address of a sample's row `name`: of a sequence, of the states at the start, or of its own."""
        moving = self._moving(name)
        if moving is not None:
            row, when = moving
            return self._at_step(row, t, when) + sample * self._sample_step(row)
        if edge and name in self.edge:
            return self._given(self.edge[name], sample)
        if name in self.own:
            return self._own_row(name, s)
        return self.at[f"{name}_at"] + self._first_of(sample)

    def _product(self, call: Call, t: Value, *, edge: bool) -> None:
        code, size = self.code, self.size
        operand, *where, result = call.rows
        x, x_step = self._block(operand, t, edge=edge)
        table, y = self.at[_table(call)], self.rows[result]
        sizes = size["padded"], self.count, size["neurons"], size["padded"]
        if not where:
            lists = self.places, self.values, self.counts
            self.by_matrix.do(code, x, x_step, table, y, *sizes, *lists)
            return
        bits, bits_step = self._bits(where[0], t, edge=edge)
        self.by_rows.do(code, x, x_step, table, bits, bits_step, y, *sizes, self.indices)

    def _block(self, name: str, t: Value, *, edge: bool) -> tuple[Pointer, Value]:
        """The address of the rows `name` of the current samples, and their stride."""
        moving = self._moving(name)
        if moving is not None:
            row, when = moving
            distance = self._sample_step(row)
            return self._at_step(row, t, when) + self.sample * distance, distance
        if edge and name in self.edge:
            there = self.at[self.edge[name]].is_not_null()
            return self._given(self.edge[name], self.sample), there.select(self.size["neurons"], 0)
        return self.rows[name], self.size["padded"]

    def _bits(self, name: str, t: Value, *, edge: bool) -> tuple[Pointer, Value]:
        """The address of `name`, the bits that mask a product, for the current samples, and their stride."""
        if self._moving(name) is not None:
            return self._block(name, t, edge=edge)
        if not edge:
            return self.rows[name].of(Bytes), self.size["padded"] * self.number.element.size
        # the step before time 0: it matters where the state begun with gets a gradient
        wanted = self.size["wants_first"].differs(0)
        return self.no_bits.replace_if(wanted, self.all_bits), self.code.constant(0)

    def _moving(self, name: str) -> tuple[Moving, int] | None:
        """The sequence of the row `name`, and how many steps from the current one."""
        own, _, ahead = name.rpartition(".")
        return (self.parts.moving[own], int(ahead)) if own in self.parts.moving else None

    def _at_step(self, row: Moving, t: Value, ahead: int) -> Pointer:
        step = t if not ahead else t + ahead if self.name == "forward" else t - ahead
        return self.at[row.base] + step * self.size[row.stride]

    def _sample_step(self, row: Moving) -> Value:
        return self.size["sample_bytes" if row.bits else "neurons"]

    def _given(self, argument: str, sample: Value) -> Pointer:
        """A sample's row of an argument, or of zeros if that is null."""
        base = self.at[argument]
        return self.zeros.replace_if(base.is_not_null(), base + self._first_of(sample))

    def _own_row(self, name: str, s: Value) -> Pointer:
        return self.rows[name] + s * self.size["padded"]

    def _first_of(self, sample: Value) -> Value:
        return sample * self.size["neurons"]


def _table(call: Call) -> str:
    """Which table a product reads: that of the matrix transposed, if dot products do it."""
    return f"m{call.matrix ^ 1 if len(call.rows) == 3 else call.matrix}_at"
