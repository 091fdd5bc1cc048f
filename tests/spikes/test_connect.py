"""``hb.connect``: each rule's synapses follow its law, are in order of rows, and repeat with the seed."""

import math

import pytest
import torch

import hibana as hb
from hibana import connect
from hibana.spikes.sparse import Connections

RULES = {
    "probability": lambda **o: connect.probability(0.1, **o),
    "out": lambda **o: connect.fixed_out_degree(7, **o),
    "in": lambda **o: connect.fixed_in_degree(7, **o),
    "total": lambda **o: connect.fixed_total(2000, **o),
    "one": lambda **o: connect.one_to_one(**o),
    "distance": lambda **o: connect.distance(
        torch.arange(90.0)[:, None], torch.arange(90.0)[:, None], connect.exponential(0.9, 4.0), **o
    ),
}
X, Y = torch.rand(3, 2), torch.rand(4, 2)


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


def _check_order(c: Connections, sources: int, targets: int) -> None:
    """Rows are contiguous, and sorted by delay and target; indices are in range."""
    assert c.row_starts.dtype == torch.int64
    assert c.row_starts.shape == (sources + 1,)
    assert c.targets.dtype == torch.int32
    assert c.row_starts[0] == 0
    assert c.row_starts[-1] == c.size
    assert (c.row_starts.diff() >= 0).all()
    assert ((c.targets >= 0) & (c.targets < targets)).all()
    delays = torch.zeros(c.size) if c.delays is None else c.delays
    key = (c.sources * 256 + delays.long()) * targets + c.targets
    assert (key.diff() >= 0).all()


def _same(one: Connections, other: Connections) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_rows_are_in_order_and_ranges_are_kept(rule) -> None:
    options = {"source": range(5, 95), "target": slice(100, 190), "weight": connect.uniform(-1, 1)}
    c = rule(**options, delay=connect.normal(3, 2), seed=1).connections(100, 200)
    _check_order(c, 100, 200)
    assert c.size > 50
    assert c.delays.dtype == torch.uint8
    assert c.weights.dtype == torch.float32
    assert ((c.sources >= 5) & (c.sources < 95)).all()
    assert ((c.targets >= 100) & (c.targets < 190)).all()


def test_the_seed_determines_the_result(rule) -> None:
    options = {"weight": connect.normal(0, 1), "delay": connect.uniform(0, 9)}
    one, same, other = (rule(**options, seed=seed).connections(90, 90) for seed in (3, 3, 4))
    assert _same(one, same)
    assert not torch.equal(one.weights, other.weights[: one.size])
    torch.manual_seed(5)
    one = rule(**options).connections(90, 90)
    other = rule(**options).connections(90, 90)
    torch.manual_seed(5)
    assert _same(one, rule(**options).connections(90, 90))
    assert not torch.equal(one.weights, other.weights[: one.size])


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_do_not_change_the_result(rule, threads) -> None:
    options = {"weight": connect.normal(0, 1), "delay": connect.uniform(0, 9), "seed": 0}
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(rule(**options).connections(90, 90))
    finally:
        torch.set_num_threads(before)
    assert _same(*results)


def test_degrees_and_totals_are_exact() -> None:
    c = connect.fixed_out_degree(30).connections(50, 40)
    assert (c.row_starts.diff() == 30).all()
    assert len(set(zip(c.sources.tolist(), c.targets.tolist(), strict=True))) == c.size
    c = connect.fixed_in_degree(30).connections(40, 50)
    assert (c.targets.bincount(minlength=50) == 30).all()
    assert len(set(zip(c.sources.tolist(), c.targets.tolist(), strict=True))) == c.size
    assert connect.fixed_total(12345).connections(7, 9).size == 12345
    assert torch.equal(connect.fixed_out_degree(5).connections(3, 5).targets, torch.arange(5).int().repeat(3))
    assert connect.probability(1.0).connections(30, 40).size == 1200
    c = connect.one_to_one(source=range(2, 5), target=range(1, 4), weight=0.5, delay=4).connections(6, 6)
    assert c.sources.tolist() == [2, 3, 4]
    assert c.targets.tolist() == [1, 2, 3]
    assert c.weights.tolist() == [0.5] * 3
    assert c.delays.tolist() == [4] * 3


def _has_law(counts: torch.Tensor, mean: float, variance: float) -> bool:
    """Whether mean and variance of `counts` are within five standard errors of a binomial law."""
    n = len(counts)
    counts = counts.double()
    near_mean = abs(counts.mean() - mean) <= 5 * math.sqrt(variance / n) + 1e-9
    return bool(near_mean) and bool(abs(counts.var() - variance) <= 5 * variance * math.sqrt(2.5 / n))


