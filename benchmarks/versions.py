"""Times calls of several versions of hibana, which take turns, each in a process of its own.

``python -m benchmarks.versions old=/path/to/old/src new=src --jobs if mlp`` prints a line for each call: the
shortest and the median milliseconds of each version, and in brackets their ratios to those of the first
version. Peers and ReLU networks are timed in the process of the last version.
"""

import argparse
import contextlib
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hibana as hb
from benchmarks import deep, networks, peers, plain, recurrent, steps, streaming

__all__ = ["JOBS"]

Calls = dict[str, Callable[[], object]]
"""Functions to time, by name."""


def _neurons() -> Calls:
    """Forward and backward of IF over ``[32, 262144]``, and of ReLU."""
    x, grad = torch.rand(32, 1, 262144).requires_grad_(), torch.rand(32, 1, 262144)

    def call(layer: nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x), x, grad)

    layers = {"IF": hb.IF(), "IF, detached reset": hb.IF(detach_reset=True), "ReLU": nn.ReLU()}
    return {name: call(layer) for name, layer in layers.items()}


def _recurrent() -> Calls:
    """A training step of 700-512-20 with recurrent synapses."""
    size = recurrent.SIZES["100x128x512"]
    inputs, targets = recurrent.sample(size)
    weights, _ = recurrent.tune_weights(size, inputs)
    return {
        f"recurrent 700-512-20, {surrogate}": recurrent.training_step(
            recurrent.network(weights, surrogate), inputs, targets
        )
        for surrogate in (hb.surrogate.Step(), hb.surrogate.ATan())
    }


def _fully_connected() -> Calls:
    """Training and inference of 784-512-512-10 at 5% firing."""
    network = networks.NETWORKS["mlp"]
    inputs, targets = networks.sample(network, 0.05, network.steps)
    weights, _ = networks.tune_weights(network, 0.05, inputs)
    net = networks.build(network, "hibana", weights)
    return {
        "MLP training": steps.training_step(net, inputs, targets),
        "MLP inference": steps.inference(net, inputs),
    }


def _deep() -> Calls:
    """Training and inference of a VGG by ``hb.optimize``, at the rates of new weights and at 16%."""
    calls: Calls = {}
    images, targets = deep.sample()
    inputs = images.expand(deep.STEPS, *images.shape)
    for name, rate in (("initial weights", None), ("16% firing", deep.RATE)):
        torch.manual_seed(0)
        net: Any = plain.NETWORKS["vgg"][1]()
        if rate is not None:
            _tune_shifts(plain._wrap_images(net), inputs, rate)
        hb.optimize(net, inputs)  # older versions return a table
        calls[f"VGG training, {name}"] = steps.training_step(net.train(), inputs, targets)
        calls[f"VGG inference, {name}"] = _evaluated(net, inputs)
    return calls


def _evaluated(net: nn.Module, inputs: Tensor) -> Callable[[], object]:
    """Inference of a copy of `net` in evaluation mode."""
    return steps.inference(copy.deepcopy(net).eval(), inputs)


