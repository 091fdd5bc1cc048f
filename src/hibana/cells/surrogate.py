"""The Heaviside step, and what to call its derivative.

``H(x) = 1 if x > 0 else 0`` has no useful derivative, so one is made up to suit: a *surrogate*. This
room holds the step and every surrogate; nothing in it knows about neurons or time.

A surrogate is a small immutable object. Calling it applies the step, and its
:meth:`~Surrogate.derivative` is what a backward pass multiplies the gradient with:

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

__all__ = [
    "ATan",
    "Box",
    "Erfc",
    "FastSigmoid",
    "Formula",
    "Gaussian",
    "Heaviside",
    "LeakyReLU",
    "PiecewiseExponential",
    "PiecewiseQuadratic",
    "Sigmoid",
    "Step",
    "StraightThrough",
    "Surrogate",
    "Triangle",
    "named",
]


@dataclass(frozen=True)
class Surrogate(ABC):
    """What to call the derivative of the Heaviside step.

    A subclass gives one formula, :meth:`derivative`, in pointwise PyTorch. Write a derivative that
    vanishes outside a window as ``torch.where(window, formula, 0)``: the layers below then know where
    a gradient can be used and compute it only there.

    Shape parameters are fields of the frozen dataclass. A ``float`` field must be positive and finite.
    """

    def __post_init__(self) -> None:
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
        """The value used for ``dH/dx`` at `x`; same shape and dtype as `x`."""

    def __call__(self, x: Tensor) -> Tensor:
        """``H(x)``, differentiated as this surrogate says."""
        spikes: Tensor = Heaviside.apply(x, self)
        return spikes

    def keep(self, x: Tensor) -> Tensor:
        """What a backward pass keeps of `x`: all that :meth:`restore` needs."""
        return x

    def restore(self, kept: Tensor, dtype: torch.dtype) -> Tensor:
        """The derivative, from what :meth:`keep` kept."""
        return self.derivative(kept)


@dataclass(frozen=True)
class _Window(Surrogate):
    """A derivative that is one constant inside a window and zero outside: one bit is all it needs."""

    @abstractmethod
    def window(self, x: Tensor) -> Tensor:
        """Where the derivative is not zero; boolean."""

    @property
    def height(self) -> float:
        """The derivative inside the window."""
        return 1.0

    @final
    def derivative(self, x: Tensor) -> Tensor:
        return self.restore(self.window(x), x.dtype)

    @final
    def keep(self, x: Tensor) -> Tensor:
        return self.window(x)

    @final
    def restore(self, kept: Tensor, dtype: torch.dtype) -> Tensor:
        inside = kept.to(dtype)
        return inside if self.height == 1.0 else inside * self.height


@final
@dataclass(frozen=True)
class Step(_Window):
    """The article's derivative: ``dH/dx = H(x)``; 1 where the neuron spiked, 0 elsewhere.

    Source: the article hibana starts from.
    """

    def window(self, x: Tensor) -> Tensor:
        return x > 0


@final
@dataclass(frozen=True)
class Box(_Window):
    """A rectangle: ``dH/dx = 1/width  if |x| < width/2  else 0``.

    Source: Wu, Deng, Li, Zhu & Shi (2018), *Spatio-temporal backpropagation for training
    high-performance spiking neural networks*, h1.
    """

    width: float = 1.0

    def window(self, x: Tensor) -> Tensor:
        return x.abs() < 0.5 * self.width

    @property
    def height(self) -> float:
        return 1.0 / self.width


@final
@dataclass(frozen=True)
class ATan(Surrogate):
    """``dH/dx = (alpha/2) / (1 + (pi/2 * alpha * x)^2)``, the derivative of ``arctan(pi/2 * alpha * x)/pi``.

    Source: Fang, Yu, Chen, Masquelier, Huang & Tian (2021), *Incorporating learnable membrane time
    constant to enhance learning of spiking neural networks*.
    """

    alpha: float = 2.0

    def derivative(self, x: Tensor) -> Tensor:
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
        return torch.exp(x.abs() * -self.alpha) * (0.5 * self.alpha)


@final
@dataclass(frozen=True)
class LeakyReLU(Surrogate):
    """``dH/dx = 1 if x > 0 else leak``: the article's derivative with a leak below the threshold.

    Source: Fang et al. (2023), *SpikingJelly* (there ``LeakyKReLU``).
    """

    leak: float = 0.01

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), torch.full_like(x, self.leak))


@final
@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """``dH/dx = 1``: the gradient passes as if the step were not there.

    Source: Bengio, Léonard & Courville (2013), *Estimating or propagating gradients through
    stochastic neurons for conditional computation*.
    """

    def derivative(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


@final
@dataclass(frozen=True)
class Formula(Surrogate):
    """A surrogate of your own, from one formula in pointwise PyTorch.

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
        return self.formula(x)


