"""Rules that create synapses: each connects a range of source neurons with a range of target neurons.

A rule or a list of rules is the argument `connectivity` of :class:`hibana.SparseLinear`. A list creates the
synapses of all of its rules, for instance of the projections between several populations:

>>> import torch, hibana as hb
>>> excitatory, inhibitory = range(0, 80), range(80, 100)
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

import numpy as np
import torch
from numpy.random import Generator, default_rng
from torch import Tensor

from hibana.cells.peer_aliases import unknown_argument_error
from hibana.compiler.draws import new_seed
from hibana.spikes.sparse.connections import Connections
from hibana.spikes.sparse.generate import Array, Distribution, Pattern, Projection, draw_sets, generate
from hibana.spikes.sparse.neurons import Neurons
from hibana.spikes.sparse.table import from_table

__all__ = [
    "Connections",
    "Distribution",
    "Neurons",
    "Options",
    "Rule",
    "connections",
    "distance",
    "exponential",
    "fixed_in_degree",
    "fixed_out_degree",
    "fixed_total",
    "from_table",
    "gaussian",
    "normal",
    "one_to_one",
    "probability",
    "uniform",
]

ROWS_AT_ONCE = 16
"""Source neurons for which :func:`distance` computes probabilities at a time."""


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
    pattern: Callable[[int, int, Generator], Pattern]
    """``(number of sources, number of targets, random numbers)`` to synapses without weights and delays."""
    options: Options

    def __post_init__(self) -> None:
        if error := unknown_argument_error(self.name, self.options, [*Options.__annotations__]):
            raise error
        weight = self.options.get("weight")
        if not isinstance(weight, float | int | Distribution | None):
            raise TypeError(f"weight must be a number, a distribution or None, got {type(weight).__name__}")
        if isinstance(weight, float) and not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")

    def connections(self, in_features: int, out_features: int) -> Connections:
        """The synapses between `in_features` source neurons and `out_features` target neurons."""
        return connections(self, in_features, out_features)

    def projection(self, in_features: int, out_features: int) -> Projection:
        """The rule between `in_features` sources and `out_features` targets; see :func:`connections`."""
        try:
            source = _neurons("source", self.options.get("source"), in_features)
            target = _neurons("target", self.options.get("target"), out_features)
            seed = self.options.get("seed")
            seed = (new_seed() if seed is None else seed) % (1 << 64)
            pattern = self.pattern(len(source), len(target), default_rng(seed))
        except (TypeError, ValueError) as error:
            raise type(error)(f"connect.{self.name}: {error}") from error
        weight, delay = self.options.get("weight"), self.options.get("delay") or 0
        return Projection(source, target, pattern, weight, delay, seed)


def connections(rules: Rule | Sequence[Rule], in_features: int, out_features: int) -> Connections:
    """The synapses of all `rules`, in one record.

    Args:
        rules: one rule, or a list. Rules with equal seeds draw equal random numbers.
        in_features: number of source neurons.
        out_features: number of target neurons.

    Raises:
        TypeError: if `rules` are not rules, or a range of neurons is neither a range nor a slice.
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

    `options` are those of every rule: see :class:`Options`.

    >>> round(probability(0.1, seed=0).connections(1000, 1000).size / 1000**2, 2)
    0.1
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")

    def pattern(sources: int, targets: int, generator: Generator) -> Pattern:
        return Pattern(generator.binomial(targets, p, sources))

    return Rule(f"probability({p})", pattern, options)


def fixed_out_degree(k: int, **options: Unpack[Options]) -> Rule:
    """Each source neuron has `k` different targets; all sets of `k` targets are equally probable.

    `options` are those of every rule: see :class:`Options`.

    >>> fixed_out_degree(3).connections(5, 10).row_starts
    tensor([ 0,  3,  6,  9, 12, 15])
    """
    _check_count("k", k)

    def pattern(sources: int, targets: int, generator: Generator) -> Pattern:
        if k > targets:
            raise ValueError(f"k must be at most the number of target neurons, {targets}, got {k}")
        return Pattern(np.full(sources, k))

    return Rule(f"fixed_out_degree({k})", pattern, options)


