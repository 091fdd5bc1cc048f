"""Compares networks with coinciding sizes: width, channels, steps and samples are 1 or the same number.

Each network runs in PyTorch, as a native program whose buffers lie between protected pages, as C with the
address and undefined-behaviour sanitizers, in onnxruntime, and after a round trip through NIR; some also run
with integers. Weights and inputs are multiples of 1/8, so every sum is exact and all results must be equal.
"""

import math
import random
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import guard
import hibana as hb
from c_programs import SANITIZERS
from fuzz.differ import Counts
from hibana.compiler.graph.ops import Unsupported
from hibana.network import CProgram, to_c, to_onnx

__all__ = ["Net", "compare_in_c", "outputs_of", "random_net", "run"]

STYLES = ("each", "each", "flatten", "reshape", "view", "squeeze", "squeeze steps", "direct")


class Wrapped(nn.Module):
    """A layer for samples without time; `style` is one of the ways in which users apply it over time."""

    def __init__(
        self, layer: nn.Module, style: str, input_shape: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.layer, self.style, self.input_shape, self.shape = layer, style, input_shape, shape

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to each sample of each step."""
        match self.style:
            case "flatten":
                return self.layer(x.flatten(0, 1)).unflatten(0, (x.size(0), x.size(1)))
            case "reshape":
                steps, batch = x.shape[0], x.shape[1]
                return self.layer(x.reshape(steps * batch, *self.input_shape)).view(steps, batch, *self.shape)
            case "view":
                return self.layer(x.view(-1, *self.input_shape)).reshape(x.size(0), -1, *self.shape)
            case "squeeze":
                return self.layer(x.squeeze(1)).unsqueeze(1)
            case "squeeze steps":
                return self.layer(x.squeeze(0)).unsqueeze(0)
            case "fixed":
                return self.layer(x.flatten(0, 1)).reshape(-1, 1, *self.shape)
        return self.layer(x)

    def extra_repr(self) -> str:
        return f"{self.style!r}, {self.input_shape} -> {self.shape}"


class Reshaped(nn.Module):
    """Reshapes samples by one of several operations."""

    def __init__(self, operation: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.operation, self.shape = operation, shape

    def forward(self, x: Tensor) -> Tensor:
        match self.operation:
            case "flatten":
                return x.flatten(2)
            case "flatten all":
                return x.flatten(1)
            case "unsqueeze":
                return x.unsqueeze(2)
            case "squeeze":
                return x.squeeze(2)
            case "squeeze all":
                return x.squeeze()
        return x.reshape(x.size(0), x.size(1), *self.shape)

    def extra_repr(self) -> str:
        return f"{self.operation!r}, {self.shape}"


class Concatenated(nn.Module):
    """A layer's output, which has the shape of its input, beside its input, along dimension `dim`."""

    def __init__(self, layer: nn.Module, dim: int) -> None:
        super().__init__()
        self.layer, self.dim = layer, dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x), x], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Branch(nn.Module):
    """The sum of a layer's output and half of its input, which has the same shape."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x * 0.5


@dataclass
class Net:
    """A network and its inputs."""

    seed: int
    layers: nn.Sequential
    example: Tensor
    other: Tensor
    """Inputs with more steps and samples."""

    def __str__(self) -> str:
        return f"seed {self.seed}, example {list(self.example.shape)}:\n{self.layers}"


def random_net(seed: int) -> Net:
    """Draws the network of a `seed`: two to five layers for samples with sizes 1 and n, and two inputs."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    n = draw.choice([2, 3, 4, 5])
    steps, batch = draw.choice([(n, 1), (n, 1), (n, n), (1, 1), (1, n), (2 * n, 1)])
    channels = draw.choice([1, 1, n])
    shape: tuple[int, ...] = draw.choice([(channels, n, n), (channels, n), (n,), (1, n, 1), (n, n, n)])
    input_shape, layers = shape, list[nn.Module]()
    for _ in range(draw.randint(2, 5)):
        layer, shape = _layer(draw, shape, n)
        layers.append(layer)
    net = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 16).round().clamp(-8, 8) / 8)
    levels = draw.choice([1, 8])

    def inputs(*sizes: int) -> Tensor:
        return torch.randint(0, levels + 1, (*sizes, *input_shape)).float() / levels

    return Net(seed, net, inputs(steps, batch), inputs(steps + 1, batch + 2))


