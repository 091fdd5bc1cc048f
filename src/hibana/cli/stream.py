"""``hibana predict --stream``: steps from standard input, and an answer per step."""

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hibana.cli.common import Failure, Refusal, doing, refusing
from hibana.cli.input_steps import steps_of
from hibana.cli.tables import formatted_step, step_heading
from hibana.network import native
from hibana.train.prediction import answered

if TYPE_CHECKING:
    from hibana.train import Network

__all__ = ["stream"]

LATEST = 100_000
"""Steps whose durations are summarized."""


@torch.no_grad()
def stream(model: "Network", window: float | None, form: str, rate: int | None = None) -> None:
    """Reads steps from standard input, and prints what `model` answers after each.

    An answer is the objective's, over the outputs so far, at most as many as in training. A line that can't
    be read is reported and left out. An empty line ends a sequence: the next one begins at rest. A network
    that was trained on sound reads raw samples, which have no lines.

    Args:
        model: a trained network.
        window: milliseconds of a window of events.
        form: of an answer: ``table``, ``csv`` or ``json``.
        rate: samples of sound per second.

    Raises:
        Refusal: if the network can't be run step by step, its data give no steps, an option does not apply,
            or standard input or output is closed.
        Failure: at the end, if lines were left out.
    """
    if None in (sys.stdin, sys.stdout):
        raise Refusal("--stream needs an open standard input and output; one of them is closed")
    steps = steps_of(model, window, rate)
    running = _Running(model, form, steps.dtype)
    number = refused = 0
    try:
        for number, piece in enumerate(steps.pieces(sys.stdin.buffer), start=1):
            start, is_end = time.perf_counter(), steps.is_end(piece)
            try:
                values = steps.end() if is_end else steps.read(piece)
            except ValueError as error:
                print(f"hibana predict: line {number} is left out: it {error}", file=sys.stderr)
                refused += 1
                continue
            running.answer(values, start)
            if is_end:
                running.reset()
        running.answer(steps.end(), time.perf_counter())
        if refused:
            raise Failure(f"{refused} of {number} lines could not be read")
    finally:
        print(running.summary(steps.piece), file=sys.stderr)


class _Running:
    """A network that advances step by step, its latest outputs, and the durations of its steps."""

    def __init__(self, model: "Network", form: str, dtype: torch.dtype) -> None:
        self.model, self.form = model, form
        with doing("compiling"), refusing():
            example = torch.zeros(1, 1, *model.shape, dtype=dtype, device="cpu")
            self.stream = native.compile(model.net, example).stream()
        model.seed_evaluation()
        self.most = model.settings.steps
        self.outputs: Tensor | None = (
            None  # the last `most` outputs, stored twice so that they are contiguous
        )
        self.count = 0  # steps of this sequence
        self.steps = 0  # steps of all sequences
        self.durations: deque[float] = deque(maxlen=LATEST)
        self.of_network: deque[float] = deque(maxlen=LATEST)

    def answer(self, steps: list[Tensor], start: float) -> None:
        """Advances by `steps`, whose input arrived at the time `start`, and prints an answer for each."""
        for x in steps:
            before = time.perf_counter()
            outputs = self.stream.step(x.contiguous())
            self.of_network.append(time.perf_counter() - before)
            answers = answered(self.model, self._scores(outputs), [str(self.count)])
            if self.form == "csv" and self.steps == 0:
                sys.stdout.write(step_heading(answers.label, answers.classes))
            sys.stdout.write(formatted_step(answers, self.form))
            sys.stdout.flush()
            self.durations.append(time.perf_counter() - start)
            self.steps += 1

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

    def summary(self, piece: str) -> str:
        """Number of steps, and the time from a `piece` of input to its answer."""
        if not self.steps:
            return "no steps"
        answer, network = _quantiles(self.durations), _quantiles(self.of_network)
        return f"{self.steps:,} steps; from {piece} to its answer {answer}; the network alone {network}"


def _quantiles(durations: deque[float]) -> str:
    quantiles = np.quantile(durations, [0.5, 0.99], method="inverted_cdf").tolist()
    median, late = (f"{t * 1e6:.3g} µs" if t < 1e-3 else f"{t * 1e3:.3g} ms" for t in quantiles)
    return f"median {median}, 99th percentile {late}"
