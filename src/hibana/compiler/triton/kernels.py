"""A step's kernels on a GPU, in Triton: compiled on first use, run over tensors.

The numbers are PyTorch's on that device: a function of the device's library is used only if it gives
PyTorch's own bits there.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.compiler.graph.ops import CALLS, OPERATIONS, Unsupported
from hibana.compiler.graph.plan import Plan, gradients, reachable
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.synapses import operands
from hibana.compiler.named_kernels import Named, NamedKernels, Variant
from hibana.compiler.triton.language import Language
from hibana.compiler.triton.running import exact, is_interpreted, kernel_of, over_neurons
from hibana.compiler.triton.source import backward_source, forward_source, function_source

__all__ = ["GpuKernels", "refusal"]


def refusal(device: str) -> str:
    """Why nothing on `device`, a kind of device, can be served, or ``""``."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed: pip install 'hibana[gpu]'"
    if triton.knobs.runtime.interpret:
        return "" if device == "cpu" else "TRITON_INTERPRET=1 is set: Triton serves the CPU alone"
    if device != "cuda":
        return f"Triton serves {device} in its interpreter alone, which TRITON_INTERPRET=1 asks for"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return "PyTorch's numbers on ROCm were never compared" if torch.version.hip else ""


class GpuKernels(NamedKernels):
    """The kernels of one step in one dtype; they read and write sequences of half precision as they are.

    Raises:
        Unsupported: if the step has a function that is not available to PyTorch's last bit.
    """

    about: ClassVar = "triton: one kernel forward and one back, over blocks of neurons"
    takes_half: ClassVar = True

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        self.plan = plan
        self.dtype = dtype
        self.operands = operands(step)
        self.language = Language(str(dtype).removeprefix("torch."), is_interpreted(), bool(step.matrices))
        said = self.language.dialect.operations
        roots = [*step.nexts, *gradients(step)]
        missing = [v.op for v in reachable(roots) if v.op in OPERATIONS and v.op not in said]
        if missing:
            raise Unsupported(f"{missing[0]} is nothing that hibana says in Triton")
        for op in sorted({value.op for value in reachable(step.nexts)} & {*CALLS, "root"}):
            if not agrees(op, replace(self.language, by_samples=False)):
                raise Unsupported(f"{op} can't be had here to the last bit of PyTorch's own")
        self._built: dict[object, Callable[..., object]] = {}
        self._take(step)

    def _take(self, step: Step) -> None:
        super()._take(step)
        self._constants: dict[torch.device, Tensor] = {}

    @staticmethod
    def device() -> str:
        return "cpu" if is_interpreted() else "cuda"

    def source(self, direction: str, *, keep: bool = True) -> str:
        return self._source(direction, (keep, False))

    def _readable(self, sequence: Tensor) -> Tensor:
        return exact(sequence)

    def _source(self, direction: str, variant: Variant) -> str:
        one, other = variant
        if direction == "forward":
            return forward_source(self.step, self.plan if one else None, self.language)
        return backward_source(self.step, self.plan, self.language, wants_input=one, constant_input=other)

    def _launch(
        self, direction: str, variant: Variant, shape: torch.Size, parameters: Sequence[Tensor], given: Named
    ) -> None:
        key = (direction, variant)
        if key not in self._built:
            self._built[key] = kernel_of(self._source(direction, variant), direction, self.language)
        device = next(v.device for v in given.values() if isinstance(v, Tensor))
        given |= {"constants": self._numbers(device)}
        given |= {f"p{i}_at": t for i, t in enumerate(parameters[: self.step.parameters])}
        self._run(self._built[key], shape, parameters[self.step.parameters :], given, device)

    def _run(
        self, kernel: Any, shape: torch.Size, matrices: Sequence[Tensor], given: Named, device: torch.device
    ) -> None:
        """Runs `kernel` over all blocks; a step without products has no `matrices`."""
        over_neurons(kernel, given, shape[0], shape[1:].numel(), device, self.language.interpreted)

    def _numbers(self, device: torch.device) -> Tensor:
        if device not in self._constants:
            numbers = self.step.constants or (0.0,)
            self._constants[device] = torch.tensor(numbers, dtype=self.dtype, device=device)
        return self._constants[device]


FUNCTION_OF = {"root": "rsqrt"}
"""The PyTorch function to compare with, where its name differs."""


def agrees(op: str, language: Language) -> bool:
    """Whether kernels compute `op` of a sample to PyTorch's last bit on the current device."""
    device = "cpu" if language.interpreted else f"cuda:{torch.cuda.current_device()}"
    return _compared(op, language, device)


@cache
def _compared(op: str, language: Language, device: str) -> bool:
    with ThreadPoolExecutor(1) as clean:  # a thread has no modes: these tensors are real
        return clean.submit(_sampled, op, language, device).result()


def _sampled(op: str, language: Language, device: str) -> bool:
    dtype = getattr(torch, language.real)
    sizes = torch.logspace(-45, 38, 500, dtype=torch.float64, device="cpu")
    even = torch.linspace(-20, 20, 4097, dtype=torch.float32, device="cpu")
    ends = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float32, device="cpu")
    sample = torch.cat([even, sizes, -sizes, ends]).to(dtype).to(device)
    found = torch.empty_like(sample)
    kernel = kernel_of(function_source(language, op), "function", language)
    given = {"input": sample, "outputs": found}
    over_neurons(kernel, given, 1, sample.numel(), sample.device, language.interpreted)
    wanted = getattr(torch, FUNCTION_OF.get(op, op))(sample)
    return bool(((found == wanted) | (found.isnan() & wanted.isnan())).all())