def _layer(draw: random.Random, shape: tuple[int, ...], n: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Draws a layer for samples of `shape`; returns the layer and the shape of its outputs."""
    weighted = "linear" if len(shape) == 1 else "convolution"
    channels, *sides = shape
    outputs = draw.choice([1, n])
    match draw.choice(
        [weighted, weighted, "neurons", "neurons", "delay", "window", "branch", "reshape", "pool", "more"]
    ):
        case "linear" if draw.random() < 0.2:
            return hb.DelayedLinear(channels, outputs, 2, bias=draw.random() < 0.5), (outputs,)
        case "linear":
            layer: nn.Module = nn.Linear(channels, outputs, bias=draw.random() < 0.5)
            if draw.random() < 0.3:
                layer = nn.Sequential(layer, _normalization(draw, nn.BatchNorm1d, outputs))
            return _wrap(draw, layer, shape, (outputs,))
        case "convolution":
            groups = channels if outputs == channels and draw.random() < 0.3 else 1
            kind, norm = (nn.Conv1d, nn.BatchNorm1d) if len(sides) == 1 else (nn.Conv2d, nn.BatchNorm2d)
            layer = kind(channels, outputs, 3, padding=1, groups=groups, bias=draw.random() < 0.5)
            if draw.random() < 0.3:
                layer = nn.Sequential(layer, _normalization(draw, norm, outputs))
            return _wrap(draw, layer, shape, (outputs, *sides))
        case "neurons":
            return _neurons(draw, shape), shape
        case "delay":
            return hb.Delay(torch.randint(0, 3, draw.choice([(), shape])).float()), shape
        case "window":
            groups = channels if outputs == channels and draw.random() < 0.3 else 1
            layer = hb.Window(channels, outputs, draw.choice([1, 2, n]), draw.choice([1, 2]), groups)
            return layer, (outputs, *sides)
        case "branch":
            return Branch(_neurons(draw, shape)), shape
        case "more":
            return _ordinary(draw, shape)
        case "pool" if sides:
            if draw.random() < 0.3:
                mean = nn.AdaptiveAvgPool1d(1) if len(sides) == 1 else nn.AdaptiveAvgPool2d(1)
                return _wrap(draw, mean if n in (2, 4) else nn.Identity(), shape, shape)
            maximum, average = (
                (nn.MaxPool1d, nn.AvgPool1d) if len(sides) == 1 else (nn.MaxPool2d, nn.AvgPool2d)
            )
            layer = maximum(3, 1, 1) if draw.random() < 0.5 else average(1)
            return _wrap(draw, layer, shape, shape)
    operation, new_shape = draw.choice(
        [
            ("flatten", (channels * math.prod(sides),)),
            ("unsqueeze", (1, *shape)),
            ("squeeze", shape[1:] if channels == 1 else shape),
            ("to", (channels * math.prod(sides),)),
            ("to", (1, channels * math.prod(sides))),
            ("to", (n, math.prod(shape) // n) if math.prod(shape) % n == 0 else shape),
            ("flatten all", (channels * math.prod(sides),)),
            ("squeeze all", shape),
        ][: 8 if draw.random() < 0.2 else 6]
    )
    return (Reshaped(operation, new_shape), new_shape) if 0 < len(new_shape) < 4 else (nn.Identity(), shape)


def _ordinary(draw: random.Random, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """Draws a rectifier, a concatenation or an upsampling for samples of `shape`."""
    sides = shape[1:]
    if draw.random() < 0.5 or math.prod(shape) > 64:
        layer = draw.choice([nn.ReLU(), nn.ReLU6(), nn.PReLU(init=draw.choice([-0.5, 0.25, 1.5]))])
        return _wrap(draw, layer, shape, shape)
    if sides and draw.random() < 0.5:
        factors = [draw.choice([1, 2, 3]) for _ in sides]
        up = nn.Upsample(scale_factor=tuple(map(float, factors)))
        return _wrap(draw, up, shape, (shape[0], *(f * s for f, s in zip(factors, sides, strict=True))))
    dim = draw.randrange(len(shape))
    doubled = tuple(2 * size if i == dim else size for i, size in enumerate(shape))
    return Concatenated(_neurons(draw, shape), dim - len(shape)), doubled


def _wrap(
    draw: random.Random, layer: nn.Module, input_shape: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[nn.Module, tuple[int, ...]]:
    style = draw.choice(STYLES)
    return (hb.EachStep(layer) if style == "each" else Wrapped(layer, style, input_shape, shape)), shape


def _normalization(draw: random.Random, kind: Any, channels: int) -> nn.Module:
    """Batch normalization without rounding: the factor is 1 or 2."""
    eps = 2.0**-10  # torch 2.10 refuses 0
    norm: nn.Module = kind(channels, eps=eps, affine=draw.random() < 0.5)
    norm.running_mean.copy_(torch.randint(-2, 3, (channels,)) / 8)
    norm.running_var.fill_(draw.choice([0.25, 1.0]) - eps)
    return norm


def _neurons(draw: random.Random, shape: tuple[int, ...]) -> nn.Module:
    """Neurons with a threshold of a random shape that broadcasts to `shape`."""
    sides = [side if draw.random() < 0.5 else 1 for side in shape[draw.randint(0, len(shape)) :]]
    threshold = torch.randint(1, 8, (*[1] * (len(sides) == len(shape) and draw.random() < 0.3), *sides)) / 8
    if len(shape) == 1 and draw.random() < 0.2:
        return hb.Recurrent(hb.IFCell(threshold), shape[0], nn.Linear(shape[0], shape[0], bias=False))
    return hb.IF(threshold) if draw.random() < 0.6 else hb.LIF(2.0, threshold)


def run(batch: int, count: int, counts: Counts, record: Callable[[Net], None]) -> list[str]:
    """Compares the `count` networks of a batch; calls `record` with each network before it runs."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as onnx_state

    onnx_errors = onnx_state.Fail, onnx_state.InvalidArgument, onnx_state.RuntimeException
    torch.set_num_threads(1)
    findings, programs = list[str](), list[tuple[Net, CProgram, Tensor]]()
    for seed in range(batch * count, (batch + 1) * count):
        net = random_net(seed)
        record(net)
        expected = outputs_of(net.layers, net.example)
        if expected is None:
            counts.invalid += 1
            continue
        try:
            native_outputs = guard.run(net.layers, net.example, [net.example, net.other], seed % 2 == 0)
        except Unsupported:
            counts.refused += 1
            continue
        counts.compared += 1
        expected_other = outputs_of(net.layers, net.other)
        ways = ("native", "native steps", "native, other sizes", "native steps, other sizes")
        results = dict(zip(ways, native_outputs, strict=True))
        try:
            model = to_onnx(net.layers, net.example).SerializeToString()
        except Unsupported:
            counts.refused += 1
        else:
            for name, inputs in (("onnx", net.example), ("onnx, other sizes", net.other)):
                try:
                    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
                    results[name] = torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])
                except onnx_errors as error:
                    findings.append(f"{name} fails: {net}\n{error}")
        try:
            programs.append((net, to_c(net.layers, net.example, name=f"net{seed}"), expected))
        except Unsupported:
            counts.refused += 1
        results |= _through_nir(net)
        if seed % 4 == 0:
            findings += _compare_integers(net)
        for name, result in results.items():
            right = expected_other if name.endswith("sizes") else expected
            if right is None or not torch.equal(result, right):
                findings.append(f"{name} differs: {net}")
    return findings + compare_in_c(programs)


