"""Products of rows of neurons with a matrix, inside a kernel: per spike where a row is mostly zero.

A matrix ``[inputs, outputs]`` is a *table*: its rows lie one after the other, each padded with zeros to whole
panels of :data:`PANEL` numbers. ``y = x M`` adds a row of the table per number of ``x`` that is not zero, or,
where most are not, goes through the whole table for several samples at a time; ``y = g M^T`` at chosen places
is one dot product with a row of the table each. Sums are in another order than PyTorch's.
"""

from hibana.loop.cpu.body import LINE, SIZE
from hibana.native import Writer

__all__ = ["PANEL", "padded", "product_functions", "table_step"]

PANEL = 64
"""Numbers of a row of a table that are summed in registers at a time."""

DENSE_FROM = 4
"""A row's list of numbers is added one by one if it is shorter than this part of it: a quarter."""

TOGETHER = 4
"""Samples that a dense product goes through the table for at once."""

WIDE = 2
"""Panels that are summed at once where numbers are added one by one."""

_LANES = {"float": 16, "double": 8}


def table_step(count: int, size: int) -> int:
    """Numbers of `size` bytes from one row of a table to the next, for rows of `count`.

    A line of a cache more than the row, or rows would lie a page apart and share few places of a cache.
    """
    return padded(count) + LINE // size


