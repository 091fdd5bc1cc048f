"""Public layers in other processes, ``python every_process.py HOW few|all``: see `test_every_process.py`."""

import copy
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import hibana as hb
from every_layer import CASES, FEW, build, near, reference
from hibana.nn.metrics import FiringRate, SynOps

PROCESSES = 2
Case = tuple[str, nn.Module, Tensor]


class Gain(nn.Module):
    """A learned gain below a layer that may have no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.75, 1.25, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def cases() -> list[Case]:
    return [(name, *build(name)) for name in (FEW if sys.argv[2] == "few" else CASES)]


def gradients(run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    outputs = run(x)
    return [outputs.detach(), torch.autograd.grad(outputs.square().sum(), x)[0]]


def check_against_reference(layers: list[Case]) -> None:
    for name, layer, x in layers:
        for pair in zip(gradients(layer, x), gradients(partial(reference, layer), x), strict=True):
            check_near(name, *pair)


def check_near(name: str, result: Tensor, expected: Tensor) -> None:
    try:
        near(result, expected)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error


def run_in_fork() -> None:
    """Calls each layer before the fork, and again in the child process."""
    torch.set_num_threads(1)
    layers = cases()
    check_against_reference(layers)
    child = multiprocessing.get_context("fork").Process(target=check_against_reference, args=(layers,))
    child.start()
    child.join()
    assert child.exitcode == 0, f"the child ended with {child.exitcode}"


def run_in_spawned_processes() -> None:
    """Sends the layers to two new processes; each runs plainly, in DDP, and sharded by FSDP2."""
    context = multiprocessing.get_context("spawn")
    layers = cases()
    with tempfile.TemporaryDirectory() as folder:
        address = f"file://{folder}/group"
        children = [context.Process(target=worker, args=(rank, address, layers)) for rank in range(PROCESSES)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    exit_codes = [child.exitcode for child in children]
    assert exit_codes == [0] * PROCESSES, f"the children ended with {exit_codes}"


def worker(rank: int, address: str, layers: list[Case]) -> None:
    torch.set_num_threads(1)
    check_against_reference(layers)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=PROCESSES)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    try:
        for name, layer, x in layers:
            net = nn.Sequential(Gain(), layer)
            batches = [x, 0.5 * x]  # one per process
            expected = reference_gradients(net, batches)
            for wrap in (DistributedDataParallel, partial(fully_shard, mesh=mesh)):
                wrapped = wrap(copy.deepcopy(net))
                wrapped(batches[rank]).square().sum().backward()
                for (key, parameter), expected_grad in zip(wrapped.named_parameters(), expected, strict=True):
                    grad = parameter.grad
                    full_grad = grad.full_tensor() if isinstance(grad, distributed.tensor.DTensor) else grad
                    check_near(f"{name}, {key}, {wrap}", full_grad, expected_grad)
        check_distributed_metrics(rank)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # otherwise the parent would wait for the other process
    distributed.destroy_process_group()
    os._exit(0)  # gloo's thread aborts if it frees a tensor while Python exits: pytorch issue 190489


def check_distributed_metrics(rank: int) -> None:
    """Metrics of two processes with unequal shares equal those of one process with all samples."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 5), hb.IF(0.1), nn.Linear(5, 2))
    inputs = torch.rand(4, 5, 6)
    rate, count = FiringRate(), SynOps()
    single = SynOps(distributed_available_fn=lambda: False)
    for metric, part in ((count, inputs[:, :1] if rank == 0 else inputs[:, 1:]), (single, inputs)):
        with metric.watch(net):
            net(part)
    rate.update(net[:2](inputs[:, :1] if rank == 0 else inputs[:, 1:]))
    assert count.compute() == single.compute()
    check_near("firing rate", rate.compute(), net[:2](inputs).mean())


def reference_gradients(net: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """Parameter gradients of the mean loss over `batches`, by the reference."""
    loss = sum(reference(net, x).square().sum() for x in batches) / len(batches)
    return list(torch.autograd.grad(loss, list(net.parameters())))


def run_inductor() -> None:
    """Compiles a network of sequences and one of images of any size, each into one graph."""
    over_time = ("IF", "EachStep", "PLIF", "Recurrent", "Window", "LIF", "DelayedLinear", "Delay", "LI")
    sequences = [build(name)[0] for name in over_time]
    images = [hb.IF(0.5), build("Conv2d")[0], hb.LIF(), build("MaxPool2d")[0], build("Flatten")[0]]
    for parts, shape, dynamic in ((sequences, (3, 2, 4), False), (images, (3, 2, 4, 4), True)):
        net, x = nn.Sequential(*parts), 4 * torch.rand(shape)
        compiled = torch.compile(net, fullgraph=True, dynamic=dynamic)
        parameters = list(net.parameters())
        results = [
            (outputs, *torch.autograd.grad(outputs.square().sum(), parameters))
            for outputs in (compiled(x), reference(net, x))
        ]
        for i, (result, expected) in enumerate(zip(*results, strict=True)):
            check_near(f"{type(net[-1]).__name__}, {i}", result, expected)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"forked": run_in_fork, "spawned": run_in_spawned_processes, "compiled": run_inductor}[sys.argv[1]]()
