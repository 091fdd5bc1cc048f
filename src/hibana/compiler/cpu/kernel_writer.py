"""The writer of a CPU kernel: its arguments, its loop over time, and its calls of row functions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

from hibana.compiler.cpu.row_pass import Call, Pass
from hibana.compiler.cpu.time_loop import UNROLLED, TimeLoop
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.loops import SequenceRow
from hibana.compiler.graph.step import Step
from hibana.runtime.kernels import (
    INT,
    LONG,
    Bytes,
    Code,
    Function,
    Kind,
    Pointer,
    Value,
    module,
)

MKL_MODE = 0x2 | 0x100 | 0x140000
"""PyTorch's mode for MKL: high accuracy, no error handling, denormals kept."""


@dataclass(frozen=True)
class Source:
    """The LLVM IR of a kernel, and the facts that its launch needs."""

    text: str
    arguments: tuple[str, ...]
    """The names of the arguments, in order."""
    functions: Mapping[str, str]
    """For each argument that is the address of a vector function, the operation that it computes."""
    buffer_rows: int
    """Rows of numbers that the kernel keeps in memory of its own."""
    max_row: int = 0
    """Maximum neurons in a row of a kernel over rows; 0 for a kernel over samples."""


class KernelWriter(ABC):
    """Writes a kernel that runs all steps over one *tile* after another.

    A tile is several samples, or a row of neurons. A subclass adds the loop over tiles, which sets the
    attributes of a tile.
    """

    first: Value
    """The number, within a step, of the tile's first neuron."""
    first_octet: Value
    """The number of the first byte of the tile's bits within a step."""
    neurons: Value
    """The number of neurons of a sample of the tile."""
    octets: Value
    """The number of bytes of the bits of a sample."""
    stride: Value
    """The number of numbers from a sample to the next in the kernel's own rows."""
    rows: dict[Leaf, Pointer]
    """The kernel's own rows: the addresses of the tile's first sample."""
    zeros: Pointer
    """A row of zeros."""

    def __init__(self, step: Step, loop: TimeLoop) -> None:
        """Collects the passes of `loop`, their leaves, and the vector functions that they call."""
        self.step = step
        self.loop = loop
        self.passes = loop.passes()
        self.leaves = {leaf for pass_ in self.passes for leaf in pass_.leaves}
        operations = sorted({op for pass_ in self.passes for op in pass_.operations})
        self.functions = {f"{op}_at": op for op in operations}
        self.code = Code()
        self.arguments: tuple[str, ...] = ()
        self.addresses: dict[str, Pointer] = {}
        """The arguments that are addresses."""
        self.size: dict[str, Value] = {}
        """The arguments that are integers."""
        self.scalars: dict[Leaf, Value] = {}
        """The numbers that all neurons share."""

    @abstractmethod
    def source(self) -> Source:
        """Writes the kernel."""

    def read_arguments(
        self, integers: Iterable[str], memory: Iterable[str] = (), matrices: Mapping[str, Kind] | None = None
    ) -> None:
        """Declares and reads the kernel's arguments, with the addresses that the loop over time needs.

        Args:
            integers: the names of integers.
            memory: the names of addresses of bytes.
            matrices: the names and kinds of addresses of matrices.
        """
        sequences, states = self.loop.sequences.values(), self.loop.states.values()
        rows = [row.base for row in sequences] + [*self.loop.initial.values()]
        rows += [name for row in states for name in (row.start, row.end) if name]
        parameters = [Leaf("parameter", i) for i in range(self.step.parameters)]
        rows += [f"{leaf}_at" for leaf in parameters if leaf in self.leaves]
        seed = ["seed"] if self.step.draws else []
        kinds: dict[str, Kind] = dict.fromkeys([*integers, *seed], LONG)
        kinds |= dict.fromkeys(memory, Bytes) | dict.fromkeys([*rows, "constants"], self.loop.number)
        kinds |= matrices or {}
        kinds |= {row.base: Bytes for row in sequences if row.bits} | dict.fromkeys(self.functions, Pointer)
        self.arguments = tuple(kinds)
        for name, value in self.code.arguments(kinds).items():
            (self.size if isinstance(value, Value) else self.addresses)[name] = value
        self.scalars = scalar_arguments(
            self.passes, self.addresses["constants"], lambda leaf: self.addresses[f"{leaf}_at"][0]
        )

    @abstractmethod
    def each_sample(self) -> AbstractContextManager[Value]:
        """A loop over the samples of the tile; yields the sample's number in the tile."""

    def write_product(self, call: Call, t: Value) -> None:
        """Writes the matrix product `call` for all samples of the tile at step `t`."""
        raise NotImplementedError("only kernels over samples have matrix products")

    def begin_states(self) -> None:
        """Copies the initial values of the states to the kernel's rows."""
        for leaf, state in self.loop.states.items():
            start, stride = self.initial(state.start)
            with self.each_sample() as s:
                (self.rows[leaf] + s * self.stride).copy(start + s * stride, self.neurons)

    def initial(self, name: str) -> tuple[Pointer, Value]:
        """The address of the argument `name` for the tile's first sample, and the stride between samples.

        Zeros with a stride of 0 if the argument is null or `name` is empty.
        """
        if not name:
            return self.zeros, self.code.constant(0)
        argument = self.addresses[name]
        exists = argument.is_not_null()
        return self.zeros.replace_if(exists, argument + self.first), exists.select(self.neurons, 0)

    def run_pass(self, pass_: Pass, t: Value) -> None:
        """Writes the calls of `pass_` from step `t` on: functions by sample, products for all samples."""
        for are_products, calls in groupby(pass_.sequence, key=lambda call: call.function == "product"):
            if are_products:
                for call in calls:
                    self.write_product(call, t)
                continue
            with self.each_sample() as s:
                rows: dict[Leaf, Pointer] = {}
                for call in calls:
                    for leaf in call.rows:
                        if leaf not in rows:
                            address, stride = self.row(leaf, t)
                            rows[leaf] = address + s * stride
                    self.call(call, [rows[leaf] for leaf in call.rows], t, self.first + s * self.neurons)

    def row(self, leaf: Leaf, t: Value) -> tuple[Pointer, Value]:
        """The address of a row for the tile's first sample at step `t`, and the stride between samples."""
        sequence_step = self.sequence_step(leaf, t)
        if sequence_step is not None:
            sequence, offset = sequence_step
            in_bits, in_numbers = (self.first_octet, self.octets), (self.first, self.neurons)
            first, stride = in_bits if sequence.bits else in_numbers
            return self.addresses[sequence.base] + (offset + first), stride
        if leaf in self.rows:
            return self.rows[leaf], self.stride
        if leaf.kind == "parameter":
            return self.addresses[f"{leaf}_at"] + self.first, self.neurons
        is_first = t.equals(-leaf.offset)
        initial, stride = self.initial(self.loop.initial[Leaf("state", leaf.index, -1)])
        # another row, which is in the cache, where the values are not used
        unused = self.rows[next(iter(self.loop.states))]
        return unused.replace_if(is_first, initial), is_first.select(stride, self.stride)

    def write_steps(self, groups: Value | int) -> None:
        """Writes the loops over `groups` of :data:`UNROLLED` steps, and over the remaining single steps."""
        if self.loop.steps is not None:
            with self.code.loop(0, groups) as i:
                self.run_pass(self.loop.steps, self._time(i * UNROLLED))
        with self.code.loop(groups * UNROLLED, self.size["steps"]) as i:
            self.run_pass(self.loop.step, self._time(i))

    def _time(self, done: Value) -> Value:
        """The step in time that runs after `done` other steps."""
        return done if self.loop.forwards else self.size["steps"] - 1 - done

    def sequence_step(self, leaf: Leaf, t: Value) -> tuple[SequenceRow, Value] | None:
        """Finds the memory of a row of a sequence at step `t` of a pass.

        Returns the sequence ``[T, ...]`` that contains the row, and the offset of its step in it in numbers,
        or in bytes for bits. None if the row belongs to no sequence. A step before the first step in time,
        whose values are read and not used, is replaced by the first.
        """
        sequence = self.loop.sequences.get(leaf.at(0))
        if sequence is None:
            return None
        if leaf.offset:
            t = (t + leaf.offset).larger(0)
        return sequence, t * self.size[sequence.stride]

    def call(self, call: Call, rows: Sequence[Pointer], time: Value, first: Value) -> None:
        """Writes the call of a row function.

        Args:
            call: a call of a function of a pass, or of an operation's vector function.
            rows: the addresses of the function's rows.
            time: the step.
            first: the number of the row's first neuron within the step.
        """
        functions = {op: self.addresses[name] for name, op in self.functions.items()}
        draw_arguments = [self.size["seed"], time, first] if call.draws else []
        scalars = dict(self.scalars)
        for leaf in call.scalars:
            if leaf.kind == "is_first":
                is_first = time.equals(-leaf.offset)
                scalars[leaf] = is_first.select(self.code.constant(1, self.loop.number.element), 0)
        write_call(self.code, call, rows, scalars, functions, self.neurons, draw_arguments)

    def finish(self, buffer_rows: int, max_row: int = 0) -> Source:
        """The LLVM module of the kernel and its functions."""
        text = module(self.code.kernel(self.loop.direction))
        return Source(text, self.arguments, self.functions, buffer_rows, max_row)


