"""C code generated from kernels' loops, compared with the same loops compiled by LLVM."""

import ctypes
import math
import subprocess

import pytest
import torch

from c_programs import needs_cc
from hibana.compiler.c.floats import float_results
from hibana.compiler.graph.leaf import INPUT, OUTPUT, Leaf
from hibana.compiler.graph.ops import OPERATIONS, Unsupported
from hibana.compiler.graph.step import Value as StepValue
from hibana.network.c.printer import CPrinter
from hibana.runtime.kernels import (
    BIT,
    FLOAT,
    INT,
    Code,
    Floats,
    Longs,
    Value,
    assemble,
    kernel,
    pack_arguments,
    run,
)
from hibana.runtime.loops import Array


def fill(code: Code, out: Longs, count: int) -> None:
    """Loops, branches, variables and every operation on indices, with operands that need parentheses."""
    with code.loop(0, count, name="i") as i:
        total = code.variable(1)
        with (
            code.loop(i // 2, i + 3, name="j") as j,
            code.when((j % 2).equals(0) | ((j > i) & j.differs(7))),
        ):
            total.value = total.value + (i - (j - 3)) * (j + 1)
        row = (out + i * 2).named("row")
        low = (i - 4).smaller(code.constant(2)).named("low")
        row[0] = total.value - (low - i.larger(code.constant(5)))
        before = row[0].named("before")
        row[1] = 0
        row[1] = row[1] + (i < 4).select(before * (i + 1), before - 7)


@kernel
def filled(code: Code, begin: Value, end: Value, *, out: Longs) -> None:
    fill(code, out, 11)


def writing(kind: str) -> tuple[Code, Longs]:
    """A function, and the array ``out`` of C's type `kind`."""
    code = Code()
    return code, Longs(code.builder, Array(None, name="out", kind=kind))


def printed(code: Code) -> list[str]:
    """The lines of C of the statements of `code`."""
    return CPrinter().lines(code.builder.take())


@needs_cc
def test_loops_compute_the_same_in_c_and_llvm(tmp_path):
    native = (ctypes.c_int64 * 22)()
    built = assemble(filled.source(), "filled")
    run(built.address, 1, pack_arguments([ctypes.addressof(native)]))
    code, out = writing("int64_t")
    fill(code, out, 11)
    print_loop = 'for (int i = 0; i < 22; i++) printf("%ld ", (long)out[i]);'
    main = "\n".join(["static int64_t out[22];", *printed(code), print_loop])
    file, binary = tmp_path / "loops.c", tmp_path / "loops"
    file.write_text(f"#include <stdint.h>\n#include <stdio.h>\nint main(void) {{\n{main}\n}}\n")
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", binary, file]
    subprocess.run(command, check=True)
    output = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    assert [int(number) for number in output.split()] == list(native)
    assert len(set(native)) > 15


def test_generated_c_is_readable():
    code, out = writing("int64_t")
    fill(code, out, 11)
    lines = [line.strip() for line in printed(code)]
    for line in (
        "for (int j = i / 2; j < i + 3; j++) {",
        "if (j % 2 == 0 || (j > i && j != 7)) {",
        "value += (i - (j - 3)) * (j + 1);",
        "int64_t *const row = out + i * 2;",
        "const int64_t before = row[0];",
    ):
        assert line in lines


def test_a_value_read_before_a_possible_change_needs_a_name():
    code, out = writing("int32_t")
    first = out[0]
    out[0] = 5
    out[1] = first
    with pytest.raises(RuntimeError, match=r"out\[0\] was read before a statement that may change it"):
        printed(code)
    with code.loop(0, out[0]):
        pass
    with pytest.raises(RuntimeError, match=r"the loop's end out\[0\] is read"):
        printed(code)


def test_inner_blocks_do_not_reuse_names_of_outer_blocks():
    code = Code()
    for _ in range(2):
        with code.loop(0, 3, name="i") as outer, code.loop(0, outer, name="i"):
            pass
    loops = [line.strip() for line in printed(code) if "for" in line]
    assert loops == [*["for (int i = 0; i < 3; i++) {", "for (int i2 = 0; i2 < i; i2++) {"] * 2]


ARGUMENTS = (INPUT, Leaf("state", 0), Leaf("state", 1))


def operation_in_c(name: str) -> list[str]:
    """A C function with the loop that applies an operation to three arrays."""
    code, row = Code(), OPERATIONS[name]
    out, *arrays = (
        Floats(code.builder, Array(None, name=array, kind="float"))
        for array in ("out", "first", "second", "third")
    )
    leaves = [StepValue("row", leaf=leaf) for leaf in ARGUMENTS[: row.arity]]
    zero = StepValue("number", data=0)
    truths = [StepValue("gt", (leaf, zero)) for leaf in leaves]
    if name == "where":
        leaves[0] = truths[0]
    elif row.takes_booleans and name != "to_bool":
        leaves = truths
    with code.loop(0, 200, name="j") as j:
        values = {leaf: array[j].named(str(leaf)) for leaf, array in zip(ARGUMENTS, arrays, strict=True)}
        result = float_results(code, FLOAT, {OUTPUT: StepValue(name, tuple(leaves))}, values)[OUTPUT]
        out[j] = result.to(INT).real(FLOAT) if result.type == BIT else result
    head = f"void do_{name}(float *out, const float *first, const float *second, const float *third)"
    return [f"{head} {{", *printed(code), "}"]


@needs_cc
def test_every_operation_in_c_computes_what_torch_does(tmp_path):
    refused = ("erfinv", "poisson")
    for name in refused:
        with pytest.raises(Unsupported, match=f"operation '{name}' has no C implementation"):
            operation_in_c(name)
    operations = [name for name in OPERATIONS if name not in refused]
    lines = [line for name in operations for line in operation_in_c(name)]
    source, library = tmp_path / "operations.c", tmp_path / "operations.so"
    source.write_text("#include <math.h>\n#include <stdint.h>\n" + "\n".join(lines))
    command = ["cc", "-std=c99", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-unused-variable", "-Wno-unused-parameter", "-shared", "-fPIC", "-o", library, source]
    subprocess.run([*command, "-lm"], check=True)
    functions = ctypes.CDLL(str(library))
    generator = torch.Generator().manual_seed(0)
    x, y, z = ((torch.rand(200, generator=generator) - 0.5) * 6 for _ in range(3))
    x[:6], y[:6] = (
        torch.tensor([0.0, -0.0, 1, math.inf, -math.inf, math.nan]),
        torch.tensor([1.0, -1, 1, 0, 2, 1]),
    )
    for name in operations:
        row, out = OPERATIONS[name], torch.empty(200)
        functions[f"do_{name}"](*(ctypes.c_void_p(array.data_ptr()) for array in (out, x, y, z)))
        arguments = (x, y, z)[: row.arity]
        if row.takes_booleans and name not in ("to_bool", "where"):
            arguments = tuple(argument > 0 for argument in arguments)
        elif name == "where":
            arguments = (x > 0, y, z)
        expected = row.function(*arguments).float()
        if name in ("maximum", "minimum"):  # of zeros with different signs, C takes the second
            expected = expected + 0.0
            out = out + 0.0
        if name == "elu":  # the step selects the other half
            expected = torch.where(x > 0, torch.expm1(x), expected)
        tolerance = 4e-7 if row.call or name == "root" else 0.0  # torch's own root may be off by one ulp
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
