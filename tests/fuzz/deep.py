"""Compares random networks of convolutions, normalizations, neurons and residual sums with torch's layers.

Weights are multiples of 1/64, so sums of spikes are exact in any order. In evaluation the spikes must be
equal. In training mean and variance differ by rounding; if that changes a spike, the comparison ends.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import hibana as hb
from fuzz.contexts import call_in_context, parametrize_weights
from fuzz.differ import Counts, Different
from hibana import surrogate
from hibana.spikes.convolution import dense
from hibana.spikes.convolution import layer as convolution

__all__ = ["Deep", "compare", "deep"]

LAYERS = ["Conv", "Conv strided", "Conv 1x1 strided", "Block", "MaxPool", "Neurons"]
NEURONS = ["IF", "IF, ATan", "LIF, Triangle", "LIF, a learned tau", "IF, a threshold a channel"]
"""With surrogates that are continuous around the threshold, so rounding hardly changes a gradient."""
PHASES = ["training", "training", "evaluation", "evaluation, no gradient", "training, no gradient"]
CHANGES = ["data", "mul_", "hook", "retain"]
FROZEN = ["weights", "norms", "neurons", "image"]
CONTEXTS = ["functional_call", "checkpoint", "parametrized"]
ORDERS = [(0, 1, 2, 3, 4), (0, 1, 3, 4, 2), (0, 2, 3, 4, 1), (1, 0, 2, 3, 4), (0, 3, 4, 1, 2)]
SPIKE_FRACTION = 1e-3
"""Largest fraction of different spikes after a normalization whose mean and variance differ by rounding."""
THRESHOLD_DISTANCE = 1e-6
"""Rounding may move a potential across the threshold if their distance is smaller."""
MIN_COUNT = 16
"""Numbers per normalized channel; of only two, which become 1 and -1, the gradient is pure rounding."""


@dataclass(frozen=True)
class Deep:
    """A random case: layers, changes to the outputs of some layers, and how the network runs."""

    layers: tuple[str, ...] = ("Conv", "Block")
    changes: dict[int, str] = field(default_factory=dict)
    phases: tuple[str, ...] = ("training", "evaluation")
    """Each phase is called twice, because the second call uses what the first has prepared."""
    neurons: str = "IF"
    frozen: frozenset[str] = frozenset()
    affine: bool = True
    momentum: float | None = 0.1
    tracked: bool = True
    constant_image: bool = False
    """Whether all steps have the same image."""
    order: tuple[int, ...] = ORDERS[0]
    """Order of the images' dimensions in memory."""
    input_channels: int = 7
    """Channels of the images."""
    steps: int = 3
    batch: int = 2
    channels: int = 16
    size: int = 8
    mode: str = "events"
    context: str = "plain"
    """How the layers are called, see :mod:`fuzz.contexts`."""
    seed: int = 0


@st.composite
def deep(draw: st.DrawFn) -> Deep:
    """Draws a network for images."""
    layers = tuple(draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4)))
    places = st.integers(0, len(layers) - 1)
    return Deep(
        layers,
        draw(st.dictionaries(places, st.sampled_from(CHANGES), max_size=2)),
        tuple(draw(st.sampled_from(PHASES)) for _ in range(2)),
        draw(st.sampled_from(NEURONS)),
        draw(st.frozensets(st.sampled_from(FROZEN), max_size=3)),
        affine=draw(st.booleans()),
        momentum=draw(st.sampled_from([0.1, None])),
        tracked=draw(st.booleans()),
        constant_image=draw(st.booleans()),
        order=draw(st.sampled_from(ORDERS)),
        input_channels=draw(st.sampled_from([7, 16, 64])),
        steps=draw(st.sampled_from([3, 1, 4])),
        batch=draw(st.sampled_from([2, 1, 5, 16])),
        channels=draw(st.sampled_from([16, 5, 32, 64, 40])),
        size=draw(st.sampled_from([8, 7, 16])),
        mode=draw(st.sampled_from(["events", "auto"])),
        context=draw(st.sampled_from(["plain"] * 3 + CONTEXTS)),
        seed=draw(st.integers(0, 1 << 20)),
    )


class Block(nn.Module):
    """A residual block: the sum of `path` and the input."""

    def __init__(self, path: nn.Module, use_hibana: bool) -> None:
        super().__init__()
        self.path, self.add = path, hb.events.add if use_hibana else torch.add

    def forward(self, spikes: Tensor) -> Tensor:
        return self.add(self.path(spikes), spikes)


