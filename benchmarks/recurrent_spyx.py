"""Measures spyx, a library for JAX, in a separate environment that the user has created.

``python -m benchmarks --spyx PYTHON`` names the Python of that environment; JAX is not installed in the
environment of the other peers. The measuring process may use as many processors as the other contenders have
threads. The functions :func:`times` and :func:`peak` run in that process, so this module imports only the
standard library at the top.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure

__all__ = ["VARIABLE", "measure_memory", "measure_times"]

VARIABLE = "HIBANA_BENCH_SPYX"
"""The environment variable that passes the option to the processes of the jobs."""
_CHECKOUT = Path(__file__).parents[1]


def measure_times(*arguments: Any) -> list[dict[str, Any]]:
    """Runs :func:`times` in spyx's environment; returns its rows, or one row with the error."""
    return [{"contender": "spyx", **row} for row in _run_in_environment("times", arguments)]


def measure_memory(*arguments: Any) -> list[dict[str, Any]]:
    """Runs :func:`peak` in spyx's environment; returns its row, or one row with the error."""
    return [{"contender": "spyx", **row} for row in _run_in_environment("peak", arguments)]


def _run_in_environment(function: str, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Calls a function of this module with the Python that the option ``--spyx`` names."""
    python = os.environ.get(VARIABLE, "")
    if not python:
        return [{"error": "--spyx names no Python of an environment with spyx and jax in it"}]
    try:
        rows: list[dict[str, Any]] = measure.in_process(
            "benchmarks.recurrent_spyx", function, *arguments, python=python, PYTHONPATH=str(_CHECKOUT)
        )
    except (OSError, RuntimeError) as error:  # reported in the table
        return [{"error": str(error).strip().splitlines()[-1]}]
    return rows


def times(
    steps: int,
    batch: int,
    neurons: int,
    inputs: int,
    classes: int,
    rate: float,
    tau: float,
    threads: int,
    quick: bool,
) -> list[dict[str, Any]]:
    """Times of a jitted training step and jitted inference, without compiling them."""
    calls, description = _calls(steps, batch, neurons, inputs, classes, rate, tau, threads)
    rows = []
    for kind, call in calls.items():
        seconds = measure.rounds(
            {"spyx": call}, budget_s=0.2 if quick else 10.0, min_rounds=1 if quick else 5, max_rounds=40
        )
        rows.append({"pass": kind, "is": description, **measure.summary(seconds["spyx"])})
    return rows


def peak(
    steps: int, batch: int, neurons: int, inputs: int, classes: int, rate: float, tau: float, threads: int
) -> list[dict[str, float]]:
    """Peak memory of two training steps, in MB, without compiling them."""
    calls, _ = _calls(steps, batch, neurons, inputs, classes, rate, tau, threads)
    return [measure.peak_above_baseline(calls["training step"])]


def _calls(
    steps: int, batch: int, neurons: int, inputs: int, classes: int, rate: float, tau: float, threads: int
) -> tuple[dict[str, Callable[[], object]], str]:
    """Compiles a training step and inference; returns calls of both, and the network as code."""
    if hasattr(os, "sched_setaffinity"):  # before JAX counts the processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax
    import spyx
    from flax import nnx
    from jax import numpy as jnp

    keys = jax.random.split(jax.random.key(1), 2)
    spikes = (jax.random.uniform(keys[0], (steps, batch, inputs)) < rate).astype(jnp.float32)
    targets = jax.random.randint(keys[1], (batch,), 0, classes)
    rngs, decay = nnx.Rngs(2), 1 - 1 / tau
    activation = spyx.axn.boxcar(width=1.0, height=1.0)
    net = nnx.List(
        [
            nnx.Linear(inputs, neurons, use_bias=False, rngs=rngs),
            spyx.nn.RLIF((neurons,), beta=decay, activation=activation, rngs=rngs),
            nnx.Linear(neurons, classes, use_bias=False, rngs=rngs),
            spyx.nn.LI((classes,), beta=decay, rngs=rngs),
        ]
    )
    graph, weights = nnx.split(net)

    def outputs(weights: Any, spikes: Any) -> Any:
        first, recurrent, last, readout = nnx.merge(graph, weights)
        emitted, _ = spyx.nn.run(recurrent, first(spikes))
        potentials, _ = spyx.nn.run(readout, last(emitted))
        return potentials.mean(0)

    def loss(weights: Any, spikes: Any, targets: Any) -> Any:
        scores = jax.nn.log_softmax(outputs(weights, spikes))
        return -scores[jnp.arange(batch), targets].mean()

    gradient = jax.jit(jax.value_and_grad(loss)).lower(weights, spikes, targets).compile()
    forward = jax.jit(outputs).lower(weights, spikes).compile()
    calls: dict[str, Callable[[], object]] = {
        "training step": lambda: jax.block_until_ready(gradient(weights, spikes, targets)),
        "inference": lambda: jax.block_until_ready(forward(weights, spikes)),
    }
    description = (
        f"spyx.nn.RLIF((H,), beta={decay}, activation=axn.boxcar(1, 1)) through spyx.nn.run in jax.jit; "
        f"spyx {spyx.__version__}, jax {jax.__version__}"
    )
    return calls, description
