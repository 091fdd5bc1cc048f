"""A step's kernels on a GPU where it multiplies by matrices: a program runs all neurons of some samples.

Products are dense: ``tl.dot`` in IEEE arithmetic. The residuals are those of the CPU.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.named_kernels import Named
from hibana.compiler.packed import row_bytes
from hibana.compiler.triton.kernels import GpuKernels
from hibana.compiler.triton.running import started

__all__ = ["SampleKernels"]

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
        options = {} if self.language.interpreted else {"num_warps": _warps(wide)}
        started(kernel, (-(-samples // SAMPLES),), given, device, self.language.interpreted, **options)


def _warps(neurons: int) -> int:
    return 4 if neurons <= 128 else 8 if neurons <= 512 else 16


def _plain(matrix: Tensor) -> Tensor:
    """`matrix` as a contiguous one of two dimensions."""
    return (matrix.squeeze(0) if matrix.ndim == 3 else matrix).contiguous()
