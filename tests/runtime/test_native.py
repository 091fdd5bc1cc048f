"""Kernels written in Python: the operations of the builder, and launching a kernel by argument names."""

import ctypes
from fractions import Fraction

import pytest
import torch

from hibana.runtime import build
from hibana.runtime.kernels import (
    BYTE,
    DOUBLE,
    FLOAT,
    INT,
    LONG,
    SHORT,
    Bytes,
    Code,
    Doubles,
    Floats,
    Function,
    Group,
    Ints,
    Longs,
    Pointer,
    Shorts,
    Value,
    definition,
    external_function,
    function,
    kernel,
    module,
)
from interpreter import checked


@pytest.fixture(autouse=True)
def _also_interpreted():
    """Every kernel of this file also runs in the interpreter, which checks each access."""
    with checked("calling", "chosen", "memory"):
        yield


SAMPLE = [0, 1, 2, 3, 5, 63, 64, 1 << 40, -1, -7]
BINARY = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "add to": (lambda a, b: 7 + a, lambda a, b: a + 7),
    "subtract": (lambda a, b: a - b, lambda a, b: a - b),
    "subtract from": (lambda a, b: 7 - a, lambda a, b: 7 - a),
    "multiply": (lambda a, b: a * b, lambda a, b: a * b),
    "and": (lambda a, b: a & b, lambda a, b: a & b),
    "or": (lambda a, b: a | b, lambda a, b: a | b),
    "xor": (lambda a, b: a ^ b, lambda a, b: a ^ b),
    "not": (lambda a, b: ~a, lambda a, b: ~a),
    "shift left": (lambda a, b: a << (b & 63), lambda a, b: a << (b & 63)),
    "less": (lambda a, b: (a < b).to(LONG), lambda a, b: a < b),
    "at most": (lambda a, b: (a <= b).to(LONG), lambda a, b: a <= b),
    "more": (lambda a, b: (a > b).to(LONG), lambda a, b: a > b),
    "at least": (lambda a, b: (a >= b).to(LONG), lambda a, b: a >= b),
    "equal": (lambda a, b: a.equals(b).to(LONG), lambda a, b: a == b),
    "unequal": (lambda a, b: a.differs(b).to(LONG), lambda a, b: a != b),
    "smaller": (lambda a, b: a.smaller(b), min),
    "larger": (lambda a, b: a.larger(b), max),
    "select": (lambda a, b: (a < b).select(a, 5), lambda a, b: a if a < b else 5),
    "select a number": (lambda a, b: (a < b).select(5, a), lambda a, b: 5 if a < b else a),
    "ones": (lambda a, b: a.popcount(), lambda a, b: (a & (1 << 64) - 1).bit_count()),
    "lowest": (lambda a, b: a.lowest_set_bit(), lambda a, b: (a & -a).bit_length() - 1 if a else 64),
    "narrow": (lambda a, b: a.to(BYTE).to(LONG), lambda a, b: a & 255),
    "narrow with its sign": (
        lambda a, b: a.to(SHORT).signed_to(LONG),
        lambda a, b: ((a & 65535) ^ 32768) - 32768,
    ),
}
UNSIGNED = {
    "divide": (lambda a, b: a // b.larger(1), lambda a, b: a // max(b, 1)),
    "remainder": (lambda a, b: a % b.larger(1), lambda a, b: a % max(b, 1)),
    "shift right": (lambda a, b: a >> (b & 63), lambda a, b: a >> (b & 63)),
}


@pytest.mark.parametrize("name", [*BINARY, *UNSIGNED])
def test_integers(name):
    emit, compute = {**BINARY, **UNSIGNED}[name]
    sample = [n for n in SAMPLE if n >= 0 or name in BINARY]

    @kernel
    def kernel_(code: Code, begin: Value, end: Value, *, x: Longs, y: Longs, out: Longs) -> None:
        with code.loop(begin, end) as i:
            out[i] = emit(x[i], y[i])

    pairs = torch.tensor([(a, b) for a in sample for b in sample])
    out = torch.empty(len(pairs), dtype=torch.int64)
    kernel_(len(pairs), x=pairs[:, 0].contiguous(), y=pairs[:, 1].contiguous(), out=out)
    expected = [int(compute(a, b)) & (1 << 64) - 1 for a, b in pairs.tolist()]
    assert [n & (1 << 64) - 1 for n in out.tolist()] == expected


@kernel
def of_floats(
    code: Code, begin: Value, end: Value, *, x: Floats, y: Floats, out: Floats, masks: Longs
) -> None:
    a, b = x.load(16), y.load(16)
    results = [a + b, a - b, a * b, (a < b).select(a, b), a.fused(b, a), a.shuffled(b, [*range(0, 32, 2)])]
    results += [a.lane(3).spread(16), (a + 1.5) * 0.1]
    for i, value in enumerate(results):
        (out + 16 * i).store(value)
    for i, mask in enumerate([a < b, a <= b, a.equals(b), a.differs(b), a.equals(a)]):
        masks[i] = mask.word().to(LONG)


def test_floats_are_computed_as_torch_does_and_nan_equals_nothing():
    x, y = torch.randn(16), torch.randn(16)
    x[4], y[5], x[6] = float("nan"), float("nan"), y[6]
    out, masks = torch.empty(8, 16), torch.empty(5, dtype=torch.int64)
    of_floats(1, x=x, y=y, out=out, masks=masks)
    expected = [x + y, x - y, x * y, torch.where(x < y, x, y), (x.double() * y + x).float()]
    expected += [torch.cat([x, y])[::2], x[3].expand(16), (x + 1.5) * 0.1]
    rounded_once, others = 4, [0, 1, 2, 3, 5, 6, 7]
    for i in others:
        assert torch.equal(out[i].nan_to_num(7.0), expected[i].nan_to_num(7.0)), i
    torch.testing.assert_close(out[rounded_once], expected[rounded_once], equal_nan=True)
    powers = 2 ** torch.arange(16)
    for mask, truth in zip(masks, [x < y, x <= y, x == y, x != y, x == x], strict=True):
        assert mask == (truth * powers).sum()


@kernel
def chosen(code: Code, begin: Value, end: Value, *, x: Floats, out: Floats, bits: Value) -> None:
    out.store(x.load(16).compressed(bits.mask(16)))


def test_compressed_packs_the_chosen_elements():
    x, out = torch.arange(16.0), torch.empty(16)
    chosen(1, x=x, out=out, bits=0b1000_0010_0001_1001)
    assert out[:5].tolist() == [0, 3, 4, 9, 15]


class Sizes(Group):
    """A group of numbers."""

    count: Value
    step: Value


@kernel
def copied(
    code: Code, begin: Value, end: Value, *, source: Floats, target: Floats, sizes: Sizes, vector_width: int
) -> None:
    for at, mask in code.vectors(sizes.count, vector_width):
        (target + at).store((source + at * sizes.step).load(vector_width, mask), mask)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 63, 500])
