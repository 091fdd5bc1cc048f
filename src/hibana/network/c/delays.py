"""Layers that look back in C: what spikes add to later steps, or what was given, in a ring of steps.

A window and delayed synapses keep no inputs. A spike adds its weights to the sums of the steps at which they
arrive; each step takes its own sum out of the ring. So work follows the number of spikes, and the ring is as
long as the longest delay. A layer of delays keeps what it was given, which is read later.
"""

from dataclasses import dataclass
from typing import Any

from hibana.network.c.memory import Held
from hibana.network.c.rows import Active
from hibana.network.c.text import block, each
from hibana.network.graph import Node

__all__ = ["Ring", "delayed", "late", "reach_of", "window"]


@dataclass(frozen=True)
class Ring:
    """An array of the numbers of several steps, of which one is the present."""

    array: str
    steps: int
    size: int
    """Numbers of a step."""
    now: str
    """Which step of it is the present one."""
    now_kind: str

    def resets(self) -> list[str]:
        """Empties it."""
        return [*each("o", self.steps * self.size, [f"{self.array}[o] = 0;"]), f"{self.now} = 0;"]

    def goes_on(self) -> str:
        """Makes the next step the present one."""
        return f"{self.now} = ({self.now_kind})({self.now} + 1 < {self.steps} ? {self.now} + 1 : 0);"

    def taken(self, out: str, bias: str, period: int) -> list[str]:
        """The sums of the present step, and a bias that is the same every `period` numbers, into `out`."""
        place = "o" if period == self.size else f"o % {period}"
        there = f"{self.array}[{self.now} * {self.size} + o]"
        added = f" + {bias}[{place}]" if bias else ""
        return [*each("o", self.size, [f"{out}[o] = {there}{added};", f"{there} = 0;"]), self.goes_on()]


def window(
    node: Node, held: Held, over: Active, ring: Ring, out: str, weights: str, bias: str, order: str
) -> list[str]:
    """A convolution over time; `order` is an array of the channels, if they lie in another order."""
    module: Any = node.module
    channels, outputs = module.in_channels, module.out_channels
    of_group, pixels = outputs // module.groups, node.size // outputs
    if order:
        c, p = f"{order}[i]", "0"
    elif pixels == 1:
        c, p = "i", "0"
    elif held.channels_last(node.seen[0]):
        c, p = f"i % {channels}", f"i / {channels}"
    else:
        c, p = f"i / {pixels}", f"i % {pixels}"
    pixel = ring.size if pixels == 1 else outputs
    first = f"at * {ring.size}" + (f" + p * {pixel}" if pixels > 1 else "")
    group = f" + c / {channels // module.groups} * {of_group}" if module.groups > 1 else ""
    times = "x * " if over.valued else ""
    step, steps = f"at + {module.dilation}", ring.steps
    later = f"at = {step} < {steps} ? {step} : {step} - {steps}"
    added = each("o", of_group, [f"{ring.array}[{first}{group} + o] += {times}{weights}[c][k][o];"])
    taps = block(f"for (size_t k = {module.kernel_size}; k-- > 0; {later})", added)
    place = [f"const size_t c = {c};", *([f"const size_t p = {p};"] if pixels > 1 else [])]
    lines = block(over.head, [*over.begins, *place, f"size_t at = {ring.now};", *taps])
    return [*lines, *ring.taken(out, bias, outputs)]


def delayed(
    node: Node, over: Active, ring: Ring, out: str, weights: str, delays: str, bias: str
) -> list[str]:
    """A linear layer with a delay for each synapse."""
    times = "x * " if over.valued else ""
    at = f"(at < {ring.steps} ? at : at - {ring.steps}) * {ring.size} + o"
    added = [
        f"const size_t at = (size_t){ring.now} + {delays}[i][o];",
        f"{ring.array}[{at}] += {times}{weights}[i][o];",
    ]
    lines = block(over.head, [*over.begins, *each("o", node.size, added)])
    return [*lines, *ring.taken(out, bias, node.size)]


def late(held: Held, ring: Ring, out: str, delay: str) -> list[str]:
    """What was given as many steps ago as `delay` says of number ``i``."""
    given = f"{ring.array}[{ring.now} * {ring.size} + i] = {held.numbers}[i];"
    at = [f"const size_t at = (size_t){ring.now} + {ring.steps} - {delay};"]
    read = f"{out}[i] = {ring.array}[(at < {ring.steps} ? at : at - {ring.steps}) * {ring.size} + i];"
    return [*each("i", ring.size, [given]), *each("i", ring.size, [*at, read]), ring.goes_on()]


def reach_of(node: Node) -> int:
    """How many steps before the present one a window sees."""
    module: Any = node.module
    return int(module.reach)
