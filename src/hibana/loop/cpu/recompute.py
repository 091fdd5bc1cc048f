"""Recomputation in tiles: a backward that runs forward again, one tile of neurons at a time.

What is kept of a tile never leaves the cache. Two kernels are called alternately, a forward that keeps what a
backward wants and that backward; what is kept of a row goes to a buffer that the next row uses again. Nothing
in here depends on the cell.
"""

from hibana.native import Writer

__all__ = ["ARGUMENTS", "recompute_source"]

ARGUMENTS = (
    *("forward", "backward", "forward_args", "backward_args", "forward_bytes", "backward_bytes"),
    *("residuals", "forward_places", "backward_places", "offsets", "bits"),
    *("buffer", "buffer_bytes", "width", "rows", "rows_each"),
    *("forward_reversed", "backward_reversed", "reversed"),
)
"""Functions, their arguments and how many bytes these are; how many residuals there are, at which of their
arguments the addresses of those are, where each begins in a buffer and how many bits of it are a neuron's;
the buffers, one for each piece of work, and their size; how wide a row is, how many there are, and how many
of them are one piece of work; which of their arguments says how many neurons are walked in reverse, and how
many those are in the last row of a piece."""

_POINTERS = frozenset(
    {"forward", "backward", "forward_args", "backward_args", "offsets", "bits", "buffer"}
    | {"forward_places", "backward_places"}
)


def recompute_source() -> str:
    """The kernel ``recompute``: its range is of pieces of work."""
    writer = Writer()
    for i, name in enumerate(ARGUMENTS):
        kind = "ptr" if name in _POINTERS else "i64"
        writer.let(name, f"load {kind}, ptr {writer.row('', 'i64', '%args', str(i))}")
    for name in ("forward", "backward"):
        own = writer.let(f"{name}.own", f"alloca i8, i64 %{name}_bytes, align 8")
        writer.do(
            f"call void @llvm.memcpy.p0.p0.i64(ptr {own}, ptr %{name}_args, i64 %{name}_bytes, i1 false)"
        )
    with writer.loop("piece", "%begin", "%end") as piece:
        skipped = writer.let("", f"mul i64 {piece}, %buffer_bytes")
        buffer = writer.row("", "i8", "%buffer", skipped)
        first = writer.let("", f"mul i64 {piece}, %rows_each")
        after = writer.let("", f"add i64 {first}, %rows_each")
        last = writer.let("", f"call i64 @llvm.smin.i64(i64 {after}, i64 %rows)")
        with writer.loop("row", first, last) as row:
            before = writer.let("", f"mul i64 {row}, %width")
            with writer.loop("k", "0", "%residuals") as k:
                offset = writer.let("", f"load i64, ptr {writer.row('', 'i64', '%offsets', k)}")
                bits = writer.let("", f"load i64, ptr {writer.row('', 'i64', '%bits', k)}")
                outside = writer.let("", f"lshr i64 {writer.let('', f'mul i64 {before}, {bits}')}, 3")
                # as if the row were in a whole sequence: the kernels step over the neurons before it
                place = writer.row("", "i8", buffer, writer.let("", f"sub i64 {offset}, {outside}"))
                for name in ("forward", "backward"):
                    index = writer.let("", f"load i64, ptr {writer.row('', 'i64', f'%{name}_places', k)}")
                    writer.do(f"store ptr {place}, ptr {writer.row('', 'i64', f'%{name}.own', index)}")
            next_ = writer.let("", f"add i64 {row}, 1")
            is_last = writer.let("", f"icmp eq i64 {next_}, {last}")
            in_reverse = writer.let("", f"select i1 {is_last}, i64 %reversed, i64 0")
            for name in ("forward", "backward"):
                place = writer.row("", "i64", f"%{name}.own", f"%{name}_reversed")
                writer.do(f"store i64 {in_reverse}, ptr {place}")
            for name in ("forward", "backward"):
                writer.do(f"call void %{name}(i64 {row}, i64 {next_}, ptr %{name}.own)")
    writer.do("ret void")
    return "\n".join(["define void @recompute(i64 %begin, i64 %end, ptr %args) {", *writer.lines, "}"]) + "\n"
