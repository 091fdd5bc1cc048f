"""The random numbers of a step in PyTorch: the specification of every backend's random numbers.

A number is a function of the seed of the call, of the step of time, of the neuron, and of the draw's number
within the step. So a backward computes the numbers of the forward again, and stores none. The key of the
generator (:mod:`hibana.compiler.generator`) is the seed; the draw's number is added to its upper word. The
counter is the element's index in the tensor, and the number of the step. Elements i and i + 16 of each 32
share a counter: i gets its first word and i + 16 its second, or each gets one of a pair of normal numbers. A
uniform float64 number takes both words of its own counter:

    uniform = floor(w / 2**8) 2**-24 in float32;  w0 2**-32 + floor(w1 / 2**11) 2**-53 in float64

A Poisson number inverts the distribution function at a uniform number (:func:`poisson`).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hibana.compiler import generator
from hibana.compiler.generator import Numbers, key_schedule
from hibana.runtime import torch_internals

_MASK = 0xFFFFFFFF
_BITS = {torch.bfloat16: 8, torch.float16: 11}
"""Bits of a uniform number of half precision; with more bits a number could round to 1."""


def new_seed() -> int:
    """64 bits from torch's default CPU generator, which ``torch.manual_seed`` seeds."""
    limits = torch.iinfo(torch.int64)
    return int(torch.randint(limits.min, limits.max, (), dtype=torch.int64, device="cpu"))


def key(seed: int, number: int) -> tuple[int, int]:
    """The key of draw `number` of a step: its lower and its upper word."""
    return seed & _MASK, ((seed >> 32) + number) & _MASK


def uniform(seed: int, number: int, step: int, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1): draw `number` of `step`, with the shape, dtype and device of `like`."""
    values = _numbers("uniform", seed, number, step, like)
    if (bits := _BITS.get(like.dtype)) is not None:
        values = (values * 2.0**bits).floor() * 2.0**-bits
    return values.to(like.dtype)


def normal(seed: int, number: int, step: int, like: Tensor) -> Tensor:
    """Normal numbers, computed in float32: draw `number` of `step`, with the shape and dtype of `like`."""
    return _numbers("normal", seed, number, step, like).to(like.dtype)


def _numbers(distribution: str, seed: int, number: int, step: int, like: Tensor) -> Tensor:
    """Random numbers with the shape and device of `like`, in float64 or float32."""
    element = torch.arange(like.numel(), dtype=torch.int64, device=like.device)
    schedule = key_schedule(_TENSORS, *key(seed, number))
    steps, in_float64 = torch.full_like(element, step), like.dtype == torch.float64
    values: Tensor = generator.numbers(_TENSORS, distribution, schedule, element, steps, in_float64)
    return values.view(like.shape)


def poisson(u: Tensor, rate: Tensor, p_zero: Tensor) -> Tensor:
    """The smallest k with ``u < P(0) + ... + P(k)``, P the Poisson distribution with mean `rate` in [0, 64].

    ``P(k) = P(k - 1) * (rate * (1 / k))`` is added up in the order of k, in the dtype of the arguments; so
    the result is exact up to the resolution of `u`, which is 2**-24 in float32. The sum ends where it no
    longer grows. The result is NaN for a `rate` outside of [0, 64].

    Args:
        u: uniform numbers in [0, 1).
        rate: the means, with the shape of `u`.
        p_zero: ``P(0) = exp(-rate)``.
    """
    count, probability, total = torch.zeros_like(u), p_zero, p_zero
    k = 0
    while bool((is_above := u >= total).any()):
        k += 1
        count = torch.where(is_above, count + 1, count)
        probability = probability * (rate * (1 / k))
        grown = total + probability
        total = torch.where(grown > total, grown, math.inf)
    return torch.where((rate >= 0) & (rate <= LARGEST_RATE), count, math.nan)


LARGEST_RATE = 64
"""The largest mean of a Poisson number; the loop over k takes about as many turns as the largest result."""


_TENSORS = Numbers(
    add=lambda one, other: (one + other) & _MASK,
    rotate_left=lambda word, by: ((word << by) | (word >> (32 - by))) & _MASK,
    real=lambda word: word.to(torch.float32),
    double=lambda word: word.to(torch.float64),
    bits=lambda number: number.view(torch.int32).to(torch.int64) & _MASK,
    number=lambda word: word.to(torch.int32).view(torch.float32),
    root=lambda number: number.to(torch.float64).sqrt().to(torch.float32),  # float32's may be an ulp off
    where=torch.where,
)
"""The operations on int64 tensors that hold 32-bit words, and on float32 tensors."""


class Drawing(TorchFunctionMode):
    """A context that makes ``torch.rand_like`` and similar functions return the numbers of :attr:`step`.

    Functions outside of the table :data:`_DRAWS`, and calls with a generator, draw as torch does.
    """

    def __init__(self, name: str) -> None:
        """Starts at step 0, without a seed; `name` is the class of the cell."""
        super().__init__()
        self.name = name
        """The class of the cell, for error messages."""
        self.step = 0
        self.seed: int | None = None
        self._last = (-1, 0)
        """The step and the number of the last draw; step -1 before the first draw."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of torch's function `func`, or of its replacement in :data:`_DRAWS`."""
        kwargs = kwargs or {}
        draw = _DRAWS.get(func)
        if draw is None or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        options = {name: value for name, value in kwargs.items() if name not in ("generator", "input")}
        tensor = (kwargs["input"],) if "input" in kwargs else ()
        numbers = draw(self, *tensor, *args, **options)
        return func(*args, **kwargs) if numbers is None else numbers

    def uniform(self, like: Tensor) -> Tensor:
        """The next uniform numbers of the step, with the shape and dtype of `like`."""
        return uniform(*self._next(like), like)

    def normal(self, like: Tensor) -> Tensor:
        """The next normal numbers of the step, with the shape and dtype of `like`."""
        return normal(*self._next(like), like)

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson numbers with the means `rate`, in its shape and dtype; half precision uses float32."""
        mean = rate.detach() if rate.dtype == torch.float64 else rate.detach().float()
        return poisson(self.uniform(mean), mean, torch.exp(-mean)).to(rate.dtype)

    def _next(self, like: Tensor) -> tuple[int, int, int]:
        """The seed, the number of the next draw, and the step."""
        if not like.dtype.is_floating_point:
            raise TypeError(f"a step can draw only floating-point numbers, got {like.dtype}")
        if self.seed is None:
            _check_may_draw(self.name)
            self.seed = new_seed()
        step, number = self._last
        self._last = self.step, number + 1 if step == self.step else 0
        return self.seed, self._last[1], self.step


def _check_may_draw(name: str) -> None:
    """Raises ``RuntimeError`` if a program would contain a seed, or several samples would share one."""
    draws = f"the step of {name} draws random numbers"
    if torch_internals.jit_trace() is not None:
        raise RuntimeError(f"{draws}, which torch.jit.trace would record as constants")
    if torch.compiler.is_exporting():
        raise RuntimeError(f"{draws}, which a program of PyTorch's operations can't do")
    if torch_internals.is_vmap_active():
        raise RuntimeError(
            f"{draws}, and torch.vmap would draw the same numbers for each sample: move the mapped dimension "
            "into the batch"
        )


def _filled(distribution: str, empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The replacement of a function such as ``torch.rand``, which fills a new tensor with random numbers.

    Args:
        distribution: ``"uniform"`` or ``"normal"``.
        empty: ``torch.empty`` or ``torch.empty_like``, which takes the same arguments.
    """

    def draw(
        drawing: Drawing, *args: Any, requires_grad: bool = False, out: Tensor | None = None, **options: Any
    ) -> Tensor:
        """The numbers, with the arguments of torch's function."""
        like = empty(*args, **options) if out is None else out.detach()
        values: Tensor = getattr(drawing, distribution)(like)
        if out is not None:
            return out.copy_(values)
        return values.requires_grad_() if requires_grad else values

    return draw


