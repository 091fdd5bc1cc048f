"""The spiking Rocket on series in ``.ts`` files of aeon and sktime, without gradient descent.

    python examples/series.py DATA/ArrowHead/ArrowHead_TRAIN.ts DATA/GunPoint/GunPoint_TRAIN.ts ...

Beside each ``NAME_TRAIN.ts`` lies its ``NAME_TEST.ts``. Series of unequal length are padded, and each counts
to its own end. Of neurons that rest after a spike and of those that do not, those are taken whose error on
left-out training series is less.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import hibana as hb
from hibana.data.user_data import ts_files


def read(path: Path, middle: np.ndarray | None = None, deviation: np.ndarray | None = None):
    """Series ``[T, channels]`` at mean 0 and deviation 1 of the training part, and their labels."""
    values, labels = ts_files.read_ts(path)
    if labels is None:
        raise SystemExit(f"{path} must have labels")
    if middle is None or deviation is None:
        every = np.concatenate(values)
        middle, deviation = np.nanmean(every, 0), np.nanstd(every, 0).clip(1e-8)
    scaled = [torch.from_numpy((each - middle) / deviation).float().nan_to_num() for each in values]
    return scaled, labels, middle, deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="NAME_TRAIN.ts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--periods", type=int, nargs="+", default=[0, 3], help="steps that neurons rest")
    options = parser.parse_args()
    hb.keep_memory()
    print("| data | series | steps | channels | classes | leave-one-out % | test % | spikes per step | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    means = []
    for path in options.files:
        training, names, *scale = read(path)
        test, expected, *_ = read(path.with_name(path.name.replace("_TRAIN", "_TEST")), *scale)
        classes = sorted({*names, *expected})
        labels = torch.tensor([classes.index(name) for name in names])
        answers = torch.tensor([classes.index(name) for name in expected])
        (inputs, lengths), (shown, ends) = hb.lengths.pad(training), hb.lengths.pad(test)
        rows = [
            trial(seed, options.periods, inputs, labels, lengths, shown, answers, ends, classes)
            for seed in range(options.seeds)
        ]
        held_out, accuracy, rate, seconds = (list(each) for each in zip(*rows, strict=True))
        means.append(statistics.mean(accuracy))
        print(
            f"| {path.name.removesuffix('_TRAIN.ts')} | {len(labels)} | {len(inputs)} | {inputs.shape[2]} "
            f"| {len(classes)} | {statistics.mean(held_out):.1f} "
            f"| {means[-1]:.1f} ({', '.join(f'{each:.1f}' for each in accuracy)}) "
            f"| {statistics.mean(rate):.3f} | {statistics.mean(seconds):.1f} |",
            flush=True,
        )
    print(f"| mean | | | | | | {statistics.mean(means):.1f} | | |")


def trial(
    seed: int,
    periods: list[int],
    inputs: Tensor,
    labels: Tensor,
    lengths: Tensor,
    shown: Tensor,
    answers: Tensor,
    ends: Tensor,
    classes: list[str],
) -> tuple[float, float, float, float]:
    """Leave-one-out and test accuracy in per cent, firing rate in the test, seconds of both."""
    begun = time.perf_counter()
    size = (inputs.shape[2],), len(classes)
    nets = [hb.models.rocket(*size, steps=len(inputs), period=period, seed=seed) for period in periods]
    held_out, net = min(
        ((net.fit(inputs, labels, lengths), net) for net in nets), key=lambda each: each[1].error
    )
    with torch.inference_mode():
        scores = torch.cat(
            [
                hb.loss.MembraneMean().scores(net(part), own)
                for part, own in zip(shown.split(32, dim=1), ends.split(32), strict=True)
            ]
        )
    seconds = time.perf_counter() - begun
    right = float((scores.argmax(1) == answers).float().mean())
    return 100 * held_out, 100 * right, float(net.rates(shown, ends).mean()), seconds


if __name__ == "__main__":
    main()
