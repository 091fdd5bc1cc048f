"""Fits five cells to generated recordings, and compares with brian2modelfitting.

``python -m benchmarks.fitting`` prints, for 10 s in steps of 0.1 ms with noise in current and potential, of
which the last 3 s are held out, the gamma factor of the fit and of the true values (without noise), and the
error of each value. ``--peer PYTHON`` also runs differential evolution by brian2modelfitting, in an
environment of its own: ``pip install "numpy<2" "brian2<2.9" "bayesian-optimization<2" brian2modelfitting``.
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import hibana as hb
from hibana.learn.likelihood import ScaledCell

DT = 0.1
STEPS, TRAINING = 100_000, 70_000
PRECISION = 4.0


class AdExCell(hb.Cell):
    """An adaptive exponential integrate-and-fire neuron in mV and ms, the cell of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.tau, self.sharpness, self.rheobase, self.rest = 20.0, 2.0, -50.0, -70.0
        self.a, self.jump, self.tau_w, self.reset, self.threshold = 0.1, 4.0, 100.0, -58.0, -30.0
        self.surrogate = hb.surrogate.ATan()

    def forward(self, input_, w_previous, v_previous, s_previous):
        v0 = v_previous * (1 - s_previous) + self.reset * s_previous
        w0 = w_previous + self.jump * s_previous
        upstroke = self.sharpness * torch.exp((v0 - self.rheobase) / self.sharpness)
        v = v0 + DT / self.tau * (self.rest - v0 + upstroke - w0 + input_)
        w = w0 + DT / self.tau_w * (self.a * (v0 - self.rest) - w0)
        return w, v, self.surrogate(v - self.threshold)

    def initial_state(self, input_):
        zeros = torch.zeros_like(input_)
        return zeros, zeros + self.rest, zeros


ADLIF = hb.AdLIFCell(tau=150.0, tau_adaptation=1000.0, coupling=0.0008, jump=1.5, threshold=15.0, reset=2.0)
CELLS = {
    "IF": (hb.IFCell(threshold=20.0), {"gain": 0.05, "offset": -70.0}, (0.3, 0.5, 0.006)),
    "LIF": (
        hb.LIFCell(tau=200.0, threshold=15.0, reset=3.0), {"gain": 0.1, "offset": -70.0}, (0.6, 0.6, 0.04)
    ),
    "AdLIF": (ADLIF, {"gain": 20.0, "offset": -70.0}, (1.0, 1.0, 7.0)),
    "Izhikevich": (hb.IzhikevichCell(dt=DT), {"gain": 10.0}, (0.8, 0.7, 4.0)),
    "AdEx": (AdExCell(), {"gain": 20.0}, (1.1, 1.0, 7.0)),
}  # fmt: skip
"""The cell, its scaling, and the current's mean and deviation and the deviation of the input's noise."""
BOUNDS = {
    "IF": {"threshold": (5, 40), "gain": (0.01, 0.2), "offset": (-80, -60)},
    "LIF": {
        "tau": (50, 600), "threshold": (5, 40), "reset": (-5, 10), "gain": (0.02, 0.5), "offset": (-80, -60),
    },
    "AdLIF": {
        "tau": (50, 500), "tau_adaptation": (200, 3000), "coupling": (0, 0.003), "jump": (0, 2),
        "threshold": (5, 40), "gain": (5, 60), "reset": (-5, 10), "offset": (-80, -60),
    },
    "Izhikevich": {"a": (0.005, 0.1), "b": (0.1, 0.3), "c": (-75, -50), "d": (2, 15), "gain": (3, 30)},
    "AdEx": {
        "tau": (5, 60), "sharpness": (0.5, 5), "rheobase": (-60, -40), "rest": (-80, -60), "a": (0, 0.5),
        "jump": (0, 10), "tau_w": (30, 400), "reset": (-70, -50), "gain": (5, 60),
    },
}  # fmt: skip


