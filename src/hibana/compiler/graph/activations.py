"""Rules for the activation functions of ``torch.nn.functional``, and for their gradients.

Each does what PyTorch's kernel does (ATen/native/cpu), in its order, so that what IEEE determines is the same
to the last bit; of NaN what its vectors do, which the tails of its tensors don't always. ``make(operation,
*values)`` makes a value, ``value`` gives that of an argument.
"""

import math
from typing import Any

from hibana.compiler.graph.choices import Make, times, where

__all__ = ["ACTIVATIONS"]


def _leaky_relu(make: Make, value: Make, x: Any, slope: Any = 0.01) -> Any:
    x = value(x)
    return where(make, make("gt", x, value(0)), x, make("mul", x, value(slope)))


def _leaky_relu_backward(make: Make, value: Make, grad: Any, x: Any, slope: Any, is_result: Any) -> Any:
    grad = value(grad)
    return where(make, make("gt", value(x), value(0)), grad, make("mul", grad, value(slope)))


def _hardtanh(make: Make, value: Make, x: Any, low: Any = -1, high: Any = 1) -> Any:
    return make("minimum", value(high), make("maximum", value(low), value(x)))


def _hardtanh_backward(make: Make, value: Make, grad: Any, x: Any, low: Any, high: Any) -> Any:
    x = value(x)
    inside = make("and", make("gt", x, value(low)), make("lt", x, value(high)))
    return where(make, inside, value(grad), value(0))


def _threshold(make: Make, value: Make, x: Any, threshold: Any, other: Any) -> Any:
    x = value(x)
    return where(make, make("le", x, value(threshold)), value(other), x)


