"""Random networks of layers that work per spike and of neurons, with changes to tensors between layers."""

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import hibana as hb
from fuzz.contexts import CONTEXTS
from hibana import surrogate

__all__ = ["WRITES", "Network", "build", "inputs", "networks"]

SURROGATES = [surrogate.Step(), surrogate.Box(), surrogate.Triangle(), surrogate.ATan()]
INPUTS = [
    "currents",
    "spikes",
    "signed spikes",
    "turned",
    "strided",
    "offset",
    "channels last",
    "constant",
    "negated",
]
INPUTS += ["almost spikes", "double"]
WRITES = ["mul_", "zero_", "masked_fill_", "index", "detach", "view", "one", "minus zero", "data"]
OBSERVATIONS = ["hook", "retain", "detached branch", "second use", "asked for", "total", "total and hook"]
USES = ["all", "last step", "one output", "some rows", "mean over time", "large", "with state"]


@dataclass(frozen=True)
class Network:
    """A random case: layers, changes to the outputs of some layers, and how the network runs."""

    layers: tuple[str, ...] = ("Linear", "IF", "Linear")
    changes: dict[int, str] = field(default_factory=dict)
    """Writes to the output of a layer, or observations of its gradient, by the layer's position."""
    steps: int = 3
    batch: int = 2
    width: int = 5
    surrogate: int = 0
    detach_reset: bool = True
    inputs: str = "currents"
    use: str = "all"
    mode: str = "events"
    context: str = "plain"
    """How the layers are called, see :mod:`fuzz.contexts`."""
    seed: int = 0


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Draws a network for images or for features."""
    images = draw(st.booleans())
    kinds = ["Conv2d", "Conv2d strided", "MaxPool2d", "IF", "IF", "AvgPool2d", "Masked", "ReLU"]
    if not images:
        kinds = [
            "Linear",
            "Linear",
            "IF",
            "IF",
            "Flatten steps",
            "Transpose",
            "Masked",
            "LI",
            "Recurrent",
            "ReLU",
            "Window",
            "Delayed",
        ]
    layers = [draw(st.sampled_from(kinds)) for _ in range(draw(st.integers(1, 5)))]
    if images and draw(st.booleans()):
        layers += ["Flatten", draw(st.sampled_from(["Linear", "IF"])), "Linear"]
    layers = ["IF" if draw(st.booleans()) else layers[0], *layers]
    positions = st.integers(0, len(layers) - 1)
    changes = draw(st.dictionaries(positions, st.sampled_from(WRITES + OBSERVATIONS), max_size=2))
    return Network(
        tuple(layers),
        changes,
        steps=draw(st.sampled_from([3, 1, 2, 8])),
        batch=draw(st.sampled_from([2, 1, 64, 40])),
        width=draw(st.sampled_from([5, 1, 16, 64, 33])),
        surrogate=draw(st.integers(0, len(SURROGATES) - 1)),
        detach_reset=draw(st.booleans()),
        inputs=draw(st.sampled_from(INPUTS)),
        use=draw(st.sampled_from(USES)),
        mode=draw(st.sampled_from(["events", "auto"])),
        context=draw(st.sampled_from(["plain"] * len(CONTEXTS) + CONTEXTS)),
        seed=draw(st.integers(0, 9)),
    )


class _FlattenSteps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Halves the steps and doubles the batch if the steps are even, else joins both into one step."""
        if x.shape[0] % 2 or x.ndim != 3:
            return x.flatten(0, 1)[None]
        return x.reshape(x.shape[0] // 2, x.shape[1] * 2, x.shape[2])


class _Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


class _Masked(nn.Module):
    """Dropout with a fixed mask; the mask of torch's dropout depends on the memory layout."""

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.numel()).view(x.shape)
        return x * (positions % 7 > 2).to(x)


