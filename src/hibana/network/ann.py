"""From a trained ReLU network to integrate-and-fire neurons: traced, calibrated, rebuilt."""

import copy
import math
from collections.abc import Iterable
from operator import add, iadd, mul
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hibana.cells import Cell
from hibana.compiler.torch_layers import role_of
from hibana.network.fold import folded_calls, layer_name
from hibana.network.report import Batch, Conversion, batches_of, outputs_of, report
from hibana.nn.each_step import EachStep
from hibana.nn.layers import IF, LI, OverTime

__all__ = ["from_ann"]

FUNCTIONS: dict[Any, type[nn.Module]] = {
    functional.relu: nn.ReLU,
    functional.relu6: nn.ReLU6,
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    functional.avg_pool2d: nn.AvgPool2d,
    functional.max_pool2d: nn.MaxPool2d,
    functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    functional.dropout: nn.Identity,
}
FLATTEN = (torch.flatten, "flatten")
ADDITIONS = (add, iadd, torch.add, "add", "add_")
CONCATENATIONS = (torch.cat, torch.concat)
NO_SPIKING_FORM: dict[Any, str] = {
    nn.SiLU: "it is negative and not monotone, where a rate is neither",
    nn.GELU: "it is negative and not monotone, where a rate is neither",
    nn.Hardswish: "it is negative and not monotone, where a rate is neither",
    nn.Sigmoid: "it is not zero where its input is negative, and gates multiply by it",
    nn.Hardsigmoid: "it is not zero where its input is negative, and gates multiply by it",
    mul: "a product of values is no sum of spikes",
    torch.mul: "a product of values is no sum of spikes",
}
"""Why some have none."""