@pytest.mark.parametrize("vector_width", [4, 16, 64])
def test_vectors_write_nothing_beyond_the_count(count, vector_width):
    target = torch.full([count + 64], 7.0)
    copied(1, source=torch.arange(count + 0.0), target=target, count=count, step=1, vector_width=vector_width)
    assert target.tolist() == [*range(count), *[7.0] * 64]


@kernel
def sums(code: Code, begin: Value, end: Value, *, out: Longs, n: Value) -> None:
    with code.loop(begin, end) as i:
        total, k = code.variable(0), code.variable(0)
        with code.loop(1, n, 2) as odd, code.when((odd % 3).differs(0)):
            total.value += odd
        with code.do_while() as again:
            k.value += 3
            again(k.value < n)
        out[2 * i] = total.value
        out[2 * i + 1] = k.value


@pytest.mark.parametrize("n", [-5, 0, 1, 2, 50])
def test_loops_and_conditions(n):
    out = torch.empty(3, 2, dtype=torch.int64)
    sums(3, out=out, n=n)
    last = next(k for k in range(3, 100, 3) if k >= n)
    assert out.tolist() == [[sum(i for i in range(1, n, 2) if i % 3), last]] * 3


@kernel
def memory(code: Code, begin: Value, end: Value, *, out: Longs, small: Bytes, count: Value) -> None:
    with code.scratch((Floats, 3), (Shorts, count), (Longs, 5)) as parts:
        for i, part in enumerate(parts):
            out[i] = part.address()
        floats, shorts, longs = parts
        longs.clear(5)
        longs[3] = 9
        (out + 3).copy(longs, 5)
        shorts[0] = 513
        small[0] = shorts.of(Bytes)[1]
        floats.of(Ints)[2] = 70_000
        out[8] = floats.bytes(8).of(Ints).load().to(LONG)


def test_scratch_arrays_are_aligned_and_do_not_overlap():
    out, small = torch.empty(9, dtype=torch.int64), torch.empty(1, dtype=torch.uint8)
    memory(1, out=out, small=small, count=33)
    first, second, third, *rest = out.tolist()
    assert (first % 64, second - first, third - second) == (0, 64, 128)
    assert (rest, small.item()) == ([0, 0, 0, 9, 0, 70_000], 2)


@kernel
def streamed(code: Code, begin: Value, end: Value, *, out: Floats, absent: Floats) -> None:
    value = absent.is_not_null().select(code.constant(2.0, FLOAT), 3.0)
    out.store(value.spread(16), align=64, nontemporal=True)


