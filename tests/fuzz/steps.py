"""Random steps as Python text with numbers, booleans, integers, aliases and in-place writes."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from hibana import surrogate

__all__ = ["SETTINGS", "SURROGATES", "Step", "steps"]

# Placeholders: {n} is a tensor of numbers, {b} of booleans, {i} of integers; {w} is a tensor of numbers that
# the step has created; {c} is a Python number. hibana may refuse the templates named ODD with a message.
# hypot and others are missing, because their bits in PyTorch depend on the position in a tensor; for exp2 and
# maximum the reference computes all positions alike (fuzz.differ).
NUMBERS = """
{n} + {n} ; {n} - {n} ; {n} * {n} ; {n} / ({n}.abs() + 1) ; {n} / {n} ; -{n} ; {n} * {c} ; {c} - {n}
{n} + {c} ; {n} * {n} + {n} ; {n}.abs() ; torch.relu({n}) ; torch.sqrt({n}.abs()) ; {n}.clamp(-0.5, 0.7)
{n}.clamp(min=0) ; torch.maximum({n}, {n}) ; torch.minimum({n}, {n}) ; torch.where({b}, {n}, {n})
torch.where({b}, {n}, {c}) ; {b}.float() ; {b}.to({n}.dtype) ; {b}.to({n}) ; {n} * {b} ; {b} * {n}
{b} + {n} ; {n} - {b}.to({n}) ; {c} - {b}.float() ; {n}.bool().float() ; {n} * {n}.bool()
({b} + {b}).float() ; ({b} * {b}).float() ; ({b} == {b}).to({n}.dtype) ; {n} * ({b} == 1)
{n} * ({b} > 0.5) ; {n} * 16777217 ; {n} * 10**18 ; {n} - 10**18 * {n} ; {n}.detach() ; {n}.clone()
{n}.clone().mul_({c}) ; {n}.clone().add_({n}) ; {n}.masked_fill({b}, {c}) ; {n}.sign() ; {n}.floor()
{n}.trunc() ; {n}.ceil() ; {n}.square() ; {n} ** 2 ; {n} ** 3 ; {n}.reciprocal() ; torch.rsub({n}, {n})
{n}.neg().neg() ; {n} * -0.0 ; -({n} * 0) ; torch.zeros_like({n}) ; torch.ones_like({n}) * {c}
torch.full_like({n}, -0.0) ; {n}.contiguous() ; {n}.view_as({n}) ; {n}.expand_as({n}) ; 0.0 + {n}
{n} - 0.0 ; self.surrogate({n}) ; self.surrogate({n} - {n}) ; hb.Heaviside.apply({n})
self.surrogate(self.number * {n}) ; self.number * {n} ; {n} + self.number ; {n} * self.each
{n} + self.learned ; {n} * self.learned_each ; self.number * {b} + {n} ; self.truth * {n}
torch.exp2({n}) ; {n} - self.integer ; {n} * (self.number == 1) ; {n} * (self.number is True)
"""
ODD_NUMBERS = """
{i} * {n} ; {i}.float() ; {n} + {i} ; {i}.to({n}.dtype) ; torch.lerp({n}, {n}, 0.3)
torch.add({n}, {n}, alpha=2) ; torch.addcmul({n}, {n}, {n}, value=0.5) ; torch._neg_view({n})
torch.copysign({n}, {n}) ; {n}.nan_to_num() ; {n}.fmod(2) ; {n} % 2
torch.threshold({n}, 0.1, 0.2) ; nn.functional.leaky_relu({n}) ; nn.functional.hardtanh({n})
{n}.to(torch.float64).to({n}.dtype) ; {n}.half().to({n}.dtype) ; {n}.round()
{n} * (2 if x.shape[-1] > 4 else 1) ; {n} / x.shape[-1] ; {n} * x.numel() ; {n} + x.ndim ; {n} + self.count
{n} * len(x) ; (x if {n} is x else {n} * 2) ; torch.stack([{n}, {n}])[1] ; {n}.unsqueeze(0)[0]
{n}.flip(0).flip(0) ; {n}.sum() * 0 + {n} ; torch.softmax({n}, -1) ; {n}.mean() + {n} ; {n} - {b}
torch.complex({n}, {n}).conj().imag ; {n}[..., :1] + {n} ; {n}.cumsum(-1)
"""
TRUTHS = """
{n} > {n} ; {n} >= {n} ; {n} < {n} ; {n} <= {n} ; {n} == {n} ; {n} != {n} ; {n} > {c} ; {n} >= {c}
{n} == {c} ; {b} & {b} ; {b} | {b} ; ~{b} ; {b} ^ {b} ; {b} == {b} ; {b} != {b} ; {b} == 1 ; {b} != 0
{b} > 0.5 ; {b} >= {b} ; {b} < {b} ; {b} + {b} ; {b} * {b} ; {n}.bool() ; {n}.to(torch.bool)
torch.logical_not({n}) ; {b} == {n} ; {b} > {n} ; torch.logical_and({n}, {b}) ; torch.logical_or({n}, {n})
torch.logical_xor({b}, {n}) ; {n}.isfinite() ; {b} == {c} ; ({n} > 0) & ({n} <= {n})
torch.where({b}, {b}, {b}) ; torch.ones_like({b}) ; {b}.clone().logical_not_()
"""
ODD_TRUTHS = "{n}.isnan() ; {n}.isinf() ; torch.signbit({n}) ; {i} > 1 ; {i} == {i} ; {i}.bool() ; {n} > {i}"
INTEGERS = """
{b}.int() ; {b}.long() ; {b}.int() + {b}.int() ; {i} + 1 ; {i} * {i} ; -{i} ; {i} - {b}.int() ; {i} % 3
{i} // 2 ; {b} + 1 ; {b} * 2 ; {b}.long() * {c} ; torch.where({b}, {i}, {i})
{n}.clamp(-9, 9).nan_to_num().int() ; {i}.abs() ; {b}.to(torch.uint8) + {b}.to(torch.uint8) ; {b}.byte() - 1
"""
WRITES = """
{w}.mul_({c}) ; {w}.add_({n}) ; {w}.neg_() ; {w}.masked_fill_({b}, {c}) ; {w}.clamp_(min=0) ; {w}.mul_({b})
{n}.detach().mul_({c}) ; {n}.data.add_({c}) ; {n}.detach().masked_fill_({b}, {c}) ; {n}.data.neg_()
{w}.div_(2) ; {n}.detach().add_({n}) ; {b}.logical_not_() ; {b}.logical_and_({b}) ; {w}.sub_({n})
{w}.relu_()
"""
ODD_WRITES = """
{n}.mul_({c}) ; {w}.zero_() ; {w}.fill_({c}) ; {w}.copy_({n}) ; {n}.detach().copy_({n}) ; {n}.data.zero_()
{w}[...] = {n} ; {w}.view_as({n}).mul_({c}) ; {w}.unsqueeze(0).mul_({c}) ; {w}[0] = {c} ; {n}.data = {n}
{b}.zero_() ; {i}.add_(1) ; self.count += 1 ; {n}.requires_grad_(False) ; torch._neg_view({w}).add_({n})
{w}.view(-1)[:1] = 0.5
"""
CONSTANTS = [
    "0.5",
    "-0.3",
    "1",
    "2",
    "0",
    "-0.0",
    "0.1",
    "3",
    "1.0",
    "True",
    "False",
    "1e-3",
    "16777217",
    "10**18",
]
CONSTANTS += [
    "1e-45",
    "1e38",
    "-1",
    "self.number",
    "self.truth",
    "self.integer",
    "2**31",
    "1e300",
    "float('inf')",
]


def _templates(text: str) -> list[str]:
    return [part.strip() for line in text.strip().splitlines() for part in line.split(" ; ")]


PLAIN = {"n": _templates(NUMBERS), "b": _templates(TRUTHS), "": _templates(WRITES)}
ODD = {"n": _templates(ODD_NUMBERS), "b": _templates(ODD_TRUTHS), "": _templates(ODD_WRITES)}
ODD["i"] = _templates(INTEGERS)
SURROGATES = [
    surrogate.Step,
    surrogate.Box,
    surrogate.Triangle,
    surrogate.PiecewiseQuadratic,
    surrogate.LeakyReLU,
]
SURROGATES += [surrogate.FastSigmoid, surrogate.StraightThrough, surrogate.ATan]
SETTINGS: list[dict[str, Any]] = [
    {"number": number, "truth": truth, "integer": integer}
    for number in (0.5, 1, 1.0, True, 0, -0.0, False)
    for truth, integer in ((True, 2), (1, 3))
]
"""Attributes of a cell; values that compare equal in Python, as 1 and True, differ for a step."""


@dataclass(frozen=True)
class Step:
    """The statements of a step of a cell with three states."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(("def forward(self, x, u, v, s):", *(f"    {line}" for line in self.lines)))

    def kind(self) -> type[hb.Cell]:
        """Returns a cell class with this step as its ``forward``."""
        namespace: dict[str, Any] = {"torch": torch, "nn": nn, "hb": hb}
        exec(str(self), namespace)
        return type("Fuzzed", (_Fuzzed,), {"forward": namespace["forward"], "__doc__": str(self)})


