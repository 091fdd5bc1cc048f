"""A step's kernels on a GPU where it multiplies by matrices: a program runs all neurons of some samples.

Both kinds of product, of what is emitted and of a gradient, are dense: ``tl.dot`` with IEEE's numbers. What
is kept are the bits and numbers that the CPU keeps, and the gradients of matrices are one product over the
whole sequence after the loop.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.packed import row_bytes
from hibana.compiler.triton.kernels import GpuKernels
from hibana.compiler.triton.running import started

__all__ = ["SampleKernels"]

SAMPLES = 16
"""Samples of a program: the fewest that ``tl.dot`` takes."""
INNER = 16
"""Rows of a matrix that a product reads at a time."""
WIDEST = {torch.float32: 1024, torch.float64: 512}
"""Neurons that a program can hold in its registers, with the rows of a matrix in its shared memory."""


class SampleKernels(GpuKernels):
    """The kernels of one step with products, in one dtype.

    Raises:
        Unsupported: as :class:`GpuKernels`, and of :meth:`check`, for more neurons than a program can hold.
    """

    about: ClassVar = "triton: one kernel forward and one back, over samples, with dense products"
    takes_half: ClassVar = False

    def check(self, shape: torch.Size) -> None:
        """Raises ``Unsupported`` for steps of more neurons than a program can hold."""
        if shape[-1] > WIDEST[self.dtype]:
            raise Unsupported(
                f"a product of {shape[-1]} neurons is wider than the {WIDEST[self.dtype]} of {self.dtype} "
                "that one program holds on a GPU"
            )

    def _run(
        self,
        kernel: Any,
        shape: torch.Size,
        matrices: Sequence[Tensor],
        given: dict[str, Any],
        device: torch.device,
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
    """`matrix` with its rows one after the other."""
    return (matrix.squeeze(0) if matrix.ndim == 3 else matrix).contiguous()
