"""Compares random layers of large sizes with torch's layers.

Large layers are computed in several tiles; those of :mod:`fuzz.networks` and :mod:`fuzz.deep` fit into one.
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

MAX_LOG2_SIZE = 12
"""Base-2 logarithm of the largest size; in half of the layers one size has an exponent up to five larger."""
MAX_ELEMENTS = 3e6
"""Largest number of elements of a tensor."""
MAX_MULTIPLICATIONS = 1e8
"""Largest number of multiplications."""
PRECISION = 2e-6
"""Largest error of a sum relative to the sum of the absolute values of its terms."""
MAX_STRIDED_OUTPUTS = 4000
"""With more output channels, torch 2.13's backward of a strided convolution crashes."""


@dataclass(frozen=True)
class Large:
    """A random case: a layer, its sizes and its input."""

    kind: str = "Linear"
    inputs: int = 64
    outputs: int = 16
    rows: int = 32
    """Rows of a linear layer, images of a convolution or pooling, steps of a window."""
    height: int = 1
    """Height of the images, or batch of a window."""
    width: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = True
    density: float = 0.1
    largest_input: int = 1
    """Largest number of the input, whose numbers are integers."""
    has_sparse_gradient: bool = False
    """Whether the output's gradient is mostly zero."""
    source: str = "a leaf"
    mode: str = "events"
    threads: int = 2
    seed: int = 0


@st.composite
def large(draw: st.DrawFn) -> Large:
    """Draws a layer that torch computes quickly."""
    kind = draw(st.sampled_from(["Linear", "Conv2d", "Conv2d", "Conv1d", "Window", "MaxPool2d"]))
    exponents = [draw(st.integers(0, MAX_LOG2_SIZE)) for _ in range(5)]
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
    case = Large(
        kind,
        *(inputs, outputs, rows, height, width, kernel, stride, padding, dilation),
        bias=draw(st.booleans()),
        density=draw(st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5, 1.0])),
        largest_input=draw(st.sampled_from([1, 1, 1, 3, 15])),
        has_sparse_gradient=draw(st.booleans()),
        source=draw(st.sampled_from(["a leaf", "a leaf", "nothing", "neurons"])),
        mode=draw(st.sampled_from(["events", "events", "auto"])),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 1000)),
    )
    assume(_fits(case))
    return case


