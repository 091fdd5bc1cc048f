"""The base class of a step's CPU kernels, over rows of neurons or over samples."""

import ctypes
from typing import ClassVar

import torch

from hibana.compiler.backend import Kernels
from hibana.compiler.cpu.libraries import approximate, vector_functions
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step


class NativeKernels(Kernels):
    """The kernels of one step in one dtype, with the vector functions that they call and its constants.

    Raises:
        Unsupported: if the step computes a function that can't be had here within 2 ulp.
    """

    takes_draws: ClassVar = True

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        self.plan = plan
        self.dtype = dtype
        self.real = str(dtype).removeprefix("torch.")
        self.size = dtype.itemsize
        self.number = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
        self.functions = vector_functions(step, dtype)
        self.calls = frozenset(self.functions)
        self.approximate = approximate(step, dtype)
        self._take(step)

    def _take(self, step: Step) -> None:
        super()._take(step)
        self.constants = (self.number * len(step.constants))(*step.constants)
        self.constants_at = ctypes.addressof(self.constants)
