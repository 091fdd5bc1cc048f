"""Times the rules of ``hb.learn.online``, backpropagation through time, and SpikingJelly's online rules.

All measurements use one thread and processor time, which other processes disturb least. The network is a
recurrent layer of LIF neurons with a leaky readout, and the loss includes every step. The comparison with
SpikingJelly uses a feed-forward network with a linear readout, because its rules support no recurrence.
"""

from collections.abc import Callable, Iterator
from functools import partial
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import hibana as hb
from benchmarks import measure
from benchmarks.tables import Row, number, table
from hibana.train import scale_to_rate

__all__ = ["jobs", "peak", "section"]

BATCH, INPUTS, NEURONS, CLASSES, STEPS = 64, 700, 256, 20, 100
INPUT_RATE, RATE = 0.04, 0.05
"""Spikes per step of an input, and of a neuron; the weights are scaled to reach the neuron's rate."""
RULES = ("d-rtrl", "e-prop", "ottt", "pp-prop")
LONG_SEQUENCE = 10_000
"""Steps of the long sequence whose memory is measured."""


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """Four jobs: a recurrent network by sequence and by step, a feed-forward network, and memory."""
    budget, min_rounds = (0.0, 1) if quick else (60.0, 7)
    return {
        "online/sequence": partial(_measure_sequence, budget, min_rounds),
        "online/step": partial(_measure_steps, 2 if quick else 20),
        "online/feed-forward": partial(_measure_feed_forward, budget, min_rounds),
        "online/memory": partial(_measure_memory, 300 if quick else LONG_SEQUENCE),
    }


def _network(kind: str) -> nn.Module:
    """The recurrent or the feed-forward network, with weights scaled to the firing rate :data:`RATE`."""
    torch.manual_seed(0)
    cell = hb.LIFCell(tau=20.0, surrogate="Triangle")
    first = hb.Linear(INPUTS, NEURONS, bias=False)
    if kind == "recurrent":
        net = nn.Sequential(
            first, hb.Recurrent(cell, NEURONS), hb.Linear(NEURONS, CLASSES, bias=False), hb.LI(tau=20.0)
        )
    else:  # the neurons that are compared with SpikingJelly's
        surrogate = hb.surrogate.Sigmoid(alpha=4.0)
        neurons = hb.LIF(tau=2.0, surrogate=surrogate, reset="subtract", detach_reset=True)
        net = nn.Sequential(first, neurons, hb.Linear(NEURONS, CLASSES))
    scale_to_rate(net, _spikes(STEPS, BATCH), RATE)
    return net


def _spikes(steps: int, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(steps, batch, INPUTS, generator=generator) < INPUT_RATE).float()


def _labels() -> Tensor:
    return torch.randint(0, CLASSES, (BATCH,), generator=torch.Generator().manual_seed(2))


def _step_loss(labels: Tensor) -> Callable[[int, Tensor], Tensor]:
    return lambda t, y: functional.cross_entropy(y, labels) / STEPS


def _backpropagation(net: nn.Module, x: Tensor, labels: Tensor) -> None:
    net.zero_grad()
    functional.cross_entropy(net(x).flatten(0, 1), labels.repeat(len(x))).backward()


def _online_sequence(learner: hb.learn.Online, x: Tensor, labels: Tensor, chunk: int) -> None:
    """Learns one sequence online in chunks of `chunk` steps."""

    def loss(first: int, outputs: Tensor) -> Tensor:
        targets = labels.repeat(len(outputs))
        return functional.cross_entropy(outputs.flatten(0, 1), targets) * (len(outputs) / STEPS)

    learner.net.zero_grad()
    learner.sequence(x, loss, chunk=chunk, by_chunk=True)


