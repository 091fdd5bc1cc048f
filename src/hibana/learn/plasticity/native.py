"""A pair rule on the CPU: its kernel for a cell, and what lies where for it."""

import math

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler.graph.dependencies import dependencies_of
from hibana.compiler.graph.ops import Unsupported
from hibana.learn.plasticity.kernel import BLOCK, build
from hibana.learn.plasticity.neurons import NeuronStep
from hibana.learn.plasticity.pairs import Pairs
from hibana.runtime import available
from hibana.runtime.kernels import Launcher, float_bits

__all__ = ["Native"]


class Native:
    """The kernel of a rule, compiled for the cell that it was last run with."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self._made_for: object = None
        self._neurons: NeuronStep | None = None
        self._kernel: Launcher | None = None

    def made(self, cell: Cell, outputs: int) -> tuple[NeuronStep, Launcher]:
        """The neurons and the kernel for `cell`.

        Raises:
            Unsupported: if the cell can't be compiled.
        """
        made_for = (type(cell), dependencies_of(cell).key, outputs)
        if self._neurons is None or self._kernel is None or self._made_for != made_for:
            if reason := available.unavailable_reason():
                raise Unsupported(reason)
            pairs = self.pairs
            self._neurons = NeuronStep(cell, outputs)
            self._kernel = build(
                self._neurons,
                clipped=pairs.bounds is not None,
                soft=pairs.soft,
                nearest=pairs.nearest,
            )
            self._made_for = made_for
        return self._neurons, self._kernel

    def run(
        self, linear: nn.Linear, cell: Cell, inputs: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As :meth:`Pairs.run`, in float32 on the CPU.

        Raises:
            Unsupported: if the cell can't be compiled.
            ValueError: if an input is neither 0 nor 1; the weights are then as they were.
        """
        pairs, weight, bias = self.pairs, linear.weight.detach(), linear.bias
        outs, ins = weight.shape
        steps, batch, _ = inputs.shape
        neurons, launcher = self.made(cell, outs)
        *carried, before, pre, post = state
        stride = -(-outs // BLOCK) * BLOCK
        rows = weight.new_zeros(ins, stride)
        rows[:, :outs] = weight.T
        added = weight.new_zeros(stride)
        if bias is not None:
            added[:outs] = bias.detach()
        states = torch.stack(carried) if carried else weight.new_zeros(0)
        traces = pre.T.clone(memory_format=torch.contiguous_format)
        of_outputs = weight.new_zeros(batch, stride)
        of_outputs[:, :outs] = post
        outputs = weight.new_empty(steps, batch, outs)
        status = torch.zeros(1, dtype=torch.int64, device="cpu")
        lower, upper = pairs.bounds or (-math.inf, math.inf)
        launcher(
            1,
            inputs=inputs.resolve_neg().contiguous(),
            outputs=outputs,
            weights=rows,
            bias=added,
            states_at=states,
            before=before.resolve_neg().contiguous(),
            pre=traces,
            post=of_outputs,
            status=status,
            **neurons.numbers(cell),
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
        last = outputs[-1].clone()
        return outputs, (
            *states.unbind(),
            last,
            traces.T.contiguous(),
            of_outputs[:, :outs].clone(),
        )