def fixed_in_degree(k: int, **options: Unpack[Options]) -> Rule:
    """Each target neuron has `k` different sources; all sets of `k` sources are equally probable.

    `options` are those of every rule: see :class:`Options`.

    >>> fixed_in_degree(3).connections(10, 5).targets.bincount()
    tensor([3, 3, 3, 3, 3])
    """
    _check_count("k", k)

    def pattern(sources: int, targets: int, generator: Generator) -> Pattern:
        if k > sources:
            raise ValueError(f"k must be at most the number of source neurons, {sources}, got {k}")
        columns = np.arange(targets).repeat(k)
        rows = draw_sets(generator, np.full(targets, k), sources)
        return _sorted_pattern(rows, columns, sources, targets)

    return Rule(f"fixed_in_degree({k})", pattern, options)


def fixed_total(n: int, **options: Unpack[Options]) -> Rule:
    """`n` synapses, each between a random source and a random target; pairs may repeat.

    `options` are those of every rule: see :class:`Options`.

    The law is that of ``fixed_total_number`` in NEST.

    >>> fixed_total(20).connections(10, 5).size
    20
    """
    _check_count("n", n)

    def pattern(sources: int, targets: int, generator: Generator) -> Pattern:
        if n and not sources * targets:
            raise ValueError(f"{n} synapses need source and target neurons, got {sources} and {targets}")
        if not n:
            return Pattern(np.zeros(sources, np.int64))
        return Pattern(generator.multinomial(n, np.full(sources, 1 / sources)), repeats=True)

    return Rule(f"fixed_total({n})", pattern, options)


def one_to_one(**options: Unpack[Options]) -> Rule:
    """The k-th source neuron is connected with the k-th target neuron.

    `options` are those of every rule: see :class:`Options`.

    >>> one_to_one(source=range(1, 4)).connections(5, 3).sources
    tensor([1, 2, 3])
    """

    def pattern(sources: int, targets: int, generator: Generator) -> Pattern:
        if sources != targets:
            raise ValueError(f"sources and targets must be equally many, got {sources} and {targets}")
        return Pattern(np.ones(sources, np.int64), np.arange(targets))

    return Rule("one_to_one()", pattern, options)


def distance(
    source_positions: Tensor,
    target_positions: Tensor,
    profile: Callable[[Tensor], Tensor],
    *,
    cutoff: float = math.inf,
    **options: Unpack[Options],
) -> Rule:
    """Each pair of neurons is connected with a probability that depends on their Euclidean distance.

    Args:
        source_positions: positions of the neurons of `source`, ``[sources, d]``, in any unit of length.
        target_positions: positions of the neurons of `target`, ``[targets, d]``.
        profile: maps distances to probabilities in [0, 1], such as :func:`gaussian` or :func:`exponential`.
        cutoff: distance beyond which no pair is connected. A short cutoff saves time.
        options: `source`, `target`, `weight`, `delay` and `seed`; see :class:`Options`.

    >>> grid = torch.cartesian_prod(torch.arange(30.0), torch.arange(30.0))
    >>> rule = distance(grid, grid, gaussian(0.5, width=2.0), cutoff=6.0)
    >>> connections = rule.connections(900, 900)
    """
    origins, ends = (x.detach().to("cpu", torch.float64) for x in (source_positions, target_positions))
    if origins.ndim != 2 or origins.shape[1:] != ends.shape[1:] or not origins.shape[1]:
        shapes = f"{tuple(source_positions.shape)} and {tuple(target_positions.shape)}"
        raise ValueError(f"positions must have the shapes [sources, d] and [targets, d], got {shapes}")
    if not bool(origins.isfinite().all() and ends.isfinite().all()):
        raise ValueError("positions must be finite, got infinite coordinates or NaN")
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive, got {cutoff}")

    def pattern(sources: int, targets: int, generator: Generator) -> Pattern:
        if (sources, targets) != (len(origins), len(ends)):
            sizes = f"{len(origins)} and {len(ends)} positions"
            raise ValueError(f"{sources} sources and {targets} targets need as many positions, got {sizes}")
        pairs = [torch.empty(2, 0, dtype=torch.int64, device="cpu")]
        for rows in torch.split(origins[:, 0].argsort(), ROWS_AT_ONCE):
            # The sources `rows` are neighbors on the first axis; the targets `columns` are near them.
            low, high = origins[rows[0], 0] - cutoff, origins[rows[-1], 0] + cutoff
            columns = ((ends[:, 0] >= low) & (ends[:, 0] <= high)).nonzero()[:, 0]
            d = (origins[rows, None] - ends[None, columns]).norm(dim=2)
            p = profile(d).where(d <= cutoff, 0)
            if not bool(((p >= 0) & (p <= 1)).all()):
                raise ValueError(f"profile must return probabilities in [0, 1], got {p.min()} to {p.max()}")
            connected = torch.from_numpy(generator.random(p.shape)) < p
            row, column = connected.nonzero(as_tuple=True)
            pairs.append(torch.stack([rows[row], columns[column]]))
        row_of_pair, column_of_pair = torch.cat(pairs, 1).numpy()
        return _sorted_pattern(row_of_pair, column_of_pair, sources, targets)

    return Rule("distance(...)", pattern, options)