def _elu(make: Make, value: Make, x: Any, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Any:
    x = value(x)
    negative = make("elu", times(make, value, x, input_scale))
    below = times(make, value, negative, alpha * scale)
    return where(make, make("lt", x, value(0)), below, times(make, value, x, scale))


def _elu_backward(
    make: Make, value: Make, grad: Any, alpha: Any, scale: Any, input_scale: Any, is_result: Any, x: Any
) -> Any:
    grad, x = value(grad), value(x)
    below = times(make, value, grad, input_scale)
    if is_result:
        below = make("mul", below, make("add", x, value(float(alpha * scale))))
    else:
        power = make("exp", times(make, value, x, input_scale))
        below = make("mul", below, times(make, value, power, alpha * scale))
    return where(make, make("gt", x, value(0)), times(make, value, grad, scale), below)  # of NaN, NaN


def _celu(make: Make, value: Make, x: Any, alpha: Any = 1.0) -> Any:
    return _elu(make, value, x, alpha, 1.0, 1.0 / alpha)


def _hardsigmoid(make: Make, value: Make, x: Any) -> Any:
    raised = make("add", value(x), value(3))
    return make("div", make("minimum", make("maximum", raised, value(0)), value(6)), value(6))


def _hardsigmoid_backward(make: Make, value: Make, grad: Any, x: Any) -> Any:
    x = value(x)
    inside = make("and", make("gt", x, value(-3)), make("lt", x, value(3)))
    sixth = value(0.1666666716337204)  # one of 32 bits, in PyTorch, whatever the dtype
    return where(make, inside, make("mul", value(grad), sixth), value(0))


def _hardswish(make: Make, value: Make, x: Any) -> Any:
    raised = make("minimum", make("maximum", make("add", value(x), value(3)), value(0)), value(6))
    return make("div", make("mul", value(x), raised), value(6))


def _hardswish_backward(make: Make, value: Make, grad: Any, x: Any) -> Any:
    grad, x = value(grad), value(x)
    slope = make("add", make("div", x, value(3)), value(0.5))
    inside = where(make, make("ge", x, value(3)), grad, make("mul", grad, slope))
    return where(make, make("le", x, value(-3)), value(0), inside)


def _hardshrink(make: Make, value: Make, x: Any, within: Any = 0.5) -> Any:
    x = value(x)
    return where(make, _within(make, value, x, within), value(0), x)


def _softshrink(make: Make, value: Make, x: Any, within: Any = 0.5) -> Any:
    x = value(x)
    above, below = make("sub", x, value(within)), make("add", x, value(within))
    shrunk = where(make, make("lt", x, make("neg", value(within))), below, make("mul", x, value(0)))
    return where(make, make("gt", x, value(within)), above, shrunk)


def _shrink_backward(make: Make, value: Make, grad: Any, x: Any, within: Any) -> Any:
    x = value(x)
    outside = make("or", make("lt", x, make("neg", value(within))), make("gt", x, value(within)))
    return where(make, outside, value(grad), value(0))


def _within(make: Make, value: Make, x: Any, bound: Any) -> Any:
    return make("and", make("ge", x, make("neg", value(bound))), make("le", x, value(bound)))


def _softplus(make: Make, value: Make, x: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    x = value(x)
    scaled = times(make, value, x, beta)
    smooth = make("softplus", scaled)
    smooth = smooth if beta == 1 else make("div", smooth, value(float(beta)))
    return where(make, make("gt", scaled, value(threshold)), x, smooth)


def _softplus_backward(make: Make, value: Make, grad: Any, x: Any, beta: Any, threshold: Any) -> Any:
    grad, scaled = value(grad), times(make, value, value(x), beta)
    smooth = make("mul", grad, make("sigmoid", scaled))
    return where(make, make("gt", scaled, value(threshold)), grad, smooth)


def _log_sigmoid(make: Make, value: Make, x: Any) -> Any:
    return make("neg", make("softplus", make("neg", value(x))))


def _log_sigmoid_backward(make: Make, value: Make, grad: Any, x: Any, buffer: Any) -> Any:
    return make("mul", value(grad), make("sigmoid", make("neg", value(x))))


def _sigmoid_backward(make: Make, value: Make, grad: Any, y: Any) -> Any:
    slope = make("mul", make("sub", value(1), value(y)), value(y))
    return make("mul", value(grad), slope)


def _silu_backward(make: Make, value: Make, grad: Any, x: Any) -> Any:
    x = value(x)
    gate = make("sigmoid", x)
    slope = make("add", value(1), make("mul", x, make("sub", value(1), gate)))
    return make("mul", value(grad), make("mul", gate, slope))


def _mish_backward(make: Make, value: Make, grad: Any, x: Any) -> Any:
    x = value(x)
    part = make("tanh", make("softplus", x))
    rest = make("sub", value(1), make("mul", part, part))
    slope = make("add", part, make("mul", make("mul", x, make("sigmoid", x)), rest))
    return make("mul", value(grad), slope)


def _gelu(make: Make, value: Make, x: Any, approximate: Any = "none") -> Any:
    return make("gelu" if approximate == "none" else "gelu_tanh", value(x))


def _gelu_backward(make: Make, value: Make, grad: Any, x: Any, approximate: Any = "none") -> Any:
    x = value(x)
    half, square = value(0.5), make("mul", x, x)
    if approximate == "none":
        below = make("mul", half, make("erfc", make("mul", x, value(-math.sqrt(0.5)))))
        density = make("exp", make("mul", square, value(-0.5)))
        return make(
            "mul",
            value(grad),
            make("add", below, make("mul", x, make("mul", density, value(1 / math.sqrt(2 * math.pi))))),
        )
    root = value(math.sqrt(2 / math.pi))
    inner = make("mul", root, make("add", x, make("mul", value(0.044715), make("mul", square, x))))
    part = make("tanh", inner)
    inside = make("mul", root, make("add", value(1), make("mul", value(3 * 0.044715), square)))
    rest = make("mul", make("sub", value(1), make("mul", part, part)), inside)
    left = make("mul", half, make("add", value(1), part))
    return make("mul", value(grad), make("add", left, make("mul", make("mul", half, x), rest)))


def _logit(make: Make, value: Make, x: Any, eps: Any = None) -> Any:
    x = value(x)
    if eps is not None:
        low, high = value(float(eps)), make("sub", value(1), value(float(eps)))
        x = where(make, make("lt", x, low), low, where(make, make("gt", x, high), high, x))
    return make("logit", x)


def _logit_backward(make: Make, value: Make, grad: Any, x: Any, eps: Any = None) -> Any:
    x = value(x)
    low = value(0 if eps is None else float(eps))
    high = make("sub", value(1), low)
    outside = make("or", make("lt", x, low), make("gt", x, high))
    inside = make("div", value(grad), make("mul", x, make("sub", value(1), x)))
    beyond = value(0) if eps is not None else make("div", make("mul", x, value(0)), make("mul", x, value(0)))
    return where(make, outside, beyond, inside)


ACTIVATIONS: dict[str, Make] = {
    "leaky_relu": _leaky_relu,
    "leaky_relu_backward": _leaky_relu_backward,
    "_prelu_kernel": _leaky_relu,
    "hardtanh": _hardtanh,
    "hardtanh_backward": _hardtanh_backward,
    "relu6": lambda make, value, x: _hardtanh(make, value, x, 0, 6),
    "threshold": _threshold,
    "elu": _elu,
    "elu_backward": _elu_backward,
    "celu": _celu,
    "hardsigmoid": _hardsigmoid,
    "hardsigmoid_backward": _hardsigmoid_backward,
    "hardswish": _hardswish,
    "hardswish_backward": _hardswish_backward,
    "hardshrink": _hardshrink,
    "hardshrink_backward": _shrink_backward,
    "softshrink": _softshrink,
    "softshrink_backward": _shrink_backward,
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "log_sigmoid": _log_sigmoid,
    "log_sigmoid_backward": _log_sigmoid_backward,
    "sigmoid_backward": _sigmoid_backward,
    "silu_backward": _silu_backward,
    "mish_backward": _mish_backward,
    "gelu": _gelu,
    "gelu_backward": _gelu_backward,
    "logit": _logit,
    "logit_backward": _logit_backward,
}
