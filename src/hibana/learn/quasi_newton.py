"""Minimization of many functions at once by BFGS, and Newton's steps of one."""

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From points ``[parameters, starts]`` to values ``[starts]`` and gradients ``[parameters, starts]``."""
MOST_CHANGE = 1.0
"""Greatest length of a step."""
DIFFERENCE = 1e-3
"""Distance of the gradients whose difference is the curvature."""
LEAST_CURVATURE = 1e-6
"""Least absolute eigenvalue of the curvature."""


def minimize(function: Function, x: Tensor, evaluations: int) -> tuple[Tensor, Tensor]:
    """The points and values after BFGS from each column of `x`; a value that is not finite is refused.

    Each evaluation tries one step of every start. A start whose value does not decrease enough (Armijo) tries
    a step of 0.3 times the length next.

    Source: Nocedal & Wright (2006), *Numerical optimization*, chapters 3 and 6.
    """
    value, gradient = function(x)
    value = value.nan_to_num(torch.inf, torch.inf)
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device).expand(x.shape[1], -1, -1)
    inverse, is_new, length = identity, torch.ones_like(value).bool(), torch.ones_like(value)
    for _ in range(evaluations):
        direction = -torch.einsum("sij,js->is", inverse, gradient)
        direction = direction / direction.norm(dim=0).div(MOST_CHANGE).clamp(min=1)
        step = direction * length
        next_value, next_gradient = function(x + step)
        enough = value + 1e-4 * (step * gradient).sum(0)
        accepted = (next_value <= enough) & next_gradient.isfinite().all(0)
        change = next_gradient - gradient
        product = (step * change).sum(0)
        updated = accepted & (product > 1e-12)
        scale = (product / change.square().sum(0))[:, None, None]
        previous = torch.where((updated & is_new)[:, None, None], identity * scale, inverse)
        outer = torch.einsum("is,js->sij", step, change) / product[:, None, None]
        factor = identity - outer
        squares = torch.einsum("is,js->sij", step, step) / product[:, None, None]
        following = factor @ previous @ factor.mT + squares
        inverse = torch.where(updated[:, None, None], following, inverse)
        is_new = is_new & ~updated
        x = torch.where(accepted, x + step, x)
        gradient = torch.where(accepted, next_gradient, gradient)
        value = torch.where(accepted, next_value, value)
        length = torch.where(accepted, (2 * length).clamp(max=1), 0.3 * length)
        is_stuck = length < 1e-3  # the curvature is wrong here: follow the gradient
        inverse = torch.where(is_stuck[:, None, None], identity, inverse)
        is_new, length = is_new | is_stuck, torch.where(is_stuck, 0.1, length)
    return x, value


def newton(function: Function, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The point after Newton's steps from `x`, ``[parameters]``, and the inverse of the curvature there.

    The curvature has the absolute eigenvalues of the second derivatives, so that no step leads to a saddle
    (Dauphin et al. 2014). A step has the one of several lengths with the lowest value.
    """
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    lengths = x.new_tensor([0.0, 0.01, 0.1, 0.3, 1.0])
    for _ in range(steps):
        points = [x[:, None], x[:, None] + DIFFERENCE * identity, x[:, None] - DIFFERENCE * identity]
        _, gradients = function(torch.cat(points, 1))
        gradient, upper, lower = gradients.tensor_split((1, 1 + len(x)), 1)
        second = (upper - lower).nan_to_num(0.0, 0.0, 0.0) / (2 * DIFFERENCE)
        eigenvalues, vectors = torch.linalg.eigh((second + second.mT) / 2)
        inverse = (vectors / eigenvalues.abs().clamp(min=LEAST_CURVATURE)) @ vectors.mT
        step = -inverse @ gradient
        trials = x[:, None] + step / step.norm().div(MOST_CHANGE).clamp(min=1) * lengths
        x = trials[:, function(trials)[0].nan_to_num(torch.inf).argmin()]
    return x, inverse
