"""What a kind of layer may define: one class per kind, one method per target.

A target that a kind does not define is refused in one sentence that names the layer and the target.
"""

import operator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from hibana.compiler.graph.ops import Unsupported
from hibana.network.graph import Node, Shape
from hibana.network.lowering import Activations, Lowering
from hibana.network.nir_node import NirNode
from hibana.network.onnx_export import OnnxStep

__all__ = ["Call", "LayerKind", "Operations"]


@dataclass(frozen=True)
class Call:
    """A call in a traced network: of a module, or of a function on tensors."""

    name: str
    where: str
    """The call and what contains it, for messages."""
    module: Any
    """None for a function."""
    inputs: tuple[Node, ...]
    input_shapes: tuple[Shape, ...]
    """The shape in which the call takes one sample of each input."""
    shape: Shape
    """The shape of one sample of the result."""
    leading: int
    """Dimensions before those of a sample: time and batch (2), or both joined (1)."""
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


class LayerKind:
    """Everything that hibana knows about one kind of layer in a network."""

    name: str
    types: tuple[type[nn.Module], ...] = ()
    """Modules of this kind; subclasses are included."""
    functions: tuple[Any, ...] = ()
    """Functions, or names of methods of tensors, that do the same."""
    nir_types: tuple[str, ...] = ()
    """NIR nodes that become a layer of this kind."""
    over_time = False
    """Whether the output depends on earlier steps."""
    elementwise = False
    """Whether a sample of the output has the shape of the input whatever that is."""
    weighted = False
    """Whether the layer adds a row of weights for each input that is not zero."""

    def read(self, call: Call) -> Node:
        """The node of `call`, or the node whose numbers it passes on unchanged.

        Raises:
            Unsupported: naming the layer, for settings that no target computes.
        """
        node = Node(call.name, self, call.module, call.inputs, call.input_shapes, call.shape)
        self.check(node)
        return node

    def check(self, node: Node) -> None:
        """Raises Unsupported unless `node` has settings that a target can compute."""

    def title(self, node: Node) -> str:
        """The kind of `node` in tables."""
        return self.name

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """Operations of `node`: one per output unless a kind counts otherwise."""
        return Operations(node.size, node.size, 0)

    def weights(self, node: Node, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights as rows ``[inputs, ..., outputs]`` with inputs in the order `places`, and the bias."""
        self.refuse(node, "weights")

    def delays(self, node: Node, places: Tensor) -> Tensor:
        """Delays in steps of synapses ``[inputs, outputs]``, or of the inputs, in the order `places`."""
        self.refuse(node, "delays")

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Builds the loops of `node` for one step of one sample; inputs are in ``to.activations``."""
        self.refuse(node, to.target)

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes `node` into an ONNX `step`; the name of its output."""
        self.refuse(node, "ONNX")

    def to_nir(self, node: Node, dt: float) -> NirNode:
        """The NIR node of `node`, with `dt` seconds per step.

        Raises:
            ValueError: if NIR can't express a setting; the message does not name the layer, the caller does.
        """
        self.refuse(node, "NIR")

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """The module over ``[T, batch, ...]`` that runs `node` on samples of `shape`.

        Raises:
            ValueError: if no layer does; the message does not name the node, the caller does.
        """
        raise NotImplementedError

    def lost_in_nir(self, module: nn.Module) -> str:
        """Settings of `module` that NIR can't express and that only training needs."""
        return ""

    def refuse(self, node: Node, target: str) -> NoReturn:
        """Raises Unsupported: this kind has no form for `target`."""
        layer = self.name if node.module is None else type(node.module).__name__
        raise Unsupported(f"layer {node.name!r}: {layer} has no {target} form")

    def require(self, node: Node, shape: Shape, tensors: dict[str, tuple[int, ...]]) -> None:
        """Raises Unsupported unless output and `tensors` have the sizes that the layer's settings imply.

        Loops take their bounds from a layer's settings; PyTorch takes them from the tensors. A weight that
        was replaced by a smaller one, or a bias of one number that PyTorch broadcasts, would be read past its
        end.
        """
        expected = tensors | ({"bias": shape[:1]} if getattr(node.module, "bias", None) is not None else {})
        sizes = {name: tuple(operator.attrgetter(name)(node.module).shape) for name in expected}
        if node.shape != shape or sizes != expected:
            raise Unsupported(
                f"layer {node.name!r}: the settings of {type(node.module).__name__} imply an output {shape} "
                f"with {expected}, but it returns {node.shape} with {sizes}"
            )

    def refuse_setting(self, node: Node, reason: str) -> NoReturn:
        """Raises Unsupported: no target computes `reason`."""
        raise Unsupported(f"layer {node.name!r}: {reason} is not supported")
