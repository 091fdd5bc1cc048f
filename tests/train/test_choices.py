"""Each choice of each option: one epoch on tiny data, then prediction by the checkpoint."""

import sys
import types

import h5py
import numpy as np
import pytest
from torch import nn

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

pytest.importorskip("soundfile", reason="the extra sound is not installed")

import soundfile

from hibana.cli import main
from hibana.nn import layers
from hibana.train.settings import CHOICES

TINY = ["--layers", "8", "--epochs", "1", "--steps", "4"]


def sources(folder):
    """Writes tiny data of each kind to `folder`, and returns the command-line options that name them."""
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    table = "\n".join(f"{random.normal():.3f},{random.normal():.3f},{label}" for label in labels)
    (folder / "table.csv").write_text(f"a,b,y\n{table}\n")
    rows = "\n".join(
        f"{case},{random.normal():.3f},{label}" for case, label in enumerate(labels) for _ in "123"
    )
    (folder / "sequences.csv").write_text(f"case,a,y\n{rows}\n")
    np.savez(folder / "arrays.npz", x=random.normal(size=[40, 3]), y=labels)
    for number, label in enumerate(labels):
        for kind, ending in (("images", "pgm"), ("events", "h5"), ("sound", "wav")):
            path = folder / kind / "ab"[label] / f"{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                path.write_bytes(b"P5 4 4 255\n" + random.bytes(16))
                continue
            if kind == "sound":
                soundfile.write(path, random.normal(size=800), 8000)
                continue
            with h5py.File(path, "w") as file:
                for name, high in (("t", 100), ("x", 4), ("y", 4), ("p", 2)):
                    values = random.integers(0, high, 20)
                    file[name] = np.sort(values) if name == "t" else values
    return {
        "table": ["--data", "table.csv"],
        "sequences": ["--data", "sequences.csv", "--group", "case"],
        "arrays": ["--data", "arrays.npz"],
        "images": ["--data", "images"],
        "events": ["--data", "events"],
        "sound": ["--data", "sound"],
    }


KIND_OF = {
    **{
        "task": "table",
        "class_weights": "table",
        "lengths": "sequences",
        "scale": "sequences",
    },
    **{"bins": "events", "delta": "sequences", "coding none": "sequences"},
    "roll": "events",
}
"""The kind of data with which an option, a coding or an augmentation is tested; digits if not listed."""
QUICK = ("precision",)
ALL_CHOICES = ("kind", "loss", "coding")
"""Options whose choices all run by default, as each uses other code; of other options, three choices run."""


def marks(name, choice):
    choices = list(CHOICES[name])
    is_default = name in ALL_CHOICES or choice in (choices[0], choices[len(choices) // 2], choices[-1])
    return [pytest.mark.slow] * (name not in QUICK) + [pytest.mark.exhaustive] * (not is_default)


CASES = [
    pytest.param(name, choice, marks=marks(name, choice), id=f"{name}-{choice}")
    for name, choices in CHOICES.items()
    for choice in choices
]


def spiking(shape, classes, cell):
    """A network with spiking outputs, for the loss that needs them."""
    return nn.Sequential(nn.Flatten(2), nn.Linear(64, classes), layers.OverTime(cell()))


@pytest.mark.parametrize(("name", "choice"), CASES)
def test_each_choice_trains_and_its_checkpoint_predicts(name, choice, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kinds = sources(tmp_path)
    key = f"{name} {choice}" if choice == "none" else choice
    kind = choice if name == "kind" else KIND_OF.get(key if name in ("coding", "augment") else name)
    options, trust = [*TINY, *(kinds[kind] if kind else [])], []
    if choice == "first-spike":
        monkeypatch.setitem(sys.modules, "outputs", types.SimpleNamespace(spiking=spiking))
        trust = ["--trust", "outputs:spiking"]
        options[options.index("--layers") + 1] = "outputs:spiking"
    if name == "rewire":  # moves synapses of sparse layers
        options += ["--connectivity", "0.5"]
    arguments = ["train", *options, f"--{name.replace('_', '-')}", choice, "--out", "run"]
    if choice == "16-mixed":  # needs a GPU
        assert main(arguments) == 2
        assert "precision 16-mixed needs a GPU" in capsys.readouterr().err
        return
    assert main(arguments) == 0
    assert main(["predict", "run", *trust]) == 0
    output = capsys.readouterr().out
    assert "accuracy" in output or "of the variance explained" in output