def recording(name: str, seed: int) -> tuple[torch.Tensor, ...]:
    """Currents, noisy potentials and spikes of a cell, and the spikes without noise, each ``[T]``."""
    cell, scaling, (mean, deviation, noise) = CELLS[name]
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(3, STEPS, generator=generator, dtype=torch.float64)
    filtered = hb.OverTime(hb.LICell(tau=30.0))(normal[0][:, None])[:, 0] * math.sqrt(1 - (1 - 1 / 30) ** 2)
    slow = 1 + 0.5 * torch.sin(2 * math.pi * torch.arange(STEPS) * DT / 500)
    currents = mean + deviation * slow * filtered
    inputs = currents.repeat(2, 1) + torch.stack([0 * normal[1], noise / scaling["gain"] * normal[1]])
    select = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    with torch.no_grad():
        wrapped = ScaledCell(cell, scaling, select)
        outputs, _ = hb.unroll(wrapped, inputs.T[:, None].expand(-1, 2, -1).contiguous())
    voltage = outputs[:, 0, 1] + scaling.get("offset", 0) + 0.3 * normal[2]
    return currents, voltage, outputs[:, 1, 1], outputs[:, 1, 0]


def held_out(name: str, values: dict[str, float], currents: torch.Tensor, spikes: torch.Tensor) -> float:
    """The gamma factor of the cell with `values` on the held-out part."""
    select = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        simulated, _ = hb.unroll(ScaledCell(CELLS[name][0], values, select), currents[:, None])
    gamma = hb.learn.gamma_factor(simulated[TRAINING:, 0], spikes[TRAINING:], PRECISION / DT)
    return gamma.item()


def report(
    name: str, method: str, values: dict[str, float], seconds: float, gammas: tuple[float, float]
) -> None:
    """Prints a row: time, gamma factor beside that of the true values, and the error of each value."""
    cell, scaling, _ = CELLS[name]
    errors = []
    for value, fitted in values.items():
        true = scaling.get(value, getattr(cell, value, None))
        errors.append(f"{value} {100 * (fitted / true - 1):+.1f}%")
    row = f"| {name} | {method} | {seconds:.0f} s | {gammas[0]:.3f} | {gammas[0] / gammas[1]:.3f} |"
    print(row, ", ".join(errors), "|", flush=True)


def run_peer(python: str, name: str, currents, spikes, samples: int, rounds: int) -> dict:
    """The result of benchmarks/fitting_brian2.py in the interpreter `python`: values and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recording.npz")
        times = spikes[:TRAINING].nonzero()[:, 0].numpy() * DT
        np.savez(path, currents=currents[:TRAINING].numpy(), times=times)
        bounds = json.dumps({key: ends for key, ends in BOUNDS[name].items() if key != "offset"})
        script = Path(__file__).with_name("fitting_brian2.py")
        command = [python, script, name, path, bounds, str(samples), str(rounds)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=[*CELLS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter that has brian2modelfitting")
    parser.add_argument("--samples", type=int, default=100, help="samples per round of the peer")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the peer")
    options = parser.parse_args()
    print("| cell | method | time | gamma held out | of the true values' | errors of values |")
    print("|---|---|---|---|---|---|")
    for name in options.cell:
        currents, voltage, spikes, noiseless = recording(name, options.seed)
        true = hb.learn.gamma_factor(noiseless[TRAINING:], spikes[TRAINING:], PRECISION / DT).item()
        for method in "potential and spikes", "spikes":
            bounds = dict(BOUNDS[name])
            if method == "spikes":
                bounds.pop("offset", None)
            start = time.perf_counter()
            fit = hb.learn.fit_cell(
                CELLS[name][0], currents, voltage if method != "spikes" else None, spikes,
                dt=DT, bounds=bounds, starts=options.starts,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            gamma = held_out(name, fit.values, currents, spikes)
            report(name, method, fit.values, seconds, (gamma, true))
        if options.peer:
            peer = run_peer(options.peer, name, currents, spikes, options.samples, options.rounds)
            gamma = held_out(name, peer["values"], currents, spikes)
            report(name, "spikes, brian2modelfitting", peer["values"], peer["seconds"], (gamma, true))


if __name__ == "__main__":
    main()
