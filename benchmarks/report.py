"""Writes the report: a page of Markdown tables with the measurements and the promised limits."""

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import (
    cells,
    deep,
    grid_report,
    online,
    pictures,
    plain,
    promises,
    recurrent_report,
    sparse,
    streaming,
)
from benchmarks.pictures import TITLES
from benchmarks.tables import Row, bold, grouped, number, table

__all__ = ["write"]

_Results = dict[str, dict[str, Any]]


def write(out: Path, name: str = "benchmarks") -> str:
    """Writes the report `name`.md and its pictures from `name`/results.json in `out`; returns its text.

    Raises:
        FileNotFoundError: if results.json does not exist.
    """
    folder = out / name
    results: _Results = json.loads((folder / "results.json").read_text())
    parts: dict[str, list[Row]] = {}
    provenances: dict[str, list[Row]] = {}
    for job, result in results.items():
        parts.setdefault(_part_of_job(job), []).extend(result["rows"])
        provenances.setdefault(_part_of_job(job), []).append(result["about"])
    picture_paths = {part: f"{name}/{part}.png" for part in pictures.draw(parts, folder)}
    page = "\n".join(_page(results, parts, provenances, picture_paths, _other_pages(out, name)))
    (out / f"{name}.md").write_text(page + "\n")
    return page


def _other_pages(out: Path, name: str) -> dict[str, str]:
    """The reports of other machines in `out`: their processors by file name."""
    pages = {}
    for path in sorted(out.glob("*/results.json")):
        results: _Results = json.loads(path.read_text())
        if path.parent.name != name and (out / f"{path.parent.name}.md").exists():
            processors = sorted({result["about"]["processor"] for result in results.values()})
            pages[f"{path.parent.name}.md"] = "; ".join(processors)
    return pages


def _part_of_job(job: str) -> str:
    """The section of the report to which a job belongs: the first one or two parts of its name."""
    first, second, *_ = [*job.split("/"), ""]
    has_own_section = second in ("compiled", "memory", "recurrent") or (first, second) == ("networks", "cold")
    return f"{first}/{second}" if has_own_section else first


def _page(
    results: _Results,
    parts: dict[str, list[Row]],
    provenances: dict[str, list[Row]],
    picture_paths: dict[str, str],
    other_pages: dict[str, str],
) -> Iterable[str]:
    """Yields the lines of the report: versions, then a section for each part that has results."""
    yield "# Benchmarks\n"
    yield (
        "Written by `python -m benchmarks` in a checkout. The command creates an environment with pinned "
        "versions of the peers. It times hibana only where it agrees with its reference loop, and calls all "
        "contenders alternately. Times are medians; ratios are to ReLU in the same run. `python -m "
        "benchmarks --list` prints the names of the jobs, `--only` selects some of them.\n"
    )
    yield from (
        f"Measurements on another machine: [{processors}]({page}).\n"
        for page, processors in other_pages.items()
    )
    yield from _provenance(results)
    sections: dict[str, tuple[str, Callable[[list[Row]], Iterable[str]]]] = {
        "layers": ("One layer", _layers),
        "layers/compiled": ("One layer, peers compiled with torch.compile", _layers),
        "layers/memory": ("Memory of one layer", _memory),
        "networks": ("Networks, by firing rate", _networks),
        "networks/cold": ("Networks without keep_memory, 5% firing", _networks),
        "networks/compiled": ("Networks, peers compiled with torch.compile", _networks),
        "networks/memory": ("Memory of a training step, T = 32, 5% firing", _memory),
        "streaming": ("One step per call", streaming.section),
        "recurrent": ("Recurrent", recurrent_report.section),
        "recurrent/memory": ("Memory of a training step of a recurrent network", _memory),
        "scaling": ("Scaling", _scaling),
        "deep": ("Deep convolutional networks", deep.section),
        "plain": ("Networks of plain torch.nn", plain.section),
        "cells": ("Small layers of hibana and torch", cells.section),
        "online": ("Learning online", online.section),
        "sparse": ("Sparse synapses", sparse.section),
        "grid": ("Layers of hibana and torch, by density", grid_report.section),
        "compile": ("First use", _first_use),
        "training": ("Training on Fashion-MNIST", _training),
        "training/recurrent": (
            "Training of recurrent networks, compiled and with the reference loop",
            _both_backends,
        ),
        "gpu": ("One layer on a GPU", _gpu),
    }
    for name, (title, section) in sections.items():
        if name in parts:
            yield f"## {title}\n"
            yield _machine_line(provenances[name])
            if name in picture_paths:
                yield f"![{title}]({picture_paths[name]})\n"
            yield from section(parts[name])
            yield from (
                f"**Not timed:** {_row_description(row)}: {row['error']}\n"
                for row in parts[name]
                if "error" in row
            )
    descriptions = {
        row["is"]
        for part in ("layers", "recurrent")
        for row in parts.get(part, [])
        if "is" in row and not row["contender"].startswith(("relu", "hibana"))
    }
    if descriptions:
        yield "## Code of the contenders\n"
        yield from (f"- `{description}`" for description in sorted(descriptions))


