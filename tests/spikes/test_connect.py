"""``hb.connect``: each rule's synapses follow its law, are sorted by row, and repeat with the seed."""

import math

import pytest
import torch

from hibana import connect
from hibana.spikes.sparse import Connections

RULES = {
    "probability": lambda **o: connect.probability(0.1, **o),
    "out": lambda **o: connect.fixed_out_degree(7, **o),
    "in": lambda **o: connect.fixed_in_degree(7, **o),
    "total": lambda **o: connect.fixed_total(2000, **o),
    "one": lambda **o: connect.one_to_one(**o),
    "distance": lambda **o: connect.distance(LINE, LINE, connect.exponential(0.9, 4.0), **o),
}
LINE, X, Y = torch.arange(90.0)[:, None], torch.rand(3, 2), torch.rand(4, 2)


def _check_order(c: Connections, sources: int, targets: int) -> None:
    """Rows are contiguous, and sorted by delay and target; indices are in range."""
    assert (c.row_starts.dtype, c.targets.dtype) == (torch.int64, torch.int32)
    assert c.row_starts.shape == (sources + 1,)
    assert (int(c.row_starts[0]), int(c.row_starts[-1])) == (0, c.size)
    assert ((c.targets >= 0) & (c.targets < targets)).all()
    delays = torch.zeros(c.size) if c.delays is None else c.delays
    assert (((c.sources * 256 + delays.long()) * targets + c.targets).diff() >= 0).all()


def _same(one: Connections, other: Connections) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _has_law(counts: torch.Tensor, mean: float, variance: float) -> bool:
    """Whether mean and variance of `counts` are within five standard errors of a binomial law."""
    n, counts = len(counts), counts.double()
    near_mean = abs(counts.mean() - mean) <= 5 * math.sqrt(variance / n) + 1e-9
    return bool(near_mean) and bool(abs(counts.var() - variance) <= 5 * variance * math.sqrt(2.5 / n))


@pytest.mark.parametrize("name", RULES)
def test_rows_are_in_order_within_ranges_and_repeat_with_the_seed(name) -> None:
    options = {"source": range(5, 95), "target": slice(100, 190), "weight": connect.uniform(-1, 1)}
    options["delay"] = connect.normal(3, 2)
    c, other = (RULES[name](**options, seed=seed).connections(100, 200) for seed in (1, 2))
    _check_order(c, 100, 200)
    assert c.size > 50
    assert ((c.sources >= 5) & (c.sources < 95) & (c.targets >= 100) & (c.targets < 190)).all()
    assert not torch.equal(c.weights, other.weights[: c.size])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert _same(c, RULES[name](**options, seed=1).connections(100, 200))
    finally:
        torch.set_num_threads(before)
    torch.manual_seed(5)
    one, other = (RULES[name](**options).connections(100, 200) for _ in range(2))
    torch.manual_seed(5)
    assert _same(one, RULES[name](**options).connections(100, 200))
    assert not torch.equal(one.weights, other.weights[: one.size])


def test_degrees_and_totals_are_exact() -> None:
    for rule in (connect.fixed_out_degree(30), connect.fixed_in_degree(30)):
        c = rule.connections(50, 40)
        counts = c.row_starts.diff() if "out" in rule.name else c.targets.bincount(minlength=40)
        assert (counts == 30).all()
        assert len((c.sources * 40 + c.targets).unique()) == c.size
    assert connect.fixed_total(12345).connections(7, 9).size == 12345
    assert torch.equal(connect.fixed_out_degree(5).connections(3, 5).targets, torch.arange(5).int().repeat(3))
    assert connect.probability(1.0).connections(30, 40).size == 1200
    c = connect.one_to_one(source=range(2, 5), target=range(1, 4), weight=0.5, delay=4).connections(6, 6)
    assert [c.sources.tolist(), c.targets.tolist()] == [[2, 3, 4], [1, 2, 3]]
    assert [c.weights.tolist(), c.delays.tolist()] == [[0.5] * 3, [4] * 3]


def test_degrees_follow_their_laws() -> None:
    sources, targets, p, total = 1500, 1200, 0.05, 90000
    out_law, in_law = ((n * p, n * p * (1 - p)) for n in (targets, sources))
    results = [
        (connect.probability(p, seed=0), True, True),
        (connect.fixed_out_degree(60, seed=0), False, True),
    ]
    for rule, has_random_rows, has_random_columns in [
        *results,
        (connect.fixed_in_degree(75, seed=0), True, False),
    ]:
        c = rule.connections(sources, targets)
        assert not has_random_rows or _has_law(c.row_starts.diff(), *out_law)
        assert not has_random_columns or _has_law(c.targets.bincount(minlength=targets), *in_law)
        assert len((c.sources * targets + c.targets).unique()) == c.size
    c = connect.fixed_total(total, seed=0).connections(sources, targets)
    assert _has_law(c.row_starts.diff(), total / sources, total / sources * (1 - 1 / sources))
    assert _has_law(c.targets.bincount(minlength=targets), total / targets, total / targets)
    assert _has_law((c.sources * targets + c.targets).bincount(minlength=sources * targets), p, p)


