"""A digit spotter that goes on learning while it listens: halfway its microphone is exchanged for another.

    python examples/drifting_microphone.py --utterances 2000

Spoken digits, one after the other and 40 steps each, are one stream without an end. At each step the network
says what it hears, and in the last ten of a digit it is told; every step with a loss takes its gradient at
once, of all steps so far, and nothing of them is kept. Halfway the microphone changes: from then on the 13
coefficients are other mixtures of what they were. A copy that stopped learning there shows what that costs.
"""

import argparse
import copy
import resource
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

import hibana as hb
from hibana import data
from hibana.train import scale_to_rate

STEPS, TOLD, WINDOW = 40, 10, 250
"""Of a digit; its last steps, in which it is told what it was; digits that a printed line is of."""


def network(x: Tensor) -> nn.Module:
    """13 coefficients to ten digits, scaled to fire on `x`."""
    cell = hb.LIFCell(tau=5.0, surrogate="ATan", reset="subtract")
    net = nn.Sequential(nn.Linear(13, 128), hb.OverTime(cell), nn.Linear(128, 10), hb.LI(tau=10.0))
    scale_to_rate(net, x, 0.1)
    return net


class Spotter:
    """A network over the stream, and what it heard."""

    def __init__(self, net: nn.Module, rule: str, learning_rate: float) -> None:
        self.learner = hb.learn.online(net, rule)
        self.optimizer = torch.optim.Adam(net.parameters(), learning_rate)
        self.right: list[bool] = []
        self.learns = True

    def hear(self, digit: Tensor, label: Tensor) -> None:
        """One digit, ``[T, 1, 13]``: named before it is told which it was."""
        heard = torch.zeros(10)
        for t, x in enumerate(digit):
            told = self.learns and t >= len(digit) - TOLD
            with torch.set_grad_enabled(told):
                y = self.learner.step(x)
            if t >= len(digit) - TOLD:
                heard += y.detach()[0]
            if told:
                (functional.cross_entropy(y, label) / TOLD).backward()
        if self.learns:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.right.append(bool(heard.argmax() == label))

    def share(self, count: int) -> float:
        """The part of the last `count` digits that it named."""
        return sum(self.right[-count:]) / count


def listen(utterances: int, rule: str, learning_rate: float, seed: int) -> tuple[list[float], list[float]]:
    """What the spotter and its copy named, a line for each :data:`WINDOW` digits."""
    torch.manual_seed(seed)
    samples = data.load("spoken-digits", steps=STEPS)
    samples.setup()
    digits, labels = samples.training.__getitems__(list(range(len(samples.training))))
    digits = digits.transpose(0, 1).contiguous()  # [T, N, 13]
    spotter, frozen = Spotter(network(digits[:, :256]), rule, learning_rate), None
    other = torch.linalg.qr(torch.randn(13, 13))[0]
    learning, stopped = [], []
    for count in range(utterances):
        if count == utterances // 2:
            frozen = Spotter(copy.deepcopy(spotter.learner.net), rule, learning_rate)
            frozen.learns = False
        which = int(torch.randint(digits.shape[1], (1,)))
        digit = digits[:, which : which + 1]
        if frozen is not None:
            digit = digit @ other
            frozen.hear(digit, labels[which : which + 1])
        spotter.hear(digit, labels[which : which + 1])
        if (count + 1) % WINDOW == 0:
            learning.append(spotter.share(WINDOW))
            line = f"{(count + 1) * STEPS:7,} steps: {learning[-1]:.1%}"
            if frozen is not None and len(frozen.right) >= WINDOW:
                stopped.append(frozen.share(WINDOW))
                line += f"; without learning on {stopped[-1]:.1%}"
            if sys.platform != "win32":
                line += f" ({resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB)"
            print(line, flush=True)
    return learning, stopped


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--utterances", type=int, default=5000)
    options.add_argument("--rule", choices=("d-rtrl", "e-prop", "ottt", "pp-prop"), default="d-rtrl")
    options.add_argument("--learning-rate", type=float, default=2e-3)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    torch.set_num_threads(1)
    listen(asked.utterances, asked.rule, asked.learning_rate, asked.seed)


if __name__ == "__main__":
    main()
