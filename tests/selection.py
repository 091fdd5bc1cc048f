"""Selects the cases of parametrized tests that run by default, for `conftest.py`. Its imports are fast.

``@pytest.mark.cover(1)`` selects few cases that contain each value of each parameter; ``cover(2)`` each
pair of values of two parameters. The other cases are marked ``exhaustive``. The cases of each backend
(parameter `run`) are selected separately.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pytest
from hypothesis import settings

SEPARATE = "run"
"""A separate selection is made for each value of this parameter, as some may be skipped."""


def choose(cases: Sequence[Mapping[str, Hashable]], strength: int) -> set[int]:
    """Indices of cases that hold each combination of `strength` values which any case holds."""
    contained = [set(combinations(sorted(case.items()), min(strength, len(case)))) for case in cases]
    missing, selected, used = set().union(*contained), set(), Counter()
    while missing:
        best = max(
            range(len(cases)),
            key=lambda i: (len(contained[i] & missing), -sum(used[v] for v in cases[i].items()), -i),
        )
        selected.add(best)
        missing -= contained[best]
        used.update(cases[best].items())
    return selected


def values_of(item: pytest.Item) -> dict[str, Hashable]:
    """The value of each parameter of a case; parameters of one ``parametrize`` marker count as one."""
    values = {name: (id(value),) for name, value in item.callspec.params.items()}
    for marker in item.iter_markers("parametrize"):
        names = marker.args[0]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        joint = tuple(values.pop(name)[0] for name in names)
        values[",".join(names)] = joint
    return values


def mark(items: Sequence[pytest.Item]) -> None:
    """Marks the cases that ``cover`` does not select as exhaustive."""
    groups: dict[tuple[Hashable, ...], list[tuple[pytest.Item, dict[str, Hashable]]]] = {}
    for item in items:
        marker = item.get_closest_marker("cover")
        if marker is None or item.get_closest_marker("exhaustive") or not hasattr(item, "callspec"):
            continue
        values = values_of(item)
        key = (item.nodeid.partition("[")[0], values.pop(SEPARATE, None), marker.args[0])
        groups.setdefault(key, []).append((item, values))
    for (*_, strength), cases in groups.items():
        selected = choose([values for _, values in cases], strength)
        for i, (item, _) in enumerate(cases):
            if i not in selected:
                item.add_marker(pytest.mark.exhaustive)


def examples(count: int) -> int:
    """The number of hypothesis' examples: `count` in the default profile, proportional in other profiles."""
    return max(1, count * settings().max_examples // 12)
