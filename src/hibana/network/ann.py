"""From a trained ReLU network to integrate-and-fire neurons: traced, calibrated, rebuilt."""

import copy
import math
from collections.abc import Iterable
from operator import add, iadd, mul
from typing import Any, cast, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hibana.cells import Cell
from hibana.compiler.torch_layers import role_of
from hibana.network.fold import folded_calls, layer_name
from hibana.network.report import Batch, Conversion, Watch, batches_of, report
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
    """`model` in evaluation as calls of modules, one module a call, and additions; without batch norm."""
    evaluated, calls = folded_calls(model)
    layers: dict[str, nn.Module] = {}
    for node in list(calls.nodes):
        name = layer_name(node.name, layers)
        if node.op == "call_module":
            layers[name] = evaluated.get_submodule(str(node.target))
            if type(layers[name]) in NO_SPIKING_FORM:
                raise ValueError(_refusal(str(node.target), type(layers[name])))
            node.meta["path"], node.target = node.target, name
            continue
        if node.target in CONCATENATIONS:
            _parts_and_axis(node)
        if node.op in ("placeholder", "output") or node.target in (*ADDITIONS, *CONCATENATIONS):
            continue
        arguments = node.args[1:]
        if node.target in FLATTEN:
            start = arguments[0] if arguments else node.kwargs.get("start_dim", 0)
            module: nn.Module = nn.Flatten(start, *arguments[1:])
        elif node.target in FUNCTIONS:
            kind = FUNCTIONS[node.target]
            named = {
                k: v for k, v in node.kwargs.items() if k not in ("inplace", "training", "return_indices")
            }
            module = kind() if kind in (nn.ReLU, nn.ReLU6, nn.Identity) else kind(*arguments, **named)
        else:
            raise ValueError(_refusal(node.name, node.target))
        layers[name] = module
        with calls.inserting_after(node):
            call = calls.call_module(name, (node.args[0],))
        call.meta["path"] = name
        node.replace_all_uses_with(call)
        calls.erase_node(node)
    return fx.GraphModule(layers, calls)


def _refusal(name: str, target: Any) -> str:
    why = f": {NO_SPIKING_FORM[target]}" if target in NO_SPIKING_FORM else ""
    return f"layer {name!r}: {getattr(target, '__name__', target)} can't be converted{why}"


def _calibrate(traced: fx.GraphModule, batches: list[Batch], percentile: float) -> dict[str, float]:
    """The threshold of each ReLU: its k-th largest activation, of which only the k largest are kept."""
    samples = sum(len(x) for x, _ in batches)
    largest: dict[str, Tensor] = {}
    for x, _ in batches:
        watch = Watch(traced)
        watch.run(x)
        for name, activation in watch.activations.items():
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
    layers: dict[str, nn.Module] = {}
    lines = fx.Graph()
    values: dict[fx.Node, tuple[fx.Node, float]] = {}

    def whole(node: fx.Node) -> fx.Node:
        value, scale = values[node]
        return value if scale == 1.0 else lines.call_function(mul, (value, scale))

    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = lines.placeholder(node.name), 1.0
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise ValueError("model must return one tensor")
            layers[readout := layer_name("readout", layers)] = LI()
            lines.output(lines.call_module(readout, (whole(node.args[0]),)))
        elif node.op == "call_module":
            name = str(node.target)
            value, scale = values[node.args[0]]
            layer, scale = _layer(traced.get_submodule(name), scale, thresholds.get(name), node.meta["path"])
            if layer is not None:
                layers[name] = layer
                value = lines.call_module(name, (value,))
            values[node] = value, scale
        elif node.target in CONCATENATIONS:
            values[node] = _concatenated(node, values, lines, whole)
        else:
            values[node] = _sum(node, values, lines, whole)
    return fx.GraphModule(layers, lines, class_name="SpikingNetwork")


def _sum(
    node: fx.Node, values: dict[fx.Node, tuple[fx.Node, float]], lines: fx.Graph, whole: Any
) -> tuple[fx.Node, float]:
    both = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if len(both) != 2 or node.kwargs:
        raise ValueError(f"layer {node.name!r}: only two values of the network can be added, got {node.args}")
    scales = {values[arg][1] for arg in both}
    if len(scales) == 1:
        return lines.call_function(add, tuple(values[arg][0] for arg in both)), scales.pop()
    return lines.call_function(add, tuple(whole(arg) for arg in both)), 1.0


def _parts_and_axis(node: fx.Node) -> tuple[list[fx.Node], int]:
    """What `node` concatenates, and along which axis."""
    parts, axis = (*node.args, *node.kwargs.values(), 0)[:2]
    nodes = [part for part in parts if isinstance(part, fx.Node)] if isinstance(parts, tuple | list) else []
    if not nodes or len(nodes) < len(cast(Any, parts)) or not isinstance(axis, int) or axis == 0:
        raise ValueError(
            f"layer {node.name!r}: values of the network can be concatenated, along another axis than the "
            f"batch, got {node.args} {dict(node.kwargs)}"
        )
    return nodes, axis


def _concatenated(
    node: fx.Node, values: dict[fx.Node, tuple[fx.Node, float]], lines: fx.Graph, whole: Any
) -> tuple[fx.Node, float]:
    parts, axis = _parts_and_axis(node)
    over_time = axis + (axis > 0)  # behind time
    scales = {values[part][1] for part in parts}
    same = len(scales) == 1
    found = [values[part][0] if same else whole(part) for part in parts]
    return lines.call_function(torch.cat, (found, over_time)), scales.pop() if same else 1.0


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
