"""A network as an ONNX model that contains the loop over time, so that its size does not grow with T."""

from typing import Any

import torch
from torch import Tensor, nn

from hibana.network.graph import Network
from hibana.network.layers import LAYERS
from hibana.network.node import Node
from hibana.network.onnx_step import OnnxStep
from hibana.network.reader import read
from hibana.runtime.extras import explain_import_error

__all__ = ["to_onnx"]

OPSET = 17
"""Version of ONNX's operators."""


@explain_import_error("hibana.convert.to_onnx")
def to_onnx(net: nn.Module, example: Tensor) -> Any:
    """`net` as an ONNX model: a ``Scan`` over time of one step, for any T and any number of samples.

    Layers are operators of ONNX (``Gemm``, ``Conv``, ``MaxPool``, ``AveragePool``), whose order of summation
    the ONNX runtime chooses. Spikes are equal if every sum is exact, as in networks of
    :func:`hibana.quantize`. A quantized network takes integers (``integer_input``) and returns integers. They
    are float64 if float32 does not hold them all; onnxruntime has no convolutions in float64.

    Args:
        net: a network, as :func:`to_c` takes it; it does not change.
        example: inputs ``[T, batch, ...]``; their dtype becomes that of the model.

    Returns:
        An ``onnx.ModelProto``, from ``input`` ``[T, batch, ...]`` to ``output`` ``[T, batch, ...]``.

    Raises:
        ModuleNotFoundError: if onnx is not installed.
        TypeError, ValueError: if `example` is not floating-point, or has another shape.
        Unsupported: naming the layer, if it has no ONNX form.
    """
    with torch.no_grad():
        return _model(read(net, example))


def _model(network: Network) -> Any:
    """The checked model of `network`."""
    step = OnnxStep(network.dtype)
    helper = step.onnx.helper
    values: dict[Node, str] = {network.input: "x"}
    for node in network.nodes[1:]:
        inputs = [
            step.reshaped(values[source], source.shape, shape)
            for source, shape in zip(node.inputs, node.input_shapes, strict=True)
        ]
        values[node] = LAYERS[node.kind].to_onnx(node, inputs, step)
    out = step.reshaped(values[network.output], network.output.shape, network.output_shape)
    step.op("Identity", [out], name="y")
    inputs = [step.declaration(before, shape) for before, _, shape in step.states]
    outputs = [step.declaration(after, shape) for _, after, shape in step.states]
    x, y = step.declaration("x", network.input.shape), step.declaration("y", network.output_shape)
    body = helper.make_graph(step.step_nodes, "step", [*inputs, x], [*outputs, y])
    last = [f"{after}_last" for _, after, _ in step.states]
    initial = step.initial_states()
    scan = helper.make_node("Scan", [*initial, "input"], [*last, "output"], body=body, num_scan_inputs=1)
    graph = helper.make_graph(
        [*step.outer_nodes, scan],
        "network",
        [step.declaration("input", network.input.shape, over_time=True)],
        [step.declaration("output", network.output_shape, over_time=True)],
        step.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    step.onnx.checker.check_model(model)
    return model
