"""Programs in C on other machines: WebAssembly in wasmtime, ARM Cortex-M in qemu; no libc on either."""

import importlib.util
import shutil
import struct
import subprocess
import sys

import pytest
import torch

WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
FORMATS = {"float": "f", "double": "d", "int32_t": "i", "uint8_t": "B", "int8_t": "b"}
needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
needs_wasmtime = pytest.mark.skipif(
    importlib.util.find_spec("wasmtime") is None, reason="wasmtime is not installed"
)
needs_qemu = pytest.mark.skipif(shutil.which("qemu-arm") is None, reason="no qemu-arm (Debian: qemu-user)")

MEMORY = """
#include "net.h"
static net_state net;
static %(input)s input[NET_INPUTS];
static %(kind)s output[NET_OUTPUTS];
void *inputs(void) { return input; }
void *outputs(void) { return output; }
void begin(void) { net_reset(&net); }
void go(void) { net_step(&net, input); net_output(&net, output); }
"""

SYSTEM = """
__asm__(".thumb\\n.syntax unified\\n.thumb_func\\n.global call\\n"
        "call: push {r7, lr}\\n mov r7, r0\\n mov r0, r1\\n"
        "mov r1, r2\\n mov r2, r3\\n svc 0\\n pop {r7, pc}\\n");
long call(long number, long a, void *b, long c);
void _start(void);
void _start(void) {
    for (int t = 0;; t = t + 1 == %(steps)d ? 0 : t + 1) {
        char *at = (char *)input;
        long left = sizeof input, got = 1;
        for (; left > 0 && got > 0; at += got, left -= got)
            got = call(3, 0, at, left);
        if (got <= 0)
            call(1, 0, 0, 0);
        if (t == 0)
            begin();
        go();
        call(4, 1, output, sizeof output);
    }
}
"""
"""A system of two calls, read and write, and an end."""


def _built(program, folder, more, flags):
    """The path of `program`, compiled by zig."""
    source, _ = program.write(folder / "net.c")
    whole = folder / "whole.c"
    whole.write_text(MEMORY % {"input": program.input, "kind": program.kind} + more)
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "-O2", "-nostdlib", "-fno-builtin"]
    command += ["-o", folder / "whole", source, whole]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder / "whole"


def in_wasmtime(program, folder, inputs):
    """What `program` puts out for `inputs` ``[T, batch, ...]``, as WebAssembly."""
    import wasmtime

    exports = [f"-Wl,--export={name}" for name in ("inputs", "outputs", "begin", "go")]
    flags = ["-target", "wasm32-freestanding", *WARNINGS, "-Wl,--no-entry", *exports]
    store = wasmtime.Store()
    module = wasmtime.Module.from_file(store.engine, str(_built(program, folder, "", flags)))
    made = wasmtime.Instance(store, module, []).exports(store)
    memory = made["memory"]
    found = []
    for sample in inputs.transpose(0, 1):
        made["begin"](store)
        for step in sample:
            memory.write(store, _packed(program.input, step), made["inputs"](store))
            made["go"](store)
            at = made["outputs"](store)
            end = at + struct.calcsize(FORMATS[program.kind]) * program.outputs
            found.append(_unpacked(program.kind, memory.read(store, at, end)))
    return torch.stack(found).view(inputs.shape[1], len(inputs), -1).transpose(0, 1)


def in_qemu(program, folder, inputs, processor, system="eabihf"):
    """What `program` puts out for `inputs` ``[T, batch, ...]``, on an ARM Cortex-M."""
    target = ["-target", f"thumb-freestanding-{system}", f"-mcpu={processor}"]
    flags = [*target, *WARNINGS[1:-1], "-std=gnu99", "-Wl,-e,_start"]
    binary = _built(program, folder, SYSTEM % {"steps": len(inputs)}, flags)
    given = b"".join(_packed(program.input, step) for sample in inputs.transpose(0, 1) for step in sample)
    run = subprocess.run(["qemu-arm", binary], input=given, capture_output=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr
    return _unpacked(program.kind, run.stdout).view(inputs.shape[1], len(inputs), -1).transpose(0, 1)


def _packed(kind, values):
    numbers = values.flatten().tolist()
    if kind not in ("float", "double"):
        numbers = [int(number) for number in numbers]
    return struct.pack(f"<{len(numbers)}{FORMATS[kind]}", *numbers)


def _unpacked(kind, raw):
    count = len(raw) // struct.calcsize(FORMATS[kind])
    return torch.tensor(struct.unpack(f"<{count}{FORMATS[kind]}", bytes(raw)), dtype=torch.float64)
