"""The model card of a network: what it learned, how well, at what firing and operations, and how to use it.

What was measured comes from a run's result, or from :func:`measured`. Nothing here writes a file.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from hibana.nn import loss
from hibana.train.folder import RESULT
from hibana.train.settings import IN_MEMORY, Settings
from hibana.train.start import activity

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train.network import Network

__all__ = ["Facts", "kept", "measured", "portable", "text"]

_BEGIN, _END = "<!-- written by hibana -->", "<!-- end of what hibana wrote -->"
_TAGS = ["hibana", "spiking-neural-network", "pytorch"]
_LISTED = 40
"""Classes that a card names."""


@dataclass(frozen=True)
class Facts:
    """What a network came to on samples that it was not trained on.

    `measure` is what `value` is: ``accuracy``, or of a quantity ``explained``, the part of its variance;
    `rates` are spikes per neuron and step by layer; `samples` how many there were, where that is known;
    `acs` and `macs` additions and multiply-accumulates per sample, where they were counted.
    """

    measure: str
    value: float
    rates: dict[str, float]
    samples: int | None = None
    acs: float | None = None
    macs: float | None = None


def kept(folder: Path) -> Facts | None:
    """The result that the run in `folder` kept; ``None`` where there is none that can be read."""
    try:
        said = json.loads((folder / RESULT).read_bytes())
        rates = {str(name): float(rate) for name, rate in said["rates"].items()}
        return Facts(str(said["measure"]), float(said["value"]), rates)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@torch.no_grad()
def measured(model: "Network", samples: "DataSet") -> Facts:
    """Accuracy, firing and operations of `model` on the test part of `samples`."""
    from hibana.nn import metrics

    samples.prepare_data()
    samples.setup()
    was_training = model.training
    model.eval().seed_evaluation()
    operations, rates = metrics.SynOps(), dict[str, metrics.FiringRate]()
    scores, labels = [], []
    for inputs, wanted, *lengths in samples.test_dataloader():
        with operations.watch(model.net, *lengths):
            outputs, spikes = activity(model.net, model.encode(inputs), *lengths)
        for name, layer in spikes.items():
            rates.setdefault(name, metrics.FiringRate()).update(layer, *lengths)
        scores.append(model.objective.scores(outputs, *lengths))
        labels.append(wanted)
    model.train(was_training)
    answers, right = torch.cat(scores), torch.cat(labels)
    if model.is_regression:
        measure, value = "explained", loss.r_squared(answers[:, 0], right)
    else:
        measure, value = "accuracy", float((answers.argmax(1) == right).float().mean())
    each = {name: rate.compute().item() for name, rate in rates.items()}
    counted = operations.compute()
    return Facts(measure, value, each, len(right), counted["acs"].item(), counted["macs"].item())


def portable(settings: Settings) -> dict[str, Any]:
    """`settings` by name, without the folders of the machine that they were used on.

    >>> portable(Settings(data="/home/me/flowers.csv", kind="table"))["data"]
    './flowers.csv'
    """
    said = {**asdict(settings), "root": None}
    if settings.kind is not None:
        for name in ("data", "test"):
            if said[name] not in (None, IN_MEMORY):
                said[name] = f"./{Path(said[name]).name}"
    return said


def text(model: "Network", facts: Facts | None, name: str, before: str = "") -> str:
    """The card of `model`, called `name`; of a card `before` it, what hibana did not write stays."""
    part = f"{_BEGIN}\n{_rows(model, facts)}\n{_usage(name)}{_END}"
    head, begin, rest = before.partition(_BEGIN)
    if begin and _END in rest:
        return f"{head}{part}{rest.partition(_END)[2]}"
    if before:
        return before
    front = yaml.safe_dump({"library_name": "hibana", "tags": _TAGS}, sort_keys=False)
    return f"---\n{front}---\n# {name}\n\n{part}\n"


def _rows(model: "Network", facts: Facts | None) -> str:
    """A table of what is known of the network."""
    settings = model.settings
    data = _plain(portable(settings)["data"])
    count = sum(parameter.numel() for parameter in model.parameters())
    each = "x".join(map(str, model.hyper["shape"]))
    rows = [
        ("data", f"`{data}`, {settings.what}, {each} at each of {settings.steps} steps"),
        ("answers", _answers(model)),
        ("network", f"`{_plain(settings.layers)}` of {settings.cell}, {settings.coding} coding"),
        ("parameters", f"{count:,}"),
    ]
    if facts is None:
        rows.append(("accuracy", "not measured"))
    else:
        on = "its test part" if facts.samples is None else f"{facts.samples:,} samples of its test part"
        right = "of the variance explained" if facts.measure == "explained" else "right"
        rows.append(("accuracy", f"{facts.value:.1%} {right}, on {on}"))
        rates = ", ".join(f"`{name}` {rate:.1%}" for name, rate in facts.rates.items())
        rows.append(("firing", f"{rates} (spikes per neuron and step)" if rates else "no layer spikes"))
    if facts is not None and facts.acs is not None and facts.macs is not None:
        counted = f"{facts.acs:,.0f} additions, {facts.macs:,.0f} multiply-accumulates a sample"
        rows.append(("operations", counted))
    else:
        rows.append(("operations", "not counted"))
    lines = [f"| {what} | {_cell(said)} |" for what, said in rows]
    return "\n".join(["A spiking network for PyTorch, trained by hibana.", "", "| | |", "|---|---|", *lines])


def _answers(model: "Network") -> str:
    target = None if model.description is None else model.description.target
    if target is None:
        return f"{model.hyper['classes']} classes"
    if not target.classes:
        return f"a quantity, `{_plain(target.name)}`"
    named = ", ".join(f"`{_plain(each)}`" for each in target.classes[:_LISTED])
    more = len(target.classes) - _LISTED
    return f"`{_plain(target.name)}`: {named}{f' and {more} more' if more > 0 else ''}"


def _usage(name: str) -> str:
    return f"""
## Use

`pip install '.[train,hub]'` in a clone of hibana, then, for a folder or a name on the Hub:

```python
import hibana as hb

model = hb.train.Network.from_pretrained("{_plain(name)}")
answers = hb.train.predict(model, "samples")  # a file or folder of the kind that was trained on
```
"""


def _plain(text: object) -> str:
    """`text` without what Markdown and Python would take for more than letters."""
    return "".join(each if each.isprintable() and each not in '`"|<>\\' else "?" for each in str(text))


def _cell(said: str) -> str:
    return said.replace("\n", " ")
