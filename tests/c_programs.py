"""Compiles and runs exported C programs, for the tests of `hibana convert`."""

import shutil
import subprocess

import pytest
import torch

import hibana as hb
from ordered import in_order

WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler, cc")


def main_of(program, steps, events, constant_input, fields):
    """A program that reads samples and writes outputs and `fields` of the struct each step, then scores."""
    name, upper = program.name, program.name.upper()
    form = "%a" if program.kind in ("float", "double") else "%ld"
    cast = "(double)" if form == "%a" else "(long)"
    append_event = "if (input[i] != 0) list[count++] = (unsigned short)i;" if events else ""
    call = (
        f"{name}_step_events(&net, list, count)"
        if events
        else f"{name}_step(&net, {'t ? 0 : input' if constant_input else 'input'})"
    )
    each = "\n".join(
        f"            for (size_t i = 0; i < sizeof net.{field} / sizeof *net.{field}; i++)\n"
        f'                printf("{form} ", {cast}net.{field}[i]);'
        for field in fields
    )
    return f"""
#include "{name}.h"
#include <stdio.h>
static {name}_state net;
static {program.input} input[{upper}_INPUTS];
static {program.kind} output[{upper}_OUTPUTS];
int main(void) {{
    double number;
    int samples;
    if (scanf("%d", &samples) != 1) return 1;
    while (samples-- > 0) {{
        {name}_reset(&net);
        for (int t = 0; t < {steps}; t++) {{
            static unsigned short list[{upper}_INPUTS];
            size_t count = 0;
            (void)list; (void)count;
            for (size_t i = 0; i < {upper}_INPUTS; i++) {{
                if (scanf("%lf", &number) != 1) return 1;
                input[i] = ({program.input})number;
                {append_event}
            }}
            {call};
            {name}_output(&net, output);
            for (size_t i = 0; i < {upper}_OUTPUTS; i++) printf("{form} ", {cast}output[i]);
{each}
        }}
        {name}_scores(&net, output);
        for (size_t i = 0; i < {upper}_OUTPUTS; i++) printf("{form} ", {cast}output[i]);
        printf("%lu\\n", (unsigned long){name}_class(&net));
    }}
    return 0;
}}
"""


def compiled(
    program,
    folder,
    steps,
    *,
    events=False,
    constant_input=False,
    fields=(),
    compiler=("cc",),
    flags=(*WARNINGS, *SANITIZERS, "-O1"),
):
    """The path of an executable that runs `program` on the samples in its standard input."""
    source, _ = program.write(folder / f"{program.name}.c")
    main = folder / "main.c"
    main.write_text(main_of(program, steps, events, constant_input, fields))
    binary = folder / "run"
    result = subprocess.run(
        [*compiler, *flags, "-o", binary, source, main, "-lm"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return binary


def outputs_of(binary, program, inputs, runner=()):
    """Outputs (and fields of the struct), scores, classes of `program` for `inputs` ``[T, batch, ...]``."""
    steps, batch = inputs.shape[:2]
    numbers = inputs.transpose(0, 1).flatten(1).double()
    text = f"{batch}\n" + "\n".join(" ".join(f"{n:.17g}" for n in row) for row in numbers.tolist())
    run = subprocess.run([*runner, binary], input=text, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in run.stdout.splitlines()]
    read = float.fromhex if program.kind in ("float", "double") else int
    values = torch.tensor([[read(n) for n in row[:-1]] for row in rows], dtype=torch.float64)
    at_steps, scores = values[:, : -program.outputs], values[:, -program.outputs :]
    return at_steps.view(batch, steps, -1).transpose(0, 1), scores, [int(row[-1]) for row in rows]


def check_programs(net, inputs, folder=None, expected=None, **how):
    """The native program, its stream, and the program in C compute the outputs of `net`, bit for bit.

    Args:
        net: a network, whose sums are taken in the programs' order.
        inputs: ``[T, batch, ...]``.
        folder: a folder for the program in C; None for no such program.
        expected: the outputs; None to compute them by PyTorch in the order of the programs.
        how: options of :func:`compiled`.

    Returns:
        The native program, and the program in C or None.
    """
    if expected is None:
        with torch.no_grad():
            expected = in_order(net, inputs)(inputs)
            torch.testing.assert_close(net(inputs).mean(), expected.mean(), atol=0.05, rtol=0.05)
    assert expected.count_nonzero() > 0
    native = hb.compile(net, inputs)
    assert torch.equal(native(inputs), expected)
    stream, half = native.stream(inputs.shape[1]), len(inputs) // 2
    steps = [stream.step(x) for x in inputs[:half]]
    stream.state = stream.state
    assert torch.equal(torch.cat([*(step[None] for step in steps), stream.run(inputs[half:])]), expected)
    if folder is None or CC is None:
        return native, None
    program, flat = hb.convert.to_c(net, inputs), expected.flatten(2)
    outputs, scores, classes = outputs_of(compiled(program, folder, len(inputs), **how), program, inputs)
    assert torch.equal(outputs.to(flat.dtype), flat)
    assert torch.allclose(scores.to(flat.dtype), flat.sum(0), atol=1e-4)
    assert classes == scores.argmax(1).tolist()
    return native, program
