"""``hb.learn.STDP``: spike-timing-dependent plasticity of the weights of a linear layer, dense or sparse."""

import math
from collections.abc import Sequence
from typing import Literal, final, overload

import torch
from torch import Tensor, nn

from hibana.compiler import programs
from hibana.compiler.backend import Kernels
from hibana.compiler.checks import warn_slow
from hibana.compiler.cpu.kernels import CpuKernels
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.tensors import tensors_of
from hibana.learn.plasticity.kernel import run_steps
from hibana.learn.plasticity.pairs import PairRule, Pairs
from hibana.nn.layers import OverTime
from hibana.nn.sparse_linear import SparseLinear
from hibana.runtime import available

__all__ = ["STDP"]

_BACKENDS = ("auto", "cpu", "reference")


@final
class STDP(PairRule):
    """Pair-based spike-timing-dependent plasticity of the weights from inputs to spiking neurons.

        x_t = (1 - 1/tau_pre) x_(t-1) + s_t        a trace of each input's spikes
        y_t = (1 - 1/tau_post) y_(t-1) + z_t       a trace of each neuron's spikes
        w_(t+1) = w_t + a_plus f(w_t) x_t z_t - a_minus g(w_t) y_t s_t

    Changes are summed over the batch. Traces are updated first, so two spikes at one step count in both
    terms. Without `soft`, ``f = g = 1``; with `soft`, ``f = upper - w`` and ``g = w - lower``. With
    `nearest`, a spike sets its trace to 1 instead of adding 1, so that only the nearest spikes make pairs.

    Weights change at the end of each step, and the next step uses the new weights. On the CPU in float32 a
    sequence is one native call. All samples of a batch change the same weights, one sample after another: a
    batch of 16 takes about 10 times as long as one sample.

    Args:
        linear: the weights, ``[outputs, inputs]``, which change in place; the bias stays. The synapses of a
            :class:`hibana.SparseLinear` without delays change in plain PyTorch, step by step.
        neurons: a layer of spiking neurons, such as ``hibana.LIF()``, or ``hibana.OverTime`` of any cell.
        tau_pre: time constant of the inputs' traces, in steps, at least 1.
        tau_post: time constant of the neurons' traces, in steps, at least 1.
        a_plus: rate of potentiation, at least 0.
        a_minus: rate of depression, at least 0.
        bounds: ``(lower, upper)``, to which the weights are clipped; None for no bounds.
        soft: whether changes get smaller towards the bounds (multiplicative), or not (additive).
        nearest: whether only pairs of nearest spikes count, or all pairs.
        backend: ``"cpu"``, ``"reference"`` (plain PyTorch, step by step, on any device and dtype), or
            ``"auto"`` (``"cpu"`` if it supports the call).

    Raises:
        TypeError: if `linear` is neither ``nn.Linear`` nor a sparse layer without delays, or `neurons` no
            layer of neurons.
        ValueError: if a time constant is below 1, a rate negative, `bounds` no interval, or the neurons emit
            no spikes.

    Source: Bi & Poo (1998), *Synaptic modifications in cultured hippocampal neurons*; Morrison, Diesmann &
    Gerstner (2008), *Phenomenological models of synaptic plasticity based on spike timing*,
    sections 4.1 and 4.2.

    >>> import torch, hibana as hb
    >>> linear = torch.nn.Linear(20, 5, bias=False)
    >>> _ = torch.nn.init.uniform_(linear.weight, 0, 0.5)
    >>> rule = hb.learn.STDP(linear, hb.LIF(tau=10.0), tau_pre=20.0, tau_post=20.0, bounds=(0, 1))
    >>> spikes = rule((torch.rand(50, 2, 20) < 0.2).float())  # linear.weight has changed
    >>> spikes.shape
    torch.Size([50, 2, 5])
    """

    def __init__(
        self,
        linear: nn.Linear | SparseLinear,
        neurons: OverTime,
        *,
        tau_pre: float,
        tau_post: float,
        a_plus: float = 0.01,
        a_minus: float = 0.01,
        bounds: tuple[float, float] | None = None,
        soft: bool = False,
        nearest: bool = False,
        backend: str = "auto",
    ) -> None:
        pairs = Pairs(tau_pre, tau_post, a_plus, a_minus, bounds, soft, nearest)
        super().__init__(linear, neurons, pairs)
        if backend not in _BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}; got {backend!r}")
        self.backend = backend

    @overload
    def __call__(
        self, inputs: Tensor, state: Sequence[Tensor] | None = None, *, return_state: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def __call__(
        self, inputs: Tensor, state: Sequence[Tensor] | None = None, *, return_state: Literal[True]
    ) -> tuple[Tensor, tuple[Tensor, ...]]: ...
    def __call__(
        self, inputs: Tensor, state: Sequence[Tensor] | None = None, *, return_state: bool = False
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Runs a sequence and changes the weights at each of its steps, in place.

        Args:
            inputs: spikes, ``[T, batch, inputs]``.
            state: the state that an earlier call returned: the neurons' states, the inputs' traces
                ``[batch, inputs]``, and the neurons' traces; None for the resting state.
            return_state: whether to return the state after the last step as well.

        Returns:
            The neurons' spikes, ``[T, batch, outputs]``, without a graph.

        Raises:
            TypeError: if `inputs` is not a tensor of the weights' dtype.
            ValueError: if `inputs` are not 0 or 1, a shape is wrong, or weights lie outside the bounds; the
                weights are then unchanged.
            Unsupported: for ``backend="cpu"``, if the cell can't be compiled or numbers are not float32.
        """
        inputs = self._check_inputs(inputs)
        with torch.no_grad():
            spikes, last = self._run(inputs, self._initial_state(state, inputs))
        return (spikes, last) if return_state else spikes

    def gradient(self, inputs: Tensor, state: Sequence[Tensor] | None = None) -> Tensor:
        """Runs a sequence with constant weights, and subtracts their change from ``linear.weight.grad``.

        A step of ``torch.optim.SGD`` with a learning rate of 1 then applies the change. Weights are not
        clipped: with bounds, clamp them after the optimizer's step.

        Args:
            inputs: spikes, ``[T, batch, inputs]``.
            state: initial states of the neurons; traces begin at zero.

        Returns:
            The neurons' spikes, ``[T, batch, outputs]``, without a graph.

        Raises:
            TypeError, ValueError: for the reasons of a call.
        """
        inputs = self._check_inputs(inputs)
        spikes, weight = self._run_constant(inputs, state), self.linear.weight
        change = self.pairs.total_change(self.linear, inputs, spikes)
        weight.grad = -change if weight.grad is None else weight.grad - change
        return spikes

    def _run(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The spikes and the state after the last step, from the kernel if the backend allows it."""
        is_dense = not isinstance(self.linear, SparseLinear)
        is_supported = inputs.is_cpu and inputs.dtype == torch.float32 and is_dense
        if self.backend == "cpu" and not is_supported:
            got = f"{inputs.dtype} on {inputs.device}" if is_dense else type(self.linear).__name__
            raise Unsupported(f"backend 'cpu' runs nn.Linear in float32 on the CPU, got {got}")
        if self.backend != "reference" and is_supported:
            try:
                kernels = self._compile(inputs.shape[1])
            except Unsupported as error:
                if self.backend == "cpu":
                    raise
                warn_slow(self._cell, str(error))
            else:
                return self._run_kernel(kernels, inputs, state)
        return self.pairs.run(self.linear, self._cell, inputs, state)

    def _compile(self, batch: int) -> Kernels:
        """The kernels of the step for `batch` samples; raises Unsupported if it can't be compiled."""
        if reason := available.unavailable_reason():
            raise Unsupported(reason)
        shape = torch.Size((batch, self.linear.out_features))
        kernels = programs.kernels_of(self._cell, "cpu", shape, torch.float32)
        if kernels.step.draws:
            raise Unsupported(f"the step of {type(self._cell).__name__} draws random numbers")
        return kernels

    def _run_kernel(
        self, kernels: Kernels, inputs: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Computes :meth:`Pairs.run` in float32 on the CPU, with the `kernels` of the neurons."""
        pairs, weight, bias = self.pairs, self.linear.weight.detach(), self.linear.bias
        (steps, batch, ins), outs = inputs.shape, len(weight)
        *inner, before, pre, post = [
            tensor.resolve_neg().clone(memory_format=torch.contiguous_format) for tensor in state
        ]
        rows = weight.T.contiguous()
        outputs, currents, emitted = weight.new_empty(steps, batch, outs), *weight.new_empty(2, batch, outs)
        parameters = kernels.parameters(tuple(tensors_of(self._cell).values()), currents.shape)
        assert isinstance(kernels, CpuKernels)
        step = kernels.bind_step(currents, emitted, (*inner, before), parameters)
        rates = 1 - 1 / pairs.tau_pre, 1 - 1 / pairs.tau_post, pairs.a_plus, pairs.a_minus
        run_steps(
            1,
            inputs=inputs.resolve_neg().contiguous(),
            outputs=outputs,
            weights=rows,
            bias=weight.new_zeros(outs) if bias is None else bias.detach().contiguous(),
            currents=currents,
            emitted=emitted,
            before=before,
            pre=pre,
            post=post,
            rates=weight.new_tensor([*rates, *(pairs.bounds or (-math.inf, math.inf))]),
            step_arguments=step.arguments,
            step_address=step.address,
            step_pieces=step.pieces,
            steps=steps,
            batch=batch,
            ins=ins,
            outs=outs,
            soft=pairs.soft,
            nearest=pairs.nearest,
        )
        weight.copy_(rows.T)
        return outputs, (*inner, before, pre, post)
