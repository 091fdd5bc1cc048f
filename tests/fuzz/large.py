"""Random layers some of whose sizes are large, beside torch's own: what is counted, divided, and kept near.

Networks of many small layers (:mod:`fuzz.networks`, :mod:`fuzz.deep`) never leave a kernel's first piece.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

import hibana as hb
from fuzz.differ import Counts, Different

__all__ = ["Large", "compare", "large"]

LOGARITHM = 12
"""Of a size, at most; of one in some layers five more."""
NUMBERS = 3e6
"""Of each tensor, at most."""
WORK = 1e8
"""Multiplications, at most."""
PRECISION = 2e-6
"""Of a sum, to the sum of what is added without signs."""
SAFE = 4000
"""Outputs of a convolution at a stride, of more of which torch's backward (2.13) ends the process."""


@dataclass(frozen=True)
class Large:
    """A layer, its sizes and its input."""

    kind: str = "Linear"
    inputs: int = 64
    outputs: int = 16
    rows: int = 32
    """Or images, or steps."""
    height: int = 1
    """Of images; or the batch of a window."""
    width: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = True
    density: float = 0.1
    most: int = 1
    """The largest whole number of the input."""
    few: bool = False
    """Whether the gradient is mostly zero."""
    below: str = "a leaf"
    mode: str = "events"
    threads: int = 2
    seed: int = 0


@st.composite
def large(draw: st.DrawFn) -> Large:
    """A layer that torch has done in moments."""
    kind = draw(st.sampled_from(["Linear", "Conv2d", "Conv2d", "Conv1d", "Window", "MaxPool2d"]))
    exponents = [draw(st.integers(0, LOGARITHM)) for _ in range(5)]
    if draw(st.booleans()):
        exponents[draw(st.integers(0, 4))] += 5
    sizes = [(1 << exponent) + draw(st.integers(-(1 << exponent) // 2, 2)) for exponent in exponents]
    inputs, outputs, rows, height, width = (max(1, size) for size in sizes)
    window = st.tuples(st.sampled_from([1, 2, 3, 3, 5]), st.sampled_from([1, 2, 3, 3, 5, 7]))
    kernel, stride = draw(window), (draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 1, 2, 3])))
    padding = draw(st.integers(0, kernel[0])), draw(st.integers(0, kernel[1]))
    dilation = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 1, 1, 2]))
    if kind == "Linear":
        height = width = 1
        kernel = stride = dilation = 1, 1
        padding = 0, 0
    elif kind == "Conv1d":
        height, stride = 1, (1, stride[1])
        kernel, padding, dilation = (1, kernel[1]), (0, padding[1]), (1, dilation[1])
    elif kind == "Window":
        width, stride, padding = 1, (1, 1), (0, 0)
        kernel, dilation = (kernel[0], 1), (dilation[0], 1)
    found = Large(
        kind,
        *(inputs, outputs, rows, height, width, kernel, stride, padding, dilation),
        bias=draw(st.booleans()),
        density=draw(st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5, 1.0])),
        most=draw(st.sampled_from([1, 1, 1, 3, 15])),
        few=draw(st.booleans()),
        below=draw(st.sampled_from(["a leaf", "a leaf", "nothing", "neurons"])),
        mode=draw(st.sampled_from(["events", "events", "auto"])),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 1000)),
    )
    assume(_fits(found))
    return found


