"""The report's section and picture of :mod:`benchmarks.grid`: layers of hibana and torch by density."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm

from benchmarks.grid import SLOWER
from benchmarks.tables import Row, grouped, number, table

__all__ = ["picture", "section"]

_PASSES = ("forward", "training")
_SLOWEST_COUNT = 12
"""Rows in the table of the slowest combinations."""


def section(rows: list[Row]) -> Iterable[str]:
    """Lines of the report: quantiles of the ratio to torch's time per pass, and the slowest combinations."""
    yield (
        'Layers of torch and of hibana in mode `"auto"` with spikes as input; the four steps of a batch are '
        "joined. Each time is the shortest of at least seven alternating calls. Below 1, red in the picture, "
        "hibana is faster. If torch takes less than a millisecond, hibana calls torch's kernel.\n"
    )
    ratios = _ratios(rows)
    lines = []
    for kind in _PASSES:
        values = [ratio for (*_, row_kind), (ratio, _) in ratios.items() if row_kind == kind]
        slower = sum(ratio > SLOWER for ratio in values)
        quantiles = (
            [number(float(q)) for q in np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0))] if values else []
        )
        lines.append([kind, str(len(values)), f"{slower} ({slower / max(1, len(values)):.0%})", *quantiles])
    yield from table(
        ["pass", "combinations", "slower than torch by 5%", "smallest", "", "median", "", "largest"], lines
    )
    worst = sorted(ratios.items(), key=lambda item: -item[1][0])[:_SLOWEST_COUNT]
    lines = [
        [size, str(batch), f"{density:.0%}", kind, number(ratio), explanation]
        for (size, batch, density, kind), (ratio, explanation) in worst
    ]
    yield "The slowest combinations, and the kernels that hibana chose:\n"
    yield from table(["layer", "batch", "density", "pass", "to torch", "choice"], lines)


def picture(rows: list[Row]) -> Any:
    """Draws the ratio to torch's time as colours: one panel per pass, one line per layer and batch."""
    ratios = _ratios(rows)
    densities = sorted({density for _, _, density, _ in ratios})
    lines = list(dict.fromkeys((size, batch) for size, batch, _, _ in ratios))
    figure, panels = plt.subplots(1, 2, figsize=(8, 0.6 + 0.14 * len(lines)), sharey=True, squeeze=False)
    for panel, kind in zip(panels[0], _PASSES, strict=True):
        values = np.full((len(lines), len(densities)), np.nan)
        for (size, batch, density, row_kind), (ratio, _) in ratios.items():
            if row_kind == kind:
                values[lines.index((size, batch)), densities.index(density)] = ratio
        image = panel.imshow(values, aspect="auto", cmap="RdBu", norm=LogNorm(1 / 8, 8))
        panel.set_title(kind)
        panel.set_xticks(range(len(densities)), [f"{density:.0%}" for density in densities], fontsize="small")
        panel.set_xlabel("spikes")
    panels[0][0].set_yticks(
        range(len(lines)), [f"{size}, batch {batch}" for size, batch in lines], fontsize=5
    )
    ticks = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    bar = figure.colorbar(image, ax=panels[0].tolist(), label="time to torch's", shrink=0.5)
    bar.set_ticks(ticks, labels=[f"{ratio:g}" for ratio in ticks])
    bar.minorticks_off()
    return figure


def _ratios(rows: list[Row]) -> dict[tuple[str, int, float, str], tuple[float, str]]:
    """Ratio to torch's time and hibana's explanation of its choice, by layer, batch, density and pass."""
    groups = grouped([row for row in rows if "ms" in row], "size", "batch", "density", "pass")
    return {
        (size, batch, density, kind): (group["hibana"]["ms"] / group["torch"]["ms"], group["hibana"]["said"])
        for (size, batch, density, kind), group in groups.items()
        if {"hibana", "torch"} <= group.keys()
    }
