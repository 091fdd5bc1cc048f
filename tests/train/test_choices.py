"""Each choice that an option lists: one epoch on tiny data, and the checkpoint is used again."""

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
    """Data of each kind in `folder`, with two classes or numbers, and the options that they need."""
    drawn = np.random.default_rng(0)
    labels = np.arange(40) % 2
    table = "\n".join(f"{drawn.normal():.3f},{drawn.normal():.3f},{label}" for label in labels)
    (folder / "table.csv").write_text(f"a,b,y\n{table}\n")
    rows = "\n".join(
        f"{case},{drawn.normal():.3f},{label}" for case, label in enumerate(labels) for _ in "123"
    )
    (folder / "sequences.csv").write_text(f"case,a,y\n{rows}\n")
    np.savez(folder / "arrays.npz", x=drawn.normal(size=[40, 3]), y=labels)
    for number, label in enumerate(labels):
        for kind, ending in (("images", "pgm"), ("events", "h5"), ("sound", "wav")):
            place = folder / kind / "ab"[label] / f"{number}.{ending}"
            place.parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                place.write_bytes(b"P5 4 4 255\n" + drawn.bytes(16))
                continue
            if kind == "sound":
                soundfile.write(place, drawn.normal(size=800), 8000)
                continue
            with h5py.File(place, "w") as file:
                for name, high in (("t", 100), ("x", 4), ("y", 4), ("p", 2)):
                    values = drawn.integers(0, high, 20)
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
    },
    **{"bins": "events", "delta": "sequences", "coding none": "sequences"},
    "roll": "events",
}
"""What data an option, a coding or an augmentation is of; the digits unless it is named here."""
QUICK = ("precision",)
WHOLE = ("kind", "loss", "coding")
"""Options of whose choices each takes another way through a training; of others three stand for the rest."""


def marks(name, choice):
    choices = list(CHOICES[name])
    stands = name in WHOLE or choice in (choices[0], choices[len(choices) // 2], choices[-1])
    return [pytest.mark.slow] * (name not in QUICK) + [pytest.mark.exhaustive] * (not stands)


EACH = [
    pytest.param(name, choice, marks=marks(name, choice), id=f"{name}-{choice}")
    for name, choices in CHOICES.items()
    for choice in choices
]


def spiking(shape, classes, cell):
    """Outputs that spike, for the loss that asks for them."""
    return nn.Sequential(nn.Flatten(2), nn.Linear(64, classes), layers.OverTime(cell()))


@pytest.mark.parametrize(("name", "choice"), EACH)
def test_each_choice_trains_and_its_checkpoint_predicts(name, choice, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kinds = sources(tmp_path)
    named = f"{name} {choice}" if choice == "none" else choice
    of = choice if name == "kind" else KIND_OF.get(named if name in ("coding", "augment") else name)
    options, trust = [*TINY, *(kinds[of] if of else [])], []
    if choice == "first-spike":
        monkeypatch.setitem(sys.modules, "outputs", types.SimpleNamespace(spiking=spiking))
        trust = ["--trust", "outputs:spiking"]
        options[options.index("--layers") + 1] = "outputs:spiking"
    if name == "rewire":  # moves synapses of sparse layers
        options += ["--connectivity", "0.5"]
    given = ["train", *options, f"--{name.replace('_', '-')}", choice, "--out", "run"]
    if choice == "16-mixed":  # which only GPUs compute with
        assert main(given) == 2
        assert "precision 16-mixed needs a GPU" in capsys.readouterr().err
        return
    assert main(given) == 0
    assert main(["predict", "run", *trust]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed or "of the variance explained" in printed
