"""The base class of pair rules: a linear layer and the neurons behind it, with checks of their arguments."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import emits_spikes, unroll_layer
from hibana.compiler.tensors import evaluate_parametrizations, is_parametrized, tensors_of
from hibana.learn.plasticity.pairs import Pairs
from hibana.nn.layers import OverTime

__all__ = ["PairRule", "check_spikes"]


class PairRule:
    """A rule for the weights between the inputs of a linear layer and the neurons behind it.

    Raises:
        TypeError: if `linear` is no ``nn.Linear`` or `neurons` no layer of neurons.
        ValueError: if `linear` has parametrizations, or `neurons` do not emit spikes.
    """

    def __init__(self, linear: nn.Linear, neurons: OverTime, pairs: Pairs) -> None:
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {_type_name(linear)}")
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
            ValueError: if its shape or device is wrong, or the weights lie outside the bounds.
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
        if inputs.device != weight.device:
            raise ValueError(f"inputs must be on {weight.device} like the weights, got {inputs.device}")
        for name, tensor in tensors_of(self.neurons.cell).items():
            if tensor.device != weight.device:
                raise ValueError(
                    f"neurons must be on {weight.device} like the weights, got {name} on {tensor.device}"
                )
        if bounds is not None:
            least, most = weight.detach().aminmax()
            if not (bounds[0] <= least and most <= bounds[1]):
                raise ValueError(
                    f"bounds must hold the weights, which lie in [{least.item():.6g}, {most.item():.6g}], "
                    f"got {bounds}; begin within them: torch.nn.init.uniform_(linear.weight, *bounds)"
                )
        return inputs.detach()

    def _initial_state(self, state: Sequence[Tensor] | None, inputs: Tensor) -> tuple[Tensor, ...]:
        """The states of the neurons, the inputs' traces and the neurons' traces; the resting state for None.

        Raises:
            ValueError: if `state` has other shapes.
        """
        cell, step = self._cell, inputs[0]
        zeros = step.new_zeros(len(step), self.linear.out_features)
        if state is None:
            states = (value.contiguous() for value in cell.initial_state(zeros))
            return *states, torch.zeros_like(step), zeros
        names = (*cell.state_names(), "pre", "post")
        shapes = [tuple(zeros.shape)] * (len(names) - 2) + [tuple(step.shape), tuple(zeros.shape)]
        are_tensors = all(isinstance(value, Tensor) for value in state)
        got = [tuple(value.shape) for value in state] if are_tensors else state
        if got != shapes:
            raise ValueError(f"state must be the tensors ({', '.join(names)}) of shapes {shapes}, got {got}")
        return tuple(value.detach().to(inputs) for value in state)

    @torch.no_grad()
    def _run_constant(self, inputs: Tensor, state: Sequence[Tensor] | None) -> Tensor:
        """The neurons' spikes ``[T, batch, outputs]`` with constant weights, from the neurons' `state`."""
        check_spikes(inputs)
        state = None if state is None else tuple(state)
        return unroll_layer(self.neurons.cell, self.linear(inputs), state)[0]


def check_spikes(inputs: Tensor) -> None:
    """Raises ``ValueError`` if a number is neither 0 nor 1."""
    if not bool(((inputs == 0) | (inputs == 1)).all()):
        raise ValueError("inputs must be spikes, 0 or 1")


def _type_name(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
