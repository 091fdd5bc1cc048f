"""Products of several samples with a matrix inside a kernel, at a cost per non-zero value if these are few.

A matrix ``[inputs, outputs]`` is a *table*: its rows are padded with zeros to full panels of :data:`PANEL`
numbers. ``y = x M`` adds a row of the table per non-zero of ``x``. If many values are not zero, it reads the
table once for several samples. ``y = g M^T`` under a mask is one dot product per set bit. The order of the
sums differs from PyTorch's.
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
"""Numbers of a table's row that a kernel sums in registers at once."""

DENSE_FROM = 4
"""The product is dense if more than one value in this many is not zero."""


class Tiles(NamedTuple):
    """The sums that a product keeps in registers; more sums would go through memory at each addition."""

    samples: int
    """Samples of a tile of a dense product, a power of two."""
    vectors: int
    """Vectors of :data:`LINE` bytes of such a tile."""
    panels: int
    """Panels that a sparse product sums at once."""
    dots: int
    """Dot products that are computed at once, which share the loads of the gradient."""


def tiles() -> Tiles:
    """The tiles for this processor, with 32 registers of 64 bytes (AVX-512) or 16 of 32 bytes (AVX2)."""
    if compresses():
        return Tiles(samples=4, vectors=4, panels=2, dots=8)
    return Tiles(samples=4, vectors=1, panels=1, dots=6)


def table_stride(count: int, size: int) -> int:
    """Numbers from one row of a table to the next, for rows of `count` numbers of `size` bytes.

    It is a cache line more than a row, since rows at a distance of whole pages would share few cache sets.
    """
    return padded(count) + LINE // size


