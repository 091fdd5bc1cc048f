"""``python -m benchmarks.quantities FILES``: errors of the spiking Rocket on quantities of series.

    python -m benchmarks.quantities FOLDER/Covid3Month/Covid3Month_TRAIN.ts FOLDER/... [--aeon]

FOLDER is ``aeon/datasets/data`` of the package aeon. Series of unequal length are padded. The spiking Rocket
is fitted to the complete training part; the error on left-out series chooses its refractory period, and
whether each series is scaled by itself, as in ``hibana train``. ``--aeon`` fits aeon's ``RocketRegressor``
with its defaults to the same series (stretched, if their lengths differ). The table has the root mean squared
error on the test part: mean of the seeds (lowest to highest).
"""

import argparse
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hibana as hb
from benchmarks.tables import table
from hibana.data.user_data.series import stretch
from hibana.data.user_data.table_files import read_ts

PERIODS = (0, 3)
"""Refractory periods in steps."""


def hibana_error(seed: int, training: Any, test: Any) -> float:
    """The error of the spiking Rocket; both parts are series ``[T, channels]`` and their quantities."""
    joined = np.concatenate(training[0])
    labels, answers = (torch.tensor(quantities) for _, quantities in (training, test))
    errors = []
    for each, period in product((False, True), PERIODS):
        parts = []
        for series, _ in (training, test):
            bases = series if each else [joined] * len(series)
            scaled = [
                (x - np.nanmean(base, 0)) / np.nanstd(base, 0).clip(1e-8)
                for x, base in zip(series, bases, strict=True)
            ]
            parts.append(hb.lengths.pad([torch.from_numpy(x).float().nan_to_num() for x in scaled]))
        (inputs, lengths), (test_inputs, ends) = parts
        net = hb.models.rocket((inputs.shape[2],), 1, steps=len(inputs), period=period, seed=seed)
        net.fit(inputs, labels, lengths)
        with torch.inference_mode():
            predictions = hb.loss.MembraneMean().scores(net(test_inputs), ends)[:, 0]
        errors.append((net.error, float((predictions - answers).square().mean().sqrt())))
    return min(errors)[1]


def aeon_error(seed: int, training: Any, test: Any) -> float:
    """The error of aeon's ``RocketRegressor``."""
    from aeon.regression.convolution_based import RocketRegressor

    steps = max(len(series) for series in training[0])
    inputs, test_inputs = (
        np.stack([stretch(torch.from_numpy(series).nan_to_num(), steps).T.numpy() for series in part[0]])
        for part in (training, test)
    )
    predictions = RocketRegressor(random_state=seed).fit(inputs, training[1]).predict(test_inputs)
    return float(np.sqrt(np.mean((predictions - test[1]) ** 2)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="NAME_TRAIN.ts, beside NAME_TEST.ts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--aeon", action="store_true")
    options = parser.parse_args()
    methods = {"spiking Rocket": hibana_error} | ({"RocketRegressor": aeon_error} if options.aeon else {})
    rows = []
    for path in options.files:
        parts = []
        for file in (path, path.with_name(path.name.replace("_TRAIN", "_TEST"))):
            series, texts = read_ts(file)
            if texts is None:
                raise SystemExit(f"{file} must have labels")
            parts.append((series, np.array(texts, dtype=np.float64)))
        row = [path.name.removesuffix("_TRAIN.ts")]
        for error in methods.values():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # in libraries of aeon
                errors = [error(seed, *parts) for seed in range(options.seeds)]
            row.append(f"{np.mean(errors):.4f} ({min(errors):.4f} to {max(errors):.4f})")
        rows.append(row)
    print("\n".join(table(["data", *methods], rows)))


if __name__ == "__main__":
    main()
