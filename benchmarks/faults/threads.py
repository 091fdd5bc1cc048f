"""Concurrent calls, forks and memory growth, as in a server that runs for days."""

import time
from collections.abc import Iterator

from benchmarks.faults.trial import Tally, run, start, wait

__all__ = ["concurrent", "first_calls", "forks", "growth"]

FIRST = """
import threading, torch, hibana as hb
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(10, 2000), hb.IF(detach_reset=True), nn.Linear(2000, 3), hb.LI())
inputs = [torch.rand(8, 64, 10) for _ in range(8)]
results, gate = [None] * 8, threading.Barrier(8)
def call(at):
    gate.wait()
    results[at] = net(inputs[at])
threads = [threading.Thread(target=call, args=(at,)) for at in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for at in range(8):
    assert torch.equal(results[at], net(inputs[at])), f"the results of thread {at} differ"
"""

FORKS = """
import os, torch, hibana as hb
torch.set_num_threads(1)  # torch's own threads do not survive a fork
x = torch.rand(6, 3, 50, requires_grad=True)
def numbers(layer):
    out = layer(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    return out.sum().item(), gradient.sum().item()
old, new = hb.IF(detach_reset=True), hb.LIF()
before, codes = numbers(old), []
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if numbers(old) == before and numbers(new)[0] >= 0 else 3)
        finally:
            os._exit(4)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
assert codes == [0] * 4, codes
assert numbers(old) == before
"""

CONCURRENT = """
import sys, threading, torch, hibana as hb
from torch import nn
torch.set_num_threads(1)
calls, workers = int(sys.argv[1]), 8
def model(seed):
    torch.manual_seed(seed)
    kinds = hb.IF(0.2, detach_reset=True), hb.LIF(4.0, 0.2), hb.LIF(2.0 + seed, 0.2), hb.IF(0.1 + seed / 64)
    cell = kinds[seed % 4]
    return nn.Sequential(nn.Linear(6, 9), cell, nn.Linear(9, 2), hb.LI(3.0))
def step(net, x):
    out = net(x)
    return [out, *torch.autograd.grad(out.square().sum(), list(net.parameters()))]
nets = [model(seed) for seed in range(workers)]
inputs = [[torch.rand(5, 3, 6) for _ in range(4)] for _ in nets]
expected = [[step(net, x) for x in samples] for net, samples in zip(nets, inputs)]
gate, wrong, problems = threading.Barrier(workers), [0] * workers, []
def work(at):
    gate.wait()
    for number in range(calls // workers):
        index = number % 4
        try:
            results = step(nets[at], inputs[at][index])
        except Exception as error:
            wrong[at] += 1
            problems.append(repr(error))
            continue
        wrong[at] += not all(torch.equal(a, b) for a, b in zip(results, expected[at][index]))
threads = [threading.Thread(target=work, args=(at,)) for at in range(workers)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(wrong), flush=True)
assert not problems, problems[:3]
"""

GROWTH = """
import gc, sys, torch, hibana as hb
torch.set_num_threads(1)
kind, count = sys.argv[1], int(sys.argv[2])
def resident():
    gc.collect()
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
x = torch.rand(3, 4, requires_grad=True)
def call(number):
    if kind == "values":
        out = hb.IF(0.5 + number / 16384, detach_reset=number % 2 == 0)(x)
    else:
        shape = 1 + number % 100, 1 + number // 100
        out = hb.IF(detach_reset=True)(torch.rand(shape, requires_grad=True))
    out.sum().backward()
for number in range(200):
    call(number)
before = resident()
for number in range(count):
    call(number)
print(resident() - before)
"""
LARGEST_GROWTH = 50.0
"""In megabytes."""


def first_calls(quick: bool) -> Iterator[Tally]:
    """Trials of processes with eight threads that call a network for the first time at the same moment.

    In every tenth trial one process has no kernel cache.
    """
    tally = Tally("processes of eight threads, first calls at once")
    for trial in range(1 if quick else 100):
        start_time = time.perf_counter()
        caches = ({"HIBANA_CACHE": "off"}, {}) if trial % 10 == 0 else ({}, {})
        for process in [start(["-c", FIRST], **cache) for cache in caches]:
            result = wait(process, start_time)
            tally.add(result.fault(0), result.seconds)
    yield tally


def forks(quick: bool) -> Iterator[Tally]:
    """Trials of processes that fork after a call; the children call the same layer and a new layer."""
    tally = Tally("forks: four children of a process with compiled kernels")
    for _ in range(1 if quick else 20):
        result = run(["-c", FORKS])
        tally.add(result.fault(0), result.seconds)
    yield tally


def concurrent(quick: bool) -> Iterator[Tally]:
    """Trials of independent models in eight threads, forward and backward, compared with sequential calls."""
    calls = 800 if quick else 100_000
    tally = Tally("concurrent calls of independent models")
    result = run(["-c", CONCURRENT, calls])
    wrong = int(result.out.split()[0]) if result.out.split() else calls
    tally.tries = calls
    tally.seconds = result.seconds
    tally.failures = [result.fault(0) or "different numbers"] * wrong if wrong else []
    if not wrong and (fault := result.fault(0)):
        tally.failures.append(fault)
    yield tally


def growth(quick: bool) -> Iterator[Tally]:
    """Trials of the memory growth over many values of a hyperparameter, and over many shapes."""
    for argument, kind in (("values", "values of a hyperparameter"), ("shapes", "shapes")):
        count = 300 if quick else 10_000
        tally = Tally(f"{kind}, growth within {LARGEST_GROWTH:.0f} MB")
        result = run(["-c", GROWTH, argument, count])
        fault = result.fault(0)
        growth = 0.0 if fault else float(result.out.split()[-1])
        if growth > LARGEST_GROWTH:
            fault = f"{growth:.0f} MB more"
        tally.add(fault, result.seconds, growth)
        tally.tries = count
        yield tally
