"""Selection of few cases from a product of parameters, which contain every value (or pair of values)."""

from itertools import combinations, product
from types import SimpleNamespace

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


class Case:
    """A case of a parametrized test, with the attributes of pytest's items that `selection` reads."""

    def __init__(self, marker, **params):
        self.nodeid, self.marks = f"file.py::test[{params}]", []
        self.callspec = SimpleNamespace(params=params)
        self.get_closest_marker = lambda name: marker if name == "cover" else None

    def iter_markers(self, name):
        return [pytest.mark.parametrize("a", []).mark, pytest.mark.parametrize(("b", "c"), []).mark]

    def add_marker(self, mark):
        self.marks.append(mark.name)


def test_cases_are_selected_for_each_backend_and_all_others_are_exhaustive():
    marker, runs = pytest.mark.cover(1).mark, (object(), object())
    items = [Case(marker, run=run, a=a, b=b, c=-b) for run in runs for a in range(3) for b in range(2)]
    plain = Case(None, a=0, b=0, c=0)
    selection.mark([*items, plain])
    assert not plain.marks
    assert {mark for item in items for mark in item.marks} == {"exhaustive"}
    for run in runs:  # a backend may be skipped, so each has all values
        params = [item.callspec.params for item in items if not item.marks]
        selected = [case for case in params if case["run"] is run]
        assert len(selected) == 3
        assert ({case["a"] for case in selected}, {case["b"] for case in selected}) == ({0, 1, 2}, {0, 1})