@torch.no_grad()
def _tune_shifts(net: nn.Module, inputs: Tensor, rate: float) -> None:
    """Sets shifts and statistics of batch normalizations so that the neurons after them fire at `rate`."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    neurons = [module for module in net.modules() if isinstance(module, hb.OverTime)]
    for norm, layer in zip(norms, neurons, strict=True):
        norm.momentum = 1.0

        def tune(layer: nn.Module, below: tuple[Tensor, ...], norm: nn.BatchNorm2d = norm) -> None:
            """Finds the shift of the normalization by bisection."""
            low, high = -3.0, 3.0
            for _ in range(14):
                shift = (low + high) / 2
                spikes, _ = layer.over_time(below[0] + shift, None)
                low, high = (low, shift) if spikes.mean() > rate else (shift, high)
            norm.bias.fill_(shift)

        hook = layer.register_forward_pre_hook(tune)
        net.train()(inputs)
        hook.remove()
        norm.momentum = 0.1


def _steps() -> Calls:
    """One step per call by ``hb.run``, without and with gradients, of both networks and the peers."""
    calls: Calls = {}
    usable, _ = peers.available()
    for name, (_, shape, make_layers) in streaming.NETWORKS.items():
        torch.manual_seed(0)
        inputs = (torch.rand(streaming.STEPS, 1, *shape) < streaming.RATE).float()
        layers = streaming._scale_weights(make_layers())
        net = streaming._hibana_network(layers, surrogate="ATan", detach_reset=True)
        make_steps = {"hb.run": lambda net=net: streaming._step_by_run(net)}
        for peer in streaming.PEERS:
            if peer in usable:
                make_steps[peer] = lambda peer=peer, layers=layers: streaming._MAKE_STEP[peer](layers)
        parameters = [p for layer in layers if isinstance(layer, nn.Module) for p in layer.parameters()]
        for contender, make_step in make_steps.items():
            step = make_step()
            calls[f"{streaming.STEPS} steps, {name}, {contender}"] = _plain_steps(step, inputs)
            learn = _learning_steps(make_step, inputs, parameters)
            calls[f"{streaming.STEPS} steps with gradients, {name}, {contender}"] = learn
    return calls


def _plain_steps(step: Callable[[Tensor], Tensor], inputs: Tensor) -> Callable[[], object]:
    call = streaming._call_each_step(step, inputs)
    return lambda: torch.no_grad()(call)()


def _learning_steps(make_step: Any, inputs: Tensor, parameters: list[nn.Parameter]) -> Callable[[], object]:
    def call() -> None:
        step, total = make_step(), torch.zeros(())
        for x in inputs:
            total = total + step(x).square().sum()
        torch.autograd.grad(total, parameters)

    return call


JOBS: dict[str, tuple[Callable[[], Calls], int]] = {
    "if": (_neurons, 0),
    "recurrent": (_recurrent, 0),
    "mlp": (_fully_connected, 0),
    "vgg": (_deep, 0),
    "steps": (_steps, 1),
}
"""Calls to time, and their number of threads; 0 for all."""


def _work(job: str) -> None:
    """Reads names of calls from standard input; prints the seconds of each."""
    make_calls, threads = JOBS[job]
    if threads:
        torch.set_num_threads(threads)
    hb.keep_memory()
    torch.set_flush_denormal(True)
    with contextlib.redirect_stdout(sys.stderr):  # hb.optimize prints a table
        calls = make_calls()
        for call in calls.values():
            call()
            call()
    print("|".join(calls), flush=True)
    for line in sys.stdin:
        call = calls[line.strip()]
        call()
        start = time.perf_counter()
        call()
        print(time.perf_counter() - start, flush=True)


def _measure(job: str, versions: dict[str, str], rounds: int) -> None:
    """Times the calls of one job in turns, and prints a line for each."""
    workers = {}
    for name, path in versions.items():
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((path, str(Path.cwd())))}
        command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--worker", job]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        workers[name] = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload] # of the pipes
    names = [worker.stdout.readline().strip().split("|") for worker in workers.values()]
    ours, last = names[0], list(workers)[-1]
    for call in ours:
        is_ours = "ReLU" not in call and not any(peer in call for peer in streaming.PEERS)
        seconds: dict[str, list[float]] = {name: [] for name in workers if is_ours or name == last}
        for turn in range(rounds):
            order = list(seconds)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                worker = workers[name]
                worker.stdin.write(f"{call}\n")
                worker.stdin.flush()
                seconds[name].append(float(worker.stdout.readline()))
        first, cells = next(iter(seconds.values())), []
        for name, times in seconds.items():
            figures = [
                f"{1e3 * figure(times):.2f} ({figure(times) / figure(first):.2f})"
                for figure in (min, statistics.median)
            ]
            cells.append(f"{name} {' '.join(figures)}")
        print(f"{call}: {', '.join(cells)}", flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()


def main() -> None:
    """Measures the versions that the command names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", help="NAME=FOLDER of a version's source")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", choices=JOBS)
    options = parser.parse_args()
    if options.worker:
        _work(options.worker)
        return
    versions = {name: str(Path(path).resolve()) for name, _, path in map(_split, options.versions)}
    for job in options.jobs:
        _measure(job, versions, options.rounds)


def _split(version: str) -> tuple[str, str, str]:
    return version.partition("=")


if __name__ == "__main__":
    main()
