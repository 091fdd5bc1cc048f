"""A network that recognizes spoken digits and keeps learning when its microphone is replaced.

    python examples/drifting_microphone.py

Spoken digits of 40 steps each form one endless stream, which arrives in packets of ten steps. In the last
packet of a digit the network classifies it, and then receives the label. Its online learning rule gives the
gradient over all previous steps without storing them. Halfway, the microphone changes: from then on, the 13
coefficients are multiplied by a random rotation. A copy of the network that stops learning at this point
shows the effect of the change.
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

STEPS, PACKET, WINDOW = 40, 10, 250
"""Steps of a digit, steps of a packet, and digits per printed line."""


def network(x: Tensor) -> nn.Module:
    """Returns a network from 13 coefficients to ten classes; its weights are scaled to fire on `x`."""
    cell = hb.LIFCell(tau=5.0, surrogate="ATan", reset="subtract")
    net = nn.Sequential(nn.Linear(13, 128), hb.OverTime(cell), nn.Linear(128, 10), hb.LI(tau=10.0))
    scale_to_rate(net, x, 0.1)
    return net


class Spotter:
    """A network that listens to the stream and records its correct answers; ``rule=None`` does not learn."""

    def __init__(self, net: nn.Module, rule: str | None, learning_rate: float) -> None:
        self.net, self.state, self.correct = net, None, list[bool]()
        self.learner = None if rule is None else hb.learn.online(net, rule)
        self.optimizer = torch.optim.Adam(net.parameters(), learning_rate)

    def hear(self, digit: Tensor, label: Tensor) -> None:
        """Classifies one digit, ``[T, 1, 13]``, and then learns from its label."""
        *first, last = digit.split(PACKET)
        for packet in first:
            self._steps(packet)
        y = self._steps(last)
        self.correct.append(bool(y.detach().sum((0, 1)).argmax() == label))
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

    def accuracy(self, count: int) -> float:
        """Returns the fraction of the last `count` digits that were classified correctly."""
        return sum(self.correct[-count:]) / count


def listen(utterances: int, rule: str, learning_rate: float, seed: int) -> tuple[list[float], list[float]]:
    """Returns the accuracies of the learning network and of the copy, each over :data:`WINDOW` digits."""
    torch.manual_seed(seed)
    samples = data.load("spoken-digits", steps=STEPS)
    samples.setup()
    digits, labels = samples.training.__getitems__(list(range(len(samples.training))))
    digits = digits.transpose(0, 1).contiguous()  # [T, N, 13]
    learner, copied = Spotter(network(digits[:, :256]), rule, learning_rate), None
    rotation = torch.linalg.qr(torch.randn(13, 13))[0]
    learning, fixed = [], []
    for count in range(1, utterances + 1):
        index = int(torch.randint(digits.shape[1], (1,)))
        digit, label = digits[:, index : index + 1], labels[index : index + 1]
        if copied is not None:
            digit = digit @ rotation
            copied.hear(digit, label)
        learner.hear(digit, label)
        if count % WINDOW == 0:
            learning.append(learner.accuracy(WINDOW))
            line = f"{count * STEPS:7,} steps: {learning[-1]:.1%}"
            if copied is not None:
                fixed.append(copied.accuracy(WINDOW))
                line += f", without further learning {fixed[-1]:.1%}"
            print(line + peak_memory(), flush=True)
        if count == utterances // 2:
            copied = Spotter(copy.deepcopy(learner.net), None, learning_rate)
            print("new microphone")
    return learning, fixed


def peak_memory() -> str:
    """Returns the peak memory of the process on Linux, which reports it in kilobytes; "" elsewhere."""
    if sys.platform != "linux":
        return ""
    import resource  # not on Windows

    return f"; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--utterances", type=int, default=2500, help="number of digits, 40 steps each")
    options.add_argument("--rule", choices=("d-rtrl", "e-prop", "ottt", "pp-prop"), default="d-rtrl")
    options.add_argument("--learning-rate", type=float, default=4e-3)
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    listen(arguments.utterances, arguments.rule, arguments.learning_rate, arguments.seed)


if __name__ == "__main__":
    main()
