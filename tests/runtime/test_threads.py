"""Networks in several threads at once: each computes what it computes alone."""

import copy
import sys
import threading

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler.graph import recorder
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.runtime.kernels import assemble

THREADS = 8


def at_once(*calls):
    """What each of `calls` returns, each in a thread of its own, all begun together."""
    begin = threading.Barrier(len(calls))
    found = [None] * len(calls)

    def go(i):
        begin.wait()
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=go, args=[i]) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in found:
        if isinstance(value, BaseException):
            raise value
    return found


def test_threads_that_ask_for_a_kernel_at_once_share_one():
    source = "define void @alone(i64 %begin, i64 %end, i64* %args) {\n  ret void\n}\n"
    (first, *rest) = at_once(*[lambda: assemble(source, "alone")] * THREADS)
    assert all(kernel is first for kernel in rest)


@pytest.mark.parametrize("additions", range(3))
def test_the_first_calls_of_a_cell_may_come_from_several_threads(additions):
    class Fresh(hb.Cell):
        """Of a structure that nothing has compiled before."""

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
    for found, grad in at_once(*[step] * THREADS):
        assert torch.equal(found, outputs)
        torch.testing.assert_close(grad, expected.grad)


def _training_step(net, x):
    """The outputs of one pass and the gradients of what it learns."""
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
    """Alike, so that they share their programs; with tensors, so that these compute what they pass on."""
    nets = list(_networks(4))
    x = torch.rand(5, 2, 5)
    expected = [_training_step(net, x) for net in nets]

    def again(net, alone):
        for _ in range(150):
            for value, wanted in zip(_training_step(net, x), alone, strict=True):
                assert torch.equal(value, wanted)

    at_once(*(lambda net=n, alone=e: again(net, alone) for n, e in zip(nets, expected, strict=True)))


class Waiting(hb.Cell):
    """Calls ``torch.relu``, at which the test has a trace wait."""

    def __init__(self):
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.75))
        self.part = nn.ParameterList([nn.Parameter(torch.tensor(0.5))])
        self.also = [self.part]

    def forward(self, input_, v_previous, s_previous):
        v = self.decay * v_previous * (1 - s_previous) + self.also[0][0] * torch.relu(input_)
        return v, hb.surrogate.Step()(v - 1)


def test_what_is_put_in_place_of_tensors_for_a_trace_is_seen_by_no_other_thread(monkeypatch):
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
    found = []
    tracing = threading.Thread(target=lambda: found.append(hb.unroll(cell, x, backend="cpu")[0]))
    tracing.start()
    try:
        assert reached.wait(60)
        assert torch.equal(hb.unroll(cell, x, backend="reference")[0], expected)
    finally:
        go_on.set()
        tracing.join()
    assert torch.equal(found[0], expected)


def test_a_cell_is_looked_at_while_another_thread_sets_an_attribute():
    cell, ended = hb.IFCell(), threading.Event()
    cell.__dict__.update({f"_{i}": i for i in range(2000)})  # as a long look at a cell of few

    def change():
        while not ended.is_set():
            cell.__dict__["other"] = None
            sum(range(100))
            cell.__dict__.pop("other")
            sum(range(100))

    def look():
        try:
            for _ in range(300):
                dependencies_of(cell)
                copy.copy(cell)
        finally:
            ended.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        at_once(look, change)
    finally:
        sys.setswitchinterval(before)