class _Fuzzed(hb.Cell):
    """A cell with the attributes that steps may use."""

    def __init__(self, neurons: int = 1, kind: int = 0, **settings: Any) -> None:
        super().__init__()
        self.surrogate = SURROGATES[kind % len(SURROGATES)]()
        self.count = 0
        self.number, self.truth, self.integer = 0.5, True, 2
        for name, value in settings.items():
            setattr(self, name, value)
        self.each = torch.linspace(-1, 1, neurons, dtype=torch.float32)
        self.learned = nn.Parameter(torch.tensor(0.3, dtype=torch.float32))
        self.learned_each = nn.Parameter(torch.linspace(0.5, -0.5, neurons, dtype=torch.float32))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Draws a step of one to ten statements and a return of variables."""
    variables = {"n": ["x", "u", "v", "s"], "b": [], "i": [], "w": []}
    lines: list[str] = []
    allow_odd = draw(st.sampled_from([False, False, False, False, True]))

    def value(kind: str) -> str:
        if not variables[kind]:
            expression = {"b": "v > 0.3", "i": "(x > 0).int()", "w": "x * 1"}[kind]
            assign(kind if kind != "w" else "n", expression)
        return draw(st.sampled_from([*reversed(variables[kind])]))

    def assign(kind: str, text: str) -> None:
        name = f"{kind}{len(lines)}"
        lines.append(f"{name} = {text}")
        variables[kind].append(name)
        if kind == "n":
            variables["w"].append(name)

    def fill(template: str) -> str:
        for kind in "wnbi":
            while "{" + kind + "}" in template:
                template = template.replace("{" + kind + "}", value(kind), 1)
        while "{c}" in template:
            template = template.replace("{c}", f"({draw(st.sampled_from(CONSTANTS))})", 1)
        return template

    for _ in range(draw(st.integers(1, 10))):
        kind = draw(st.sampled_from(["n", "n", "n", "b", "b", "", *("i" * allow_odd)]))
        is_odd = kind == "i" or (allow_odd and draw(st.booleans()))
        text = fill(draw(st.sampled_from((ODD if is_odd else PLAIN)[kind])))
        if kind == "":
            lines.append(text)
        else:
            assign(kind, text)
    returned = [value("n"), value("n")]
    match draw(st.sampled_from(["spikes", "spikes", "number", "truth"])):
        case "spikes":
            returned.append(f"self.surrogate({value('n')} - 0.4)")
        case "truth":
            returned.append(f"{value('b')}.to(x.dtype)")
        case _:
            returned.append(value("n"))
    lines.append(f"return {', '.join(returned)}")
    return Step(tuple(lines))
