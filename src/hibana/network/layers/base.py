"""The base class of the kinds of layers: one class per kind, one method per target.

A target without a method is refused in one sentence that names the layer and the target.
"""

import operator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn

from hibana.compiler.c.integers import Bounds
from hibana.compiler.graph.ops import Unsupported
from hibana.network.lowering import Activations, Lowering
from hibana.network.nir_node import NirNode
from hibana.network.node import Node, Shape
from hibana.network.onnx_step import OnnxStep

__all__ = ["Call", "IntegerLayer", "LayerKind", "Operations"]


@dataclass(frozen=True)
class Call:
    """A call in a traced network: of a module, or of a function on tensors."""

    node: Node
    """The node of the call, unless its kind replaces it; without a module for a function."""
    where: str
    """The name of the call and of the module that contains it, for messages."""
    leading: int
    """Number of dimensions before those of a sample: time and batch (2), or both joined (1)."""
    function: Any = None
    """The function, or the name of the method of a tensor; None for a module."""
    arguments: tuple[Any, ...] = ()
    """Positional arguments of a function other than tensors of the network."""
    named: dict[str, Any] = field(default_factory=dict)


class Operations(NamedTuple):
    """Scalar operations of a layer for one sample and step."""

    at_most: int
    """If no input is zero."""
    at_rates: float
    """At the densities of the example."""
    products: int
    """Multiplications of the dense layer."""


@dataclass(frozen=True)
class IntegerLayer:
    """A node without references to modules, so that a copy of the network uses its own modules."""

    name: str
    kind: str
    inputs: tuple[int, ...]
    """Indices of the nodes that it reads."""
    input_shapes: tuple[Shape, ...]
    shape: Shape
    """The shape of one sample of the output."""
    value_range: tuple[float, float]
    """Smallest and largest output on the calibration data."""
    per_channel: bool
    """Whether each output channel has its own scale."""

    def one_scale(self, scale: Tensor) -> Tensor:
        """`scale`, an input's scale; raises Unsupported if it has one number per channel."""
        if scale.numel() > 1:
            raise Unsupported(f"layer {self.name!r}: the channels of its input have different scales")
        return scale


class LayerKind:
    """Everything that hibana knows about one kind of layer in a network."""

    name: str
    types: tuple[type[nn.Module], ...] = ()
    """Modules of this kind; subclasses are included."""
    functions: tuple[Any, ...] = ()
    """Functions, or names of methods of tensors, that compute the same."""
    nir_types: tuple[str, ...] = ()
    """NIR nodes that become a layer of this kind."""
    over_time = False
    """Whether the output depends on earlier steps."""
    elementwise = False
    """Whether a sample of the output has the shape of the input, for every shape."""
    weighted = False
    """Whether the layer adds a row of weights for each input that is not zero."""
    has_integers = False
    """Whether the kind has a form for integers."""
    keeps_channels = False
    """Whether each channel of the output depends on the same channel of the input only, so that integers of
    each channel may have a scale of their own."""

    def read(self, call: Call) -> Node:
        """The node of `call`, or its input node if the call changes no number.

        Raises Unsupported, naming the layer, for settings that no target computes.
        """
        self.check(call.node)
        return call.node

    def check(self, node: Node) -> None:
        """Raises Unsupported unless `node` has settings that a target can compute."""
        if self.elementwise:
            self.require(node, node.input_shapes[0], {})

    def title(self, node: Node) -> str:
        """The name of the kind of `node` in tables."""
        return self.name

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """Operations of `node`: one per output unless a kind counts otherwise."""
        return Operations(node.size, node.size, 0)

    def weights(self, node: Node, order: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights as rows ``[inputs, ..., outputs]``, and the bias.

        Inputs are in the order of memory: `order` is PyTorch's index of the input at each place.
        """
        self.refuse(node, "weights")

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Adds the code of `node`, for one step of one sample, to a program; returns where its output is.

        ``to.activations`` has the inputs.
        """
        self.refuse(node, to.target)

    def integer_module(self, layer: IntegerLayer, module: Any) -> nn.Module:
        """The module that computes `layer` on integers, in place of `module`; `module` itself by default.

        Raises Unsupported, naming the layer, if the settings have no form for integers.
        """
        return cast(nn.Module, module)

    def integer_scale(self, layer: IntegerLayer, module: Any, scales: list[Tensor]) -> Tensor:
        """What 1 of the output stands for, one number or one per channel, from the `scales` of the inputs.

        `module` is the result of :meth:`integer_module`; None for a function.
        """
        return scales[0]

    def integer_bounds(self, node: Node, inputs: list[Bounds]) -> list[Bounds]:
        """Bounds of all integers that `node` computes, those of the output last."""
        return [inputs[0]]

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes `node` into an ONNX `step`, and returns the name of its output."""
        self.refuse(node, "ONNX")

    def to_nir(self, node: Node, dt: float) -> NirNode | tuple[NirNode, ...]:
        """The NIR node of `node`, or a chain of nodes, with `dt` seconds per step.

        Raises:
            ValueError: if NIR can't express a setting. The caller adds the name of the layer.
        """
        self.refuse(node, "NIR")

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """The module over ``[T, batch, ...]`` that computes `node` on samples of `shape`.

        Raises:
            ValueError: if no layer computes it. The caller adds the name of the node.
        """
        raise NotImplementedError

    def lost_in_nir(self, module: nn.Module) -> str:
        """A list of the settings of `module` that NIR can't express and only training needs; may be empty."""
        return ""

    def refuse(self, node: Node, target: str) -> NoReturn:
        """Raises Unsupported, because this kind has no form for `target`."""
        layer = self.name if node.module is None else type(node.module).__name__
        raise Unsupported(f"layer {node.name!r}: {layer} has no {target} form")

    def require(self, node: Node, shape: Shape, tensors: dict[str, tuple[int, ...]]) -> None:
        """Raises Unsupported unless the output and the tensors of `node` have the sizes of its settings.

        Loops take their bounds from a layer's settings; PyTorch takes them from the tensors. Loops would read
        past the end of a weight that was replaced by a smaller one, or of a bias of one number that PyTorch
        broadcasts.

        Args:
            node: a layer.
            shape: the shape of a sample of the output that the settings imply.
            tensors: the shape of each tensor that the settings imply, by name; those of a bias are added.
        """
        expected = tensors | ({"bias": shape[:1]} if getattr(node.module, "bias", None) is not None else {})
        sizes = {name: tuple(operator.attrgetter(name)(node.module).shape) for name in expected}
        if node.shape != shape or sizes != expected:
            raise Unsupported(
                f"layer {node.name!r}: the settings of {type(node.module).__name__} imply an output {shape} "
                f"with {expected}, but it returns {node.shape} with {sizes}"
            )

    def refuse_setting(self, node: Node, reason: str) -> NoReturn:
        """Raises Unsupported: no target supports the setting that `reason` describes."""
        raise Unsupported(f"layer {node.name!r}: {reason} is not supported")