class _Once(torch.autograd.Function):
    """The step, differentiated backwards."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *_: Surrogate | Tensor) -> Tensor:  # not every Dynamo has defaults of objects
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *rest = inputs
        derivative = rest[0] if rest else Step()
        ctx.arguments = len(inputs)
        ctx.surrogate = None if isinstance(derivative, Tensor) else derivative
        kept = derivative if isinstance(derivative, Tensor) else derivative.keep(x)
        ctx.save_for_backward(kept)
        ctx.save_for_forward(kept)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        grad = grad_output * _restored(ctx.surrogate, kept, grad_output.dtype)
        return grad if ctx.arguments == 1 else (grad, None)


class _BothWays(_Once):
    """The step, differentiated forwards too, which torch.compile takes from no function of one's own."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (kept,) = ctx.saved_tensors
        return tangent * _restored(ctx.surrogate, kept, tangent.dtype)


def _restored(surrogate: Surrogate | None, kept: Tensor, dtype: torch.dtype) -> Tensor:
    """The derivative, which without a surrogate is what was kept."""
    return kept if surrogate is None else surrogate.restore(kept, dtype)


class Heaviside(_Once):
    """The step ``H(x) = 1 if x > 0 else 0``, with ``H(0) = 0``, in the dtype of `x`.

    ``Heaviside.apply(x)`` has the article's derivative, ``dH/dx = H(x)``, and saves one boolean per
    element for it. ``Heaviside.apply(x, surrogate)`` has the derivative that the surrogate gives; a tensor
    of the shape of `x` in its place is the derivative itself.

    >>> import torch
    >>> x = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
    >>> Heaviside.apply(x).sum().backward()
    >>> x.grad
    tensor([0., 0., 1.])
    """

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """The step of the first argument, differentiated as the second says."""
        if not torch.compiler.is_dynamo_compiling():
            if torch_internals.jit_trace() is not None:
                return written_out(*args, **kwargs)
            if in_forward_mode():
                return _BothWays.apply(*args, **kwargs)  # type: ignore[no-untyped-call] # torch leaves it so
        return super().apply(*args, **kwargs)  # type: ignore[no-untyped-call] # as above


def in_forward_mode() -> bool:
    """Whether derivatives are taken forwards, or by ``torch.func``."""
    return torch_internals.is_forward_mode() or torch_internals.current_transform() is not None


def written_out(x: Tensor, derivative: Surrogate | Tensor = Step()) -> Tensor:
    """The step in PyTorch's own operations, which ``torch.jit.trace`` can save.

    Of the second term only the derivative is not zero.
    """
    finite = torch.where(x.isfinite(), x, 0)
    at = finite.detach()
    factor = derivative if isinstance(derivative, Tensor) else derivative.derivative(at)
    term: Tensor = (finite - at) * factor
    return term + (x > 0).to(x.dtype)


def named(name: str) -> Surrogate:
    """The surrogate called `name`, at its defaults; case, ``-`` and ``_`` do not matter.

    >>> named("atan")
    ATan(alpha=2.0)

    Raises:
        ValueError: if there is none of that name; the message lists them all.
    """
    wanted = name.replace("-", "").replace("_", "").lower()
    for surrogate in _BUILT_IN:
        if surrogate.__name__.lower() == wanted:
            return surrogate()
    known = ", ".join(surrogate.__name__ for surrogate in _BUILT_IN)
    raise ValueError(f"surrogate must be one of {known}; got {name!r}")


_BUILT_IN: tuple[type[Surrogate], ...] = (
    Step,
    ATan,
    FastSigmoid,
    Sigmoid,
    Triangle,
    Box,
    Gaussian,
    Erfc,
    PiecewiseQuadratic,
    PiecewiseExponential,
    LeakyReLU,
    StraightThrough,
)
NAMES = tuple(surrogate.__name__ for surrogate in _BUILT_IN)
"""What :func:`named` knows."""