def test_nontemporal_stores_and_null_addresses():
    out = torch.empty(16)
    streamed(1, out=out, absent=None)
    assert out.tolist() == [3.0] * 16
    assert "!nontemporal" in streamed.source()
    streamed(1, out=out, absent=out)
    assert out.tolist() == [2.0] * 16


def test_arguments_are_bound_by_name():
    x = torch.zeros(16)
    with pytest.raises(TypeError, match=r"kernel chosen: missing \['bits'\], not among .* \['bit'\]"):
        chosen(1, x=x, out=x, bit=3)
    with pytest.raises(TypeError, match=r"missing \['count'\]"):
        copied(1, source=x, target=x, step=1, vector_width=16)


def test_a_kernel_is_split_among_threads_and_each_piece_is_done_once():
    @kernel
    def counted(code: Code, begin: Value, end: Value, *, out: Ints) -> None:
        with code.loop(begin, end) as i:
            out[i] = out[i] + i.to(INT)

    out = torch.zeros(1000, dtype=torch.int32)
    counted(1000, 10, out=out)
    assert torch.equal(out, torch.arange(1000, dtype=torch.int32))


@kernel
def of_doubles(code: Code, begin: Value, end: Value, *, x: Doubles, out: Doubles) -> None:
    a, b = x[0], x[1]
    for i, value in enumerate([a / b, 1 / a, -a, abs(-a), a.fma(b, 0.1), a.to(FLOAT).to(DOUBLE)]):
        out[i] = value
    out[6] = code.constant(2).float_from_bits()


def test_doubles_are_computed_as_python_does():
    a, b = 2.7, -3.3
    x, out = torch.tensor([a, b], dtype=torch.float64), torch.empty(7, dtype=torch.float64)
    of_doubles(1, x=x, out=out)
    assert out[:4].tolist() == [a / b, 1 / a, -a, a]
    exact = Fraction(a) * Fraction(b) + Fraction(0.1)
    assert out[4:].tolist() == [float(exact), torch.tensor(a).item(), 2 * 5e-324]


def _norm(code: Code, x: Doubles, y: Value) -> Value:
    return external_function("sqrt", DOUBLE, DOUBLE)(code, x[0] * x[0] + y * y)


def _doubled(code: Code, x: Doubles) -> None:
    x[0] = x[0] + x[0]


NORM = function("norm", _norm, {"x": Doubles, "y": DOUBLE})
DOUBLED = function("doubled", _doubled, {"x": Doubles})


@kernel
def calling(code: Code, begin: Value, end: Value, *, out: Doubles, negated: Value) -> None:
    array = code.array(Doubles, 3)
    array.store(code.constant(3.0, DOUBLE.of(3)))
    vector = array.load(3)
    out[0] = NORM(code, array, code.constant(4.0, DOUBLE))
    out[1] = NORM(code, out, code.constant(12.0, DOUBLE))
    DOUBLED.do(code, out)
    DOUBLED.do(code, array)
    Function.at_address(Pointer.from_address(negated), Doubles).do(code, array + 1)
    (out + 2).store(vector.with_lane(1, array[0]))
    (out + 5).store(array.load(3))


def test_functions_are_called_by_name_and_by_address():
    @ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_double))
    def negated(place):
        place[0] = -place[0]

    address = ctypes.cast(negated, ctypes.c_void_p).value
    out = torch.empty(8, dtype=torch.float64)
    calling(1, out=out, negated=address)
    assert out.tolist() == [10, 13, 3, 6, 3, 6, -3, 3]
    assert calling.source().count("declare double @sqrt(double)") == 1


@kernel
def listed(code: Code, begin: Value, end: Value, *, words: Longs, out: Longs) -> None:
    n = code.variable(0)
    with code.loop(begin, end) as i, code.each_bit(words[i]) as bit:
        out[n.value] = bit
        n.value += 1
    out[n.value] = -1


def test_each_set_bit_is_visited_once_from_the_lowest():
    words, out = torch.tensor([0, 0b1001, -(2**63), 0]), torch.empty(9, dtype=torch.int64)
    listed(4, 8, words=words, out=out)
    assert out[:4].tolist() == [0, 3, 63, -1]


def _lines(body, *names) -> list[str]:
    """Lines of the LLVM function of `body`, with 64-bit integer arguments called `names`."""
    return module(definition("written", body, dict.fromkeys(names, LONG), "internal")).split("\n")


def _between(lines: list[str], instruction: str, first: str, last: str) -> bool:
    """Whether the only line with `instruction` lies between the starts of the blocks `first` and `last`."""
    (index,) = [i for i, line in enumerate(lines) if f" = {instruction}" in line]
    return lines.index(f"{first}:") < index < lines.index(f"{last}:")


