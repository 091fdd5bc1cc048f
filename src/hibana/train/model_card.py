"""The model card of a network: data, accuracy, firing rates, operations, and how to use it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from hibana.nn import loss
from hibana.train.firing_rates import activity
from hibana.train.results import Facts
from hibana.train.settings import IN_MEMORY, Settings

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train.network import Network

__all__ = ["measure", "portable", "text"]

_BEGIN, _END = "<!-- written by hibana -->", "<!-- end of what hibana wrote -->"
_TAGS = ["hibana", "spiking-neural-network", "pytorch"]
_LISTED = 40
"""Most classes that a card names."""


@torch.no_grad()
def measure(model: "Network", samples: "DataSet") -> Facts:
    """Accuracy, firing rates and operations of `model` on the test part of `samples`."""
    from hibana.nn import metrics

    samples.prepare_data()
    samples.setup()
    was_training = model.training
    model.eval().seed_evaluation()
    operations, rates = metrics.SynOps(), dict[str, metrics.FiringRate]()
    batches = []
    for inputs, labels, *lengths in samples.test_dataloader():
        with operations.watch(model.net, *lengths):
            outputs, spikes = activity(model.net, model.encode(inputs), *lengths)
        for name, layer in spikes.items():
            rates.setdefault(name, metrics.FiringRate()).update(layer, *lengths)
        batches.append((model.objective.scores(outputs, *lengths), labels))
    model.train(was_training)
    scores, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    if model.is_regression:
        measure, value = "explained", loss.r_squared(scores[:, 0], labels)
    else:
        measure, value = "accuracy", float((scores.argmax(1) == labels).float().mean())
    counts = operations.compute()
    by_layer = {name: rate.compute().item() for name, rate in rates.items()}
    return Facts(measure, value, by_layer, len(labels), counts["acs"].item(), counts["macs"].item())


def portable(settings: Settings) -> dict[str, Any]:
    """`settings` by name, without the folders of this machine.

    >>> portable(Settings(data="/home/me/flowers.csv", kind="table"))["data"]
    './flowers.csv'
    """
    options = {**asdict(settings), "root": None}
    if settings.kind is not None:
        for name in ("data", "test"):
            if options[name] not in (None, IN_MEMORY):
                options[name] = f"./{Path(options[name]).name}"
    return options


def text(model: "Network", facts: Facts | None, name: str, before: str = "") -> str:
    """The card of `model`, called `name`; text that hibana did not write in the card `before` is kept."""
    part = f"{_BEGIN}\n{_table(model, facts)}\n{_usage(name)}{_END}"
    head, begin, rest = before.partition(_BEGIN)
    if begin and _END in rest:
        return f"{head}{part}{rest.partition(_END)[2]}"
    if before:
        return before
    front = yaml.safe_dump({"library_name": "hibana", "tags": _TAGS}, sort_keys=False)
    return f"---\n{front}---\n# {name}\n\n{part}\n"


def _table(model: "Network", facts: Facts | None) -> str:
    settings = model.settings
    data = _plain(portable(settings)["data"])
    shape = "x".join(map(str, model.hyper["shape"]))
    rows = {
        "data": f"`{data}`, {settings.what}, {shape} at each of {settings.steps} steps",
        "answers": _answers(model),
        "network": f"`{_plain(settings.layers)}` of {settings.cell}, {settings.coding} coding",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "accuracy": "not measured",
        "operations": "not counted",
    }
    if facts is not None:
        part = "its test part" if facts.samples is None else f"{facts.samples:,} samples of its test part"
        right = "of the variance explained" if facts.measure == "explained" else "right"
        rows["accuracy"] = f"{facts.value:.1%} {right}, on {part}"
        rates = ", ".join(f"`{name}` {rate:.1%}" for name, rate in facts.rates.items())
        rows["firing"] = f"{rates} (spikes per neuron and step)" if rates else "no layer spikes"
        if facts.acs is not None and facts.macs is not None:
            rows["operations"] = (
                f"{facts.acs:,.0f} additions, {facts.macs:,.0f} multiply-accumulates a sample"
            )
    lines = [f"| {title} | {value} |" for title, value in rows.items()]
    return "\n".join(["A spiking network for PyTorch, trained by hibana.", "", "| | |", "|---|---|", *lines])


def _answers(model: "Network") -> str:
    target = None if model.description is None else model.description.target
    if target is None:
        return f"{model.hyper['classes']} classes"
    if not target.classes:
        return f"a quantity, `{_plain(target.name)}`"
    names = ", ".join(f"`{_plain(each)}`" for each in target.classes[:_LISTED])
    more = len(target.classes) - _LISTED
    return f"`{_plain(target.name)}`: {names}{f' and {more} more' if more > 0 else ''}"


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
    """`text` with a question mark for each character that Markdown or Python would interpret."""
    return "".join(each if each.isprintable() and each not in '`"|<>\\' else "?" for each in str(text))