def _bernoulli(drawing: Drawing, p: Tensor | float, like: Tensor) -> Tensor:
    """Zeros and ones like `like`, which are 1 with probability `p`."""
    return (drawing.uniform(like.detach()) < p).to(like.dtype)


def _torch_bernoulli(
    drawing: Drawing, x: Tensor, p: float | None = None, *, out: Tensor | None = None
) -> Tensor:
    """``torch.bernoulli`` with its arguments."""
    numbers = _bernoulli(drawing, x.detach() if p is None else p, x)
    return numbers if out is None else out.copy_(numbers)


def _dropout(
    drawing: Drawing, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor | None:
    """``torch.nn.functional.dropout`` with its arguments; None if it draws nothing or raises."""
    if not (training and 0 < p < 1 and x.numel()):
        return None
    factors = _bernoulli(drawing, 1 - p, x).div_(1 - p)
    return x.mul_(factors) if inplace else x * factors


def _uniform_(drawing: Drawing, x: Tensor, *ends: float, **named: Any) -> Tensor:
    """``Tensor.uniform_`` with its arguments: `ends` are the interval's lower and upper end, or fewer."""
    low, high = (*ends, *(0.0, 1.0)[len(ends) :])
    low, high = named.get("from", low), named.get("to", high)  # `from` can't be a parameter in Python
    return x.copy_(drawing.uniform(x) * (high - low) + low)


_TENSOR: Any = Tensor
"""Its methods are descriptors, which torch's type stubs lack."""

_DRAWS: dict[Any, Callable[..., Tensor | None]] = {
    torch.rand_like: _filled("uniform", torch.empty_like),
    torch.randn_like: _filled("normal", torch.empty_like),
    torch.rand: _filled("uniform", torch.empty),
    torch.randn: _filled("normal", torch.empty),
    torch.bernoulli: _torch_bernoulli,
    torch.poisson: lambda drawing, rates: drawing.poisson(rates),
    _TENSOR.bernoulli: _torch_bernoulli,
    _TENSOR.bernoulli_: lambda drawing, x, p=0.5: x.copy_(_bernoulli(drawing, p, x)),
    _TENSOR.uniform_: _uniform_,
    _TENSOR.normal_: lambda drawing, x, mean=0.0, std=1.0: x.copy_(drawing.normal(x) * std + mean),
    functional.dropout: _dropout,
}
"""Replacements of torch's functions, with their arguments; None means that torch's function shall run."""
