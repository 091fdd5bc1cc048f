"""Vectors of 16 floats: sums of rows, table look-ups and dot products, as LLVM writes them for any CPU.

A *row* is ``VECTORS`` vectors of 16 floats that lie in one piece; sums stay in registers from the first
row to the last. This is source text for :mod:`hibana.native`; addresses are integers.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hibana.native.vocabulary import floats_at, function, np

VECTORS = 4
"""Replaced by the width that a layer needs."""
COMPRESSES = False
"""Replaced by whether one instruction here puts chosen elements of a vector together."""
PANEL = 16 * VECTORS
"""Floats of a row."""
ROW = 4 * PANEL
"""Bytes of a row."""

_FLOAT = ir.FloatType()
_LONG = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_LANES = ir.VectorType(_FLOAT, 16)


def _at(builder, address, offset, kind):
    if offset:
        address = builder.add(address, _LONG(offset))
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder, address, offset=0, kind=_LANES, align=4):
    return builder.load(_at(builder, address, offset, kind), align=align)


def _store(builder, value, address, offset=0, align=4):
    builder.store(value, _at(builder, address, offset, value.type), align=align)


def _zero():
    return ir.Constant(_LANES, [0.0] * 16)


def _index(builder, index, position):
    """The uint16 at `position` of the list at address `index`."""
    address = builder.add(index, builder.shl(position, _LONG(1)))
    return builder.zext(_load(builder, address, kind=ir.IntType(16), align=2), _LONG)


class _Loop:
    """``for i in range(start, stop, step)`` that carries values from pass to pass in registers."""

    def __init__(self, builder, start, stop, step, carried):
        self.builder, self.step, self.stop = builder, step, stop
        function = builder.function
        self._body, self._end = function.append_basic_block(), function.append_basic_block()
        entry = builder.block
        builder.cbranch(builder.icmp_signed("<", start, stop), self._body, self._end)
        builder.position_at_end(self._body)
        self.i = builder.phi(_LONG)
        self.i.add_incoming(start, entry)
        self.carried = [builder.phi(value.type) for value in carried]
        for phi, value in zip(self.carried, carried):
            phi.add_incoming(value, entry)
        self._entered_with = entry, start, carried

    def close(self, carried):
        """Ends the body; returns where `i` stopped and the values carried out."""
        builder, (entry, start, first) = self.builder, self._entered_with
        following = builder.add(self.i, _LONG(self.step))
        last = builder.block
        builder.cbranch(builder.icmp_signed("<", following, self.stop), self._body, self._end)
        self.i.add_incoming(following, last)
        for phi, value in zip(self.carried, carried):
            phi.add_incoming(value, last)
        builder.position_at_end(self._end)
        results = []
        for before, after in zip([start, *first], [following, *carried]):
            phi = builder.phi(before.type)
            phi.add_incoming(before, entry)
            phi.add_incoming(after, last)
            results.append(phi)
        return results[0], results[1:]


@intrinsic
def add_rows(context, target, start, table, index, count):
    """``target = start + sum of the rows index[0..count) of table``, one row each."""

    def build(context, builder, signature, args):
        target, start, table, index, count = args

        def added(position, sums):
            row = builder.add(table, builder.mul(_index(builder, index, position), _LONG(ROW)))
            return [builder.fadd(s, _load(builder, row, 64 * v)) for v, s in enumerate(sums)]

        sums = [_load(builder, start, 64 * v) for v in range(VECTORS)]
        fours = _Loop(builder, _LONG(0), builder.sub(count, _LONG(3)), 4, sums)
        sums = fours.carried
        for ahead in range(4):
            sums = added(builder.add(fours.i, _LONG(ahead)), sums)
        stopped, sums = fours.close(sums)
        rest = _Loop(builder, stopped, count, 1, sums)
        _, sums = rest.close(added(rest.i, rest.carried))
        for v, value in enumerate(sums):
            _store(builder, value, target, 64 * v)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), build


@intrinsic
def add_scaled_rows(context, target, start, table, offsets, factors, count):
    """``target = start + sum of factors[k] * the row at table + offsets[k]``, the offsets int32, in bytes."""

    def build(context, builder, signature, args):
        target, start, table, offsets, factors, count = args
        kind = ir.FunctionType(_LANES, [_LANES] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")

        def added(position, sums):
            beside = builder.shl(position, _LONG(2))
            offset = _load(builder, builder.add(offsets, beside), kind=ir.IntType(32))
            row = builder.add(table, builder.sext(offset, _LONG))
            one = builder.insert_element(
                ir.Constant(_LANES, ir.Undefined),
                _load(builder, builder.add(factors, beside), kind=_FLOAT),
                ir.IntType(32)(0),
            )
            factor = builder.shuffle_vector(one, one, _lanes([0] * 16))
            return [builder.call(fma, [factor, _load(builder, row, 64 * v), s]) for v, s in enumerate(sums)]

        # as many sums side by side as hide how long one takes
        beside = max(1, 4 // VECTORS)
        sums = [_load(builder, start, 64 * v) for v in range(VECTORS)] + [_zero()] * (VECTORS * (beside - 1))
        loop = _Loop(builder, _LONG(0), builder.sub(count, _LONG(beside - 1)), beside, sums)
        sums = []
        for ahead in range(beside):
            mine = loop.carried[VECTORS * ahead : VECTORS * (ahead + 1)]
            sums += added(builder.add(loop.i, _LONG(ahead)), mine)
        stopped, sums = loop.close(sums)
        for other in range(1, beside):
            sums[:VECTORS] = [builder.fadd(sums[v], sums[VECTORS * other + v]) for v in range(VECTORS)]
        rest = _Loop(builder, stopped, count, 1, sums[:VECTORS])
        _, sums = rest.close(added(rest.i, rest.carried))
        for v, value in enumerate(sums):
            _store(builder, value, target, 64 * v)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), build


@intrinsic
def copy_row(context, target, source):
    def build(context, builder, signature, args):
        for v in range(VECTORS):
            _store(builder, _load(builder, args[1], 64 * v), args[0], 64 * v)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def sums_of_four(context, target, source):
    """The 16 sums of the subsets of four rows at `source`, subset ``b`` as row ``b`` of `target`."""

    def build(context, builder, signature, args):
        target, source = args
        for v in range(VECTORS):
            sums = [_zero()]
            for row in range(4):
                value = _load(builder, source, ROW * row + 64 * v)
                sums += [builder.fadd(s, value) if n else value for n, s in enumerate(sums)]
            for subset, value in enumerate(sums):
                _store(builder, value, target, ROW * subset + 64 * v)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def add_subsets(context, target, start, tables, word):
    """``target = start + sum over the 8 half-bytes b of word of row b of table``; 16 rows a table."""

    def build(context, builder, signature, args):
        target, start, tables, word = args
        sums = [_load(builder, start, 64 * v) for v in range(VECTORS)]
        for group in range(8):
            subset = builder.and_(builder.lshr(word, _LONG(4 * group)), _LONG(15))
            row = builder.add(tables, builder.mul(subset, _LONG(ROW)))
            sums = [
                builder.fadd(s, _load(builder, row, 16 * ROW * group + 64 * v)) for v, s in enumerate(sums)
            ]
        for v, value in enumerate(sums):
            _store(builder, value, target, 64 * v)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), build


def _folded(builder, vectors):
    """One vector of the sums over each of 2, 4 or 8 vectors, in order, repeated to 16 lanes."""
    width = 8
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2])
        halves = [[lane for lane in range(32) if (lane // width) % 2 == side] for side in (0, 1)]
        vectors = [
            builder.fadd(*[builder.shuffle_vector(one, two, _lanes(lanes)) for lanes in halves])
            for one, two in pairs
        ]
        width //= 2
    (sums,) = vectors
    while width:
        swapped = [lane ^ width for lane in range(16)]
        sums = builder.fadd(sums, builder.shuffle_vector(sums, sums, _lanes(swapped)))
        width //= 2
    return sums


def _lanes(lanes):
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


def _dots(entries):
    @intrinsic
    def dots(context, out, pitch, places, table, pieces, piece_bytes, index):
        """``out[k] = <vector, row k of table>`` for the first entries ``k`` of `index`.

        Row and vector are `pieces` of one row each; the vector's are where the addresses at `places` say,
        a row's are `piece_bytes` apart; what is written is `pitch` bytes apart.
        """

        def build(context, builder, signature, args):
            out, pitch, places, table, pieces, piece_bytes, index = args
            kind = ir.FunctionType(_LANES, [_LANES] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")

            which = [_index(builder, index, _LONG(e)) for e in range(entries)]
            rows = [builder.add(table, builder.mul(k, _LONG(ROW))) for k in which]
            loop = _Loop(builder, _LONG(0), pieces, 1, [_zero()] * entries)
            sums = loop.carried
            offset = builder.mul(loop.i, piece_bytes)
            piece = _load(builder, builder.add(places, builder.shl(loop.i, _LONG(3))), kind=_LONG, align=8)
            beside = [builder.add(row, offset) for row in rows]
            for v in range(VECTORS):
                factor = _load(builder, piece, 64 * v)
                sums = [
                    builder.call(fma, [factor, _load(builder, p, 64 * v), s]) for p, s in zip(beside, sums)
                ]
            _, sums = loop.close(sums)
            totals = _folded(builder, sums)
            for e, k in enumerate(which):
                total = builder.extract_element(totals, ir.IntType(32)(e * 16 // entries))
                _store(builder, total, builder.add(out, builder.mul(k, pitch)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), build

    return dots


_eight_dots, _four_dots = _dots(8), _dots(4)


@function
def dots(out, pitch, places, table, pieces, piece_bytes, index, count):
    """``out[k] = <vector, row k of table>`` for each ``k`` of the `count` in the array `index`.

    The last is repeated to fill eight or four: `index` needs room for seven more.
    """
    if count:
        index[count : count + 7] = index[count - 1]
    at = index.ctypes.data
    i = 0
    while i + 4 < count:
        _eight_dots(out, pitch, places, table, pieces, piece_bytes, at + 2 * i)
        i += 8
    if i < count:
        _four_dots(out, pitch, places, table, pieces, piece_bytes, at + 2 * i)


def _read(kind, result):
    @intrinsic
    def read(context, address):
        def build(context, builder, signature, args):
            value = _load(builder, args[0], kind=kind, align=kind.width // 8)
            return builder.zext(value, _LONG) if kind.width < 64 else value

        return result(types.int64), build

    return read


@intrinsic
def word_put(context, address, word):
    """Writes the uint64 `word` to `address`."""

    def build(context, builder, signature, args):
        builder.store(args[1], _at(builder, args[0], 0, _LONG), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), build


word_at = _read(_LONG, types.uint64)
half_at = _read(ir.IntType(32), types.int64)


def _compared(lanes, *constants):
    floats = ir.VectorType(_FLOAT, lanes)

    @intrinsic
    def compared(context, address):
        """The bits of the floats at `address` that equal none of the constants, as a uint64."""

        def build(context, builder, signature, args):
            values = _load(builder, args[0], kind=floats)
            unequal = None
            for constant in constants:
                other = builder.fcmp_unordered("!=", values, ir.Constant(floats, [constant] * lanes))
                unequal = other if unequal is None else builder.and_(unequal, other)
            bits = builder.bitcast(unequal, ir.IntType(lanes))
            return bits if lanes == 64 else builder.zext(bits, _LONG)

        return types.uint64(types.int64), build

    return compared


fired_64, strange_64 = _compared(64, 0.0), _compared(64, 0.0, 1.0)
fired_32, strange_32 = _compared(32, 0.0), _compared(32, 0.0, 1.0)


_BYTE_LANES = ir.VectorType(ir.IntType(8), 16)


@intrinsic
def first_spikes(context, out, which, source, pixels, pixel_bytes, rows, row_bytes):
    """Of 16 channels under a window of `rows` x `pixels`: 1 where any spiked, and which did first, else 0.

    Places are counted row by row, and written as bytes. Returns the bits of the channels in which any value
    is neither 0 nor 1.
    """

    def build(context, builder, signature, args):
        out, which, source, pixels, pixel_bytes, rows, row_bytes = args
        one = ir.Constant(_LANES, [1.0] * 16)
        bits = ir.VectorType(ir.IntType(1), 16)
        nowhere, first = ir.Constant(bits, [0] * 16), ir.Constant(_BYTE_LANES, [0] * 16)
        down = _Loop(builder, _LONG(0), rows, 1, [_zero(), nowhere, first, first])
        row = builder.add(source, builder.mul(down.i, row_bytes))
        along = _Loop(builder, _LONG(0), pixels, 1, down.carried)
        found, strange, places, place = along.carried
        values = _load(builder, builder.add(row, builder.mul(along.i, pixel_bytes)))
        spiked = builder.fcmp_unordered("!=", values, _zero())
        strange = builder.or_(strange, builder.and_(spiked, builder.fcmp_unordered("!=", values, one)))
        new = builder.and_(spiked, builder.fcmp_ordered("==", found, _zero()))
        places = builder.select(new, place, places)
        found = builder.select(spiked, one, found)
        place = builder.add(place, ir.Constant(_BYTE_LANES, [1] * 16))
        _, carried = along.close([found, strange, places, place])
        _, (found, strange, places, _) = down.close(carried)
        _store(builder, found, out)
        _store(builder, places, which, align=1)
        return builder.zext(builder.bitcast(strange, ir.IntType(16)), _LONG)

    return types.int64(*[types.int64] * 7), build


@intrinsic
def first_bits(context, out, which, source, pixels, pixel_bytes, rows, row_bytes):
    """As :func:`first_spikes`, of spikes that are bits: those of 16 channels are two bytes at `source`."""

    def build(context, builder, signature, args):
        out, which, source, pixels, pixel_bytes, rows, row_bytes = args
        short = ir.IntType(16)
        mask = ir.VectorType(ir.IntType(1), 16)
        first = ir.Constant(_BYTE_LANES, [0] * 16)
        down = _Loop(builder, _LONG(0), rows, 1, [short(0), first, first])
        row = builder.add(source, builder.mul(down.i, row_bytes))
        along = _Loop(builder, _LONG(0), pixels, 1, down.carried)
        found, places, place = along.carried
        at = builder.inttoptr(builder.add(row, builder.mul(along.i, pixel_bytes)), short.as_pointer())
        spiked = builder.load(at)
        spiked.align = 1
        new = builder.and_(spiked, builder.not_(found))
        places = builder.select(builder.bitcast(new, mask), place, places)
        place = builder.add(place, ir.Constant(_BYTE_LANES, [1] * 16))
        _, carried = along.close([builder.or_(found, spiked), places, place])
        _, (found, places, _) = down.close(carried)
        ones = builder.select(builder.bitcast(found, mask), ir.Constant(_LANES, [1.0] * 16), _zero())
        _store(builder, ones, out)
        _store(builder, places, which, align=1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), build


@intrinsic
def bit_of_64(context, address, bit):
    """One bit of each of the 64 uint32 at `address`, as a uint64."""

    def build(context, builder, signature, args):
        address, bit = args
        halves = ir.VectorType(ir.IntType(32), 64)
        one = builder.shl(ir.IntType(32)(1), builder.trunc(bit, ir.IntType(32)))
        spread = builder.insert_element(ir.Constant(halves, ir.Undefined), one, ir.IntType(32)(0))
        mask = builder.shuffle_vector(spread, spread, _lanes([0] * 64))
        found = builder.and_(_load(builder, address, kind=halves), mask)
        return builder.bitcast(builder.icmp_unsigned("!=", found, ir.Constant(halves, [0] * 64)), _LONG)

    return types.uint64(types.int64, types.int64), build


@intrinsic
def transposed_16(context, target, target_pitch, source, source_pitch):
    """A square of 16 x 16 floats, its rows `pitch` bytes apart, transposed from `source` to `target`."""

    def build(context, builder, signature, args):
        target, target_pitch, source, source_pitch = args
        low = _lanes([lane // 2 + 16 * (lane % 2) for lane in range(16)])
        high = _lanes([8 + lane // 2 + 16 * (lane % 2) for lane in range(16)])
        rows = [_load(builder, builder.add(source, builder.mul(source_pitch, _LONG(i)))) for i in range(16)]
        for _ in range(4):
            pairs = zip(rows[:8], rows[8:])
            rows = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in (low, high)]
        for i, row in enumerate(rows):
            _store(builder, row, builder.add(target, builder.mul(target_pitch, _LONG(i))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), build


@function
def transposed(target, target_pitch, source, source_pitch, rows, columns):
    """`rows` x `columns` floats, their rows `pitch` bytes apart, transposed from `source` to `target`."""
    for i in range(0, rows, 16):
        for j in range(0, columns, 16):
            if i + 16 <= rows and j + 16 <= columns:
                to = target + target_pitch * j + 4 * i
                transposed_16(to, target_pitch, source + source_pitch * i + 4 * j, source_pitch)
            else:
                for row in range(i, min(rows, i + 16)):
                    for column in range(j, min(columns, j + 16)):
                        value = floats_at(source + source_pitch * row + 4 * column, 1)[0]
                        floats_at(target + target_pitch * column + 4 * row, 1)[0] = value


@intrinsic
def ones(context, word):
    """How many bits of `word` are set."""

    def build(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), build


@intrinsic
def lowest(context, word):
    """The position of the lowest set bit of `word`; 64 if there is none."""

    def build(context, builder, signature, args):
        return builder.cttz(args[0], ir.IntType(1)(0))

    return types.int64(types.uint64), build


@function
def listed_in_fours(word, base, index, n):
    """:func:`listed`, four positions at a time without asking, so that no branch depends on how many."""
    stop = n + ones(word)
    while True:
        for _ in range(4):
            index[n] = base + lowest(word)
            word &= word - np.uint64(1)
            n += 1
        if n >= stop:
            return stop


def _compressed(kind, name, values_of):
    @intrinsic
    def compressed(context, address, bits, given):
        """Writes those of the values whose bits are set to `address`, and more behind them."""

        def build(context, builder, signature, args):
            address, bits, given = args
            lanes = ir.IntType(kind.count)
            mask = builder.bitcast(builder.trunc(bits, lanes), ir.VectorType(ir.IntType(1), kind.count))
            function = ir.FunctionType(kind, [kind, mask.type, kind])
            compress = cgutils.get_or_insert_function(
                builder.module, function, "llvm.experimental.vector.compress." + name
            )
            values = values_of(builder, given)
            found = builder.call(compress, [values, mask, ir.Constant(kind, ir.Undefined)])
            _store(builder, found, address, align=2)
            return context.get_dummy_value()

        return types.void(types.int64, types.uint64, types.int64), build

    return compressed


_PLACES = ir.VectorType(ir.IntType(16), 32)


def _counted_from(builder, base):
    """The 32 places from `base` on."""
    first = builder.insert_element(
        ir.Constant(_PLACES, ir.Undefined), builder.trunc(base, ir.IntType(16)), ir.IntType(32)(0)
    )
    spread = builder.shuffle_vector(first, first, _lanes([0] * 32))
    return builder.add(spread, ir.Constant(_PLACES, list(range(32))))


places_compressed = _compressed(_PLACES, "v32i16", _counted_from)
floats_compressed = _compressed(_LANES, "v16f32", _load)


@function
def listed_at_once(word, base, index, n):
    """:func:`listed`, by the instruction that puts the chosen of 32 places together."""
    at = index.ctypes.data + 2 * n
    low = word & np.uint64(0xFFFFFFFF)
    places_compressed(at, low, base)
    places_compressed(at + 2 * ones(low), word >> np.uint64(32), base + 32)
    return n + ones(word)


listed = listed_at_once if COMPRESSES else listed_in_fours
"""``listed(word, base, index, n)``: appends ``base`` + the position of each bit of `word` to ``index[n:]``.

