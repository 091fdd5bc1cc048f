"""Kernels of a step in Triton, compiled on first use.

The results equal PyTorch's on the same device: a step with a function of the device's library is supported
only if the function returns the same bits as PyTorch's.
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
from hibana.compiler.memory_layout import row_bytes
from hibana.compiler.named_kernels import Named, NamedKernels, Variant
from hibana.compiler.triton.language import Language
from hibana.compiler.triton.running import exact, is_interpreted, kernel_of, launch, over_neurons
from hibana.compiler.triton.source import backward_source, forward_source, function_source


def refusal(device: str) -> str:
    """Why Triton supports no tensors on `device`, such as ``"cpu"``; ``""`` if it does."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed: pip install '.[gpu]'"
    if triton.knobs.runtime.interpret:
        return "" if device == "cpu" else "TRITON_INTERPRET=1 is set: Triton supports only the CPU"
    if device != "cuda":
        return f"Triton supports {device} only in its interpreter: set TRITON_INTERPRET=1"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return "hibana was never compared with PyTorch on ROCm" if torch.version.hip else ""


class GpuKernels(NamedKernels):
    """The kernels of one step in one dtype; sequences of half precision are read and written as they are.

    Raises:
        Unsupported: if an operation of the step has no Triton form with the bits of PyTorch's results.
    """

    about: ClassVar = "triton: one kernel forward and one back, over blocks of neurons"
    takes_half: ClassVar = True
    takes_draws: ClassVar = True

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        self.plan = plan
        self.dtype = dtype
        self.language = Language(str(dtype).removeprefix("torch."), is_interpreted(), bool(step.matrices))
        operations = self.language.dialect.operations
        for value in reachable([*step.nexts, *gradients(step)]):
            if value.operation is not None and not operations.get(value.op):
                raise Unsupported(f"operation {value.op!r} has no triton implementation")
        rows = {v.op: v.operation for v in reachable(step.nexts) if v.operation is not None}
        for op in sorted(name for name, row in rows.items() if row.call or name in FUNCTION_OF):
            if not agrees(op, replace(self.language, by_samples=False)):
                raise Unsupported(f"Triton's {op} differs from PyTorch's on this device")
        self._built: dict[object, Callable[..., object]] = {}
        self._set_step(step)

    def _set_step(self, step: Step) -> None:
        """Stores `step`; its constants are copied again to each device."""
        super()._set_step(step)
        self._constants: dict[torch.device, Tensor] = {}

    @staticmethod
    def device() -> str:
        """The device that Triton's kernels run on: the CPU in its interpreter."""
        return "cpu" if is_interpreted() else "cuda"

    def source(self, direction: str) -> str:
        """Triton source of the kernel of a `direction`; a forward stores residuals."""
        return self._source(direction, True)

    def _readable(self, sequence: Tensor) -> Tensor:
        """The tensor that kernels read for `sequence`."""
        return exact(sequence)

    def _source(self, direction: str, variant: Variant) -> str:
        """Triton source; `variant`: what a forward stores, or whether a backward computes `x`'s gradient."""
        if direction == "forward":
            return forward_source(self.step, self.plan if variant else None, self.language)
        return backward_source(self.step, self.plan, self.language, wants_input=bool(variant))

    def _launch(
        self, direction: str, variant: Variant, shape: torch.Size, matrices: Sequence[Tensor], named: Named
    ) -> None:
        """Runs the kernel of a `direction` once, on the tensors in `named`."""
        key = (direction, variant)
        if key not in self._built:
            self._built[key] = kernel_of(self._source(direction, variant), direction, self.language)
        device = next(v.device for v in named.values() if isinstance(v, Tensor))
        low, high = draws.key(named["seed"], 0)
        named |= {"seed_low": _signed(low), "seed_high": _signed(high)}
        named |= {"constants": self._constants_on(device)}
        self._run(self._built[key], shape, matrices, named, device)

    def _run(
        self, kernel: Any, shape: torch.Size, matrices: Sequence[Tensor], named: Named, device: torch.device
    ) -> None:
        """Runs `kernel` over sequences of `shape`. A step without products has no `matrices`."""
        over_neurons(kernel, named, shape[0], shape[1:].numel(), device, self.language.interpreted)

    def _constants_on(self, device: torch.device) -> Tensor:
        """The constants of the step as a tensor on `device`."""
        if device not in self._constants:
            numbers = self.step.constants or (0.0,)
            self._constants[device] = torch.tensor(numbers, dtype=self.dtype, device=device)
        return self._constants[device]


