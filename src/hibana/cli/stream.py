"""``hibana predict --stream``: reads time steps from standard input and prints a prediction after each."""

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hibana.cli.common import Failure, progress, refuse_errors
from hibana.cli.input_steps import step_reader
from hibana.cli.options import check_options
from hibana.cli.tables import csv_line, format_step
from hibana.network import native
from hibana.train.prediction import to_answers

if TYPE_CHECKING:
    from hibana.train import Network


MAX_DURATIONS = 100_000
"""Number of latest steps whose durations are summarized."""


@torch.no_grad()
def predict_stream(
    model: "Network", window: float | None, output_format: str, rate: int | None = None
) -> None:
    """Reads time steps from standard input, and prints the prediction of `model` after each.

    The scores are those of the network's loss over the outputs so far, at most as many as in training. A line
    that can't be read is reported and skipped. An empty line ends a sequence: the next one starts at rest. A
    network that was trained on sound reads raw samples, which have no lines.

    Args:
        model: a trained network.
        window: length of a time step of events in milliseconds; ``None``: as in training.
        output_format: ``table``, ``csv`` or ``json``.
        rate: samples of sound per second; ``None``: 16,000.

    Raises:
        Refusal: if the network can't run step by step, its input has no steps, or an option has no effect on
            this input.
        Failure: at the end, if lines were skipped.
    """
    reader = step_reader(model, window, rate)
    passed = {"window": window, "rate": rate}
    check_options("predict", (reader.use,), f"on a stream for {model.settings.title}", passed)
    predictor = _StreamPredictor(model, output_format, reader.dtype)
    number = skipped = 0
    try:
        for number, piece in enumerate(reader.pieces(sys.stdin.buffer), start=1):
            start, is_end = time.perf_counter(), reader.is_end(piece)
            try:
                steps = reader.end() if is_end else reader.read(piece)
            except ValueError as error:
                print(f"hibana predict: line {number} is skipped: it {error}", file=sys.stderr)
                skipped += 1
                continue
            predictor.advance(steps, start)
            if is_end:
                predictor.reset()
        predictor.advance(reader.end(), time.perf_counter())
        if skipped:
            raise Failure(f"{skipped} of {number} lines could not be read")
    finally:
        print(predictor.summary(reader.piece), file=sys.stderr)


class _StreamPredictor:
    """Runs a network step by step, prints a prediction after each step, and measures the durations."""

    def __init__(self, model: "Network", output_format: str, dtype: torch.dtype) -> None:
        self.model, self.output_format = model, output_format
        with progress("compiling"), refuse_errors():
            example = torch.zeros(1, 1, *model.shape, dtype=dtype, device="cpu")
            self.stream = native.compile(model.net, example).stream()
        model.seed_evaluation()
        self.outputs: deque[Tensor] = deque(maxlen=model.settings.steps)  # the latest of this sequence
        self.sequence_steps = 0  # steps of this sequence
        self.total_steps = 0  # steps of all sequences
        self.durations: deque[float] = deque(maxlen=MAX_DURATIONS)
        self.network_durations: deque[float] = deque(maxlen=MAX_DURATIONS)

    def advance(self, steps: list[Tensor], start: float) -> None:
        """Runs the network for `steps` and prints a prediction after each.

        Args:
            steps: inputs, ``[1, ...]`` each.
            start: time at which the input arrived.
        """
        for x in steps:
            step_start = time.perf_counter()
            outputs = self.stream.step(x.contiguous())
            self.network_durations.append(time.perf_counter() - step_start)
            self.outputs.append(outputs.clone())
            self.sequence_steps += 1
            scores = self.model.objective.scores(torch.stack([*self.outputs]))
            answers = to_answers(self.model, scores, [str(self.sequence_steps)])
            if self.output_format == "csv" and self.total_steps == 0:
                sys.stdout.write(csv_line(["step", answers.label, *answers.classes]))
            sys.stdout.write(format_step(answers, self.output_format))
            sys.stdout.flush()
            self.durations.append(time.perf_counter() - start)
            self.total_steps += 1

    def reset(self) -> None:
        """Starts a new sequence: the network returns to its resting state."""
        self.stream.reset()
        self.outputs.clear()
        self.sequence_steps = 0

    def summary(self, piece: str) -> str:
        """Describes the number of steps, and the time from a `piece` of input to its prediction."""
        if not self.total_steps:
            return "no steps"
        prediction, network = _quantiles(self.durations), _quantiles(self.network_durations)
        durations = f"from {piece} to its answer {prediction}; the network alone {network}"
        return f"{self.total_steps:,} steps; {durations}"


def _quantiles(durations: deque[float]) -> str:
    """Returns median and 99th percentile as text; `durations` are in seconds."""
    quantiles = np.quantile(durations, [0.5, 0.99], method="inverted_cdf").tolist()
    median, late = (f"{t * 1e6:.3g} µs" if t < 1e-3 else f"{t * 1e3:.3g} ms" for t in quantiles)
    return f"median {median}, 99th percentile {late}"
