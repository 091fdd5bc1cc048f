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


class Case:
    """What of a test's case is looked at."""

    def __init__(self, marker, **params):
        self.nodeid, self.marks = f"file.py::test[{params}]", []
        self.callspec = type("CallSpec", (), {"params": params})
        self.get_closest_marker = lambda name: marker if name == "cover" else None

    def iter_markers(self, name):
        return [pytest.mark.parametrize("a", []).mark, pytest.mark.parametrize(("b", "c"), []).mark]

    def add_marker(self, mark):
        self.marks.append(mark.name)


def test_what_is_left_out_is_marked_for_each_backend():
    marker, runs = pytest.mark.cover(1).mark, (object(), object())
    items = [Case(marker, run=run, a=a, b=b, c=-b) for run in runs for a in range(3) for b in range(2)]
    items += [plain := Case(None, a=0, b=0, c=0)]
    selection.mark(items)
    assert not plain.marks
    for run in runs:  # some may be skipped, so that each has all values
        chosen = [item.callspec.params for item in items[:-1] if not item.marks]
        chosen = [case for case in chosen if case["run"] is run]
        assert ({case["a"] for case in chosen}, {case["b"] for case in chosen}) == ({0, 1, 2}, {0, 1})
        assert len(chosen) == 3
    assert {mark for item in items for mark in item.marks} == {"exhaustive"}
