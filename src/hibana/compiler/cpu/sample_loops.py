"""The loops of a CPU kernel over samples, for steps with matrix products, which need all neurons of a sample.

A thread runs all T steps over a *tile*, a few samples; their states, and the lists of their spikes, stay in
cache. A step is cut at its products: functions of rows run sample by sample
(:mod:`hibana.compiler.cpu.row_pass`), a product runs over all samples of the tile
(:mod:`hibana.compiler.cpu.product`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hibana.compiler.cpu.kernel_writer import KernelWriter, Source
from hibana.compiler.cpu.product import product, product_at
from hibana.compiler.cpu.row_pass import Call
from hibana.compiler.cpu.sparse_product import sparse_product, sparse_product_at
from hibana.compiler.graph.leaf import Leaf
from hibana.runtime.kernels import BYTE, Bytes, Ints, Kind, Longs, Pointer, Value

SIZES = (
    *("steps", "samples", "neurons", "padded", "per_tile", "tiles", "tiles_per_thread", "workspace_bytes"),
    *("row_bytes", "sample_bytes"),
)
"""Steps, samples of a step, neurons of a sample without and with padding, samples of a tile, tiles of all
threads and of one, bytes of a thread's memory, bytes of bits of a step and of a sample."""


class SampleLoops(KernelWriter):
    """A kernel over samples while it is written."""

    count: Value
    """The number of samples of the tile."""

    def source(self) -> Source:
        """Writes the kernel: for each tile, the states' initial values, all steps, and the last values."""
        code, loop = self.code, self.loop
        calls = [call for pass_ in self.passes for call in pass_.sequence if call.function == "product"]
        strides = [row.stride for row in loop.sequences.values() if row.stride != "step_size"]
        backward = [] if loop.forwards else ["wants_first"]
        integers = dict.fromkeys([*SIZES, *strides, *backward])
        matrices: dict[str, Kind] = {}
        for call in calls:
            matrices |= self._matrix(call)
        self.read_arguments(integers, ["workspace"], dict(sorted(matrices.items())))
        size = self.size
        size["step_size"] = size["samples"] * size["neurons"]
        self.neurons, self.octets, self.stride = size["neurons"], size["sample_bytes"], size["padded"]
        scratch = [row for pass_ in self.passes for row in (*pass_.scratch, *pass_.products)]
        buffers = list(dict.fromkeys([*loop.states, *scratch]))
        by_matrix, by_rows = product(loop.number), product_at(loop.number)
        self.products = by_matrix, by_rows
        self.sparse_products = sparse_product(loop.number), sparse_product_at(loop.number)
        with code.loop(self.code.begin, self.code.end) as thread:
            self._divide_workspace(thread, buffers)
            first = thread * size["tiles_per_thread"]
            last = (first + size["tiles_per_thread"]).smaller(size["tiles"])
            with code.loop(first, last) as tile:
                sample = tile * size["per_tile"]
                self.count = size["per_tile"].smaller(size["samples"] - sample)
                self.first, self.first_octet = sample * self.neurons, sample * self.octets
                self.begin_states()
                self.write_steps(0)
                self._end_states()
        return self.finish(len(buffers))

    def _divide_workspace(self, thread: Value, buffers: list[Leaf]) -> None:
        """Divides a thread's memory among rows of numbers (`buffers`), zeros, lists of spikes, and bits."""
        size, number = self.size, self.loop.number
        address = self.addresses["workspace"] + thread * size["workspace_bytes"]
        address.clear(size["workspace_bytes"])
        padded, per_tile = size["padded"], size["per_tile"]
        numbers, octets = per_tile * padded, padded >> 3

        def allocate(kind: type[Pointer], count: Value) -> Any:
            """The address of the next `count` elements of the type that `kind` points to."""
            nonlocal address
            part = address.of(kind)
            address = part + count
            return part

        self.rows = {leaf: allocate(number, numbers) for leaf in buffers}
        self.zeros = allocate(number, padded)
        self.all_bits, self.no_bits = allocate(Bytes, octets), allocate(Bytes, octets)
        lists = (number, numbers), (Ints, numbers), (Longs, padded)
        self.values, self.places, self.indices = [allocate(kind, count) for kind, count in lists]
        self.counts = allocate(Longs, per_tile)
        self.all_bits.clear(octets, 0xFF)
        neurons = size["neurons"]  # after the last neuron no bit is set; `no_bits` follows `all_bits`
        self.all_bits[neurons >> 3] = (self.code.constant(1) << (neurons & 7)).to(BYTE) - 1

    @contextmanager
    def each_sample(self) -> Iterator[Value]:
        """A loop over the samples of the tile; yields the sample's number in the tile."""
        with self.code.loop(0, self.count) as s:
            yield s

    def _end_states(self) -> None:
        """Copies the last states of the tile's samples to the caller's tensors."""
        ends = {leaf: self.addresses[state.end] for leaf, state in self.loop.states.items() if state.end}
        for leaf, end in ends.items():
            with self.code.when(end.is_not_null()), self.each_sample() as s:
                last = end + (self.first + s * self.neurons)
                last.copy(self.rows[leaf] + s * self.stride, self.neurons)

    def write_product(self, call: Call, t: Value) -> None:
        """Writes the matrix product `call` for all samples of the tile at step `t`."""
        code, size = self.code, self.size
        operand, *mask, result = call.rows  # `mask` has one row for a masked product, else none
        x, x_stride = self.row(operand, t)
        matrix, y = [self.addresses[name] for name in self._matrix(call)], self.rows[result]
        if len(matrix) > 1:
            bits = self._mask(mask[0], t) if mask else (self.all_bits, code.constant(0))
            forward, at_bits = self.sparse_products
            sparse_sizes = y, size["padded"], self.count, size["neurons"]
            if call.matrix % 2:
                at_bits.do(code, x, x_stride, *matrix, *bits, *sparse_sizes)
            else:
                forward.do(code, x, x_stride, *matrix, *sparse_sizes, self.places, self.values)
            return
        # the stride between results, the samples, the inputs, and the outputs with padding
        sizes = size["padded"], self.count, size["neurons"], size["padded"]
        by_matrix, by_rows = self.products
        if not mask:
            by_matrix.do(code, x, x_stride, *matrix, y, *sizes, self.places, self.values, self.counts)
            return
        mask_bits, bits_stride = self._mask(mask[0], t)
        by_rows.do(code, x, x_stride, *matrix, mask_bits, bits_stride, y, *sizes, self.indices)

    def row(self, leaf: Leaf, t: Value) -> tuple[Pointer, Value]:
        """As :meth:`KernelWriter.row`; in a forward, the initial values precede the first step."""
        address, stride = super().row(leaf, t)
        if not self.loop.forwards or leaf not in self.loop.initial:
            return address, stride
        initial, initial_stride = self.initial(self.loop.initial[leaf])
        is_first = t.equals(0)
        return address.replace_if(is_first, initial), is_first.select(initial_stride, stride)

    def _mask(self, leaf: Leaf, t: Value) -> tuple[Pointer, Value]:
        """The address of the bits `leaf` that mask a product, for the tile's samples, and their stride."""
        bits, stride = self.row(leaf, t)
        if not leaf.offset:
            return bits, stride
        # Bits of the step before. Before the first step in time the product is a part of the gradients of the
        # initial states: all of it is needed, or nothing.
        is_first, wants_first = t.equals(0), self.size["wants_first"].differs(0)
        initial = self.no_bits.replace_if(wants_first, self.all_bits)
        return bits.replace_if(is_first, initial), is_first.select(0, stride)

    def _matrix(self, call: Call) -> dict[str, type[Pointer]]:
        """The names and kinds of the arguments that are the matrix of a product.

        They are the weights, row starts and targets of a sparse matrix, or one table: tables ``2 i`` and
        ``2 i + 1`` are matrix i and its transpose. A masked product, whose rows are operand, mask and result,
        reads the table of the transposed matrix.
        """
        matrix = call.matrix // 2
        if matrix in self.step.sparse:
            index = {f"m{2 * matrix}_starts": Longs, f"m{2 * matrix}_targets": Ints}
            return {f"m{2 * matrix}_at": self.loop.number, **index}
        return {f"m{call.matrix ^ 1 if len(call.rows) == 3 else call.matrix}_at": self.loop.number}
