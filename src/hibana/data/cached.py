"""Spikes on disk as bits, so that recordings are read and binned once."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hibana.data.base import Samples

__all__ = ["AsBits"]


class AsBits(Dataset[tuple[Tensor, ...]]):
    """`samples` of spikes ``[T, ...]`` and labels, kept in a folder as bits when they are first read.

    A sample takes a bit for each neuron and step, in a file of its own, written beside its place and renamed:
    several processes may fill one folder. What the bits depend on is `key`; another one has another folder.

    Args:
        samples: ``(spikes, label)`` by index, all of `shape`.
        shape: of the spikes of one sample.
        folder: where folders of bits lie.
        key: all that decides what the spikes are, in plain types.
    """

    def __init__(
        self, samples: Samples, shape: tuple[int, ...], folder: Path, key: dict[str, object]
    ) -> None:
        said = json.dumps({**key, "shape": shape}, sort_keys=True)
        self.samples, self.shape = samples, shape
        self.folder = folder / hashlib.sha256(said.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(said, encoding="utf-8")

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]  # all splits have a length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        count = int(np.prod(self.shape))
        path = self.folder / f"{index:07}"
        length = 8 + -(-count // 8)
        kept = path.read_bytes() if path.is_file() else b""
        if len(kept) != length:  # not there yet, or cut short
            spikes, label = self.samples[index]
            kept = int(label).to_bytes(8, "little") + np.packbits(spikes.numpy().astype(bool)).tobytes()
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            temporary.write_bytes(kept)
            temporary.replace(path)
        bits = np.unpackbits(np.frombuffer(kept, np.uint8, offset=8), count=count)
        label = torch.tensor(int.from_bytes(kept[:8], "little"), dtype=torch.int64, device="cpu")
        return torch.from_numpy(bits.astype(np.float32)).reshape(self.shape), label
