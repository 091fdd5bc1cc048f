"""Training a layer of sparse synapses: ``hb.SparseLinear`` beside dense layers and other sparse products.

A call is the forward of [T=100, batch 32, 2048] spikes and the backward to weights and input. The input is a
leaf, whose gradient is needed everywhere, or the output of ``hb.IF``, whose surrogate needs part of it; all
contenders then include the time of ``hb.IF``. brainevent is JAX, and runs in an environment that the user
made for it: ``python -m benchmarks --only sparse --brainevent PYTHON``.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.tables import Row, grouped, number, table

__all__ = ["VARIABLE", "brainevent", "jobs", "peak", "section"]

VARIABLE = "HIBANA_BENCH_BRAINEVENT"
"""The environment variable with which the option travels to the jobs."""
NEURONS, STEPS, BATCH, RATE = 2048, 100, 32, 0.03
CONNECTIVITY = {"1%": 0.01, "5%": 0.05, "10%": 0.1}
CONTENDERS = ("hb.SparseLinear", "hb.Linear", "masked torch.nn.Linear", "torch.sparse")
_CHECKOUT = Path(__file__).parents[1]


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job for each connectivity, and the memory of a training step with Adam."""
    timed = {f"sparse/{name}": partial(_timed, name, quick) for name in CONNECTIVITY}
    return {**timed, "sparse/memory": partial(_memory, quick)}


def _sizes(quick: bool) -> tuple[int, int]:
    """The number of neurons and of steps."""
    return (128, 4) if quick else (NEURONS, STEPS)


def _calls(who: str, connectivity: float, neurons: int) -> tuple[Callable[[Any], Any], list[Any]]:
    """The product of a contender, and its parameters."""
    import torch
    from torch.nn import functional

    import hibana as hb

    torch.manual_seed(0)
    layer = hb.SparseLinear(neurons, neurons, connectivity)
    weight, bias = layer.to_dense().detach(), layer.bias
    if who == "hb.SparseLinear":
        return layer, list(layer.parameters())
    if who == "torch.sparse":
        matrix = weight.to_sparse_csr().requires_grad_()
        return lambda x: (torch.sparse.mm(matrix, x.flatten(0, -2).T).T + bias).view_as(x), [matrix, bias]
    mask, dense = weight != 0, hb.Linear(neurons, neurons)
    dense.weight.data, dense.bias.data = weight, bias.data
    if who == "hb.Linear":
        return dense, list(dense.parameters())
    return lambda x: functional.linear(x, dense.weight * mask, dense.bias), list(dense.parameters())


def _training_step(
    call: Callable[[Any], Any], parameters: list[Any], x: Any, gradient: Any, neurons: Any
) -> None:
    for tensor in (x, *parameters):
        tensor.grad = None
    call(x if neurons is None else neurons(x)).backward(gradient)


def _timed(name: str, quick: bool) -> list[Row]:
    import torch

    import hibana as hb

    hb.keep_memory()
    size, steps = _sizes(quick)
    torch.manual_seed(1)
    spikes = (torch.rand(steps, BATCH, size) < RATE).float().requires_grad_()
    currents = (torch.rand(steps, BATCH, size) * 2 * RATE).requires_grad_()
    gradient, rows = torch.randn(steps, BATCH, size), []
    for kind, x, neurons in (("leaf", spikes, None), ("hb.IF", currents, hb.IF(detach_reset=True))):
        calls = {}
        for who in CONTENDERS:
            layer, parameters = _calls(who, CONNECTIVITY[name], size)
            calls[who] = partial(_training_step, layer, parameters, x, gradient, neurons)
        seconds = measure.rounds(calls, budget_s=0.1 if quick else 20.0, at_least=1 if quick else 7)
        rows += [
            {"kind": kind, "connectivity": name, "contender": who, **measure.summary(times)}
            for who, times in seconds.items()
        ]
    other = _brainevent_rows(CONNECTIVITY[name], size, steps, torch.get_num_threads(), quick)
    return rows + [{"kind": "leaf", "connectivity": name, "contender": "brainevent", **row} for row in other]


