"""The ways in which one step is run: shapes, layouts, dtypes, values, states, and what a loss is made of."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Variation", "variations"]

SHAPES = [(5,), (2, 3), (1,), (13,), (2, 1, 5), (3, 2, 2, 5), (65,), (0,), (2, 64)]
VALUES = ["uniform", "spikes", "signed zeros", "not a number", "infinite", "denormal", "large", "whole"]
LAYOUTS = [
    "contiguous",
    "turned",
    "strided",
    "offset",
    "constant",
    "expanded",
    "reversed steps",
    "every other step",
]
LAYOUTS += ["negated"]
USES = ["outputs", "outputs and states", "states", "first state", "last step", "second step", "nothing"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Variation:
    """One case of a step."""

    shape: tuple[int, ...] = (5,)
    steps: int = 3
    dtype: torch.dtype = torch.float32
    values: str = "uniform"
    layout: str = "contiguous"
    state: str | None = None
    """The values of the state begun with; None is at rest."""
    use: str = "outputs"
    setting: int = 0
    kind: int = 0
    """Which surrogate."""
    hook: bool = False
    """Whether the gradient of what is emitted is changed by a hook."""
    seed: int = 0

    def inputs(self) -> Tensor:
        """The sequence, made anew."""
        generator = torch.Generator().manual_seed(self.seed)
        steps = 1 if self.layout == "constant" else self.steps
        made = _values((steps, *self.shape), self.values, generator).to(self.dtype)
        return _laid_out(made, self.layout, self.steps)

    def begun(self, states: int, dtype: torch.dtype) -> tuple[Tensor, ...] | None:
        """The state, made anew."""
        if self.state is None:
            return None
        generator = torch.Generator().manual_seed(self.seed + 1)
        return tuple(_values(self.shape, self.state, generator).to(dtype) for _ in range(states))


def _values(shape: tuple[int, ...], kind: str, generator: torch.Generator) -> Tensor:
    uniform = 3 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    chosen = torch.rand(shape, generator=generator, dtype=torch.float64)
    match kind:
        case "spikes":
            return (uniform > 0).double()
        case "signed zeros":
            return torch.where(chosen < 0.4, -0.0, torch.where(chosen < 0.6, 0.0, uniform))
        case "not a number":
            return torch.where(chosen < 0.2, torch.nan, uniform)
        case "infinite":
            return torch.where(chosen < 0.1, torch.inf, torch.where(chosen < 0.2, -torch.inf, uniform))
        case "denormal":
            return torch.where(chosen < 0.5, uniform * 1e-40, uniform)
        case "large":
            return uniform * 1e6
        case "whole":
            return uniform.round()
    return uniform


def _laid_out(made: Tensor, layout: str, steps: int) -> Tensor:
    match layout:
        case "turned" if made.ndim > 2:
            return made.transpose(1, -1).contiguous().transpose(1, -1)
        case "strided":
            room = made.new_zeros(*made.shape[:-1], 2 * made.shape[-1])
            room[..., ::2] = made
            return room[..., ::2]
        case "offset":
            return torch.cat([made.new_zeros(1), made.flatten()])[1:].view(made.shape)
        case "constant":
            return made.expand(steps, *made.shape[1:])
        case "expanded":
            return made[..., :1].expand_as(made)
        case "reversed steps":
            return made.transpose(0, -1).contiguous().transpose(0, -1)
        case "every other step":
            return torch.stack([made, made], 1).flatten(0, 1)[::2]
        case "negated":
            return torch._neg_view(-made)
    return made


def variations(seed: int, count: int) -> Iterator[Variation]:
    """`count` variations, the plain ones first: one thing is changed, then several at once."""
    plain = Variation(seed=seed)
    yield plain
    fields: dict[str, list[Any]] = {
        "use": USES,
        "values": VALUES,
        "state": [None, *VALUES],
        "dtype": DTYPES[:2],
        "shape": SHAPES,
        "layout": LAYOUTS,
        "setting": list(range(14)),
        "kind": list(range(8)),
        "steps": [1, 2, 7],
        "hook": [True],
    }
    single = [replace(plain, **{name: value}) for name, values in fields.items() for value in values]
    chosen = random.Random(seed)
    made = 1
    for variation in single[: count // 3]:
        made += 1
        yield variation
    while made < count:
        made += 1
        drawn = {name: chosen.choice(values) for name, values in fields.items() if chosen.random() < 0.6}
        if chosen.random() < 0.05:
            drawn["dtype"] = chosen.choice(DTYPES)
        yield replace(plain, seed=seed + made, **drawn)