def test_degrees_follow_their_laws() -> None:
    sources, targets, p, total = 1500, 1200, 0.05, 90000
    for rule in (connect.probability(p, seed=0), connect.fixed_out_degree(60, seed=0)):
        c = rule.connections(sources, targets)
        assert _has_law(c.targets.bincount(minlength=targets), sources * p, sources * p * (1 - p))
        assert len((c.sources * targets + c.targets).unique()) == c.size
    c = connect.probability(p, seed=0).connections(sources, targets)
    assert _has_law(c.row_starts.diff(), targets * p, targets * p * (1 - p))
    c = connect.fixed_in_degree(75, seed=0).connections(sources, targets)
    assert _has_law(c.row_starts.diff(), targets * p, targets * p * (1 - p))
    c = connect.fixed_total(total, seed=0).connections(sources, targets)
    assert _has_law(c.row_starts.diff(), total / sources, total / sources * (1 - 1 / sources))
    assert _has_law(c.targets.bincount(minlength=targets), total / targets, total / targets)
    pairs = (c.sources * targets + c.targets).bincount(minlength=sources * targets)
    assert _has_law(pairs, p, p)


def test_all_targets_and_all_sets_are_equally_probable() -> None:
    n = 20000
    counts = connect.fixed_total(n, seed=0).connections(3, 10).targets.bincount()
    assert ((counts - n / 10).abs() < 5 * math.sqrt(n * 0.09)).all()
    pairs = connect.fixed_out_degree(2, seed=0).connections(n, 5).targets.view(n, 2)
    counts = (5 * pairs[:, 0] + pairs[:, 1]).bincount()
    assert len(counts[counts > 0]) == 10
    assert ((counts[counts > 0] - n / 10).abs() < 5 * math.sqrt(n * 0.09)).all()


def test_distance_law() -> None:
    """Synapses per bin of distance are binomial; nothing is beyond the cut-off, on a ring."""
    torch.manual_seed(0)
    places, period = torch.rand(600, 2, dtype=torch.float64) * 10, 10.0
    rule = connect.distance(
        places, places[:500], connect.gaussian(0.6, 1.5), cutoff=4.0, period=period, seed=0
    )
    c = rule.connections(600, 500)
    difference = places[:, None] - places[None, :500]
    apart = (difference - period * torch.round(difference / period)).norm(dim=2)
    connected = torch.zeros(600, 500)
    connected[c.sources, c.targets.long()] = 1
    assert not connected[apart > 4].any()
    all_near = connect.distance(places, places[:500], torch.ones_like, cutoff=1.0, period=period)
    c = all_near.connections(600, 500)
    assert torch.equal(torch.stack([c.sources, c.targets.long()], 1), (apart <= 1).nonzero())
    for low in torch.arange(0, 4, 0.5):
        inside = (apart >= low) & (apart < low + 0.5)
        p = 0.6 * torch.exp(-0.5 * (apart[inside] / 1.5) ** 2)
        assert abs(connected[inside].sum() - p.sum()) < 5 * (p * (1 - p)).sum().sqrt()


def test_weights_and_delays_follow_their_distributions() -> None:
    n = 40000
    c = connect.fixed_total(n, weight=connect.normal(1, 2, low=0), delay=connect.normal(2, 3), seed=0)
    c = c.connections(100, 100)
    assert (c.weights >= 0).all()
    phi, mass = math.exp(-1 / 8) / math.sqrt(2 * math.pi), 0.5 * math.erfc(-0.5 / math.sqrt(2))
    mean = 1 + 2 * phi / mass
    variance = 4 * (1 - 0.5 * phi / mass - (phi / mass) ** 2)
    assert abs(c.weights.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(c.weights.var() - variance) < 5 * variance * math.sqrt(2 / n)
    assert len(c.weights.unique()) > 0.99 * n
    edges = torch.arange(-0.5, 30)
    cumulative = 0.5 * torch.erfc((2 - edges) / (3 * math.sqrt(2)))
    expected = cumulative.diff() / (1 - cumulative[0]) * n
    counts = c.delays.long().bincount(minlength=30)
    assert ((counts[:30] - expected[:30]).abs() <= 5 * expected.sqrt() + 1).all()
    c = connect.fixed_total(n, delay=connect.uniform(0.5, 3.5), seed=0).connections(10, 10)
    assert c.delays.unique().tolist() == [1, 2, 3]
    many = connect.fixed_out_degree(387, delay=connect.normal(14, 7.5, low=0), seed=0)
    _check_order(many.connections(60, 7717), 60, 7717)  # delays above 31, the largest alias
    assert ((c.delays.long().bincount()[1:] - n / 3).abs() < 5 * math.sqrt(n * 2 / 9)).all()


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
    kinds = [
        union.weights == 1,
        union.weights == -1,
        (union.weights > 1) & (union.weights < 4),
        union.weights == 9,
    ]
    for kind, part, delay in zip(kinds, parts, (3, 0, 1, 3), strict=True):
        assert torch.equal(union.sources[kind], part.sources)
        assert torch.equal(union.targets[kind], part.targets)
        assert (union.delays[kind] == delay).all()


def test_no_synapses() -> None:
    for rule in (connect.probability(0.0), connect.fixed_total(0), connect.fixed_in_degree(0)):
        c = rule.connections(3, 4)
        assert c.row_starts.tolist() == [0] * 4
        assert c.size == 0
    assert connect.connections([], 3, 4).row_starts.tolist() == [0] * 4
    assert connect.probability(0.5).connections(0, 4).row_starts.tolist() == [0]
    assert connect.fixed_out_degree(0, target=range(2, 2), delay=2).connections(3, 4).delays.numel() == 0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: connect.probability(1.5), r"p must lie in \[0, 1\], got 1.5"),
        (lambda: connect.probability(math.nan), "p must lie in"),
        (lambda: connect.fixed_total(-1), "n must be a whole number from 0, got -1"),
        (lambda: connect.fixed_out_degree(1.5), "k must be a whole number"),
        (
            lambda: connect.fixed_out_degree(5),
            r"connect.fixed_out_degree\(5\): k must be .* 4, got 5",
        ),
        (lambda: connect.fixed_in_degree(4), "number of source neurons, 3, got 4"),
        (lambda: connect.one_to_one(), "got 3 and 4"),
        (lambda: connect.fixed_total(1, target=range(0)), "1 synapses need source and target neurons"),
        (lambda: connect.probability(0.5, source=range(4)), r"source must be a range in \[0, 3\]"),
        (lambda: connect.probability(0.5, target=slice(0, 4, 2)), "with step 1"),
        (lambda: connect.probability(0.5, delay=256), r"delay must be a whole number of steps in \[0, 255\]"),
        (lambda: connect.probability(0.5, delay=0.5), "delay must be a whole number"),
        (lambda: connect.probability(0.5, delay=connect.normal(300, 2)), "delay must lie in"),
        (lambda: connect.probability(0.5, weight=connect.normal(0, 1, low=9)), "low and high must leave 1%"),
        (lambda: connect.normal(0, 0), "std must be positive and mean finite, got 0"),
        (lambda: connect.uniform(1, 1), "low must be less than high"),
        (lambda: connect.distance(X, torch.rand(4, 3), torch.exp), "must have the shapes"),
        (lambda: connect.distance(X * math.nan, Y, torch.exp), "positions must be finite"),
        (lambda: connect.distance(X[:2], Y, torch.exp), "got 2 and 4 positions"),
        (
            lambda: connect.distance(X, Y, lambda d: d + 1),
            "profile must return",
        ),
        (
            lambda: connect.distance(X, Y, torch.exp, cutoff=0),
            "must be positive",
        ),
    ],
)
def test_errors_say_what_is_wrong(rule, message) -> None:
    with pytest.raises(ValueError, match=message):
        rule().connections(3, 4)


