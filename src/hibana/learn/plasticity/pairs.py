"""Pair rules in plain PyTorch: their formulas, and the base class that checks arguments and states.

The formulas are the specification of the kernel, and run if the kernel can't.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.cells.base import check_states
from hibana.cells.spiking import decay
from hibana.cells.values import time_constant
from hibana.compiler import emits_spikes, unroll_layer
from hibana.compiler.tensors import evaluate_parametrizations, is_parametrized
from hibana.compiler.torch_layers import role_of
from hibana.learn.synapses import is_sparse
from hibana.nn.layers import OverTime
from hibana.nn.sparse_linear import SparseLinear
from hibana.spikes.sparse.product import sums_per_synapse

__all__ = ["PairRule", "Pairs", "check_rate", "pair_sums"]


@dataclass(frozen=True)
class Pairs:
    """The parameters of a pair rule: arguments of :class:`hibana.learn.STDP`.

    Raises:
        TypeError: if `bounds` is not None or two numbers.
        ValueError: if an argument is outside its range.
    """

    tau_pre: float
    tau_post: float
    a_plus: float
    a_minus: float
    bounds: tuple[float, float] | None
    soft: bool
    nearest: bool

    def __post_init__(self) -> None:
        """Checks the parameters."""
        time_constant("tau_pre", self.tau_pre)
        time_constant("tau_post", self.tau_post)
        check_rate("a_plus", self.a_plus)
        check_rate("a_minus", self.a_minus)
        bounds = self.bounds
        if bounds is not None:
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise TypeError(f"bounds must be two numbers (lower, upper), or None, got {bounds!r}")
            if not bounds[0] < bounds[1]:
                raise ValueError(f"bounds must be two numbers, the lower first, got {bounds!r}")
        if self.soft and (bounds is None or not all(map(math.isfinite, bounds))):
            raise ValueError(f"bounds must be two finite numbers where soft is True, got {bounds!r}")

    def next_trace(self, trace: Tensor, spikes: Tensor, tau: float) -> Tensor:
        """The trace after a step with `spikes`; it decays with the time constant `tau`, in steps."""
        decayed = trace * decay(tau)
        return torch.maximum(decayed, spikes) if self.nearest else decayed + spikes

    def traces(self, spikes: Tensor, tau: float) -> Tensor:
        """The decaying trace of `spikes` after each step; both are ``[T, batch, neurons]``."""
        traces = [spikes[0]]
        for step in spikes[1:]:
            traces.append(self.next_trace(traces[-1], step, tau))
        return torch.stack(traces)

    def weight_change(self, weight: Tensor, potentiation: Tensor, depression: Tensor) -> Tensor:
        """The change of the weights, from the sums over pairs of spikes; all are ``[outputs, inputs]``.

        `potentiation` sums the pairs that strengthen a weight, `depression` those that weaken it.
        """
        if self.bounds is None or not self.soft:
            return self.a_plus * potentiation - self.a_minus * depression
        lower, upper = self.bounds
        return self.a_plus * (upper - weight) * potentiation - self.a_minus * (weight - lower) * depression

    def apply(self, weight: Tensor, change: Tensor) -> None:
        """Adds `change` to `weight` in place, and clips the weights to the bounds."""
        weight.add_(change)
        if self.bounds is not None:
            weight.clamp_(*self.bounds)

    def run(
        self,
        linear: nn.Linear | SparseLinear,
        cell: Cell,
        inputs: Tensor,
        state: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Runs a sequence, and changes the weights of `linear` in place at each step.

        Args:
            linear: the weights.
            cell: one step of the neurons.
            inputs: spikes, ``[T, batch, inputs]``.
            state: the states of the neurons, the traces of the inputs, and the traces of the neurons.

        Returns:
            The spikes, ``[T, batch, outputs]``, and the state after the last step.
        """
        *neurons, pre, post = state
        weight, sums, outputs = linear.weight.detach(), pair_sums(linear), []
        for step in inputs.unbind():
            neurons = [*check_states(cell, cell(linear(step), *neurons))]
            spikes = neurons[-1]
            pre = self.next_trace(pre, step, self.tau_pre)
            post = self.next_trace(post, spikes, self.tau_post)
            self.apply(weight, self.weight_change(weight, sums(spikes, pre), sums(post, step)))
            outputs.append(spikes)
        return torch.stack(outputs), (*neurons, pre, post)

    def total_change(
        self,
        linear: nn.Linear | SparseLinear,
        inputs: Tensor,
        spikes: Tensor,
        gain: Tensor | None = None,
    ) -> Tensor:
        """The change of the weights of `linear` over a sequence with constant weights and traces from zero.

        Args:
            linear: the weights.
            inputs: ``[T, batch, inputs]``.
            spikes: ``[T, batch, outputs]``.
            gain: factor of the change at each step and sample, ``[T, batch]``; 1 if None.
        """
        pre, post = self.traces(inputs, self.tau_pre), self.traces(spikes, self.tau_post)
        if gain is not None:
            pre, post = pre * gain[..., None], post * gain[..., None]
        sums = pair_sums(linear)
        potentiation = sums(spikes.flatten(0, 1), pre.flatten(0, 1))
        depression = sums(post.flatten(0, 1), inputs.flatten(0, 1))
        return self.weight_change(linear.weight.detach(), potentiation, depression)


