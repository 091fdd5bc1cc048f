"""A step's kernels on a GPU, in Triton: built when first asked for, run over tensors.

What is computed equals PyTorch on that very device: on a GPU a function is had from the device's library only
if it gives PyTorch's own bits there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.compiler.backend import BackwardArguments, ForwardArguments, Kernels
from hibana.compiler.graph.ops import CALLS, OPERATIONS, Unsupported
from hibana.compiler.graph.plan import Plan, gradients, reachable
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.synapses import operands
from hibana.compiler.outer import outer_products
from hibana.compiler.triton.agreement import agrees
from hibana.compiler.triton.language import Language
from hibana.compiler.triton.running import exact, is_interpreted, kernel_of, over_neurons
from hibana.compiler.triton.source import backward_source, forward_source

__all__ = ["GpuKernels", "refusal"]


def refusal(device: str) -> str:
    """Why nothing on `device`, a kind of device, can be served, or ``""``."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed: pip install 'hibana[gpu]'"
    if triton.knobs.runtime.interpret:
        return "" if device == "cpu" else "TRITON_INTERPRET=1 is set: Triton serves the CPU alone"
    if device != "cuda":
        return f"Triton serves {device} in its interpreter alone, which TRITON_INTERPRET=1 asks for"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return "PyTorch's numbers on ROCm were never compared" if torch.version.hip else ""