def test_divisions_and_changed_values_stay_in_their_loop():
    def body(code: Code, count: Value, by: Value) -> Value:
        total = code.variable(by)
        with code.loop(0, count):
            total.value += count // by + total.value * by
        return total.value

    lines = [line.strip() for line in _lines(body, "count", "by")]
    assert _between(lines, "udiv i64 %count, %by", ".i2.body", ".i2.again")
    assert _between(lines, "mul i64", ".i2.body", ".i2.again")


def test_loops_within_and_after_loops_and_conditions():
    @kernel
    def computed(code: Code, begin: Value, end: Value, *, x: Longs, out: Longs, by: Value) -> None:
        with code.loop(begin, end) as i:
            here, total = x[i], code.variable(0)
            with code.when(here > 3):
                more = here * by
                with code.loop(0, here) as j, code.loop(0, j) as k:
                    total.value += more * more + (j ^ by) + k
            times = code.variable(0)
            with code.do_while() as again:
                times.value += 1
                squared = times.value * times.value
                again(squared < here)
            with code.loop(0, 2):
                with code.each_bit(here) as bit:
                    total.value += (bit + squared) * by
                total.value += squared
            out[i] = total.value

    x = torch.tensor([0, 1, 3, 4, 9, 30])
    out = torch.empty_like(x)
    computed(len(x), x=x, out=out, by=5)
    for here, result in zip(x.tolist(), out.tolist(), strict=True):
        pairs = [(j, k) for j in range(here) for k in range(j)] if here > 3 else []
        squared = next(n * n for n in range(1, here + 2) if n * n >= here)
        expected = sum((here * 5) ** 2 + (j ^ 5) + k for j, k in pairs) + 2 * squared
        bits = [bit for bit in range(64) if here >> bit & 1]
        assert result == expected + 2 * sum((bit + squared) * 5 for bit in bits)


LOOP = """
define i64 @sum(ptr %from, i64 %count) {
begin:
  br label %loop
loop:
  %i = phi i64 [ 0, %begin ], [ %next, %loop ]
  %sum = phi i64 [ 0, %begin ], [ %added, %loop ]
  %first = mul i64 %i, 40
  %second = add i64 %first, 80000
  %a = getelementptr i8, ptr %from, i64 %first
  %b = getelementptr i8, ptr %from, i64 %second
  %x = load i64, ptr %a
  %y = load volatile i64, ptr %b
  %both = add i64 %x, %y
  %added = add i64 %sum, %both
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %end
end:
  ret i64 %added
}
"""


def test_code_of_other_libraries_is_compiled_as_before() -> None:
    """A kernel may be compiled without one pass, an option that LLVM has per process."""
    import llvmlite.binding as llvm

    def compile_loop() -> bytes:
        _, machine = build.host()
        return bytes(machine.emit_object(llvm.parse_assembly(LOOP)))

    llvm.set_option("", "-disable-lsr=true")
    without = compile_loop()
    llvm.set_option("", "-disable-lsr=false")  # as it was before any kernel was compiled
    before = compile_loop()
    assert without != before
    ours = build._compile(LOOP)
    assert compile_loop() == before
    assert ours != before
    with pytest.raises(RuntimeError):
        build._compile("nonsense")
    assert compile_loop() == before


def test_a_negated_view_is_refused():
    @kernel
    def first(code: Code, begin: Value, end: Value, *, source: Floats, target: Floats) -> None:
        target[0] = source[0]

    numbers, target = torch.tensor([2.0]), torch.zeros(1)
    with pytest.raises(ValueError, match=r"call resolve_neg\(\)"):
        first(1, source=torch.complex(numbers, numbers).conj().imag, target=target)


def test_mistakes_raise_an_error_while_the_kernel_is_written():
    code = Code()
    with pytest.raises(TypeError, match="unknown while the kernel is built"):
        max(code.constant(1), code.constant(2))
    with pytest.raises(TypeError, match="must have one type, got i64 and float"):
        code.constant(1) + code.constant(1.0, FLOAT)
    with pytest.raises(TypeError, match="a variable of i64 cannot become float"):
        code.variable(0).value = code.constant(1.0, FLOAT)
    with pytest.raises(TypeError, match="yes or no must be a value of the kernel, got 1 and 2"):
        code.constant(1).equals(1).select(1, 2)
    with pytest.raises(TypeError, match=r"norm takes \['ptr', 'double'\], got \['ptr', 'i64'\]"):
        NORM(code, code.array(Doubles, 1), code.constant(1))
    with pytest.raises(AssertionError, match="doubled returns nothing"):
        DOUBLED(code, code.array(Doubles, 1))