def _fits(of: Large) -> bool:
    """Whether there is an output, nothing is too large, and torch's own layer does it."""
    if of.kind.startswith("Conv") and max(of.stride) > 1 and of.outputs > SAFE:
        return False
    reach = [d * (k - 1) for d, k in zip(of.dilation, of.kernel, strict=True)]
    out = [
        (size + 2 * padding - around - 1) // step + 1
        for size, padding, around, step in zip(
            (of.height, of.width), of.padding, reach, of.stride, strict=True
        )
    ]
    if of.kind == "Window":
        out = [of.height, 1]
    elif of.kind == "MaxPool2d":
        out = [size // window for size, window in zip((of.height, of.width), of.kernel, strict=True)]
    pixels, weights = of.rows * out[0] * out[1], of.inputs * of.outputs * of.kernel[0] * of.kernel[1]
    numbers = of.rows * of.inputs * of.height * of.width, pixels * of.outputs, weights
    return min(out) > 0 and max(numbers) <= NUMBERS and pixels * weights <= WORK


def compare(of: Large, counts: Counts) -> None:
    """Raises :class:`Different` if outputs or gradients are not torch's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(of.threads)
    try:
        _compare(of)
    finally:
        torch.set_num_threads(threads)
    counts.compared += 1


def _compare(of: Large) -> None:
    torch.manual_seed(of.seed)
    layer, dense = _layers(of)
    x = _input(of)
    with torch.no_grad():
        gradient = torch.randn(dense(x).shape)
    if of.few:
        gradient *= torch.rand(gradient.shape) < 0.02
    got = _outcome(of, layer, x, gradient)
    wanted = _outcome(of, dense, x.contiguous(), gradient)  # torch's backward is not safe with channels last
    without_signs = copy.deepcopy(dense).double()
    with torch.no_grad():
        for parameter in without_signs.parameters():
            parameter.abs_()
    scales = _outcome(of, without_signs, x.double(), gradient.double().abs())
    for name, found, right, scale in zip(("output", *_names(of)), got, wanted, scales, strict=True):
        if not bool(((found - right).abs() <= PRECISION * scale.abs().float() + 1e-30).all()):
            most = float(((found - right).abs() / (scale.abs() + 1e-30)).max())
            said = getattr(layer, "explain", str)()
            raise Different(f"{name} differs by {most:.1e} of what is added\n{of}\n{said}")


def _layers(of: Large) -> tuple[nn.Module, nn.Module]:
    how: dict[str, Any] = {"stride": of.stride, "padding": of.padding, "dilation": of.dilation}
    pair: tuple[nn.Module, nn.Module]
    if of.kind == "Linear":
        pair = (
            hb.Linear(of.inputs, of.outputs, bias=of.bias),
            nn.Linear(of.inputs, of.outputs, bias=of.bias),
        )
    elif of.kind == "Conv2d":
        given = of.inputs, of.outputs, of.kernel
        pair = hb.Conv2d(*given, **how, bias=of.bias), nn.Conv2d(*given, **how, bias=of.bias)
    elif of.kind == "Conv1d":
        how = {name: value[1] for name, value in how.items()}
        given_1d = of.inputs, of.outputs, of.kernel[1]
        pair = hb.events.Conv1d(*given_1d, **how, bias=of.bias), nn.Conv1d(*given_1d, **how, bias=of.bias)
    elif of.kind == "Window":
        sizes = of.inputs, of.outputs, of.kernel[0]
        pair = tuple(hb.Window(*sizes, dilation=of.dilation[0], bias=of.bias) for _ in range(2))
        pair[1].mode = "dense"
    else:
        return hb.events.MaxPool2d(of.kernel), nn.MaxPool2d(of.kernel)
    pair[0].load_state_dict(pair[1].state_dict())
    pair[0].mode = of.mode
    return pair


def _input(of: Large) -> Tensor:
    shape: tuple[int, ...] = of.rows, of.inputs
    if of.kind in ("Conv2d", "MaxPool2d"):
        shape = *shape, of.height, of.width
    elif of.kind == "Conv1d":
        shape = *shape, of.width
    elif of.kind == "Window":
        shape = of.rows, of.height, of.inputs
    most = 1 if of.below == "neurons" or of.kind == "MaxPool2d" else of.most
    numbers = ((torch.rand(shape) < of.density) * torch.randint(1, most + 1, shape)).float()
    return numbers.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else numbers


def _outcome(of: Large, layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output, and gradients of the input, if it has one, and of the parameters."""
    given = x.detach().clone(memory_format=torch.preserve_format)
    if of.below != "nothing":
        given.requires_grad_()
    spikes = given
    if of.below == "neurons":  # one step of which spikes are what came in, and the derivative is 1 or 0
        spikes = hb.IF(0.5, hb.surrogate.Box(0.6))(given[None])[0]
    out = layer(spikes)
    if out.requires_grad:
        out.backward(gradient)  # in which alone what nobody sees is left out
    gradients = [each.grad for each in (given, *layer.parameters()) if each.requires_grad]
    return [out.detach(), *(each for each in gradients if each is not None)]


def _names(of: Large) -> list[str]:
    names = ["the input's gradient"] if of.below != "nothing" else []
    if of.kind != "MaxPool2d":
        names += ["the weights' gradient", "the bias's gradient"][: 1 + of.bias]
    return names
