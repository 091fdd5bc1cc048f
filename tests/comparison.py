"""How a run of a cell is compared with the reference: one place, so that one test can show it compares."""

from dataclasses import dataclass

import torch
from torch import Tensor

import hibana as hb


@dataclass
class Outcome:
    """Everything that a run gives: what it emits, its last states, and every gradient."""

    outputs: Tensor
    state: list[Tensor]
    gradients: dict[str, Tensor | None]


def outcome(
    cell: hb.Cell, inputs: Tensor, state: list[Tensor] | None, backend: str, *, through: str = "both"
) -> Outcome:
    """`cell` over `inputs`, and the gradients of a fixed random functional of what comes `through`.

    Args:
        cell: one step.
        inputs: ``[T, ...]``.
        state: where to begin; at rest if None.
        backend: who runs it.
        through: ``"outputs"``, ``"state"`` or ``"both"``.
    """
    given = inputs.detach().clone().requires_grad_() if inputs.stride(0) else inputs.detach()[0].clone()
    given.requires_grad_()
    run_on = given if inputs.stride(0) else given.expand(inputs.shape)
    begun = None if state is None else [value.detach().clone().requires_grad_() for value in state]
    cell.zero_grad()
    outputs, last = hb.unroll(cell, run_on, begun, backend=backend)
    generator = torch.Generator().manual_seed(1)
    ends = {"outputs": [outputs], "state": list(last), "both": [outputs, *last]}[through]
    weights = [torch.randn(e.shape, generator=generator, dtype=e.dtype) for e in ends]
    # a state that no leaf enters needs no gradient, and the reference says so
    torch.stack([(e * w).sum() for e, w in zip(ends, weights, strict=True)]).sum().backward()
    leaves = {"inputs": given, **{f"state {i}": value for i, value in enumerate(begun or [])}}
    leaves |= dict(cell.named_parameters())
    return Outcome(outputs.detach(), [v.detach() for v in last], {k: v.grad for k, v in leaves.items()})


def assert_same(found: Outcome, wanted: Outcome, tolerance: float) -> None:
    """States and outputs to the last bit; gradients to `tolerance` of the largest of their kind."""
    pairs = {"outputs": (found.outputs, wanted.outputs)}
    pairs |= {f"last state {i}": p for i, p in enumerate(zip(found.state, wanted.state, strict=True))}
    for name, (one, other) in pairs.items():
        assert one.dtype == other.dtype, name
        assert one.shape == other.shape, name
        same = (one == other) | (one.isnan() & other.isnan())
        assert bool(same.all()), f"{name} differs at {int((~same).sum())} of {same.numel()} places"
    assert found.gradients.keys() == wanted.gradients.keys()
    for name, other in wanted.gradients.items():
        one = found.gradients[name]
        if other is None or one is None:
            left = other if one is None else one
            assert left is None or not bool(left.any()), f"gradient of {name} is missing"
            continue
        assert one.shape == other.shape, name
        assert bool((one.isnan() == other.isnan()).all()), f"gradient of {name}: NaN in one only"
        scale = float(other.nan_to_num().abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(
            one,
            other,
            rtol=0,
            atol=tolerance * max(scale, 1.0),
            equal_nan=True,
            msg=lambda m, n=name: f"gradient of {n}: {m}",
        )
