"""Compares random networks of plain ``torch.nn`` layers and neurons, nested as people nest them.

The same layers are built bare, for ``hb.optimize``; in ``hb.EachStep``, singly or in groups; and in a module
that joins time and batch itself. The reference calls each layer of ``torch.nn`` by ``EachStep``. Every
network runs optimized, as a native program, in C, in onnxruntime, and in integers of 8 bits. Weights and
inputs are multiples of 1/8 or 1/16 and windows are powers of two, so every sum is exact and all results must
be equal.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import guard
import hibana as hb
from fuzz.differ import Counts
from fuzz.sizes import Net, _normalization, compare_in_c, outputs_of
from hibana.compiler.graph.ops import Unsupported
from hibana.network import CProgram, to_c, to_onnx
from hibana.nn.over_steps import JoinedNetwork
from verifier import unproved

__all__ = ["run"]

Shape = tuple[int, ...]


class Joined(nn.Module):
    """Calls `layers`, which have no time, with time and batch joined by a forward."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """The outputs ``[T, batch, ...]``."""
        outputs: Tensor = self.layers(x.flatten(0, 1))
        return outputs.unflatten(0, (x.size(0), x.size(1)))


class Residual(nn.Module):
    """The sum of two paths, in one of the ways in which a forward adds."""

    def __init__(self, path: nn.Module, shortcut: nn.Module, way: str) -> None:
        super().__init__()
        self.path, self.shortcut, self.way = path, shortcut, way

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both outputs."""
        first, second = self.path(x), self.shortcut(x)
        match self.way:
            case "torch.add":
                return torch.add(first, second)
            case "+=":
                first = first.clone()
                first += second
                return first
        sum_: Tensor = first + second
        return sum_

    def extra_repr(self) -> str:
        """The way of adding."""
        return repr(self.way)


@dataclass
class Part:
    """A layer, a group of parts, or a sum of two groups."""

    layer: nn.Module | None = None
    parts: list["Part"] = field(default_factory=list)
    shortcut: list["Part"] | None = None
    way: str = "+"

    @property
    def has_time(self) -> bool:
        """Whether the part contains a layer over time, or a sum."""
        if self.layer is not None:
            return isinstance(self.layer, hb.OverTime | hb.Recurrent | hb.Window | hb.Delay)
        return self.shortcut is not None or any(part.has_time for part in self.parts)


