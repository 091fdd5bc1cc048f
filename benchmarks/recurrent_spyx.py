"""spyx, which is JAX: in a process of its own, by the Python of an environment that the user made for it.

``python -m benchmarks --spyx PYTHON`` names it; JAX has no place in the environment of the other peers. The
process is kept to as many processors as the others have threads. Here only the standard library is imported
before it is known which Python this is.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure

__all__ = ["VARIABLE", "measured", "memory"]

VARIABLE = "HIBANA_BENCH_SPYX"
"""The environment variable with which the option travels to the jobs."""
_CHECKOUT = Path(__file__).parents[1]


def measured(*arguments: Any) -> list[dict[str, Any]]:
    """Rows of spyx' times, from :func:`times` in its own environment; or one with the reason why not."""
    return [{"contender": "spyx", **row} for row in _in_its_environment("times", arguments)]


def memory(*arguments: Any) -> list[dict[str, Any]]:
    """A row of spyx' memory, from :func:`peak` in its own environment; or one with the reason why not."""
    return [{"contender": "spyx", **row} for row in _in_its_environment("peak", arguments)]


def _in_its_environment(function: str, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
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
    """A training step and inference, jitted, each after the call that compiles it."""
    calls, described = _calls(steps, batch, neurons, inputs, classes, rate, tau, threads)
    rows = []
    for kind, call in calls.items():
        seconds = measure.rounds(
            {"spyx": call}, budget_s=0.2 if quick else 10.0, at_least=1 if quick else 5, at_most=40
        )
        rows.append({"pass": kind, "is": described, **measure.summary(seconds["spyx"])})
    return rows


def peak(
    steps: int, batch: int, neurons: int, inputs: int, classes: int, rate: float, tau: float, threads: int
) -> list[dict[str, float]]:
    """Megabytes that two steps of training take; compiling comes first, and is not counted."""
    calls, _ = _calls(steps, batch, neurons, inputs, classes, rate, tau, threads)
    return [measure.peak_above_baseline(calls["training step"])]


def _calls(
    steps: int, batch: int, neurons: int, inputs: int, classes: int, rate: float, tau: float, threads: int
) -> tuple[dict[str, Callable[[], object]], str]:
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
    described = (
        f"spyx.nn.RLIF((H,), beta={decay}, activation=axn.boxcar(1, 1)) through spyx.nn.run in jax.jit; "
        f"spyx {spyx.__version__}, jax {jax.__version__}"
    )
    return calls, described
