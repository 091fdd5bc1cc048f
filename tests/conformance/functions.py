"""Eighty pointwise functions of torch and torch.nn.functional that users write into a step.

``python -m conformance.functions``, in the folder ``tests``, prints which of them the CPU's kernels support.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import hibana as hb


@dataclass(frozen=True)
class Function:
    """A function, and a range of numbers where it and its derivative are finite."""

    of: Callable[..., Tensor]
    low: float = -3.0
    high: float = 3.0
    arguments: int = 1


SLOPE = torch.full((1,), 0.3)

ONE: dict[str, Function] = {
    **{f"torch.{name}": Function(getattr(torch, name)) for name in ("abs", "neg", "square", "sign", "sgn")},
    **{
        f"torch.{name}": Function(getattr(torch, name))
        for name in ("floor", "ceil", "trunc", "round", "frac")
    },
    **{f"torch.{name}": Function(getattr(torch, name)) for name in ("exp", "exp2", "expm1", "erf", "erfc")},
    **{f"torch.{name}": Function(getattr(torch, name), 0.1) for name in ("log", "log2", "log10", "log1p")},
    **{f"torch.{name}": Function(getattr(torch, name), 0.1) for name in ("sqrt", "rsqrt", "reciprocal")},
    **{f"torch.{name}": Function(getattr(torch, name)) for name in ("sin", "cos", "atan", "sinh", "cosh")},
    **{f"torch.{name}": Function(getattr(torch, name)) for name in ("tanh", "asinh", "sigmoid")},
    **{
        f"torch.{name}": Function(getattr(torch, name), -0.9, 0.9)
        for name in ("tan", "asin", "acos", "atanh")
    },
    "torch.erfinv": Function(torch.erfinv, -0.9, 0.9),
    "torch.acosh": Function(torch.acosh, 1.2, 5.0),
    "torch.pow": Function(lambda x: torch.pow(x, 2.3), 0.1),
    "torch.nan_to_num": Function(torch.nan_to_num),
    "torch.clamp": Function(lambda x: torch.clamp(x, -0.6, 0.7)),
    **{
        f"functional.{name}": Function(getattr(functional, name))
        for name in ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "softplus")
    },
    **{
        f"functional.{name}": Function(getattr(functional, name))
        for name in ("logsigmoid", "hardtanh", "softsign", "tanhshrink")
    },
    "functional.threshold": Function(lambda x: functional.threshold(x, 0.1, 20.0)),
}
TWO: dict[str, Function] = {
    **{
        f"torch.{name}": Function(getattr(torch, name), arguments=2) for name in ("add", "sub", "mul", "rsub")
    },
    **{f"torch.{name}": Function(getattr(torch, name), 0.1, arguments=2) for name in ("div",)},
    **{f"torch.{name}": Function(getattr(torch, name), 0.1, arguments=2) for name in ("pow", "hypot")},
    **{
        f"torch.{name}": Function(getattr(torch, name), arguments=2)
        for name in ("maximum", "minimum", "fmax")
    },
    **{f"torch.{name}": Function(getattr(torch, name), 0.1, arguments=2) for name in ("fmod", "remainder")},
    **{f"torch.{name}": Function(getattr(torch, name), 0.1, arguments=2) for name in ("atan2",)},
    "torch.remainder, negative": Function(lambda x, y: torch.remainder(x, -y), 0.1, arguments=2),
    "torch.fmin": Function(torch.fmin, arguments=2),
    "torch.copysign": Function(torch.copysign, 0.1, arguments=2),
    "torch.floor_divide": Function(lambda x, y: torch.div(x, y, rounding_mode="floor"), 0.1, arguments=2),
    "torch.heaviside": Function(lambda x, y: torch.heaviside(x.detach(), y.detach()) + x, arguments=2),
    "torch.lerp": Function(lambda x, y: torch.lerp(x, y, 0.3), arguments=2),
    "torch.lerp, tensor": Function(lambda x, y: torch.lerp(x, y, torch.sigmoid(x)), arguments=2),
    "torch.addcmul": Function(lambda x, y: torch.addcmul(x, x, y, value=0.7), arguments=2),
    "torch.addcdiv": Function(lambda x, y: torch.addcdiv(x, x, y, value=0.7), 0.1, arguments=2),
    "torch.where": Function(lambda x, y: torch.where(x > y, x, y * y), arguments=2),
    "torch.ge": Function(lambda x, y: x * (x >= y), arguments=2),
    "torch.clamp, tensor": Function(lambda x, y: torch.clamp(x, min=y), arguments=2),
    "torch.isfinite": Function(lambda x, y: torch.where(torch.isfinite(x / y), x, y), 0.1, arguments=2),
    "torch.isnan": Function(lambda x, y: torch.where(torch.isnan(x), y, x), arguments=2),
    "torch.logical_and": Function(lambda x, y: torch.logical_and(x, y) * x, arguments=2),
    "functional.prelu": Function(lambda x, y: functional.prelu(x, SLOPE.to(x.dtype)) + y, arguments=2),
}
FUNCTIONS = {**ONE, **{name if name not in ONE else f"{name}, two": f for name, f in TWO.items()}}


class Applied(hb.Cell):
    """A step that applies one function to a mix of input and state, or to this mix and its mirror image."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor]:
        f = self.function
        inside = f.low + (f.high - f.low) * torch.clamp(0.9 * x + 0.1 * torch.tanh(v), 0.0, 1.0)
        if f.arguments == 1:
            return (f.of(inside),)
        return (f.of(inside, f.high - 0.4 * (inside - f.low)),)


def refusals() -> dict[str, str]:
    """The reason per function that is not compiled."""
    reasons = {}
    for name, function in FUNCTIONS.items():
        report = hb.explain(Applied(function)).split("source", 1)[0]
        if "reference loop" in report:
            reasons[name] = report.partition("because ")[2].strip()
    return reasons


def main() -> None:
    refused = refusals()
    for name, reason in refused.items():
        print(f"{name}: {reason}")
    print(f"{len(FUNCTIONS) - len(refused)} of {len(FUNCTIONS)} compile")


if __name__ == "__main__":
    main()
