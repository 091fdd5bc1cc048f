"""Networks of plain ``torch.nn``: as written, after ``hb.optimize``, and wired by hand.

``as written`` wraps each layer of images in ``EachStep``, which is the least that runs. Every contender has
the same weights; the shifts before the neurons are such that each layer fires at the rate asked for.
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
    """ResNet-18 of torchvision with neurons for ReLU."""
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
    """A network of images with time and batch joined; its neurons get time back."""

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
    def __init__(self, neurons: nn.Module, steps: int) -> None:
        super().__init__()
        self.neurons, self.steps = neurons, steps

    def forward(self, joined: Tensor) -> Tensor:
        spikes: Tensor = self.neurons(joined.view(self.steps, -1, *joined.shape[1:]))
        return spikes.flatten(0, 1)


def _as_written(layers: nn.Sequential) -> nn.Module:
    return nn.Sequential(*(hb.EachStep(one) if isinstance(one, _IMAGES) else one for one in layers))


def _by_hand(layers: nn.Sequential) -> nn.Module:
    """The fast layers, put together as one who knows them would."""
    left, wired = list(hb.events.adopt(layers)), []
    while left:
        one = left.pop(0)
        if isinstance(one, nn.Conv2d) and isinstance(left[0], nn.BatchNorm2d):
            wired.append(hb.Normalized(hb.EachStep(nn.Sequential(one, left.pop(0))), left.pop(0)))
        else:
            wired.append(hb.EachStep(one) if isinstance(one, _IMAGES) else one)
    return nn.Sequential(*wired)


@torch.no_grad()
def _tune(net: nn.Module, inputs: Tensor) -> None:
    """Scales the weights before each layer of neurons, so that it fires at :data:`RATE`."""
    weighted: list[nn.Module] = []

    def settle(neurons: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        low, high = 1e-3, 1e3
        for _ in range(16):
            factor = (low * high) ** 0.5
            firing = float(neurons.forward(given[0] * factor).mean())
            low, high = (low, factor) if firing > RATE else (factor, high)
        for parameter in weighted[-1].parameters(recurse=False):
            parameter *= factor
        return given[0] * factor

    hooks = []
    for part in net.modules():
        if isinstance(part, hb.IF | hb.LIF):
            hooks.append(part.register_forward_pre_hook(settle))
        elif isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            hooks.append(part.register_forward_pre_hook(lambda part, _: weighted.append(part)))
    for momentum in (1.0, 0.1):  # running statistics are those of the batch
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = momentum
        if momentum == 1.0:
            net(inputs)
    for hook in hooks:
        hook.remove()


def _made(name: str, inputs: Tensor) -> dict[str, nn.Module]:
    """Every contender, with equal weights."""
    torch.manual_seed(0)
    plain = NETWORKS[name][1]()
    written = _as_written(plain) if isinstance(plain, nn.Sequential) else _Joined(plain, len(inputs))
    _tune(written, inputs)
    optimized = copy.deepcopy(plain)
    if isinstance(written, _Joined):
        optimized.load_state_dict(written.net.state_dict())
    hb.optimize(optimized, inputs, verbose=False)
    by_hand = {"by hand": _by_hand(copy.deepcopy(plain))} if isinstance(plain, nn.Sequential) else {}
    return {"as written": copy.deepcopy(written), "optimized": optimized, **by_hand}


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One network a job."""
    budget, at_least = (0.0, 1) if quick else (20.0, 15)
    return {f"plain/{name}": partial(_measured, name, budget, at_least) for name in NETWORKS}


def _measured(name: str, budget: float, at_least: int) -> list[Row]:
    hb.keep_memory()
    torch.set_flush_denormal(True)
    generator = torch.Generator().manual_seed(1)
    shape = NETWORKS[name][2]
    inputs = torch.rand(shape, generator=generator)
    targets = torch.randint(0, CLASSES, (shape[1],), generator=generator)
    rows = []
    for kind in ("training step", "inference"):
        nets = {who: net.train(kind == "training step") for who, net in _made(name, inputs).items()}
        call = partial(training_step, targets=targets) if kind == "training step" else inference
        found = rounds(
            {who: call(net, inputs) for who, net in nets.items()}, budget_s=budget, at_least=at_least
        )
        apart = _apart(nets, inputs)
        for who, seconds in found.items():
            about = {"network": name, "pass": kind, "contender": who, "apart": apart[who]}
            rows.append({**about, **summary(seconds)})
    return rows


def _apart(nets: dict[str, nn.Module], inputs: Tensor) -> dict[str, float]:
    """The mean difference of each one's outputs from those as written, as a share of their mean."""
    with torch.no_grad():
        outputs = {who: net(inputs) for who, net in nets.items()}
    wanted = outputs["as written"]
    scale = wanted.abs().mean()
    return {who: float((found - wanted).abs().mean() / scale) for who, found in outputs.items()}


def section(rows: list[Row]) -> Iterator[str]:
    """A line for each network and pass, for the report."""
    yield (
        "Networks of plain `torch.nn` and neurons: each layer of images in an `EachStep` (a ResNet with time "
        "and batch joined by hand), the same network after `hb.optimize`, and the fast layers put together "
        "by hand. Apart: the mean difference of the outputs, as a share of their mean; rounding may flip a "
        "spike.\n"
    )
    lines = []
    for (name, kind), group in grouped(rows, "network", "pass").items():
        first = group["as written"]["ms"]
        others = [group.get(who, {}) for who in ("optimized", "by hand")]
        line = [NETWORKS[name][0], kind, number(first)]
        line += [number(each["ms"] / first if each else None) for each in others]
        lines.append([*line, f"{others[0]['apart']:.1e}"])
    yield from table(["network", "pass", "as written, ms", "`hb.optimize`", "by hand", "apart"], lines)
