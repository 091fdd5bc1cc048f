"""Rules that create synapses: each connects a range of source neurons with a range of target neurons.

A rule or a list of rules is the argument `connectivity` of :class:`hibana.SparseLinear`. A list creates the
synapses of all of its rules, for instance of the projections between several populations:

>>> import torch, hibana as hb
>>> excitatory, inhibitory, all_neurons = range(0, 80), range(80, 100), range(0, 100)
>>> rules = [
...     hb.connect.fixed_total(1000, source=excitatory, weight=hb.connect.normal(0.1, 0.01, low=0)),
...     hb.connect.probability(0.1, source=inhibitory, target=excitatory, weight=-0.4),
... ]
>>> connections = hb.connect.connections(rules, in_features=100, out_features=100)
>>> connections.row_starts.shape, connections.weights.dtype
(torch.Size([101]), torch.float32)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from hibana.compiler.draws import new_seed
from hibana.spikes.sparse.connections import MAX_DELAY, Connections
from hibana.spikes.sparse.distributions import Distribution, Normal, Uniform, delay_probabilities
from hibana.spikes.sparse.generate import Pattern, Projection, draw_targets, generate, multinomial

__all__ = [
    "Connections",
    "Options",
    "Rule",
    "connections",
    "distance",
    "exponential",
    "fixed_in_degree",
    "fixed_out_degree",
    "fixed_total",
    "gaussian",
    "normal",
    "one_to_one",
    "probability",
    "uniform",
]

PAIRS_AT_ONCE = 1 << 20
"""Pairs of neurons for which :func:`distance` computes probabilities at a time: 4 MB per temporary tensor."""


class Options(TypedDict, total=False):
    """Keyword arguments of every rule."""

    source: range | slice | None
    """The source neurons, a range with step 1; None for all."""
    target: range | slice | None
    """The target neurons, a range with step 1; None for all."""
    weight: float | Distribution | None
    """The weight of each synapse, a number or a distribution; None if the layer shall draw the weights."""
    delay: float | Distribution | None
    """The delay of each synapse, in steps from 0 to 255: a whole number, or a distribution, whose numbers
    are rounded and drawn again if they are not in [0, 255]. None means 0."""
    seed: int | None
    """Seed of all random numbers of the rule, at most 64 bits; None for a seed from torch's default
    generator, which ``torch.manual_seed`` seeds. The result does not depend on the number of threads."""


@dataclass(frozen=True)
class Rule:
    """A rule that creates synapses. The functions of this module return rules."""

    name: str
    """The call that returned the rule, for instance ``fixed_total(1000)``."""
    pattern: Callable[[int, int, int], Pattern]
    """``(number of sources, number of targets, seed)`` to the synapses without weights and delays."""
    options: Options

    def connections(self, in_features: int, out_features: int) -> Connections:
        """The synapses between `in_features` source neurons and `out_features` target neurons."""
        return connections(self, in_features, out_features)

    def projection(self, in_features: int, out_features: int) -> Projection:
        """The rule with all of its ranges and numbers known.

        Raises:
            TypeError: if an option has the wrong type.
            ValueError: if a range does not fit the sizes, or the rule can't be fulfilled.
        """
        try:
            source = _neurons("source", self.options.get("source"), in_features)
            target = _neurons("target", self.options.get("target"), out_features)
            weight, delay = self.options.get("weight"), self.options.get("delay")
            _check_delay(0 if delay is None else delay)
            seed = self.options.get("seed")
            seed = new_seed() if seed is None else seed
            pattern = self.pattern(len(source), len(target), seed)
        except (TypeError, ValueError) as error:
            raise type(error)(f"connect.{self.name}: {error}") from error
        return Projection(source, target, pattern, weight, 0 if delay is None else delay, seed)


def connections(rules: Rule | Sequence[Rule], in_features: int, out_features: int) -> Connections:
    """The synapses of all `rules`, in one record.

    Args:
        rules: one rule, or a list. Rules with equal seeds draw equal random numbers.
        in_features: number of source neurons.
        out_features: number of target neurons.

    Raises:
        TypeError: if `rules` are not rules, or an option has the wrong type.
        ValueError: if a rule does not fit the sizes, or some rules have a `weight` and others have none.

    >>> connections(one_to_one(delay=3), 4, 4).delays
    tensor([3, 3, 3, 3], dtype=torch.uint8)
    """
    rules = [rules] if isinstance(rules, Rule) else list(rules)
    if wrong := [rule for rule in rules if not isinstance(rule, Rule)]:
        raise TypeError(f"rules must be made by the functions of hb.connect, got {type(wrong[0]).__name__}")
    projections = [rule.projection(in_features, out_features) for rule in rules]
    if len({projection.weight is None for projection in projections}) > 1:
        raise ValueError("either all rules of a list have a weight, or none has")
    return generate(projections, (in_features, out_features))


def probability(p: float, **options: Unpack[Options]) -> Rule:
    """Each pair of neurons is connected with probability `p`, independently of all other pairs.

    The number of targets of each source is drawn from the binomial law, then so many different targets.

    Args:
        p: probability of a synapse, in [0, 1].
        options: `source`, `target`, `weight`, `delay` and `seed`; see :class:`Options`.

    >>> round(probability(0.1, seed=0).connections(1000, 1000).size / 1000**2, 3)
    0.1
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")

    def pattern(sources: int, targets: int, seed: int) -> Pattern:
        sizes = torch.full((sources,), float(targets), dtype=torch.float64, device="cpu")
        return Pattern(torch.binomial(sizes, torch.full_like(sizes, p), _generator(seed)).long())

    return Rule(f"probability({p})", pattern, options)


