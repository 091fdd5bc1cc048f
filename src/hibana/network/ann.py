"""Conversion of a trained ReLU network to integrate-and-fire neurons."""

import copy
import math
from collections.abc import Iterable
from operator import mul
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hibana.cells import Cell
from hibana.compiler.torch_layers import role_of
from hibana.network.fold import layer_name, trace_folded
from hibana.network.layers.arithmetic import Sum
from hibana.network.report import Batch, Conversion, batches_of, report, sum_outputs
from hibana.nn.each_step import EachStep
from hibana.nn.layers import IF, LI, OverTime
from hibana.nn.sparse_linear import SparseLinear

__all__ = ["from_ann"]

MODULES: dict[Any, type[nn.Module]] = {
    functional.relu: nn.ReLU,
    functional.relu6: nn.ReLU6,
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    functional.avg_pool2d: nn.AvgPool2d,
    functional.max_pool2d: nn.MaxPool2d,
    functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    functional.dropout: nn.Identity,
}
"""The module that computes the same as a function, or as a method of tensors, in evaluation."""
FLATTEN = (torch.flatten, "flatten")
CONCATENATIONS = (torch.cat, torch.concat)
SUPPORTED = "use ReLU, linear layers, convolutions, normalization, pooling, flatten, sums, concatenations"


def from_ann(
    model: nn.Module,
    calibration_data: Tensor | tuple[Tensor, Tensor] | Iterable[Any],
    T: int = 32,  # noqa: N803 - the field's name for the number of steps
    *,
    percentile: float = 99.9,
) -> tuple[fx.GraphModule, Conversion]:
    """A trained ReLU network as a network of integrate-and-fire neurons.

    Each ReLU becomes ``IF(threshold, reset="subtract", initial=threshold / 2)``. Its firing rate over T steps
    of a constant current x is x / threshold, rounded to a multiple of 1/T and clipped to 0 and 1. The
    threshold is a percentile of the layer's activations on the calibration data, for a ReLU6 at most 6; the
    weights of the next layers absorb it. Batch normalization is folded. A max-pooling emits the increase of
    the largest spike count in its window, so its sum over time is exactly that count. For large T, with
    `percentile` 100, the readout divided by T is the output of `model` on the calibration data.

    Args:
        model: a network of linear layers, convolutions, batch normalization, ReLU, ReLU6, average and
            max-pooling, flatten, dropout, additions, and concatenations of channels, such as torchvision's
            ResNet, MobileNetV2 and DenseNet; it does not change.
        calibration_data: inputs ``[N, ...]``, or (inputs, labels), or batches of either, as a DataLoader
            gives.
        T: the number of steps of the report.
        percentile: the percentile of the activations that becomes the threshold, above 0 and at most 100.

    Returns:
        The network, which takes a constant current ``x.expand(T, *x.shape)`` and returns the summed output
        after each step, ``[T, batch, ...]``: ``network(...)[-1] / T`` approximates ``model(x)``; and a
        :class:`Conversion`, the report.

    Raises:
        ValueError: naming the layer, if it cannot be converted, or is silent on all calibration data.

    Source: Diehl et al. (2015), *Fast-classifying, high-accuracy spiking deep networks through weight and
    threshold balancing*; Rueckauer et al. (2017), *Conversion of continuous-valued deep networks to
    efficient event-driven networks*, for percentiles and reset by subtraction; Deng & Gu (2021), *Optimal
    conversion of conventional artificial neural networks to spiking neural networks*, for the half threshold.

    >>> import torch, hibana as hb
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> x = torch.rand(100, 2)
    >>> network, report = hb.from_ann(model, x, T=256, percentile=100)
    >>> bool((network(x.expand(256, 100, 2))[-1] / 256 - model(x)).abs().max() < 0.05)
    True
    """
    if isinstance(T, bool) or not isinstance(T, int) or T < 1:
        raise ValueError(f"T must be a whole number of steps, at least 1, got {T!r}")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be above 0 and at most 100, got {percentile!r}")
    batches = batches_of(calibration_data)
    with torch.no_grad():
        ann = _trace(model)
        thresholds = _calibrate(ann, batches, percentile)
        network = _spiking(ann, thresholds)
        return network, report(ann, network, thresholds, batches, T)


def _trace(model: nn.Module) -> fx.GraphModule:
    """Traces `model` in evaluation mode to a graph of module calls, sums and concatenations.

    Batch normalization is folded. It rewrites traced calls instead of the node graph of
    `hibana.network.reader`, because the node graph has no poolings to several pixels, no three-dimensional
    layers and no concatenations.
    """
    folded, calls = trace_folded(model)
    layers: dict[str, nn.Module] = {}
    for node in list(calls.nodes):
        if node.op in ("placeholder", "output"):
            continue
        if node.target in CONCATENATIONS:
            parts, axis = (*node.args, *node.kwargs.values(), 0)[:2]
            sequence = isinstance(parts, tuple | list) and all(isinstance(part, fx.Node) for part in parts)
            if not sequence or not isinstance(axis, int) or axis == 0:
                raise ValueError(
                    f"layer {node.name!r}: values of the network can be concatenated along any axis but "
                    f"the batch, got {node.args} {dict(node.kwargs)}"
                )
            node.args, node.kwargs = (parts, axis), {}
        elif node.target in Sum.functions:
            if len(node.args) != 2 or node.kwargs or not all(isinstance(arg, fx.Node) for arg in node.args):
                raise ValueError(
                    f"layer {node.name!r}: only two values of the network can be added, got {node.args}"
                )
        else:
            name, is_module = layer_name(node.name, layers), node.op == "call_module"
            module = folded.get_submodule(str(node.target)) if is_module else _module(node)
            # each call of a ReLU has its own threshold
            layers[name] = copy.deepcopy(module) if role_of(module) == "rectifier" else module
            node.meta["path"] = node.target if is_module else name
            node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}
    return fx.GraphModule(layers, calls)