class GpuKernels(Kernels):
    """The kernels of one step in one dtype; they read and write sequences of half precision as they are.

    Raises:
        Unsupported: if the step computes a function that can't be had here to PyTorch's last bit.
    """

    about: ClassVar = "triton: one kernel forward and one back, over blocks of neurons"
    takes_half: ClassVar = True

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        self.plan = plan
        self.dtype = dtype
        self.operands = operands(step)
        self.language = Language(str(dtype).removeprefix("torch."), is_interpreted(), bool(step.matrices))
        said = self.language.dialect.operations
        roots = [*step.nexts, *gradients(step)]
        missing = [v.op for v in reachable(roots) if v.op in OPERATIONS and v.op not in said]
        if missing:
            raise Unsupported(f"{missing[0]} is nothing that hibana says in Triton")
        for op in sorted({value.op for value in reachable(step.nexts)} & {*CALLS, "root"}):
            if not agrees(op, replace(self.language, by_samples=False)):
                raise Unsupported(f"{op} can't be had here to the last bit of PyTorch's own")
        self._built: dict[object, Callable[..., object]] = {}
        self._take(step)

    def _take(self, step: Step) -> None:
        """Takes the constants of `step`."""
        super()._take(step)
        self._constants: dict[torch.device, Tensor] = {}

    @staticmethod
    def device() -> str:
        """The kind of device whose PyTorch the numbers equal."""
        return "cpu" if is_interpreted() else "cuda"

    def source(self, direction: str, *, keep: bool = True) -> str:
        """The source of the ``"forward"`` or ``"backward"`` kernel."""
        return self._source(direction, keep if direction == "forward" else (True, False))

    def forward(self, given: ForwardArguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What is emitted ``[T, ...]`` in the input's dtype, the last states if `ends`, what `plan` keeps.

        Where the input is of half precision, the emitted state is one of the last states, in full.
        """
        inputs, first, parameters, plan, ends, _ = given
        steps, *one = inputs.shape
        read = exact(inputs)
        outputs = inputs.new_empty(inputs.shape, dtype=read.dtype)
        half = inputs.dtype != self.dtype
        # the emitted state is the last of the outputs, unless those are rounded
        written = [ends] * (len(self.step.states) - 1) + [ends and half]
        last = [inputs.new_empty(one, dtype=self.dtype) if there else None for there in written]
        residuals = (
            [inputs.new_empty(s, dtype=d) for s, d in self.residual_shapes(steps, one)] if plan else []
        )
        names = self.step.states
        named = {"input": read, "input_step": read.stride(0), "outputs": outputs}
        named |= {f"{name}_first": t for name, t in zip(names, first, strict=True)}
        named |= {f"{name}_last": t for name, t in zip(names, last, strict=True)}
        named |= dict(zip(self.plan.names, residuals, strict=False))
        self._launch("forward", plan is not None, inputs.shape, parameters, named)
        return outputs.to(inputs.dtype), [value for value in last if value is not None], residuals

    def backward(self, given: BackwardArguments) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
        """The gradients of the input and of the states begun with, the sums over time, and outer products.

        With `constant`, the gradient of the input is summed over time.
        """
        plan, shape, inputs, first, parameters, residuals = given[:6]
        grad_outputs, last_grads = given.grad_outputs, given.last_grads
        wants_input, constant = given.wants_input, given.constant
        one = shape[1:]
        like = residuals[0] if residuals else next(t for t in (grad_outputs, *last_grads) if t is not None)
        if grad_outputs is None:
            grad_outputs = like.new_zeros(one, dtype=self.dtype).expand(shape)
        arriving = exact(grad_outputs)
        read = None if inputs is None else exact(inputs)
        grad_input = None
        if wants_input:
            grad_input = like.new_empty(one if constant else shape, dtype=arriving.dtype)
        states, sums = self.step.states, self.step.grad_sums
        first_grads = [like.new_empty(one, dtype=self.dtype) if given.wants_first else None for _ in states]
        summed = [like.new_empty(one, dtype=self.dtype) for _ in sums]
        named: dict[str, Any] = {} if read is None else {"input": read, "input_step": read.stride(0)}
        named |= {"grad_outputs": arriving, "grad_outputs_step": arriving.stride(0), "grad_input": grad_input}
        named |= {f"{name}_first": t for name, t in zip(states, first, strict=True)}
        named |= {f"{name}_last_grad": t for name, t in zip(states, last_grads, strict=False)}
        named |= {f"{name}_first_grad": t for name, t in zip(states, first_grads, strict=True)}
        named |= {f"sum{i}_all": t for i, t in enumerate(summed)}
        named |= dict(zip(self.plan.names, residuals, strict=False))
        at = {} if grad_input is None or constant else {self.step.grad_input: grad_input}
        for i, operand in enumerate(self.operands):
            if operand.gradient not in at:  # written once for all products that want it
                at[operand.gradient] = named[f"outer{i}_all"] = like.new_empty(shape, dtype=self.dtype)
        self._launch("backward", (wants_input, constant), shape, parameters, named)
        if grad_input is not None:
            grad_input = grad_input.to(grad_outputs.dtype)
        outer = outer_products(
            self.operands, dict(zip(plan.stored, residuals, strict=True)), inputs, first, at
        )
        return grad_input, first_grads, [*summed, *outer]

    def _source(self, direction: str, variant: bool | tuple[bool, bool]) -> str:
        if isinstance(variant, bool):
            return forward_source(self.step, self.plan if variant else None, self.language)
        wants_input, constant = variant
        return backward_source(
            self.step, self.plan, self.language, wants_input=wants_input, constant_input=constant
        )

    def _launch(
        self,
        direction: str,
        variant: bool | tuple[bool, bool],
        shape: torch.Size,
        parameters: Sequence[Tensor],
        given: dict[str, Any],
    ) -> None:
        """Runs a kernel on what is `given`, by the names of its arguments; the others are None."""
        key = (direction, variant)
        if key not in self._built:
            text = self._source(direction, variant)
            self._built[key] = kernel_of(text, direction, self.language)
        device = next(v.device for v in given.values() if isinstance(v, Tensor))
        given |= {"constants": self._numbers(device)}
        given |= {f"p{i}_at": t for i, t in enumerate(parameters[: self.step.parameters])}
        self._run(self._built[key], shape, parameters[self.step.parameters :], given, device)

    def _run(
        self,
        kernel: Any,
        shape: torch.Size,
        matrices: Sequence[Tensor],
        given: dict[str, Any],
        device: torch.device,
    ) -> None:
        """Runs `kernel`, over all blocks of neurons; a step without products has no `matrices`."""
        over_neurons(kernel, given, shape[0], shape[1:].numel(), device, self.language.interpreted)

    def _numbers(self, device: torch.device) -> Tensor:
        """The step's constants."""
        if device not in self._constants:
            numbers = self.step.constants or (0.0,)
            self._constants[device] = torch.tensor(numbers, dtype=self.dtype, device=device)
        return self._constants[device]
