"""Times training steps of ``hb.SparseLinear``, of dense layers and of other sparse products.

A call is the forward of [T=100, batch 32, 2048] spikes and the backward to weights and input. The input is
either a leaf, which needs its full gradient, or the output of ``hb.IF``, whose surrogate needs only part of
it; the times then include ``hb.IF``. brainevent is a library for JAX. It runs in a separate environment that
the user has created: ``python -m benchmarks --only sparse --brainevent PYTHON``.
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
"""The environment variable that passes the option to the processes of the jobs."""
NEURONS, STEPS, BATCH, RATE = 2048, 100, 32, 0.03
CONNECTIVITY = {"1%": 0.01, "5%": 0.05, "10%": 0.1}
CONTENDERS = ("hb.SparseLinear", "hb.Linear", "masked torch.nn.Linear", "torch.sparse")
_CHECKOUT = Path(__file__).parents[1]


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per connectivity, and one that measures the memory of a training step with Adam."""
    timing_jobs = {f"sparse/{name}": partial(_measure_times, name, quick) for name in CONNECTIVITY}
    return {**timing_jobs, "sparse/memory": partial(_measure_memory, quick)}


def _sizes(quick: bool) -> tuple[int, int]:
    """The number of neurons and of steps."""
    return (128, 4) if quick else (NEURONS, STEPS)


def _layer_and_parameters(
    contender: str, connectivity: float, neurons: int
) -> tuple[Callable[[Any], Any], list[Any]]:
    """The function or layer of a contender that maps spikes to outputs, and its parameters."""
    import torch
    from torch.nn import functional

    import hibana as hb

    torch.manual_seed(0)
    layer = hb.SparseLinear(neurons, neurons, connectivity)
    weight, bias = layer.to_dense().detach(), layer.bias
    if contender == "hb.SparseLinear":
        return layer, list(layer.parameters())
    if contender == "torch.sparse":
        matrix = weight.to_sparse_csr().requires_grad_()
        return lambda x: (torch.sparse.mm(matrix, x.flatten(0, -2).T).T + bias).view_as(x), [matrix, bias]
    mask, dense = weight != 0, hb.Linear(neurons, neurons)
    dense.weight.data, dense.bias.data = weight, bias.data
    if contender == "hb.Linear":
        return dense, list(dense.parameters())
    return lambda x: functional.linear(x, dense.weight * mask, dense.bias), list(dense.parameters())


def _training_step(
    call: Callable[[Any], Any], parameters: list[Any], x: Any, gradient: Any, neurons: Any
) -> None:
    """Runs `call` and its backward from `gradient`; `neurons` is a layer between `x` and `call`, or None."""
    for tensor in (x, *parameters):
        tensor.grad = None
    call(x if neurons is None else neurons(x)).backward(gradient)


def _measure_times(name: str, quick: bool) -> list[Row]:
    """Rows of one job: times of all contenders at a connectivity, for both kinds of input."""
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
        for contender in CONTENDERS:
            layer, parameters = _layer_and_parameters(contender, CONNECTIVITY[name], size)
            calls[contender] = partial(_training_step, layer, parameters, x, gradient, neurons)
        seconds = measure.rounds(calls, budget_s=0.1 if quick else 20.0, min_rounds=1 if quick else 7)
        rows += [
            {"kind": kind, "connectivity": name, "contender": contender, **measure.summary(times)}
            for contender, times in seconds.items()
        ]
    brainevent_rows = _brainevent_rows(CONNECTIVITY[name], size, steps, torch.get_num_threads(), quick)
    return rows + [
        {"kind": "leaf", "connectivity": name, "contender": "brainevent", **row} for row in brainevent_rows
    ]


def _brainevent_rows(*arguments: Any) -> list[Row]:
    """Measures brainevent in its environment; returns one row with its times or the error."""
    python = os.environ.get(VARIABLE, "")
    if not python:
        return [{"error": "--brainevent names no Python of an environment with brainevent and jax"}]
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
    starts = np.searchsorted(sources, np.arange(neurons + 1)).astype(
        np.int32
    )  # CSR needs concrete row starts
    indices = jnp.asarray(targets, jnp.int32)
    weight = jnp.asarray(generator.standard_normal(len(sources)), jnp.float32)
    spikes = jnp.asarray(generator.random((steps * BATCH, neurons)) < RATE, jnp.float32)
    gradient = jnp.asarray(generator.standard_normal(spikes.shape), jnp.float32)

    @jax.jit
    def train(weight: Any, spikes: Any, gradient: Any, indices: Any) -> Any:
        def product(weight: Any, spikes: Any) -> Any:
            return BinaryArray(spikes) @ CSR((weight, indices, starts), shape=(neurons, neurons))

        out, vjp = jax.vjp(product, weight, spikes)
        return out, vjp(gradient)

    def call() -> None:
        jax.block_until_ready(train(weight, spikes, gradient, indices))

    seconds = measure.rounds({"": call}, budget_s=0.1 if quick else 15.0, min_rounds=1 if quick else 5)
    return measure.summary(seconds[""])


def _measure_memory(quick: bool) -> list[Row]:
    """Rows of one job: peak memory of SparseLinear and Linear, each in a new process."""
    size, _ = _sizes(quick)
    rows = []
    for name, connectivity in CONNECTIVITY.items():
        for contender in ("hb.SparseLinear", "hb.Linear"):
            megabytes = measure.in_process("benchmarks.sparse", "peak", contender, connectivity, 4 * size)
            rows.append({"kind": "memory", "connectivity": name, "contender": contender, **megabytes})
    return rows


def peak(contender: str, connectivity: float, neurons: int) -> dict[str, float]:
    """Peak memory of two training steps with Adam, in MB; see ``peak_above_baseline``."""
    import torch

    import hibana as hb

    def train() -> None:
        is_sparse, sizes = contender == "hb.SparseLinear", (neurons, neurons)
        layer = hb.SparseLinear(*sizes, connectivity) if is_sparse else hb.Linear(*sizes)
        optimizer = torch.optim.Adam(layer.parameters())
        layer((torch.rand(2, BATCH, neurons) < RATE).float()).square().sum().backward()
        optimizer.step()

    return measure.peak_above_baseline(train)


def section(rows: list[Row]) -> Iterator[str]:
    """Lines of the report: tables of times and of memory."""
    yield (
        f"[T={STEPS}, batch {BATCH}, {NEURONS}] spikes, {RATE:.0%} firing, to {NEURONS} neurons; forward and "
        "backward to weights and input, ms. The input is a leaf, or the output of `hb.IF`, which is timed.\n"
    )
    for kind in ("leaf", "hb.IF"):
        groups = grouped([row for row in rows if row["kind"] == kind and "ms" in row], "connectivity")
        names = sorted(
            {contender for group in groups.values() for contender in group},
            key=[*CONTENDERS, "brainevent"].index,
        )
        lines = [
            [name, *(number(group.get(contender, {}).get("ms")) for contender in names)]
            for (name,), group in groups.items()
        ]
        if lines:
            yield from table([f"input: {kind}", *names], lines)
    memory = [row for row in rows if row["kind"] == "memory"]
    lines = [[row["connectivity"], row["contender"], number(row["mb"])] for row in memory]
    if lines:
        yield from table([f"{4 * NEURONS} neurons, Adam", "layer", "MB"], lines)
