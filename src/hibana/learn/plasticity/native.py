"""A pair rule on the CPU: compiles the kernel for a cell, and converts the tensors to the kernel's layout."""

import math

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.ops import Unsupported
from hibana.learn.plasticity.cell_step import CellStep
from hibana.learn.plasticity.kernel import BLOCK, build_kernel
from hibana.learn.plasticity.pairs import Pairs
from hibana.runtime import available
from hibana.runtime.kernels import Launcher, float_bits

__all__ = ["NativePairs"]


class NativePairs:
    """Runs a pair rule by its kernel, which is compiled again if the cell changes."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self._key: object = None
        self._compiled: tuple[CellStep, Launcher] | None = None

    def compile(self, cell: Cell, outputs: int) -> tuple[CellStep, Launcher]:
        """The step of `cell` for `outputs` neurons, and the kernel.

        Raises:
            Unsupported: if the cell can't be compiled.
        """
        key = (type(cell), dependencies_of(cell).key, outputs)
        if self._compiled is None or self._key != key:
            if reason := available.unavailable_reason():
                raise Unsupported(reason)
            neurons = CellStep(cell, outputs)
            self._compiled, self._key = (neurons, build_kernel(neurons, self.pairs)), key
        return self._compiled

    def run(
        self, linear: nn.Linear, cell: Cell, inputs: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Computes :meth:`Pairs.run` in float32 on the CPU.

        Raises:
            Unsupported: if the cell can't be compiled.
            ValueError: if an input is neither 0 nor 1; the weights are then unchanged.
        """
        pairs, weight, bias = self.pairs, linear.weight.detach(), linear.bias
        outs, ins = weight.shape
        steps, batch, _ = inputs.shape
        neurons, launcher = self.compile(cell, outs)
        *inner, before, pre, post = state
        stride = -(-outs // BLOCK) * BLOCK
        rows = weight.new_zeros(ins, stride)
        rows[:, :outs] = weight.T
        padded_bias = weight.new_zeros(stride)
        if bias is not None:
            padded_bias[:outs] = bias.detach()
        states = torch.stack(inner) if inner else weight.new_zeros(0)
        pre_rows = pre.T.clone(memory_format=torch.contiguous_format)
        padded_post = weight.new_zeros(batch, stride)
        padded_post[:, :outs] = post
        outputs = weight.new_empty(steps, batch, outs)
        status = torch.zeros(1, dtype=torch.int64, device="cpu")
        lower, upper = pairs.bounds or (-math.inf, math.inf)
        launcher(
            1,
            inputs=inputs.resolve_neg().contiguous(),
            outputs=outputs,
            weights=rows,
            bias=padded_bias,
            states_at=states,
            before=before.resolve_neg().contiguous(),
            pre=pre_rows,
            post=padded_post,
            status=status,
            **neurons.tensors(cell),
            steps=steps,
            batch=batch,
            inputs_count=ins,
            outputs_count=outs,
            stride=stride,
            decay_pre=float_bits(1 - 1 / pairs.tau_pre),
            decay_post=float_bits(1 - 1 / pairs.tau_post),
            a_plus=float_bits(pairs.a_plus),
            a_minus=float_bits(pairs.a_minus),
            lower=float_bits(lower),
            upper=float_bits(upper),
        )
        if status.item():
            raise ValueError("inputs must be spikes, 0 or 1")
        weight.copy_(rows[:, :outs].T)
        last = outputs[-1].clone(), pre_rows.T.contiguous(), padded_post[:, :outs].clone()
        return outputs, (*states.unbind(), *last)
