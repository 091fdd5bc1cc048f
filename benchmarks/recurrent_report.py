"""The report's section of :mod:`benchmarks.recurrent`: times of recurrent networks, and hibana's speedups."""

from collections.abc import Iterable, Iterator

from benchmarks import pictures, promises
from benchmarks.tables import Row, bold, grouped, number, table

__all__ = ["section"]

_OURS = {"hibana": "Step", "hibana-box": "Box", "hibana-atan": "ATan"}
_EAGER = ("snntorch", "spikingjelly", "norse", "sinabs")


def section(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: milliseconds by size and pass, then hibana's speedups by surrogate."""
    yield (
        "A network 700 → H recurrent neurons → 20. In each step 2% of the inputs spike. The neurons are "
        "leaky, with a detached reset to zero. A training step is forward, cross entropy of the mean over "
        "time and backward. GRU, LSTM and RNN are torch's, with the same width and input. Only hibana's "
        "time depends on the firing rate.\n"
    )
    groups = grouped([row for row in rows if "ms" in row], "size", "pass")
    names = [name for name in pictures.TITLES if any(name in group for group in groups.values())]
    titles = {**pictures.TITLES, "hibana": "**hibana, Step**"}
    if groups:
        yield "**Milliseconds**\n"
        lines = [
            [
                _size_text(size),
                kind,
                *(number(group[name]["ms"] if name in group else None) for name in names),
            ]
            for (size, kind), group in groups.items()
        ]
        yield from table(["T, batch, H", "pass", *(titles[name] for name in names)], lines)
        yield (
            "**Speedup of hibana.** Only neurons within the surrogate's window receive a gradient; in "
            "inference the surrogate is not used.\n"
        )
        head = ["T, batch, H", "pass", "surrogate", "firing", "in the window", "over GRU", "promised"]
        lines = [line for (size, kind), group in groups.items() for line in _speedup_rows(size, kind, group)]
        yield from table([*head, "over the fastest eager peer", "promised", "over spyx"], lines)


def _speedup_rows(size: str, kind: str, group: dict[str, Row]) -> Iterator[list[str]]:
    """Rows of the table of speedups: one for each of hibana's surrogates."""
    for name, surrogate in _OURS.items():
        if name not in group:
            continue
        row = group[name]
        rivals = [group[peer]["ms"] for peer in _EAGER if peer in group]
        over_gru, over_peer, over_spyx = (
            ms / row["ms"] if ms else None
            for ms in (_milliseconds(group, "gru"), min(rivals, default=None), _milliseconds(group, "spyx"))
        )
        has_full_gradient = row["window"] == 1  # for these surrogates there is no promise
        promised_over_gru = None if has_full_gradient else promises.recurrent(size)
        promised_over_peer = None if has_full_gradient else promises.RECURRENT_SPEEDUP
        inference = kind == "inference"
        yield [
            _size_text(size),
            kind,
            "–" if inference else surrogate,
            f"{row['firing']:.1%}",
            "–" if inference else f"{row['window']:.1%}",
            bold(over_gru),
            promises.check_mark(over_gru, at_least=promised_over_gru),
            number(over_peer),
            promises.check_mark(over_peer, at_least=promised_over_peer) if promises.recurrent(size) else "",
            number(over_spyx),
        ]


def _milliseconds(group: dict[str, Row], name: str) -> float | None:
    return group[name]["ms"] if name in group else None


def _size_text(size: str) -> str:
    return size.replace("x", ", ")