def pair_sums(linear: nn.Linear | SparseLinear) -> Callable[[Tensor, Tensor], Tensor]:
    """``f(outputs [rows, outputs], inputs [rows, inputs])``: sums over rows of the products of each synapse.

    The sums have the shape of the weight: ``[outputs, inputs]``, or ``[synapses]`` of a sparse layer.
    """
    if isinstance(linear, SparseLinear):
        index = linear.index
        return lambda outputs, inputs: sums_per_synapse(index, inputs, outputs)
    return lambda outputs, inputs: outputs.T @ inputs


class PairRule:
    """A rule for the weights between the inputs of a linear layer and the neurons behind it.

    Raises:
        TypeError: if `linear` is no ``nn.Linear`` and no :class:`hibana.SparseLinear` without delays, or
            `neurons` no layer of neurons.
        ValueError: if `linear` has parametrizations, or `neurons` do not emit spikes.
    """

    def __init__(self, linear: nn.Linear | SparseLinear, neurons: OverTime, pairs: Pairs) -> None:
        if not (role_of(linear) == "linear" or is_sparse(linear)):
            raise TypeError(
                "linear must be a torch.nn.Linear or a hibana.SparseLinear without delays, "
                f"got {_type_name(linear)}"
            )
        if is_parametrized(linear):
            raise ValueError("linear must hold its weight as a parameter, got one with parametrizations")
        if not isinstance(neurons, OverTime):
            raise TypeError(
                f"neurons must be a layer of neurons, such as hibana.LIF() or hibana.OverTime(cell), "
                f"got {_type_name(neurons)}"
            )
        if not emits_spikes(neurons.cell):
            raise ValueError(f"neurons must emit spikes, 0 or 1, got {type(neurons.cell).__name__}")
        self.linear, self.neurons, self.pairs = linear, neurons, pairs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.linear}, {self.neurons}, {self.pairs})"

    @property
    def _cell(self) -> Cell:
        """One step of the neurons; parametrizations are evaluated."""
        return evaluate_parametrizations(self.neurons.cell)

    def _check_inputs(self, inputs: Tensor) -> Tensor:
        """Returns `inputs` without an autograd graph.

        Raises:
            TypeError: if `inputs` is not a tensor of the weights' dtype.
            ValueError: if its shape is wrong, a number is not 0 or 1, or the weights lie outside the bounds.
        """
        weight, bounds = self.linear.weight, self.pairs.bounds
        if not isinstance(inputs, Tensor) or inputs.dtype != weight.dtype:
            raise TypeError(
                f"inputs must be a tensor of the weights' dtype, {weight.dtype}, got {_type_name(inputs)}"
            )
        if inputs.ndim != 3 or inputs.shape[2] != self.linear.in_features or 0 in inputs.shape:
            raise ValueError(
                f"inputs must be [T, batch, {self.linear.in_features}], none of them 0, "
                f"got shape {tuple(inputs.shape)}"
            )
        if bounds is not None:
            least, most = weight.detach().aminmax()
            if not (bounds[0] <= least and most <= bounds[1]):
                raise ValueError(
                    f"bounds must hold the weights, which lie in [{least.item():.6g}, {most.item():.6g}], "
                    f"got {bounds}; begin within them: torch.nn.init.uniform_(linear.weight, *bounds)"
                )
        if not bool(((inputs == 0) | (inputs == 1)).all()):
            raise ValueError("inputs must be spikes, 0 or 1")
        return inputs.detach()

    def _initial_state(self, state: Sequence[Tensor] | None, inputs: Tensor) -> tuple[Tensor, ...]:
        """The states of the neurons, the inputs' traces and the neurons' traces; the resting state for None.

        Raises ValueError if `state` has other shapes.
        """
        cell, step = self._cell, inputs[0]
        zeros = step.new_zeros(len(step), self.linear.out_features)
        if state is None:
            states = (value.contiguous() for value in cell.initial_state(zeros))
            return *states, torch.zeros_like(step), zeros
        names = (*cell.state_names(), "pre", "post")
        shapes = [tuple(zeros.shape)] * (len(names) - 2) + [tuple(step.shape), tuple(zeros.shape)]
        are_tensors = all(isinstance(value, Tensor) for value in state)
        actual = [tuple(value.shape) for value in state] if are_tensors else state
        if actual != shapes:
            raise ValueError(
                f"state must be the tensors ({', '.join(names)}) of shapes {shapes}, got {actual}"
            )
        return tuple(value.detach().to(inputs) for value in state)

    @torch.no_grad()
    def _run_constant(self, inputs: Tensor, state: Sequence[Tensor] | None) -> Tensor:
        """The neurons' spikes ``[T, batch, outputs]`` with constant weights, from the neurons' `state`."""
        state = None if state is None else tuple(state)
        return unroll_layer(self.neurons.cell, self.linear(inputs), state)[0]


def _type_name(value: object) -> str:
    """The dtype of a tensor, or the class name of another object, for error messages."""
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def check_rate(name: str, rate: float) -> None:
    """Raises ``ValueError`` if `rate`, called `name`, is not finite and at least 0."""
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {rate!r}")
