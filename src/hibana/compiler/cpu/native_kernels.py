"""The base class of a step's CPU kernels: compilation on first use, and the launch over tensors."""

import ctypes
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.compiler.cpu.kernel_writer import Source
from hibana.compiler.cpu.launch import Launch
from hibana.compiler.cpu.source import backward_source, forward_source
from hibana.compiler.cpu.vector_functions import approximate, vector_functions
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step
from hibana.compiler.named_kernels import Named, NamedKernels, Variant
from hibana.runtime.kernels import Kernel, address_of, assemble

SHAPES = 256
"""Maximum shapes of sequences that the kernels of all steps of one structure stay bound to."""


class NativeKernels(NamedKernels):
    """The CPU kernels of one step in one dtype, with its vector functions and its constants.

    Raises:
        Unsupported: if no function computes an operation of the step within 2 ulp.
    """

    takes_draws: ClassVar = True

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        """Finds the vector functions of `step`; kernels are compiled at their first launch."""
        self.plan = plan
        self.dtype = dtype
        self.real = str(dtype).removeprefix("torch.")
        self.size = dtype.itemsize
        self.functions = vector_functions(step, dtype)
        self.calls = frozenset(self.functions)
        self.approximate = approximate(step, dtype)
        self._kernels: dict[object, tuple[Kernel, Source]] = {}
        self._bound = lru_cache(SHAPES)(self._bind)
        self._set_step(step)

    def _set_step(self, step: Step) -> None:
        """Sets the step, and an array in memory of its constants."""
        super()._set_step(step)
        number = ctypes.c_double if self.dtype == torch.float64 else ctypes.c_float
        self.constants = (number * len(step.constants))(*step.constants)
        self.constants_address = ctypes.addressof(self.constants)

    def source(self, direction: str, *, keep: bool = True) -> str:
        """The LLVM IR of a kernel."""
        variant: Variant = True if direction == "backward" else self.plan if keep else None
        return self._source(direction, variant, False).text

    def _source(self, direction: str, variant: Any, nontemporal: bool) -> Source:
        """The LLVM IR of a kernel and the facts for its launch.

        `variant` is the plan of values that a forward stores, or whether a backward computes the input's
        gradient. `nontemporal`: whether the kernel writes sequences by non-temporal stores.
        """
        if direction == "forward":
            return forward_source(self.step, variant, self.real, self.calls, nontemporal)
        return backward_source(self.step, self.plan, self.real, self.calls, variant, nontemporal)

    def _kernel(self, direction: str, variant: Variant, nontemporal: bool = False) -> tuple[Kernel, Source]:
        """A compiled kernel and its source."""
        key = direction, variant, nontemporal
        if key not in self._kernels:
            source = self._source(*key)
            (kernel,) = assemble(source.text, (direction,))
            # Another thread may already run a kernel that it stored first: that one must stay alive.
            self._kernels.setdefault(key, (kernel, source))
        return self._kernels[key]

    @abstractmethod
    def _bind(
        self,
        direction: str,
        variant: Variant,
        shape: torch.Size,
        names: tuple[str, ...],
        threads: int,
    ) -> Launch:
        """A kernel bound to sequences of one shape.

        Args:
            direction: ``"forward"`` or ``"backward"``.
            variant: the plan of values that a forward stores, or whether a backward computes the input's
                gradient.
            shape: the shape of the sequences, ``[T, ...]``.
            names: the names of the arguments that change with each launch, in order.
            threads: the number of torch's threads.
        """

    def _function_addresses(self, source: Source) -> dict[str, int]:
        """The kernel's arguments that are the addresses of vector functions."""
        return {name: self.functions[op] for name, op in source.functions.items()}

    def _launch(
        self,
        direction: str,
        variant: Variant,
        shape: torch.Size,
        matrices: Sequence[Tensor],
        arguments: Named,
    ) -> None:
        """Runs a kernel once, on the addresses of the tensors in `arguments`; others are those of `_bind`."""
        arguments["constants"] = self.constants_address
        launch = self._bound(direction, variant, shape, tuple(arguments), torch.get_num_threads())
        if launch.workspace is not None:
            arguments["workspace"] = torch.empty(launch.workspace, dtype=torch.uint8, device="cpu")
        launch.run([_address(value) for value in arguments.values()])


def _address(value: Any) -> int:
    """The kernel argument for a tensor, a number, or None."""
    if isinstance(value, Tensor):
        return address_of(value)
    return value or 0
