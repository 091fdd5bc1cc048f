"""A C program as a library for Arduino, PlatformIO and ESP-IDF: one folder that serves all three."""

import json
from pathlib import Path

from torch import Tensor

from hibana.network.c.code import array
from hibana.network.c.program import CProgram
from hibana.runtime import files

__all__ = ["write_library"]

_VERSION = "1.0.0"
"""Version of the library in its three descriptions."""


def write_library(program: CProgram, folder: Path, inputs: Tensor, expected: int) -> None:
    """Writes `program` to `folder` as an Arduino and PlatformIO library, which is also an ESP-IDF component.

    The folder contains the descriptions for each build system, ``src/`` with the C program, and
    ``examples/`` with a sketch that classifies one recorded sample and prints its class.

    Args:
        program: a network in C; its name is the library's name.
        folder: created if it is missing. Files of the same names are replaced.
        inputs: the program's inputs for the sample, ``[T, inputs]``.
        expected: the class of the sample in PyTorch, for a comment in the sketch.
    """
    name, sentence = program.name, "A spiking neural network, written by hibana"
    source = folder / "src" / f"{name}.c"
    sketch = folder / "examples" / name / f"{name}.ino"
    description = {
        "name": name,
        "version": _VERSION,
        "description": sentence,
        "frameworks": "*",
        "platforms": "*",
    }
    properties = {
        "name": name,
        "version": _VERSION,
        "author": "hibana",
        "maintainer": "hibana",
        "sentence": sentence,
        "paragraph": f"{program.constant_bytes} bytes of constants, {program.changing_bytes} of variables.",
        "category": "Data Processing",
        "architectures": "*",
        "includes": f"{name}.h",
    }
    for parent in (source.parent, sketch.parent):
        parent.mkdir(parents=True, exist_ok=True)
    program.write(source)
    for path, text in (
        (sketch, _sketch(program, inputs, expected)),
        (folder / "library.properties", "".join(f"{key}={value}\n" for key, value in properties.items())),
        (folder / "library.json", json.dumps(description, indent=2) + "\n"),
        (folder / "CMakeLists.txt", f'idf_component_register(SRCS "src/{name}.c" INCLUDE_DIRS "src")\n'),
        (folder / "idf_component.yml", f'version: "{_VERSION}"\ndescription: {sentence}\n'),
    ):
        files.write(path, text.encode())


def _sketch(program: CProgram, inputs: Tensor, expected: int) -> str:
    """An Arduino sketch that runs `program` on one sample and prints its class."""
    name, upper = program.name, program.name.upper()
    is_constant = bool((inputs == inputs[:1]).all())
    step = "t ? 0 : sample" if is_constant else f"sample + t * {upper}_INPUTS"
    sample = "\n".join(array("sample", program.input, inputs[:1] if is_constant else inputs))
    return f"""\
/* Classifies one sample of the test set, and prints its class: {expected}, as in PyTorch. */
#include <{name}.h>

{sample}
static {name}_state net;

void setup() {{
    Serial.begin(115200);
    {name}_reset(&net);
    for (int t = 0; t < {len(inputs)}; t++)
        {name}_step(&net, {step});
    Serial.print("class ");
    Serial.println((int){name}_class(&net));
}}

void loop() {{}}
"""
