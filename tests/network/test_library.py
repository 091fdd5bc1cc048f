"""Libraries for microcontrollers: classes of 20 samples in emulators, and the sketch run on this machine."""

import json
import select
import shutil
import subprocess
import time
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.network.c.code import array
from hibana.network.c.library import write_library

SAMPLES = 20
ARDUINO = """
#include <stdint.h>
#include <stdio.h>
struct Port {
    void begin(long) {}
    void print(const char *text) { fputs(text, stdout); }
    void println(int number) { printf("%d\\n", number); }
} Serial;
"""
MAIN = """
#include "net.h"
static net_state net;
%(samples)s
%(put)s
int main(void) {
    %(begin)s;
    for (int n = 0; n < %(count)d; n++) {
        net_reset(&net);
        for (int t = 0; t < NET_STEPS; t++)
            net_step(&net, t ? 0 : samples[n]);
        put('0' + (char)net_class(&net));
    }
    put('\\n');
    for (;;) {}
}
"""
SEMIHOSTING = """
static void put(char letter) {
    register int number __asm__("r0") = 3; /* SYS_WRITEC */
    register char *at __asm__("r1") = &letter;
    __asm__ volatile("bkpt 0xab" : "+r"(number) : "r"(at) : "memory");
}
extern int main(void);
__attribute__((used, section(".vectors"))) void *const vectors[] = {(void *)0x20001000, (void *)main};
"""
TO_PORT = "static void put(char letter) { %s = letter; }"


@dataclass(frozen=True)
class Board:
    """A compiler, an emulator, and the C code of ``put``, which sends a letter."""

    compiler: str
    flags: tuple[str, ...]
    emulator: tuple[str, ...]
    put: str
    begin: str = "(void)0"


BARE = ("-nostdlib", "-lgcc", "-fno-tree-loop-distribute-patterns")
"""Flags that link no C library, and keep the compiler from replacing loops by calls of memset."""
SECTIONS = (*BARE, "-Wl,--section-start=.vectors=0,-Ttext=0x100,-Tdata=0x20001000,-e,main")
BOARDS = {
    "cortex-m0+": Board(
        "arm-none-eabi-gcc",
        ("-mcpu=cortex-m0plus", "-mthumb", *SECTIONS),
        ("qemu-system-arm", "-M", "microbit", "-semihosting", "-kernel"),
        SEMIHOSTING,
    ),
    "cortex-m4": Board(
        "arm-none-eabi-gcc",
        ("-mcpu=cortex-m4", "-mthumb", *SECTIONS),
        ("qemu-system-arm", "-M", "mps2-an386", "-semihosting", "-kernel"),
        SEMIHOSTING,
    ),
    "rv32imc": Board(
        "riscv64-unknown-elf-gcc",
        ("-march=rv32imc", "-mabi=ilp32", "-mcmodel=medany", *BARE, "-Wl,-Ttext=0x80000000"),
        ("qemu-system-riscv32", "-M", "virt", "-bios", "none", "-kernel"),
        TO_PORT % "*(volatile char *)0x10000000"
        + '\n__asm__(".section .text.unlikely\\n.globl _start\\n_start: li sp, 0x80100000\\n j main\\n");',
    ),
    "atmega2560": Board(
        "avr-gcc",
        ("-mmcu=atmega2560",),
        ("qemu-system-avr", "-M", "mega2560", "-bios"),
        "#include <avr/io.h>\n" + TO_PORT % "UDR0",
        "UCSR0B = 1 << TXEN0",
    ),
}


def networks():
    """A fully connected network and a convolutional one, each with inputs ``[T, batch, 64]``."""
    torch.manual_seed(0)
    x = (torch.rand(1, SAMPLES, 64) * (torch.rand(1, SAMPLES, 64) < 0.3)).expand(8, -1, -1)
    pool = hb.EachStep(nn.MaxPool2d(2))
    layers = {
        "linear": [nn.Linear(64, 32), hb.IF(0.3), nn.Linear(32, 10), hb.LI()],
        "images": [
            *(nn.Unflatten(2, (1, 8, 8)), hb.EachStep(nn.Conv2d(1, 4, 3)), hb.LIF(2.0, 0.3), pool),
            *(nn.Flatten(2), nn.Linear(36, 10), hb.LI()),
        ],
    }
    for name, modules in layers.items():
        net, _ = hb.quantize(nn.Sequential(*modules).eval(), x)
        classes = net(x).sum(0).argmax(1).tolist()
        assert len(set(classes)) > 1, name
        yield name, hb.convert.to_c(net, x, name="net"), net.integer_input(x).flatten(2), classes


