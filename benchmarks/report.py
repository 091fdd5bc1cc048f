"""From results to a page of tables in Markdown: what was promised beside what came out."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import pictures
from benchmarks.pictures import TITLES, Row

__all__ = ["write"]

_LAYER_PROMISES = {  # ratio to ReLU, heap warm, by size
    "step": {"16x65536": 1.0, "32x262144": 1.0, "100x12800": 1.3},
    "box": {"16x65536": 1.0, "32x262144": 1.0, "100x12800": 1.3},
    "through-reset": {"16x65536": 1.5, "32x262144": 1.4, "100x12800": 1.8},
    "atan": {"16x65536": 1.5, "32x262144": 1.4, "100x12800": 1.8},
    "lif": {"16x65536": 1.5, "32x262144": 1.4, "100x12800": 1.8},
    "inference": {"16x65536": 1.5, "32x262144": 1.15, "100x12800": 1.5},
}
_NETWORK_PROMISES = {  # ratio to the ReLU network, by firing rate
    ("mlp", "training step"): {0.02: 0.25, 0.05: 0.35, 0.1: 0.55, 0.5: 1.1},
    ("mlp", "inference"): {0.02: 0.2, 0.05: 0.3, 0.1: 0.5, 0.5: 1.1},
    ("conv", "training step"): {0.02: 0.5, 0.05: 0.6, 0.1: 0.8, 0.5: 1.1},
}
_FIRST_USE_PROMISES = {"compiled": 3.0, "from the disk cache": 0.1, "after import torch": 0.15}

_Results = dict[str, dict[str, Any]]


def write(out: Path) -> str:
    """Writes ``benchmarks.md`` and its pictures from ``benchmarks/results.json`` in `out`; returns the page.

    Raises:
        FileNotFoundError: if there are no results there.
    """
    folder = out / "benchmarks"
    results: _Results = json.loads((folder / "results.json").read_text())
    parts: dict[str, list[Row]] = {}
    for name, result in results.items():
        parts.setdefault(_part(name), []).extend(result["rows"])
    drawn = pictures.draw(parts, folder)
    page = "\n".join(_page(results, parts, {name: f"benchmarks/{name}.png" for name in drawn}))
    (out / "benchmarks.md").write_text(page + "\n")
    return page


def _part(job: str) -> str:
    first, second, *_ = [*job.split("/"), ""]
    return f"{first}/{second}" if second in ("compiled", "memory") else first


def _page(results: _Results, parts: dict[str, list[Row]], drawn: dict[str, str]) -> Iterable[str]:
    yield "# Benchmarks\n"
    yield (
        "Written by `python -m benchmarks` in a checkout: it makes an environment with the pinned peers in "
        "it, checks that hibana agrees with its reference loop, and only then measures, everybody in turn, "
        "round after round. Times are medians; a ratio is to ReLU in the same run. `python -m benchmarks "
        "--list` names the parts, `--only` runs some of them.\n"
    )
    yield from _provenance(results)
    sections: dict[str, tuple[str, Callable[[list[Row]], Iterable[str]]]] = {
        "layers": ("One layer", _layers),
        "layers/compiled": ("One layer, peers through torch.compile", _layers),
        "layers/memory": ("Memory of one layer", _memory),
        "networks": ("Whole networks, by firing rate", _networks),
        "networks/compiled": ("Whole networks, peers through torch.compile", _networks),
        "networks/memory": ("Memory of a training step, T = 32, 5% firing", _memory),
        "scaling": ("Scaling", _scaling),
        "compile": ("First use", _first_use),
        "training": ("Fashion-MNIST, trained", _training),
    }
    for name, (title, section) in sections.items():
        if name in parts:
            yield f"## {title}\n"
            if name in drawn:
                yield f"![{title}]({drawn[name]})\n"
            yield from section(parts[name])
            yield from (
                f"**Not timed:** {_where(row)}: {row['error']}\n" for row in parts[name] if "error" in row
            )
    if "layers" in parts:
        yield "## What was compared\n"
        used = {
            row["is"] for row in parts["layers"] if "is" in row and row["contender"] not in ("relu", "hibana")
        }
        yield from (f"- `{described}`" for described in sorted(used))


def _provenance(results: _Results) -> Iterable[str]:
    abouts = [result["about"] for result in results.values()]
    newest = max(abouts, key=lambda about: str(about["when"]))
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    commits = sorted({about["versions"]["hibana"] for about in abouts})
    yield f"{newest['processor']}; {newest['threads']} threads; {versions}.\n"
    if len(commits) > 1:
        yield f"Some parts were measured at other states of hibana: {', '.join(commits)}.\n"
    disturbed = [
        f"{name} ({result['about']['others']:.0%} of it)"
        for name, result in results.items()
        if result["about"]["others"] > 0.02
    ]
    if disturbed:
        yield f"Other programs used the processor during {', '.join(disturbed)}.\n"
    if any(about["quick"] for about in abouts):
        yield "**Quick runs are among these: they show that it works, not how fast it is.**\n"
    missing = {peer: why for about in abouts for peer, why in about["missing"].items()}
    yield from (f"**{TITLES[peer]} is missing:** {why}\n" for peer, why in missing.items())


def _where(row: Row) -> str:
    return ", ".join(
        str(row[key]) for key in ("size", "shape", "case", "network", "rate", "contender") if key in row
    )


def _layers(rows: list[Row]) -> Iterable[str]:
    """A table for each pass and heap: the ratio to ReLU of everybody, by neuron and size."""
    for heap, kind in (
        ("warm", "forward+backward"),
        ("warm", "inference"),
        ("cold", "forward+backward"),
        ("cold", "inference"),
    ):
        groups = _grouped(
            [row for row in rows if row.get("pass") == kind and row["heap"] == heap], "case", "size"
        )
        if groups:
            yield f"**{kind}, heap {heap}**, as ratios to ReLU {'forward' if kind == 'inference' else kind}\n"
            yield from _ratios(
                ["neuron", "size"],
                {
                    (pictures.CASE_TITLES[case], size.replace("x", " x ")): group
                    for (case, size), group in groups.items()
                },
                [
                    _LAYER_PROMISES["inference" if kind == "inference" else case].get(size)
                    if heap == "warm"
                    else None
                    for case, size in groups
                ],
            )


def _networks(rows: list[Row]) -> Iterable[str]:
    groups = _grouped([row for row in rows if "ms" in row], "network", "pass", "rate")
    yield "As ratios to the ReLU network in the same run.\n"
    yield from _ratios(
        ["network", "pass", "firing"],
        {
            (pictures.NETWORK_TITLES[network], kind, f"{rate:.0%}"): group
            for (network, kind, rate), group in groups.items()
        },
        [_NETWORK_PROMISES.get((network, kind), {}).get(rate) for network, kind, rate in groups],
    )


def _ratios(
    heads: list[str], groups: dict[tuple[str, ...], dict[str, Row]], promises: list[float | None]
) -> list[str]:
    """One line a group: ReLU in milliseconds, others as ratios to it, the best peer against hibana."""
    seen = {name for group in groups.values() for name in group}
    others = [name for name in TITLES if name in seen and name != "relu"]
    promised = any(promise is not None for promise in promises)
    head = [*heads, "ReLU, ms", *(TITLES[name] for name in others)]
    head += [*(["promised"] if promised else []), "fastest peer / hibana"]
    lines = []
    for (keys, group), promise in zip(groups.items(), promises, strict=True):
        relu = group["relu"]["ms"]
        cells = [_number(group[name]["ms"] / relu) if name in group else "–" for name in others]
        rivals = [group[name]["ms"] for name in others if name in pictures.PEERS and name in group]
        ahead = min(rivals) / group["hibana"]["ms"] if rivals and "hibana" in group else None
        line = [*keys, _number(relu), *cells]
        line += [*([f"≤ {promise:g}" if promise else ""] if promised else [])]
        lines.append([*line, f"{ahead:.1f}" if ahead else "–"])
    return _table(head, lines)


def _memory(rows: list[Row]) -> Iterable[str]:
    """Megabytes above the baseline of a process of its own."""
    what = "case" if "case" in rows[0] else "network"
    groups = _grouped(rows, what)
    names = [name for name in TITLES if any(name in group for group in groups.values())]
    titles = pictures.CASE_TITLES | pictures.NETWORK_TITLES
    size = f", {rows[0]['size'].replace('x', ' x ')}" if "size" in rows[0] else ""
    yield "Peak of a process above what it held before, in MB.\n"
    yield from _table(
        [what if what == "network" else "neuron", *(TITLES[name] for name in names)],
        [
            [titles[key] + size, *(_number(group[name]["mb"]) if name in group else "–" for name in names)]
            for (key,), group in groups.items()
        ],
    )


def _scaling(rows: list[Row]) -> Iterable[str]:
    for along in ("steps", "neurons"):
        ours = [
            row for row in rows if row.get("along") == along and row["contender"] == "hibana" and "ms" in row
        ]
        if len(ours) > 1:
            first, last = ours[0], ours[-1]
            axis = 0 if along == "steps" else 1
            grown, slower = last["shape"][axis] / first["shape"][axis], last["ms"] / first["ms"]
            yield (
                f"{along.capitalize()}: from {first['shape'][axis]:,} to {last['shape'][axis]:,} "
                f"({grown:,.0f} times) hibana takes {slower:,.0f} times as long.\n"
            )
    call = [row for row in rows if "along" not in row]
    if call:
        yield "**What a call costs**: forward at [1, 10]\n"
        yield from _table(["", "µs"], [[row["contender"], f"{row['ms'] * 1e3:.1f}"] for row in call])


def _first_use(rows: list[Row]) -> Iterable[str]:
    lines = []
    for row in rows:
        promise = next(limit for words, limit in _FIRST_USE_PROMISES.items() if row["what"].endswith(words))
        lines.append([row["what"], f"{row['s']:.3f}", f"≤ {promise:g}"])
    yield from _table(["", "s", "promised"], lines)


def _training(rows: list[Row]) -> Iterable[str]:
    lines = []
    for name in TITLES:
        for row in (row for row in rows if row["contender"] == name and "epoch_s" in row):
            seconds = sorted(row["epoch_s"])[len(row["epoch_s"]) // 2]
            firing = "–" if name == "relu" else f"{row['firing']:.1%}"
            lines.append(
                [TITLES[name], f"{seconds:.1f}", f"{row['accuracy']:.2%}", firing, str(row["epochs"])]
            )
    yield from _table(["", "s per epoch", "test accuracy", "hidden firing", "epochs"], lines)


def _grouped(rows: list[Row], *keys: str) -> dict[tuple[Any, ...], dict[str, Row]]:
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), {})[row["contender"]] = row
    return groups


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(head: list[str], lines: list[list[str]]) -> list[str]:
    rule = ["---" if index == 0 else "---:" for index in range(len(head))]
    return [*(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)), ""]