Returns the new `n`. Writes more than that: `index` needs room for SLACK more.
"""
SLACK = 64


@function
def values_compressed(target, source, word):
    for part in range(4):
        bits = (word >> np.uint64(16 * part)) & np.uint64(0xFFFF)
        floats_compressed(target, bits, source + 64 * part)
        target += 4 * ones(bits)


@function
def values_in_turn(target, source, word):
    values = floats_at(source, 64)
    while word:
        floats_at(target, 1)[0] = values[lowest(word)]
        target += 4
        word &= word - np.uint64(1)


values_together = values_compressed if COMPRESSES else values_in_turn
"""``values_together(target, source, word)``: those of the 64 floats at `source` whose bits in `word` are set.

Writes up to SLACK floats more.
"""


@function
def transposed_64(words):
    """Transposes the 64 x 64 bits of `words` in place: bit j of word i and bit i of word j."""
    width = np.uint64(32)
    mask = np.uint64(0x00000000FFFFFFFF)
    while width:
        step = np.int64(width)
        for block in range(0, 64, 2 * step):
            for i in range(block, block + step):
                swapped = ((words[i] >> width) ^ words[i + step]) & mask
                words[i] ^= swapped << width
                words[i + step] ^= swapped
        width >>= np.uint64(1)
        mask ^= mask << width


@intrinsic
def allocated(context, size):
    """The address of `size` bytes of the C library, from a cache line on; for :func:`freed`."""

    def build(context, builder, signature, args):
        kind = ir.FunctionType(_BYTES, [_LONG])
        malloc = cgutils.get_or_insert_function(builder.module, kind, "malloc")
        whole = builder.ptrtoint(builder.call(malloc, [builder.add(args[0], _LONG(128))]), _LONG)
        begin = builder.and_(builder.add(whole, _LONG(127)), _LONG(-64))
        builder.store(whole, _at(builder, begin, -8, _LONG))
        return begin

    return types.int64(types.int64), build


@intrinsic
def freed(context, address):
    """Gives back what :func:`allocated` gave."""

    def build(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_BYTES])
        free = cgutils.get_or_insert_function(builder.module, kind, "free")
        builder.call(free, [builder.inttoptr(_load(builder, args[0], -8, _LONG), _BYTES)])
        return context.get_dummy_value()

    return types.void(types.int64), build


@function
def whole_lines(size):
    """`size` bytes, rounded up to cache lines."""
    return (size + 63) // 64 * 64


@function
def zeroed(array):
    for i in range(array.size):
        array[i] = 0


@function
def copied(target, source):
    for i in range(source.size):
        target[i] = source[i]


@function
def added(target, source):
    for i in range(source.size):
        target[i] += source[i]


@function
def begin_with(start, bias, panel, outputs):
    """Fills `start` with what a sum begins with: a panel of the bias, or zeros."""
    zeroed(start)
    if bias:
        wide = min(PANEL, outputs - panel * PANEL)
        copied(start[:wide], floats_at(bias + ROW * panel, wide))
