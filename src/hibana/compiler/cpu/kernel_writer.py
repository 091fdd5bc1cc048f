"""A kernel while it is written: its arguments by name, and the row functions that it calls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hibana.compiler.cpu.row_pass import Call, Pass
from hibana.compiler.graph.ops import row_of
from hibana.runtime.kernels import (
    FLOAT,
    INT,
    LONG,
    Bytes,
    Code,
    Function,
    Kind,
    Pointer,
    Type,
    Value,
    external_function,
    function,
    source,
)

FORWARD = ("input", "input_step", "outputs")
"""Arguments of every forward over rows, and of every backward, that change at each launch."""
BACKWARD = ("input", "input_step", "grad_outputs", "grad_outputs_step", "grad_input")

ACCURATE = 0x2 | 0x100 | 0x140000
"""The mode in which PyTorch calls MKL: high accuracy, errors ignored, denormals kept."""


@dataclass(frozen=True)
class Source:
    """A kernel's LLVM IR, and the names of its arguments."""

    text: str
    arguments: tuple[str, ...]
    calls: Mapping[str, str]
    """The operation that each argument computes that is the address of a function."""
    rows: int
    """How many rows of its own the kernel has."""
    row: int = 0
    """Maximum neurons in a row, if the kernel goes over rows."""


class Schedule:
    """A kernel that is being written: its passes, and the vector functions `calls` that are its arguments."""

    def __init__(
        self, name: str, number: type[Pointer], passes: Sequence[Pass], calls: frozenset[str]
    ) -> None:
        self.name = name
        self.number = number
        self.passes = passes
        self.calls = calls
        self.leaves = {name for pass_ in passes for name in pass_.leaves}
        called = sorted({op for pass_ in passes for op in pass_.called} & calls)
        self.functions = {f"{op}_at": op for op in called}
        self.code = Code()
        self.begin, self.end = (Value(self.code.writer, LONG, text) for text in ("%begin", "%end"))
        self.arguments: tuple[str, ...] = ()
        self.at: dict[str, Pointer] = {}
        """The arguments that are addresses."""
        self.size: dict[str, Value] = {}
        """The arguments that are integers."""
        self.scalars: dict[str, Value] = {}

    def take(self, names: Iterable[str], numbers: Iterable[str], bits: Iterable[str]) -> None:
        """Reads the arguments called `names`, of which some are `numbers` and some sequences of `bits`."""
        self.arguments = (*names, *self.functions)
        kinds: dict[str, Kind] = dict.fromkeys(self.arguments, self.number)
        special: dict[str, Kind] = {**dict.fromkeys(numbers, LONG), **dict.fromkeys(bits, Bytes)}
        kinds |= dict.fromkeys(self.functions, Pointer) | {n: k for n, k in special.items() if n in kinds}
        for name, value in self.code.arguments(kinds).items():
            (self.size if isinstance(value, Value) else self.at)[name] = value
        self.scalars = scalar_arguments(
            self.passes, lambda array, i: self.at["constants" if array == "c" else f"{array}_at"][i]
        )

    def call(
        self,
        call: Call,
        rows: Sequence[Pointer],
        neurons: Value,
        in_reverse: Value,
        time: Value,
        first: Value,
    ) -> None:
        """Calls a function of rows, the vector function of an operation or one of a pass.

        The rows are those of the step `time`, from the neuron `first` of it on.
        """
        functions = {op: self.at[name] for name, op in self.functions.items()}
        drawn = [self.size["seed"], time, first] if call.draws else []
        write_call(self.code, call, rows, self.scalars, functions, neurons, in_reverse, drawn)

    def source(self, rows: int, row: int = 0) -> Source:
        """The LLVM module of the kernel and its functions."""
        text = self.code.text(f"define void @{self.name}(i64 %begin, i64 %end, ptr %args)")
        return Source(source([*self.code.texts, text]), self.arguments, self.functions, rows, row)


def scalar_arguments(passes: Iterable[Pass], read: Callable[[str, int], Value]) -> dict[str, Value]:
    """The scalar arguments of the calls of `passes`, by name: ``read("c", 3)`` is the constant ``c[3]``,
    ``read("p2", 0)`` the parameter ``p2[0]``.
    """
    found = {}
    for name in dict.fromkeys(n for pass_ in passes for call in pass_.sequence for n in call.scalars):
        array, _, index = name.rstrip("]").partition("[")
        found[name] = read(array, int(index))
    return found


def write_call(
    code: Code,
    call: Call,
    rows: Sequence[Pointer],
    scalars: Mapping[str, Value],
    functions: Mapping[str, Pointer],
    size: Value,
    in_reverse: Value,
    drawn: Sequence[Value] = (),
) -> None:
    """Writes a call of a pass, except of a product.

    Args:
        code: the kernel.
        call: of a function of the pass, or of an operation.
        rows: the addresses of its rows.
        scalars: as :func:`scalar_arguments` gives them.
        functions: the vector functions by operation; others call the C library.
        size: neurons of a row.
        in_reverse: how many of them are walked in reverse.
        drawn: of a pass that draws random numbers: the seed, the step, and the first neuron's number.
    """
    if isinstance(call.function, Function):
        kinds = call.function.kinds[: len(rows)]
        given = [row.of(Bytes) if kind is Bytes else row for row, kind in zip(rows, kinds, strict=True)]
        call.function.do(code, *given, *(scalars[name] for name in call.scalars), size, in_reverse, *drawn)
        return
    number = type(rows[0])
    if call.function in functions:
        called = Function.at(functions[call.function], INT, *[number] * (len(rows) + 1), LONG)
    else:
        called = _libm_row(call.function, number)
    called.do(code, size.to(INT), *rows, rows[0], code.constant(ACCURATE))


def libm_function(op: str, number: Type) -> Function:
    """The C library's function of a number for `op`."""
    row = row_of(op, "libm")
    return external_function(f"{row.libm}{'f' if number is FLOAT else ''}", number, *[number] * row.arity)


def _libm_row(op: str, kind: type[Pointer]) -> Function:
    """A function that applies the C library's `op` to a row, in place of a vector function."""
    one = libm_function(op, kind.element)

    def body(code: Code, count: Value, source: Pointer, target: Pointer, mode: Value) -> None:
        with code.loop(0, count.signed_to(LONG)) as j:
            target[j] = one(code, source[j])

    return function(f"{op}_row", body, {"count": INT, "source": kind, "target": kind, "mode": LONG})


def own(name: str) -> str:
    """The kernel's own row for what is called `name`."""
    return f"{name}.own"