def from_ann(
    model: nn.Module,
    calibration_data: Tensor | tuple[Tensor, Tensor] | Iterable[Any],
    T: int = 32,  # noqa: N803 - the field's name for the number of steps
    *,
    percentile: float = 99.9,
) -> tuple[fx.GraphModule, Conversion]:
    """A trained ReLU network as a network of integrate-and-fire neurons.

    Each ReLU becomes ``IF(threshold, reset="subtract", initial=threshold / 2)``, whose rate over T steps of a
    constant current x is x / threshold, rounded to a multiple of 1/T and clipped to 0 and 1. The threshold is
    a percentile of the activations that the layer shows on the calibration data; it goes into the weights of
    the layers above; that of a ReLU6 is at most 6. Batch normalisation is folded. A max-pooling emits the
    steps of the largest count of spikes in its window, so its sum is that maximum exactly. In the limit of
    large T, with `percentile` 100, the readout divided by T is the output of `model` on the calibration data.

    Args:
        model: of linear layers, convolutions, batch normalisation, ReLU, ReLU6, average and max-pooling,
            flatten, dropout, additions and concatenations of channels between them, as torchvision's ResNet,
            MobileNetV2 and DenseNet are; it is left as it is.
        calibration_data: inputs ``[N, ...]``, or (inputs, labels), or batches of either, as a DataLoader
            gives.
        T: the number of steps that the report is about.
        percentile: of the activations that no threshold lies below, above 0 and at most 100.

    Returns:
        The network, which takes a constant current ``x.expand(T, *x.shape)`` and returns the summed output
        after each step, ``[T, batch, ...]``: ``network(...)[-1] / T`` is what `model` returns; and a
        :class:`Conversion`, the report.

    Raises:
        ValueError: naming the layer, if one cannot be converted, or is silent on all calibration data.

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
        traced = _trace(model)
        thresholds = _calibrate(traced, batches, percentile)
        network = _spiking(traced, thresholds)
        return network, report(traced, network, thresholds, batches, T)


def _trace(model: nn.Module) -> fx.GraphModule:
    """`model` in evaluation, batch normalisation folded: calls of one module each, sums, and concatenations.

    It rewrites traced calls rather than the graph of `hibana.network.reader`, because a network without time
    has layers that no program computes (pooling to several pixels, three dimensions, concatenations).
    """
    evaluated, calls = folded_calls(model)
    layers: dict[str, nn.Module] = {}
    for node in list(calls.nodes):
        name = layer_name(node.name, layers)
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "call_module":
            module = evaluated.get_submodule(str(node.target))
            layers[name] = copy.deepcopy(module) if role_of(module) == "rectifier" else module  # one per call
            if type(layers[name]) in NO_SPIKING_FORM:
                raise ValueError(_refusal(str(node.target), type(layers[name])))
            node.meta["path"], node.target = node.target, name
        elif node.target in CONCATENATIONS:
            parts, axis = (*node.args, *node.kwargs.values(), 0)[:2]
            sequence = isinstance(parts, tuple | list) and all(isinstance(part, fx.Node) for part in parts)
            if not sequence or not isinstance(axis, int) or axis == 0:
                raise ValueError(
                    f"layer {node.name!r}: values of the network can be concatenated along any axis but "
                    f"the batch, got {node.args} {dict(node.kwargs)}"
                )
            node.args, node.kwargs = (parts, axis), {}
        elif node.target in ADDITIONS:
            if len(node.args) != 2 or node.kwargs or not all(isinstance(arg, fx.Node) for arg in node.args):
                raise ValueError(
                    f"layer {node.name!r}: only two values of the network can be added, got {node.args}"
                )
        else:
            layers[name] = _module(node)
            with calls.inserting_after(node):
                call = calls.call_module(name, (node.args[0],))
            call.meta["path"] = name
            node.replace_all_uses_with(call)
            calls.erase_node(node)
    return fx.GraphModule(layers, calls)


def _module(node: fx.Node) -> nn.Module:
    """The module that computes what the function called by `node` does."""
    arguments: Any = node.args[1:]
    if node.target in FLATTEN:
        start = arguments[0] if arguments else node.kwargs.get("start_dim", 0)
        return nn.Flatten(start, *arguments[1:])  # type: ignore[arg-type] # a number
    kind: Any = FUNCTIONS.get(node.target)
    if kind is None:
        raise ValueError(_refusal(node.name, node.target))
    named = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "training", "return_indices")}
    return kind() if kind in (nn.ReLU, nn.ReLU6, nn.Identity) else kind(*arguments, **named)  # type: ignore[no-any-return]


def _refusal(name: str, target: Any) -> str:
    why = f": {NO_SPIKING_FORM[target]}" if target in NO_SPIKING_FORM else ""
    return f"layer {name!r}: {getattr(target, '__name__', target)} can't be converted{why}"


def _calibrate(traced: fx.GraphModule, batches: list[Batch], percentile: float) -> dict[str, float]:
    """The threshold of each ReLU: its k-th largest activation, of which only the k largest are kept."""
    samples = sum(len(x) for x, _ in batches)
    largest: dict[str, Tensor] = {}
    rectifiers = [name for name, module in traced.named_modules() if role_of(module) == "rectifier"]
    for x, _ in batches:
        with outputs_of(traced, rectifiers) as activations:
            traced(x)
        for name, activation in activations.items():
            values = activation.flatten()
            k = math.floor(values.numel() / len(x) * samples * (100 - percentile) / 100) + 1
            known = torch.cat([largest.get(name, values[:0]), values])
            largest[name] = known.topk(min(k, len(known))).values
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
    """What the input has grown by since the step before: ``total - total_previous``."""

    def forward(  # type: ignore[override]  # a cell names its states
        self, input_: Tensor, total_previous: Tensor, difference_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        return input_, input_ - total_previous


def _spiking(traced: fx.GraphModule, thresholds: dict[str, float]) -> fx.GraphModule:
    """`traced` with neurons for ReLUs. A value of `traced` is `scale` times the mean of the new one."""
    graph = copy.deepcopy(traced.graph)
    layers: dict[str, nn.Module] = {}
    scales: dict[fx.Node, float] = {}

    def unscale(node: fx.Node) -> None:
        """Multiplies the inputs of `node` by their scales."""
        for source in node.all_input_nodes:
            if scales[source] != 1:
                node.replace_input_with(source, graph.call_function(mul, (source, scales[source])))

    for node in list(graph.nodes):
        with graph.inserting_before(node):
            if node.op == "placeholder":
                scales[node] = 1.0
            elif node.op == "call_module":
                module, source = traced.get_submodule(str(node.target)), node.args[0]
                threshold = thresholds.get(str(node.target))
                layer, scales[node] = _layer(module, scales[source], threshold, node.meta["path"])
                if layer is None:
                    node.replace_all_uses_with(source)
                    graph.erase_node(node)
                else:
                    layers[str(node.target)] = layer
            elif node.op == "output":
                if not isinstance(node.args[0], fx.Node):
                    raise ValueError("model must return one tensor")
                unscale(node)
                layers[readout := layer_name("readout", layers)] = LI()
                node.args = (graph.call_module(readout, node.args),)
            else:
                common = {scales[source] for source in node.all_input_nodes}
                scales[node] = common.pop() if len(common) == 1 else 1.0
                if common:
                    unscale(node)
                if node.target in CONCATENATIONS:
                    parts, axis = node.args
                    node.args = parts, axis + (axis > 0)  # behind time
    return fx.GraphModule(layers, graph, class_name="SpikingNetwork")


def _layer(
    module: nn.Module, scale: float, threshold: float | None, path: str
) -> tuple[nn.Module | None, float]:
    """The spiking network's layer for `module`, whose input is `scale` times too small, and its own scale."""
    match role_of(module):
        case "linear" | "convolution" as role:
            scaled: Any = copy.deepcopy(module)
            scaled.weight.mul_(scale)
            return (scaled if role == "linear" else EachStep(scaled)), 1.0
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
    raise ValueError(
        f"layer {path!r}: {type(module).__name__} cannot be converted; use ReLU, linear layers, "
        "convolutions, batch normalisation, pooling, flatten, additions and concatenations"
    )
