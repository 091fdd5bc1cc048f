"""The network that the command ``convert`` reads, its samples, and the data in a file for a NIR network."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hibana.train import Network

MAX_SAMPLES = 64
"""Samples of the training set on which firing rates and ranges are measured."""
_REDUCTIONS = {
    **dict.fromkeys(("rate", "count", "membrane-mean", "tet"), "sum"),
    **{"membrane-max": "max", "membrane-last": "last", "first-spike": "first"},
}
"""For each loss, the reduction of the outputs over time that a converted program uses as scores."""


class Source:
    """A network to convert, from a checkpoint or from a NIR file, which has no settings.

    Attributes:
        model: the trained network; ``None`` for a NIR file.
        net: the layers of the network.
        shape: shape of one step of one input.
        scores: the reduction of a program's outputs over time: ``sum``, ``max``, ``last`` or ``first``.
        data: for a NIR file, all inputs of the user's data, ``[T, N, *shape]``, if there are any.
        labels: the classes of these inputs, ``[N]``, if the data have them.
    """

    def __init__(
        self, path: Path, dt: float | None, trust: tuple[str, ...], data: Path | None, steps: int | None
    ) -> None:
        self.model: Network | None = None
        self.scores, self.title = "sum", path.name
        self.data: Tensor | None = None
        self.labels: Tensor | None = None
        if path.suffix == ".nir":
            from hibana.network import nir

            self.net: Any = nir.read(path, dt=dt)
            self.shape: tuple[int, ...] = self.net.meta["input_shape"]
            if data is not None:
                outputs = self.net(self.zeros(1)).numel()
                self.data, self.labels = read_data(data, self.shape, outputs, steps)
            return
        from hibana.train import load

        self.model = load(path, trust=trust)
        self.net, self.shape = self.model.net, self.model.shape
        self.scores, self.title = _REDUCTIONS[self.model.settings.loss], self.model.settings.title

    def zeros(self, steps: int, batch: int = 1) -> "Tensor":
        """Returns an input of zeros, ``[steps, batch, *shape]``."""
        import torch

        return torch.zeros(steps, batch, *self.shape, dtype=torch.float32, device="cpu")

    def samples(self, purpose: str, split: str = "training", largest: int = MAX_SAMPLES) -> "Tensor":
        """Returns encoded samples, ``[T, N, *shape]``.

        Of a checkpoint, these are `largest` samples of the training, validation or test set. Of a NIR file,
        they are all samples of the user's data, or `largest` of them for the test set.

        Raises ValueError if a NIR file comes without data; the message starts with `purpose`.
        """
        import torch

        if self.model is None:
            if self.data is None:
                sizes = ", ".join(map(str, self.shape))
                raise ValueError(
                    f"{purpose}, and a NIR file has none; pass --data FILE with about {MAX_SAMPLES} samples "
                    f"of the training set: an .npy or .npz file with inputs [steps, samples, {sizes}], or a "
                    f"table with {math.prod(self.shape)} columns, a row per step and --steps rows per sample"
                )
            return self.data[:, :largest] if split == "test" else self.data
        samples = self.model.settings.samples(self.model.description)
        samples.prepare_data()
        samples.setup()
        part = getattr(samples, split)
        count = min(largest, len(part))
        self.model.seed_evaluation()
        return self.model.encode(torch.stack([part[i][0] for i in range(count)]))

    def quantized(self, bits: int) -> Any:
        """Returns the network in integers; prints how well it agrees with the original."""
        from hibana.network import quantize

        samples = self.samples("--bits needs samples to measure the range of inputs")
        net, report = quantize(self.net, samples, bits)
        print(report)
        return net

    def outcome(self, outputs: "Tensor") -> "Tensor":
        """Returns the scores of the classes, of `outputs` ``[T, N, ...]``; a NIR network sums them."""
        return outputs.sum(0).flatten(1) if self.model is None else self.model.objective.scores(outputs)

    def accuracy(self, net: "nn.Module") -> str:
        """Returns a line with the accuracy on the labelled data, and that of `net` if it is quantized."""
        import torch

        if self.data is None or self.labels is None:
            return f"no accuracy: {'no --data' if self.data is None else '--data has no labels'}"
        with torch.no_grad():
            answers = [self.outcome(each(self.data)).argmax(1) for each in dict.fromkeys((self.net, net))]
        shares = [f"{float((classes == self.labels).double().mean()):.2%}" for classes in answers]
        kinds = " in floats, ".join(shares) + (" in floats" if net is self.net else " in integers")
        return f"accuracy on the {len(self.labels):,} samples of --data: {kinds}"


def read_data(
    path: Path, shape: tuple[int, ...], outputs: int, steps: int | None
) -> tuple["Tensor", "Tensor | None"]:
    """Returns the inputs in a file, ``[T, N, *shape]``, and their labels, ``[N]``, or ``None``.

    Args:
        path: an ``.npy`` file, or an ``.npz`` file with ``inputs`` and maybe ``labels``; or a table, such as
            a ``.csv`` file, with a row per step, and maybe a column ``label``. Inputs in arrays are
            ``[T, N, *shape]``, or ``[N, *shape]`` if each sample is the same in all `steps`.
        shape: shape of one step of one input.
        outputs: number of classes.
        steps: time steps of a sample. ``None``: those of the arrays, or all rows of a table.

    Raises:
        ValueError: if the file can't be read, or its inputs or labels have another shape or range.
    """
    import numpy as np
    import torch

    from hibana.data.user_data.arrays import read_arrays

    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    is_array = path.suffix.lower() in (".npy", ".npz")
    arrays = read_arrays(path) if is_array else _read_steps(path, steps)
    if "inputs" not in arrays:
        raise ValueError(f"--data must have an array 'inputs', {path} has {', '.join(arrays)}")
    inputs, labels = arrays["inputs"], arrays.get("labels")
    if steps is not None and inputs.shape[1:] == shape:
        inputs = np.broadcast_to(inputs, (steps, *inputs.shape))
    size, sizes = math.prod(shape), ", ".join(map(str, shape))
    if inputs.shape[2:] not in (shape, (size,)) or not inputs.size or steps not in (None, len(inputs)):
        raise ValueError(
            f"--data must have inputs [{steps or 'steps'}, samples, {sizes}], or [samples, {sizes}] with "
            f"--steps, or be a table with {size} columns and a row per step; {path} has {[*inputs.shape]}"
        )
    if inputs.dtype.kind not in "biuf" or not np.isfinite(inputs).all():
        raise ValueError(f"--data must have finite numbers, {path} has others, of {inputs.dtype}")
    samples = inputs.shape[1]
    inputs = torch.from_numpy(inputs.reshape(-1, samples, *shape).astype("float32"))
    if labels is None:
        return inputs, None
    if labels.dtype.kind not in "iu" or labels.shape != (samples,) or {*labels} - {*range(outputs)}:
        raise ValueError(
            f"labels in --data must be whole numbers from 0 to {outputs - 1}, one for each of {samples:,} "
            f"samples; {path} has {labels.dtype} {[*labels.shape]}, such as {labels.flat[0]}"
        )
    return inputs, torch.from_numpy(labels.astype("int64"))


def _read_steps(path: Path, steps: int | None) -> dict[str, Any]:
    """Returns the inputs ``[T, N, F]``, and maybe the labels ``[N]``, in a table with a row per step."""
    from hibana.data.user_data.table_files import read_table

    table, _ = read_table(path)
    steps = steps or len(table)
    if len(table) % steps:
        raise ValueError(
            f"--data must have {steps} rows per sample (--steps); {path} has {len(table):,} rows"
        )
    arrays: dict[str, Any] = {}
    if "label" in table:
        labels = table.pop("label").to_numpy().reshape(-1, steps)
        if (labels != labels[:, :1]).any():
            raise ValueError(f"label in {path} must be the same in all {steps} rows of a sample (--steps)")
        arrays["labels"] = labels[:, 0]
    return {**arrays, "inputs": table.to_numpy().reshape(-1, steps, table.shape[1]).swapaxes(0, 1)}
