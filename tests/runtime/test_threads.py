"""Networks in several threads at once: each computes the same as alone."""

import copy
import sys
import threading

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.cells.surrogate import ATan, Box
from hibana.compiler.graph import recorder
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.runtime.kernels import assemble

THREADS = 8


def in_threads(*calls):
    """Returns the results of `calls`, each run in a separate thread, all started at the same time."""
    barrier = threading.Barrier(len(calls))
    results = [None] * len(calls)

    def run(i):
        barrier.wait()
        try:
            results[i] = calls[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=[i]) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in results:
        if isinstance(value, BaseException):
            raise value
    return results


def test_threads_that_ask_for_a_kernel_at_once_share_one():
    source = "define void @alone(i64 %begin, i64 %end, i64* %args) {\n  ret void\n}\n"
    (first, *rest) = in_threads(*[lambda: assemble(source, "alone")] * THREADS)
    assert all(kernel is first for kernel in rest)


@pytest.mark.parametrize("additions", range(3))
def test_the_first_calls_of_a_cell_may_come_from_several_threads(additions):
    class Fresh(hb.Cell):
        """A cell with a structure that nothing has compiled before."""

        def forward(self, input_, v_previous, s_previous):
            v = 0.75 * v_previous * (1 - s_previous) + input_
            for number in range(1, 2 + additions):
                v = v + v_previous * number
            return v, hb.surrogate.Step()(v - 1)

    cell, x = Fresh(), torch.rand(6, 500) / 8

    def step():
        inputs = x.clone().requires_grad_()
        outputs, _ = hb.unroll(cell, inputs, backend="cpu")
        outputs.sum().backward()
        return outputs, inputs.grad

    expected = x.clone().requires_grad_()
    outputs, _ = hb.unroll(cell, expected, backend="reference")
    outputs.sum().backward()
    for outputs_, grad in in_threads(*[step] * THREADS):
        assert torch.equal(outputs_, outputs)
        torch.testing.assert_close(grad, expected.grad)


def _training_step(net, x):
    """The outputs of one pass and the gradients of the parameters."""
    net.zero_grad()
    outputs = net(x)
    outputs.square().sum().backward()
    return [outputs.detach(), *(p.grad.clone() for p in net.parameters())]


def _networks(count):
    for seed in range(count):
        torch.manual_seed(seed)
        tau = torch.rand(6) + 1.5 + seed
        yield nn.Sequential(nn.Linear(5, 6), hb.LIF(tau=nn.Parameter(tau)), nn.Linear(6, 3), hb.PLIF(tau=3.0))


def test_independent_networks_in_threads_share_nothing_that_a_run_changes():
    """The networks are alike, so they share programs; their tensors differ."""
    nets = list(_networks(4))
    x = torch.rand(5, 2, 5)
    expected = [_training_step(net, x) for net in nets]

    def repeat(net, targets):
        for _ in range(150):
            for value, target in zip(_training_step(net, x), targets, strict=True):
                assert torch.equal(value, target)

    in_threads(*(lambda net=n, targets=e: repeat(net, targets) for n, e in zip(nets, expected, strict=True)))


LARGE = {
    "neurons": (lambda: hb.IF(surrogate=ATan()), (8, 70_001)),
    "neurons in channels-last order": (lambda: hb.LIF(surrogate=Box()), (6, 4, 33, 16, 17)),
    "a time constant of each neuron": (
        lambda: hb.LIF(tau=nn.Parameter(torch.rand(7001) + 1.5), surrogate=ATan()),
        (8, 10, 7001),
    ),
    "a linear layer": (lambda: hb.Linear(300, 500), (20, 129, 300)),
    "a convolution": (lambda: hb.EachStep(hb.Conv2d(32, 33, 3)), (4, 9, 32, 17, 16)),
    "recurrent neurons": (lambda: hb.Recurrent(hb.LIFCell(surrogate=ATan()), 65), (9, 130, 65)),
}


@pytest.mark.parametrize("name", LARGE)
def test_one_thread_gives_the_bits_of_two(name):
    make, shape = LARGE[name]
    layer = make()
    x = (torch.rand(shape) < 0.04).float() * 2
    if "channels-last" in name:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    x.requires_grad_()
    weights, threads, results = torch.rand_like(layer(x)), torch.get_num_threads(), []
    sources = [x, *layer.parameters()]
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs = layer(x)
            assert outputs.any()
            results.append([outputs, *torch.autograd.grad((outputs * weights).sum(), sources)])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


class Waiting(hb.Cell):
    """Calls ``torch.relu``; the test makes its trace wait there."""

    def __init__(self):
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.75))
        self.part = nn.ParameterList([nn.Parameter(torch.tensor(0.5))])
        self.also = [self.part]

    def forward(self, input_, v_previous, s_previous):
        v = self.decay * v_previous * (1 - s_previous) + self.also[0][0] * torch.relu(input_)
        return v, hb.surrogate.Step()(v - 1)


def test_no_other_thread_sees_the_placeholders_of_a_trace(monkeypatch):
    reached, go_on, recorded = threading.Event(), threading.Event(), recorder._Recorder._recorded

    def waiting(self, func, args, kwargs):
        if func is torch.ops.aten.relu.default:
            reached.set()
            go_on.wait(60)
        return recorded(self, func, args, kwargs)

    monkeypatch.setattr(recorder._Recorder, "_recorded", waiting)
    cell, x = Waiting(), 4 * torch.rand(6, 3)
    expected, _ = hb.unroll(cell, x, backend="reference")
    assert 0 < expected.mean() < 1
    outputs = []
    tracing = threading.Thread(target=lambda: outputs.append(hb.unroll(cell, x, backend="cpu")[0]))
    tracing.start()
    try:
        assert reached.wait(60)
        assert torch.equal(hb.unroll(cell, x, backend="reference")[0], expected)
    finally:
        go_on.set()
        tracing.join()
    assert torch.equal(outputs[0], expected)


def test_a_cell_may_be_inspected_while_another_thread_sets_an_attribute():
    cell, ended = hb.IFCell(), threading.Event()
    cell.__dict__.update({f"_{i}": i for i in range(2000)})  # makes an inspection take long

    def change():
        while not ended.is_set():
            cell.__dict__["other"] = None
            sum(range(100))
            cell.__dict__.pop("other")
            sum(range(100))

    def inspect():
        try:
            for _ in range(300):
                dependencies_of(cell)
                copy.copy(cell)
        finally:
            ended.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        in_threads(inspect, change)
    finally:
        sys.setswitchinterval(before)