def _module(node: fx.Node) -> nn.Module:
    """A module that computes the same as the function that `node` calls."""
    arguments: Any = node.args[1:]
    if node.target in FLATTEN:
        start = arguments[0] if arguments else node.kwargs.get("start_dim", 0)
        return nn.Flatten(start, *arguments[1:])  # type: ignore[arg-type] # a number
    kind: Any = MODULES.get(node.target)
    if kind is None:
        name = getattr(node.target, "__name__", node.target)
        raise ValueError(f"layer {node.name!r}: {name} cannot be converted; {SUPPORTED}")
    named = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "training", "return_indices")}
    return kind() if kind in (nn.ReLU, nn.ReLU6, nn.Identity) else kind(*arguments, **named)  # type: ignore[no-any-return]


def _calibrate(ann: fx.GraphModule, batches: list[Batch], percentile: float) -> dict[str, float]:
    """The threshold of each ReLU: its k-th largest activation. Only the k largest are in memory."""
    samples = sum(len(x) for x, _ in batches)
    largest: dict[str, Tensor] = {}
    rectifiers = [name for name, module in ann.named_modules() if role_of(module) == "rectifier"]
    for x, _ in batches:
        with sum_outputs(ann, rectifiers) as activations:
            ann(x)
        for name, activation in activations.items():
            values = activation.flatten()
            k = math.floor(values.numel() / len(x) * samples * (100 - percentile) / 100) + 1
            candidates = torch.cat([largest.get(name, values[:0]), values])
            largest[name] = candidates.topk(min(k, len(candidates))).values
    thresholds = {name: float(values[-1]) for name, values in largest.items()}
    for name, threshold in thresholds.items():
        if not (math.isfinite(threshold) and threshold > 0):
            raise ValueError(
                f"layer {name!r}: the {percentile} percentile of its activations is {threshold} on the "
                "calibration data; it must be positive and finite"
            )
    return thresholds


@final
class _Difference(Cell):
    """The increase of the input since the previous step: ``total - total_previous``."""

    def forward(  # type: ignore[override]  # a cell names its states
        self, input_: Tensor, total_previous: Tensor, difference_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The new total, which is `input_`, and its difference from the total of the previous step."""
        return input_, input_ - total_previous


def _spiking(ann: fx.GraphModule, thresholds: dict[str, float]) -> fx.GraphModule:
    """`ann` with neurons instead of ReLUs.

    Each value of `ann` is ``scales[node]`` times the mean over time of the value in the spiking network.
    """
    graph = copy.deepcopy(ann.graph)
    layers: dict[str, nn.Module] = {}
    scales: dict[fx.Node, float] = {}

    def multiply_inputs(node: fx.Node) -> None:
        """Multiplies the inputs of `node` by their scales."""
        for source in node.all_input_nodes:
            if scales[source] != 1:
                node.replace_input_with(source, graph.call_function(mul, (source, scales[source])))

    for node in list(graph.nodes):
        with graph.inserting_before(node):
            if node.op == "placeholder":
                scales[node] = 1.0
            elif node.op == "call_module":
                name, source = str(node.target), node.args[0]
                module, threshold = ann.get_submodule(name), thresholds.get(name)
                layer, scales[node] = _layer(module, scales[source], threshold, node.meta["path"])
                if layer is None:
                    node.replace_all_uses_with(source)
                    graph.erase_node(node)
                else:
                    layers[name] = layer
            elif node.op == "output":
                if not isinstance(node.args[0], fx.Node):
                    raise ValueError("model must return one tensor")
                multiply_inputs(node)
                layers[readout := layer_name("readout", layers)] = LI()
                node.args = (graph.call_module(readout, node.args),)
            else:  # a sum or a concatenation
                input_scales = {scales[source] for source in node.all_input_nodes}
                scales[node] = input_scales.pop() if len(input_scales) == 1 else 1.0
                if input_scales:
                    multiply_inputs(node)
                if node.target in CONCATENATIONS:
                    parts, axis = node.args
                    node.args = parts, axis + (axis > 0)  # time comes before the batch
    return fx.GraphModule(layers, graph, class_name="SpikingNetwork")


def _layer(
    module: nn.Module, scale: float, threshold: float | None, path: str
) -> tuple[nn.Module | None, float]:
    """The spiking network's layer for `module`, or None if it does nothing; and its output's scale.

    `scale` is that of the input, `threshold` that of a ReLU, `path` the layer's name in the model.
    """
    match "sparse" if type(module) is SparseLinear else role_of(module):
        case "sparse" | "linear" | "convolution" as role:
            scaled: Any = copy.deepcopy(module)
            scaled.weight.mul_(scale)
            return (EachStep(scaled) if role == "convolution" else scaled), 1.0
        case "rectifier":
            assert threshold is not None
            start = threshold / scale
            return IF(start, reset="subtract", initial=start / 2), threshold
        case "dropout":
            return None, scale
        case "average" | "reshape":
            return EachStep(copy.deepcopy(module)), scale
        case "maximum":
            return nn.Sequential(LI(), EachStep(copy.deepcopy(module)), OverTime(_Difference())), scale
    raise ValueError(f"layer {path!r}: {type(module).__name__} cannot be converted; {SUPPORTED}")
