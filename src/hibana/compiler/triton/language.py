"""Triton source: expressions of operations, rounded as IEEE 754 requires, and the frame of a kernel.

A block of numbers cannot be sliced in registers, so the operand of a matrix product is written to scratch
memory, ``workspace``. ``tl.dot`` determines the order of its sums.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from hibana.compiler.analysis.text import Dialect, templates
from hibana.compiler.graph.ops import OPERATIONS, Expression


@dataclass(frozen=True)
class Language:
    """Triton with numbers of one dtype, compiled for a device or run by Triton's interpreter."""

    real: str
    """``"float32"`` or ``"float64"``."""
    interpreted: bool
    """Whether the interpreter runs it, with PyTorch's functions instead of the library of a device."""
    by_samples: bool = False
    """Whether blocks are all neurons of some samples, ``[SAMPLES, NEURONS]``, not ``[BLOCK]``."""

    @property
    def shape(self) -> str:
        """The shape of a block of numbers: a tuple in Triton source."""
        return "(SAMPLES, NEURONS)" if self.by_samples else "(BLOCK,)"

    @property
    def dialect(self) -> Dialect:
        """Triton's expressions of operations."""
        single = self.real == "float32"
        divided, root = (
            ("tl.div_rn({0}, {1})", "tl.sqrt_rn({0})") if single else ("({0} / {1})", "tl.sqrt({0})")
        )
        operations = {
            name: text.replace("REAL", self.real).replace("DIVIDED", divided).replace("ROOT", root)
            for name, text in templates("triton").items()
        }
        if self.interpreted:
            operations |= {name: f"libdevice.{name}({{0}})" for name in interpreted()}
        else:
            rows = [row for row in OPERATIONS.values() if row.expansion and not row.triton]
            operations |= {row.name: self._template(row.expansion, operations) for row in rows}
        if self.by_samples:
            operations["product"] = _PRODUCT
        return Dialect("Triton", operations, self.number("{0}"), transposed="{0}_transposed")

    def _template(self, expression: Expression, operations: Mapping[str, str]) -> str:
        """:attr:`Operation.expansion` as a template, from the templates of other `operations`."""
        if isinstance(expression, tuple):
            name, *args = expression
            return operations[name].format(*(self._template(argument, operations) for argument in args))
        return expression if expression.startswith("{") else self.number(expression)

    def number(self, number: int | str) -> str:
        """A block filled with `number`, an integer or an expression."""
        return f"tl.full({self.shape}, {number}, tl.{self.real})"

    def cast(self, text: str) -> str:
        """The expression `text` converted to the dtype of the kernel."""
        return f"{text}.to(tl.{self.real})"


def interpreted() -> list[str]:
    """The functions of one argument that Triton's interpreter takes from PyTorch."""
    return [n for n, row in OPERATIONS.items() if row.call and row.arity == 1 and hasattr(torch, n)]


_PRODUCT = "multiplied({0}, {matrix}_at, workspace, sample, neuron, here, features, INNER)"

MULTIPLIED = """\
def multiplied(x, matrix, workspace, sample, neuron, here, features, INNER: tl.constexpr):
    tl.debug_barrier()  # until all threads have read the previous contents
    tl.store(workspace + sample * features + neuron, x, here & (neuron < features))
    tl.debug_barrier()
    y = tl.zeros_like(x)
    k = tl.arange(0, INNER)
    for begun in range(0, features, INNER):
        row = begun + k[None, :]
        left = tl.load(workspace + sample * features + row, here & (row < features), 0)
        column = begun + k[:, None]
        there = (column < features) & (neuron < features)
        right = tl.load(matrix + column * features + neuron, there, 0)
        y = tl.dot(left, right, y, input_precision="ieee", out_dtype=y.dtype)
    return y
"""
"""Triton source of the product ``y = x M`` for a block."""

_OF_NEURONS = (
    "lo = tl.program_id(0).to(tl.int64) * BLOCK",
    "j = tl.arange(0, BLOCK)",
    "there = j < step_size - lo",
    "octet = j // 8",
    "bit = j % 8",
    "eighth = tl.arange(0, BLOCK // 8)",
    "there_eighth = eighth < row_bytes - lo // 8",
)
"""Statements that compute the offsets of a block of neurons."""

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
"""Statements that compute the offsets of a block of samples."""


def program(
    name: str,
    arguments: Iterable[str],
    rows: Iterable[str],
    bits: Iterable[str],
    body: Iterable[str],
    language: Language,
) -> str:
    """The source of a kernel over blocks.

    Args:
        name: the name of the kernel.
        arguments: its arguments, besides those that all kernels have.
        rows: the arguments that point to one number per neuron.
        bits: the arguments that point to one bit per neuron.
        body: the statements for one block.
        language: determines whether a block is some neurons, or all neurons of some samples.
    """
    by_samples = language.by_samples
    row, octets = ("lo * features", "lo * sample_bytes") if by_samples else ("lo", "lo // 8")
    offsets = {**dict.fromkeys(rows, row), **dict.fromkeys(bits, octets)}
    lines = [
        *(_OF_SAMPLES if by_samples else _OF_NEURONS),
        *(f"if {pointer} is not None:\n    {pointer} += {offset}" for pointer, offset in offsets.items()),
        *(["workspace += lo * features"] if by_samples else []),
        *body,
    ]
    shared = ["steps", "step_size", "row_bytes", "size", "BLOCK: tl.constexpr"]
    if by_samples:
        shared[-1:] = ["workspace", "samples", "features", "sample_bytes"]
        shared += [f"{size}: tl.constexpr" for size in ("SAMPLES", "NEURONS", "INNER")]
    text = f"def {name}({', '.join([*arguments, *shared])}):\n{block(lines)}\n"
    return f"{MULTIPLIED}\n\n{text}" if by_samples else text


def block(lines: Iterable[str]) -> str:
    """`lines` joined and indented; a line may contain line breaks."""
    return "\n".join(f"    {line}" for text in lines for line in text.split("\n"))
