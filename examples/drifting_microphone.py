"""A digit spotter that goes on learning while it listens: halfway its microphone is exchanged for another.

    python examples/drifting_microphone.py

Spoken digits, one after the other and 40 steps each, are one stream without an end, which comes in packets
of ten steps. In the last packet of a digit the network names it and is then told which it was: it takes its
gradient at once, of all steps so far, and nothing of them is kept. Halfway the microphone changes: from then
on the 13 coefficients are other mixtures of what they were. A copy that stopped learning there shows what
that costs.
"""

import argparse
import copy
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

import hibana as hb
from hibana import data
from hibana.train import scale_to_rate

STEPS, TOLD, WINDOW = 40, 10, 250
"""Of a digit; its last steps, in which it is named and told; digits that a printed line is of."""


def network(x: Tensor) -> nn.Module:
    """13 coefficients to ten digits, scaled to fire on `x`."""
    cell = hb.LIFCell(tau=5.0, surrogate="ATan", reset="subtract")
    net = nn.Sequential(nn.Linear(13, 128), hb.OverTime(cell), nn.Linear(128, 10), hb.LI(tau=10.0))
    scale_to_rate(net, x, 0.1)
    return net


class Spotter:
    """A network over the stream, which learns on while it listens or has stopped to, and what it heard."""

    def __init__(self, net: nn.Module, rule: str | None, learning_rate: float) -> None:
        self.net, self.state, self.right = net, None, list[bool]()
        self.learner = None if rule is None else hb.learn.online(net, rule)
        self.optimizer = torch.optim.Adam(net.parameters(), learning_rate)

    def hear(self, digit: Tensor, label: Tensor) -> None:
        """One digit, ``[T, 1, 13]``: named before it is told which it was."""
        *before, last = digit.split(TOLD)
        for packet in before:
            self._steps(packet)
        y = self._steps(last)
        self.right.append(bool(y.detach().sum((0, 1)).argmax() == label))
        if self.learner is not None:
            functional.cross_entropy(y[:, 0], label.expand(len(y))).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _steps(self, x: Tensor) -> Tensor:
        if self.learner is not None:
            return self.learner.steps(x)
        with torch.no_grad():
            outputs, self.state = hb.run(self.net, x, self.state)
        return outputs

    def share(self, count: int) -> float:
        """The part of the last `count` digits that it named."""
        return sum(self.right[-count:]) / count


def listen(utterances: int, rule: str, learning_rate: float, seed: int) -> tuple[list[float], list[float]]:
    """What the spotter, and the copy that stops to learn, named: a number for each :data:`WINDOW` digits."""
    torch.manual_seed(seed)
    samples = data.load("spoken-digits", steps=STEPS)
    samples.setup()
    digits, labels = samples.training.__getitems__(list(range(len(samples.training))))
    digits = digits.transpose(0, 1).contiguous()  # [T, N, 13]
    spotter, stopped = Spotter(network(digits[:, :256]), rule, learning_rate), None
    other = torch.linalg.qr(torch.randn(13, 13))[0]
    learning, without = [], []
    for count in range(1, utterances + 1):
        which = int(torch.randint(digits.shape[1], (1,)))
        digit, label = digits[:, which : which + 1], labels[which : which + 1]
        if stopped is not None:
            digit = digit @ other
            stopped.hear(digit, label)
        spotter.hear(digit, label)
        if count % WINDOW == 0:
            learning.append(spotter.share(WINDOW))
            line = f"{count * STEPS:7,} steps: {learning[-1]:.1%}"
            if stopped is not None:
                without.append(stopped.share(WINDOW))
                line += f", without learning on {without[-1]:.1%}"
            print(line + held(), flush=True)
        if count == utterances // 2:
            stopped = Spotter(copy.deepcopy(spotter.net), None, learning_rate)
            print("another microphone")
    return learning, without


def held() -> str:
    """The most memory that the process held so far, where the system says it in kilobytes."""
    if sys.platform != "linux":
        return ""
    import resource  # not on Windows

    return f"; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--utterances", type=int, default=2500, help="of 40 steps each")
    options.add_argument("--rule", choices=("d-rtrl", "e-prop", "ottt", "pp-prop"), default="d-rtrl")
    options.add_argument("--learning-rate", type=float, default=4e-3)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    torch.set_num_threads(1)
    listen(asked.utterances, asked.rule, asked.learning_rate, asked.seed)


if __name__ == "__main__":
    main()