def _provenance(results: _Results) -> Iterable[str]:
    """Lines of the report: versions, and warnings about other processes, quick runs and missing peers."""
    provenances = [result["about"] for result in results.values()]
    newest = max(provenances, key=lambda about: str(about["when"]))["versions"]
    yield ", ".join(f"{name} {version}" for name, version in newest.items() if name != "hibana") + ".\n"
    disturbed_jobs = [
        f"{name} ({result['about']['others']:.0%})"
        for name, result in results.items()
        if result["about"]["others"] > 0.02
    ]
    if disturbed_jobs:
        yield f"Other programs used a share of the processor during {', '.join(disturbed_jobs)}.\n"
    if any(about["quick"] for about in provenances):
        yield "**Some results are from quick runs, which only test the benchmarks.**\n"
    missing = {peer: why for about in provenances for peer, why in about["missing"].items()}
    yield from (f"**{TITLES[peer]} is missing:** {why}\n" for peer, why in missing.items())


def _machine_line(provenances: list[Row]) -> str:
    """The processor, threads and commits of hibana with which a part was measured, as a line of Markdown."""
    where = sorted({f"{about['processor']}; {about['threads']} threads" for about in provenances})
    commits = sorted({about["versions"]["hibana"] for about in provenances})
    return f"*{'; '.join(where)}; hibana {', '.join(commits)}.*\n"


def _row_description(row: Row) -> str:
    """The size, case and contender of a row as text."""
    return ", ".join(
        str(row[key])
        for key in ("size", "batch", "shape", "case", "network", "rate", "density", "contender")
        if key in row
    )


