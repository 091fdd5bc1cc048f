"""Time of a training step of delayed synapses beside a dense causal convolution of the same span.

    OMP_NUM_THREADS=1 python examples/delayed_time.py --batch 64

128 x 128 synapses with delays up to 25 steps, 100 steps at 3% firing; forward, and backward to weights and
delays. Processor time, medians of runs that take turns, after one of each to warm up.
"""

import argparse
import time
from statistics import median

import torch
from torch import Tensor, nn

import hibana as hb

STEPS, NEURONS, LONGEST, DENSITY = 100, 128, 25, 0.03


class Dense(nn.Module):
    """The convolution as torch does it soonest: an image of time by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(NEURONS, NEURONS, (LONGEST + 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """``[T, batch, features]`` of the same."""
        before = inputs.new_zeros(LONGEST, *inputs.shape[1:])
        images = torch.cat([before, inputs]).permute(2, 0, 1)[None]
        return self.convolution(images)[0].permute(1, 2, 0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--runs", type=int, default=15)
    asked = options.parse_args()
    hb.keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = (torch.rand(STEPS, asked.batch, NEURONS) < DENSITY).float()
    gradient = torch.randn(STEPS, asked.batch, NEURONS)
    layers = {
        "dense convolution": Dense(),
        "kernels over time, sigma 0.5": hb.DelayedLinear(NEURONS, NEURONS, LONGEST, sigma=0.5),
        "between two steps, sigma 0": hb.DelayedLinear(NEURONS, NEURONS, LONGEST, sigma=0.0),
        "fixed at whole steps": hb.DelayedLinear(NEURONS, NEURONS, LONGEST),
    }
    hb.fix_delays(layers["fixed at whole steps"])
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in layers}
    for _ in range(asked.runs + 1):
        for name, layer in layers.items():
            begun = time.process_time()
            outputs = layer(inputs)
            between = time.process_time()
            outputs.backward(gradient)
            done = time.process_time()
            taken[name].append((between - begun, done - between, done - begun))
    print("| | forward, ms | backward, ms | both | dense, in its times |\n|---|---|---|---|---|")
    found = {
        name: [1e3 * median(part) for part in zip(*runs[1:], strict=True)] for name, runs in taken.items()
    }
    for name, (forward, backward, both) in found.items():
        times = found["dense convolution"][2] / both
        print(f"| {name} | {forward:.1f} | {backward:.1f} | {both:.1f} | {times:.1f} |")


if __name__ == "__main__":
    main()
