"""Kernels compiled for other machines: Apple's, ARM's, and Windows."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
MACHINES = {
    "apple-m1": "arm64-apple-macosx14.0.0",
    "cortex-a76": "aarch64-unknown-linux-gnu",
    "x86-64-v3": "x86_64-pc-windows-msvc-elf",  # llvmlite loads ELF on Windows too
}
ALLOWED_CALLS = {
    *("malloc", "free", "memcpy", "memset", "bzero", "expf", "exp"),
    "__chkstk",  # on Windows, if a function needs more than a page of stack
}
PROGRAM = """
import json, re, sys
import llvmlite.binding as llvm
import torch
from torch import nn
import hibana as hb
from hibana.runtime import build

sources, compiled = [], build._compile
build._compile = lambda source: (sources.append(source), compiled(source))[1]
linear = hb.Linear(256, 64)
linear.mode = "events"
net = nn.Sequential(linear, hb.IF(), hb.Linear(64, 10), hb.LI())
net((torch.rand(8, 64, 256) < 0.05).float()).sum().backward()
for cell in (hb.LIFCell(surrogate="ATan"), hb.EIFCell()):
    hb.unroll(cell, torch.rand(8, 70, requires_grad=True))[0].sum().backward()
hb.Recurrent(hb.LIFCell(), 64)(torch.rand(8, 4, 64)).sum().backward()
convolution = nn.Sequential(nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), hb.IF(), nn.MaxPool2d(2))
hb.optimize(convolution, verbose=False)
convolution((torch.rand(4, 16, 2, 16, 16) < 0.3).float()).sum().backward()
assert len(sources) > 15, len(sources)

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
found = {}
for processor, triple in json.loads(sys.argv[1]).items():
    target = llvm.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=processor, opt=3, codemodel="default", jit=True)
    called = set()
    for source in sources:
        module = llvm.parse_assembly(source)
        module.triple, module.data_layout = triple, str(machine.target_data)
        module.verify()
        text = machine.emit_assembly(module)
        own = set(re.findall(r"^([A-Za-z_]\\w*):", text, re.M))
        called |= set(re.findall(r"^\\s+(?:bl|b|callq?|jmp)\\s+([A-Za-z_]\\w*)", text, re.M)) - own
    found[processor] = sorted(called)
print(json.dumps(found))
"""


def test_kernels_assemble_and_call_only_the_c_library():
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(MACHINES)],
        env={**os.environ, "HIBANA_CACHE": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    for processor, called in json.loads(process.stdout).items():
        prefix = "_" if "apple" in MACHINES[processor] else ""
        names = {name.removeprefix(prefix) for name in called}
        assert {"malloc", "free"} <= names, processor
        assert names <= ALLOWED_CALLS, processor
