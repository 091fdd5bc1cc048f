"""MNIST-1D: short sequences that its authors' package generates."""

from types import SimpleNamespace
from typing import Any, final

import numpy as np
import torch
from torch.nn import functional

from hibana.data.base import DataSet, InMemory, Samples, check_steps

__all__ = ["MNIST1D"]


@final
class MNIST1D(DataSet):
    """MNIST-1D: ten shapes of 12 points, padded, moved, sheared and noisy, as 40 values one after another.

    Made by its authors' package `mnist1d` from its default settings and seed; nothing is downloaded. The test
    set is theirs, the last 1,000 of the 5,000; validation is the 400 before them; training the first 3,600.

    Args:
        batch_size: samples in a batch, over all processes together.
        steps: 40, or what the values are stretched to linearly.

    Raises:
        ModuleNotFoundError: on :meth:`setup`, if `mnist1d` is not installed.

    Source: Greydanus & Kobak (2024), *Scaling down deep learning with MNIST-1D*.
    """

    shape = (1,)
    classes = 10
    sequential = True
    usual_steps = 40

    def __init__(self, batch_size: int = 64, *, steps: int = 40, seed: int = 0, workers: int = 0) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        self.steps = check_steps(steps, 2)

    def splits(self) -> tuple[Samples, Samples, Samples]:
        made = _mnist1d()
        values, labels = (np.concatenate([made[key], made[f"{key}_test"]]) for key in ("x", "y"))
        inputs = torch.from_numpy(values.astype(np.float32))[:, None]  # [N, 1, 40]
        if self.steps != inputs.shape[2]:
            inputs = functional.interpolate(inputs, size=self.steps, mode="linear", align_corners=True)
        targets = torch.from_numpy(labels.astype(np.int64))
        parts = (slice(0, 3600), slice(3600, 4000), slice(4000, None))
        training, validation, test = (InMemory(inputs[part].transpose(1, 2), targets[part]) for part in parts)
        return training, validation, test


def _mnist1d() -> dict[str, Any]:
    """The arrays that the package makes; the global random numbers are left as they were."""
    import random

    from mnist1d import data

    kept = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002 - it seeds them all
    try:
        made: dict[str, Any] = data.make_dataset(SimpleNamespace(**data.get_dataset_args(as_dict=True)))
    finally:
        np.random.set_state(kept[0])  # noqa: NPY002
        random.setstate(kept[1])
        torch.set_rng_state(kept[2])
    return made
