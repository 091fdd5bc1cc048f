"""Random ways to run a step: shapes, memory layouts, dtypes, values, initial states and losses."""

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
    """One way to run a step."""

    shape: tuple[int, ...] = (5,)
    steps: int = 3
    dtype: torch.dtype = torch.float32
    values: str = "uniform"
    layout: str = "contiguous"
    state: str | None = None
    """Kind of values of the initial state; None for the resting state."""
    use: str = "outputs"
    setting: int = 0
    kind: int = 0
    """Index of the surrogate."""
    hook: bool = False
    """Whether a hook changes the gradient of the output."""
    seed: int = 0

    def inputs(self) -> Tensor:
        """A new tensor with the input sequence."""
        generator = torch.Generator().manual_seed(self.seed)
        steps = 1 if self.layout == "constant" else self.steps
        values = _values((steps, *self.shape), self.values, generator).to(self.dtype)
        return _apply_layout(values, self.layout, self.steps)

    def initial_state(self, states: int, dtype: torch.dtype) -> tuple[Tensor, ...] | None:
        """New tensors with the initial state, or None for the resting state."""
        if self.state is None:
            return None
        generator = torch.Generator().manual_seed(self.seed + 1)
        return tuple(_values(self.shape, self.state, generator).to(dtype) for _ in range(states))


def _values(shape: tuple[int, ...], kind: str, generator: torch.Generator) -> Tensor:
    uniform = 3 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    selector = torch.rand(shape, generator=generator, dtype=torch.float64)
    match kind:
        case "spikes":
            return (uniform > 0).double()
        case "signed zeros":
            return torch.where(selector < 0.4, -0.0, torch.where(selector < 0.6, 0.0, uniform))
        case "not a number":
            return torch.where(selector < 0.2, torch.nan, uniform)
        case "infinite":
            return torch.where(selector < 0.1, torch.inf, torch.where(selector < 0.2, -torch.inf, uniform))
        case "denormal":
            return torch.where(selector < 0.5, uniform * 1e-40, uniform)
        case "large":
            return uniform * 1e6
        case "whole":
            return uniform.round()
    return uniform


def _apply_layout(values: Tensor, layout: str, steps: int) -> Tensor:
    match layout:
        case "turned" if values.ndim > 2:
            return values.transpose(1, -1).contiguous().transpose(1, -1)
        case "strided":
            doubled = values.new_zeros(*values.shape[:-1], 2 * values.shape[-1])
            doubled[..., ::2] = values
            return doubled[..., ::2]
        case "offset":
            return torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape)
        case "constant":
            return values.expand(steps, *values.shape[1:])
        case "expanded":
            return values[..., :1].expand_as(values)
        case "reversed steps":
            return values.transpose(0, -1).contiguous().transpose(0, -1)
        case "every other step":
            return torch.stack([values, values], 1).flatten(0, 1)[::2]
        case "negated":
            return torch._neg_view(-values)
    return values


def variations(seed: int, count: int) -> Iterator[Variation]:
    """Yields `count` variations: first with one changed field, then with several."""
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
    single = [replace(plain, **{name: value}) for name, options in fields.items() for value in options]
    rng = random.Random(seed)
    total = 1
    for variation in single[: count // 3]:
        total += 1
        yield variation
    while total < count:
        total += 1
        changes = {name: rng.choice(options) for name, options in fields.items() if rng.random() < 0.6}
        if rng.random() < 0.05:
            changes["dtype"] = rng.choice(DTYPES)
        yield replace(plain, seed=seed + total, **changes)