def _layers(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: for each pass and heap a table of ratios to ReLU by neuron and size."""
    yield "With this input 9% of the neurons fire in each step (LIF: 6%).\n"
    for heap, kind in itertools.product(("warm", "cold"), ("forward+backward", "inference")):
        section_rows = [row for row in rows if row.get("pass") == kind and row["heap"] == heap]
        if section_rows:
            heap_description = "freed memory stays in the process" if heap == "warm" else "glibc's defaults"
            of = "forward" if kind == "inference" else kind
            yield f"**{kind}, heap {heap}** ({heap_description}), as ratios to ReLU {of}\n"
            yield from _ratios(
                ["neuron", "size"],
                {
                    (pictures.CASE_TITLES[case], size.replace("x", " x ")): (
                        group,
                        promises.layer(case, kind, heap, size),
                    )
                    for (case, size), group in grouped(section_rows, "case", "size").items()
                },
            )


def _networks(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: a table of ratios to the ReLU network by network, pass and firing rate."""
    yield (
        "The input is Poisson spikes; biases are set so that each hidden layer fires at the given rate. A "
        "training step is forward, cross entropy, backward and SGD. Times are ratios to the ReLU network.\n"
    )
    groups = grouped([row for row in rows if "ms" in row], "network", "pass", "rate")
    yield from _ratios(
        ["network", "pass", "firing"],
        {
            (pictures.NETWORK_TITLES[network], kind, f"{rate:.0%}"): (
                group,
                promises.network(network, kind, rate),
            )
            for (network, kind, rate), group in groups.items()
        },
    )


def _ratios(
    heads: list[str], groups: dict[tuple[str, ...], tuple[dict[str, Row], promises.Promise]]
) -> list[str]:
    """Lines of a table with a row per group: ReLU's milliseconds, ratios to it, and hibana's speedup."""
    present_names = {name for group, _ in groups.values() for name in group}
    others = [name for name in TITLES if name in present_names and name not in ("relu", "hibana")]
    compiled = any(name.endswith("+compile") for name in others)
    head = [*heads, "ReLU, ms", "**hibana**", "promised", *(TITLES[name] for name in others)]
    head += ["fastest peer / hibana", "promised"]
    lines = []
    for keys, (group, (at_most, min_speedup)) in groups.items():
        ratio = {name: row["ms"] / group["relu"]["ms"] for name, row in group.items()}
        rivals = [ratio[name] for name in others if name in pictures.PEERS and name in ratio]
        hibana_ratio = ratio.get("hibana")
        speedup = min(rivals) / hibana_ratio if rivals and hibana_ratio else None
        line = [
            *keys,
            number(group["relu"]["ms"]),
            bold(hibana_ratio),
            promises.check_mark(hibana_ratio, at_most=at_most),
        ]
        line += [number(ratio.get(name)) for name in others]
        lines.append(
            [*line, number(speedup), "" if compiled else promises.check_mark(speedup, at_least=min_speedup)]
        )
    return table(head, lines)


def _memory(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: megabytes by neuron or network and contender."""
    key_name = "case" if "case" in rows[0] else "network"
    groups = grouped([row for row in rows if "mb" in row], key_name)
    names = [name for name in TITLES if any(name in group for group in groups.values())]
    titles = pictures.CASE_TITLES | pictures.NETWORK_TITLES
    size = f", {rows[0]['size'].replace('x', ' x ')}" if "size" in rows[0] else ""
    lines = []
    for (key,), group in groups.items():
        mb = {name: row["mb"] for name, row in group.items()}
        rivals = [mb[name] for name in pictures.PEERS if name in mb]
        share = mb["hibana"] / min(rivals) if rivals and "hibana" in mb else None
        title = titles.get(key, key.replace("x", ", "))
        line = [title + size, *(number(mb.get(name)) for name in names), number(share)]
        lines.append([*line, promises.check_mark(share, at_most=promises.MEMORY_OF_LEANEST_PEER.get(key))])
    yield "Peak memory of a new process during forward and backward, minus its memory before, in MB.\n"
    head = ["network" if key_name == "network" else "neuron", *(TITLES[name] for name in names)]
    yield from table([*head, "hibana / leanest peer", "promised"], lines)


def _scaling(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: growth of the time with steps and neurons, and the time of a small call."""
    for along in ("steps", "neurons"):
        hibana_rows = [
            row for row in rows if row.get("along") == along and row["contender"] == "hibana" and "ms" in row
        ]
        if len(hibana_rows) > 1:
            first, last = hibana_rows[0], hibana_rows[-1]
            axis = 0 if along == "steps" else 1
            grown, slower = last["shape"][axis] / first["shape"][axis], last["ms"] / first["ms"]
            yield (
                f"{along.capitalize()}: from {first['shape'][axis]:,} to {last['shape'][axis]:,} "
                f"({grown:,.0f} times) hibana takes {slower:,.0f} times as long.\n"
            )
    call = [row for row in rows if "along" not in row]
    if call:
        yield "**Time of a small call**: forward at [1, 10]\n"
        limit = next(row["ms"] for row in call if not row["contender"].startswith("hibana")) * 1e3
        lines = [[row["contender"], row["ms"] * 1e3] for row in call]
        marks = [
            promises.check_mark(us, at_most=limit) if contender.startswith("hibana") else ""
            for contender, us in lines
        ]
        cells = [[contender, f"{us:.1f}", mark] for (contender, us), mark in zip(lines, marks, strict=True)]
        yield from table(["", "µs", "promised"], cells)


def _first_use(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: seconds of compiling, loading and importing."""
    lines = []
    for row in rows:
        limit = promises.FIRST_USE.get(row["what"])
        lines.append([row["what"], f"{row['s']:.3f}", promises.check_mark(row["s"], at_most=limit)])
    yield from table(["", "s", "promised"], lines)


def _training(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: per contender the median epoch, and the mean and range of the accuracy."""
    lines = []
    titles = {"relu-once": "ReLU, one step", **TITLES, "relu": "ReLU, the same image at each step"}
    for name, title in titles.items():
        runs = [row for row in rows if row["contender"] == name and "epoch_s" in row]
        if not runs:
            continue
        epochs = sorted(seconds for run in runs for seconds in run["epoch_s"])
        accuracy = [run["accuracy"] for run in runs]
        mean = f"{sum(accuracy) / len(accuracy):.2%}"
        spread = f" ({min(accuracy):.2%} to {max(accuracy):.2%}, {len(runs)} seeds)" if len(runs) > 1 else ""
        firing = sum(run["firing"] for run in runs) / len(runs)
        line = [title, f"{epochs[len(epochs) // 2]:.1f}", mean + spread]
        lines.append([*line, "–" if name.startswith("relu") else f"{firing:.1%}", str(runs[0]["epochs"])])
    yield from table(["", "s per epoch", "test accuracy", "hidden firing", "epochs"], lines)


def _both_backends(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: accuracy, loss and firing rate of both backends, by data set and seed."""
    lines = []
    for (data, seed), group in grouped(rows, "data", "seed").items():
        runs_by_backend = [group[backend] for backend in ("auto", "reference")]
        lines.append(
            [
                str(data),
                str(seed),
                *(f"{backend_name['accuracy']:.1%}" for backend_name in runs_by_backend),
                *(f"{backend_name['loss']:.3f}" for backend_name in runs_by_backend),
                *(f"{backend_name['firing']:.1%}" for backend_name in runs_by_backend),
                *(f"{backend_name['seconds']:.1f}" for backend_name in runs_by_backend),
            ]
        )
    column_titles = ("test accuracy", "loss of the last epoch", "firing", "s")
    head = [
        f"{title}, {backend_name}" for title in column_titles for backend_name in ("compiled", "reference")
    ]
    yield from table(["", "seed", *head], lines)


def _gpu(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: ratios to ReLU, and hibana's bandwidth relative to a copy."""
    timed = [row for row in rows if "ms" in row]
    for card in sorted({(row["device"], row["driver"], row["cuda"]) for row in timed}):
        yield "{}, driver {}, CUDA {}.\n".format(*card)
    rivals = ("spikingjelly", "loop", "loop+compile")
    lines = []
    for (size, case, kind), group in grouped(timed, "size", "case", "pass").items():
        ratio = {name: row["ms"] / group["relu"]["ms"] for name, row in group.items()}
        hibana_ratio, peer_ratio = ratio.get("hibana"), ratio.get("spikingjelly")
        share = group["hibana"]["of_copy"] if hibana_ratio else None
        line = [pictures.CASE_TITLES[case], size.replace("x", " x "), kind]
        line += [f"{group['relu']['ms'] * 1e3:.0f}", f"{group['copy']['gb_s']:.0f}", bold(hibana_ratio)]
        line += [
            f"{share:.0%}" if share else "–",
            promises.check_mark(share, at_least=promises.gpu_share(size, kind)),
        ]
        line += [number(ratio.get(name)) for name in rivals]
        speedup = peer_ratio / hibana_ratio if hibana_ratio and peer_ratio else None
        lines.append([*line, promises.check_mark(speedup, at_least=promises.GPU_SPEEDUP)])
    if lines:
        head = ["neuron", "size", "pass", "ReLU, µs", "copy, GB/s", "**hibana**", "of copy", "promised"]
        yield from table([*head, "SpikingJelly", "loop", "loop, torch.compile", "promised"], lines)
