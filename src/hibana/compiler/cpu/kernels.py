"""The CPU kernels of a step, which are compiled on first use.

Those of a step without matrix products run over rows of neurons. A sequence is ``[T, ...]``. Its single steps
are contiguous; its stride over time is arbitrary, such as 0 for an input that is the same at each step.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hibana.compiler.backend import Prepared
from hibana.compiler.cpu.kernel_writer import Source
from hibana.compiler.cpu.launch import Launch, argument_packer, split_rows, unaliased
from hibana.compiler.cpu.row_function import LINE, NUMBERS
from hibana.compiler.cpu.row_loops import RowLoops
from hibana.compiler.cpu.sample_loops import SampleLoops
from hibana.compiler.cpu.time_loop import TimeLoop
from hibana.compiler.cpu.vector_functions import approximate, vector_functions
from hibana.compiler.graph.loops import backward_loop, forward_loop
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step
from hibana.compiler.memory_layout import row_bytes
from hibana.compiler.named_kernels import Named, NamedKernels, Variant
from hibana.runtime.kernels import Kernel, address_of, assemble, bind_kernel

SHAPES = 256
"""Maximum shapes of sequences that the kernels of all steps of one structure stay bound to."""

NONTEMPORAL_FROM = 8 << 20
"""Bytes of a sequence from which it is written by non-temporal stores: the last-level cache would keep little
of it until it is read."""


class StepCall(NamedTuple):
    """A call of a compiled forward kernel for one step, ``kernel(0, pieces, arguments)``."""

    address: int
    """The address of the kernel, a C function ``void (int64 begin, int64 end, void *arguments)``."""
    pieces: int
    arguments: Tensor
    """The argument block, as bytes."""
    memory: Named
    """The tensors whose addresses are in the argument block."""


class CpuKernels(NamedKernels):
    """The kernels of one step in one dtype, with its vector functions and its constants.

    Raises:
        Unsupported: if no function computes an operation of the step within 2 ulp.
    """

    about: ClassVar = "cpu: one native kernel forward and one back, on torch's threads"
    takes_draws: ClassVar = True

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        """Finds the vector functions of `step`; kernels are compiled at their first launch."""
        self.plan = plan
        self.dtype = dtype
        self.number = NUMBERS[dtype]
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

    def source(self, direction: str) -> str:
        """The LLVM IR of a kernel."""
        return self._source(direction, self.plan if direction == "forward" else True, False).text

    def _source(self, direction: str, variant: Any, nontemporal: bool) -> Source:
        """The LLVM IR of a kernel and the facts for its launch.

        `variant` is the plan of values that a forward stores, or whether a backward computes the input's
        gradient. `nontemporal`: whether the kernel writes sequences by non-temporal stores.
        """
        multiplies = self.step.matrices > 0
        if direction == "forward":
            loop = forward_loop(self.step, variant, rereads_outputs=multiplies)
        else:
            loop = backward_loop(self.step, self.plan, wants_input=variant, masks_products=True)
        time_loop = TimeLoop(
            **vars(loop),
            number=self.number,
            calls=self.calls,
            nontemporal=nontemporal,
            by_rows=not multiplies,
        )
        return (SampleLoops if multiplies else RowLoops)(self.step, time_loop).source()

    def _kernel(self, direction: str, variant: Variant, nontemporal: bool = False) -> tuple[Kernel, Source]:
        """A compiled kernel and its source."""
        key = direction, variant, nontemporal
        if key not in self._kernels:
            source = self._source(*key)
            kernel = assemble(source.text, direction)
            # Another thread may already run a kernel that it stored first: that one must stay alive.
            self._kernels.setdefault(key, (kernel, source))
        return self._kernels[key]

    def _new_sequence(self, read: Tensor, may_offset: bool) -> Tensor:
        """A sequence like `read` without 4K aliasing between the two."""
        return unaliased(read, may_offset)

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
            threads: the number of torch's threads, among which the work is split.
        """
        steps, neurons = shape[0], shape[1:].numel()
        step_bytes = neurons * self.size
        is_large = steps * step_bytes >= NONTEMPORAL_FROM and step_bytes % LINE == 0
        kernel, source = self._kernel(direction, variant, is_large)
        rows, width, grain = split_rows(steps, neurons, threads, source.max_row)
        sizes = {"steps": steps, "neurons": neurons, "width": width, "row_bytes": row_bytes(neurons)}
        sizes |= self._function_addresses(source)
        pack = argument_packer(source.arguments, sizes, names)
        return Launch(bind_kernel(kernel.address, rows, grain), pack, kernel.address, rows)

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
        launch = self._bind_all(direction, variant, shape, matrices, arguments)
        launch.kernel(launch.pack([_address(value) for value in arguments.values()]))

    def _bind_all(
        self,
        direction: str,
        variant: Variant,
        shape: torch.Size,
        matrices: Sequence[Tensor],
        arguments: Named,
    ) -> Launch:
        """The kernel of a launch; adds to `arguments` what the kernel reads besides them."""
        arguments["constants"] = self.constants_address
        launch = self._bound(direction, variant, shape, tuple(arguments), torch.get_num_threads())
        if launch.workspace is not None:
            arguments["workspace"] = torch.empty(launch.workspace, dtype=torch.uint8, device="cpu")
        return launch

    def bind_step(
        self, x: Tensor, outputs: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> "StepCall":
        """A call of the forward kernel for one step on fixed memory, which other kernels may repeat.

        The call reads the input and the states, and writes `outputs` and all states but the last in place.

        Args:
            x: the input, ``[batch, ...]``.
            outputs: the memory of the outputs, with the shape of `x`.
            states: the states before the step; the last one holds the outputs of the previous step.
            parameters: the step's parameters, then its matrices, as in :class:`ForwardArguments`.
        """
        count = self.step.parameters
        arguments: Named = {"input": x, "input_step": 0, "outputs": outputs, "seed": 0}
        arguments |= dict(zip(self._initial_names, states, strict=True))
        arguments |= dict(zip(self._last_names[:-1], states[:-1], strict=True))
        arguments |= dict(zip(self._parameter_names, parameters[:count], strict=True))
        launch = self._bind_all("forward", None, torch.Size((1, *x.shape)), parameters[count:], arguments)
        block = launch.pack([_address(value) for value in arguments.values()])
        packed = torch.frombuffer(bytearray(block), dtype=torch.uint8)
        return StepCall(launch.address, launch.pieces, packed, arguments)

    def prepare(
        self, plan: Plan | None, shape: torch.Size, wants_last: bool, has_state: bool
    ) -> Prepared | None:
        """Kernels bound to all arguments but the tensors' addresses, which saves time in short calls.

        None for steps with parameters, matrices or random numbers.
        """
        if self.step.arguments or self.step.draws:
            return None
        empty_like, count, dtype = torch.empty_like, len(self.step.states), self.dtype
        last_count, initial_names = count * wants_last, self._initial_names if has_state else ()
        step_shape, step_bytes = shape[1:], shape[1:].numel() * self.size
        before_last = (shape[0] - 1) * step_bytes
        layouts = [(tuple(step_shape), dtype)] * last_count
        layouts += self.residual_shapes(shape[0], step_shape) if plan else []
        templates = [torch.empty(size, dtype=kind, device="cpu") for size, kind in layouts]
        state_template = torch.empty(step_shape, dtype=dtype, device="cpu")
        for template in (*templates, state_template):
            template.untyped_storage().resize_(0)  # their shapes and dtypes are needed, not their memory
        names = ("input", *initial_names, "outputs", *self._last_names[:last_count])
        run_forward = self._prepared("forward", plan, shape, (*names, *(plan.names if plan else ())))

        def accepts(state: object) -> bool:
            """Whether the kernels read `state` as it is."""
            if type(state) is not tuple or len(state) != count:
                return False
            for value in state:
                if type(value) is not Tensor or value.shape != step_shape or value.dtype is not dtype:
                    return False
                if not value.is_cpu or value.layout is not torch.strided or not value.is_contiguous():
                    return False
                if value.is_neg():
                    return False
            return True

        def forward(inputs: Tensor, initial: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
            """The outputs, the last states, and the residuals."""
            outputs, results = unaliased(inputs), [empty_like(template) for template in templates]
            run_forward([tensor.data_ptr() for tensor in (inputs, *initial, outputs, *results)])
            if last_count:
                ctypes.memmove(
                    results[last_count - 1].data_ptr(), outputs.data_ptr() + before_last, step_bytes
                )
            return outputs, results[:last_count], results[last_count:]

        if plan is None:
            return Prepared(accepts, forward, None)
        saved_names = (*["input"] * plan.reads_input, *(initial_names[i] for i in plan.first * has_state))
        grad_names = *self._last_grad_names[: max(0, last_count - 1)], *(self._initial_grad_names * has_state)
        run_backward = self._prepared(
            *("backward", True, shape),
            ("grad_outputs", "grad_input", *grad_names, *saved_names, *plan.names),
        )

        def backward(
            saved: Sequence[Tensor],
            grad_outputs: Tensor,
            last_grads: Sequence[Tensor | None],
            wants_first: bool,
        ) -> tuple[Tensor, list[Tensor]]:
            """The gradients of the inputs and of the initial states."""
            grad_input = unaliased(grad_outputs)
            grads = [empty_like(state_template) for _ in initial_names] if wants_first else []
            saved = [tensor.contiguous() for tensor in saved]  # hooks for saved tensors may change strides
            addresses = [grad_outputs.data_ptr(), grad_input.data_ptr()]
            addresses += [0 if grad is None else grad.data_ptr() for grad in last_grads]
            addresses += [grad.data_ptr() for grad in grads] or [0] * len(initial_names)
            run_backward(addresses + [tensor.data_ptr() for tensor in saved])
            return grad_input, grads

        return Prepared(accepts, forward, backward)

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


def _address(value: Any) -> int:
    """The kernel argument for a tensor, a number, or None."""
    if isinstance(value, Tensor):
        return address_of(value)
    return value or 0
