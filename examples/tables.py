"""Small tables beside a linear model: six of scikit-learn's and two that are made here.

``python examples/tables.py --seed 0 1 2`` trains on each what ``hibana train --data TABLE.csv`` does without
an option, and prints the errors on the test parts, mean over the seeds.
"""

import argparse
import tempfile

import numpy as np
import pandas as pd
from sklearn import datasets

import hibana as hb

TABLES = ("diabetes", "linnerud", "iris", "wine", "breast_cancer", "digits", "friedman1", "noisy_classes")


def table(name: str) -> pd.DataFrame:
    """A table whose column ``target`` is to be learned; classes are words."""
    if name == "friedman1":
        x, y = datasets.make_friedman1(400, 10, noise=1.0, random_state=0)
    elif name == "noisy_classes":  # drawn from a softmax: a linear model is the truth
        random = np.random.default_rng(0)
        x, weights = random.normal(size=(400, 10)), random.normal(size=(10, 3)) * 0.6
        y = (x @ weights + random.gumbel(size=(400, 3))).argmax(1)
    else:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        y = y[:, 0] if name == "linnerud" else y  # the weight
    frame = pd.DataFrame(x).rename(columns=lambda column: f"x{column}")
    classes = name not in ("diabetes", "linnerud", "friedman1")
    return frame.assign(target=[f"class {label}" for label in y] if classes else y)


def errors(name: str, seed: int) -> tuple[float, float, float]:
    """Of the network and of the linear model on the test part, and how often a neuron spikes in a step."""
    quantity = "regression" if name == "linnerud" else None  # whose 20 weights could be classes
    samples = hb.data.Table(table(name), label="target", task=quantity, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        model, outcome = hb.train.fit(hb.train.Settings(seed=seed), folder, samples=samples)
    beside = hb.train.linear(model, samples)
    rate = float(np.mean(list(outcome.rates.values())))
    if outcome.error is None or beside.error is None:
        return 1 - outcome.accuracy, 1 - beside.accuracy, rate
    unit = samples.description.target.deviation**2
    return outcome.error * unit, beside.error * unit, rate


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--table", nargs="+", choices=TABLES, default=TABLES)
    options = parser.parse_args()
    print("| table | network | seeds | linear model | network / linear | firing rate |")
    print("|---|---|---|---|---|---|")
    for name in options.table:
        each = [errors(name, seed) for seed in options.seed]
        network, linear, rate = np.mean(each, axis=0)
        seeds = ", ".join(f"{error:.4g}" for error, *_ in each)
        ratio = f"{network / linear:.2f} | {rate:.1%}"
        print(f"| {name} | {network:.4g} | {seeds} | {linear:.4g} | {ratio} |", flush=True)