def gaussian(peak: float, width: float) -> Callable[[Tensor], Tensor]:
    """The profile ``peak exp(-d^2 / (2 width^2))`` of a distance d."""
    return lambda d: peak * torch.exp(-0.5 * (d / width) ** 2)


def exponential(peak: float, length: float) -> Callable[[Tensor], Tensor]:
    """The profile ``peak exp(-d / length)`` of a distance d."""
    return lambda d: peak * torch.exp(-d / length)


def normal(mean: float, std: float, low: float = -math.inf, high: float = math.inf) -> Distribution:
    """Normal numbers; those outside of [`low`, `high`] are drawn again, as by ``redraw`` in NEST.

    Raises:
        ValueError: if `std` is not positive. Rules raise it if less than 1% of the numbers are in the bounds.
    """
    if not (0 < std < math.inf and math.isfinite(mean)):
        raise ValueError(
            f"std must be positive and mean finite, got {std} and {mean}; pass a number for std 0"
        )
    return Distribution(True, mean, std, low, high)


def uniform(low: float, high: float) -> Distribution:
    """Real numbers from `low` to `high`, all equally probable.

    Delays are rounded: for equally probable delays from 1 to 5 steps, write ``uniform(0.5, 5.5)``.

    Raises:
        ValueError: if `low` is not less than `high`.
    """
    if not 0 < high - low < math.inf:
        raise ValueError(f"low must be less than high, and both finite, got {low} and {high}")
    return Distribution(False, low, high - low, low, high)


def _neurons(name: str, neurons: range | slice | None, size: int) -> range:
    """The neurons of the option `name`, in a population of `size` neurons."""
    if isinstance(neurons, slice):
        stop = size if neurons.stop is None else neurons.stop
        neurons = range(neurons.start or 0, stop, neurons.step or 1)
    if not isinstance(neurons, range | None):
        raise TypeError(f"{name} must be a range or a slice of neurons, got {type(neurons).__name__}")
    if neurons is not None and (neurons.step != 1 or not 0 <= neurons.start <= neurons.stop <= size):
        raise ValueError(f"{name} must be a range in [0, {size}] with step 1, got {neurons}")
    return range(size) if neurons is None else neurons


def _check_count(name: str, count: int) -> None:
    """Raises a ValueError if `count` is not a whole number from 0."""
    if isinstance(count, bool) or not (isinstance(count, int) and count >= 0):
        raise ValueError(f"{name} must be a whole number from 0, got {count!r}")


def _sorted_pattern(rows: Array, columns: Array, sources: int, targets: int) -> Pattern:
    """The pattern with a synapse from each of the source neurons `rows` to the same entry of `columns`."""
    sorted_rows, sorted_columns = np.divmod(np.sort(rows * targets + columns), max(1, targets))
    return Pattern(np.bincount(sorted_rows, minlength=sources), sorted_columns)
