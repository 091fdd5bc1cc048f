"""``hibana predict --stream``: steps from standard input, an answer a line as each is taken."""

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hibana.cli.lines import Steps, steps_of
from hibana.cli.pcm import RATE, Samples
from hibana.cli.saying import Failure, Refusal, doing, refusing
from hibana.cli.tables import said_step, step_heading
from hibana.data.own.sound import SoundInputs
from hibana.network import native
from hibana.train.predicting import Answers, answered

if TYPE_CHECKING:
    from hibana.train import Network

__all__ = ["stream"]

LATEST = 100_000
"""Steps whose durations are summarized."""


@torch.no_grad()
def stream(model: "Network", window: float | None, form: str, rate: int | None = None) -> None:
    """Takes the steps of standard input, and prints what `model` answers after each.

    An answer is that of the objective over the outputs so far, at most as many as were trained on. A line
    that can't be read is named, and left out. An empty one ends a sequence: the next begins at rest. A
    network that was trained on sound takes raw samples, which have no lines.

    Args:
        model: a trained network.
        window: milliseconds of a window of events.
        form: of a line: ``table``, ``csv`` or ``json``.
        rate: samples of sound in a second.

    Raises:
        Refusal: if the network can't be run step by step, its data give no steps, an option is for others, or
            standard input or output is closed.
        Failure: at the end, if lines were left out.
    """
    if None in (sys.stdin, sys.stdout):
        raise Refusal("--stream needs an open standard input and output; one of them is closed")
    inputs = None if model.description is None else model.description.inputs
    steps: Samples | Steps
    if isinstance(inputs, SoundInputs):
        if window is not None:
            raise Refusal(f"--window is of events of a camera; {model.settings.title} has none")
        steps = Samples(model, inputs, RATE if rate is None else rate)
    else:
        if rate is not None:
            raise Refusal(f"--rate is of sound; {model.settings.title} is {model.settings.what}")
        steps = steps_of(model, window)
    running = _Running(model, form, steps.dtype)
    try:
        if isinstance(steps, Samples):
            _listen(steps, running)
        else:
            _read(steps, running)
    finally:
        print(running.summary("a frame" if isinstance(steps, Samples) else "a line"), file=sys.stderr)


def _read(steps: Steps, running: "_Running") -> None:
    """Answers the lines of standard input."""
    number, refused = 0, 0
    for number, line in enumerate(sys.stdin.buffer, start=1):
        begun = time.perf_counter()
        try:
            text = _text(line)
            ends = not text.strip()
            values = steps.end() if ends else steps.read(text)
        except ValueError as error:
            print(f"hibana predict: line {number} is left out: it {error}", file=sys.stderr)
            refused += 1
            continue
        running.answer(values, begun)
        if ends:
            running.reset()
    running.answer(steps.end(), time.perf_counter())
    if refused:
        raise Failure(f"{refused} of {number} lines could not be read")


def _listen(steps: Samples, running: "_Running") -> None:
    """Answers the samples of sound of standard input."""
    for piece in steps.pieces(sys.stdin.buffer):
        begun = time.perf_counter()
        try:
            values = steps.take(piece)
        except ValueError as error:
            raise Failure(f"standard input {error}") from None
        running.answer(values, begun)


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8 text") from None


class _Running:
    """A network that goes on from step to step, what it has put out, and how long it takes."""

    def __init__(self, model: "Network", form: str, dtype: torch.dtype) -> None:
        self.model, self.form = model, form
        with doing("compiling"), refusing():
            example = torch.zeros(1, 1, *model.shape, dtype=dtype, device="cpu")
            self.stream = native.compile(model.net, example).stream()
        model.seed_evaluation()
        self.most = model.settings.steps
        self.outputs: Tensor | None = None
        """Of the last steps twice over, so that those in order lie together: ``[2 * most, 1, classes]``."""
        self.count = 0
        """Steps of this sequence."""
        self.steps = 0
        """Steps of all sequences."""
        self.durations: deque[float] = deque(maxlen=LATEST)
        self.of_network: deque[float] = deque(maxlen=LATEST)

    def answer(self, steps: list[Tensor], begun: float) -> None:
        """Takes `steps`, of a line that was read at the time `begun`, and prints an answer for each."""
        for x in steps:
            called = time.perf_counter()
            outputs = self.stream.step(x.contiguous())
            self.of_network.append(time.perf_counter() - called)
            answers = answered(self.model, self._scores(outputs), [str(self.count)])
            if self.form == "csv" and self.steps == 0:
                sys.stdout.write(step_heading(answers.label, answers.classes))
            self._say(answers)
            self.durations.append(time.perf_counter() - begun)
            self.steps += 1

    def _say(self, answers: Answers) -> None:
        sys.stdout.write(said_step(answers, self.form))
        sys.stdout.flush()

    def _scores(self, outputs: Tensor) -> Tensor:
        """The objective's scores over the last outputs."""
        if self.outputs is None:
            self.outputs = outputs.new_empty(2 * self.most, *outputs.shape)
        at = self.count % self.most
        self.outputs[at] = self.outputs[at + self.most] = outputs
        self.count += 1
        first, last = (0, self.count) if self.count <= self.most else (at + 1, at + 1 + self.most)
        return self.model.objective.scores(self.outputs[first:last])

    def reset(self) -> None:
        """Puts the network back to rest."""
        self.stream.reset()
        self.count = 0

    def summary(self, of: str) -> str:
        """How many steps there were, and how long they took; each is made `of` something."""
        if not self.steps:
            return "no steps"
        return (
            f"{self.steps:,} steps; from {of} to its answer {_quantiles(self.durations)}; the network alone "
            f"{_quantiles(self.of_network)}"
        )


def _quantiles(durations: deque[float]) -> str:
    median, late = np.quantile(durations, [0.5, 0.99], method="inverted_cdf").tolist()
    return f"median {_shown(median)}, 99th percentile {_shown(late)}"


def _shown(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"
