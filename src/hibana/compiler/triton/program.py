"""The frame of all Triton kernels: one program per block, which computes the offsets of its block."""

from collections.abc import Iterable

from hibana.compiler.triton.language import MULTIPLIED, Language

__all__ = ["block", "program"]

_OF_NEURONS = (
    "lo = tl.program_id(0).to(tl.int64) * BLOCK",
    "j = tl.arange(0, BLOCK)",
    "there = j < neurons - lo",
    "octet = j // 8",
    "bit = j % 8",
    "eighth = tl.arange(0, BLOCK // 8)",
    "there_eighth = eighth < row_bytes - lo // 8",
)
"""The offsets of a block of neurons."""

_OF_SAMPLES = (
    "lo = tl.program_id(0).to(tl.int64) * SAMPLES",
    "sample = tl.arange(0, SAMPLES)[:, None]",
    "neuron = tl.arange(0, NEURONS)[None, :]",
    "here = sample < samples - lo",
    "j = sample * features + neuron",
    "there = here & (neuron < features)",
    "octet = sample * sample_bytes + neuron // 8",
    "bit = neuron % 8",
    "byte = tl.arange(0, NEURONS // 8)[None, :]",
    "eighth = sample * sample_bytes + byte",
    "there_eighth = here & (byte < sample_bytes)",
)
"""The offsets of a block of samples."""


def program(
    name: str,
    arguments: Iterable[str],
    rows: Iterable[str],
    bits: Iterable[str],
    body: Iterable[str],
    language: Language,
) -> str:
    """A kernel over blocks, with `body` for one block.

    Of its `arguments`, besides those that every kernel has, `rows` point to a number per neuron, `bits` to a
    bit per neuron.
    """
    by_samples = language.by_samples
    row, octets = ("lo * features", "lo * sample_bytes") if by_samples else ("lo", "lo // 8")
    moved = {**dict.fromkeys(rows, row), **dict.fromkeys(bits, octets)}
    lines = [
        *(_OF_SAMPLES if by_samples else _OF_NEURONS),
        *(f"if {pointer} is not None:\n    {pointer} += {offset}" for pointer, offset in moved.items()),
        *(["workspace += lo * features"] if by_samples else []),
        *body,
    ]
    shared = ["steps", "neurons", "row_bytes", "size", "BLOCK: tl.constexpr"]
    if by_samples:
        sizes = ("SAMPLES", "NEURONS", "INNER")
        shared[-1:] = [
            "workspace",
            "samples",
            "features",
            "sample_bytes",
            *(f"{n}: tl.constexpr" for n in sizes),
        ]
    text = f"def {name}({', '.join([*arguments, *shared])}):\n{block(lines)}\n"
    return f"{MULTIPLIED}\n\n{text}" if by_samples else text


def block(lines: Iterable[str]) -> str:
    """`lines`, each of which may be several, indented."""
    return "\n".join(f"    {line}" for text in lines for line in text.split("\n"))
