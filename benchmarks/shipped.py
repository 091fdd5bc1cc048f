"""Trains the network that comes with hibana, for the playground: ``python -m benchmarks.shipped``.

As ``hibana train --layers 64,64 --seed 0``; of the checkpoint, what using the network needs is kept.
"""

import tempfile
from pathlib import Path

import torch

from hibana.cli import main
from hibana.cli.play.network import SHIPPED
from hibana.train import checkpoint

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if main(["train", "--layers", "64,64", "--seed", "0", "--out", folder]):
            raise SystemExit(1)
        content = torch.load(Path(folder) / "checkpoint.ckpt", weights_only=True)
    content = {name: content[name] for name in ("hyper_parameters", "state_dict")}
    SHIPPED.parent.mkdir(exist_ok=True)
    checkpoint.write(content, SHIPPED)
    print(f"{SHIPPED}: {SHIPPED.stat().st_size:,} bytes")
