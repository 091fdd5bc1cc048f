"""Tables in Markdown, and the numbers in them."""

from typing import Any

__all__ = ["Row", "bold", "grouped", "number", "table"]

Row = dict[str, Any]


def grouped(rows: list[Row], *keys: str) -> dict[tuple[Any, ...], dict[str, Row]]:
    """The rows that are alike in `keys`, each by its contender."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), {})[row["contender"]] = row
    return groups


def number(value: float | None) -> str:
    """`value` to about three digits, a dash for None."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def bold(value: float | None) -> str:
    """What :func:`number` says, bold."""
    return f"**{number(value)}**"


def table(head: list[str], lines: list[list[str]]) -> list[str]:
    """The lines of a table whose first column is left, all others right, and an empty one."""
    rule = ["---" if index == 0 else "---:" for index in range(len(head))]
    return [*(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)), ""]