def build(network: Deep, *, use_hibana: bool) -> nn.ModuleList:
    """Builds the network of hibana's layers (`use_hibana`), or of torch's layers with the reference loop."""
    torch.manual_seed(network.seed)
    layers, channels = nn.ModuleList(), network.input_channels

    def layer(inputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
        kind = hb.Conv2d if use_hibana else nn.Conv2d
        convolved = kind(inputs, network.channels, kernel, stride, kernel // 2, bias=False)
        norm = nn.BatchNorm2d(network.channels, 1e-5, network.momentum, network.affine, network.tracked)
        with torch.no_grad():
            convolved.weight.mul_(64 * 4).round_().div_(64)
            if network.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0.5)
        each, neurons = hb.EachStep(nn.Sequential(convolved, norm)), _neurons(network)
        convolved.weight.requires_grad_("weights" not in network.frozen)
        norm.requires_grad_("norms" not in network.frozen)
        neurons.requires_grad_("neurons" not in network.frozen)
        if use_hibana:
            convolved.mode = network.mode
            return hb.Normalized(each, neurons)
        neurons.backend = "reference"
        norm.register_forward_pre_hook(_to_channels_last)
        norm.register_forward_hook(lambda *arguments: arguments[-1].contiguous())
        return nn.Sequential(each, neurons)

    for name in network.layers:
        if name == "MaxPool":
            layers.append(hb.EachStep((hb.events.MaxPool2d if use_hibana else nn.MaxPool2d)(2)))
        elif name == "Neurons":
            layers.append(hb.IF(0.5, surrogate.Box(), detach_reset=True))
            layers[-1].backend = "auto" if use_hibana else "reference"
        elif name == "Block" and channels == network.channels:
            layers.append(Block(nn.Sequential(layer(channels), layer(channels)), use_hibana))
        else:
            pixel = "1x1" in name and channels >= dense.SAFE_CHANNELS  # with fewer channels torch crashes
            layers.append(layer(channels, 1 if pixel else 3, 2 if "strided" in name else 1))
            channels = network.channels
    return parametrize_weights(layers, network.context)


def _to_channels_last(norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """The input of torch's normalization in the memory format of hibana's convolutions.

    Moments over channels-last images are rounded up to 60 times as much as over contiguous ones (torch 2.13).
    """
    if inputs[0].requires_grad:
        inputs[0].register_hook(Tensor.contiguous)  # torch's convolution may crash with channels last
    return inputs[0].contiguous(memory_format=torch.channels_last)


def _neurons(network: Deep) -> hb.OverTime:
    match network.neurons:
        case "IF, ATan":
            return hb.IF(1.0, surrogate.ATan())
        case "LIF, Triangle":
            return hb.LIF(surrogate=surrogate.Triangle(), detach_reset=True)
        case "LIF, a learned tau":
            return hb.LIF(learn="tau", surrogate=surrogate.ATan())
        case "IF, a threshold a channel":
            return hb.IF(torch.rand(network.channels, 1, 1) + 0.5, surrogate.Triangle())
    return hb.IF(1.0, surrogate.Step(), detach_reset=True)


def compare(network: Deep, counts: Counts) -> None:
    """Runs a case with hibana and torch and counts it.

    Raises:
        Different: if an output or a gradient differs from that of torch's layers.
    """
    with mock.patch.object(convolution, "SMALLEST_WORK", 0):
        _compare(network, counts)


def _compare(network: Deep, counts: Counts) -> None:
    nets = [build(network, use_hibana=use_hibana) for use_hibana in (True, False, False)]
    nets[2].double()
    phases = [phase for phase in network.phases for _ in range(2)]
    distances: list[float] = []
    for layer in nets[2].modules():
        if isinstance(layer, hb.OverTime):
            layer.register_forward_pre_hook(partial(_record_distance, distances))
    for number, phase in enumerate(phases):
        distances[:] = [float("inf")]
        actual, expected, exact = (
            _run(net, network, phase, number, dtype)
            for net, dtype in zip(nets, (torch.float32, torch.float32, torch.float64), strict=True)
        )
        if isinstance(expected, Exception):
            counts.invalid += 1
            return
        if isinstance(actual, Exception):
            raise Different(f"{type(actual).__name__}: {actual}\n{network}") from actual
        if _smallest_count(network, expected) < MIN_COUNT:
            counts.invalid += 1
            return
        assert not isinstance(exact, Exception)
        for name, reference in sorted(expected.items(), key=lambda item: not item[0].startswith("output")):
            value = actual.get(name)
            if reference is None or value is None:
                if reference is not value:
                    presence = "missing" if value is None else "unexpected"
                    raise Different(f"{name}: {presence} in call {number}\n{network}")
            elif name.startswith("output"):
                same_shape = value.shape == reference.shape
                different = int(value.ne(reference).sum()) if same_shape else reference.numel()
                trained = any(phase.startswith("training") for phase in phases[: number + 1])
                by_batch = trained or not network.tracked  # moments of this batch or of an earlier one
                if different > (SPIKE_FRACTION * reference.numel() if by_batch else 0):
                    if by_batch and distances[0] < THRESHOLD_DISTANCE:  # a spike inside a layer
                        counts.invalid += 1
                        return
                    raise Different(f"{name}: {different} spikes differ in call {number}\n{network}")
                if different or exact[name].ne(reference).any():
                    counts.invalid += 1  # rounding changed a spike
                    return
            else:
                correct = exact[name]
                scale, rounding = correct.abs().max().item(), (correct - reference).abs().max().item()
                error = (value - correct).abs().max().item()
                if value.shape != reference.shape or not error <= 2e-4 * scale + 8 * rounding + 1e-5:
                    off = (value - reference).abs().max().item()
                    raise Different(f"{name}: {off:.3g} off in call {number}\n{network}")
    counts.compared += 1


def _record_distance(distances: list[float], layer: hb.OverTime, inputs: tuple[Tensor]) -> None:
    """Puts the smallest nonzero distance of a potential from its threshold into ``distances[0]``."""
    cell: Any = layer.cell
    distance = (hb.record(cell, inputs[0].detach())["v"] - cell.threshold).abs()
    if distance.any():
        distances[0] = distance[distance > 0].min().clamp(max=distances[0]).item()


def _smallest_count(network: Deep, expected: dict[str, Any]) -> float:
    """Smallest count of numbers over which a channel is normalized."""
    smallest = min(value.numel() for name, value in expected.items() if name.startswith("output"))
    return smallest / network.channels / (network.steps if network.constant_image else 1)


def _run(net: nn.ModuleList, network: Deep, phase: str, number: int, dtype: torch.dtype) -> Any:
    """Outputs of all layers, gradients, and running statistics by name, or the exception of the call."""
    generator = torch.Generator().manual_seed(network.seed + number)
    if net.training != phase.startswith("training"):
        net.train(not net.training)  # also discards what the last call prepared
    net.zero_grad()
    if network.context == "checkpoint":
        # the recomputation may or may not include a normalization, which then counts its batch twice
        for module in net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._NormBase):
                module.reset_running_stats()
    shape = network.batch, network.input_channels, network.size, network.size
    image = torch.rand(shape if network.constant_image else (network.steps, *shape), generator=generator)
    image = ((image * 64).round() / 64 if network.constant_image else (image < 0.4)).to(dtype)
    if not network.constant_image:
        image = (
            image.permute(network.order).contiguous().permute(*map(network.order.index, range(image.ndim)))
        )
    image.requires_grad_("image" not in network.frozen)
    h = image.expand(network.steps, *shape) if network.constant_image else image
    results: dict[str, Any] = {}
    try:
        with torch.set_grad_enabled("no gradient" not in phase):
            for place, layer in enumerate(net):
                h = call_in_context(layer, h, network.context)
                _change(h, network.changes.get(place), generator, place, results)
                results[f"output {place}"] = h.detach().clone()
        factors = torch.randn(h.shape, generator=generator).to(dtype)
        if h.requires_grad:
            (h * factors).sum().backward()
    except Exception as error:
        return error
    results["gradient of the image"] = image.grad
    results |= {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    if network.context != "checkpoint":
        results |= {f"buffer {name}": b.clone() for name, b in net.named_buffers() if b.is_floating_point()}
    return {name: value() if callable(value) else value for name, value in results.items()}


def _change(
    h: Tensor, change: str | None, generator: torch.Generator, place: int, results: dict[str, Any]
) -> None:
    """Writes to `h`, or puts its gradient into `results`, as `change` says."""
    mask = torch.rand(h.shape, generator=generator) < 0.5
    match change:
        case "data":
            h.data.mul_(mask.to(h))
        case "mul_":
            with torch.no_grad():
                h.mul_(mask.to(h))
        case "hook" if h.requires_grad:
            h.register_hook(lambda grad: results.__setitem__(f"gradient at {place}", grad.clone()))
        case "retain" if h.requires_grad:
            h.retain_grad()
            results[f"gradient at {place}"] = lambda: h.grad
