"""Formats tables and numbers in Markdown."""

from typing import Any

__all__ = ["Row", "bold", "grouped", "number", "table"]

Row = dict[str, Any]


def grouped(rows: list[Row], *keys: str) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Groups rows by their values of `keys`; each group maps contenders to rows."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), {})[row["contender"]] = row
    return groups


def number(value: float | None) -> str:
    """Formats `value` with about three digits, None as a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def bold(value: float | None) -> str:
    """Formats `value` like :func:`number`, in bold."""
    return f"**{number(value)}**"


def table(head: list[str], lines: list[list[str]]) -> list[str]:
    """Lines of a table, and an empty line; the first column is aligned left, the others right."""
    rule = ["---" if index == 0 else "---:" for index in range(len(head))]
    return [*(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)), ""]
