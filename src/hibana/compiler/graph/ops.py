"""The table of operations: one row for each, with its C, LLVM and Triton forms.

A row without an entry for a language can't be emitted in it, and raises :class:`Unsupported`.
:mod:`hibana.compiler.graph.aten` turns PyTorch's operations into these.
"""

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any


class Unsupported(RuntimeError):  # noqa: N818 # it names a state of affairs, and is raised as "…: why"
    """A step, or a call, that a compiled backend can't serve, and why."""


Written = str | tuple[Any, ...]
"""A number, an argument, or the name of an operation and what it is of."""


@dataclass(frozen=True)
class Operation:
    """One pointwise operation."""

    name: str
    arity: int
    said: str
    """In equations, a template with ``{0}``, ``{1}``, … for its arguments, as the other templates."""
    llvm: tuple[str, ...] = ()
    """LLVM's instructions: ``{V}`` is the vector's type, ``{T}`` the number's, ``{M}`` a mask's, ``{K}`` an
    intrinsic's suffix, ``{t0}`` the first instruction's result; none if a function computes it."""
    triton: str = ""
    """``REAL`` is the number's type, ``DIVIDED`` and ``ROOT`` round as IEEE requires."""
    c: str = ""
    """C99; ``REAL`` is the number's type, ``@`` the suffix of its literals and functions."""
    boolean: bool = False
    """Whether the result is a truth value."""
    call: bool = False
    """Whether a function computes it, a row at a time, since IEEE does not determine it."""
    effort: float = 0.1
    """The price of recomputing it, in bits kept."""
    mkl: str = ""
    """The functions that may compute it: of MKL, Sleef and the C library."""
    sleef: str = ""
    libm: str = ""
    own: bool = False
    """Whether hibana has a function of its own (:mod:`hibana.compiler.cpu.own`)."""
    written: Written = ""
    """Its form in other operations where no function computes it, to more than 2 ulp, for gradients alone.
    ``"{0}"`` is an argument, a digit a number."""
    within: tuple[float, float] | None = None
    """Bounds of the result, whatever the arguments."""

    @property
    def onnx(self) -> str:
        """ONNX's operator, or ``""``."""
        return _IN_ONNX.get(self.name, "")


_MASKED = "{M} {0}, {1}"


def _binary(name: str, sign: str, *, effort: float = 0.1, triton: str = "") -> Operation:
    said = f"({{0}} {sign} {{1}})"
    llvm = (f"f{name} {{V}} {{0}}, {{1}}",)
    return Operation(name, 2, said, llvm, triton or said, said, effort=effort)


def _comparison(name: str, sign: str, order: str) -> Operation:
    said = f"({{0}} {sign} {{1}})"
    return Operation(name, 2, said, (f"fcmp {order} {{V}} {{0}}, {{1}}",), said, said, boolean=True)


def _logical(name: str, sign: str, c: str) -> Operation:
    said, triton = f"({{0}} {name} {{1}})", f"({{0}} {sign} {{1}})"
    return Operation(name, 2, said, (f"{name} {_MASKED}",), triton, f"({{0}} {c} {{1}})", boolean=True)


def _extreme(name: str, said: str, order: str, sign: str) -> Operation:
    """The table's row of ``maximum`` or ``minimum``: of two numbers, NaN if either is, as torch has it.

    `order` is LLVM's predicate by which the first is taken, `sign` that of Triton and C, `said` its name in
    mathematics.
    """
    llvm = (
        f"fcmp {order} {{V}} {{0}}, {{1}}",
        "fcmp uno {V} {0}, {0}",
        "or {M} {t0}, {t1}",
        "select {M} {t2}, {V} {0}, {V} {1}",
    )
    passing_nan = f"tl.where(({{0}} {sign} {{1}}) | ({{0}} != {{0}}), {{0}}, {{1}})"
    c = f"({{0}} {sign} {{1}} || {{0}} != {{0}} ? {{0}} : {{1}})"
    return Operation(name, 2, f"{said}({{0}}, {{1}})", llvm, passing_nan, c)