SAMPLES = 16
"""Samples per program: the minimum for ``tl.dot``."""
INNER = 16
"""Rows of a matrix per iteration of a product."""
WIDEST = {torch.float32: 1024, torch.float64: 512}
"""Maximum neurons by dtype, limited by registers, and by shared memory for rows of a matrix."""


class SampleKernels(GpuKernels):
    """The kernels of one step with matrix products, in one dtype, for at most :data:`WIDEST` neurons."""

    about: ClassVar = "triton: one kernel forward and one back, over samples, with dense products"
    takes_half: ClassVar = False

    def check(self, shape: torch.Size) -> None:
        """Raises Unsupported if a step of `shape` has more neurons than one program can hold."""
        if shape[-1] > WIDEST[self.dtype]:
            raise Unsupported(
                f"a product of {shape[-1]} neurons is wider than the {WIDEST[self.dtype]} of {self.dtype} "
                "that one program holds on a GPU"
            )

    def _run(
        self, kernel: Any, shape: torch.Size, matrices: Sequence[Tensor], named: Named, device: torch.device
    ) -> None:
        steps, features, samples = shape[0], shape[-1], shape[1:-1].numel()
        if not (features and samples):
            return
        named |= {f"M{i}_at": _plain(matrix) for i, matrix in enumerate(matrices)}
        named |= {f"M{i}_transposed_at": _plain(matrix.mT) for i, matrix in enumerate(matrices)}
        wide = max(INNER, 1 << (features - 1).bit_length())
        named |= {"steps": steps, "step_size": samples * features, "row_bytes": samples * row_bytes(features)}
        named |= {"size": wide.bit_length(), "samples": samples, "features": features}
        named |= {"sample_bytes": row_bytes(features), "SAMPLES": SAMPLES, "NEURONS": wide, "INNER": INNER}
        named["workspace"] = torch.empty(samples, features, dtype=self.dtype, device=device)
        warps = 4 if wide <= 128 else 8 if wide <= 512 else 16
        options = {} if self.language.interpreted else {"num_warps": warps}
        launch(kernel, (-(-samples // SAMPLES),), named, device, self.language.interpreted, **options)


def _signed(word: int) -> int:
    """A word of 32 bits as the signed integer with the same bits, so that Triton gives all words one type."""
    return word - (word >> 31 << 32)


def _plain(matrix: Tensor) -> Tensor:
    """`matrix` as a contiguous tensor of two dimensions."""
    return (matrix.squeeze(0) if matrix.ndim == 3 else matrix).contiguous()


FUNCTION_OF = {"root": "rsqrt"}
"""By operation: the PyTorch function to compare with, if its name differs."""


def agrees(op: str, language: Language) -> bool:
    """Whether kernels on the current device compute the same bits as PyTorch for `op` of test numbers."""
    device = "cpu" if language.interpreted else f"cuda:{torch.cuda.current_device()}"
    return _compared(op, language, device)


@cache
def _compared(op: str, language: Language, device: str) -> bool:
    """The result of :func:`_compare`, which runs once for each operation and device."""
    with ThreadPoolExecutor(1) as executor:  # a new thread has no modes that replace tensors
        return executor.submit(_compare, op, language, device).result()


def _compare(op: str, language: Language, device: str) -> bool:
    """Whether a Triton kernel and PyTorch compute the same bits for `op` of 5,000 test numbers."""
    dtype = getattr(torch, language.real)
    sizes = torch.logspace(-45, 38, 500, dtype=torch.float64, device="cpu")
    even = torch.linspace(-20, 20, 4097, dtype=torch.float32, device="cpu")
    ends = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float32, device="cpu")
    sample = torch.cat([even, sizes, -sizes, ends]).to(dtype).to(device)
    outputs = torch.empty_like(sample)
    kernel = kernel_of(function_source(language, op), "function", language)
    named = {"input": sample, "outputs": outputs}
    over_neurons(kernel, named, 1, sample.numel(), sample.device, language.interpreted)
    expected = getattr(torch, FUNCTION_OF.get(op, op))(sample)
    return bool(((outputs == expected) | (outputs.isnan() & expected.isnan())).all())
