"""Energy of an inference: operations, and reads and writes of memory by level, at the prices of one process.

The counts are of a machine that keeps each layer's weights, states and activations in memories of their own,
as large as these need, and works per spike where a layer's input is spikes. They are an estimate for
comparisons, with its assumptions in the result; nothing is measured.

Source: Lemaire et al. (2022), *An analytical estimation of spiking neural networks energy efficiency*, for
what is read and written; Yan, Bai & Wong (2024), *Reconsidering the energy efficiency of spiking neural
networks*, arXiv 2409.08290, for why operations alone mislead; Horowitz (2014), *Computing's energy problem
(and what we can do about it)*, for the prices, at 45 nm.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from hibana.nn.ledger import ARITHMETIC, LEVELS, Account, Arithmetic, Ledger
from hibana.nn.operations import watch_layers
from hibana.nn.running import evaluating

__all__ = ["Account", "Energy", "energy"]


@final
@dataclass(frozen=True)
class Energy:
    """What :func:`energy` found. Printed, it is a table with its assumptions.

    Attributes:
        network: of the network.
        against: of the dense network beside it, if one was given.
        arithmetic: the numbers that both compute with.
    """

    network: Account
    against: Account | None
    arithmetic: str

    def __str__(self) -> str:
        accounts = [each for each in (self.network, self.against) if each is not None]
        rows = [["", *("network", "dense")[: len(accounts)]]]

        def add(what: str, values: Iterable[str]) -> None:
            rows.append([what, *values])

        add("additions", (f"{each.additions:,.0f}" for each in accounts))
        add("multiplications", (f"{each.multiplications:,.0f}" for each in accounts))
        for verb in ("reads", "writes"):
            every = [getattr(each, verb) for each in accounts]
            for key in sorted({key for counts in every for key in counts}, key=_order):
                add(f"{verb}, {key[0]} in {key[1]}", (f"{counts.get(key, 0):,.0f}" for counts in every))
        add("energy of operations", (_joules(each.arithmetic) for each in accounts))
        add("energy of memory", (_joules(each.memory) for each in accounts))
        add("energy, estimated", (_joules(each.joules) for each in accounts))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(row[1:], widths[1:], strict=True))]
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, "", *(f"- {each}" for each in self.assumptions())])

    def assumptions(self) -> list[str]:
        """What the figures stand on, a sentence each."""
        price = ARITHMETIC[self.arithmetic]
        levels = ", ".join(f"{name} {joules * 1e12:,.0f}" for name, (_, joules) in LEVELS.items())
        missed = sorted({name for each in (self.network, self.against) if each for name in each.uncounted})
        said = [
            f"all figures are of one sample; {self.arithmetic}: {price.addition * 1e12:g} pJ an addition, "
            f"{price.multiplication * 1e12:g} pJ a multiplication (45 nm, Horowitz 2014)",
            f"an access of 64 bits takes, in pJ: {levels}; one of {price.bits} bits its share of that",
            "weights, states and activations of a layer lie each in the smallest memory that holds them",
            "a spike is written and read once; for each output that it reaches, a weight is read, and a sum "
            "read and written",
            "a layer of values reads an input and a weight for each multiplication (a linear layer each "
            "input once), adds up in a register, and writes each output once; of equal steps only the first",
            "at each step a neuron reads its input and its states, writes its states, and computes its "
            "step as it is written: a product with a spike is a multiplication",
            "batch normalisation is folded into weights; addressing, communication and idle power are free",
        ]
        if missed:
            said.append(f"not counted: {', '.join(missed)}")
        return said


@torch.no_grad()
def energy(
    net: nn.Module,
    data: Tensor | Iterable[Any],
    *,
    against: nn.Module | tuple[nn.Module, Tensor | Iterable[Any]] | None = None,
    arithmetic: str = "float32",
) -> Energy:
    """What an inference of `net` takes: additions, multiplications, and memory by level, in joules.

        joules = additions * e_add + multiplications * e_mul + sum over levels of accesses * e_level

    Both networks run in evaluation mode, and are left in the mode that they were in. The estimate's
    assumptions are printed with it (:meth:`Energy.assumptions`).

    Args:
        net: called with ``[T, batch, ...]``.
        data: samples ``[T, batch, ...]``, or batches: tensors, or tuples that begin with one.
        against: a dense network to compare with, on the same data; with data of its own,
            ``(network, data)``: of one step, ``[1, batch, ...]``, of a network without time. All of its
            inputs are values, zeros included.
        arithmetic: what numbers are computed with: ``float32``, ``float16``, ``int32`` or ``int8``.

    Raises:
        ValueError: if `arithmetic` is none of these, or there is no sample.

    Source: as of this module.

    >>> import torch, hibana as hb
    >>> net = nn.Sequential(nn.Linear(8, 16), hb.IF(), nn.Linear(16, 4), hb.LI())
    >>> dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> x = torch.rand(3, 8)
    >>> found = energy(net, x.expand(5, 3, 8), against=(dense, x[None]))
    >>> found.against.multiplications
    192.0
    """
    if arithmetic not in ARITHMETIC:
        raise ValueError(f"arithmetic must be one of {', '.join(ARITHMETIC)}, got {arithmetic!r}")
    batches = _batches(data)
    price = ARITHMETIC[arithmetic]
    network = _account(net, batches, price, dense=False)
    other = None
    if against is not None:
        dense, theirs = against if isinstance(against, tuple) else (against, data)
        their_batches = batches if theirs is data else _batches(theirs)
        other = _account(dense, their_batches, price, dense=True)
    return Energy(network, other, arithmetic)


def _batches(data: Tensor | Iterable[Any]) -> list[Tensor]:
    given = [data] if isinstance(data, Tensor) else list(data)
    batches = [each if isinstance(each, Tensor) else each[0] for each in given]
    if not batches or any(each.ndim < 2 or each.numel() == 0 for each in batches):
        raise ValueError("data must hold at least one sample, [T, batch, ...]")
    return batches


def _account(net: nn.Module, batches: list[Tensor], price: Arithmetic, *, dense: bool) -> Account:
    """What `net` does for a sample of `batches`."""
    ledger, samples = Ledger(price, dense), sum(each.shape[1] for each in batches)
    with evaluating(net), watch_layers(net, ledger.synapses, ledger.others):
        for each in batches:
            net(each)
    return ledger.account(samples)


def _order(key: tuple[str, str]) -> tuple[str, int]:
    """By what they are, then from the smallest level on."""
    return key[0], list(LEVELS).index(key[1])


def _joules(value: float) -> str:
    for unit, size in (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6), ("nJ", 1e-9)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-12:.3g} pJ"