def padded(count: int) -> int:
    """`count` numbers to whole panels."""
    return -(-count // PANEL) * PANEL


class _Lanes:
    """Vectors of one register of AVX-512, and the sums that are kept in them."""

    def __init__(self, writer: Writer, real: str) -> None:
        self.writer = writer
        self.real = real
        self.lanes = _LANES[real]
        self.kind = f"<{self.lanes} x {real}>"
        self.count = PANEL // self.lanes
        self.suffix = f"v{self.lanes}f{8 * SIZE[real]}"

    def sums(self, rows: int) -> list[list[str]]:
        """Registers for `rows` panels of sums, each zero."""
        made = []
        for _ in range(rows):
            row = [self.writer.let("", f"alloca {self.kind}, align 64") for _ in range(self.count)]
            made.append(row)
        return made

    def clear(self, sums: list[list[str]]) -> None:
        for row in sums:
            for place in row:
                self.writer.do(f"store {self.kind} zeroinitializer, ptr {place}, align 64")

    def load(self, base: str, vector: int) -> str:
        place = self.writer.row("", self.real, base, str(vector * self.lanes)) if vector else base
        return self.writer.let("", f"load {self.kind}, ptr {place}, align {SIZE[self.real]}")

    def store(self, value: str, base: str, vector: int) -> None:
        place = self.writer.row("", self.real, base, str(vector * self.lanes)) if vector else base
        self.writer.do(f"store {self.kind} {value}, ptr {place}, align {SIZE[self.real]}")

    def splat(self, value: str) -> str:
        one = self.writer.let("", f"insertelement {self.kind} poison, {self.real} {value}, i64 0")
        return self.writer.let(
            "",
            f"shufflevector {self.kind} {one}, {self.kind} poison, <{self.lanes} x i32> zeroinitializer",
        )

    def add_product(self, place: str, x: str, y: str) -> None:
        """``place += x * y``, rounded once."""
        before = self.writer.let("", f"load {self.kind}, ptr {place}, align 64")
        after = self.writer.let(
            "",
            f"call {self.kind} @llvm.fma.{self.suffix}({self.kind} {x}, {self.kind} {y}, "
            f"{self.kind} {before})",
        )
        self.writer.do(f"store {self.kind} {after}, ptr {place}, align 64")

    def out(self, place: str, base: str, vector: int) -> None:
        self.store(self.writer.let("", f"load {self.kind}, ptr {place}, align 64"), base, vector)


def product_functions(real: str) -> list[str]:
    """The functions ``@product`` and ``@product_at``, for numbers of type `real`."""
    return [_listed(real), _product(real), _bits_listed(), _product_at(real)]


def _function(name: str, result: str, arguments: str, lines: list[str]) -> str:
    return "\n".join([f"define internal {result} @{name}({arguments}) {{", *lines, "}"])


def _listed(real: str) -> str:
    """``@listed(x, inputs, table_step, offsets, values)``: the numbers of `x` that are not zero.

    Of each the value, and how far into the table, in bytes, its row begins; it returns how many there are.
    """
    writer = Writer()
    v = _Lanes(writer, real)
    lanes = v.lanes
    found = writer.let("found", "alloca i64")
    left = writer.let("left", f"alloca i{lanes}")
    writer.do(f"store i64 0, ptr {found}")
    whole = writer.let("whole", f"and i64 %inputs, {-lanes}")
    with writer.loop("i", "0", whole, lanes) as i:
        values = writer.let("", f"load {v.kind}, ptr {writer.row('', real, '%x', i)}, align {SIZE[real]}")
        _list(writer, v, values, i, left, found, "bit")
    rest = writer.let("rest", f"sub i64 %inputs, {whole}")
    some = writer.let("some", f"icmp ne i64 {rest}, 0")
    with writer.when("tail", some):
        ids = ", ".join(f"i64 {i}" for i in range(lanes))
        one = writer.let("", f"insertelement <{lanes} x i64> poison, i64 {rest}, i64 0")
        all_ = writer.let(
            "",
            f"shufflevector <{lanes} x i64> {one}, <{lanes} x i64> poison, <{lanes} x i32> zeroinitializer",
        )
        there = writer.let("", f"icmp slt <{lanes} x i64> <{ids}>, {all_}")
        values = writer.let(
            "",
            f"call {v.kind} @llvm.masked.load.{v.suffix}.p0(ptr {writer.row('', real, '%x', whole)}, "
            f"i32 {SIZE[real]}, <{lanes} x i1> {there}, {v.kind} zeroinitializer)",
        )
        _list(writer, v, values, whole, left, found, "last")
    writer.do(f"ret i64 {writer.let('', f'load i64, ptr {found}')}")
    return _function(
        "listed", "i64", "ptr %x, i64 %inputs, i64 %table_step, ptr %offsets, ptr %values", writer.lines
    )


def _list(writer: Writer, v: _Lanes, values: str, first: str, left: str, found: str, name: str) -> None:
    """Lists those of a vector of `values`, the first of which is number `first`, that are not zero."""
    lanes, real = v.lanes, v.real
    some = writer.let("", f"fcmp une {v.kind} {values}, zeroinitializer")
    word = writer.let("", f"bitcast <{lanes} x i1> {some} to i{lanes}")
    writer.do(f"store i{lanes} {word}, ptr {left}")
    with writer.until_zero(name, f"i{lanes}", left) as bits:
        bit = writer.let("", f"call i{lanes} @llvm.cttz.i{lanes}(i{lanes} {bits}, i1 true)")
        index = writer.let("", f"add i64 {first}, {writer.let('', f'zext i{lanes} {bit} to i64')}")
        n = writer.let("", f"load i64, ptr {found}")
        value = writer.let("", f"load {real}, ptr {writer.row('', real, '%x', index)}")
        writer.do(f"store {real} {value}, ptr {writer.row('', real, '%values', n)}")
        offset = writer.let("", f"mul i64 {index}, %table_step")
        writer.do(f"store i64 {offset}, ptr {writer.row('', 'i64', '%offsets', n)}")
        writer.do(f"store i64 {writer.let('', f'add i64 {n}, 1')}, ptr {found}")


def _product(real: str) -> str:
    """``@product``: for each sample, ``y = x M``.

    ``x_step`` and ``y_step`` are numbers between samples; `y` has whole panels, `offsets`, `values` and
    `counts` are memory of its own, for the lists of all samples.
    """
    writer = Writer()
    v = _Lanes(writer, real)
    size = SIZE[real]
    writer.let("table_step", f"add i64 {writer.let('', f'mul i64 %outputs, {size}')}, {LINE}")
    total = writer.let("total", "alloca i64")
    sums = v.sums(TOGETHER)
    writer.do(f"store i64 0, ptr {total}")
    with writer.loop("s", "0", "%samples") as s:
        x = writer.row("", real, "%x", writer.let("", f"mul i64 {s}, %x_step"))
        at = writer.let("", f"mul i64 {s}, %inputs")
        offsets, values = writer.row("", "i64", "%offsets", at), writer.row("", real, "%values", at)
        n = writer.let(
            "",
            f"call i64 @listed(ptr {x}, i64 %inputs, i64 %table_step, ptr {offsets}, ptr {values})",
        )
        writer.do(f"store i64 {n}, ptr {writer.row('', 'i64', '%counts', s)}")
        before = writer.let("", f"load i64, ptr {total}")
        writer.do(f"store i64 {writer.let('', f'add i64 {before}, {n}')}, ptr {total}")
    all_ = writer.let("", f"load i64, ptr {total}")
    most = writer.let("", "mul i64 %samples, %inputs")
    few = writer.let("few", f"icmp slt i64 {writer.let('', f'mul i64 {all_}, {DENSE_FROM}')}, {most}")
    many = writer.let("many", "xor i1 %few, true")
    wide = writer.let("wide", f"and i64 %outputs, {-WIDE * PANEL}")
    with writer.when("by.list", few):
        _by_list(writer, v, sums[:WIDE], "p", "0", wide)
        _by_list(writer, v, sums[:1], "o", wide, "%outputs")
    whole = writer.let("whole", f"and i64 %samples, {-TOGETHER}")
    with writer.when("by.all", many), writer.loop("q", "0", "%outputs", PANEL) as q:
        table = writer.row("", real, "%table", q)
        _through(writer, v, table, q, sums, "f", "0", whole)
        _through(writer, v, table, q, sums[:1], "g", whole, "%samples")
    writer.do("ret void")
    return _function(
        "product",
        "void",
        "ptr %x, i64 %x_step, ptr %table, ptr %y, i64 %y_step, i64 %samples, i64 %inputs, i64 %outputs, "
        "ptr %offsets, ptr %values, ptr %counts",
        writer.lines,
    )


def _by_list(writer: Writer, v: _Lanes, sums: list[list[str]], name: str, first: str, last: str) -> None:
    """Panels `first` to `last` of ``y = x M`` by lists, as many at once as there are `sums`."""
    real = v.real
    places = [place for panel in sums for place in panel]
    with (
        writer.loop(name, first, last, len(sums) * PANEL) as p,
        writer.loop(f"{name}.s", "0", "%samples") as s,
    ):
        table = writer.row("", real, "%table", p)
        n = writer.let("", f"load i64, ptr {writer.row('', 'i64', '%counts', s)}")
        at = writer.let("", f"mul i64 {s}, %inputs")
        offsets, values = writer.row("", "i64", "%offsets", at), writer.row("", real, "%values", at)
        v.clear(sums)
        with writer.loop(f"{name}.e", "0", n) as e:
            offset = writer.let("", f"load i64, ptr {writer.row('', 'i64', offsets, e)}")
            value = writer.let("", f"load {real}, ptr {writer.row('', real, values, e)}")
            row, factor = writer.row("", "i8", table, offset), v.splat(value)
            for i, place in enumerate(places):
                v.add_product(place, factor, v.load(row, i))
        y = writer.row(
            "", real, "%y", writer.let("", f"add i64 {writer.let('', f'mul i64 {s}, %y_step')}, {p}")
        )
        for i, place in enumerate(places):
            v.out(place, y, i)


def _through(
    writer: Writer,
    v: _Lanes,
    table: str,
    panel: str,
    sums: list[list[str]],
    name: str,
    first: str,
    last: str,
) -> None:
    """The panel of ``y = x M`` for samples `first` to `last`, as many at once as there are `sums`."""
    real = v.real
    with writer.loop(name, first, last, len(sums)) as s:
        v.clear(sums)
        samples = [writer.let("", f"add i64 {s}, {i}") for i in range(len(sums))]
        xs = [writer.row("", real, "%x", writer.let("", f"mul i64 {i}, %x_step")) for i in samples]
        with writer.loop(f"{name}.k", "0", "%inputs") as k:
            row = writer.row("", "i8", table, writer.let("", f"mul i64 {k}, %table_step"))
            vectors = [v.load(row, i) for i in range(v.count)]
            for x, places in zip(xs, sums, strict=True):
                factor = v.splat(writer.let("", f"load {real}, ptr {writer.row('', real, x, k)}"))
                for place, vector in zip(places, vectors, strict=True):
                    v.add_product(place, factor, vector)
        for sample, places in zip(samples, sums, strict=True):
            out = writer.let("", f"add i64 {writer.let('', f'mul i64 {sample}, %y_step')}, {panel}")
            y = writer.row("", real, "%y", out)
            for i, place in enumerate(places):
                v.out(place, y, i)


def _bits_listed() -> str:
    """``@bits_listed(bits, inputs, indices)``: which of the first `inputs` bits are set, and how many."""
    writer = Writer()
    found, left = writer.let("found", "alloca i64"), writer.let("left", "alloca i8")
    writer.do(f"store i64 0, ptr {found}")
    with writer.loop("i", "0", "%inputs", 8) as i:
        octet = writer.let(
            "", f"load i8, ptr {writer.row('', 'i8', '%bits', writer.let('', f'lshr i64 {i}, 3'))}"
        )
        writer.do(f"store i8 {octet}, ptr {left}")
        with writer.until_zero("bit", "i8", left) as bits:
            bit = writer.let("", f"call i8 @llvm.cttz.i8(i8 {bits}, i1 true)")
            index = writer.let("", f"add i64 {i}, {writer.let('', f'zext i8 {bit} to i64')}")
            n = writer.let("", f"load i64, ptr {found}")
            writer.do(f"store i64 {index}, ptr {writer.row('', 'i64', '%indices', n)}")
            writer.do(f"store i64 {writer.let('', f'add i64 {n}, 1')}, ptr {found}")
    writer.do(f"ret i64 {writer.let('', f'load i64, ptr {found}')}")
    return _function("bits_listed", "i64", "ptr %bits, i64 %inputs, ptr %indices", writer.lines)


NEAR = 384 << 10
"""Bytes of a table that several samples read one after another: a part of a second-level cache."""

AT_ONCE = 8
"""Dot products that are computed together, sharing what they read of the gradient."""


def _product_at(real: str) -> str:
    """``@product_at``: for each sample, ``y = g M^T`` where its `bits` are set, and zero elsewhere.

    The table is that of M; ``g`` has whole panels that end in zeros.
    """
    writer = Writer()
    v = _Lanes(writer, real)
    sums = [writer.let("", f"alloca {v.kind}, align 64") for _ in range(AT_ONCE)]
    row = writer.let("table_step", f"add i64 {writer.let('', f'mul i64 %outputs, {SIZE[real]}')}, {LINE}")
    fit = writer.let("", f"and i64 {writer.let('', f'udiv i64 {NEAR}, {row}')}, -64")
    tile = writer.let("tile", f"call i64 @llvm.smax.i64(i64 {fit}, i64 64)")
    tiles = writer.let("", f"udiv i64 {writer.let('', f'add i64 %inputs, {tile}')}, {tile}")
    with writer.loop("tiled", "0", tiles) as i, writer.loop("s", "0", "%samples") as s:
        begun = writer.let("begun", f"mul i64 {i}, {tile}")
        rest = writer.let("", f"sub i64 %inputs, {begun}")
        here = writer.let("here", f"call i64 @llvm.smin.i64(i64 {rest}, i64 {tile})")
        bytes_ = writer.let("", f"mul i64 {here}, {SIZE[real]}")
        table = writer.row("", "i8", "%table", writer.let("", f"mul i64 {begun}, %table_step"))
        y = writer.row(
            "", real, "%y", writer.let("", f"add i64 {writer.let('', f'mul i64 {s}, %y_step')}, {begun}")
        )
        g = writer.row("", real, "%g", writer.let("", f"mul i64 {s}, %g_step"))
        skipped = writer.let(
            "",
            f"add i64 {writer.let('', f'mul i64 {s}, %bits_step')}, {writer.let('', f'lshr i64 {begun}, 3')}",
        )
        bits = writer.row("", "i8", "%bits", skipped)
        writer.do(f"call void @llvm.memset.p0.i64(ptr {y}, i8 0, i64 {bytes_}, i1 false)")
        n = writer.let("", f"call i64 @bits_listed(ptr {bits}, i64 {here}, ptr %indices)")
        whole = writer.let("", f"and i64 {n}, {-AT_ONCE}")
        for name, first, last, count in (("f", "0", whole, AT_ONCE), ("h", whole, n, 1)):
            with writer.loop(name, first, last, count) as e:
                indices, rows = [], []
                for k in range(count):
                    at = writer.let("", f"add i64 {e}, {k}")
                    index = writer.let("", f"load i64, ptr {writer.row('', 'i64', '%indices', at)}")
                    indices.append(index)
                    rows.append(writer.row("", "i8", table, writer.let("", f"mul i64 {index}, %table_step")))
                    writer.do(f"store {v.kind} zeroinitializer, ptr {sums[k]}, align 64")
                with writer.loop(f"{name}.j", "0", "%outputs", v.lanes) as j:
                    given = v.load(writer.row("", real, g, j), 0)
                    for place, row in zip(sums, rows, strict=False):
                        v.add_product(place, given, v.load(writer.row("", real, row, j), 0))
                for place, index in zip(sums, indices, strict=False):
                    vector = writer.let("", f"load {v.kind}, ptr {place}, align 64")
                    kind = f"{real} @llvm.vector.reduce.fadd.{v.suffix}"
                    value = writer.let("", f"call reassoc {kind}({real} -0.0, {v.kind} {vector})")
                    writer.do(f"store {real} {value}, ptr {writer.row('', real, y, index)}")
    writer.do("ret void")
    return _function(
        "product_at",
        "void",
        "ptr %g, i64 %g_step, ptr %table, ptr %bits, i64 %bits_step, ptr %y, i64 %y_step, i64 %samples, "
        "i64 %inputs, i64 %outputs, ptr %indices",
        writer.lines,
    )
