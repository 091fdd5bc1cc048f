"""The Heaviside step and its surrogate derivatives.

``H(x) = 1 if x > 0 else 0`` has no useful derivative, so a backward pass uses another one: a *surrogate*. The
module contains the step and all surrogates, and does not depend on neurons or time.

A surrogate is a small immutable object. Calling it applies the step, and the backward pass multiplies the
gradient with its :meth:`~Surrogate.derivative`:

>>> import torch
>>> from hibana.cells.surrogate import ATan, Heaviside
>>> x = torch.tensor([-1.0, 0.0, 0.5], requires_grad=True)
>>> Heaviside.apply(x)
tensor([0., 0., 1.], grad_fn=<HeavisideBackward>)
>>> ATan(alpha=2.0)(x).sum().backward()
>>> x.grad
tensor([0.0920, 1.0000, 0.2884])
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, final

import torch
from torch import Tensor

from hibana.runtime import torch_internals

__all__ = ["ATan", "Box", "Erfc", "FastSigmoid", "Formula", "Gaussian", "Heaviside", "LeakyReLU"]
__all__ += ["PiecewiseExponential", "PiecewiseQuadratic", "Sigmoid", "Step", "StraightThrough", "Surrogate"]
__all__ += ["Triangle", "named"]


@dataclass(frozen=True)
class Surrogate(ABC):
    """A replacement for the derivative of the Heaviside step.

    A subclass defines one formula, :meth:`derivative`, in pointwise PyTorch. Write a derivative that vanishes
    outside a window as ``torch.where(window, formula, 0)``: the layer before the neurons then computes the
    gradient of its output only inside the window.

    Shape parameters are fields of the frozen dataclass. A ``float`` field must be positive and finite.
    """

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError unless all ``float`` fields are positive and finite."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is not float:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{field.name} must be a float, got {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name} must be positive and finite, got {value!r}")

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """The surrogate of ``dH/dx`` at `x`, element by element; same shape and dtype as `x`."""

    def __call__(self, x: Tensor) -> Tensor:
        """``H(x)``, with this surrogate's derivative in the backward pass."""
        spikes: Tensor = Heaviside.apply(x, self)
        return spikes


@final
@dataclass(frozen=True)
class Step(Surrogate):
    """The article's derivative: ``dH/dx = H(x)``; 1 where the neuron spiked, 0 elsewhere.

    Source: the article hibana starts from.
    """

    def derivative(self, x: Tensor) -> Tensor:
        """1 where ``x > 0``, 0 elsewhere."""
        return (x > 0).to(x.dtype)


@final
@dataclass(frozen=True)
class Box(Surrogate):
    """A rectangle: ``dH/dx = 1/width  if |x| < width/2  else 0``.

    Source: Wu, Deng, Li, Zhu & Shi (2018), *Spatio-temporal backpropagation for training
    high-performance spiking neural networks*, h1.
    """

    width: float = 1.0

    def derivative(self, x: Tensor) -> Tensor:
        """``1/width`` where ``|x| < width/2``, 0 elsewhere."""
        inside = (x.abs() < 0.5 * self.width).to(x.dtype)
        return inside if self.width == 1.0 else inside * (1.0 / self.width)


@final
@dataclass(frozen=True)
class ATan(Surrogate):
    """``dH/dx = (alpha/2) / (1 + (pi/2 * alpha * x)^2)``, the derivative of ``arctan(pi/2 * alpha * x)/pi``.

    Source: Fang, Yu, Chen, Masquelier, Huang & Tian (2021), *Incorporating learnable membrane time
    constant to enhance learning of spiking neural networks*.
    """

    alpha: float = 2.0

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative of the arc tangent of `x`, scaled to ``alpha/2`` at 0."""
        scaled = x * (0.5 * math.pi * self.alpha)
        return (0.5 * self.alpha) / (scaled * scaled + 1.0)


@final
@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """``dH/dx = 1 / (1 + slope*|x|)^2``, the derivative of ``x / (1 + slope*|x|)`` (SuperSpike).

    Source: Zenke & Ganguli (2018), *SuperSpike: supervised learning in multilayer spiking neural
    networks*.
    """

    slope: float = 25.0

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative of the fast sigmoid of `x`, 1 at 0."""
        root = x.abs() * self.slope + 1.0
        return 1.0 / (root * root)


