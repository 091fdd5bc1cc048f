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

from hibana.compiler import draws
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import Plan, gradients
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.synapses import operands
from hibana.compiler.memory_layout import row_bytes
from hibana.compiler.named_kernels import Named, NamedKernels, Variant
from hibana.compiler.triton.language import Language
from hibana.compiler.triton.running import exact, is_interpreted, kernel_of, over_neurons, started
from hibana.compiler.triton.source import backward_source, forward_source, function_source


def refusal(device: str) -> str:
    """Why nothing on `device`, a kind of device, can be served, or ``""``."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed: pip install '.[gpu]'"
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
    takes_draws: ClassVar = True

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        self.plan = plan
        self.dtype = dtype
        self.operands = operands(step)
        self.language = Language(str(dtype).removeprefix("torch."), is_interpreted(), bool(step.matrices))
        served = self.language.dialect.operations
        for value in reachable([*step.nexts, *gradients(step)]):
            if value.operation is not None and not served.get(value.op):
                raise Unsupported(f"operation {value.op!r} has no triton implementation")
        rows = {v.op: v.operation for v in reachable(step.nexts) if v.operation is not None}
        for op in sorted(name for name, row in rows.items() if row.call or name in FUNCTION_OF):
            if not agrees(op, replace(self.language, by_samples=False)):
                raise Unsupported(f"{op} can't be had here to the last bit of PyTorch's own")
        self._built: dict[object, Callable[..., object]] = {}
        self._set_step(step)

    def _set_step(self, step: Step) -> None:
        super()._set_step(step)
        self._constants: dict[torch.device, Tensor] = {}

    @staticmethod
    def device() -> str:
        return "cpu" if is_interpreted() else "cuda"

    def source(self, direction: str, *, keep: bool = True) -> str:
        return self._source(direction, keep)

    def _readable(self, sequence: Tensor) -> Tensor:
        return exact(sequence)

    def _source(self, direction: str, variant: Variant) -> str:
        if direction == "forward":
            return forward_source(self.step, self.plan if variant else None, self.language)
        return backward_source(self.step, self.plan, self.language, wants_input=bool(variant))

    def _launch(
        self, direction: str, variant: Variant, shape: torch.Size, matrices: Sequence[Tensor], given: Named
    ) -> None:
        key = (direction, variant)
        if key not in self._built:
            self._built[key] = kernel_of(self._source(direction, variant), direction, self.language)
        device = next(v.device for v in given.values() if isinstance(v, Tensor))
        given |= {"constants": self._numbers(device)}
        low, high = draws.key(given["seed"], 0)
        given |= {"seed_low": _signed(low), "seed_high": _signed(high)}
        self._run(self._built[key], shape, matrices, given, device)

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


SAMPLES = 16
"""Samples per program: the fewest that ``tl.dot`` takes."""
INNER = 16
"""Rows of a matrix that a product reads at a time."""
WIDEST = {torch.float32: 1024, torch.float64: 512}
"""Maximum neurons, limited by registers, and by shared memory for the rows of a matrix."""


class SampleKernels(GpuKernels):
    """The kernels of one step with products, in one dtype; :meth:`check` refuses steps that are too wide."""

    about: ClassVar = "triton: one kernel forward and one back, over samples, with dense products"
    takes_half: ClassVar = False

    def check(self, shape: torch.Size) -> None:
        if shape[-1] > WIDEST[self.dtype]:
            raise Unsupported(
                f"a product of {shape[-1]} neurons is wider than the {WIDEST[self.dtype]} of {self.dtype} "
                "that one program holds on a GPU"
            )

    def _run(
        self, kernel: Any, shape: torch.Size, matrices: Sequence[Tensor], given: Named, device: torch.device
    ) -> None:
        steps, features, samples = shape[0], shape[-1], shape[1:-1].numel()
        if not (features and samples):
            return
        given |= {f"M{i}_at": _plain(matrix) for i, matrix in enumerate(matrices)}
        given |= {f"M{i}_transposed_at": _plain(matrix.mT) for i, matrix in enumerate(matrices)}
        wide = max(INNER, 1 << (features - 1).bit_length())
        given |= {"steps": steps, "neurons": samples * features, "row_bytes": samples * row_bytes(features)}
        given |= {"size": wide.bit_length(), "samples": samples, "features": features}
        given |= {"sample_bytes": row_bytes(features), "SAMPLES": SAMPLES, "NEURONS": wide, "INNER": INNER}
        given["workspace"] = torch.empty(samples, features, dtype=self.dtype, device=device)
        warps = 4 if wide <= 128 else 8 if wide <= 512 else 16
        options = {} if self.language.interpreted else {"num_warps": warps}
        started(kernel, (-(-samples // SAMPLES),), given, device, self.language.interpreted, **options)


def _signed(word: int) -> int:
    """A word of 32 bits as the signed number that has them, so that Triton takes all for one type."""
    return word - (word >> 31 << 32)


def _plain(matrix: Tensor) -> Tensor:
    """`matrix` as a contiguous one of two dimensions."""
    return (matrix.squeeze(0) if matrix.ndim == 3 else matrix).contiguous()


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
