"""Ridge regression in closed form, with the penalty of the least leave-one-out error."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Ridge", "ridge"]

PENALTIES = torch.logspace(-5, 2, 15, dtype=torch.float64, device="cpu")
"""Candidate penalties, in units of the features' mean squared norm."""


class Ridge(NamedTuple):
    """``y = features @ weight.T + bias``, and the prediction of each sample by a fit to all other samples."""

    weight: Tensor
    """``[outputs, features]``."""
    bias: Tensor
    """``[outputs]``."""
    held_out: Tensor
    """Leave-one-out predictions, ``[N, outputs]``."""
    penalty: float
    """The penalty with the least error, in units of the features' mean squared norm."""


def ridge(features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Ridge:
    """The ridge regression with the least leave-one-out squared error among several penalties.

        minimize over W, b   sum_i w_i |y_i - W z_i - b|^2 + penalty |W|^2,
        z the features scaled to deviation 1

    All leave-one-out errors are computed from one eigendecomposition, of the Gram matrix ``[N, N]``, or of
    the covariance ``[F, F]`` if there are fewer features than samples.

    Args:
        features: ``[N, F]``.
        targets: ``[N, outputs]``.
        weights: positive weights of the samples, ``[N]``; 1 each if ``None``.

    Returns:
        The fit, in double precision.

    Raises:
        ValueError: if a shape is wrong, there are fewer than two samples, or a number is not finite.

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
    x_mean, y_mean = share @ x, share @ y
    x = x - x_mean
    deviation = (share @ x.square()).sqrt()
    constant = deviation <= 1e-9 * (1 + x_mean.abs())
    scale = torch.where(constant, 0.0, 1 / deviation.masked_fill(constant, 1.0))
    x, y = x * scale * root[:, None], (y - y_mean) * root[:, None]
    is_wide = len(x) <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if is_wide else x.T @ x)
    is_positive = values > values[-1].clamp(min=1e-300) * 1e-12
    values, vectors = values[is_positive], vectors[:, is_positive]
    left_vectors = vectors if is_wide else x @ vectors / values.sqrt()  # [N, rank]
    projection = left_vectors.T @ y
    squared = left_vectors.square()
    unit = float(x.square().sum()) / len(x) or 1.0
    best: tuple[float, float, Tensor] | None = None
    for penalty in PENALTIES.tolist():
        shrunk = values / (values + penalty * unit)
        residual = y - left_vectors @ (shrunk[:, None] * projection)
        remainder = (1 - squared @ shrunk - share).clamp(min=1e-9)  # 1 - diagonal of the hat matrix
        error = residual / remainder[:, None]
        total = float(error.square().sum())
        if best is None or total < best[0]:
            best = total, penalty, error
    assert best is not None
    _, penalty, error = best
    dual = left_vectors @ (projection / (values + penalty * unit)[:, None])
    weight = (dual.T @ x) * scale
    return Ridge(weight, y_mean - weight @ x_mean, (y - error) / root[:, None] + y_mean, penalty)


def _checked(features: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Features and targets in double precision, and the square roots of the samples' weights, ``[N]``."""
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