def outputs_of(net: nn.Module, inputs: Tensor) -> Tensor | None:
    """The network's outputs ``[T, batch, ...]``; None if it raises an error or returns something else."""
    try:
        with torch.no_grad():
            outputs: Tensor = net(inputs)
    except (RuntimeError, ValueError, IndexError):
        return None
    return outputs if outputs.shape[:2] == inputs.shape[:2] else None


def _through_nir(net: Net) -> dict[str, Tensor]:
    """Outputs of the network after a round trip through NIR, or {} if NIR cannot represent it."""
    try:
        read_net = hb.nir.read(hb.nir.write(net.layers, input_shape=tuple(net.example.shape[2:])))
    except ValueError:
        return {}
    with torch.no_grad():
        return {"NIR": read_net(net.example), "NIR, other sizes": read_net(net.other)}


def _compare_integers(net: Net) -> list[str]:
    """Compares the quantized network as a native program with PyTorch; returns the findings."""
    try:
        integers, _ = hb.quantize(net.layers, net.example)
    except Unsupported:
        return []
    inputs = integers.integer_input(net.example)
    sequence_outputs, step_outputs = guard.run(integers.net, inputs, [inputs])
    with torch.no_grad():
        expected = integers.net(inputs)
    same = torch.equal(sequence_outputs, expected) and torch.equal(step_outputs, expected)
    return [] if same else [f"integers differ: {net}"]