@final
@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """``dH/dx = alpha * s * (1 - s)`` with ``s = 1/(1 + exp(-alpha*x))``, the logistic function.

    Source: Zenke & Vogels (2021), *The remarkable robustness of surrogate gradient learning*.
    """

    alpha: float = 4.0

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative of the logistic function of ``alpha*x``, ``alpha/4`` at 0."""
        logistic = torch.sigmoid(x * self.alpha)
        return logistic * (1.0 - logistic) * self.alpha


@final
@dataclass(frozen=True)
class Triangle(Surrogate):
    """``dH/dx = height * max(0, 1 - |x|/width)``.

    Source: Bellec, Salaj, Subramoney, Legenstein & Maass (2018), *Long short-term memory and
    learning-to-learn in networks of spiking neurons* (there with ``height`` 0.3).
    """

    width: float = 1.0
    height: float = 1.0

    def derivative(self, x: Tensor) -> Tensor:
        """A triangle: `height` at 0, falling linearly to 0 at ``|x| = width``."""
        distance = x.abs()
        return torch.where(distance < self.width, (1.0 - distance / self.width) * self.height, 0.0)


@final
@dataclass(frozen=True)
class PiecewiseQuadratic(Surrogate):
    """``dH/dx = alpha - alpha^2 * |x|  if |x| < 1/alpha  else 0``: a triangle of area one.

    Source: Esser, Merolla, Arthur et al. (2016), *Convolutional networks for fast, energy-efficient
    neuromorphic computing*.
    """

    alpha: float = 1.0

    def derivative(self, x: Tensor) -> Tensor:
        """A triangle of area one: `alpha` at 0, falling linearly to 0 at ``|x| = 1/alpha``."""
        distance = x.abs() * self.alpha
        return torch.where(distance < 1.0, (1.0 - distance) * self.alpha, 0.0)


@final
@dataclass(frozen=True)
class Gaussian(Surrogate):
    """``dH/dx = exp(-x^2 / (2 sigma^2)) / (sigma * sqrt(2 pi))``, the normal density.

    Source: Yin, Corradi & Bohté (2021), *Accurate and efficient time-domain classification with
    adaptive spiking recurrent neural networks*.
    """

    sigma: float = 0.5

    def derivative(self, x: Tensor) -> Tensor:
        """The density at `x` of the normal distribution with standard deviation `sigma`."""
        scaled = x / self.sigma
        return torch.exp(scaled * scaled * -0.5) / (self.sigma * math.sqrt(2.0 * math.pi))


@final
@dataclass(frozen=True)
class Erfc(Surrogate):
    """``dH/dx = alpha/sqrt(pi) * exp(-(alpha*x)^2)``, the derivative of ``erfc(-alpha*x)/2``.

    Source: Fang et al. (2023), *SpikingJelly: an open-source machine learning infrastructure platform
    for spike-based intelligence* (there ``Erf``).
    """

    alpha: float = 2.0

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative of ``erfc(-alpha*x)/2``, a normal density."""
        scaled = x * self.alpha
        return torch.exp(-(scaled * scaled)) * (self.alpha / math.sqrt(math.pi))


@final
@dataclass(frozen=True)
class PiecewiseExponential(Surrogate):
    """``dH/dx = alpha/2 * exp(-alpha*|x|)``.

    Source: Shrestha & Orchard (2018), *SLAYER: spike layer error reassignment in time*.
    """

    alpha: float = 1.0

    def derivative(self, x: Tensor) -> Tensor:
        """An exponential decay on both sides of 0, where it is ``alpha/2``."""
        return torch.exp(x.abs() * -self.alpha) * (0.5 * self.alpha)


@final
@dataclass(frozen=True)
class LeakyReLU(Surrogate):
    """``dH/dx = 1 if x > 0 else leak``: the article's derivative with a leak below the threshold.

    Source: Fang et al. (2023), *SpikingJelly* (there ``LeakyKReLU``).
    """

    leak: float = 0.01

    def derivative(self, x: Tensor) -> Tensor:
        """1 where ``x > 0``, `leak` elsewhere."""
        return torch.where(x > 0, torch.ones_like(x), torch.full_like(x, self.leak))


@final
@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """``dH/dx = 1``: the gradient passes through the step unchanged.

    Source: Bengio, Léonard & Courville (2013), *Estimating or propagating gradients through
    stochastic neurons for conditional computation*.
    """

    def derivative(self, x: Tensor) -> Tensor:
        """1 for every `x`."""
        return torch.ones_like(x)