def test_all_targets_and_all_sets_are_equally_probable() -> None:
    n = 20000
    pairs = connect.fixed_out_degree(2, seed=0).connections(n, 5).targets.view(n, 2)
    sets = (5 * pairs[:, 0] + pairs[:, 1]).bincount()
    for counts in (connect.fixed_total(n, seed=0).connections(3, 10).targets.bincount(), sets[sets > 0]):
        assert len(counts) == 10
        assert ((counts - n / 10).abs() < 5 * math.sqrt(n * 0.09)).all()


def test_distance_law() -> None:
    """Synapses per bin of distance are binomial, and none is beyond the cut-off."""
    torch.manual_seed(0)
    places = torch.rand(600, 2, dtype=torch.float64) * 10
    c = connect.distance(places, places[:500], connect.gaussian(0.6, 1.5), cutoff=4.0, seed=0)
    c = c.connections(600, 500)
    distances = (places[:, None] - places[None, :500]).norm(dim=2)
    connected = torch.zeros(600, 500)
    connected[c.sources, c.targets.long()] = 1
    assert not connected[distances > 4].any()
    for low in torch.arange(0, 4, 0.5):
        inside = (distances >= low) & (distances < low + 0.5)
        p = 0.6 * torch.exp(-0.5 * (distances[inside] / 1.5) ** 2)
        assert abs(connected[inside].sum() - p.sum()) < 5 * (p * (1 - p)).sum().sqrt()
    c = connect.distance(places, places[:500], torch.ones_like, cutoff=1.0).connections(600, 500)
    assert torch.equal(torch.stack([c.sources, c.targets.long()], 1), (distances <= 1).nonzero())


@pytest.mark.parametrize(("mean", "std"), [(2, 3), (14, 7.5), (6.5, 3.75), (254, 3)])
def test_delays_are_rounded_normal_numbers_drawn_again_outside(mean, std) -> None:
    n = 40000
    delays = connect.normal(mean, std, low=0)
    c = connect.fixed_total(n, delay=delays, weight=connect.normal(1, 2, low=0), seed=0).connections(100, 100)
    _check_order(c, 100, 100)
    edges = torch.arange(-0.5, 256).clamp(min=0)
    shares = (0.5 * torch.erfc((mean - edges) / (std * math.sqrt(2)))).diff()
    expected = shares / shares.sum() * n
    assert ((c.delays.long().bincount(minlength=256) - expected).abs() <= 5 * expected.sqrt() + 1).all()
    phi, mass = math.exp(-1 / 8) / math.sqrt(2 * math.pi), 0.5 * math.erfc(-0.5 / math.sqrt(2))
    variance = 4 * (1 - 0.5 * phi / mass - (phi / mass) ** 2)
    assert (c.weights >= 0).all()
    assert abs(c.weights.mean() - (1 + 2 * phi / mass)) < 5 * math.sqrt(variance / n)
    assert abs(c.weights.var() - variance) < 5 * variance * math.sqrt(2 / n)
    assert len(c.weights.unique()) > 0.99 * n


def test_a_list_is_the_union_of_its_rules() -> None:
    rules = [
        connect.fixed_total(500, source=range(30), weight=1.0, delay=3, seed=0),
        connect.probability(0.5, source=range(20, 40), target=range(10), weight=-1.0, seed=1),
        connect.fixed_in_degree(2, target=range(5, 20), weight=connect.uniform(2, 3), delay=1, seed=2),
        connect.one_to_one(target=slice(0, 40), weight=9.0, delay=3, seed=3),
    ]
    union = connect.connections(rules, 40, 50)
    _check_order(union, 40, 50)
    parts = [rule.connections(40, 50) for rule in rules]
    assert union.size == sum(part.size for part in parts)
    uniform = (union.weights > 1) & (union.weights < 4)
    rows = [union.weights == 1, union.weights == -1, uniform, union.weights == 9]
    for chosen, part, delay in zip(rows, parts, (3, 0, 1, 3), strict=True):
        assert torch.equal(union.sources[chosen], part.sources)
        assert torch.equal(union.targets[chosen], part.targets)
        assert (union.delays[chosen] == delay).all()


