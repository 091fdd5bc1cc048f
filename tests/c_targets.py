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
"""C code for a system without libc: it reads inputs, writes outputs, and exits at the end of the inputs."""


def _build(program, folder, system_code, flags):
    """The path of `program`, compiled by zig."""
    source, _ = program.write(folder / "net.c")
    main_file = folder / "main.c"
    main_file.write_text(MEMORY % {"input": program.input, "kind": program.kind} + system_code)
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "-O2", "-nostdlib", "-fno-builtin"]
    command += ["-o", folder / "main", source, main_file]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / "main"


def in_wasmtime(program, folder, inputs):
    """The outputs of `program` for `inputs` ``[T, batch, ...]``, as WebAssembly."""
    import wasmtime

    export_flags = [f"-Wl,--export={name}" for name in ("inputs", "outputs", "begin", "go")]
    flags = ["-target", "wasm32-freestanding", *WARNINGS, "-Wl,--no-entry", *export_flags]
    store = wasmtime.Store()
    module = wasmtime.Module.from_file(store.engine, str(_build(program, folder, "", flags)))
    exports = wasmtime.Instance(store, module, []).exports(store)
    memory = exports["memory"]
    outputs = []
    for sample in inputs.transpose(0, 1):
        exports["begin"](store)
        for step in sample:
            memory.write(store, _pack(program.input, step), exports["inputs"](store))
            exports["go"](store)
            at = exports["outputs"](store)
            end = at + struct.calcsize(FORMATS[program.kind]) * program.outputs
            outputs.append(_unpack(program.kind, memory.read(store, at, end)))
    return torch.stack(outputs).view(inputs.shape[1], len(inputs), -1).transpose(0, 1)


def in_qemu(program, folder, inputs, processor, system="eabihf"):
    """The outputs of `program` for `inputs` ``[T, batch, ...]``, on an ARM Cortex-M."""
    target = ["-target", f"thumb-freestanding-{system}", f"-mcpu={processor}"]
    flags = [*target, *WARNINGS[1:-1], "-std=gnu99", "-Wl,-e,_start"]
    binary = _build(program, folder, SYSTEM % {"steps": len(inputs)}, flags)
    data = b"".join(_pack(program.input, step) for sample in inputs.transpose(0, 1) for step in sample)
    run = subprocess.run(["qemu-arm", binary], input=data, capture_output=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr
    return _unpack(program.kind, run.stdout).view(inputs.shape[1], len(inputs), -1).transpose(0, 1)


def _pack(kind, values):
    numbers = values.flatten().tolist()
    if kind not in ("float", "double"):
        numbers = [int(number) for number in numbers]
    return struct.pack(f"<{len(numbers)}{FORMATS[kind]}", *numbers)


def _unpack(kind, raw):
    count = len(raw) // struct.calcsize(FORMATS[kind])
    return torch.tensor(struct.unpack(f"<{count}{FORMATS[kind]}", bytes(raw)), dtype=torch.float64)
