"""``hb.spike``: the Heaviside step with any derivative, given as a tensor."""

import torch
from torch import Tensor

from hibana.cells.surrogate import Heaviside, Step, Surrogate
from hibana.runtime import torch_internals


def spike(x: Tensor, derivative: Tensor | Surrogate | None = None) -> Tensor:
    """``H(x) = 1 if x > 0 else 0``, whose derivative with respect to `x` is `derivative`.

        s = H(x),   dL/dx = dL/ds * derivative

    A surrogate is a derivative that depends on `x` alone. Within a cell, the derivative may be computed from
    any value of the step: a state, the input, a parameter, a trace. The backward treats it as a constant: no
    gradient flows into the values that it is computed from. All backends compile it.

    Args:
        x: the potential minus the threshold, floating point, any shape.
        derivative: a tensor of the dtype of `x` that broadcasts to its shape, or a surrogate; ``None`` for
            the article's, ``H(x)``. Write a derivative that vanishes outside a window as
            ``torch.where(window, formula, 0)``.

    Returns:
        Zeros and ones of the shape and dtype of `x`.

    Raises:
        TypeError: if `x` is no floating-point tensor, or `derivative` is neither a tensor of its dtype nor a
            surrogate.
        ValueError: if the derivative's shape does not broadcast to that of `x`.

    >>> import torch, hibana as hb
    >>> class Sharp(hb.Cell):
    ...     \"\"\"A leaky neuron whose spikes are as steep as its potential rises, at most 10.\"\"\"
    ...     def forward(self, input_, v_previous, s_previous):
    ...         v = 0.9 * v_previous * (1 - s_previous) + input_
    ...         rise = v - v_previous * (1 - s_previous)
    ...         return v, hb.spike(v - 1, torch.where(v > 0.5, 1 / rise.abs().clamp(min=0.1), 0))
    >>> hb.OverTime(Sharp())(torch.rand(5, 2, 3)).shape
    torch.Size([5, 2, 3])
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {_describe(x)}")
    if derivative is None:
        derivative = Step()
    if isinstance(derivative, Surrogate):
        return derivative(x)
    if not isinstance(derivative, Tensor) or derivative.dtype != x.dtype:
        raise TypeError(
            f"derivative must be a tensor of the dtype of x, {x.dtype}, or a surrogate such as "
            f"hb.surrogate.ATan(), got {_describe(derivative)}"
        )
    derivative = derivative.detach()
    # sizes are tensors, not integers, during torch.jit.trace
    tracing = torch_internals.jit_trace() is not None and not torch.compiler.is_dynamo_compiling()
    if not tracing and derivative.shape != x.shape:
        try:
            derivative = derivative.expand(x.shape)
        except RuntimeError:
            shapes = f"{tuple(x.shape)}, got shape {tuple(derivative.shape)}"
            raise ValueError(f"derivative must broadcast to the shape of x, {shapes}") from None
    spikes: Tensor = Heaviside.apply(x, derivative)
    return spikes


def _describe(value: object) -> str:
    """The type of `value` for an error message, with the dtype of a tensor."""
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