def test_errors_of_lists_and_types() -> None:
    with pytest.raises(TypeError, match="source must be a range or a slice of neurons, got list"):
        connect.probability(0.5, source=[1]).connections(3, 4)
    with pytest.raises(TypeError, match="weight must be a number, a distribution or None, got Tensor"):
        connect.probability(0.5, weight=torch.ones(1)).connections(3, 4)
    with pytest.raises(TypeError, match=r"probability\(0.5\) has no argument 'weights'; did you mean"):
        connect.probability(0.5, weights=1.0)
    with pytest.raises(TypeError, match=r"rules must be made by the functions of hb\.connect, got float"):
        connect.connections([0.5], 3, 4)
    with pytest.raises(ValueError, match="either all rules of a list have a weight, or none has"):
        connect.connections([connect.probability(1), connect.probability(1, weight=1)], 3, 4)


@pytest.mark.parametrize(("sources", "targets"), [(1, 1), (3, 257), (2, 70000), (70, 1), (300, 1024)])
def test_all_shapes_are_sorted(sources, targets) -> None:
    for delay in (None, connect.uniform(0, 255), 255):
        c = connect.fixed_total(5000, delay=delay, weight=2.0).connections(sources, targets)
        assert c.size == 5000
        _check_order(c, sources, targets)
        assert (c.weights == 2).all()
        assert delay is None or int(c.delays.max()) > 240


@pytest.mark.parametrize("size", [2000, 30000])  # torch sorts few pairs, a kernel many
def test_from_pairs_sorts_and_checks(size) -> None:
    torch.manual_seed(0)
    sources, targets = torch.randint(0, 30, (size,)), torch.randint(0, 20, (size,))
    delays, weights = torch.randint(0, 256, (size,)), torch.rand(size, dtype=torch.float64)
    c = Connections.from_pairs(sources, targets, (30, 20), delays, weights)
    _check_order(c, 30, 20)
    expected = sorted(zip(sources.tolist(), delays.tolist(), targets.tolist(), weights.tolist(), strict=True))
    found = zip(c.sources.tolist(), c.delays.tolist(), c.targets.tolist(), c.weights.tolist(), strict=True)
    assert sorted(found) == expected
    for name, wrong in (("sources", (sources + 1, targets)), ("targets", (sources, targets - 1))):
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            Connections.from_pairs(*wrong, (30, 20))
    with pytest.raises(ValueError, match="delays must be whole numbers"):
        Connections.from_pairs(sources, targets, (30, 20), delays + 0.5)
    with pytest.raises(ValueError, match=r"at most 2\^31 target neurons"):
        Connections.from_pairs(sources, targets, (30, 2**31 + 1))


def test_layers_accept_the_result() -> None:
    c = connect.probability(0.5, weight=2.0).connections(6, 5)
    assert torch.equal(hb.SparseLinear(6, 5, c).weight, c.weights)