def _fits(case: Large) -> bool:
    """Whether the output is not empty, no tensor is too large, and torch's layer does not crash."""
    if case.kind.startswith("Conv") and max(case.stride) > 1 and case.outputs > MAX_STRIDED_OUTPUTS:
        return False
    kernel_extents = [d * (k - 1) for d, k in zip(case.dilation, case.kernel, strict=True)]
    out = [
        (size + 2 * padding - extent - 1) // step + 1
        for size, padding, extent, step in zip(
            (case.height, case.width), case.padding, kernel_extents, case.stride, strict=True
        )
    ]
    if case.kind == "Window":
        out = [case.height, 1]
    elif case.kind == "MaxPool2d":
        out = [size // window for size, window in zip((case.height, case.width), case.kernel, strict=True)]
    pixels = case.rows * out[0] * out[1]
    weights = case.inputs * case.outputs * case.kernel[0] * case.kernel[1]
    numbers = case.rows * case.inputs * case.height * case.width, pixels * case.outputs, weights
    return min(out) > 0 and max(numbers) <= MAX_ELEMENTS and pixels * weights <= MAX_MULTIPLICATIONS


def compare(case: Large, counts: Counts) -> None:
    """Raises :class:`Different` if outputs or gradients differ from those of torch's layer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        _compare(case)
    finally:
        torch.set_num_threads(threads)
    counts.compared += 1


def _compare(case: Large) -> None:
    torch.manual_seed(case.seed)
    layer, dense = _layers(case)
    x = _input(case)
    with torch.no_grad():
        gradient = torch.randn(dense(x).shape)
    if case.has_sparse_gradient:
        gradient *= torch.rand(gradient.shape) < 0.02
    actual = _outcome(case, layer, x, gradient)
    # torch's backward may crash with channels last
    expected = _outcome(case, dense, x.contiguous(), gradient)
    absolute_layer = copy.deepcopy(dense).double()
    with torch.no_grad():
        for parameter in absolute_layer.parameters():
            parameter.abs_()
    scales = _outcome(case, absolute_layer, x.double(), gradient.double().abs())
    for name, value, right, scale in zip(("output", *_names(case)), actual, expected, scales, strict=True):
        error = (value - right).abs()
        if not bool((error <= PRECISION * scale.abs().float() + 1e-30).all()):
            ratio = float((error / (scale.abs() + 1e-30)).max())
            explanation = getattr(layer, "explain", str)()
            raise Different(f"{name} differs by {ratio:.1e} of its absolute terms\n{case}\n{explanation}")


def _layers(case: Large) -> tuple[nn.Module, nn.Module]:
    sizes: dict[str, Any] = {"kernel_size": case.kernel, "stride": case.stride, "padding": case.padding}
    sizes["dilation"] = case.dilation
    ends, bias = (case.inputs, case.outputs), case.bias
    pair: tuple[nn.Module, nn.Module]
    if case.kind == "Linear":
        pair = hb.Linear(*ends, bias=bias), nn.Linear(*ends, bias=bias)
    elif case.kind == "Conv2d":
        pair = hb.Conv2d(*ends, **sizes, bias=bias), nn.Conv2d(*ends, **sizes, bias=bias)
    elif case.kind == "Conv1d":
        sizes = {name: value[1] for name, value in sizes.items()}
        pair = hb.events.Conv1d(*ends, **sizes, bias=bias), nn.Conv1d(*ends, **sizes, bias=bias)
    elif case.kind == "Window":
        windows = [hb.Window(*ends, case.kernel[0], dilation=case.dilation[0], bias=bias) for _ in range(2)]
        pair = windows[0], windows[1]
        pair[1].mode = "dense"
    else:
        return hb.events.MaxPool2d(case.kernel), nn.MaxPool2d(case.kernel)
    pair[0].load_state_dict(pair[1].state_dict())
    pair[0].mode = case.mode
    return pair


def _input(case: Large) -> Tensor:
    shape: tuple[int, ...] = case.rows, case.inputs
    if case.kind in ("Conv2d", "MaxPool2d"):
        shape = *shape, case.height, case.width
    elif case.kind == "Conv1d":
        shape = *shape, case.width
    elif case.kind == "Window":
        shape = case.rows, case.height, case.inputs
    largest = 1 if case.source == "neurons" or case.kind == "MaxPool2d" else case.largest_input
    numbers = ((torch.rand(shape) < case.density) * torch.randint(1, largest + 1, shape)).float()
    return numbers.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else numbers


def _outcome(case: Large, layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output, the gradient of the input if it is a leaf, and the gradients of the parameters."""
    leaf = x.detach().clone(memory_format=torch.preserve_format)
    if case.source != "nothing":
        leaf.requires_grad_()
    spikes = leaf
    if case.source == "neurons":  # one step with spikes equal to the input and a derivative of 1 or 0
        spikes = hb.IF(0.5, hb.surrogate.Box(0.6))(leaf[None])[0]
    out = layer(spikes)
    if out.requires_grad:
        out.backward(gradient)  # only `backward` skips unneeded parts of the gradient
    gradients = [tensor.grad for tensor in (leaf, *layer.parameters()) if tensor.requires_grad]
    return [out.detach(), *(tensor for tensor in gradients if tensor is not None)]


def _names(case: Large) -> list[str]:
    names = ["the input's gradient"] if case.source != "nothing" else []
    if case.kind != "MaxPool2d":
        names += ["the weights' gradient", "the bias's gradient"][: 1 + case.bias]
    return names