def _measure_sequence(budget: float, min_rounds: int) -> list[Row]:
    """Times of learning a sequence by each rule, in one and in two chunks, and by backpropagation."""
    hb.keep_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    x, labels, net = _spikes(STEPS, BATCH), _labels(), _network("recurrent")
    calls: dict[str, Callable[[], object]] = {"backpropagation": partial(_backpropagation, net, x, labels)}
    for rule in RULES:
        learner = hb.learn.online(net, rule)
        for chunk in (STEPS, STEPS // 2):
            calls[f"{rule}, chunk={chunk}"] = partial(_online_sequence, learner, x, labels, chunk)
    seconds_by_contender = measure.rounds(
        calls, budget_s=budget, min_rounds=min_rounds, max_rounds=15, clock=process_time
    )
    return [
        {
            "kind": "sequence",
            "contender": contender,
            **measure.summary(seconds),
            "least_ms": min(seconds) * 1e3,
        }
        for contender, seconds in seconds_by_contender.items()
    ]


def _measure_steps(count: int) -> list[Row]:
    """Times of single steps of each rule."""
    hb.keep_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    x, labels, net = _spikes(STEPS, BATCH), _labels(), _network("recurrent")
    rows = []
    for rule in RULES:
        learner, seconds = hb.learn.online(net, rule), []
        for t in range(3 + count):
            start = process_time()
            net.zero_grad()
            functional.cross_entropy(learner.step(x[t]), labels).backward()
            seconds.append(process_time() - start)
        seconds = seconds[3:]  # the first steps trace the cell and create the eligibility traces
        rows.append(
            {"kind": "step", "contender": rule, **measure.summary(seconds), "least_ms": min(seconds) * 1e3}
        )
    return rows


def _measure_feed_forward(budget: float, min_rounds: int) -> list[Row]:
    """Times of learning a sequence with a feed-forward network, by hibana and by SpikingJelly."""
    hb.keep_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    x, labels, net = _spikes(STEPS, BATCH), _labels(), _network("feed-forward")
    learner = hb.learn.online(net, "ottt")
    calls: dict[str, Callable[[], object]] = {
        "hibana, ottt": partial(_online_sequence, learner, x, labels, STEPS),
        "hibana, backpropagation": partial(_backpropagation, net, x, labels),
    }
    calls |= _spikingjelly_calls(net, x, labels)
    seconds_by_contender = measure.rounds(
        calls, budget_s=budget, min_rounds=min_rounds, max_rounds=15, clock=process_time
    )
    return [
        {
            "kind": "feed-forward",
            "contender": contender,
            **measure.summary(seconds),
            "least_ms": min(seconds) * 1e3,
        }
        for contender, seconds in seconds_by_contender.items()
    ]


def _spikingjelly_calls(net: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Callable[[], object]]:
    """Calls of SpikingJelly's rules and backpropagation with the weights of `net`; {} if not installed."""
    try:
        from spikingjelly.activation_based import functional as over_time
        from spikingjelly.activation_based import layer, neuron, surrogate
    except ImportError:
        return {}
    options: dict[str, Any] = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}
    options["surrogate_function"] = surrogate.Sigmoid(alpha=4.0)

    def build(container: type[nn.Sequential], neurons: nn.Module) -> nn.Module:
        peer = container(nn.Linear(INPUTS, NEURONS, bias=False), neurons, nn.Linear(NEURONS, CLASSES))
        peer.load_state_dict(net.state_dict())
        return peer

    def online(peer: nn.Module) -> None:
        over_time.reset_net(peer)
        peer.zero_grad()
        for step in x:
            (functional.cross_entropy(peer(step), labels) / len(x)).backward()
            over_time.detach_net(peer)

    def backpropagation(peer: nn.Module) -> None:
        over_time.reset_net(peer)
        _backpropagation(peer, x, labels)

    return {
        "SpikingJelly, ottt": partial(online, build(layer.OTTTSequential, neuron.OTTTLIFNode(**options))),
        "SpikingJelly, sltt": partial(online, build(nn.Sequential, neuron.SLTTLIFNode(**options))),
        "SpikingJelly, backpropagation": partial(
            backpropagation, build(nn.Sequential, neuron.LIFNode(step_mode="m", **options))
        ),
    }


def _measure_memory(steps: int) -> list[Row]:
    """Peak memory of learning a short and a long sequence by each rule, each in a new process."""
    rows = []
    for rule in RULES:
        for count in (STEPS, steps):
            megabytes = measure.in_process("benchmarks.online", "peak", rule, count, OMP_NUM_THREADS="1")
            rows.append({"kind": "memory", "contender": rule, "steps": count, **megabytes})
    return rows


def peak(rule: str, steps: int) -> dict[str, float]:
    """Peak and baseline memory, in MB, of a process that learns a sequence generated step by step."""
    torch.set_num_threads(1)
    labels, learner = _labels(), hb.learn.online(_network("recurrent"), rule)

    def stream() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            yield (torch.rand(BATCH, INPUTS, generator=generator) < INPUT_RATE).float()

    return measure.peak_above_baseline(lambda: learner.sequence(stream(), _step_loss(labels)))


def section(rows: list[Row]) -> Iterator[str]:
    """Lines of the report: tables of times and of memory."""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    yield (
        f"{INPUTS} inputs ({INPUT_RATE:.0%} spike) to {NEURONS} neurons and {CLASSES} outputs, batch "
        f"{BATCH}, {STEPS} steps, loss at each; shortest processor time of one thread, ms. "
        "[Learning online](learning-online.md) describes the rules.\n"
    )
    titles = {
        "sequence": ("a recurrent layer, by `sequence`", "backpropagation"),
        "step": ("one `step` and its backward", ""),
        "feed-forward": ("a feed-forward layer, linear readout", "hibana, ottt"),
    }
    for kind, (title, reference) in titles.items():
        if kind in by_kind:
            times = {row["contender"]: row["least_ms"] for row in by_kind[kind]}
            base = times.get(reference)
            head, lines = [title, "ms"], [[contender, number(ms)] for contender, ms in times.items()]
            if base is not None:
                head.append(f"of {reference}")
                lines = [[*line, number(ms / base)] for line, ms in zip(lines, times.values(), strict=True)]
            yield from table(head, lines)
    if "memory" in by_kind:
        head = ["memory of the process, MB", "steps", "peak", "before"]
        yield from table(
            head,
            [
                [
                    *(row["contender"], f"{row['steps']:,}"),
                    *(number(row["mb"] + row["baseline_mb"]), number(row["baseline_mb"])),
                ]
                for row in by_kind["memory"]
            ],
        )
