"""Whether a function is PyTorch's to the last bit, as kernels have it on a device."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from hibana.compiler.triton.language import Language
from hibana.compiler.triton.running import kernel_of, over_neurons
from hibana.compiler.triton.source import function_source

__all__ = ["agrees"]

FUNCTION_OF = {"root": "rsqrt"}
"""What PyTorch has a function for, where it is called otherwise."""


def agrees(op: str, language: Language) -> bool:
    """Whether `op` of a sample, as kernels have it on the current device, is PyTorch's to the last bit."""
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
