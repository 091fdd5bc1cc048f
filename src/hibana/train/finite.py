"""Rejects NaN and infinity in inputs and labels that are held in memory.

Spikes would hide them: a comparison with NaN is false, so a neuron with a NaN current never spikes again, and
the network's output stays finite. :class:`hibana.train.Classifier` checks the batches of other samples.
"""

from hibana import data


def check(samples: data.DataSet) -> None:
    """Checks all samples that are held in memory.

    Raises:
        ValueError: naming part, sample and column of the first value that is not finite.
    """
    for part in ("training", "validation", "test"):
        split = getattr(samples, part)
        if not isinstance(split, data.InMemory):
            continue
        for name, tensor in (("inputs", split.inputs), ("labels", split.labels)):
            is_finite = tensor.isfinite()
            if not bool(is_finite.all()):
                sample, *position = ((~is_finite).nonzero()[0] + 1).tolist()
                column = f", column {position[-1]}" if position else ""
                raise ValueError(
                    f"{name} must be finite numbers, sample {sample} of the {part} part has "
                    f"{tensor[~is_finite][0].item()}{column}, counted from 1; leave the sample out, or put a "
                    f"number there"
                )