def _brainevent_rows(*arguments: Any) -> list[Row]:
    python = os.environ.get(VARIABLE, "")
    if not python:
        return [{"error": "--brainevent names no Python of an environment with brainevent and jax in it"}]
    try:
        path = {"PYTHONPATH": str(_CHECKOUT)}
        return [measure.in_process("benchmarks.sparse", "brainevent", *arguments, python=python, **path)]
    except (OSError, RuntimeError) as error:  # reported in the table
        return [{"error": str(error).strip().splitlines()[-1]}]


def brainevent(connectivity: float, neurons: int, steps: int, threads: int, quick: bool) -> dict[str, float]:
    """Times of brainevent's CSR product with binary events, jitted, and its gradients."""
    if hasattr(os, "sched_setaffinity"):  # before JAX counts the processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax
    import numpy as np
    from brainevent import CSR, BinaryArray
    from jax import numpy as jnp

    generator = np.random.default_rng(0)
    sources, targets = (generator.random((neurons, neurons)) < connectivity).nonzero()
    starts = np.searchsorted(sources, np.arange(neurons + 1)).astype(np.int32)  # may not be traced
    indices = jnp.asarray(targets, jnp.int32)
    weight = jnp.asarray(generator.standard_normal(len(sources)), jnp.float32)
    spikes = jnp.asarray(generator.random((steps * BATCH, neurons)) < RATE, jnp.float32)
    gradient = jnp.asarray(generator.standard_normal(spikes.shape), jnp.float32)

    @jax.jit
    def train(weight: Any, spikes: Any, gradient: Any, indices: Any) -> Any:
        def product(weight: Any, spikes: Any) -> Any:
            return BinaryArray(spikes) @ CSR((weight, indices, starts), shape=(neurons, neurons))

        out, pull = jax.vjp(product, weight, spikes)
        return out, pull(gradient)

    def call() -> None:
        jax.block_until_ready(train(weight, spikes, gradient, indices))

    seconds = measure.rounds({"": call}, budget_s=0.1 if quick else 15.0, at_least=1 if quick else 5)
    return measure.summary(seconds[""])


def _memory(quick: bool) -> list[Row]:
    size, _ = _sizes(quick)
    rows = []
    for name, connectivity in CONNECTIVITY.items():
        for who in ("hb.SparseLinear", "hb.Linear"):
            found = measure.in_process("benchmarks.sparse", "peak", who, connectivity, 4 * size)
            rows.append({"kind": "memory", "connectivity": name, "contender": who, **found})
    return rows


def peak(who: str, connectivity: float, neurons: int) -> dict[str, float]:
    """Megabytes that weights, gradients and Adam's state take at most during two training steps."""
    import torch

    import hibana as hb

    def train() -> None:
        is_sparse, sizes = who == "hb.SparseLinear", (neurons, neurons)
        layer = hb.SparseLinear(*sizes, connectivity) if is_sparse else hb.Linear(*sizes)
        optimizer = torch.optim.Adam(layer.parameters())
        layer((torch.rand(2, BATCH, neurons) < RATE).float()).square().sum().backward()
        optimizer.step()

    return measure.peak_above_baseline(train)


def section(rows: list[Row]) -> Iterator[str]:
    """Tables of times and of memory, for the report."""
    yield (
        f"[T={STEPS}, batch {BATCH}, {NEURONS}] spikes, {RATE:.0%} firing, to {NEURONS} neurons; forward and "
        "backward to weights and input, ms. Input: a leaf, or the output of `hb.IF`, which is timed too.\n"
    )
    for kind in ("leaf", "hb.IF"):
        groups = grouped([row for row in rows if row["kind"] == kind and "ms" in row], "connectivity")
        names = sorted(
            {who for group in groups.values() for who in group}, key=[*CONTENDERS, "brainevent"].index
        )
        lines = [
            [name, *(number(group.get(who, {}).get("ms")) for who in names)]
            for (name,), group in groups.items()
        ]
        if lines:
            yield from table([f"input: {kind}", *names], lines)
    memory = [row for row in rows if row["kind"] == "memory"]
    lines = [[row["connectivity"], row["contender"], number(row["mb"])] for row in memory]
    if lines:
        yield from table([f"{4 * NEURONS} neurons, Adam", "layer", "MB"], lines)
