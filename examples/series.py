"""The spiking Rocket on series in ``.ts`` files of aeon and sktime, without gradient descent.

    python examples/series.py DATA/ArrowHead/ArrowHead_TRAIN.ts DATA/GunPoint/GunPoint_TRAIN.ts ...

The folder of each ``NAME_TRAIN.ts`` must contain ``NAME_TEST.ts``. Series of unequal length are padded, and
steps after the end of a series do not count. Networks with and without a refractory period are fitted; the
one with the smaller error on left-out training series is tested.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import hibana as hb
from hibana.data.user_data.table_files import read_ts


def read(path: Path, middle: np.ndarray | None = None, deviation: np.ndarray | None = None):
    """Reads a ``.ts`` file; returns scaled series ``[T, channels]``, labels, and mean and deviation.

    Args:
        path: the file.
        middle: mean of each channel; ``None``: that of this file.
        deviation: standard deviation of each channel; ``None``: that of this file.
    """
    values, labels = read_ts(path)
    if labels is None:
        raise SystemExit(f"{path} must have labels")
    if middle is None or deviation is None:
        joined = np.concatenate(values)
        middle, deviation = np.nanmean(joined, 0), np.nanstd(joined, 0).clip(1e-8)
    scaled = [torch.from_numpy((series - middle) / deviation).float().nan_to_num() for series in values]
    return scaled, labels, middle, deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="NAME_TRAIN.ts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--periods", type=int, nargs="+", default=[0, 3], help="refractory periods in steps")
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
        (inputs, lengths), (test_inputs, ends) = hb.lengths.pad(training), hb.lengths.pad(test)
        rows = [
            trial(seed, options.periods, inputs, labels, lengths, test_inputs, answers, ends, classes)
            for seed in range(options.seeds)
        ]
        held_out, accuracy, rate, seconds = (list(column) for column in zip(*rows, strict=True))
        means.append(statistics.mean(accuracy))
        print(
            f"| {path.name.removesuffix('_TRAIN.ts')} | {len(labels)} | {len(inputs)} | {inputs.shape[2]} "
            f"| {len(classes)} | {statistics.mean(held_out):.1f} "
            f"| {means[-1]:.1f} ({', '.join(f'{value:.1f}' for value in accuracy)}) "
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
    test_inputs: Tensor,
    answers: Tensor,
    ends: Tensor,
    classes: list[str],
) -> tuple[float, float, float, float]:
    """Fits and tests networks with different refractory periods.

    Returns:
        Leave-one-out accuracy and test accuracy in percent, firing rate on the test set, and seconds.
    """
    start = time.perf_counter()
    size = (inputs.shape[2],), len(classes)
    nets = [hb.models.rocket(*size, steps=len(inputs), period=period, seed=seed) for period in periods]
    held_out, net = min(
        ((net.fit(inputs, labels, lengths), net) for net in nets), key=lambda fitted: fitted[1].error
    )
    with torch.inference_mode():
        scores = torch.cat(
            [
                hb.loss.MembraneMean().scores(net(part), part_ends)
                for part, part_ends in zip(test_inputs.split(32, dim=1), ends.split(32), strict=True)
            ]
        )
    seconds = time.perf_counter() - start
    right = float((scores.argmax(1) == answers).float().mean())
    return 100 * held_out, 100 * right, float(net.rates(test_inputs, ends).mean()), seconds


if __name__ == "__main__":
    main()
