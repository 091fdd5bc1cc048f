"""Draws the report's pictures: ratios for one layer, time by firing rate, time by size."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from benchmarks import grid_report
from benchmarks.tables import Row

__all__ = ["CASE_TITLES", "NETWORK_TITLES", "PEERS", "TITLES", "draw"]

PEERS = ("snntorch", "spikingjelly", "norse", "sinabs", "spikingjelly+compile", "norse+compile")
TITLES = {
    "relu": "ReLU",
    "hibana": "hibana",
    "hibana-python": "hibana, node in Python",
    "hibana-dense": "hibana, dense products",
    "hibana-box": "hibana, Box",
    "hibana-atan": "hibana, ATan",
    "gru": "GRU",
    "gru-equal": "GRU, equal parameters",
    "lstm": "LSTM",
    "rnn": "RNN",
    "snntorch": "snnTorch",
    "spikingjelly": "SpikingJelly",
    "norse": "Norse",
    "sinabs": "sinabs",
    "spikingjelly+compile": "SpikingJelly, torch.compile",
    "norse+compile": "Norse, torch.compile",
    "spyx": "spyx",
}
CASE_TITLES = {
    "step": "IF, Step",
    "box": "IF, Box",
    "through-reset": "IF, through the reset",
    "atan": "IF, ATan",
    "lif": "LIF, Step",
}
NETWORK_TITLES = {"mlp": "MLP 784-512-512-10", "conv": "conv net 32c3-64c3-512-10"}
_WITH_SURROGATE = {**TITLES, "hibana": "hibana, Step"}
"""Titles for pictures that show hibana with several surrogates."""
_COLOURS = {
    "hibana": "#e4572e",
    "hibana-dense": "#c9b037",
    "snntorch": "#4c78a8",
    "spikingjelly": "#54a24b",
    "norse": "#9d755d",
    "sinabs": "#b279a2",
    "spikingjelly+compile": "#a5d6a7",
    "norse+compile": "#d7c4b7",
    "hibana-box": "#ec8363",
    "hibana-atan": "#f3a97f",
    "gru-equal": "#7a7a9c",
    "lstm": "#5a5a5a",
    "rnn": "#8f8f8f",
    "spyx": "#eeca3b",
}
_DARK = ("networks",)
"""Pictures in README.md; they are also drawn for GitHub's dark mode, as ``NAME-dark.png``."""
_STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "axes.axisbelow": True,
    "font.family": "sans-serif",
}


def draw(parts: dict[str, list[Row]], folder: Path) -> list[str]:
    """Draws a PNG file in `folder` for each part that has results; returns the names of the parts."""
    names = []
    with mpl.rc_context(_STYLE):
        for name, draw_picture in _DRAW_FUNCTIONS.items():
            rows = [row for row in parts.get(name, []) if "ms" in row and row.get("heap") != "cold"]
            if name == "networks":  # measured at one firing rate
                rows += [row for row in parts.get("networks/compiled", []) if _is_compiled(row)]
            rows = [row for row in rows if row["contender"] != "hibana-python"]
            if rows:
                _save(draw_picture(rows), folder / f"{name}.png")
                if name in _DARK:
                    with mpl.rc_context({**style.library["dark_background"], "savefig.transparent": True}):
                        _save(draw_picture(rows), folder / f"{name}-dark.png")
                names.append(name)
    return names


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def _colour(contender: str) -> str:
    """Colour of a contender; the colour of text for the baselines ReLU and GRU."""
    return _COLOURS.get(contender) or str(mpl.rcParams["text.color"])


def _is_compiled(row: Row) -> bool:
    return "ms" in row and bool(row["contender"].endswith("+compile"))


def _layers(rows: list[Row]) -> Any:
    """Draws ratios to ReLU with a warm heap: a row of panels for each size, a column for each pass."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    figure, grid = plt.subplots(
        len(sizes),
        len(passes),
        figsize=(4.1 * len(passes), 2.2 * len(sizes)),  # the width of a page's column
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for size, line in zip(sizes, grid, strict=True):
        for kind, axes in zip(passes, line, strict=True):
            _bars(axes, [row for row in rows if row["size"] == size and row["pass"] == kind])
            axes.set_title(f"[{size.replace('x', ', ')}], {kind}")
        line[0].set_ylabel("time / time of ReLU")
    names = [name for name in TITLES if any(row["contender"] == name for row in rows)]
    handles = [
        Line2D([], [], color=_colour(name), lw=1.2, ls="--")
        if name == "relu"
        else Rectangle((0, 0), 1, 1, color=_colour(name))
        for name in names
    ]
    labels = [TITLES[name] for name in names]
    figure.legend(handles, labels, loc="outside upper center", ncols=len(names))
    return figure


def _bars(axes: Axes, rows: list[Row]) -> None:
    """Draws a bar per neuron and contender with the ratio to ReLU, and hibana's ratios as numbers."""
    cases = [case for case in CASE_TITLES if any(row["case"] == case for row in rows)]
    names = [name for name in TITLES if name != "relu" and any(row["contender"] == name for row in rows)]
    width = 0.74 / len(names)  # the gaps have room for the numbers
    relu = {row["case"]: row["ms"] for row in rows if row["contender"] == "relu"}
    for row in rows:
        if row["contender"] != "relu":
            at = cases.index(row["case"]) + (names.index(row["contender"]) - (len(names) - 1) / 2) * width
            ratio = row["ms"] / relu[row["case"]]
            axes.bar(at, ratio, width * 0.92, color=_colour(row["contender"]))
            if row["contender"] == "hibana":
                edge = (at + width / 2, max(ratio, 1.0))  # above ReLU's line
                text: dict[str, Any] = {
                    "ha": "right",
                    "fontsize": 7,
                    "fontweight": "bold",
                    "color": _colour("hibana"),
                }
                axes.annotate(
                    f"{ratio:.2f}" if ratio < 0.995 else f"{ratio:.1f}",
                    edge,
                    (0, 2),
                    textcoords="offset points",
                    **text,
                )
    axes.axhline(1, color=_colour("relu"), lw=1.2, ls="--")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(axis="y", alpha=0.3)
    axes.set_xticks(range(len(cases)), [_with_line_breaks(CASE_TITLES[case]) for case in cases], fontsize=7.5)


