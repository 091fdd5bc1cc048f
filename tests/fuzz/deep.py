"""Random networks of convolutions, normalizations and neurons, with residual sums, beside torch's own.

Weights lie on a grid of 1/64, so that sums of spikes are exact in any order. In evaluation spikes are equal
to the last bit. In training mean and variance differ in their last digits, which may make another spike now
and then: such a case is not compared further.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import hibana as hb
from fuzz.contexts import called, parametrized
from fuzz.differ import Counts, Different
from hibana import surrogate
from hibana.spikes.convolution import dense
from hibana.spikes.convolution import layer as convolution

__all__ = ["Deep", "compare", "deep"]

LAYERS = ["Conv", "Conv strided", "Conv 1x1 strided", "Block", "MaxPool", "Neurons"]
NEURONS = ["IF", "IF, ATan", "LIF, Triangle", "LIF, a learned tau", "IF, a threshold a channel"]
"""Of no surrogate that has a step beside its threshold, over which rounding would take a gradient."""
PHASES = ["training", "training", "evaluation", "evaluation, no gradient", "training, no gradient"]
TOUCHES = ["data", "mul_", "hook", "retain"]
FROZEN = ["weights", "norms", "neurons", "image"]
CONTEXTS = ["functional_call", "checkpoint", "parametrized"]
ORDERS = [(0, 1, 2, 3, 4), (0, 1, 3, 4, 2), (0, 2, 3, 4, 1), (1, 0, 2, 3, 4), (0, 3, 4, 1, 2)]
FEW = 1e-3
"""Of the spikes, that may be others where moments were rounded in another way."""
NEAR = 1e-6
"""How far a potential that is so near its threshold may be rounded to the other side."""
FEWEST = 16
"""Numbers to normalize a channel over: the gradient of two, which become 1 and -1, is all rounding."""


@dataclass(frozen=True)
class Deep:
    """Layers, what is done to the output of some, and how the network is run."""

    layers: tuple[str, ...] = ("Conv", "Block")
    touched: dict[int, str] = field(default_factory=dict)
    phases: tuple[str, ...] = ("training", "evaluation")
    """Of the calls, two of each: the first makes ready what the second finds."""
    neurons: str = "IF"
    frozen: frozenset[str] = frozenset()
    affine: bool = True
    momentum: float | None = 0.1
    tracked: bool = True
    still: bool = False
    """Whether the image is the same at each step."""
    order: tuple[int, ...] = ORDERS[0]
    """In which the dimensions of the images lie in memory."""
    seen: int = 7
    """Channels of the images."""
    steps: int = 3
    batch: int = 2
    channels: int = 16
    size: int = 8
    mode: str = "events"
    context: str = "plain"
    """How its layers are called."""
    seed: int = 0


@st.composite
def deep(draw: st.DrawFn) -> Deep:
    """A network of images."""
    layers = tuple(draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4)))
    places = st.integers(0, len(layers) - 1)
    return Deep(
        layers,
        draw(st.dictionaries(places, st.sampled_from(TOUCHES), max_size=2)),
        tuple(draw(st.sampled_from(PHASES)) for _ in range(2)),
        draw(st.sampled_from(NEURONS)),
        draw(st.frozensets(st.sampled_from(FROZEN), max_size=3)),
        affine=draw(st.booleans()),
        momentum=draw(st.sampled_from([0.1, None])),
        tracked=draw(st.booleans()),
        still=draw(st.booleans()),
        order=draw(st.sampled_from(ORDERS)),
        seen=draw(st.sampled_from([7, 16, 64])),
        steps=draw(st.sampled_from([3, 1, 4])),
        batch=draw(st.sampled_from([2, 1, 5, 16])),
        channels=draw(st.sampled_from([16, 5, 32, 64, 40])),
        size=draw(st.sampled_from([8, 7, 16])),
        mode=draw(st.sampled_from(["events", "auto"])),
        context=draw(st.sampled_from(["plain"] * 3 + CONTEXTS)),
        seed=draw(st.integers(0, 1 << 20)),
    )


class Block(nn.Module):
    """What two layers make of spikes, and the spikes, added."""

    def __init__(self, path: nn.Module, ours: bool) -> None:
        super().__init__()
        self.path, self.add = path, hb.events.add if ours else torch.add

    def forward(self, spikes: Tensor) -> Tensor:
        return self.add(self.path(spikes), spikes)


def built(of: Deep, *, ours: bool) -> nn.ModuleList:
    """The network, of hibana's layers or of torch's around the reference loop."""
    torch.manual_seed(of.seed)
    layers, before = nn.ModuleList(), of.seen

    def layer(inputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
        kind = hb.Conv2d if ours else nn.Conv2d
        convolved = kind(inputs, of.channels, kernel, stride, kernel // 2, bias=False)
        norm = nn.BatchNorm2d(
            of.channels, affine=of.affine, momentum=of.momentum, track_running_stats=of.tracked
        )
        with torch.no_grad():
            convolved.weight.mul_(64 * 4).round_().div_(64)
            if of.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0.5)
        each, neurons = hb.EachStep(nn.Sequential(convolved, norm)), _neurons(of)
        convolved.weight.requires_grad_("weights" not in of.frozen)
        norm.requires_grad_("norms" not in of.frozen)
        neurons.requires_grad_("neurons" not in of.frozen)
        if ours:
            convolved.mode = of.mode
            return hb.Normalized(each, neurons)
        neurons.backend = "reference"
        norm.register_forward_pre_hook(_to_channels_last)
        norm.register_forward_hook(lambda *arguments: arguments[-1].contiguous())
        return nn.Sequential(each, neurons)

    for word in of.layers:
        if word == "MaxPool":
            layers.append(hb.EachStep((hb.events.MaxPool2d if ours else nn.MaxPool2d)(2)))
        elif word == "Neurons":
            layers.append(hb.IF(0.5, surrogate.Box(), detach_reset=True))
            layers[-1].backend = "auto" if ours else "reference"
        elif word == "Block" and before == of.channels:
            layers.append(Block(nn.Sequential(layer(before), layer(before)), ours))
        else:
            pixel = "1x1" in word and before >= dense.SAFE_CHANNELS  # below which torch ends the process
            layers.append(layer(before, 1 if pixel else 3, 2 if "strided" in word else 1))
            before = of.channels
    return parametrized(layers, of.context)


def _to_channels_last(norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """The input of torch's normalization in the memory format of hibana's convolutions.

    Moments over channels-last images are rounded up to 60 times as much as over contiguous ones (torch 2.13).
    """
    if inputs[0].requires_grad:
        inputs[0].register_hook(Tensor.contiguous)  # torch's convolution is not safe with channels last
    return inputs[0].contiguous(memory_format=torch.channels_last)


def _neurons(of: Deep) -> hb.OverTime:
    match of.neurons:
        case "IF, ATan":
            return hb.IF(1.0, surrogate.ATan())
        case "LIF, Triangle":
            return hb.LIF(surrogate=surrogate.Triangle(), detach_reset=True)
        case "LIF, a learned tau":
            return hb.LIF(learn="tau", surrogate=surrogate.ATan())
        case "IF, a threshold a channel":
            return hb.IF(torch.rand(of.channels, 1, 1) + 0.5, surrogate.Triangle())
    return hb.IF(1.0, surrogate.Step(), detach_reset=True)


def compare(of: Deep, counts: Counts) -> None:
    """One case.

    Raises:
        Different: if what comes out, or a gradient, is not that of torch's layers.
    """
    with mock.patch.object(convolution, "SMALLEST_WORK", 0):
        _compare(of, counts)


def _compare(of: Deep, counts: Counts) -> None:
    ours, theirs = built(of, ours=True), built(of, ours=False)
    exact = built(of, ours=False).double()
    phases = [phase for phase in of.phases for _ in range(2)]
    nearest: list[float] = []
    for layer in exact.modules():
        if isinstance(layer, hb.OverTime):
            layer.register_forward_pre_hook(partial(_measured, nearest))
    for number, phase in enumerate(phases):
        nearest[:] = [float("inf")]
        found, wanted, ideal = (
            _run(net, of, phase, number, dtype)
            for net, dtype in ((ours, torch.float32), (theirs, torch.float32), (exact, torch.float64))
        )
        if isinstance(wanted, Exception):
            counts.invalid += 1
            return
        if isinstance(found, Exception):
            raise Different(f"{type(found).__name__}: {found}\n{of}") from found
        if _fewest(of, wanted) < FEWEST:
            counts.invalid += 1
            return
        assert not isinstance(ideal, Exception)
        for name, value in sorted(wanted.items(), key=lambda item: not item[0].startswith("output")):
            got = found.get(name)
            if value is None or got is None:
                if value is not got:
                    there = "none" if got is None else "one"
                    raise Different(f"{name}: there is {there} in call {number}\n{of}")
            elif name.startswith("output"):
                unlike = int(got.ne(value).sum()) if got.shape == value.shape else value.numel()
                trained = any(phase.startswith("training") for phase in phases[: number + 1])
                by_batch = trained or not of.tracked  # moments of this batch, or of one before
                if unlike > (FEW * value.numel() if by_batch else 0):
                    if by_batch and nearest[0] < NEAR:  # a spike in a layer that is not compared
                        counts.invalid += 1
                        return
                    raise Different(f"{name}: {unlike} spikes differ in call {number}\n{of}")
                if unlike or ideal[name].ne(value).any():
                    counts.invalid += 1  # a spike for another, by rounding
                    return
            else:
                scale, off = ideal[name].abs().max().item(), (ideal[name] - value).abs().max().item()
                near = (got - ideal[name]).abs().max().item() <= 2e-4 * scale + 8 * off + 1e-5
                if got.shape != value.shape or not near:
                    raise Different(
                        f"{name}: {(got - value).abs().max().item():.3g} off in call {number}\n{of}"
                    )
    counts.compared += 1


def _measured(nearest: list[float], layer: hb.OverTime, inputs: tuple[Tensor]) -> None:
    """Notes how near any potential of `layer` comes to its threshold, without being just there."""
    cell: Any = layer.cell
    away = (hb.record(cell, inputs[0].detach())["v"] - cell.threshold).abs()
    nearest[0] = away[away > 0].min().clamp(max=nearest[0]).item() if away.any() else nearest[0]


def _fewest(of: Deep, wanted: dict[str, Any]) -> float:
    """How many numbers a channel is normalized over, at least."""
    outputs = [value for name, value in wanted.items() if name.startswith("output")]
    return min(value.numel() for value in outputs) / of.channels / (of.steps if of.still else 1)


def _run(net: nn.ModuleList, of: Deep, phase: str, number: int, dtype: torch.dtype) -> Any:
    """What every layer gives, what was looked at, every gradient, and the running statistics."""
    generator = torch.Generator().manual_seed(of.seed + number)
    if net.training != phase.startswith("training"):
        net.train(not net.training)  # which also forgets what the last call made ready
    net.zero_grad()
    if of.context == "checkpoint":
        # a recomputation ends as soon as it can, before a norm or after it, which counts its input once more
        for module in net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._NormBase):
                module.reset_running_stats()
    shape = of.batch, of.seen, of.size, of.size
    image = torch.rand(shape if of.still else (of.steps, *shape), generator=generator)
    image = ((image * 64).round() / 64 if of.still else (image < 0.4)).to(dtype)
    if not of.still:
        image = image.permute(of.order).contiguous().permute(*map(of.order.index, range(image.ndim)))
    image.requires_grad_("image" not in of.frozen)
    h = image.expand(of.steps, *shape) if of.still else image
    results: dict[str, Any] = {}
    try:
        with torch.set_grad_enabled("no gradient" not in phase):
            for place, layer in enumerate(net):
                h = called(layer, h, of.context)
                _touch(h, of.touched.get(place), generator, place, results)
                results[f"output {place}"] = h.detach().clone()
        factors = torch.randn(h.shape, generator=generator).to(dtype)
        if h.requires_grad:
            (h * factors).sum().backward()
    except Exception as error:
        return error
    results["gradient of the image"] = image.grad
    results |= {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    if of.context != "checkpoint":
        results |= {f"buffer {name}": b.clone() for name, b in net.named_buffers() if b.is_floating_point()}
    return {name: value() if callable(value) else value for name, value in results.items()}


def _touch(
    h: Tensor, how: str | None, generator: torch.Generator, place: int, results: dict[str, Any]
) -> None:
    mask = torch.rand(h.shape, generator=generator) < 0.5
    match how:
        case "data":
            h.data.mul_(mask.to(h))
        case "mul_":
            with torch.no_grad():
                h.mul_(mask.to(h))
        case "hook" if h.requires_grad:
            h.register_hook(lambda grad: results.__setitem__(f"seen at {place}", grad.clone()))
        case "retain" if h.requires_grad:
            h.retain_grad()
            results[f"seen at {place}"] = lambda: h.grad