def test_no_synapses() -> None:
    for rules in (connect.probability(0.0), connect.fixed_total(0), connect.fixed_in_degree(0), []):
        assert connect.connections(rules, 3, 4).row_starts.tolist() == [0] * 4
    assert connect.probability(0.5).connections(0, 4).row_starts.tolist() == [0]
    assert connect.fixed_out_degree(0, target=range(2, 2), delay=2).connections(3, 4).delays.numel() == 0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: connect.probability(math.nan), r"p must lie in \[0, 1\], got nan"),
        (lambda: connect.fixed_total(-1), "n must be a whole number from 0, got -1"),
        (lambda: connect.fixed_in_degree(True), "k must be a whole number from 0, got True"),
        (lambda: connect.one_to_one(weight=math.nan), "weight must be finite, got nan"),
        (lambda: connect.fixed_total(1, weight=-math.inf), "weight must be finite, got -inf"),
        (lambda: connect.fixed_out_degree(5), r"connect.fixed_out_degree\(5\): k must be .* 4, got 5"),
        (lambda: connect.fixed_in_degree(4), "number of source neurons, 3, got 4"),
        (lambda: connect.one_to_one(), "got 3 and 4"),
        (lambda: connect.fixed_total(1, target=range(0)), "1 synapses need source and target neurons"),
        (lambda: connect.probability(0.5, source=range(4)), r"source must be a range in \[0, 3\]"),
        (lambda: connect.probability(0.5, target=slice(0, -1)), r"target must be a range in \[0, 4\]"),
        (lambda: connect.probability(0.5, target=slice(0, 4, 2)), "with step 1"),
        (
            lambda: connect.probability(0.5, source=[1]),
            "source must be a range or a slice of neurons, got list",
        ),
        (lambda: connect.probability(0.5, delay=256), r"delay must be a whole number of steps in \[0, 255\]"),
        (lambda: connect.probability(0.5, delay=connect.normal(300, 2)), "delay must lie in"),
        (lambda: connect.probability(0.5, weight=connect.normal(0, 1, low=9)), "low and high must leave 1%"),
        (lambda: connect.probability(0.5, weight=X), "weight must be a number, a distribution or None"),
        (lambda: connect.probability(0.5, weights=1.0), "has no argument 'weights'; did you mean 'weight'"),
        (lambda: connect.normal(0, 0), "std must be positive and mean finite, got 0"),
        (lambda: connect.uniform(1, 1), "low must be less than high"),
        (lambda: connect.distance(X, torch.rand(4, 3), torch.exp), "must have the shapes"),
        (lambda: connect.distance(X * math.nan, Y, torch.exp), "positions must be finite"),
        (lambda: connect.distance(X[:2], Y, torch.exp), "got 2 and 4 positions"),
        (lambda: connect.distance(X, Y, lambda d: d + 1), "profile must return"),
        (lambda: connect.distance(X, Y, torch.exp, cutoff=0), "must be positive"),
    ],
)
def test_errors_name_the_argument(rule, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        rule().connections(3, 4)


def test_errors_of_lists() -> None:
    with pytest.raises(TypeError, match=r"rules must be made by the functions of hb\.connect, got float"):
        connect.connections([0.5], 3, 4)
    with pytest.raises(ValueError, match="either all rules of a list have a weight, or none has"):
        connect.connections([connect.probability(1), connect.probability(1, weight=1)], 3, 4)


@pytest.mark.parametrize(("sources", "targets"), [(1, 1), (3, 257), (2, 70000), (70, 1), (300, 1024)])
def test_all_shapes_are_sorted(sources, targets) -> None:
    for delay in (None, connect.uniform(0, 255), 255):
        c = connect.fixed_total(5000, delay=delay, weight=2.0).connections(sources, targets)
        _check_order(c, sources, targets)
        assert c.size == (c.weights == 2).sum() == 5000
        assert delay is None or int(c.delays.max()) > 240


def test_from_pairs_sorts_and_checks() -> None:
    torch.manual_seed(0)
    size = 2000
    sources, targets = torch.randint(0, 30, (size,)), torch.randint(0, 20, (size,))
    delays, weights = torch.randint(0, 256, (size,)), torch.rand(size, dtype=torch.float64)
    c = Connections.from_pairs(sources, targets, (30, 20), delays, weights)
    _check_order(c, 30, 20)
    synapses = [(c.sources, c.delays, c.targets, c.weights), (sources, delays, targets, weights)]
    result, expected = (sorted(zip(*[x.tolist() for x in columns], strict=True)) for columns in synapses)
    assert result == expected
    for wrong, message in (
        ((sources + 1, targets, (30, 20)), "sources must lie in"),
        ((sources, targets - 1, (30, 20)), "targets must lie in"),
        ((sources, targets, (30, 20), delays + 0.5), "delays must be whole numbers"),
        ((sources, targets, (30, 2**31 + 1)), r"at most 2\^31 target neurons"),
    ):
        with pytest.raises(ValueError, match=message):
            Connections.from_pairs(*wrong)
