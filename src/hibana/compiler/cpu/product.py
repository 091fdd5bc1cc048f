"""Products of rows of neurons with a matrix inside a kernel: per non-zero value where a row is sparse.

A matrix ``[inputs, outputs]`` is a *table*: its rows are padded with zeros to whole panels of :data:`PANEL`
numbers. ``y = x M`` adds a row of the table per non-zero of ``x``, or, where many are, goes through the table
for several samples at a time; ``y = g M^T`` under a mask is one dot product per set bit. Sums are in another
order than PyTorch's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hibana.compiler.cpu.row_function import LINE
from hibana.runtime.kernels import (
    INT,
    LONG,
    Bytes,
    Code,
    Function,
    Ints,
    Kind,
    Longs,
    Pointer,
    Value,
    Variable,
    compresses,
    function,
)

PANEL = 64
"""Numbers of a table's row that are summed in registers at a time."""

DENSE_FROM = 4
"""The product is dense where more than one value in as many is not zero."""


class Tiles(NamedTuple):
    """How many sums of a product are kept in registers; more would go through memory at each addition."""

    samples: int
    """Samples of a tile of a dense product, a power of two."""
    vectors: int
    """Vectors of :data:`LINE` bytes of such a tile."""
    panels: int
    """Panels that are summed at once in a sparse product."""
    dots: int
    """Dot products that are computed at once, and share what they read of the gradient."""


def tiles() -> Tiles:
    """For AVX-512, which has 32 registers of 64 bytes; else for processors with 16 of 32 bytes, as AVX2."""
    if compresses():
        return Tiles(samples=4, vectors=4, panels=2, dots=8)
    return Tiles(samples=4, vectors=1, panels=1, dots=6)


def table_stride(count: int, size: int) -> int:
    """Numbers from one row of a table to the next, for rows of `count` numbers of `size` bytes.

    It is a cache line more than a row: rows whose distance is a multiple of a page share few cache sets.
    """
    return padded(count) + LINE // size


