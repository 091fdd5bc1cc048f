"""Networks and linear models on small tables: six of scikit-learn's and two generated ones.

``python examples/tables.py --seed 0 1 2`` trains on each table like ``hibana train --data TABLE.csv`` with
its default options, and prints the mean test error over the seeds.
"""

import argparse
import tempfile

import numpy as np
import pandas as pd
from sklearn import datasets

import hibana as hb

TABLES = ("diabetes", "linnerud", "iris", "wine", "breast_cancer", "digits", "friedman1", "noisy_classes")


def table(name: str) -> pd.DataFrame:
    """Returns the table called `name`, with the labels in column ``target``; class labels are text."""
    if name == "friedman1":
        x, y = datasets.make_friedman1(400, 10, noise=1.0, random_state=0)
    elif name == "noisy_classes":  # drawn from a softmax of a linear function: a linear model is optimal
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
    """Returns the test errors of network and linear model, and spikes per neuron and step."""
    task = "regression" if name == "linnerud" else None  # its 20 distinct weights look like classes
    samples = hb.data.Table(table(name), label="target", task=task, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        model, outcome = hb.train.fit(hb.train.Settings(seed=seed), folder, samples=samples)
    linear = hb.train.linear(model, samples)
    rate = float(np.mean(list(outcome.rates.values())))
    if outcome.error is None or linear.error is None:
        return 1 - outcome.accuracy, 1 - linear.accuracy, rate
    return outcome.error, linear.error, rate


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--table", nargs="+", choices=TABLES, default=TABLES)
    options = parser.parse_args()
    print("| table | network | seeds | linear model | network / linear | firing rate |")
    print("|---|---|---|---|---|---|")
    for name in options.table:
        rows = [errors(name, seed) for seed in options.seed]
        network, linear, rate = np.mean(rows, axis=0)
        seeds = ", ".join(f"{error:.4g}" for error, *_ in rows)
        ratio = f"{network / linear:.2f} | {rate:.1%}"
        print(f"| {name} | {network:.4g} | {seeds} | {linear:.4g} | {ratio} |", flush=True)
