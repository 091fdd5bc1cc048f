"""A detector of anomalies as one file of C99 and a header, with its state and threshold."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from torch import Tensor

from hibana.compiler.c.source import literal
from hibana.learn import AnomalyDetector
from hibana.learn.anomaly_kernel import ARRAYS, step
from hibana.network.c.arithmetic import FloatArithmetic
from hibana.network.c.code import array
from hibana.network.c.memory import SIZES
from hibana.network.c.printer import CONSTANT, CPrinter
from hibana.network.c.source import FLASH
from hibana.runtime import files
from hibana.runtime.kernels import Bytes, Code, Floats, Ints, Shorts
from hibana.runtime.loops import Array

__all__ = ["CDetector", "detector_to_c"]


@dataclass(frozen=True)
class CDetector:
    """A detector in C: the text of its two files, and bytes of constants and of variables."""

    name: str
    source: str
    header: str
    constant_bytes: int
    changing_bytes: int

    def write(self, path: Path | str) -> None:
        """Writes the program to `path`, which ends in ``.c``, and its header beside it."""
        target = Path(path)
        header = target.with_suffix(".h")
        text = self.source.replace(f'#include "{self.name}.h"', f'#include "{header.name}"')
        files.write(target, text.encode())
        files.write(header, self.header.encode())


def detector_to_c(detector: AnomalyDetector, *, name: str = "detector") -> CDetector:
    """`detector` as one file of C99 and a header, with what it has learned and its threshold.

    ``NAME_reset`` begins a series, ``NAME_step`` returns the score of the next values, and ``NAME_alarm``
    whether they are an alarm. If ``state.learn`` is set to 1 after the reset, the program keeps learning.
    The statements are those of the native detector, so scores are equal where ``log2f`` is.

    Args:
        detector: a calibrated detector.
        name: the prefix of the program's functions.
    """
    code, printer = Code(), CPrinter()
    tables = {key: getattr(detector, key) for key in ("first", "second", "cuts")}
    kinds = {"first": Bytes, "second": Bytes, "cuts": Floats}
    pointers: Any = tuple(
        kinds[key](code.builder, _array(key, _kind(table), access="constant"))
        for key, table in tables.items()
    )
    learned = {f"learned_{key}": getattr(detector, key).flatten() for key in ARRAYS}
    state = {
        key: (Shorts if key == "counts" else Floats)(
            code.builder, _array(key, _kind(getattr(detector, key)), owner="net->")
        )
        for key in ARRAYS
    }
    inputs = Floats(code.builder, _array("input", "float", access="read-only"))
    score = Floats(code.builder, _array("score", "float", owner="net->", is_number=True))
    flag = Ints(code.builder, _array("learn", "int32_t", owner="net->", is_number=True))
    learn = flag[0].named("learn").differs(0)
    step(code, inputs, score, detector.columns, learn, float(detector.memory), pointers, state)
    body = printer.lines(code.builder.take())
    constants = [
        line
        for key, table in {**tables, **learned}.items()
        for line in array(key, _kind(table), table.flatten(), CONSTANT)
    ]
    copies = [
        f"for (int i = 0; i < {len(table)}; i++) net->{key.removeprefix('learned_')}[i] = {key}[i];"
        for key, table in learned.items()
    ]
    declarations = [
        *(f"{_kind(table)} {key.removeprefix('learned_')}[{len(table)}];" for key, table in learned.items()),
        *("float score;", "int32_t learn;", "int32_t since;"),
    ]
    constant_bytes = sum(
        table.numel() * SIZES[_kind(table)] for table in (*tables.values(), *learned.values())
    )
    changing_bytes = sum(table.numel() * SIZES[_kind(table)] for table in learned.values()) + 12
    guards = FloatArithmetic(torch.float32).guards
    source = f"""\
/* {name}: a detector of anomalies written by hibana. */

#include "{name}.h"

#include <math.h>
{_lines([*guards, *FLASH])}
{_lines(constants)}
void {name}_reset({name}_state *net) {{
{_lines(copies, 1)}\
    for (int i = 0; i < {name.upper()}_COLUMNS; i++)
        net->moments[i * {ARRAYS["moments"]} + 1] = 0;
    net->learn = 0;
    net->score = 0;
    net->since = {name.upper()}_SILENCE + 1;
}}

float {name}_step({name}_state *net, const float input[{name.upper()}_COLUMNS]) {{
    if (net->since <= {name.upper()}_SILENCE)
        net->since += 1;
    else if (net->score > {name.upper()}_THRESHOLD)
        net->since = 1;
{_lines(body, 1)}    return net->score;
}}

int {name}_alarm(const {name}_state *net) {{
    return net->since > {name.upper()}_SILENCE && net->score > {name.upper()}_THRESHOLD;
}}
"""
    header = f"""\
/* {name}: a detector of anomalies written by hibana.

   Memory: {constant_bytes:,} bytes of constants, {changing_bytes:,} that change. */

#ifndef {name.upper()}_H
#define {name.upper()}_H

#include <stdint.h>

#define {name.upper()}_COLUMNS {detector.columns}
#define {name.upper()}_SILENCE {detector.silence} /* steps after an alarm without another */
#define {name.upper()}_THRESHOLD {literal(detector.threshold, "float")}

typedef struct {{
{_lines(declarations, 1)}}} {name}_state;

#ifdef __cplusplus
extern "C" {{
#endif

/* Begins a series; call it first. Set net->learn to 1 afterwards to keep learning. */
void {name}_reset({name}_state *net);
/* The score of the next values, which must be finite. */
float {name}_step({name}_state *net, const float input[{name.upper()}_COLUMNS]);
/* Whether the last step is an alarm: 1 or 0. */
int {name}_alarm(const {name}_state *net);

#ifdef __cplusplus
}}
#endif

#endif
"""
    return CDetector(name, source, header, constant_bytes, changing_bytes)


def _array(name: str, kind: str, **options: Any) -> Any:
    """An array of the program."""
    return Array(None, name=name, kind=kind, **options)


def _kind(table: Tensor) -> str:
    """C's type of the elements of `table`."""
    return {torch.float32: "float", torch.uint8: "uint8_t", torch.int16: "int16_t"}[table.dtype]


def _lines(lines: list[str], depth: int = 0) -> str:
    """Lines of C, indented by `depth` levels."""
    return indent("".join(f"{line}\n" for line in lines), "    " * depth)