def padded(count: int) -> int:
    """`count` rounded up to whole panels."""
    return -(-count // PANEL) * PANEL


def product(number: type[Pointer]) -> Function:
    """For each sample, ``y = x M``.

    ``x_step`` and ``y_step`` are strides of samples; `y` has whole panels; `places`, `values` and `counts`
    are scratch memory for the lists of all samples.
    """
    kinds: dict[str, Kind] = {"x": number, "x_step": LONG, "table": number, "y": number, **_SIZES}
    return function("product", _product, {**kinds, "places": Ints, "values": number, "counts": Longs})


def product_at(number: type[Pointer]) -> Function:
    """For each sample, ``y = g M^T`` where its `bits` are set, and zero elsewhere; the table is that of M.

    ``g`` has whole panels that end in zeros; `indices` is scratch memory.
    """
    kinds: dict[str, Kind] = {"g": number, "g_step": LONG, "table": number}
    kinds |= {"bits": Bytes, "bits_step": LONG, "y": number}
    return function("product_at", _product_at, {**kinds, **_SIZES, "indices": Longs})


_SIZES = dict.fromkeys(("y_step", "samples", "inputs", "outputs"), LONG)


@dataclass
class _Product:
    code: Code
    x: Pointer
    x_step: Value
    table: Pointer
    y: Pointer
    y_step: Value
    samples: Value
    inputs: Value
    outputs: Value
    places: Ints
    values: Pointer
    counts: Longs

    def __post_init__(self) -> None:
        self.width = LINE // self.x.element.size
        self.table_stride = _bytes_of_a_row(self.table, self.outputs)

    def sums(self, vectors: int) -> list[Variable]:
        """Accumulators for so many vectors, each zero."""
        zeros = self.code.constant(0, self.x.element.of(self.width))
        return [self.code.variable(zeros) for _ in range(vectors)]

    def row(self, place: Pointer, vectors: int) -> list[Value]:
        """So many vectors of a row of the table."""
        return [(place + self.width * i).load(self.width) for i in range(vectors)]

    def write(self, sums: Sequence[Variable], sample: Value, first: Value) -> None:
        """Stores the `sums` in a sample's result, from its number `first` on."""
        y = self.y + (sample * self.y_step + first)
        for i, one in enumerate(sums):
            (y + self.width * i).store(one.value)


def _add_products(sums: Sequence[Variable], factor: Value, vectors: Sequence[Value]) -> None:
    """``sums += factor * vectors``, each rounded once."""
    for one, vector in zip(sums, vectors, strict=True):
        one.value = factor.fma(vector, one.value)


def _product(code: Code, **arguments: Pointer | Value) -> None:
    p = _Product(code, **arguments)  # type: ignore[arg-type] # by name, as `product` has them
    number = type(p.x)
    kinds: dict[str, Kind] = {"x": number, "inputs": LONG, "places": Ints, "values": number}
    list_nonzero = function("listed", _listed, kinds)
    total = code.variable(0)

    def are_few() -> Value:  # numbers listed so far; listing stops once they are many
        return total.value * DENSE_FROM < p.samples * p.inputs

    with code.loop(0, p.samples) as s, code.when(are_few()):
        at = s * p.inputs
        n = list_nonzero(code, p.x + s * p.x_step, p.inputs, p.places + at, p.values + at)
        p.counts[s] = n
        total.value += n
    few = are_few()
    tile = tiles()
    with code.when(few):
        wide = p.outputs & -tile.panels * PANEL
        _by_list(p, tile.panels, 0, wide)
        if tile.panels > 1:
            _by_list(p, 1, wide, p.outputs)
    in_tiles = p.samples & -tile.samples
    with code.when(~few):
        with code.loop(0, p.outputs, tile.vectors * p.width) as first:
            _through(p, first, tile.vectors, tile.samples, 0, in_tiles)
        with code.loop(0, p.outputs, PANEL) as first:
            _through(p, first, PANEL // p.width, 1, in_tiles, p.samples)


def _listed(code: Code, x: Pointer, inputs: Value, places: Ints, values: Pointer) -> Value:
    """Lists the non-zero numbers of `x` and their positions; returns how many there are."""
    n = code.variable(0)
    for at, there in code.vectors(inputs, LINE // x.element.size):
        some = (x + at).load(LINE // x.element.size, there).differs(0)
        with code.each_bit(some.word()) as bit:
            place = at + bit.to(LONG)
            values[n.value] = x[place]
            places[n.value] = place.to(INT)
            n.value += 1
    return n.value


def _by_list(p: _Product, panels: int, first: Value | int, last: Value) -> None:
    """The sparse product's panels from `first` to `last`, so many at once."""
    code = p.code
    with code.loop(first, last, panels * PANEL) as panel, code.loop(0, p.samples) as s:
        at, table, sums = s * p.inputs, p.table + panel, p.sums(panels * PANEL // p.width)
        places, values = p.places + at, p.values + at
        with code.loop(0, p.counts[s]) as e:
            row = p.row(table.bytes(places[e].to(LONG) * p.table_stride), len(sums))
            _add_products(sums, values[e].spread(p.width), row)
        p.write(sums, s, panel)


def _through(p: _Product, begun: Value, vectors: int, per_tile: int, first: Value | int, last: Value) -> None:
    """So many vectors of the dense product, from output `begun` on, for samples `first` to `last`, `per_tile`
    at once.
    """
    code, table = p.code, p.table + begun
    with code.loop(first, last, per_tile) as s:
        samples = [s + i for i in range(per_tile)]
        xs, sums = [p.x + i * p.x_step for i in samples], [p.sums(vectors) for _ in samples]
        with code.loop(0, p.inputs) as k:
            row = p.row(table.bytes(k * p.table_stride), len(sums[0]))
            for x, each in zip(xs, sums, strict=True):
                _add_products(each, x[k].spread(p.width), row)
        for sample, each in zip(samples, sums, strict=True):
            p.write(each, sample, begun)


NEAR = 384 << 10
"""Bytes of a table that all samples read before the next part: a part of L2."""


def _product_at(
    code: Code,
    g: Pointer,
    g_step: Value,
    table: Pointer,
    bits: Bytes,
    bits_step: Value,
    y: Pointer,
    y_step: Value,
    samples: Value,
    inputs: Value,
    outputs: Value,
    indices: Longs,
) -> None:
    kinds: dict[str, Kind] = {"bits": Bytes, "inputs": LONG, "indices": Longs}
    bits_listed = function("bits_listed", _bits_listed, kinds)
    row = _bytes_of_a_row(table, outputs)
    tile = ((code.constant(NEAR) // row) & -64).larger(64)
    with code.loop(0, (inputs + tile) // tile) as i, code.loop(0, samples) as s:
        begun = i * tile
        here = (inputs - begun).smaller(tile)
        rows, out, given = table.bytes(begun * row), y + (s * y_step + begun), g + s * g_step
        out.clear(here)
        n = bits_listed(code, bits + (s * bits_step + (begun >> 3)), here, indices)
        at_once = tiles().dots
        whole = n // at_once * at_once
        _dots(code, out, rows, row, given, outputs, indices, at_once, 0, whole)
        _dots(code, out, rows, row, given, outputs, indices, 1, whole, n)


def _dots(
    code: Code,
    out: Pointer,
    rows: Pointer,
    row: Value,
    given: Pointer,
    outputs: Value,
    indices: Longs,
    per_tile: int,
    first: Value | int,
    last: Value,
) -> None:
    """The dot products of `given` with the rows `indices` of the table, `per_tile` at once."""
    width = LINE // given.element.size
    zeros = code.constant(0, given.element.of(width))
    with code.loop(first, last, per_tile) as e:
        chosen = [indices[e + k] for k in range(per_tile)]
        places = [rows.bytes(index * row) for index in chosen]
        sums = [code.variable(zeros) for _ in chosen]
        with code.loop(0, outputs, width) as j:
            vectors = [(place + j).load(width) for place in places]
            _add_products(sums, (given + j).load(width), vectors)
        for index, one in zip(chosen, sums, strict=True):
            out[index] = one.value.sum()


def _bits_listed(code: Code, bits: Bytes, inputs: Value, indices: Longs) -> Value:
    """Lists which of the first `inputs` bits are set; returns how many."""
    n = code.variable(0)
    with code.loop(0, inputs, 8) as i, code.each_bit(bits[i >> 3]) as bit:
        indices[n.value] = i + bit.to(LONG)
        n.value += 1
    return n.value


def _bytes_of_a_row(table: Pointer, outputs: Value) -> Value:
    """:func:`table_stride` in bytes, of a table whose `outputs` are padded."""
    return outputs * table.element.size + LINE