def build(command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", BOARDS)
def test_a_microcontroller_returns_the_classes_of_pytorch(name, tmp_path):
    board = BOARDS[name]
    for tool in (board.compiler, board.emulator[0]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for kind, program, inputs, classes in networks():
        write_library(program, tmp_path, inputs[:, 0], classes[0])
        samples = "\n".join(array("flat", "uint8_t", inputs[0])).replace(f"flat[{SAMPLES * 64}]", "flat[]")
        text = {"samples": f"{samples}\n#define samples ((const uint8_t (*)[64])flat)", "count": SAMPLES}
        (tmp_path / "main.c").write_text(MAIN % (text | {"put": board.put, "begin": board.begin}))
        sources = [tmp_path / "main.c", tmp_path / "src" / "net.c"]
        warnings = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Os", f"-I{tmp_path / 'src'}"]
        build([board.compiler, *warnings, *sources, "-o", tmp_path / "main", *board.flags])
        assert _first_line([*board.emulator, tmp_path / "main"]) == "".join(map(str, classes)), kind


def _first_line(emulator):
    """The first line that a program prints in an emulator; kills the emulator, as the program never ends."""
    options = ["-display", "none", "-monitor", "none", "-serial", "stdio"]
    process = subprocess.Popen([*emulator, *options], stdin=subprocess.DEVNULL, stdout=-1, stderr=-2)
    try:
        text, end = b"", time.monotonic() + 60
        while (
            b"\n" not in text and select.select([process.stdout], [], [], max(0, end - time.monotonic()))[0]
        ):
            letters = process.stdout.read1()
            if not letters:
                break
            text += letters
        return text.decode().strip()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("c++")), reason="no compilers cc and c++")
@pytest.mark.parametrize("varies", [False, True])
def test_the_sketch_prints_the_class_of_pytorch(varies, tmp_path):
    for _, program, inputs, classes in networks():
        sample, expected = inputs[:, 3], classes[3]
        write_library(program, tmp_path, sample.flip(1) if varies else sample, expected)
        sketch = tmp_path / "examples" / "net" / "net.ino"
        if varies:  # the first step differs, so the sketch holds all steps
            write_library(program, tmp_path, torch.cat([sample[:1] * 0, sample[1:]]), expected)
            assert "sample[512]" in sketch.read_text()
        (tmp_path / "Arduino.h").write_text(ARDUINO)
        (tmp_path / "main.cpp").write_text(
            f'#include "Arduino.h"\n#include "{sketch}"\nint main() {{ setup(); loop(); }}\n'
        )
        include, net = f"-I{tmp_path / 'src'}", tmp_path / "net.o"
        build(["cc", "-Wall", "-Wextra", "-Werror", "-c", tmp_path / "src" / "net.c", "-o", net])
        build(["c++", "-Wall", "-Wextra", include, tmp_path / "main.cpp", net, "-o", tmp_path / "main"])
        output = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
        assert output == f"class {expected}\n"


def test_every_build_system_finds_the_source(tmp_path):
    _, program, inputs, classes = next(networks())
    write_library(program, tmp_path, inputs[:, 0], classes[0])
    properties = dict(line.split("=") for line in (tmp_path / "library.properties").read_text().splitlines())
    description = json.loads((tmp_path / "library.json").read_text())
    assert properties["name"] == description["name"] == "net"
    assert properties["version"] == description["version"]
    assert (tmp_path / "src" / properties["includes"]).exists()
    assert 'SRCS "src/net.c" INCLUDE_DIRS "src"' in (tmp_path / "CMakeLists.txt").read_text()
    source = (tmp_path / "src" / "net.c").read_text()
    assert source.count("static const IN_FLASH") == source.count("static const")
