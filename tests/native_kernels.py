"""Compiles Triton's kernels for a GPU, without one, and prints their arithmetic instructions as JSON.

Run as a separate process, because ``TRITON_INTERPRET=1`` disables Triton's compiler.
"""

import json
import re

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import hibana as hb
from conformance.suite import CELLS, SURROGATES, build
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.ops import OPERATIONS
from hibana.compiler.graph.plan import make_plan
from hibana.compiler.graph.synapses import required_residuals
from hibana.compiler.graph.trace import trace
from hibana.compiler.triton.language import Language
from hibana.compiler.triton.running import kernel_of
from hibana.compiler.triton.source import backward_source, forward_source, function_source

TARGET = GPUTarget("cuda", 90, 32)
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False, "enable_reflect_ftz": False}
COUNTS = ("steps", "step_size", "row_bytes", "size", "input_step", "grad_outputs_step")
COUNTS += ("samples", "features", "sample_bytes")
BLOCKS = {"BLOCK": 512, "SAMPLES": 16, "NEURONS": 64, "INNER": 16}
SEQUENCES = ("input", "outputs", "grad_outputs", "grad_input")
ABSENT = ("_first", "_last_grad")
ARITHMETIC = re.compile(r"\b(?:add|sub|mul|div|fma|sqrt|rsqrt|ex2|neg)\.[\w.]*f(?:32|64)\b")


def arithmetic(text: str, name: str, language: Language, bits: set[str], sequences: str = "") -> list[str]:
    """The floating-point instructions of the kernel called `name` in `text`.

    `sequences` is Triton's pointer type of input and output, if they are in half precision.
    """
    kernel = kernel_of(text, name, language)
    function = kernel if language.by_samples else kernel.fn
    arguments = function.arg_names
    pointer = {"float32": "*fp32", "float64": "*fp64"}[language.real]

    def kind(argument: str) -> str:
        if argument in BLOCKS or argument.endswith(ABSENT):
            return "constexpr"
        if argument in COUNTS:
            return "i32"
        if sequences and argument in SEQUENCES:
            return sequences
        return "*u8" if argument in bits else pointer

    signature = {argument: kind(argument) for argument in arguments}
    constants = {(arguments.index(a),): None for a, k in signature.items() if k == "constexpr"}
    constants |= {(arguments.index(a),): size for a, size in BLOCKS.items() if a in arguments}
    compiled = triton.compile(ASTSource(function, signature, constants), target=TARGET, options=OPTIONS)
    return sorted(set(ARITHMETIC.findall(compiled.asm["ptx"])))


def main() -> None:
    cells, functions, calls = {}, {}, {}
    kinds = {**{kind.__name__: kind() for kind in CELLS}, "LIFCell detached": hb.LIFCell(detach_reset=True)}
    kinds |= {f"IFCell {kind.__name__}": hb.IFCell(surrogate=build(kind)) for kind in SURROGATES}
    for title, cell in kinds.items():
        step = trace(cell, torch.Size([5]), torch.float32, "cuda")
        plan, language = make_plan(step), Language("float32", False)
        bits = {f"residual{i}_all" for i, value in enumerate(plan.residuals) if value.boolean}
        back = backward_source(step, plan, language, wants_input=True)
        roots = [*step.nexts, *step.grad_sums, *(g for g in (step.grad_input, *step.grad_states) if g)]
        for name, text in {"forward": forward_source(step, plan, language), "backward": back}.items():
            cells[f"{title}, {name}"] = arithmetic(text, name, language, bits)
            if title == "PLIFCell":
                for half in ("*fp16", "*bf16"):
                    arithmetic(text, name, language, bits, half)
            calls[f"{title}, {name}"] = any(value.is_call for value in reachable(roots))
    for real in ("float32", "float64"):
        operations = Language(real, False).dialect.operations
        calls_of_one = (op for op, row in OPERATIONS.items() if row.call and row.arity == 1)
        for op in sorted({*calls_of_one, "root"} & operations.keys()):
            text = function_source(Language(real, False), op)
            functions[f"{op}, {real}"] = arithmetic(text, "function", Language(real, False), set())
    print(json.dumps({"cells": cells, "functions": functions, "calls": calls, "products": products()}))


def products() -> dict[str, list[str]]:
    """The arithmetic of a recurrent step, which multiplies by a matrix."""
    instructions = {}
    for dtype in (torch.float32, torch.float64):
        language = Language(str(dtype).removeprefix("torch."), False, by_samples=True)
        layer = hb.Recurrent(hb.IFCell(), 5).to(dtype)
        step = trace(layer.step(), torch.Size([2, 5]), dtype, "cuda")
        plan = make_plan(step, required_residuals(step))
        bits = {f"residual{i}_all" for i, value in enumerate(plan.residuals) if value.boolean}
        back = backward_source(step, plan, language, wants_input=True)
        for name, text in {"forward": forward_source(step, plan, language), "backward": back}.items():
            instructions[f"{language.real}, {name}"] = arithmetic(text, name, language, bits)
    return instructions


if __name__ == "__main__":
    main()
