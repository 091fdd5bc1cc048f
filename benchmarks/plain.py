"""Times networks of plain ``torch.nn`` layers and neurons: unchanged, optimized, and wired by hand.

``as written`` only wraps each layer for images in ``EachStep``, which is required to run it. ``optimized`` is
the result of ``hb.optimize``, and ``by hand`` uses hibana's layers directly. All contenders have the same
weights, which are scaled so that each layer of neurons fires at the rate :data:`RATE`.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import hibana as hb
from benchmarks import deep
from benchmarks.measure import rounds, summary
from benchmarks.steps import inference, training_step
from benchmarks.tables import grouped, number, table

__all__ = ["NETWORKS", "jobs", "section"]

Row = dict[str, Any]
RATE = 0.1
CLASSES = 10
_IMAGES = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)


def _neuron() -> nn.Module:
    return hb.LIF(surrogate=hb.surrogate.Step())


def _unit(inputs: int, outputs: int, *, pool: bool) -> list[nn.Module]:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), _neuron()]
    return [*layers, nn.MaxPool2d(2)] if pool else layers


def _fashion() -> nn.Module:
    layers = [*_unit(1, 32, pool=False), *_unit(32, 32, pool=True)]
    layers += [*_unit(32, 64, pool=False), *_unit(64, 64, pool=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 49, CLASSES))


def _vgg() -> nn.Module:
    layers: list[nn.Module] = []
    inputs = deep.SHAPE[0]
    for outputs in deep.VGG:
        layers += [*_unit(inputs, outputs, pool=False), *_unit(outputs, outputs, pool=True)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def _tutorial_dense() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 1000), _neuron(), nn.Linear(1000, CLASSES), hb.LI())


def _tutorial_small() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), _neuron()]
    layers += [nn.Conv2d(12, 64, 5), nn.MaxPool2d(2), _neuron()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, CLASSES), hb.LI())


def _tutorial_wide() -> nn.Module:
    layers = [*_unit(1, 128, pool=True), *_unit(128, 128, pool=True), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128 * 49, 2048), _neuron(), nn.Linear(2048, CLASSES), _neuron())


def _tutorial_events() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(2, 8, 3, padding=1, bias=False), _neuron(), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(8, 16, 3, padding=1, bias=False), _neuron(), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(16, 16, 3, padding=1, bias=False), _neuron(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16, CLASSES), _neuron())


def _resnet() -> nn.Module:
    """ResNet-18 of torchvision with neurons instead of ReLU."""
    from torchvision.models import resnet18

    net: nn.Module = resnet18(num_classes=CLASSES)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.ReLU):
            net.set_submodule(name, hb.IF(surrogate=hb.surrogate.Step()))
    return net


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = {
    "fashion": ("32c3-32c3-p2-64c3-64c3-p2-10, normalized", _fashion, (8, 32, 1, 28, 28)),
    "vgg": (deep.NETWORKS["vgg"][0], _vgg, (deep.STEPS, deep.BATCH, *deep.SHAPE)),
    "784-1000-10": ("784-1000-10 (the first of snnTorch's tutorials)", _tutorial_dense, (25, 128, 784)),
    "12c5": ("12c5-p2-64c5-p2-10 (snnTorch's convolutional one)", _tutorial_small, (25, 32, 1, 28, 28)),
    "128c3": ("128c3-p2-128c3-p2-2048-10 (SpikingJelly's for Fashion)", _tutorial_wide, (4, 16, 1, 28, 28)),
    "8c3": ("8c3-a2-16c3-a2-16c3-a2-10 (sinabs' for events)", _tutorial_events, (20, 16, 2, 34, 34)),
    "resnet18": ("torchvision's ResNet-18, 3x32x32", _resnet, (deep.STEPS, 8, *deep.SHAPE)),
}


class _Joined(nn.Module):
    """A network that computes images with time and batch in one dimension; only its neurons see time."""

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        self.net, self.steps = copy.deepcopy(net), steps
        for name, module in list(self.net.named_modules()):
            if isinstance(module, hb.IF):
                self.net.set_submodule(name, _WithTime(module, steps))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.net(inputs.flatten(0, 1))
        return out.view(*inputs.shape[:2], -1)


class _WithTime(nn.Module):
    """Applies `neurons` to a tensor with time and batch in one dimension."""

    def __init__(self, neurons: nn.Module, steps: int) -> None:
        super().__init__()
        self.neurons, self.steps = neurons, steps

    def forward(self, joined: Tensor) -> Tensor:
        spikes: Tensor = self.neurons(joined.view(self.steps, -1, *joined.shape[1:]))
        return spikes.flatten(0, 1)


def _wrap_images(layers: nn.Sequential) -> nn.Module:
    return nn.Sequential(*(hb.EachStep(layer) if isinstance(layer, _IMAGES) else layer for layer in layers))


def _wire_by_hand(layers: nn.Sequential) -> nn.Module:
    """Replaces torch's layers by hibana's, as an experienced user would, without ``hb.optimize``."""
    remaining, modules = list(hb.events.adopt(layers)), []
    while remaining:
        layer = remaining.pop(0)
        if isinstance(layer, nn.Conv2d) and isinstance(remaining[0], nn.BatchNorm2d):
            modules.append(
                hb.Normalized(hb.EachStep(nn.Sequential(layer, remaining.pop(0))), remaining.pop(0))
            )
        else:
            modules.append(hb.EachStep(layer) if isinstance(layer, _IMAGES) else layer)
    return nn.Sequential(*modules)


@torch.no_grad()
def _tune(net: nn.Module, inputs: Tensor) -> None:
    """Scales the weights before each layer of neurons so that the layer fires at :data:`RATE`."""
    weighted: list[nn.Module] = []

    def scale_weights(neurons: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """Scales the input by a factor, found by bisection, at which `neurons` fire at :data:`RATE`."""
        low, high = 1e-3, 1e3
        for _ in range(16):
            factor = (low * high) ** 0.5
            firing = float(neurons.forward(inputs[0] * factor).mean())
            low, high = (low, factor) if firing > RATE else (factor, high)
        for parameter in weighted[-1].parameters(recurse=False):
            parameter *= factor
        return inputs[0] * factor

    hooks = []
    for part in net.modules():
        if isinstance(part, hb.IF | hb.LIF):
            hooks.append(part.register_forward_pre_hook(scale_weights))
        elif isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            hooks.append(part.register_forward_pre_hook(lambda part, _: weighted.append(part)))
    for momentum in (1.0, 0.1):  # sets the running statistics to those of the batch
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = momentum
        if momentum == 1.0:
            net(inputs)
    for hook in hooks:
        hook.remove()


def _build_contenders(name: str, inputs: Tensor) -> dict[str, nn.Module]:
    """All contenders for network `name`, with equal weights."""
    torch.manual_seed(0)
    plain = NETWORKS[name][1]()
    wrapped = _wrap_images(plain) if isinstance(plain, nn.Sequential) else _Joined(plain, len(inputs))
    _tune(wrapped, inputs)
    optimized = copy.deepcopy(plain)
    if isinstance(wrapped, _Joined):
        optimized.load_state_dict(wrapped.net.state_dict())
    hb.optimize(optimized, inputs, verbose=False)
    by_hand = {"by hand": _wire_by_hand(copy.deepcopy(plain))} if isinstance(plain, nn.Sequential) else {}
    return {"as written": copy.deepcopy(wrapped), "optimized": optimized, **by_hand}


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per network."""
    budget, min_rounds = (0.0, 1) if quick else (20.0, 15)
    return {f"plain/{name}": partial(_measure_network, name, budget, min_rounds) for name in NETWORKS}