def scalar_arguments(
    passes: Iterable[Pass], constants: Pointer, parameter: Callable[[Leaf], Value]
) -> dict[Leaf, Value]:
    """The constants and parameters among the scalar arguments of the calls of `passes`.

    `constants` are those of the step; `parameter` returns the number of a parameter.
    """
    scalars = {}
    for leaf in dict.fromkeys(leaf for pass_ in passes for call in pass_.sequence for leaf in call.scalars):
        if leaf.kind == "constant":
            scalars[leaf] = constants[leaf.index]
        elif leaf.kind == "parameter":
            scalars[leaf] = parameter(leaf)
    return scalars


def write_call(
    code: Code,
    call: Call,
    rows: Sequence[Pointer],
    scalars: Mapping[Leaf, Value],
    functions: Mapping[str, Pointer],
    size: Value,
    draw_arguments: Sequence[Value] = (),
) -> None:
    """Writes one call of a pass, other than a matrix product.

    Args:
        code: the kernel.
        call: a call of a function of the pass, or of an operation.
        rows: the addresses of the call's rows.
        scalars: the result of :func:`scalar_arguments`.
        functions: the addresses of vector functions by operation.
        size: the number of neurons in a row.
        draw_arguments: the seed, the step and the first neuron's number, if the pass draws random numbers.
    """
    if isinstance(call.function, Function):
        kinds = call.function.kinds[: len(rows)]
        typed = [row.of(Bytes) if kind is Bytes else row for row, kind in zip(rows, kinds, strict=True)]
        numbers = [scalars[leaf] for leaf in call.scalars]
        call.function.do(code, *typed, *numbers, size, *draw_arguments)
        return
    kinds = INT, *[type(row) for row in rows], type(rows[0]), LONG
    callee = Function.at_address(functions[call.function], *kinds)
    callee.do(code, size.to(INT), *rows, rows[0], code.constant(MKL_MODE))
