"""Compiles a Triton kernel from its source and runs it, on a GPU or in Triton's interpreter.

If ``TRITON_INTERPRET=1`` is set before Triton is loaded, its interpreter runs the same kernels on CPU
tensors, slowly.
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
"""Configurations that autotuning tries: neurons per block, and warps."""
INTERPRETED_BLOCK = 64
"""Neurons per block in the interpreter."""


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs kernels."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def exact(tensor: Tensor) -> Tensor:
    """`tensor`, or a float32 copy of bfloat16 numbers, which the interpreter does not round like IEEE 754."""
    return tensor.float() if tensor.dtype == torch.bfloat16 and is_interpreted() else tensor


def over_neurons(
    kernel: Any, arguments: dict[str, Any], steps: int, neurons: int, device: torch.device, interpreted: bool
) -> None:
    """Runs `kernel` with `arguments` by name over all blocks of neurons."""
    if not neurons:
        return
    sizes = {"steps": steps, "step_size": neurons, "row_bytes": row_bytes(neurons)}
    sizes["size"] = neurons.bit_length()
    if interpreted:
        sizes["BLOCK"] = INTERPRETED_BLOCK
    launch(kernel, lambda config: (-(-neurons // config["BLOCK"]),), arguments | sizes, device, interpreted)


def launch(
    kernel: Any,
    grid: Any,
    arguments: dict[str, Any],
    device: torch.device,
    interpreted: bool,
    **options: object,
) -> None:
    """Runs a Triton `kernel` of `grid` programs with `arguments` by name; other arguments are None."""
    context: AbstractContextManager[object] = np.errstate(all="ignore")
    if not interpreted:
        options |= {"enable_fp_fusion": False, "enable_reflect_ftz": False}
        context = torch.cuda.device(device)
    tuned = () if interpreted else ("BLOCK",)  # autotuning sets it
    values = {n: arguments.get(n) for n in kernel.arg_names if n in arguments or n not in tuned}
    with context:
        kernel[grid](**values, **options)


@cache
def kernel_of(text: str, name: str, language: Language) -> Any:
    """The kernel `name` that the source `text` defines."""
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    module = f"hibana_triton_{sha256(text.encode()).hexdigest()[:12]}"
    filename = f"<{module}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace = {
        "__name__": module,
        "tl": tl,
        "libdevice": _pytorch_functions() if language.interpreted else libdevice,
    }
    exec(compile(text, filename, "exec"), namespace)  # noqa: S102 # hibana's own source
    if language.by_samples:
        namespace["multiplied"] = triton.jit(namespace["multiplied"])
    kernel = triton.jit(namespace[name], do_not_specialize=ANY_SIZE)
    if language.interpreted or language.by_samples:
        return kernel
    configs = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in BLOCKS]
    return triton.autotune(configs, key=["size"])(kernel)


def _pytorch_functions() -> SimpleNamespace:
    """PyTorch's functions of one argument, for the interpreter in place of ``libdevice``."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def on_blocks(op: str) -> Callable[[Any], Any]:
        """A function that applies ``torch.{op}`` to a block of the interpreter."""
        function = getattr(torch, op)

        def call(x: Any) -> Any:
            result = function(torch.from_numpy(x.handle.data.copy())).numpy()
            return tl.tensor(TensorHandle(result, x.handle.dtype), x.type)

        return call

    return SimpleNamespace(**{op: on_blocks(op) for op in interpreted()})