def _measure_network(name: str, budget: float, min_rounds: int) -> list[Row]:
    """Rows of one job: times of all contenders in training and inference, and differences of outputs."""
    hb.keep_memory()
    torch.set_flush_denormal(True)
    generator = torch.Generator().manual_seed(1)
    shape = NETWORKS[name][2]
    inputs = torch.rand(shape, generator=generator)
    targets = torch.randint(0, CLASSES, (shape[1],), generator=generator)
    rows = []
    for kind in ("training step", "inference"):
        nets = {
            contender: net.train(kind == "training step")
            for contender, net in _build_contenders(name, inputs).items()
        }
        call = partial(training_step, targets=targets) if kind == "training step" else inference
        seconds_by_contender = rounds(
            {contender: call(net, inputs) for contender, net in nets.items()},
            budget_s=budget,
            min_rounds=min_rounds,
        )
        differences = _output_differences(nets, inputs)
        for contender, seconds in seconds_by_contender.items():
            columns = {"network": name, "pass": kind, "contender": contender, "apart": differences[contender]}
            rows.append({**columns, **summary(seconds)})
    return rows


def _output_differences(nets: dict[str, nn.Module], inputs: Tensor) -> dict[str, float]:
    """Mean absolute difference of the outputs from the unchanged network's, as a fraction of its mean."""
    with torch.no_grad():
        outputs = {contender: net(inputs) for contender, net in nets.items()}
    expected = outputs["as written"]
    scale = expected.abs().mean()
    return {
        contender: float((output - expected).abs().mean() / scale) for contender, output in outputs.items()
    }


def section(rows: list[Row]) -> Iterator[str]:
    """Lines of the report: a table with a line for each network and pass."""
    yield (
        "Networks of plain `torch.nn` layers and neurons: with each layer for images in an `EachStep` (the "
        "ResNet with time and batch joined), after `hb.optimize`, and with hibana's layers wired by hand. "
        "The last column is the mean difference of the outputs relative to their mean; rounding may flip a "
        "spike.\n"
    )
    lines = []
    for (name, kind), group in grouped(rows, "network", "pass").items():
        first = group["as written"]["ms"]
        others = [group.get(contender, {}) for contender in ("optimized", "by hand")]
        line = [NETWORKS[name][0], kind, number(first)]
        line += [number(row["ms"] / first if row else None) for row in others]
        lines.append([*line, f"{others[0]['apart']:.1e}"])
    yield from table(["network", "pass", "as written, ms", "`hb.optimize`", "by hand", "difference"], lines)
