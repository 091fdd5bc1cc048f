"""Ridge regression in closed form, its regularisation chosen by leave-one-out: fits linear readouts.

It knows features and targets only; what makes the features, and what the readout becomes, is elsewhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Ridge", "ridge"]

PENALTIES = torch.logspace(-5, 2, 15, dtype=torch.float64, device="cpu")
"""Candidate penalties, in units of the features' mean squared norm."""


class Ridge(NamedTuple):
    """``y = features @ weight.T + bias``, and what each sample is given by the fit to all other samples."""

    weight: Tensor
    """``[outputs, features]``."""
    bias: Tensor
    """``[outputs]``."""
    held_out: Tensor
    """Leave-one-out predictions, ``[N, outputs]``."""
    penalty: float
    """The penalty that was chosen, in units of the features' mean squared norm."""


def ridge(features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Ridge:
    """The ridge regression of least leave-one-out squared error.

        minimise over W, b   sum_i w_i |y_i - W z_i - b|^2 + penalty |W|^2,
        z the features scaled to deviation 1

    All leave-one-out errors follow from one eigendecomposition, of the Gram matrix ``[N, N]``, or of the
    covariance ``[F, F]`` where there are fewer features than samples.

    Args:
        features: ``[N, F]``.
        targets: ``[N, outputs]``.
        weights: of the samples, ``[N]``, positive; 1 each if ``None``.

    Returns:
        The fit, in double precision.

    Raises:
        ValueError: if a shape is another, there are fewer than two samples, or a number is not finite.

    Source: Hoerl & Kennard (1970), *Ridge regression*; Rifkin & Lippert (2007), *Notes on regularized least
    squares*, for leave-one-out errors.

    >>> import torch
    >>> x = torch.linspace(0, 1, 20)[:, None]
    >>> fitted = ridge(x, 3 * x + 1)
    >>> [round(float(value), 2) for value in (fitted.weight, fitted.bias)]
    [3.0, 1.0]
    """
    x, y, root = _checked(features, targets, weights)
    share = root.square() / root.square().sum()
    middle, centre = share @ x, share @ y
    x = x - middle
    deviation = (share @ x.square()).sqrt()
    constant = deviation <= 1e-9 * (1 + middle.abs())
    scale = torch.where(constant, 0.0, 1 / deviation.masked_fill(constant, 1.0))
    x, y = x * scale * root[:, None], (y - centre) * root[:, None]
    few = len(x) <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if few else x.T @ x)
    # rows of `x` in the basis of its left singular vectors; what has no variance is in none of them
    held = values > values[-1].clamp(min=1e-300) * 1e-12
    values, vectors = values[held], vectors[:, held]
    left = vectors if few else x @ vectors / values.sqrt()
    along = left.T @ y
    squared = left.square()
    unit = float(x.square().sum()) / len(x) or 1.0
    intercept = root.square() / root.square().sum()
    best: tuple[float, float, Tensor] | None = None
    for penalty in PENALTIES.tolist():
        shrunk = values / (values + penalty * unit)
        residual = y - left @ (shrunk[:, None] * along)
        free = (1 - squared @ shrunk - intercept).clamp(min=1e-9)  # 1 - diagonal of the hat matrix
        error = residual / free[:, None]
        total = float(error.square().sum())
        if best is None or total < best[0]:
            best = total, penalty, error
    assert best is not None
    _, penalty, error = best
    dual = left @ (along / (values + penalty * unit)[:, None])
    weight = (dual.T @ x) * scale
    return Ridge(weight, centre - weight @ middle, (y - error) / root[:, None] + centre, penalty)


def _checked(features: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Features and targets in double precision, and the roots of the samples' weights."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be [N, F] of at least two samples, got {tuple(features.shape)}")
    if targets.ndim != 2 or len(targets) != len(features):
        raise ValueError(f"targets must be [{len(features)}, outputs], got {tuple(targets.shape)}")
    x, y = features.double(), targets.double()
    root = x.new_ones(len(x)) if weights is None else weights.double().sqrt()
    if root.shape != (len(x),) or not bool((root > 0).all()):
        raise ValueError(f"weights must be positive, one for each of {len(x)} samples, got {weights!r}")
    for name, values in (("features", x), ("targets", y), ("weights", root)):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name} must be finite")
    return x, y, root