class _Drawer:
    """Draws parts for samples of a shape."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.kind = self.draw.choice(["features", "sequences", "images"])
        """The samples before layers of features."""
        self.only_optimized = False
        """Whether a layer was drawn that only ``hb.optimize`` takes."""

    def parts(self, shape: Shape, count: int, depth: int = 0) -> tuple[list[Part], Shape]:
        """About `count` parts for samples of `shape`, and the shape of their outputs."""
        parts = list[Part]()
        for _ in range(count):
            new, shape = self._part(shape, depth)
            parts += new
        if self.draw.random() < 0.3 and len(parts) > 1:  # nest some of them
            first = self.draw.randrange(len(parts) - 1)
            last = self.draw.randint(first + 1, len(parts))
            parts[first:last] = [Part(parts=parts[first:last])]
        return parts, shape

    def _part(self, shape: Shape, depth: int) -> tuple[list[Part], Shape]:
        draw, (channels, *sides) = self.draw, shape
        choices = ["weights", "weights", "neurons", "neurons", "nothing", "flatten" if sides else "unflatten"]
        choices += ["pool", "pool"] if sides else []
        choices += ["residual"] if depth < 2 else []
        choices += ["over time"]
        match draw.choice(choices):
            case "weights":
                outputs = draw.choice([1, 2, 4, channels, 8])
                return self._weights(shape, outputs)
            case "neurons":
                threshold = draw.randint(1, 8) / 8
                kinds = [hb.IF(threshold), hb.IF(threshold), hb.LIF(2.0, threshold)]
                if not sides:
                    synapses = nn.Linear(channels, channels, bias=draw.random() < 0.5)
                    kinds.append(hb.Recurrent(hb.IFCell(threshold), channels, synapses))
                return [Part(draw.choice(kinds))], shape
            case "nothing":
                dropouts = {0: nn.Dropout, 1: nn.Dropout1d, 2: nn.Dropout2d}
                kinds = [nn.Identity(), nn.Dropout(0.5), dropouts[len(sides)](0.5)]
                return [Part(draw.choice(kinds))], shape
            case "over time":
                outputs = draw.choice([1, 2, channels])
                kinds = [(hb.Delay(1.0), shape), (hb.Window(channels, outputs, 2), (outputs, *sides))]
                layer, shape = draw.choice(kinds)
                return [Part(layer)], shape
            case "flatten":
                total = channels
                for side in sides:
                    total *= side
                return [Part(nn.Flatten())], (total,)
            case "unflatten":
                side = {"sequences": 4, "images": 16}.get(self.kind, 0)
                if not side or channels % side:
                    return [], shape
                new = (channels // side, *((4,) if side == 4 else (4, 4)))
                return [Part(nn.Unflatten(-1, new))], new
            case "pool":
                return self._pool(shape)
        path, outputs_shape = self.parts(shape, draw.randint(1, 3), depth + 1)
        shortcut = list[Part]()
        if outputs_shape != shape:
            shortcut, new_shape = self._to_shape(shape, outputs_shape)
            if new_shape != outputs_shape:
                return path, outputs_shape
        return [Part(parts=path, shortcut=shortcut, way=draw.choice(["+", "torch.add", "+="]))], outputs_shape

    def _to_shape(self, shape: Shape, expected: Shape) -> tuple[list[Part], Shape]:
        """A shortcut from `shape` to the `expected` shape, if there is one with the same sides."""
        if shape[1:] != expected[1:]:
            return [], shape
        return self._weights(shape, expected[0], kernel=1)

    def _weights(self, shape: Shape, outputs: int, kernel: int = 0) -> tuple[list[Part], Shape]:
        """A linear layer or a convolution, maybe with batch normalization."""
        draw, (channels, *sides) = self.draw, shape
        bias = draw.random() < 0.5
        if sides:
            kind, norm = (nn.Conv1d, nn.BatchNorm1d) if len(sides) == 1 else (nn.Conv2d, nn.BatchNorm2d)
            groups = channels if outputs == channels and draw.random() < 0.3 else 1
            kernel = kernel or draw.choice([1, 3])
            layer: nn.Module = kind(channels, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
        else:
            norm = nn.BatchNorm1d
            layer = (hb.Linear if draw.random() < 0.2 else nn.Linear)(channels, outputs, bias=bias)
        parts = [Part(layer)]
        if draw.random() < 0.4:
            parts.append(Part(_normalization(draw, norm, outputs)))
        elif draw.random() < 0.05:
            self.only_optimized = True
            parts.append(Part(draw.choice([nn.ReLU(), nn.LayerNorm(([outputs, *sides])[-1])])))
        return parts, (outputs, *sides)

    def _pool(self, shape: Shape) -> tuple[list[Part], Shape]:
        """A pooling whose window is a power of two."""
        draw, (channels, *sides) = self.draw, shape
        is_1d = len(sides) == 1
        half = tuple(side // 2 for side in sides)
        kinds = [("adaptive average", (1,) * len(sides))]
        if min(half) > 0 and not any(side % 2 for side in sides):
            kinds += [("maximum", half), ("average", half), ("adaptive maximum", half), ("upsample", sides)]
        if min(sides) > 2:
            kinds += [("overlapping maximum", tuple(sides))]
        kind, new = draw.choice(kinds)
        match kind:
            case "maximum":
                layer: nn.Module = nn.MaxPool1d(2) if is_1d else nn.MaxPool2d(2)
            case "average":
                layer = nn.AvgPool1d(2) if is_1d else nn.AvgPool2d(2)
            case "overlapping maximum":
                layer = nn.MaxPool1d(3, 1, 1) if is_1d else nn.MaxPool2d(3, 1, 1)
            case "adaptive average":
                layer = nn.AdaptiveAvgPool1d(1) if is_1d else nn.AdaptiveAvgPool2d(1)
            case "adaptive maximum":
                self.only_optimized = True
                layer = nn.AdaptiveMaxPool1d(new[0]) if is_1d else nn.AdaptiveMaxPool2d(new)
            case _:
                if draw.random() < 0.7:
                    return [], shape
                self.only_optimized = True
                layer, new = nn.Upsample(scale_factor=2), tuple(2 * side for side in sides)
        return [Part(layer)], (channels, *new)


class _Builder:
    """Builds a network of the layers of parts in a style."""

    def __init__(self, style: str, seed: int) -> None:
        self.style, self.draw = style, random.Random(seed)

    def build(self, parts: list[Part]) -> nn.Sequential:
        """The network of `parts`, with copies of their layers."""
        modules, i = list[nn.Module](), 0
        while i < len(parts):
            group = i
            while self.style == "mixed" and group < len(parts) and not parts[group].has_time:
                group += 1
            if group > i and self.draw.random() < 0.4:
                joined = _Builder("bare", 0).build(parts[i:group])
                modules.append((hb.EachStep if self.draw.random() < 0.6 else Joined)(joined))
                i = group
                continue
            modules.append(self._module(parts[i]))
            i += 1
        return nn.Sequential(*modules)

    def _module(self, part: Part) -> nn.Module:
        """The module of one part."""
        if part.layer is None:
            path = self.build(part.parts)
            if part.shortcut is None:
                return path
            shortcut = self.build(part.shortcut) if part.shortcut else nn.Identity()
            return Residual(path, shortcut, part.way)
        layer = copy.deepcopy(part.layer)
        if part.has_time or self.style == "bare":
            return layer
        takes_time = isinstance(
            layer, nn.Linear | nn.Identity | nn.Dropout | nn.Unflatten | nn.ReLU | nn.LayerNorm
        )
        if self.style == "mixed" and takes_time and self.draw.random() < 0.7:
            return layer
        if self.style == "mixed" and isinstance(layer, nn.Flatten) and self.draw.random() < 0.5:
            return nn.Flatten(2)
        return hb.EachStep(layer)


def draw_case(seed: int) -> tuple[list[Part], Tensor, Tensor, bool]:
    """The parts of a `seed`, two inputs of other sizes, and whether exports refuse a layer."""
    drawer = _Drawer(seed)
    draw = drawer.draw
    torch.manual_seed(seed)
    channels, side = draw.choice([1, 2, 4, 8]), draw.choice([4, 8])
    shape = (channels, *[side] * {"features": 0, "sequences": 1, "images": 2}[drawer.kind])
    parts, _ = drawer.parts(shape, draw.randint(2, 6))
    parts = [Part(hb.IF(draw.randint(1, 8) / 8)), *parts] if draw.random() < 0.5 else [*parts, Part(hb.IF())]
    steps, batch, levels = draw.choice([1, 2, 3, 4, 8]), draw.choice([1, 2, 3, 4, 8]), draw.choice([1, 8])

    def inputs(*sizes: int) -> Tensor:
        return torch.randint(0, levels + 1, (*sizes, *shape)).float() / levels

    def prepare(parts: list[Part]) -> None:
        for part in parts:
            prepare(part.parts)
            prepare(part.shortcut or [])
            if part.layer is not None:
                for name, parameter in part.layer.named_parameters():
                    if not (isinstance(part.layer, nn.LayerNorm) or "cell" in name):
                        parameter.data.copy_((parameter.data * 16).round().clamp(-8, 8) / 8)

    prepare(parts)
    return parts, inputs(steps, batch), inputs(steps + 1, batch + 2), drawer.only_optimized


def run(batch: int, count: int, counts: Counts, record: Callable[[Net], None]) -> list[str]:
    """Compares the `count` networks of a batch; calls `record` with each network before it runs."""
    torch.set_num_threads(1)
    findings, programs = list[str](), list[tuple[Net, CProgram, Tensor]]()
    for seed in range(batch * count, (batch + 1) * count):
        parts, example, other, only_optimized = draw_case(seed)
        reference = _Builder("each", seed).build(parts).eval()
        net = Net(seed, reference, example, other)
        record(net)
        expected = [outputs_of(reference, x) for x in (example, other)]
        if None in [None if result is None else 0 for result in expected]:
            counts.invalid += 1
            findings.append(f"the reference fails: {net}")
            continue
        counts.compared += 1
        mixed = _Builder("mixed", seed).build(parts).eval()
        for style, layers in (("mixed", mixed), ("bare", _Builder("bare", seed).build(parts).eval())):
            case = replace(net, layers=layers)
            findings += _compare_optimized(case, style, expected)
        if not only_optimized:
            layers = mixed
            if seed % 2:
                layers = hb.optimize(_Builder("bare", seed).build(parts).eval(), verbose=False)
            _compare_targets(replace(net, layers=layers), expected, findings, programs, counts)
    return findings + compare_in_c(programs)


def _compare_optimized(net: Net, style: str, expected: list[Tensor | None]) -> list[str]:
    """Compares the network as PyTorch takes it, and optimized with and without an example."""
    findings = []
    plain = outputs_of(net.layers, net.example)
    if plain is not None:  # PyTorch takes the example; the samples may be as many as features
        expected = [plain, outputs_of(net.layers, net.other)]
        if style == "mixed" and not _same(plain, expected[0]):
            findings.append(f"{style} differs: {net}")
    ways = {"with an example": (net.example,)} | (
        {"without": ()} if style == "bare" and plain is None else {}
    )
    for way, arguments in ways.items():
        try:
            optimized: Any = hb.optimize(copy.deepcopy(net.layers), *arguments, verbose=False)
        except Exception as error:
            if plain is None or "Upsample" not in str(net):  # torch took the channels for a third side
                findings.append(f"optimize {way} of {style} raises {type(error).__name__}: {error}: {net}")
            continue
        for inputs, right in zip((net.example, net.other), expected, strict=True):
            result = outputs_of(optimized, inputs)
            if right is not None and (result is None or not _same(result, right)):
                findings.append(f"{style}, optimized {way}, differs on {list(inputs.shape)}: {net}")
    return findings


def _same(result: Tensor, expected: Tensor) -> bool:
    """Whether both are equal, up to the rounding of a layer normalization."""
    return result.shape == expected.shape and torch.allclose(result, expected, rtol=1e-4, atol=1e-5)


def _compare_targets(
    net: Net,
    expected: list[Any],
    findings: list[str],
    programs: list[tuple[Net, CProgram, Tensor]],
    counts: Counts,
) -> None:
    """Compares a native program and ONNX; appends to `findings`, and programs in C to `programs`."""
    import onnxruntime

    if isinstance(net.layers, JoinedNetwork):
        counts.refused += 1
        return
    try:
        native = guard.run(net.layers, net.example, [net.example, net.other], net.seed % 2 == 0)
        program = to_c(net.layers, net.example, name=f"net{net.seed}")
        model = to_onnx(net.layers, net.example).SerializeToString()
    except Exception as error:
        counts.refused += 1
        if "no linear layer or convolution before it" not in str(error):
            findings.append(f"{type(error).__name__}: {error}: {net}")
        return
    programs.append((net, program, expected[0]))
    findings.extend(f"{access}: {net}" for access in unproved(net.layers, net.example))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    onnx = [torch.from_numpy(session.run(None, {"input": x.numpy()})[0]) for x in (net.example, net.other)]
    rights = [expected[0], expected[0], expected[1], expected[1], *expected]
    for place, (result, right) in enumerate(zip((*native, *onnx), rights, strict=True)):
        if not torch.equal(result, right):
            findings.append(f"result {place} differs: {net}")
    try:
        integers, _ = hb.quantize(net.layers, net.example)
    except Unsupported as error:
        counts.refused += 1
        if not any(reason in str(error) for reason in EXPECTED_REFUSALS):
            findings.append(f"hb.quantize: {error}: {net}")
        return
    inputs = integers.integer_input(net.example)
    with torch.no_grad():
        right = integers.net(inputs)
    if not all(torch.equal(result, right) for result in guard.run(integers.net, inputs, [inputs])):
        findings.append(f"integers differ: {net}")
    case = replace(net, example=inputs)
    findings.extend(f"{access}, in integers: {net}" for access in unproved(integers, net.example))
    programs.append((case, to_c(integers, net.example, name=f"integer{net.seed}"), right))


EXPECTED_REFUSALS = ("adds integers of different scales", "more than 32 bits hold")
"""Documented limits of networks in integers."""