def fixed_out_degree(k: int, **options: Unpack[Options]) -> Rule:
    """Each source neuron has `k` different targets; all sets of `k` targets are equally probable.

    Args:
        k: number of targets of each source, at most the number of target neurons.
        options: `source`, `target`, `weight`, `delay` and `seed`; see :class:`Options`.

    >>> fixed_out_degree(3).connections(5, 10).row_starts
    tensor([ 0,  3,  6,  9, 12, 15])
    """
    _check_count("k", k)

    def pattern(sources: int, targets: int, seed: int) -> Pattern:
        if k > targets:
            raise ValueError(f"k must be at most the number of target neurons, {targets}, got {k}")
        return Pattern(torch.full((sources,), k, device="cpu"))

    return Rule(f"fixed_out_degree({k})", pattern, options)


def fixed_in_degree(k: int, **options: Unpack[Options]) -> Rule:
    """Each target neuron has `k` different sources; all sets of `k` sources are equally probable.

    Args:
        k: number of sources of each target, at most the number of source neurons.
        options: `source`, `target`, `weight`, `delay` and `seed`; see :class:`Options`.

    >>> fixed_in_degree(3).connections(10, 5).targets.bincount()
    tensor([3, 3, 3, 3, 3])
    """
    _check_count("k", k)

    def pattern(sources: int, targets: int, seed: int) -> Pattern:
        if k > sources:
            raise ValueError(f"k must be at most the number of source neurons, {sources}, got {k}")
        drawn = draw_targets(Pattern(torch.full((targets,), k, device="cpu")), sources, seed)
        return _from_pairs(drawn, torch.arange(targets, device="cpu").repeat_interleave(k), sources, targets)

    return Rule(f"fixed_in_degree({k})", pattern, options)


