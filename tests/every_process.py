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
from every_layer import CASES, FEW, made, near, reference
from hibana.nn.metrics import FiringRate, SynOps

PROCESSES = 2
Case = tuple[str, nn.Module, Tensor]


class Gain(nn.Module):
    """Something to learn below a layer, which may have nothing of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.75, 1.25, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def cases() -> list[Case]:
    return [(name, *made(name)) for name in (FEW if sys.argv[2] == "few" else CASES)]


def gradients(run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    outputs = run(x)
    return [outputs.detach(), torch.autograd.grad(outputs.square().sum(), x)[0]]


def same_as_the_reference(given: list[Case]) -> None:
    for name, layer, x in given:
        for found, wanted in zip(gradients(layer, x), gradients(partial(reference, layer), x), strict=True):
            told(name, found, wanted)


def told(name: str, found: Tensor, wanted: Tensor) -> None:
    try:
        near(found, wanted)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error


def forked() -> None:
    """Each layer has been called before the fork, and is called in the child."""
    torch.set_num_threads(1)
    given = cases()
    same_as_the_reference(given)
    child = multiprocessing.get_context("fork").Process(target=same_as_the_reference, args=(given,))
    child.start()
    child.join()
    assert child.exitcode == 0, f"the child ended with {child.exitcode}"


def spawned() -> None:
    """Layers are sent to two new processes, where each runs by itself, in DDP, and sharded by FSDP2."""
    context = multiprocessing.get_context("spawn")
    given = cases()
    with tempfile.TemporaryDirectory() as folder:
        where = f"file://{folder}/group"
        children = [context.Process(target=joined, args=(rank, where, given)) for rank in range(PROCESSES)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    ends = [child.exitcode for child in children]
    assert ends == [0] * PROCESSES, f"the children ended with {ends}"


def joined(rank: int, where: str, given: list[Case]) -> None:
    torch.set_num_threads(1)
    same_as_the_reference(given)
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=PROCESSES)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    try:
        for name, layer, x in given:
            net = nn.Sequential(Gain(), layer)
            batches = [x, 0.5 * x]  # one of each process
            wanted = averaged(net, batches)
            for how in (DistributedDataParallel, partial(fully_shard, mesh=mesh)):
                shared = how(copy.deepcopy(net))
                shared(batches[rank]).square().sum().backward()
                for (of, parameter), other in zip(shared.named_parameters(), wanted, strict=True):
                    grad = parameter.grad
                    whole = grad.full_tensor() if isinstance(grad, distributed.tensor.DTensor) else grad
                    told(f"{name}, {of}, {how}", whole, other)
        counted_together(rank)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other process would be waited for
    distributed.destroy_process_group()
    os._exit(0)  # a thread of gloo that lets a tensor go while Python ends aborts: pytorch issue 190489


def counted_together(rank: int) -> None:
    """Metrics of two processes with unequal shares are those of one with all samples."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 5), hb.IF(0.1), nn.Linear(5, 2))
    inputs = torch.rand(4, 5, 6)
    rate, count = FiringRate(), SynOps()
    whole = SynOps(distributed_available_fn=lambda: False)
    for counted, some in ((count, inputs[:, :1] if rank == 0 else inputs[:, 1:]), (whole, inputs)):
        with counted.watch(net):
            net(some)
    rate.update(net[:2](inputs[:, :1] if rank == 0 else inputs[:, 1:]))
    assert count.compute() == whole.compute()
    told("firing rate", rate.compute(), net[:2](inputs).mean())


def averaged(net: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """The gradients of all batches, by the reference."""
    loss = sum(reference(net, x).square().sum() for x in batches) / len(batches)
    return list(torch.autograd.grad(loss, list(net.parameters())))


def by_inductor() -> None:
    """A network of several layers over time, and one of images of any size, each one graph."""
    over_time = ("IF", "EachStep", "PLIF", "Recurrent", "Window", "LIF", "DelayedLinear", "Delay", "LI")
    spaced = [made(name)[0] for name in over_time]
    images = [hb.IF(0.5), made("Conv2d")[0], hb.LIF(), made("MaxPool2d")[0], made("Flatten")[0]]
    for parts, shape, dynamic in ((spaced, (3, 2, 4), False), (images, (3, 2, 4, 4), True)):
        net, x = nn.Sequential(*parts), 4 * torch.rand(shape)
        compiled = torch.compile(net, fullgraph=True, dynamic=dynamic)
        learned = list(net.parameters())
        seen = [
            (outputs, *torch.autograd.grad(outputs.square().sum(), learned))
            for outputs in (compiled(x), reference(net, x))
        ]
        for i, (found, wanted) in enumerate(zip(*seen, strict=True)):
            told(f"{type(net[-1]).__name__}, {i}", found, wanted)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"forked": forked, "spawned": spawned, "compiled": by_inductor}[sys.argv[1]]()
