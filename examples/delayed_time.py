"""Compares the training time of delayed synapses with a dense causal convolution over the same steps.

    OMP_NUM_THREADS=1 python examples/delayed_time.py --batch 64

The layers have 128 x 128 synapses with delays up to 25 steps; the input has 100 steps at 3% firing. Backward
computes the gradients of weights and delays. Times are processor time: medians of interleaved runs after one
run of each layer to warm up.
"""

import argparse
import time
from statistics import median

import torch
from torch import Tensor, nn

import hibana as hb

STEPS, NEURONS, LONGEST, DENSITY = 100, 128, 25, 0.03


class Dense(nn.Module):
    """Causal convolution over time as a two-dimensional convolution, torch's fastest form.

    Its image is time by batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(NEURONS, NEURONS, (LONGEST + 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[T, batch, features]`` to the same shape."""
        padding = inputs.new_zeros(LONGEST, *inputs.shape[1:])
        images = torch.cat([padding, inputs]).permute(2, 0, 1)[None]
        return self.convolution(images)[0].permute(1, 2, 0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--runs", type=int, default=15)
    arguments = options.parse_args()
    hb.keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = (torch.rand(STEPS, arguments.batch, NEURONS) < DENSITY).float()
    gradient = torch.randn(STEPS, arguments.batch, NEURONS)
    layers = {
        "dense convolution": Dense(),
        "kernels over time, sigma 0.5": hb.DelayedLinear(NEURONS, NEURONS, LONGEST, sigma=0.5),
        "between two steps, sigma 0": hb.DelayedLinear(NEURONS, NEURONS, LONGEST, sigma=0.0),
        "fixed at whole steps": hb.DelayedLinear(NEURONS, NEURONS, LONGEST),
    }
    hb.fix_delays(layers["fixed at whole steps"])
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in layers}
    for _ in range(arguments.runs + 1):
        for name, layer in layers.items():
            start = time.process_time()
            outputs = layer(inputs)
            middle = time.process_time()
            outputs.backward(gradient)
            end = time.process_time()
            seconds[name].append((middle - start, end - middle, end - start))
    print("| | forward, ms | backward, ms | both | speedup over dense |\n|---|---|---|---|---|")
    medians = {
        name: [1e3 * median(part) for part in zip(*runs[1:], strict=True)] for name, runs in seconds.items()
    }
    for name, (forward, backward, both) in medians.items():
        speedup = medians["dense convolution"][2] / both
        print(f"| {name} | {forward:.1f} | {backward:.1f} | {both:.1f} | {speedup:.1f} |")


if __name__ == "__main__":
    main()