_MAIN_PROGRAM = """
#include <stdio.h>
{includes}
static double number;
{functions}
int main(void) {{ {calls} return 0; }}
"""
_RUN_FUNCTION = """
static void run_{name}(int samples, int steps) {{
    static {name}_state net;
    static {kind} input[{upper}_INPUTS];
    static {number} output[{upper}_OUTPUTS];
    while (samples-- > 0) {{
        {name}_reset(&net);
        for (int t = 0; t < steps; t++) {{
            for (size_t i = 0; i < {upper}_INPUTS; i++)
                if (scanf("%lf", &number) == 1) input[i] = ({kind})number;
            {name}_step(&net, input);
            {name}_output(&net, output);
            for (size_t i = 0; i < {upper}_OUTPUTS; i++) printf("%a ", (double)output[i]);
        }}
    }}
    printf("\\n");
}}
"""


def compare_in_c(programs: list[tuple[Net, CProgram, Tensor]]) -> list[str]:
    """Compiles all C programs into one executable with sanitizers; returns the networks that differ."""
    if not programs:
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [program.write(folder / f"{program.name}.c")[0] for _, program, _ in programs]
        functions = [
            _RUN_FUNCTION.format(name=p.name, upper=p.name.upper(), kind=p.input, number=p.kind)
            for _, p, _ in programs
        ]
        calls = [f"run_{p.name}({net.example.shape[1]}, {net.example.shape[0]});" for net, p, _ in programs]
        main = folder / "main.c"
        main.write_text(
            _MAIN_PROGRAM.format(
                includes="\n".join(f'#include "{p.name}.h"' for _, p, _ in programs),
                functions="".join(functions),
                calls=" ".join(calls),
            )
        )
        command = ["cc", "-std=c99", "-O0", *SANITIZERS, "-o", folder / "run", *sources, main, "-lm"]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        if compiled.returncode:
            return [f"C does not compile: {compiled.stderr[-1500:]}"]
        numbers = [n for net, *_ in programs for n in net.example.transpose(0, 1).flatten().tolist()]
        result = subprocess.run(
            [folder / "run"], input=" ".join(map(str, numbers)), capture_output=True, text=True, check=False
        )
    lines = result.stdout.splitlines()
    findings = []
    if result.returncode:
        net = programs[min(len(lines), len(programs) - 1)][0]
        findings.append(f"C ends with {result.returncode}: {net}\n{result.stderr[-1500:]}")
    for (net, _, expected), line in zip(programs, lines, strict=False):
        outputs = torch.tensor([float.fromhex(word) for word in line.split()], dtype=torch.float64)
        steps, batch = expected.shape[:2]
        if not torch.equal(
            outputs.view(batch, steps, -1).transpose(0, 1), expected.reshape(steps, batch, -1).double()
        ):
            findings.append(f"C differs: {net}")
    return findings
