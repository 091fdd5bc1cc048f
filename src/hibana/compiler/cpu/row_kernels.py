"""The CPU kernels of a step without matrix products: they run over rows of neurons.

A sequence is ``[T, ...]``. Its single steps are contiguous; its stride over time is arbitrary, such as 0 for
an input that is the same at each step.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hibana.compiler.backend import Prepared
from hibana.compiler.cpu.launch import Launch, argument_packer, split_rows, unaliased
from hibana.compiler.cpu.native_kernels import NativeKernels
from hibana.compiler.cpu.row_function import LINE
from hibana.compiler.graph.plan import Plan
from hibana.compiler.memory_layout import row_bytes
from hibana.compiler.named_kernels import Variant
from hibana.runtime.kernels import bind_kernel

NONTEMPORAL_FROM = 8 << 20
"""Bytes of a sequence from which it is written by non-temporal stores: the last-level cache would keep little
of it until it is read."""

PREPARED_UP_TO = 64 << 10
"""Maximum bytes of a sequence whose calls are prepared: in a longer call this saves little."""

REVERSED = 512
"""Neurons at the end of a thread's last row that run in reverse order, against false sharing: the prefetcher
goes on past the end of a row, and would take cache lines from the thread that writes them."""


class CpuKernels(NativeKernels):
    """The kernels of one step without matrix products, in one dtype."""

    about: ClassVar = "cpu: one native kernel forward and one back, on torch's threads"

    def _new_sequence(self, read: Tensor, shape: torch.Size, may_offset: bool) -> Tensor:
        """A tensor of `shape` without 4K aliasing between it and `read`."""
        return unaliased(read, shape, may_offset)

    def _bind(
        self,
        direction: str,
        variant: Variant,
        shape: torch.Size,
        names: tuple[str, ...],
        threads: int,
    ) -> Launch:
        """A kernel bound to sequences of one `shape`, with rows split among `threads`."""
        steps, neurons = shape[0], shape[1:].numel()
        step_bytes = neurons * self.size
        is_large = steps * step_bytes >= NONTEMPORAL_FROM and step_bytes % LINE == 0
        kernel, source = self._kernel(direction, variant, is_large)
        rows, width, grain = split_rows(steps, neurons, threads, source.max_row)
        sizes = {"steps": steps, "neurons": neurons, "width": width, "reversed": REVERSED}
        sizes |= {"row_bytes": row_bytes(neurons)} | self._function_addresses(source)
        pack = argument_packer(source.arguments, sizes, names)
        return Launch(bind_kernel(kernel.address, rows, grain), pack)

    def prepare(self, plan: Plan, shape: torch.Size, wants_last: bool) -> Prepared | None:
        """Kernels bound to all arguments but the tensors' addresses, which saves time in short calls.

        None for long sequences, and for steps with parameters or random numbers.
        """
        if self.step.parameters or self.step.draws or shape.numel() * self.size > PREPARED_UP_TO:
            return None
        empty_like, last_count = torch.empty_like, (len(self.step.states) - 1) * wants_last
        layouts = [(shape[1:], self.dtype)] * last_count + self.residual_shapes(shape[0], shape[1:], plan)
        templates = [torch.empty(size, dtype=dtype, device="cpu") for size, dtype in layouts]
        names = ("input", "outputs", *self._last_names[:last_count], *plan.names)
        run_forward = self._prepared("forward", plan, shape, names)
        saved_names = (*["input"] * plan.reads_input, *plan.names)
        run_backward = self._prepared("backward", True, shape, ("grad_outputs", "grad_input", *saved_names))

        def forward(inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
            """The outputs, the last states, and the residuals."""
            outputs, results = empty_like(inputs), [empty_like(template) for template in templates]
            run_forward([tensor.data_ptr() for tensor in (inputs, outputs, *results)])
            return outputs, results[:last_count], results[last_count:]

        def backward(saved: Sequence[Tensor], grad_outputs: Tensor) -> Tensor:
            """The gradient of the inputs."""
            grad_input = empty_like(grad_outputs)
            run_backward([tensor.data_ptr() for tensor in (grad_outputs, grad_input, *saved)])
            return grad_input

        return Prepared(forward, backward)

    def _prepared(
        self, direction: str, variant: Variant, shape: torch.Size, names: tuple[str, ...]
    ) -> Callable[[list[int]], None]:
        """A function that runs a kernel, from addresses of contiguous tensors `names`; others are null."""
        neurons = shape[1:].numel()
        constant_arguments = dict.fromkeys([*self._initial_names, *self._last_names], 0)
        constant_arguments |= dict.fromkeys([*self._initial_grad_names, *self._last_grad_names, "input"], 0)
        constant_arguments |= {
            "constants": self.constants_address,
            "input_step": neurons,
            "grad_outputs_step": neurons,
        }
        constant_arguments = {name: value for name, value in constant_arguments.items() if name not in names}
        launch = self._bound(
            direction, variant, shape, (*names, *constant_arguments), torch.get_num_threads()
        )
        run, pack, values = launch.kernel, launch.pack, tuple(constant_arguments.values())
        return lambda addresses: run(pack((*addresses, *values)))
