"""Fits one cell by differential evolution of brian2modelfitting, for :mod:`benchmarks.fitting`.

It runs in an environment without hibana, and prints a line of JSON: the values, and the seconds.
"""

import json
import sys
import time

import numpy as np

for _alias in ("float", "int", "bool"):  # brian2modelfitting 0.4 uses aliases that numpy 1.24 removed
    setattr(np, _alias, {"float": float, "int": int, "bool": bool}[_alias])

from brian2 import Equations, ms, nA, prefs  # noqa: E402 - after the aliases
from brian2modelfitting import GammaFactor, NevergradOptimizer, SpikeFitter  # noqa: E402 - as above

prefs.codegen.target = "cython"
ADEX = """dv/dt = (rest - v + sharpness*exp((v - rheobase)/sharpness) - w + gain*I/nA)/(tau*ms) : 1
dw/dt = (a*(v - rest) - w)/(tau_w*ms) : 1"""
MODELS = {
    "IF": ("dv/dt = gain*I/nA/(0.1*ms) : 1", "v = 0", {"v": 0}),
    "LIF": ("dv/dt = (-v/tau + gain*I/nA)/(0.1*ms) : 1", "v = reset", {"v": 0}),
    "AdLIF": (
        "dv/dt = (-v + gain*I/nA - w)/tau/(0.1*ms) : 1\n"
        "dw/dt = (-w/tau_adaptation + coupling*v)/(0.1*ms) : 1",
        "v = reset; w += jump",
        {"v": 0, "w": 0},
    ),
    "Izhikevich": (
        "dv/dt = (0.04*v**2 + 5*v + 140 - u + gain*I/nA)/ms : 1\ndu/dt = a*(b*v - u)/ms : 1",
        "v = c; u += d",
        {"v": -65, "u": -13},
    ),
    "AdEx": (ADEX, "v = reset; w += jump", {"v": -70, "w": 0}),
}
THRESHOLDS = {"Izhikevich": "v > 30", "AdEx": "v > -30"}


def main(name: str, path: str, bounds: str, samples: str, rounds: str) -> None:
    equations, reset, initial = MODELS[name]
    ends = {key.replace("threshold", "theta"): value for key, value in json.loads(bounds).items()}
    data = np.load(path)
    parameters = "\n".join(f"{key} : 1 (constant)" for key in ends)
    start = time.perf_counter()
    fitter = SpikeFitter(
        model=Equations(equations + "\n" + parameters),
        input=data["currents"][None] * nA,
        input_var="I",
        output=[data["times"] * ms],
        dt=0.1 * ms,
        n_samples=int(samples),
        threshold=THRESHOLDS.get(name, "v > theta"),
        reset=reset,
        method="euler",
        param_init=initial,
    )
    metric = GammaFactor(delta=4 * ms, time=len(data["currents"]) * 0.1 * ms)
    values, _ = fitter.fit(
        n_rounds=int(rounds), optimizer=NevergradOptimizer("DE"), metric=metric, callback=None, **ends
    )
    seconds = time.perf_counter() - start
    values = {key.replace("theta", "threshold"): float(value) for key, value in values.items()}
    print(json.dumps({"values": values, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
