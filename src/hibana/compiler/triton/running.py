"""Compiles a Triton kernel from its source and runs it, on a GPU or in Triton's interpreter.

The interpreter runs the same kernels on tensors of the CPU, slowly, where ``TRITON_INTERPRET=1`` was set
before Triton was loaded.
"""

import linecache
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hibana.compiler.memory_layout import row_bytes
from hibana.compiler.triton.language import Language, interpreted
from hibana.compiler.triton.source import ANY_SIZE

BLOCKS = ((256, 4), (512, 4), (1024, 4), (1024, 8))
"""Neurons in a block, and warps: the configurations that autotuning tries."""
INTERPRETED_BLOCK = 64


def is_interpreted() -> bool:
    """Whether Triton's interpreter is to run kernels."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def exact(tensor: Tensor) -> Tensor:
    """`tensor`, in float32 where the interpreter would not round bfloat16 as IEEE requires."""
    return tensor.float() if tensor.dtype == torch.bfloat16 and is_interpreted() else tensor


def over_neurons(
    kernel: Any, given: dict[str, Any], steps: int, neurons: int, device: torch.device, interpreted: bool
) -> None:
    """Runs `kernel` over all blocks of neurons."""
    if not neurons:
        return
    sizes = {"steps": steps, "neurons": neurons, "row_bytes": row_bytes(neurons)}
    sizes["size"] = neurons.bit_length()
    if interpreted:
        sizes["BLOCK"] = INTERPRETED_BLOCK
    started(kernel, lambda chosen: (-(-neurons // chosen["BLOCK"]),), given | sizes, device, interpreted)


def started(
    kernel: Any, grid: Any, given: dict[str, Any], device: torch.device, interpreted: bool, **options: object
) -> None:
    """Runs `kernel` over the programs of `grid` with arguments by name; those not `given` are None."""
    here: AbstractContextManager[object] = np.errstate(all="ignore")
    if not interpreted:
        options |= {"enable_fp_fusion": False, "enable_reflect_ftz": False}
        here = torch.cuda.device(device)
    chosen = () if interpreted else ("BLOCK",)  # by what is tried when it meets a new size
    values = {name: given.get(name) for name in kernel.arg_names if name in given or name not in chosen}
    with here:
        kernel[grid](**values, **options)


@cache
def kernel_of(text: str, name: str, language: Language) -> Any:
    """The kernel called `name` that `text` defines."""
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    module = f"hibana_triton_{sha256(text.encode()).hexdigest()[:12]}"
    filename = f"<{module}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace = {
        "__name__": module,
        "tl": tl,
        "libdevice": _pytorchs_library() if language.interpreted else libdevice,
    }
    exec(compile(text, filename, "exec"), namespace)  # noqa: S102 # the source is our own
    if language.by_samples:
        namespace["multiplied"] = triton.jit(namespace["multiplied"])
    kernel = triton.jit(namespace[name], do_not_specialize=ANY_SIZE)
    if language.interpreted or language.by_samples:
        return kernel
    tried = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in BLOCKS]
    return triton.autotune(tried, key=["size"])(kernel)


@cache
def _pytorchs_library() -> SimpleNamespace:
    """The interpreter's library of functions: PyTorch's."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def of_block(op: str) -> Callable[[Any], Any]:
        function = getattr(torch, op)

        def computed(x: Any) -> Any:
            found = function(torch.from_numpy(x.handle.data.copy())).numpy()
            return tl.tensor(TensorHandle(found, x.handle.dtype), x.type)

        return computed

    return SimpleNamespace(**{op: of_block(op) for op in interpreted()})
