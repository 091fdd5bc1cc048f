"""Selection of few cases from a product of parameters, which contain every value (or pair of values)."""

from itertools import combinations, product

import pytest

import selection


def cases(*sizes):
    return [dict(zip("abc", values, strict=False)) for values in product(*map(range, sizes))]


@pytest.mark.parametrize(
    ("sizes", "strength", "most"),
    [((13, 5), 1, 13), ((4, 4), 1, 4), ((3, 2, 2), 1, 3), ((6,), 1, 6), ((6,), 2, 6), ((3, 3, 2), 2, 10)],
)
def test_each_combination_of_values_is_in_a_chosen_case(sizes, strength, most):
    all_cases = cases(*sizes)
    chosen = [all_cases[i] for i in selection.choose(all_cases, strength)]
    assert len(chosen) <= most
    for case in all_cases:
        for values in combinations(case.items(), min(strength, len(sizes))):
            assert any(set(values) <= set(selected.items()) for selected in chosen)


def test_values_are_selected_equally_often():
    all_cases = cases(12, 3)
    chosen = [all_cases[i]["b"] for i in selection.choose(all_cases, 1)]
    assert {value: chosen.count(value) for value in chosen} == {0: 4, 1: 4, 2: 4}
