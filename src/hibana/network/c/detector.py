"""A detector of anomalies as one file of C99 and a header, with its state and threshold."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import torch

from hibana.compiler.c.source import literal
from hibana.learn import AnomalyDetector
from hibana.learn.anomaly_kernel import ARRAYS, step
from hibana.network.c.arithmetic import FloatArithmetic
from hibana.network.c.code import array
from hibana.network.c.printer import CONSTANT, CPrinter
from hibana.network.c.program import write_files
from hibana.network.c.source import FLASH
from hibana.runtime.kernels import Bytes, Code, Floats, Ints, Pointer, Shorts
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
        write_files(Path(path), self.name, self.source, self.header)


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

    def pointer(name: str, kind: type[Pointer], **options: Any) -> Any:
        """The address of an array of the program, or of a number."""
        return kind(code.builder, Array(None, name=name, kind=_KINDS[kind], **options))

    constants = {name: getattr(detector, name).flatten() for name in ("first", "second", "cuts")}
    state = {name: getattr(detector, name).flatten() for name in ARRAYS}
    types = {name: _TYPES[values.dtype] for name, values in {**constants, **state}.items()}
    tables: Any = tuple(pointer(name, types[name], access="constant") for name in constants)
    arrays = {name: pointer(name, types[name], owner="net->") for name in state}
    inputs = pointer("input", Floats, access="read-only")
    score, learn = (pointer(*each, owner="net->", is_number=True) for each in _NUMBERS.items())
    is_learning = learn[0].named("learn").differs(0)
    step(code, inputs, score, detector.columns, is_learning, float(detector.memory), tables, arrays)
    body = printer.lines(code.builder.take())
    constants |= {f"learned_{name}": values for name, values in state.items()}
    definitions, copies, declarations = [], [], ["float score;", "int32_t learn, since;"]
    for name_, values in constants.items():
        definitions += array(name_, _KINDS[_TYPES[values.dtype]], values, CONSTANT)
    for name_, values in state.items():
        copies.append(f"for (int i = 0; i < {len(values)}; i++) net->{name_}[i] = learned_{name_}[i];")
        declarations.append(f"{_KINDS[types[name_]]} {name_}[{len(values)}];")
    constant_bytes = sum(values.nbytes for values in constants.values())
    changing_bytes = sum(values.nbytes for values in state.values()) + 12
    guards = FloatArithmetic(torch.float32).guards
    source = f"""\
/* {name}: a detector of anomalies written by hibana. */

#include "{name}.h"

#include <math.h>
{_lines([*guards, *FLASH])}
{_lines(definitions)}
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


def _lines(lines: list[str], depth: int = 0) -> str:
    """Lines of C, indented by `depth` levels."""
    return indent("".join(f"{line}\n" for line in lines), "    " * depth)


_KINDS: dict[type[Pointer], str] = {Floats: "float", Bytes: "uint8_t", Shorts: "int16_t", Ints: "int32_t"}
_TYPES: dict[torch.dtype, type[Pointer]] = {torch.float32: Floats, torch.uint8: Bytes, torch.int16: Shorts}
"""C's types, and the types of addresses by those of tensors."""
_NUMBERS: dict[str, type[Pointer]] = {"score": Floats, "learn": Ints}
"""Numbers of the struct that the step reads or writes."""
