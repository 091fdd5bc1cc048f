"""The example that compares rules: its loss, and the selection of settings."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

FOLDER = str(Path(__file__).parents[2] / "examples")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import learning_online

    yield learning_online
    for name in ("learning_online", "recall", "training"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("chunk", [3, 7, 10])
def test_the_loss_of_the_last_steps_is_the_sum_of_its_chunks(example, chunk):
    torch.manual_seed(0)
    outputs, labels = torch.randn(10, 4, 3), torch.randint(3, (4,))
    loss = example.chunk_loss(labels, 6, 4)
    parts = [loss(first, outputs[first : first + chunk]) for first in range(0, 10, chunk)]
    total = sum(part for part in parts if part is not None)
    losses = [functional.cross_entropy(y, labels) for y in outputs[6:]]
    torch.testing.assert_close(total, torch.stack(losses).mean())


def test_the_first_seed_selects_settings_by_validation(example, monkeypatch, tmp_path):
    def run(task, kind, readout, rule, seed, settings):
        accuracy = 0.5 + settings.learning_rate
        labels = {"task": task.name, "network": kind, "readout": readout, "rule": rule, "seed": seed}
        results = {"epochs": 12, "validation": accuracy, "test": 0.9 - accuracy + seed / 10}
        return {**labels, **settings._asdict(), **results}

    monkeypatch.setattr(example, "run", run)
    task = example.TASKS["mnist-1d"]
    rows = list(example.runs(task, "recurrent", "leaky", "pp-prop", [0, 1, 2], [0.1, 0.2], [0.8, 0.9]))
    settings = [(row["seed"], row["learning_rate"], row["decay"]) for row in rows]
    first = [(0, 0.1, 0.8), (0, 0.1, 0.9), (0, 0.2, 0.8), (0, 0.2, 0.9)]
    assert settings == [*first, (1, 0.2, 0.8), (2, 0.2, 0.8)]
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = example.table(path).splitlines()[-1]
    runs = "30.0% (20.0%, 30.0%, 40.0%); decay 0.8"
    assert last == f"| leaky | mnist-1d | recurrent | 12 | 0.2 | – | – | – | – | {runs} |"
