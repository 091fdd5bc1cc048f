"""The part of the report about recurrent networks: everybody's times, and hibana's beside them."""

from collections.abc import Iterable, Iterator

from benchmarks import pictures, promises
from benchmarks.tables import Row, bold, grouped, number, table

__all__ = ["section"]

_OURS = {"hibana": "Step", "hibana-box": "Box", "hibana-atan": "ATan"}
_EAGER = ("snntorch", "spikingjelly", "norse", "sinabs")


def section(rows: list[Row]) -> Iterable[str]:
    """Milliseconds by size and pass, then how many times faster hibana is, and at which density."""
    yield (
        "A network 700 → H recurrent neurons → 20, its input spikes of 2% of the 700, its recurrent neurons "
        "leaky, with a reset to zero through which no gradient flows. A training step is forward, cross "
        "entropy of the mean over time, and backward. GRU, LSTM and RNN are torch's, as wide, on the same "
        "input. Whether a neuron spikes decides what hibana takes, and nothing of what the others take.\n"
    )
    groups = grouped([row for row in rows if "ms" in row], "size", "pass")
    names = [name for name in pictures.TITLES if any(name in group for group in groups.values())]
    titles = {**pictures.TITLES, "hibana": "**hibana, Step**"}
    if groups:
        yield "**Milliseconds**\n"
        lines = [
            [_of(size), kind, *(number(group[name]["ms"] if name in group else None) for name in names)]
            for (size, kind), group in groups.items()
        ]
        yield from table(["T, batch, H", "pass", *(titles[name] for name in names)], lines)
        yield (
            "**How many times faster hibana is.** The gradient comes back to the neurons in the surrogate's "
            "window only; without a gradient the surrogate does not matter.\n"
        )
        head = ["T, batch, H", "pass", "surrogate", "firing", "in the window", "than GRU", "promised"]
        lines = [line for (size, kind), group in groups.items() for line in _ahead(size, kind, group)]
        yield from table([*head, "than the fastest eager peer", "promised", "than spyx"], lines)


def _ahead(size: str, kind: str, group: dict[str, Row]) -> Iterator[list[str]]:
    """A line for each of hibana's surrogates."""
    for name, surrogate in _OURS.items():
        if name not in group:
            continue
        row = group[name]
        rivals = [group[peer]["ms"] for peer in _EAGER if peer in group]
        than_gru, than_peer, than_spyx = (
            ms / row["ms"] if ms else None
            for ms in (_ms(group, "gru"), min(rivals, default=None), _ms(group, "spyx"))
        )
        everywhere = row["window"] == 1  # nothing is promised of a gradient that matters everywhere
        of_gru = None if everywhere else promises.recurrent(size)
        of_peer = None if everywhere else promises.RECURRENT_AHEAD
        inference = kind == "inference"
        yield [
            _of(size),
            kind,
            "–" if inference else surrogate,
            f"{row['firing']:.1%}",
            "–" if inference else f"{row['window']:.1%}",
            bold(than_gru),
            promises.kept(than_gru, at_least=of_gru),
            number(than_peer),
            promises.kept(than_peer, at_least=of_peer) if promises.recurrent(size) else "",
            number(than_spyx),
        ]


def _ms(group: dict[str, Row], name: str) -> float | None:
    return group[name]["ms"] if name in group else None


def _of(size: str) -> str:
    return size.replace("x", ", ")
