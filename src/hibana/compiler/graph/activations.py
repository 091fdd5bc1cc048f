"""Rules for the activation functions of ``torch.nn.functional``, and for their gradients.

Each does what PyTorch's kernel does (ATen/native/cpu), in its order, so that what IEEE determines is the same
to the last bit; of NaN what its vectors do, which the tails of its tensors don't always.
"""

import math
from typing import Any

from hibana.compiler.graph.terms import Rule, apply, times, where


def _hardtanh(x: Any, low: Any = -1, high: Any = 1) -> Any:
    high = x.lift(high)
    return apply("minimum", high, apply("maximum", low, x))


def _elu(x: Any, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Any:
    below = times(apply("elu", times(x, input_scale)), alpha * scale)
    return where(x < 0, below, times(x, scale))


def _elu_backward(grad: Any, alpha: Any, scale: Any, input_scale: Any, is_result: Any, x: Any) -> Any:
    below = times(grad, input_scale)
    if is_result:
        below = below * (x + float(alpha * scale))
    else:
        below = below * times(apply("exp", times(x, input_scale)), alpha * scale)
    return where(x > 0, times(grad, scale), below)  # of NaN, NaN


def _from_0_to_6(x: Any) -> Any:
    return apply("minimum", apply("maximum", x, 0), 6)


def _hardsigmoid_backward(grad: Any, x: Any) -> Any:
    sixth = 0.1666666716337204  # one of 32 bits, in PyTorch, whatever the dtype
    return where((x > -3) & (x < 3), grad * sixth, 0)


def _hardswish_backward(grad: Any, x: Any) -> Any:
    slope = x / 3 + 0.5
    return where(x <= -3, 0, where(x >= 3, grad, grad * slope))


def _softshrink(x: Any, bound: Any = 0.5) -> Any:
    above, below = x - bound, x + bound
    shrunk = where(x < -x.lift(bound), below, x * 0)
    return where(x > bound, above, shrunk)


def _shrink_backward(grad: Any, x: Any, bound: Any) -> Any:
    return where((x < -x.lift(bound)) | (x > bound), grad, 0)


def _softplus(x: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    """The expression of ``log(1 + exp(beta x)) / beta``, and of `x` where ``beta x > threshold``."""
    scaled = times(x, beta)
    smooth = apply("softplus", scaled)
    smooth = smooth if beta == 1 else smooth / float(beta)
    return where(scaled > threshold, x, smooth)


def _softplus_backward(grad: Any, x: Any, beta: Any, threshold: Any) -> Any:
    scaled = times(x, beta)
    smooth = grad * apply("sigmoid", scaled)
    return where(scaled > threshold, grad, smooth)


def _silu_backward(grad: Any, x: Any) -> Any:
    gate = apply("sigmoid", x)
    return grad * (gate * (1 + x * (1 - gate)))


def _mish_backward(grad: Any, x: Any) -> Any:
    part = apply("tanh", apply("softplus", x))
    return grad * (part + x * apply("sigmoid", x) * (1 - part * part))


def _gelu_backward(grad: Any, x: Any, approximate: Any = "none") -> Any:
    half, square = x.lift(0.5), x * x
    if approximate == "none":
        below = half * apply("erfc", x * -math.sqrt(0.5))
        density = apply("exp", square * -0.5)
        return grad * (below + x * (density * (1 / math.sqrt(2 * math.pi))))
    root = x.lift(math.sqrt(2 / math.pi))
    part = apply("tanh", root * (x + 0.044715 * (square * x)))
    inside = root * (1 + (3 * 0.044715) * square)
    return grad * (half * (1 + part) + half * x * ((1 - part * part) * inside))


def _logit(x: Any, eps: Any = None) -> Any:
    if eps is not None:
        low, high = x.lift(float(eps)), 1 - x.lift(float(eps))
        x = where(x < low, low, where(x > high, high, x))
    return apply("logit", x)


def _logit_backward(grad: Any, x: Any, eps: Any = None) -> Any:
    low = x.lift(0 if eps is None else float(eps))
    outside = (x < low) | (x > 1 - low)
    inside = grad / (x * (1 - x))
    return where(outside, x * 0 / (x * 0) if eps is None else 0, inside)


ACTIVATIONS: dict[str, Rule] = {
    **dict.fromkeys(("leaky_relu", "_prelu_kernel"), lambda x, slope=0.01: where(x > 0, x, x * slope)),
    "leaky_relu_backward": lambda grad, x, slope, is_result: where(x > 0, grad, grad * slope),
    "hardtanh": _hardtanh,
    "hardtanh_backward": lambda grad, x, low, high: where((x > low) & (x < high), grad, 0),
    "relu6": lambda x: _hardtanh(x, 0, 6),
    "threshold": lambda x, threshold, other: where(x <= threshold, other, x),
    "threshold_backward": lambda grad, x, threshold: where(x <= threshold, 0, grad),
    "elu": _elu,
    "elu_backward": _elu_backward,
    "celu": lambda x, alpha=1.0: _elu(x, alpha, 1.0, 1.0 / alpha),
    "hardsigmoid": lambda x: _from_0_to_6(x + 3) / 6,
    "hardsigmoid_backward": _hardsigmoid_backward,
    "hardswish": lambda x: x * _from_0_to_6(x + 3) / 6,
    "hardswish_backward": _hardswish_backward,
    "hardshrink": lambda x, bound=0.5: where((x >= -x.lift(bound)) & (x <= bound), 0, x),
    "softshrink": _softshrink,
    **dict.fromkeys(("hardshrink_backward", "softshrink_backward"), _shrink_backward),
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "log_sigmoid": lambda x: -apply("softplus", -x),
    "log_sigmoid_backward": lambda grad, x, buffer: grad * apply("sigmoid", -x),
    "sigmoid_backward": lambda grad, y: grad * ((1 - y) * y),
    "tanh_backward": lambda grad, y: grad * (1 - y * y),
    "silu_backward": _silu_backward,
    "mish_backward": _mish_backward,
    "gelu": lambda x, approximate="none": apply("gelu" if approximate == "none" else "gelu_tanh", x),
    "gelu_backward": _gelu_backward,
    "logit": _logit,
    "logit_backward": _logit_backward,
}