def build(network: Network) -> nn.Sequential:
    """Builds the network with dense layers."""
    width, size = network.width, 6
    features, images = width, any("2d" in kind or kind == "Flatten" for kind in network.layers)
    modules: list[nn.Module] = []
    surrogate_ = SURROGATES[network.surrogate]
    for kind in network.layers:
        match kind:
            case "IF":
                modules.append(hb.IF(0.5, surrogate_, detach_reset=network.detach_reset))
            case "LI":
                modules.append(hb.LI(2.0))
            case "Recurrent":
                modules.append(hb.Recurrent(hb.IFCell(0.5, surrogate_), features))
            case "Linear":
                modules.append(nn.Linear(features, width))
                features = width
            case "Window":
                modules.append(hb.Window(features, width, 3))
                features = width
            case "Delayed":
                modules.append(hb.DelayedLinear(features, width, 4, sigma=float(network.seed % 2)))
                features = width
            case "Conv2d":
                modules.append(hb.EachStep(nn.Conv2d(width, width, 3, padding=1)))
            case "Conv2d strided":
                modules.append(hb.EachStep(nn.Conv2d(width, width, (1, 3), (2, 1), padding=(0, 1))))
                size = (size + 1) // 2
            case "MaxPool2d":
                modules.append(
                    hb.EachStep(nn.MaxPool2d(2, ceil_mode=False, padding=0) if size > 1 else nn.Identity())
                )
            case "AvgPool2d":
                modules.append(hb.EachStep(nn.AvgPool2d(2, 1)))
            case "Masked":
                modules.append(_Masked())
            case "ReLU":
                modules.append(nn.ReLU())
            case "Flatten":
                modules.append(nn.Flatten(2))
                features = 0
            case "Flatten steps":
                modules.append(_FlattenSteps())
            case "Transpose":
                modules.append(_Transpose())
    net = nn.Sequential(*modules)
    return _fit_sizes(net, network, images)


def _fit_sizes(net: nn.Sequential, network: Network, images: bool) -> nn.Sequential:
    """Adapts the layers of `net` to the sizes of their inputs and rounds the weights to multiples of 1/64."""
    x = inputs(network, images).detach().float()
    with torch.no_grad():
        for place, layer in enumerate(net):
            if isinstance(layer, nn.Linear) and layer.in_features != x.shape[-1]:
                layer = net[place] = nn.Linear(x.shape[-1], layer.out_features)
            elif isinstance(layer, hb.Window) and layer.in_channels != x.shape[-1]:
                layer = net[place] = hb.Window(x.shape[-1], layer.out_channels, 3)
            elif isinstance(layer, hb.DelayedLinear) and layer.in_features != x.shape[-1]:
                layer = net[place] = hb.DelayedLinear(x.shape[-1], layer.out_features, 4, sigma=layer.sigma)
            x = layer(x)
        for parameter in net.parameters():
            parameter.copy_((parameter * 64).round() / 64)
    return net


def inputs(network: Network, images: bool) -> Tensor:
    """The network's random input ``[T, batch, width, ...]``, with 6x6 pixels if `images`."""
    generator = torch.Generator().manual_seed(network.seed)
    space = (6, 6) if images else ()
    shape = (network.steps, network.batch, network.width, *space)
    uniform = torch.rand(shape, generator=generator)
    x = (uniform * 64).round() / 64
    spikes = (uniform < 0.3).float()
    match network.inputs:
        case "spikes":
            return spikes
        case "signed spikes":
            return torch.where(spikes == 0, -0.0, 1.0)
        case "almost spikes":
            spikes.view(-1)[-1] = 0.5
            return spikes
        case "turned":
            return spikes.transpose(1, 2).contiguous().transpose(1, 2)
        case "strided":
            return spikes.repeat_interleave(2, -1)[..., ::2]
        case "offset":
            return torch.cat([uniform.new_zeros(1), spikes.flatten()])[1:].view(shape)
        case "channels last" if images:
            return spikes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        case "constant":
            return x[:1].expand(shape)
        case "negated":
            return torch._neg_view(-spikes)
        case "double":
            return x.double()
    return x
