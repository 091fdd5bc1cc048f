"""A step's CPU kernels where it has matrix products: compiled when first asked for, run over tensors.

Sequences are ``[T, ..., N]`` whose single steps are contiguous: N neurons that need one another, and samples,
which don't. Gradients of matrices are one product over the whole sequence, after the loop.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hibana.compiler.backend import BackwardArguments, ForwardArguments
from hibana.compiler.cpu.base import NativeKernels
from hibana.compiler.cpu.kernels import SHAPES
from hibana.compiler.cpu.product import padded, table_step
from hibana.compiler.cpu.samples_source import backward_source, forward_source, workspace
from hibana.compiler.cpu.schedule import Source
from hibana.compiler.graph import synapses
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step
from hibana.compiler.outer import outer_products
from hibana.compiler.packed import row_bytes
from hibana.runtime.kernels import Kernel, Work, arguments, assemble, ready

__all__ = ["SampleKernels"]

NEAR = 256 << 10
"""Bytes of the rows of the samples that a thread works on at a time, at most: a part of its own cache."""

MOST = 16
"""Samples that a thread works on at a time, at most; the more, the seldomer it goes through the weights."""


class SampleKernels(NativeKernels):
    """The kernels of one step with products, in one dtype; they raise what their base raises."""

    about: ClassVar = "cpu: one native kernel forward and one back, sample by sample, with products per spike"

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        super().__init__(step, plan, dtype)
        self.operands = synapses.operands(step)
        self._kernel = lru_cache(maxsize=64)(self._make_kernel)
        self._schedule = lru_cache(SHAPES)(self._make_schedule)

    def source(self, direction: str, *, keep: bool = True) -> str:
        """The source of the ``"forward"`` or ``"backward"`` kernel."""
        return self._source(direction, keep, False).text

    def forward(self, given: ForwardArguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What is emitted ``[T, ..., N]``, the last states but that if `ends`, and what `plan` keeps."""
        inputs, first, parameters, plan, ends, _ = given
        shape, dtype = inputs.shape, self.dtype
        outputs = torch.empty(shape, dtype=dtype, device="cpu")
        last = [torch.empty(shape[1:], dtype=dtype, device="cpu") for _ in first[1:]] if ends else []
        residuals = []
        if plan is not None:
            residuals = [
                torch.empty(s, dtype=d, device="cpu") for s, d in self.residual_shapes(shape[0], shape[1:])
            ]
        names = self.step.states
        named: dict[str, Any] = {"input": inputs, "input_step": inputs.stride(0), "outputs": outputs}
        named |= {f"{name}_first": t for name, t in zip(names, first, strict=True)}
        named |= {f"{name}_last": t for name, t in zip(names, last, strict=False)}
        named |= dict(zip(self.plan.names, residuals, strict=False))
        self._run(("forward", plan is not None, False), shape, parameters, named)
        return outputs, last, residuals

    def backward(self, given: BackwardArguments) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        """The gradients of the input and of the states begun with, the sums over time, and outer products."""
        plan, shape, inputs, first, parameters, residuals = given[:6]
        grad_outputs = given.grad_outputs
        one, dtype, names = shape[1:], self.dtype, self.step.states

        def empty(size: Sequence[int]) -> Tensor:
            return torch.empty(size, dtype=dtype, device="cpu")

        if grad_outputs is None:
            grad_outputs = torch.zeros(one, dtype=dtype, device="cpu").expand(shape)
        grad_input = empty(one if given.constant else shape) if given.wants_input else None
        first_grads: list[Tensor | None] = [empty(one) if given.wants_first else None for _ in first]
        sums = [empty(one) for _ in self.step.grad_sums]
        arriving = {} if grad_input is None or given.constant else {self.step.grad_input: grad_input}
        outer_rows = {}  # of each gradient that is not written anyway, by the first product that wants it
        for i, operand in enumerate(self.operands):
            if operand.gradient not in arriving:
                arriving[operand.gradient] = outer_rows[f"outer{i}_all"] = empty(shape)
        named: dict[str, Any] = {
            "grad_outputs": grad_outputs,
            "grad_outputs_step": grad_outputs.stride(0),
            "grad_input": grad_input,
            "uniform_grad_at": self.uniform_at(given),
            "wants_first": int(given.wants_first),
        }
        if inputs is not None:
            named |= {"input": inputs, "input_step": inputs.stride(0)}
        named |= {f"{name}_first": t for name, t in zip(names, first, strict=True)}
        named |= {f"{name}_last_grad": t for name, t in zip(names, given.last_grads, strict=False)}
        named |= {f"{name}_first_grad": t for name, t in zip(names, first_grads, strict=True)}
        named |= {f"sum{i}_all": t for i, t in enumerate(sums)}
        named |= outer_rows
        named |= dict(zip(self.plan.names, residuals, strict=False))
        self._run(("backward", given.wants_input, given.constant), shape, parameters, named)
        outer = outer_products(
            self.operands, dict(zip(plan.stored, residuals, strict=True)), inputs, first, arriving
        )
        return grad_input, first_grads, [*sums, *outer]

    def _run(
        self,
        which: tuple[str, bool, bool],
        shape: torch.Size,
        parameters: Sequence[Tensor],
        given: dict[str, Any],
    ) -> None:
        kernel = self._kernel(*which)
        schedule = self._schedule(which, shape, torch.get_num_threads())
        memory = torch.empty(schedule.bytes, dtype=torch.uint8, device="cpu")
        given |= {"workspace": memory, "constants": self.constants_at}
        given |= {f"p{i}_at": t for i, t in enumerate(parameters[: self.step.parameters])}
        given |= {f"{op}_at": address for op, address in self.functions.items()}
        matrices = parameters[self.step.parameters :]
        tables = {}
        for name in kernel.arguments:
            if name.startswith("m") and name.endswith("_at") and name[1:-3].isdigit():
                index, turned = divmod(int(name[1:-3]), 2)
                tables[name] = _table(matrices[index], turned=bool(turned))
        values = schedule.sizes | given | tables
        packed = [_address(values.get(name, 0)) for name in kernel.arguments]
        schedule.work.go(arguments(packed))

    def _make_kernel(self, direction: str, a: bool, b: bool) -> "_Bound":
        source = self._source(direction, a, b)
        (kernel,) = assemble(source.text, (direction,))
        return _Bound(kernel, source.arguments, source.rows)

    def _source(self, direction: str, a: bool, b: bool) -> Source:
        if direction == "forward":
            return forward_source(self.step, self.plan if a else None, self.real, self.calls)
        return backward_source(self.step, self.plan, self.real, self.calls, wants_input=a, constant_input=b)

    def _make_schedule(self, which: tuple[str, bool, bool], shape: torch.Size, threads: int) -> "_Schedule":
        kernel = self._kernel(*which)
        steps, neurons = shape[0], shape[-1]
        samples = shape[1:-1].numel()
        wide = padded(neurons)
        each = max(1, -(-samples // threads))
        near = NEAR // (max(1, kernel.rows) * wide * self.size)
        per_tile = max(1, min(each, MOST, max(4, near)))
        blocks = -(-samples // per_tile)
        pieces = min(blocks, threads)
        blocks_each = -(-blocks // pieces) if pieces else 0
        bytes_ = workspace(kernel.rows, wide, per_tile, self.size)
        bytes_ = -(-bytes_ // 64) * 64
        sizes = {
            **{"steps": steps, "samples": samples, "neurons": neurons, "padded": wide},
            **{"per_tile": per_tile, "blocks": blocks, "blocks_each": blocks_each, "workspace_bytes": bytes_},
            **{"sample_bytes": row_bytes(neurons), "row_bytes": samples * row_bytes(neurons)},
        }
        return _Schedule(ready(kernel.kernel.address, pieces), sizes, bytes_ * pieces)


class _Bound(NamedTuple):
    """A kernel, the names of its arguments, and how many rows of its own it has."""

    kernel: Kernel
    arguments: tuple[str, ...]
    rows: int


class _Schedule(NamedTuple):
    """How a kernel goes over sequences of one shape."""

    work: Work
    sizes: dict[str, int]
    bytes: int
    """Of the memory of all threads."""


def _address(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return 0 if value is None else int(value)


def _table(matrix: Tensor, *, turned: bool) -> Tensor:
    """The rows of `matrix`, each padded with zeros to whole panels."""
    matrix = matrix.squeeze(0) if matrix.ndim == 3 else matrix
    matrix = matrix.T if turned else matrix
    inputs, outputs = matrix.shape
    table = matrix.new_zeros(inputs, table_step(outputs, matrix.itemsize))
    table[:, :outputs] = matrix
    return table