def _intrinsic(name: str, intrinsic: str, triton: str, said: str = "", c: str = "", n: int = 1) -> Operation:
    given, typed = (", ".join(f"{kind}{{{i}}}" for i in range(n)) for kind in ("", "{V} "))
    llvm = (f"call {{V}} @llvm.{intrinsic}.{{K}}({typed})",)
    return Operation(name, n, f"{said or name}({given})", llvm, triton, f"{c or intrinsic}@({given})")


_ROUGH_ON_CUDA = ("acosh", "asinh")
"""Functions in which CUDA's library takes an approximate root."""


def _call(name: str, arity: int = 1, *, mkl: str = "", libm: str = "", **columns: Any) -> Operation:
    said = f"{name}({', '.join(f'{{{i}}}' for i in range(arity))})"
    if (mkl or libm) and arity == 1 and name not in _ROUGH_ON_CUDA:
        columns = {"triton": f"libdevice.{said}", **columns}
    if libm:
        columns = {"c": said.replace(name, f"{libm}@", 1), **columns}
    return Operation(name, arity, said, call=True, effort=8.0, mkl=mkl, libm=libm, **columns)


_NE = "({0} != 0)"
_ONE = "select {{M}} {0}, {{V}} splat ({{T}} 1.0), {{V}} zeroinitializer"

