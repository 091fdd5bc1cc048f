"""Which cases of a test with several parameters run by default, for `conftest.py`. It imports nothing heavy.

``@pytest.mark.cover(1)``: as few cases as have each value of each parameter once, values in turn;
``cover(2)``: each pair of values of two parameters. The other cases are marked ``exhaustive``. Cases of
different backends, parameter `run`, are chosen among separately.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pytest
from hypothesis import settings

APART = "run"
"""Parameter whose values each get a choice of their own: some may be skipped."""


def chosen(cases: Sequence[Mapping[str, Hashable]], strength: int) -> set[int]:
    """Indices of cases that hold each combination of `strength` values which any case holds."""
    held = [set(combinations(sorted(case.items()), min(strength, len(case)))) for case in cases]
    missing, found, used = set().union(*held), set(), Counter()
    while missing:
        best = max(
            range(len(cases)),
            key=lambda i: (len(held[i] & missing), -sum(used[value] for value in cases[i].items()), -i),
        )
        found.add(best)
        missing -= held[best]
        used.update(cases[best].items())
    return found


def values_of(item: pytest.Item) -> dict[str, Hashable]:
    """The value that each parameter of a test's case has; parameters that are given together are one."""
    values = {name: (id(value),) for name, value in item.callspec.params.items()}
    for marker in item.iter_markers("parametrize"):
        names = marker.args[0]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        together = tuple(values.pop(name)[0] for name in names)
        values[",".join(names)] = together
    return values


def mark(items: Sequence[pytest.Item]) -> None:
    """Marks as exhaustive what ``cover`` leaves out."""
    groups: dict[tuple[Hashable, ...], list[tuple[pytest.Item, dict[str, Hashable]]]] = {}
    for item in items:
        marker = item.get_closest_marker("cover")
        if marker is None or item.get_closest_marker("exhaustive") or not hasattr(item, "callspec"):
            continue
        values = values_of(item)
        key = (item.nodeid.partition("[")[0], values.pop(APART, None), marker.args[0])
        groups.setdefault(key, []).append((item, values))
    for (*_, strength), cases in groups.items():
        left = chosen([values for _, values in cases], strength)
        for i, (item, _) in enumerate(cases):
            if i not in left:
                item.add_marker(pytest.mark.exhaustive)


def examples(count: int) -> int:
    """As many of hypothesis' examples as `count` by default, in proportion in other profiles."""
    return max(1, count * settings().max_examples // 12)
