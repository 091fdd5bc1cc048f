"""Every public layer with an input and its expected output, for tests of the ways of calling a module.

Layers are discovered: the tests also call a new layer, with the arguments below or with its defaults.
Layers of `hb.events` have two more cases: with spikes as inputs, and above the neurons that emit them.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import hibana as hb

__all__ = ["CASES", "FEW", "LAYERS", "Above", "build", "near", "reference"]

SURROGATE = hb.surrogate.ATan()

ARGUMENTS: dict[str, Callable[[], nn.Module]] = {
    "OverTime": lambda: hb.OverTime(hb.IFCell(surrogate=SURROGATE)),
    "EachStep": lambda: hb.EachStep(nn.Linear(4, 4)),
    "Recurrent": lambda: hb.Recurrent(hb.LIFCell(surrogate=SURROGATE), 4),
    "Delay": lambda: hb.Delay(torch.tensor([0.0, 1.0, 2.0, 1.0])),
    "DelayedLinear": lambda: hb.DelayedLinear(4, 4, max_delay=2),
    "DelayedRecurrent": lambda: hb.DelayedRecurrent(hb.LIFCell(surrogate=SURROGATE), 4, 2),
    "Window": lambda: hb.Window(4, 4, 2),
    "Linear": lambda: hb.Linear(4, 4),
    "SparseLinear": lambda: hb.SparseLinear(4, 4, 0.6),
    "Conv1d": lambda: hb.events.Conv1d(2, 2, 3, padding=1),
    "Conv2d": lambda: hb.Conv2d(2, 2, 3, padding=1),
    "Conv3d": lambda: hb.events.Conv3d(2, 2, 3, padding=1),
    "ConvTranspose2d": lambda: hb.events.ConvTranspose2d(2, 2, 2, stride=2),
    "AvgPool2d": lambda: hb.events.AvgPool2d(2),
    "AdaptiveAvgPool2d": lambda: hb.events.AdaptiveAvgPool2d(2),
    "AdaptiveMaxPool2d": lambda: hb.events.AdaptiveMaxPool2d(2),
    "Upsample": lambda: hb.events.Upsample(scale_factor=2),
    "StepsDropout": lambda: hb.StepsDropout().eval(),  # in training each call draws another mask
    "ThresholdBatchNorm2d": lambda: hb.ThresholdBatchNorm2d(2).eval(),  # torch.func can't train it
    "Normalized": lambda: hb.Normalized(
        hb.EachStep(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))), hb.IF(surrogate=SURROGATE)
    ).eval(),  # as above
    "Checkpointed": lambda: hb.Checkpointed(nn.Linear(4, 4)),
    "MaxPool2d": lambda: hb.events.MaxPool2d(2),
    "Flatten": lambda: hb.events.Flatten(),
}
ON_SPIKES = ("Linear", "SparseLinear", "Conv1d", "Conv2d", "Window", "DelayedLinear", "MaxPool2d", "Flatten")


def public_layers() -> dict[str, type[nn.Module]]:
    modules = (hb, hb.events)
    public = {name: getattr(module, name) for module in modules for name in module.__all__}
    return {
        name: kind
        for name, kind in public.items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and not issubclass(kind, hb.cells.Cell)
    }


LAYERS = sorted(public_layers())
CASES = [*LAYERS, *(f"{name} {how}" for name in ON_SPIKES for how in ("of spikes", "above IF"))]

FEW = ["CubaLIF", "IF", "LI", "PLIF", "Delay", "DelayedRecurrent", "EachStep", "Normalized", "Recurrent"]
FEW += ["Conv2d above IF", "DelayedLinear of spikes", "Linear above IF", "MaxPool2d of spikes", "Window"]
"""Cases of each kind, for tests that start a process."""
assert set(FEW) <= set(CASES)


class Above(nn.Module):
    """`layer` above neurons; it uses their packed spikes and the support of their surrogate."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.neurons, self.layer = hb.IF(0.5, hb.surrogate.Box(), detach_reset=True), layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.neurons(x))  # type: ignore[no-any-return]


def build(case: str) -> tuple[nn.Module, Tensor]:
    """Returns the layer of `case` and an input for it."""
    torch.manual_seed(0)
    name, _, how = case.partition(" ")
    layer = ARGUMENTS.get(name, public_layers()[name])()
    images = name.endswith("2d") or name == "Upsample" or (how and name == "Flatten")
    x = 2 * torch.rand((3, 2, 4, 4, 4) if name == "Conv3d" else (3, 2, 4, 4) if images else (3, 2, 4))
    if how:
        x = x.to(memory_format=torch.channels_last) if images else x
        x = (x > 1.2).float() if how == "of spikes" else x
        if hasattr(layer, "mode"):
            layer.mode = "events"
    return Above(layer) if how == "above IF" else layer, x


def reference(layer: nn.Module, x: Tensor) -> Tensor:
    """The output of `layer` for `x`, computed by the reference loop or by torch's layer."""
    if isinstance(layer, Above):
        return reference(layer.layer, reference(layer.neurons, x))
    if isinstance(layer, nn.Sequential):
        for part in layer:
            x = reference(part, x)
        return x
    if isinstance(layer, hb.OverTime):
        return hb.unroll(layer.cell, x, backend="reference")[0]
    if isinstance(layer, hb.Recurrent | hb.DelayedRecurrent):
        looped = copy.copy(layer)
        looped.backend = "reference"
        return looped(x)  # type: ignore[no-any-return]
    if isinstance(layer, hb.EachStep):
        return torch.stack([layer.module(step) for step in x])
    if isinstance(layer, hb.Delay):
        delays = layer.delay.long().tolist()
        delayed = [nn.functional.pad(x[: len(x) - d, :, i], (0, 0, d, 0)) for i, d in enumerate(delays)]
        return torch.stack(delayed, -1)
    if isinstance(layer, hb.Window | hb.DelayedLinear):
        weight = layer.weight if isinstance(layer, hb.Window) else layer.kernel()
        padded = nn.functional.pad(x.permute(1, 2, 0), (weight.shape[2] - 1, 0))
        return nn.functional.conv1d(padded, weight, layer.bias).permute(2, 0, 1)
    if isinstance(layer, hb.SparseLinear):
        return nn.functional.linear(x, layer.to_dense(), layer.bias)
    if type(layer).__name__ in ON_SPIKES:
        return getattr(nn, type(layer).__name__).forward(layer, x)  # type: ignore[no-any-return]
    return layer(x)  # type: ignore[no-any-return]


def near(result: Tensor, expected: Tensor) -> None:
    """Asserts that two tensors are close; bfloat16 to 2%."""
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if result.dtype == torch.bfloat16 else {}
    torch.testing.assert_close(result, expected, **tolerance)