def _with_line_breaks(title: str) -> str:
    return title.replace(", ", "\n").replace("through the", "through\nthe")


def _networks(rows: list[Row]) -> Any:
    """Draws the time by firing rate: a panel for each network and pass."""
    panels = list(dict.fromkeys((row["network"], row["pass"]) for row in rows))
    columns = 2 if len(panels) > 1 else 1
    figure, grid = plt.subplots(
        -(-len(panels) // columns),
        columns,
        figsize=(4.6 * columns, 3.1 * -(-len(panels) // columns)),
        squeeze=False,
        layout="constrained",
    )
    for (network, kind), axes in zip(panels, grid.flat, strict=False):
        panel_rows = [row for row in rows if row["network"] == network and row["pass"] == kind]
        for name in TITLES:
            points = sorted((row["rate"] * 100, row["ms"]) for row in panel_rows if row["contender"] == name)
            if points:
                _line(axes, name, points, _WITH_SURROGATE[name])
        axes.set_title(f"{NETWORK_TITLES[network]}, {kind}")
        axes.set_xlabel("firing rate, % of neurons per step")
        axes.set_ylabel("ms")
        axes.set_xscale("log")
        axes.set_yscale("log")
        rates = sorted({row["rate"] * 100 for row in panel_rows})
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.legend(*_entries(grid.flat[: len(panels)]), loc="outside upper center", ncols=4)
    return figure


def _recurrent(rows: list[Row]) -> Any:
    """Draws milliseconds of all contenders: a panel for each pass, a group of bars for each size."""
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    names = [name for name in TITLES if any(row["contender"] == name for row in rows)]
    figure, grid = plt.subplots(
        len(passes), 1, figsize=(8.6, 2.7 * len(passes)), squeeze=False, layout="constrained"
    )
    width = 0.84 / len(names)
    for kind, axes in zip(passes, grid[:, 0], strict=True):
        times = {(row["contender"], row["size"]): row["ms"] for row in rows if row["pass"] == kind}
        for index, name in enumerate(names):
            bars = [
                (at + (index - (len(names) - 1) / 2) * width, times[name, size])
                for at, size in enumerate(sizes)
                if (name, size) in times
            ]
            if bars:
                axes.bar(
                    *zip(*bars, strict=True), width * 0.92, color=_colour(name), label=_WITH_SURROGATE[name]
                )
        axes.set_title(f"700 → H recurrent → 20, {kind}")
        axes.set_ylabel("ms")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(axis="y", alpha=0.3)
        axes.set_xticks(range(len(sizes)), [_size_label(size) for size in sizes])
    figure.legend(*_entries(grid[:, 0]), loc="outside upper center", ncols=6)
    return figure


def _size_label(size: str) -> str:
    steps, batch, neurons = size.split("x")
    return f"T = {steps}, batch {batch},\nH = {neurons}"


def _scaling(rows: list[Row]) -> Any:
    """Draws the time of IF forward and backward by the number of steps and of neurons."""
    figure, grid = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for along, axis, fixed, axes in (
        ("steps", 0, "20,000 neurons", grid[0]),
        ("neurons", 1, "16 steps", grid[1]),
    ):
        for name in TITLES:
            points = [
                (row["shape"][axis], row["ms"])
                for row in rows
                if row.get("along") == along and row["contender"] == name
            ]
            if points:
                _line(axes, name, points, TITLES[name])
        axes.set_title(f"IF forward and backward, {fixed}")
        axes.set_xlabel(f"{along}")
        axes.set_ylabel("ms")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.yaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    figure.legend(*_entries(grid), loc="outside upper center", ncols=6)
    return figure


def _line(axes: Axes, name: str, points: list[tuple[float, float]], label: str) -> None:
    """Draws the line of one contender; hibana's is thicker, ReLU's is dashed."""
    ours = name.startswith("hibana")
    axes.plot(
        *zip(*points, strict=True),
        color=_colour(name),
        label=label,
        marker=None if name == "relu" else "o",
        ms=4.5 if ours else 3.5,
        lw=2.2 if ours else 1.3,
        ls="--" if name == "relu" else "-",
        zorder=3 if ours else 2,
    )


def _entries(panels: Any) -> tuple[list[Any], list[str]]:
    """Handles and labels of a legend for all `panels`, each label once, in the order of ``TITLES``."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    titles = [title for name in TITLES for title in {TITLES[name], _WITH_SURROGATE[name]} if title in handles]
    return [handles[title] for title in titles], titles


_DRAW_FUNCTIONS = {
    "layers": _layers,
    "networks": _networks,
    "recurrent": _recurrent,
    "scaling": _scaling,
    "grid": grid_report.picture,
}
