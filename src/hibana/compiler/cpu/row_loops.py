"""The loops of a CPU kernel over rows of neurons, and over the steps of each row.

A *row* is a range of neurons whose state stays in the L1 cache while all T steps run over it. If a row has
whole blocks, several steps are unrolled, and the state passes between them in registers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from hibana.compiler.cpu.kernel_writer import KernelWriter, Source
from hibana.compiler.cpu.row_function import LINE, VECTOR
from hibana.compiler.cpu.time_loop import UNROLLED
from hibana.runtime.kernels import Bytes, Pointer, Value

ROW = 4096
"""Maximum neurons in a row, a multiple of 64: the state fits in L1, and rows are long enough to prefetch."""

MAX_FULL_ROWS = 32
"""Scratch rows above which rows become narrower, so that all of them fit on a thread's stack."""

PAGE = 4096
"""4K aliasing: a load waits for a store in flight whose address has the same twelve low bits."""

ROW_OFFSET = 1408
"""Offset of the kernel's first own row from the sequence that it reads, as :data:`OUTPUT_OFFSET`."""

OUTPUT_OFFSET = 2816
"""Offset of the sequence that a kernel writes from the one it reads, within a page.

Up to a kilobyte of stores is in flight at a time. With a third of a page between the sequence that is read,
the kernel's own rows and the sequence that is written, no load follows a store so closely, even if steps
begin in either half of a page."""

ROW_SPACING = 448
"""Offset between the kernel's own rows, within a page."""

SIZES = ("steps", "neurons", "width", "row_bytes")
"""Steps, neurons of a step, neurons of a row, bytes of bits of a step."""


class RowLoops(KernelWriter):
    """A kernel over rows of neurons while it is written. A tile is one row, as one sample."""

    def source(self) -> Source:
        """Writes the kernel: for each row, the states' initial values and all steps."""
        code, loop = self.code, self.loop
        strides = [row.stride for row in loop.sequences.values() if row.stride != "step_size"]
        self.read_arguments(dict.fromkeys([*SIZES, *strides]))
        size, page = self.size, PAGE // loop.number.element.size
        size["step_size"] = size["neurons"]
        scratch = list(dict.fromkeys(row for pass_ in self.passes for row in pass_.scratch))
        width = (
            ROW if len(scratch) <= MAX_FULL_ROWS else max(64, ROW * MAX_FULL_ROWS // len(scratch) // 64 * 64)
        )
        self.rows = {}
        for name in scratch:
            self.rows[name] = code.array(loop.number, ROW + page if width == ROW else width)
        buffers = {name: code.array(loop.number, ROW + page) for name in loop.states}
        self.zeros = code.array(loop.number, ROW + page)
        self.zeros.clear(ROW)
        with code.loop(self.code.begin, self.code.end) as row:
            self.first = row * size["width"]
            self.first_octet = self.first >> 3
            self.neurons = size["width"].smaller(size["neurons"] - self.first)
            self.octets = self.stride = code.constant(0)
            for i, (name, buffer) in enumerate(buffers.items()):
                self.rows[name] = self._state_row(loop.states[name].end, buffer, i)
            self.begin_states()
            is_full = (self.neurons & (VECTOR - 1)).equals(0)
            self.write_steps(is_full.select(size["steps"] // UNROLLED, 0) if loop.steps else 0)
        if loop.nontemporal:
            code.fence()  # other stores are not ordered after non-temporal ones without it
        return self.finish(len(buffers), width)

    @contextmanager
    def each_sample(self) -> Iterator[Value]:
        """Yields 0: a tile has one sample."""
        yield self.code.constant(0)

    def _state_row(self, end: str, buffer: Pointer, i: int) -> Pointer:
        """The address at which the kernel updates its state number `i`.

        This is the caller's array for the last values if the argument `end` exists. Otherwise it lies in
        `buffer`, shifted within a page to avoid 4K aliasing: a load waits for an earlier store if the low
        twelve bits of their addresses are equal.
        """
        read = (self.addresses["input" if self.loop.forwards else "grad_outputs"] + self.first).address()
        octets = buffer.of(Bytes)
        shift = (read - octets.address() + (ROW_OFFSET + i * ROW_SPACING)) & (PAGE - LINE)
        row = (octets + shift).of(self.loop.number)
        if not end:
            return row
        return row.replace_if(self.addresses[end].is_not_null(), self.addresses[end] + self.first)
