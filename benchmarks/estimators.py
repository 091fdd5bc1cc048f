"""Test accuracy of hibana's estimators and three of scikit-learn on ten data sets.

    python -m benchmarks.estimators --series FOLDER --record benchmarks/estimators-PROCESSOR.json

FOLDER is ``aeon/datasets/data`` of the package aeon, unpacked from its wheel (``pip download --no-deps
aeon``). Parameters have their defaults, except that the linear model and the perceptron may take
2,000 iterations; scikit-learn's are behind a ``StandardScaler`` and see a series as one row of numbers. Each
seed draws another quarter of a table for the test. Series have the split of their archive.

``--report FILE`` prints the table of a recorded result.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hibana as hb
from benchmarks.tables import table
from hibana.data.user_data.table_files import read_ts

Array = np.ndarray[Any, Any]
Split = tuple[Array, Array, Array, Array]
"""Training inputs and labels, test inputs and labels."""

TABLES = ("iris", "wine", "breast_cancer", "digits")
SERIES = ("ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "JapaneseVowels_eq")
MNIST_1D = 1_000
"""Training samples of MNIST-1D, of 3,600."""
ESTIMATORS: dict[str, Any] = {
    "SpikingClassifier": hb.sklearn.SpikingClassifier(),
    "SpikingRocketClassifier": hb.sklearn.SpikingRocketClassifier(),
    "LogisticRegression": LogisticRegression(max_iter=2_000),
    "MLPClassifier": MLPClassifier(max_iter=2_000),
    "RandomForestClassifier": RandomForestClassifier(),
}


def split_table(name: str, seed: int) -> Split:
    """A random quarter of a table of scikit-learn for the test, and the other rows for the training."""
    inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    training, test, *both = train_test_split(
        inputs, labels, test_size=0.25, random_state=seed, stratify=labels
    )
    return training, both[0], test, both[1]


def split_series(name: str, folder: Path) -> Split:
    """The training and the test part of a set of series, ``[N, channels, time]``."""
    arrays: list[Array] = []
    for part in ("TRAIN", "TEST"):
        values, labels = read_ts(folder / name.removesuffix("_eq") / f"{name}_{part}.ts")
        arrays += [np.stack(values).transpose(0, 2, 1), np.array(labels)]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def split_mnist_1d() -> Split:
    """The first training samples and the test part of MNIST-1D, ``[N, 1, 40]``."""
    samples: Any = hb.data.load("mnist-1d")
    samples.setup()
    parts = [samples.training.__getitems__([*range(MNIST_1D)]), samples.test.__getitems__([*range(1_000)])]
    (training, labels), (test, answers) = ([tensor.numpy() for tensor in part] for part in parts)
    return training.transpose(0, 2, 1), labels, test.transpose(0, 2, 1), answers


def trial(name: str, split: Split, seed: int) -> tuple[float, float]:
    """The test accuracy of an estimator, and the seconds of its fit."""
    training, labels, test, answers = split
    estimator = clone(ESTIMATORS[name]).set_params(random_state=seed)
    if not name.startswith("Spiking"):
        estimator = make_pipeline(StandardScaler(), estimator)
        training, test = training.reshape(len(training), -1), test.reshape(len(test), -1)
    start = time.perf_counter()
    estimator.fit(training, labels)
    return float(estimator.score(test, answers)), time.perf_counter() - start


def measure(folder: Path, seeds: int, record: Path | None) -> dict[str, Any]:
    """Accuracies and seconds of each estimator and seed, by data set; writes them to `record` after each set.

    The Rocket is for series.
    """
    results: dict[str, Any] = {}
    for name in (*TABLES, *SERIES, "MNIST-1D"):
        for seed in range(seeds):
            if name in TABLES:
                split = split_table(name, seed)
            else:
                split = split_mnist_1d() if name == "MNIST-1D" else split_series(name, folder)
            shape = [len(split[0]), len(split[2]), *split[0].shape[1:]]
            rows = results.setdefault(name, {"shape": shape, "accuracy": {}, "seconds": {}})
            for estimator in ESTIMATORS:
                if name in TABLES and estimator == "SpikingRocketClassifier":
                    continue
                accuracy, seconds = trial(estimator, split, seed)
                rows["accuracy"].setdefault(estimator, []).append(accuracy)
                rows["seconds"].setdefault(estimator, []).append(seconds)
                print(f"{name} {seed} {estimator}: {accuracy:.3f} {seconds:.1f} s", flush=True)
        if record is not None:
            record.write_text(json.dumps(results) + "\n", encoding="utf-8")
    return results


def report(results: dict[str, Any]) -> str:
    """The mean accuracies in percent as a table; the best of each set is bold."""
    lines = []
    for name, rows in results.items():
        training, test, *shape = rows["shape"]
        means = {key: 100 * float(np.mean(values)) for key, values in rows["accuracy"].items()}
        cells = []
        for estimator in ESTIMATORS:
            text = f"{means[estimator]:.1f}" if estimator in means else "–"
            cells.append(f"**{text}**" if text == f"{max(means.values()):.1f}" else text)
        lines.append([name, f"{training} / {test}", " x ".join(map(str, shape)), *cells])
    return "\n".join(table(["data", "training / test", "shape", *ESTIMATORS], lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--series", type=Path, help="folder of the .ts files, one folder for each set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="file to write the results to")
    parser.add_argument("--report", type=Path, help="recorded file whose table is printed")
    options = parser.parse_args()
    if options.report is None:
        if options.series is None:
            parser.error("--series or --report is required")
        torch.set_num_threads(1)
        results = measure(options.series, options.seeds, options.record)
    else:
        results = json.loads(options.report.read_text(encoding="utf-8"))
    print(report(results))


if __name__ == "__main__":
    main()