OPERATIONS = MappingProxyType(
    {
        row.name: row
        for row in (
            _comparison("gt", ">", "ogt"),
            _comparison("ge", ">=", "oge"),
            _comparison("lt", "<", "olt"),
            _comparison("le", "<=", "ole"),
            _comparison("eq", "==", "oeq"),
            _comparison("ne", "!=", "une"),
            _logical("and", "&", "&&"),
            _logical("or", "|", "||"),
            _logical("xor", "^", "!="),
            Operation(
                "not", 1, "(not {0})", ("xor {M} {0}, splat (i1 true)",), "(~{0})", "(!{0})", boolean=True
            ),
            Operation("to_bool", 1, _NE, ("fcmp une {V} {0}, splat ({T} 0.0)",), _NE, _NE, boolean=True),
            Operation("to_float", 1, "[{0}]", (_ONE.format("{0}"),), "{0}.to(tl.REAL)", "(REAL)({0})"),
            _binary("add", "+"),
            _binary("sub", "-"),
            _binary("mul", "*"),
            _binary("div", "/", effort=0.5, triton="DIVIDED"),
            Operation("neg", 1, "(-{0})", ("fneg {V} {0}",), "(-{0})", "(-{0})"),
            _intrinsic("abs", "fabs", "tl.abs({0})"),
            replace(_intrinsic("root", "sqrt", "ROOT", "sqrt"), effort=0.5),
            _intrinsic("floor", "floor", "tl.floor({0})"),
            _intrinsic("ceil", "ceil", "tl.ceil({0})"),
            _intrinsic("trunc", "trunc", "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))"),
            _intrinsic("round", "roundeven", "", c="rint"),
            _extreme("maximum", "max", "ogt", ">"),
            _extreme("minimum", "min", "olt", "<"),
            Operation(
                "sign",
                1,
                "sign({0})",
                (
                    "fcmp ogt {V} {0}, zeroinitializer",
                    _ONE.format("{t0}"),
                    "fcmp olt {V} {0}, zeroinitializer",
                    _ONE.format("{t2}"),
                    "fsub {V} {t1}, {t3}",
                ),
                "(({0} > 0).to(tl.REAL) - ({0} < 0).to(tl.REAL))",
                "(REAL)(({0} > 0) - ({0} < 0))",
                within=(-1.0, 1.0),
            ),
            _intrinsic("copysign", "copysign", "", n=2),
            _intrinsic("fma", "fma", "", n=3),
            Operation("fmod", 2, "fmod({0}, {1})", ("frem {V} {0}, {1}",), c="fmod@({0}, {1})", effort=8.0),
            Operation(
                "where",
                3,
                "({1} if {0} else {2})",
                ("select {M} {0}, {V} {1}, {V} {2}",),
                "tl.where({0}, {1}, {2})",
                "({0} ? {1} : {2})",
            ),
            _call("exp", mkl="Exp", libm="exp"),
            _call("log", mkl="Ln", libm="log"),
            _call("log2", mkl="Log2", libm="log2"),
            _call("log10", mkl="Log10", libm="log10"),
            _call("tanh", mkl="Tanh", libm="tanh", within=(-1.0, 1.0)),
            _call("sin", mkl="Sin", libm="sin", within=(-1.0, 1.0)),
            _call("cos", mkl="Cos", libm="cos", within=(-1.0, 1.0)),
            _call("tan", mkl="Tan", libm="tan"),
            _call("asin", mkl="Asin", libm="asin"),
            _call("acos", mkl="Acos", libm="acos"),
            _call("atan", mkl="Atan", libm="atan", within=(-2.0, 2.0)),
            _call("erf", mkl="Erf", libm="erf", within=(-1.0, 1.0)),
            _call("erfc", mkl="Erfc", libm="erfc", within=(0.0, 2.0)),
            _call("erfinv", mkl="ErfInv"),
            _call("sqrt", mkl="Sqrt", libm="sqrt", triton="ROOT"),
            _call("exp2", sleef="exp2", libm="exp2"),
            _call("expm1", sleef="expm1", libm="expm1"),
            _call("log1p", sleef="log1p", libm="log1p"),
            _call("sinh", sleef="sinh", libm="sinh"),
            _call("cosh", sleef="cosh", libm="cosh"),
            _call("asinh", sleef="asinh", libm="asinh"),
            _call("acosh", sleef="acosh", libm="acosh"),
            _call("atanh", sleef="atanh", libm="atanh"),
            _call("pow", 2, sleef="pow", libm="pow"),
            _call("atan2", 2, sleef="atan2", libm="atan2"),
            _call("hypot", 2, sleef="hypot", libm="hypot"),
            _call(
                "sigmoid",
                own=True,
                c="(1.0@ / (1.0@ + exp@(-{0})))",
                written=("div", "1", ("add", "1", ("exp", ("neg", "{0}")))),
                within=(0.0, 1.0),
            ),
            _call("silu", own=True, c="({0} / (1.0@ + exp@(-{0})))"),
            _call("softplus", own=True, c="log1p@(exp@({0}))"),
            _call("mish", own=True, c="({0} * tanh@(log1p@(exp@({0}))))"),
            _call("gelu", own=True, c="({0} * 0.5@ * (1.0@ + erf@({0} * 0.70710678118654752440@)))"),
            _call("gelu_tanh", own=True),
            _call("logit", own=True),
            _call("logaddexp", 2, own=True),
            _call("xlogy", 2, own=True),
            _call("elu", own=True, c="expm1@({0})"),
        )
    }
)
_IN_ONNX = {
    **{"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal"},
    **{"root": "Sqrt", "maximum": "Max", "minimum": "Min"},
    **{n: n.capitalize() for n in ("and", "or", "xor", "not", "add", "sub", "mul", "div", "neg", "abs")},
    **{n: n.capitalize() for n in ("floor", "ceil", "round", "sign", "where", "exp", "log", "sqrt", "tanh")},
    **{n: n.capitalize() for n in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh")},
    **{n: n.capitalize() for n in ("acosh", "atanh", "erf", "sigmoid", "softplus", "pow")},
}
COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
BOOLEAN = frozenset({name for name, row in OPERATIONS.items() if row.boolean} | {"bits"})
CALLS = frozenset(name for name, row in OPERATIONS.items() if row.call)
"""Operations that nobody rounds correctly, which functions compute a row at a time."""


def row_of(name: str, column: str) -> Operation:
    """How the operation `name` is written in each target language, the columns of the table of operations.

    Raises:
        Unsupported: if it can't be written in the language of `column`.
    """
    row = OPERATIONS.get(name)
    if row is None or not getattr(row, column):
        raise Unsupported(f"{name} is nothing that hibana says in {column}")
    return row
