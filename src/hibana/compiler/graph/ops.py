"""The table of operations: for each operation a row with its form in each target language and its properties.

An operation without an entry for a language raises :class:`Unsupported` there. PyTorch's operations that are
compositions of rows are in :mod:`hibana.compiler.graph.aten`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from hibana.compiler.draws import poisson


class Unsupported(RuntimeError):  # noqa: N818 # callers also catch it to choose another backend
    """A compiled backend does not support a step or a call; the message is the reason."""


Expression = str | tuple[Any, ...]
"""An expression: a digit, an argument such as ``"{0}"``, or an operation's name and its arguments."""

Interval = tuple[float, float]
"""Lower and upper bound of a value."""


@dataclass(frozen=True)
class Operation:
    """One pointwise operation."""

    name: str
    arity: int
    text: str
    """Its form in equations. Like all forms it is a template, with ``{0}``, ``{1}``, … for the arguments."""
    triton: str = ""
    """Triton: ``REAL`` is the number type, ``DIVIDED`` and ``ROOT`` a quotient and root as in IEEE 754."""
    onnx: str = ""
    """ONNX's operator, or two operators, to apply one after the other."""
    aten: tuple[str, ...] = ()
    """ATen operations that are equal to this operation, with the same order of arguments."""
    eager: Callable[..., Tensor] | None = None
    """PyTorch's function of tensors, if its name is not `name`."""
    boolean: bool = False
    """Whether the result is a boolean."""
    takes_booleans: bool = False
    """Whether it takes booleans as arguments; other operations take 0 and 1 instead."""
    on_booleans: str = ""
    """The operation that PyTorch computes instead if all arguments are booleans."""
    call: bool = False
    """Whether a function computes it for a row of neurons, since IEEE 754 does not determine the result."""
    effort: float = 0.1
    """The cost of computing it again in the backward pass, in stored bits."""
    energy: Literal["", "addition", "multiplication"] = ""
    """How an energy estimate counts it."""
    mkl: str = ""
    """The function of MKL that may compute it; likewise `sleef`, and `libm` of the C library."""
    sleef: str = ""
    libm: str = ""
    hibana: bool = False
    """Whether hibana has a function for it (:mod:`hibana.compiler.cpu.vector_math`)."""
    expansion: Expression = ""
    """Its form in other operations, for gradients if no function is available; its error may exceed 2 ulp."""
    bounds: Callable[..., Interval] | None = None
    """Bounds of an integer result, from those of the arguments."""
    finite: bool = False
    """Whether the result is finite if the arguments are."""
    integer: bool = False
    """Whether the result is an integer if the arguments are."""
    zero_at_zero: bool = False
    """Whether the result is zero if any argument is zero and the others are finite."""
    linear: bool = False
    """Whether it is linear in some of its arguments while the others are constant."""

    @property
    def function(self) -> Callable[..., Tensor]:
        """PyTorch's function of tensors."""
        function: Callable[..., Tensor] = self.eager or getattr(torch, self.name)
        return function


def _same(x: Any) -> Any:
    return x