@final
@dataclass(frozen=True)
class Formula(Surrogate):
    """A custom surrogate, from one formula in pointwise PyTorch.

    Args:
        formula: ``x -> dH/dx``. A function at the top of a module pickles; a lambda does not.

    >>> import torch
    >>> mine = Formula(lambda x: torch.exp(-x.abs()))
    >>> mine.derivative(torch.tensor([0.0, 1.0]))
    tensor([1.0000, 0.3679])
    """

    formula: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.formula):
            raise TypeError(f"formula must be callable, x -> dH/dx, got {self.formula!r}")

    def derivative(self, x: Tensor) -> Tensor:
        """The surrogate derivative at `x`, by the user's formula."""
        return self.formula(x)


class _ReverseMode(torch.autograd.Function):
    """The step with a derivative in reverse mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, *_: Surrogate | Tensor
    ) -> Tensor:  # some versions of Dynamo reject object defaults
        """``H(x)``, in the dtype of `x`; the optional second argument is the derivative or a surrogate."""
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves the derivative, or `x` and the surrogate that computes the derivative from it."""
        x, *optional = inputs
        argument = optional[0] if optional else Step()
        ctx.argument_count = len(inputs)
        ctx.surrogate = None if isinstance(argument, Tensor) else argument
        saved = argument if isinstance(argument, Tensor) else x
        ctx.save_for_backward(saved)
        ctx.save_for_forward(saved)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        """The gradient of `x`, and None for the optional second argument."""
        grad = grad_output * _derivative(ctx)
        return grad if ctx.argument_count == 1 else (grad, None)


class _BothModes(_ReverseMode):
    """The step with a derivative in forward mode too, which torch.compile does not support."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        """The tangent of the output, from the `tangent` of `x`."""
        return tangent * _derivative(ctx)


def _derivative(ctx: Any) -> Tensor:
    """The derivative of the step at the input of the node `ctx`."""
    (saved,) = ctx.saved_tensors
    derivative: Tensor = saved if ctx.surrogate is None else ctx.surrogate.derivative(saved)
    return derivative


class Heaviside(_ReverseMode):
    """The step ``H(x) = 1 if x > 0 else 0``, with ``H(0) = 0``, in the dtype of `x`.

    ``Heaviside.apply(x)`` has the article's derivative, ``dH/dx = H(x)``, and ``Heaviside.apply(x,
    surrogate)`` the surrogate's. The second argument may also be the derivative itself, a tensor of the shape
    of `x`.

    >>> import torch
    >>> x = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
    >>> Heaviside.apply(x).sum().backward()
    >>> x.grad
    tensor([0., 0., 1.])
    """

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """A step function of the first argument; its gradient uses the derivative in the second argument."""
        if not torch.compiler.is_dynamo_compiling():
            if torch_internals.jit_trace() is not None:
                return step_in_torch(*args, **kwargs)
            if in_forward_mode():
                return _BothModes.apply(*args, **kwargs)  # type: ignore[no-untyped-call] # untyped in torch
        return super().apply(*args, **kwargs)  # type: ignore[no-untyped-call] # untyped in torch


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation or a transform of ``torch.func`` is active."""
    return torch_internals.is_forward_mode() or torch_internals.current_transform() is not None


def step_in_torch(x: Tensor, derivative: Surrogate | Tensor = Step()) -> Tensor:
    """The step in PyTorch's own operations, which ``torch.jit.trace`` can save.

    It is the sum of the step and of a term that is zero, and whose derivative is the surrogate's.
    """
    finite = torch.where(x.isfinite(), x, 0)
    point = finite.detach()  # the same values, without a gradient
    factor = derivative if isinstance(derivative, Tensor) else derivative.derivative(point)
    zero: Tensor = (finite - point) * factor
    return zero + (x > 0).to(x.dtype)


def named(name: str) -> Surrogate:
    """The surrogate with this `name` and default arguments; case, ``-`` and ``_`` are ignored.

    >>> named("atan")
    ATan(alpha=2.0)

    Raises:
        ValueError: for an unknown name; the message lists all names.
    """
    key = name.replace("-", "").replace("_", "").lower()
    for surrogate in _BUILT_IN:
        if surrogate.__name__.lower() == key:
            return surrogate()
    raise ValueError(f"surrogate must be one of {', '.join(NAMES)}; got {name!r}")


_BUILT_IN: tuple[type[Surrogate], ...] = (Step, ATan, FastSigmoid, Sigmoid, Triangle, Box, Gaussian, Erfc)
_BUILT_IN += (PiecewiseQuadratic, PiecewiseExponential, LeakyReLU, StraightThrough)
NAMES = tuple(surrogate.__name__ for surrogate in _BUILT_IN)
"""The names that :func:`named` accepts."""