def fixed_total(n: int, **options: Unpack[Options]) -> Rule:
    """`n` synapses, each between a random source and a random target; pairs may repeat.

    Args:
        n: number of synapses.
        options: `source`, `target`, `weight`, `delay` and `seed`; see :class:`Options`.

    The law is that of ``fixed_total_number`` in NEST.

    >>> fixed_total(20).connections(10, 5).size
    20
    """
    _check_count("n", n)

    def pattern(sources: int, targets: int, seed: int) -> Pattern:
        if n and not sources * targets:
            raise ValueError(f"{n} synapses need source and target neurons, got {sources} and {targets}")
        return Pattern(multinomial(n, sources, _generator(seed)), repeats=True)

    return Rule(f"fixed_total({n})", pattern, options)


def one_to_one(**options: Unpack[Options]) -> Rule:
    """The k-th source neuron is connected with the k-th target neuron.

    Args:
        options: `source`, `target`, `weight`, `delay` and `seed`; see :class:`Options`.

    >>> one_to_one(source=range(1, 4)).connections(5, 3).sources
    tensor([1, 2, 3])
    """

    def pattern(sources: int, targets: int, seed: int) -> Pattern:
        if sources != targets:
            raise ValueError(f"sources and targets must be equally many, got {sources} and {targets}")
        ones = torch.ones(sources, dtype=torch.int64, device="cpu")
        return Pattern(ones, torch.arange(targets, device="cpu"))

    return Rule("one_to_one()", pattern, options)


