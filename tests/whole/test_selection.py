"""Of a product of parameters few cases run by default, and every value, or pair of values, is in one."""

from itertools import combinations, product

import pytest

import selection


def cases(*sizes):
    return [dict(zip("abc", values, strict=False)) for values in product(*map(range, sizes))]


@pytest.mark.parametrize(
    ("sizes", "strength", "most"),
    [((13, 5), 1, 13), ((4, 4), 1, 4), ((3, 2, 2), 1, 3), ((6,), 1, 6), ((6,), 2, 6), ((3, 3, 2), 2, 10)],
)
def test_each_combination_of_values_is_in_a_case_that_is_chosen(sizes, strength, most):
    given = cases(*sizes)
    chosen = [given[i] for i in selection.chosen(given, strength)]
    assert len(chosen) <= most
    for case in given:
        for values in combinations(case.items(), min(strength, len(sizes))):
            assert any(set(values) <= set(one.items()) for one in chosen)


def test_values_take_turns():
    given = cases(12, 3)
    chosen = [given[i]["b"] for i in selection.chosen(given, 1)]
    assert {value: chosen.count(value) for value in chosen} == {0: 4, 1: 4, 2: 4}
