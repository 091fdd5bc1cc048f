"""A layer of neurons, traced: its step, and its tensors in the order in which its neurons lie in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.compiler.analysis.binary import States, binary_states, is_binary
from hibana.compiler.c.source import Product, operation_count, split_products
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of
from hibana.network.graph import Node
from hibana.network.sliding import channels_last
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import OverTime, Recurrent, RecurrentCell

__all__ = ["Layer", "layer", "traced"]


@dataclass
class Layer:
    """A layer of neurons, traced: what it is made of, and what it is called in C."""

    node: Node
    index: int
    step: Step
    begun: tuple[Tensor, ...]
    """The states at rest, in the order in which neurons lie."""
    parameters: tuple[Tensor, ...]
    """Numbers, or a number for each neuron in that order, or one for each channel."""
    matrices: tuple[Tensor, ...]
    """``[from, to]``, in that order."""
    known: States
    products: list[Product]
    stores: Stores
    places: Tensor

    @property
    def emits_spikes(self) -> bool:
        """Whether what it emits is zeros and ones at every step."""
        return len(self.step.states) - 1 in self.known

    @property
    def operations(self) -> int:
        """Operations a neuron and step."""
        return operation_count(self.stores)

    def state(self, at: int) -> str:
        """The name of a state in the struct."""
        return f"{self.step.states[at].removesuffix('_state')}_{self.index}"

    def standing(self, name: str, leaf: Value) -> str | float:
        """What stands for a leaf of the step: a name, or its number if it is one for all neurons."""
        if not leaf.is_scalar:
            return name
        if name[0] == "c":
            return self.step.constants[int(name[2:-1])]
        return float(self.parameters[int(name[1 : name.index("[")])])

    def place(self, name: str) -> str:
        """Where the number of neuron j lies in a parameter."""
        count = len(self.parameters[int(name[1:])])
        return "j" if count == self.node.size else f"j % {count}"

    def weights(self, product: Product) -> Tensor:
        """The matrix of a product, ``[from, to]``."""
        values = self.matrices[product.matrix]
        return values.T.contiguous() if product.transposed else values

    def reads_spikes(self) -> bool:
        """Whether a product reads the list of the spikes of the step before."""
        return self.emits_spikes and any(p.state == len(self.step.states) - 1 for p in self.products)


def traced(node: Node, dtype: torch.dtype) -> tuple[Step, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The step of a layer of neurons on one sample, its states at rest, and the tensors that it reads.

    Raises:
        Unsupported: naming the layer, if its step can't be read.
    """
    module = node.module
    assert isinstance(module, OverTime | Recurrent | DelayedRecurrent)
    cell = module.cell
    if isinstance(module, Recurrent):
        cell = RecurrentCell(cell, module.recurrent, 1.0)  # the gradient, which it scales, is not needed
    one = torch.zeros(1, *node.shape, dtype=dtype, device="cpu")
    try:
        step = trace(cell, one.shape, dtype)
    except Unsupported as refused:
        raise Unsupported(f"layer {node.name!r}: {refused}") from refused
    with torch.no_grad():
        rest = tuple(state.detach().expand_as(one) for state in cell.initial_state(one))
        return step, rest, step.prologue(*tensors_of(cell).values())


def layer(node: Node, index: int, places: Tensor, dtype: torch.dtype) -> Layer:
    """The layer of neurons `node`, whose input lies as `places` says.

    Raises:
        Unsupported: naming the layer, if its step can't be read.
    """
    step, rest, given = traced(node, dtype)

    def lying(values: Tensor) -> Tensor:
        return values.detach().to(dtype).expand(1, *node.shape).flatten()[places]

    begun = tuple(lying(state) for state in rest)
    channels = node.shape[0] if len(node.shape) > 1 and torch.equal(places, channels_last(node.shape)) else 0

    def kept(values: Tensor) -> Tensor:
        rank = len(node.shape)  # a tensor of fewer dimensions broadcasts over the last ones
        of_channels = values.ndim >= rank and values.numel() == channels == values.shape[-rank]
        if values.numel() == 1 or of_channels:
            return values.detach().to(dtype).flatten()
        return lying(values)

    parameters = tuple(kept(values) for values in given[: step.parameters])
    for matrix in given[step.parameters :]:
        if matrix.numel() != node.size**2:
            raise Unsupported(
                f"layer {node.name!r}: its step multiplies samples of shape {node.shape} by a matrix that is "
                f"{list(matrix.shape)} and not [{node.size}, {node.size}]"
            )
    matrices = tuple(m.detach().reshape(node.size, -1)[places][:, places] for m in given[step.parameters :])
    start = frozenset(i for i, state in enumerate(begun) if is_binary(state))
    known = binary_states(step, start)
    products, stores = split_products(step, known)
    return Layer(node, index, step, begun, parameters, matrices, known, products, stores, places)