def distance(
    source_positions: Tensor,
    target_positions: Tensor,
    profile: Callable[[Tensor], Tensor],
    *,
    cutoff: float = math.inf,
    period: float | Sequence[float] = math.inf,
    **options: Unpack[Options],
) -> Rule:
    """Each pair of neurons is connected with a probability that depends on their Euclidean distance.

    Args:
        source_positions: ``[sources, d]``, in any unit of length.
        target_positions: ``[targets, d]``.
        profile: maps distances to probabilities in [0, 1], such as :func:`gaussian` or :func:`exponential`.
        cutoff: distance beyond which no pair is connected. A short cutoff saves time.
        period: space is repeated with this period in all axes, or in each of d axes: neurons are on a ring
            or a torus.
        options: `source`, `target`, `weight`, `delay` and `seed`; see :class:`Options`. Positions belong to
            the neurons of `source` and `target`.

    >>> grid = torch.cartesian_prod(torch.arange(30.0), torch.arange(30.0))
    >>> rule = distance(grid, grid, gaussian(0.5, width=2.0), cutoff=6.0, period=30.0, seed=0)
    >>> round(rule.connections(900, 900).size / 900, 1)  # the integral, 2 pi 0.5 width^2, is 12.6
    12.4
    """
    places = [x.detach().to("cpu", torch.float32) for x in (source_positions, target_positions)]
    if not places[0].ndim == places[1].ndim == 2 or places[0].shape[1] != places[1].shape[1]:
        shapes = f"{tuple(source_positions.shape)} and {tuple(target_positions.shape)}"
        raise ValueError(f"positions must have the shapes [sources, d] and [targets, d], got {shapes}")
    periods = torch.as_tensor(period, dtype=torch.float32, device="cpu").expand(places[0].shape[1]).tolist()
    if not cutoff > 0 or min(periods, default=math.inf) <= 0:
        raise ValueError(f"cutoff and period must be positive, got {cutoff} and {period}")

    def pattern(sources: int, targets: int, seed: int) -> Pattern:
        if (sources, targets) != (len(places[0]), len(places[1])):
            sizes = f"{len(places[0])} and {len(places[1])} positions"
            raise ValueError(f"{sources} sources and {targets} targets need as many positions, got {sizes}")
        generator, rows = _generator(seed), max(1, PAIRS_AT_ONCE // max(1, targets))
        counts, pairs = [], []
        for block in torch.split(places[0], rows):
            apart = _distances(block, places[1], periods)
            p = profile(apart).where(apart <= cutoff, 0)
            if not bool(((p >= 0) & (p <= 1)).all()):
                raise ValueError(f"profile must return probabilities in [0, 1], got {p.min()} to {p.max()}")
            mask = torch.rand(p.shape, generator=generator, device="cpu") < p
            counts.append(mask.sum(1))
            pairs.append(mask.nonzero()[:, 1].to(torch.int32))
        return Pattern(torch.cat(counts), torch.cat(pairs))

    return Rule("distance(...)", pattern, options)


def gaussian(peak: float, width: float) -> Callable[[Tensor], Tensor]:
    """The profile ``peak exp(-d^2 / (2 width^2))`` of a distance d."""
    return lambda d: peak * torch.exp(-0.5 * (d / width) ** 2)


def exponential(peak: float, length: float) -> Callable[[Tensor], Tensor]:
    """The profile ``peak exp(-d / length)`` of a distance d."""
    return lambda d: peak * torch.exp(-d / length)


def normal(mean: float, std: float, low: float = -math.inf, high: float = math.inf) -> Distribution:
    """Normal numbers; those outside of [`low`, `high`] are drawn again, as by NEST's ``redraw``.

    Raises:
        ValueError: if `std` is not positive, or less than 1% of the numbers lie between the bounds.
    """
    return Normal(mean, std, low, high)


def uniform(low: float, high: float) -> Distribution:
    """Real numbers from `low` to `high`, all equally probable.

    Delays are rounded. For equally probable whole delays from a to b, write ``uniform(a - 0.5, b + 0.5)``.
    """
    return Uniform(low, high)


def _generator(seed: int) -> torch.Generator:
    """A generator of torch with the seed `seed`."""
    return torch.Generator("cpu").manual_seed(seed)


def _neurons(name: str, neurons: range | slice | None, size: int) -> range:
    """The neurons of the option `name`, in a population of `size` neurons.

    Raises:
        TypeError: if `neurons` is neither a range nor a slice.
        ValueError: if it has a step or exceeds the population.
    """
    if neurons is None:
        return range(size)
    if isinstance(neurons, slice):
        start, stop = neurons.start, neurons.stop
        neurons = range(0 if start is None else start, size if stop is None else stop, neurons.step or 1)
    if not isinstance(neurons, range):
        raise TypeError(f"{name} must be a range or a slice of neurons, got {type(neurons).__name__}")
    if neurons.step != 1 or not 0 <= neurons.start <= neurons.stop <= size:
        raise ValueError(f"{name} must be a range in [0, {size}] with step 1, got {neurons}")
    return neurons


def _check_count(name: str, count: int) -> None:
    """Raises a ValueError if `count` is not a whole number from 0."""
    if not (isinstance(count, int) and count >= 0):
        raise ValueError(f"{name} must be a whole number from 0, got {count!r}")


def _check_delay(delay: float | Distribution) -> None:
    """Raises a ValueError if `delay` is no whole number in [0, 255], or has almost no probability there."""
    if isinstance(delay, Normal | Uniform):
        delay_probabilities(delay)
    elif not (0 <= delay <= MAX_DELAY and delay % 1 == 0):
        raise ValueError(f"delay must be a whole number of steps in [0, {MAX_DELAY}], got {delay}")


def _from_pairs(sources: Tensor, targets: Tensor, source_count: int, target_count: int) -> Pattern:
    """The pattern with the synapses ``sources[k] -> targets[k]``."""
    sorted_pairs = Connections.from_pairs(sources, targets, (source_count, target_count))
    return Pattern(sorted_pairs.row_starts.diff(), sorted_pairs.targets)


def _distances(sources: Tensor, targets: Tensor, periods: Sequence[float]) -> Tensor:
    """The distance of each source from each target: ``[sources, d]``, ``[targets, d]`` to
    ``[sources, targets]``.

    Coordinates that differ by a multiple of the axis's period are the same place.
    """
    squares = torch.zeros(len(sources), len(targets), device="cpu")
    for axis, period in enumerate(periods):
        difference = sources[:, None, axis] - targets[None, :, axis]
        if period < math.inf:
            difference = difference - period * torch.round(difference / period)
        squares += difference**2
    return squares.sqrt()
