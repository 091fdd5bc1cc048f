"""What `explain` says of a cell."""

import re

import pytest

import hibana as hb


def kept(cell):
    """The lines that say what is kept at each step."""
    report = hb.explain(cell).partition("\ngradient")[0].partition("\nlong")[0]
    return [line.partition(": ")[2] for line in report.splitlines()[3:]]


@pytest.mark.parametrize(
    ("cell", "lines"),
    [
        (hb.IFCell(detach_reset=True), ["whether s is 1"]),
        (hb.IFCell(surrogate=hb.surrogate.ATan(), detach_reset=True), ["v' - 1"]),
        (hb.IFCell(), ["v after the step", "whether s is 1"]),
        (
            hb.IFCell(surrogate=hb.surrogate.Box(), detach_reset=True),
            ["whether abs((v' - 1)) < 0.5", "whether s is 1"],
        ),
    ],
)
def test_what_is_kept_is_said_by_the_state_after_the_step(cell, lines):
    assert kept(cell) == lines


@pytest.mark.parametrize(
    ("cell", "again"),
    [
        (hb.IFCell(detach_reset=True), False),
        (hb.IFCell(), True),
        (hb.IFCell(surrogate=hb.surrogate.ATan(), detach_reset=True), True),
        (hb.EIFCell(), False),
        (hb.LICell(), False),
    ],
)
def test_who_runs_forward_again_is_said(cell, again):
    assert ("\nlong " in hb.explain(cell)) == again


class Two(hb.Cell):
    """A cell whose surrogate's derivative has a part that is used twice."""

    def forward(self, input_, u_previous, v_previous, s_previous):
        u = 0.5 * u_previous + input_
        v = (v_previous + u) * (1 - s_previous.detach())
        return u, v, hb.surrogate.ATan()(v - 1)


def test_every_name_in_what_is_kept_is_a_state():
    for line in kept(Two()):
        assert set(re.findall(r"[a-z]+\d*'?", line.removeprefix("whether "))) <= {"u'", "v'", "s", "is"}