def _first_if(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`x` where the condition holds or `x` is NaN, else `y`."""
    return torch.where(condition | x.isnan(), x, y)


def _sum(a: Interval, b: Interval) -> Interval:
    """Bounds of ``a + b``. The next functions are likewise bounds of a result, from those of arguments."""
    return a[0] + b[0], a[1] + b[1]


def _product(a: Interval, b: Interval) -> Interval:
    """Bounds of ``a * b``."""
    ends = [x * y for x in a for y in b]
    return min(ends), max(ends)


def _opposite(a: Interval) -> Interval:
    """Bounds of ``-a``."""
    return -a[1], -a[0]


def _binary(name: str, sign: str, **columns: Any) -> Operation:
    """The row of an arithmetic operation of two numbers, written with `sign` between them."""
    text = f"({{0}} {sign} {{1}})"
    columns = {"triton": text, **columns}
    return Operation(name, 2, text, onnx=name.capitalize(), **columns)


def _comparison(name: str, sign: str, onnx: str) -> Operation:
    """The row of a comparison, which is `sign` in Python and Triton."""
    text = f"({{0}} {sign} {{1}})"
    return Operation(name, 2, text, text, onnx, (name,), boolean=True)


def _logical(name: str, text: str, triton: str) -> Operation:
    """The row of an operation on booleans, with its form in equations and Triton."""
    aten, eager = (f"logical_{name}", f"bitwise_{name}"), getattr(torch, f"logical_{name}")
    columns: Any = {"boolean": True, "takes_booleans": True, "eager": eager}
    return Operation(name, text.count("{"), text, triton, name.capitalize(), aten, **columns)


def _extreme(name: str, sign: str, **columns: Any) -> Operation:
    """The row of ``maximum`` or ``minimum`` of two numbers: NaN if one of them is, as in torch.

    The result is the first number if ``first sign second``. Of zeros with different signs it is the second;
    in torch it depends on their position in the tensor.
    """
    triton = f"tl.where(({{0}} {sign} {{1}}) | ({{0}} != {{0}}), {{0}}, {{1}})"
    short = name[:3]
    row = Operation(name, 2, f"{short}({{0}}, {{1}})", triton, short.capitalize(), (name,))
    pick = max if name == "maximum" else min
    bounds: Any = lambda a, b: (pick(a[0], b[0]), pick(a[1], b[1]))  # noqa: E731
    return replace(row, energy="addition", integer=True, finite=True, bounds=bounds, **columns)


def _function(name: str, triton: str, n: int = 1, **columns: Any) -> Operation:
    """The row of an operation of `n` numbers that is written as a function."""
    plain = ", ".join(f"{{{i}}}" for i in range(n))
    row = Operation(name, n, f"{name}({plain})", triton, aten=(name,))
    return replace(row, **columns)


_ROUGH_ON_CUDA = ("acosh", "asinh")
"""Functions that compute an approximate root in CUDA's library."""


def _call(name: str, arity: int = 1, *, mkl: str = "", libm: str = "", **columns: Any) -> Operation:
    """The row of an operation that a function of the libraries MKL or libm computes for a row of neurons."""
    text = f"{name}({', '.join(f'{{{i}}}' for i in range(arity))})"
    triton = f"libdevice.{text}" if (mkl or libm) and arity == 1 and name not in _ROUGH_ON_CUDA else ""
    row = Operation(name, arity, text, triton, aten=(name,), call=True, mkl=mkl, libm=libm)
    return replace(row, effort=8.0, energy="multiplication", **columns)


_with: Callable[..., Operation] = replace
"""A copy of a row with other columns. Untyped: each column has its own type."""
_NE = "({0} != 0)"
_ADDITION: Any = {"energy": "addition", "integer": True, "finite": True, "linear": True}
_PRODUCT: Any = {"energy": "multiplication"}
_PRESERVING: Any = {"finite": True, "integer": True}

OPERATIONS: dict[str, Operation] = {
    row.name: row
    for row in (
        _comparison("gt", ">", "Greater"),
        _comparison("ge", ">=", "GreaterOrEqual"),
        _comparison("lt", "<", "Less"),
        _comparison("le", "<=", "LessOrEqual"),
        _comparison("eq", "==", "Equal"),
        _comparison("ne", "!=", "Equal Not"),
        _logical("and", "({0} and {1})", "({0} & {1})"),
        _logical("or", "({0} or {1})", "({0} | {1})"),
        _logical("xor", "({0} xor {1})", "({0} ^ {1})"),
        _logical("not", "(not {0})", "(~{0})"),
        _with(
            Operation("to_bool", 1, _NE, _NE, "Cast"),
            **{"eager": lambda x: x != 0, "boolean": True, "takes_booleans": True},
        ),
        _with(
            Operation("to_float", 1, "[{0}]", "{0}.to(tl.REAL)", "Cast"),
            **{"eager": _same, "takes_booleans": True, "bounds": _same},
            **{"integer": True, "finite": True, "linear": True},
        ),
        _binary("add", "+", bounds=_sum, aten=("add",), on_booleans="or", **_ADDITION),
        _binary("sub", "-", bounds=lambda a, b: _sum(a, _opposite(b)), aten=("sub",), **_ADDITION),
        _with(
            _binary("mul", "*", bounds=_product, aten=("mul",), on_booleans="and", **_PRODUCT),
            **{"finite": True, "integer": True, "zero_at_zero": True, "linear": True},
        ),
        _binary("div", "/", triton="DIVIDED", effort=0.5, linear=True, **_PRODUCT),
        _with(
            Operation("neg", 1, "(-{0})", "(-{0})", "Neg", ("neg",)),
            **{"bounds": _opposite, "zero_at_zero": True, "linear": True} | _PRESERVING,
        ),
        _with(
            _function("abs", "tl.abs({0})", onnx="Abs", **_PRESERVING),
            bounds=lambda a: (max(0, a[0], -a[1]), max(-a[0], a[1])),
        ),
        _with(
            _function("root", "ROOT", text="sqrt({0})", onnx="Sqrt", aten=(), eager=torch.sqrt),
            **{"effort": 0.5} | _PRODUCT,
        ),
        _function("floor", "tl.floor({0})", onnx="Floor", finite=True),
        _function("ceil", "tl.ceil({0})", onnx="Ceil", finite=True),
        _function("trunc", "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))", finite=True),
        _function("round", "", onnx="Round", aten=(), finite=True),
        _extreme("maximum", ">", on_booleans="or", eager=lambda x, y: _first_if(x > y, x, y)),
        _extreme("minimum", "<", on_booleans="and", eager=lambda x, y: _first_if(x < y, x, y)),
        _with(
            Operation("sign", 1, "sign({0})", onnx="Sign", aten=("sign", "sgn"), finite=True),
            triton="(({0} > 0).to(tl.REAL) - ({0} < 0).to(tl.REAL))",
        ),
        _function("copysign", "", 2, finite=True),
        _with(
            _function("fma", "", 3, aten=(), linear=True, finite=True, **_PRODUCT),
            eager=lambda x, y, z: torch.addcmul(z, x, y),
        ),
        _with(
            Operation("fmod", 2, "fmod({0}, {1})", effort=8.0),
            **{"aten": ("fmod",)} | _PRODUCT,
        ),
        _with(
            Operation("where", 3, "({1} if {0} else {2})", onnx="Where"),
            **{"triton": "tl.where({0}, {1}, {2})", "takes_booleans": True, "integer": True},
            **{"bounds": lambda _, a, b: (min(a[0], b[0]), max(a[1], b[1]))},
            **{"finite": True, "linear": True},
        ),
        _with(
            Operation("poisson", 3, "poisson({1})", effort=8.0, energy="multiplication", eager=poisson),
            finite=True,
        ),
        _call("exp", mkl="Exp", libm="exp", onnx="Exp"),
        _call("log", mkl="Ln", libm="log", onnx="Log"),
        _call("log2", mkl="Log2", libm="log2"),
        _call("log10", mkl="Log10", libm="log10"),
        _call("tanh", mkl="Tanh", libm="tanh", onnx="Tanh", finite=True),
        _call("sin", mkl="Sin", libm="sin", onnx="Sin", finite=True),
        _call("cos", mkl="Cos", libm="cos", onnx="Cos", finite=True),
        _call("tan", mkl="Tan", libm="tan", onnx="Tan"),
        _call("asin", mkl="Asin", libm="asin", onnx="Asin"),
        _call("acos", mkl="Acos", libm="acos", onnx="Acos"),
        _call("atan", mkl="Atan", libm="atan", onnx="Atan", finite=True),
        _call("erf", mkl="Erf", libm="erf", onnx="Erf", finite=True),
        _call("erfc", mkl="Erfc", libm="erfc", finite=True),
        _call("erfinv", mkl="ErfInv"),
        _call("sqrt", mkl="Sqrt", libm="sqrt", triton="ROOT", onnx="Sqrt"),
        _call("exp2", sleef="exp2", libm="exp2"),
        _call("expm1", sleef="expm1", libm="expm1"),
        _call("log1p", sleef="log1p", libm="log1p"),
        _call("sinh", sleef="sinh", libm="sinh", onnx="Sinh"),
        _call("cosh", sleef="cosh", libm="cosh", onnx="Cosh"),
        _call("asinh", sleef="asinh", libm="asinh", onnx="Asinh"),
        _call("acosh", sleef="acosh", libm="acosh", onnx="Acosh"),
        _call("atanh", sleef="atanh", libm="atanh", onnx="Atanh"),
        _call("pow", 2, sleef="pow", libm="pow", onnx="Pow", aten=()),
        _call("atan2", 2, sleef="atan2", libm="atan2"),
        _call("hypot", 2, sleef="hypot", libm="hypot"),
        _with(
            _call("sigmoid", hibana=True, onnx="Sigmoid"),
            **{"finite": True, "expansion": ("div", "1", ("add", "1", ("exp", ("neg", "{0}"))))},
        ),
        _with(
            _call("softplus", hibana=True, onnx="Softplus", aten=()),
            eager=functional.softplus,
        ),
        _call("elu", hibana=True, aten=(), eager=functional.elu),
    )
}


def row_of(name: str, column: str) -> Operation:
    """The row of the operation `name`, after checking that it has an entry in `column`.

    Raises Unsupported if there is no such row, or no entry.
    """
    row = OPERATIONS.get(name)
    if row is None or not getattr(row, column):
        raise Unsupported(f"operation {name!r} has no {column} implementation")
    return row