def padded(count: int) -> int:
    """`count` numbers of a row, rounded up to full panels of PANEL numbers."""
    return -(-count // PANEL) * PANEL


def product(number: type[Pointer]) -> Function:
    """A function that computes ``y = x M`` for each sample.

    Its arguments ``x_step`` and ``y_step`` are the strides between samples. ``y`` has full panels.
    ``places``, ``values`` and ``counts`` are memory for the lists of the non-zero numbers of all samples.
    """
    kinds: dict[str, Kind] = {"x": number, "x_step": LONG, "table": number, "y": number, **_SIZES}
    return function("product", _product, {**kinds, "places": Ints, "values": number, "counts": Longs})


def list_nonzero(number: type[Pointer]) -> Function:
    """A function that copies the non-zero numbers of a row to `values` and returns how many there are.

    It writes their indices to `places`.
    """
    return function("listed", _list_nonzero, {"x": number, "inputs": LONG, "places": Ints, "values": number})


def product_at(number: type[Pointer]) -> Function:
    """A function that computes ``y = g M^T`` for each sample at the set bits of its mask, and zero elsewhere.

    Its argument ``table`` contains M with rows padded by zeros, and ``g`` is padded likewise. ``indices`` is
    memory for a list of the set bits.
    """
    kinds: dict[str, Kind] = {"g": number, "g_step": LONG, "table": number}
    kinds |= {"bits": Bytes, "bits_step": LONG, "y": number}
    return function("product_at", _product_at, {**kinds, **_SIZES, "indices": Longs})


_SIZES = dict.fromkeys(("y_step", "samples", "inputs", "outputs"), LONG)


@dataclass
class _Product:
    """The arguments of the generated function that computes ``y = x M`` for each sample."""

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
        """Computes the numbers in a vector, and the table's stride in bytes."""
        self.width = LINE // self.x.element.size
        self.table_stride = _bytes_of_a_row(self.table, self.outputs)

    def sums(self, vectors: int) -> list[Variable]:
        """New accumulators of zero for `vectors` vectors."""
        zeros = self.code.constant(0, self.x.element.of(self.width))
        return [self.code.variable(zeros) for _ in range(vectors)]

    def row(self, address: Pointer, vectors: int) -> list[Value]:
        """`vectors` vectors of a row of the table from `address` on."""
        return [(address + self.width * i).load(self.width) for i in range(vectors)]

    def write(self, sums: Sequence[Variable], sample: Value, first: Value) -> None:
        """Stores the `sums` in the result of `sample`, from its number `first` on."""
        y = self.y + (sample * self.y_step + first)
        for i, total in enumerate(sums):
            (y + self.width * i).store(total.value)


def _add_products(sums: Sequence[Variable], factor: Value, vectors: Sequence[Value]) -> None:
    """Adds ``factor * vectors`` to `sums`; each product and sum is rounded once, together."""
    for total, vector in zip(sums, vectors, strict=True):
        total.value = factor.fma(vector, total.value)


def _product(code: Code, **arguments: Pointer | Value) -> None:
    """Writes the function that computes ``y = x M`` for each sample; it skips zeros if there are many."""
    p = _Product(code, **arguments)  # type: ignore[arg-type] # by name, as `product` has them
    list_numbers = list_nonzero(type(p.x))
    total = code.variable(0)  # non-zero numbers in the lists

    def are_few() -> Value:
        """Whether at most one value in DENSE_FROM is listed as non-zero, so that the product is sparse."""
        return total.value * DENSE_FROM < p.samples * p.inputs

    with code.loop(0, p.samples) as s, code.when(are_few()):
        offset = s * p.inputs
        count = list_numbers(code, p.x + s * p.x_step, p.inputs, p.places + offset, p.values + offset)
        p.counts[s] = count
        total.value += count
    is_sparse = are_few()
    tile = tiles()
    with code.when(is_sparse):
        grouped = p.outputs & -tile.panels * PANEL
        _sum_listed(p, tile.panels, 0, grouped)
        if tile.panels > 1:
            _sum_listed(p, 1, grouped, p.outputs)
    in_tiles = p.samples & -tile.samples
    with code.when(~is_sparse):
        with code.loop(0, p.outputs, tile.vectors * p.width) as first:
            _dense_product(p, first, tile.vectors, tile.samples, 0, in_tiles)
        with code.loop(0, p.outputs, PANEL) as first:
            _dense_product(p, first, PANEL // p.width, 1, in_tiles, p.samples)


def _list_nonzero(code: Code, x: Pointer, inputs: Value, places: Ints, values: Pointer) -> Value:
    """Lists the non-zero numbers of `x` and their indices; returns their count."""
    count = code.variable(0)
    for offset, valid in code.vectors(inputs, LINE // x.element.size):
        nonzero = (x + offset).load(LINE // x.element.size, valid).differs(0)
        with code.each_bit(nonzero.word()) as bit:
            index = offset + bit.to(LONG)
            values[count.value] = x[index]
            places[count.value] = index.to(INT)
            count.value += 1
    return count.value


def _sum_listed(p: _Product, panels: int, first: Value | int, last: Value) -> None:
    """Writes the sparse product for the outputs from `first` to `last`, `panels` panels of PANEL at once."""
    code = p.code
    with code.loop(first, last, panels * PANEL) as panel, code.loop(0, p.samples) as s:
        offset, table, sums = s * p.inputs, p.table + panel, p.sums(panels * PANEL // p.width)
        places, values = p.places + offset, p.values + offset
        with code.loop(0, p.counts[s]) as e:
            row = p.row(table.bytes(places[e].to(LONG) * p.table_stride), len(sums))
            _add_products(sums, values[e].spread(p.width), row)
        p.write(sums, s, panel)


def _dense_product(
    p: _Product, output: Value, vectors: int, tile: int, first_sample: Value | int, end_sample: Value
) -> None:
    """Writes the dense product for `vectors` vectors of outputs, which begin at `output`.

    The samples from `first_sample` to before `end_sample` are computed in tiles of `tile` samples, so that
    weights are loaded once per tile. Their number must be a multiple of `tile`.
    """
    code, table = p.code, p.table + output
    with code.loop(first_sample, end_sample, tile) as tile_start:
        samples = [tile_start + i for i in range(tile)]
        inputs = [p.x + sample * p.x_step for sample in samples]
        sums = [p.sums(vectors) for _ in samples]
        with code.loop(0, p.inputs) as k:
            weights = p.row(table.bytes(k * p.table_stride), len(sums[0]))
            for x, sample_sums in zip(inputs, sums, strict=True):
                _add_products(sample_sums, x[k].spread(p.width), weights)
        for sample, sample_sums in zip(samples, sums, strict=True):
            p.write(sample_sums, sample, output)


PART_BYTES = 384 << 10
"""Bytes of the part of a table that all samples read before the next part: a fraction of L2."""


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
    """Writes the function that computes ``y = g M^T`` at the set bits of a mask, one dot product per bit."""
    kinds: dict[str, Kind] = {"bits": Bytes, "inputs": LONG, "indices": Longs}
    list_bits = function("bits_listed", _list_bits, kinds)
    row = _bytes_of_a_row(table, outputs)
    tile = ((code.constant(PART_BYTES) // row) & -64).larger(64)
    with code.loop(0, (inputs + tile) // tile) as i, code.loop(0, samples) as s:
        first = i * tile
        count = (inputs - first).smaller(tile)
        rows, out, gradient = table.bytes(first * row), y + (s * y_step + first), g + s * g_step
        out.clear(count)
        n = list_bits(code, bits + (s * bits_step + (first >> 3)), count, indices)
        at_once = tiles().dots
        grouped = n // at_once * at_once
        _dots(code, out, rows, row, gradient, outputs, indices, at_once, 0, grouped)
        _dots(code, out, rows, row, gradient, outputs, indices, 1, grouped, n)


def _dots(
    code: Code,
    out: Pointer,
    rows: Pointer,
    row: Value,
    gradient: Pointer,
    outputs: Value,
    indices: Longs,
    per_tile: int,
    first: Value | int,
    last: Value,
) -> None:
    """Writes the dot products of `gradient` with rows of a table, `per_tile` at once.

    Args:
        code: the code of the function.
        out: the results, by index.
        rows: the part of the table.
        row: bytes of one row.
        gradient: `outputs` numbers.
        outputs: full panels.
        indices: a list of rows.
        per_tile: dot products at once.
        first: the position in the list of the first row.
        last: the position after the last row.
    """
    width = LINE // gradient.element.size
    zeros = code.constant(0, gradient.element.of(width))
    with code.loop(first, last, per_tile) as e:
        row_indices = [indices[e + k] for k in range(per_tile)]
        addresses = [rows.bytes(index * row) for index in row_indices]
        sums = [code.variable(zeros) for _ in row_indices]
        with code.loop(0, outputs, width) as j:
            vectors = [(address + j).load(width) for address in addresses]
            _add_products(sums, (gradient + j).load(width), vectors)
        for index, total in zip(row_indices, sums, strict=True):
            out[index] = total.value.sum()


def _list_bits(code: Code, bits: Bytes, inputs: Value, indices: Longs) -> Value:
    """Lists the indices of the set bits among the first `inputs` bits; returns their count."""
    count = code.variable(0)
    with code.loop(0, inputs, 8) as i, code.each_bit(bits[i >> 3]) as bit:
        indices[count.value] = i + bit.to(LONG)
        count.value += 1
    return count.value


def _bytes_of_a_row(table: Pointer, outputs: Value) -> Value:
    """Bytes from one row of a weight table to the next; `outputs`, numbers of a row, are full panels."""
    return outputs * table.element.size + LINE
