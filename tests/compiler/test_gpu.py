"""Triton's backend: when it is used, PyTorch's numbers on CUDA, kernels compiled without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.suite import CELLS, SURROGATES, TRITON, interpreted
from hibana.cells.surrogate import ATan
from hibana.compiler import operator, programs
from hibana.compiler.graph import serial
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.trace import trace

triton = pytest.importorskip("triton")
NATIVE = Path(__file__).parents[1] / "native_kernels.py"


def output_of(code: str, **variables: str) -> str:
    """Returns the output of `code` in a new process."""
    variables = {**os.environ, **variables}
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={k: v for k, v in variables.items() if v},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_the_cpu_is_served_by_the_interpreter_alone() -> None:
    code = (
        "import torch, hibana as hb\n"
        "try: hb.unroll(hb.IFCell(), torch.rand(3, 2), backend='triton')\n"
        "except RuntimeError as error: print(error)"
    )
    assert "only in its interpreter: set TRITON_INTERPRET=1" in output_of(code, TRITON_INTERPRET="")


def test_without_triton_it_says_what_to_install() -> None:
    code = (
        "import sys, torch, hibana as hb\n"
        "sys.modules['triton'] = None\n"
        "try: hb.unroll(hb.IFCell(), torch.rand(3, 2), backend='triton')\n"
        "except RuntimeError as error: print(error)"
    )
    assert "Triton is not installed: pip install '.[gpu]'" in output_of(code)


@interpreted
def test_auto_never_takes_the_interpreter() -> None:
    outputs, _ = hb.unroll(hb.IFCell(), torch.rand(3, 2, requires_grad=True))
    assert type(outputs.grad_fn.specification.kernels).__name__ == "CpuKernels"  # type: ignore[union-attr]


class Quotients(hb.Cell):
    """Divides by a number, and a number by its state."""

    def forward(self, input_, v):
        v = v / 3.0 + input_ / 7
        return (v + 2 / (v.abs() + 1),)


def operations(device: str) -> list[str]:
    step = trace(Quotients(), torch.Size([2]), torch.float32, device)
    return [value.op for value in reachable(step.nexts)]


def test_on_cuda_a_quotient_by_a_number_is_a_product() -> None:
    assert operations("cpu").count("div") == 3
    assert operations("cuda").count("div") == 1
    constants = trace(Quotients(), torch.Size([2]), torch.float32, "cuda").constants
    assert float(torch.tensor(1.0) / 3.0) in constants
    assert 1 / 3 not in constants


def test_on_cuda_a_step_refuses_cpu_tensors_in_its_code() -> None:
    class Loose(hb.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.held = [torch.tensor(0.5)]

        def forward(self, input_, v):
            return (v * self.held[0] + input_,)

    trace(Loose(), torch.Size([2]), torch.float32)
    with pytest.raises(RuntimeError, match="a tensor in the code of the step is on the CPU, not on cuda"):
        trace(Loose(), torch.Size([2]), torch.float32, "cuda")


@interpreted
def test_a_function_that_is_not_pytorchs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from hibana.compiler.triton import kernels, running

    class Grows(hb.Cell):  # no other test compiles a kernel for it
        def forward(self, input_, v):
            return (torch.exp(v) * 0.1 + input_,)

    kernels._compared.cache_clear()
    running.kernel_of.cache_clear()
    library = running._pytorch_functions()
    monkeypatch.setattr(library, "exp", library.tanh)
    try:
        cell = Grows()
        with pytest.raises(RuntimeError, match="Triton's exp differs from PyTorch's"):
            TRITON(cell, torch.rand(3, 5), None)
    finally:
        kernels._compared.cache_clear()
        running.kernel_of.cache_clear()


@interpreted
@pytest.mark.dynamo
def test_torch_compile_uses_the_operator() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = hb.PLIFCell(surrogate=ATan())

        def forward(self, inputs):
            return TRITON(self.cell, inputs, None)[0]

    layer, inputs = Layer(), torch.rand(5, 3, 4)
    torch._dynamo.reset()
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(graph(inputs), layer(inputs))
    grad, expected = (torch.autograd.grad(f(inputs).sum(), layer.cell.w)[0] for f in (graph, layer))
    torch.testing.assert_close(grad, expected)


@interpreted
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own look
def test_opcheck() -> None:
    cell = hb.PLIFCell(surrogate=ATan())
    inputs = torch.rand(4, 2, 3, requires_grad=True)
    kernels = programs.kernels_of(cell, "triton", torch.Size([2, 3]), torch.float32)
    text = serial.write(kernels.step, kernels.plan, torch.float32)
    arguments = (inputs, [], list(cell.parameters()), text, "triton", True)
    torch.library.opcheck(operator._forward, arguments)


@interpreted
def test_explain_shows_the_kernels_of_a_backend() -> None:
    report = hb.explain(hb.IFCell(), backend="triton", code=True)
    assert "backend    triton: one kernel forward and one back" in report
    assert "tl.store(outputs + j" in report


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_without_contraction() -> None:
    process = subprocess.run(
        [sys.executable, str(NATIVE)],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    assert len(report["cells"]) >= 2 * (len(CELLS) + len(SURROGATES))
    assert len(report["functions"]) >= 20
    assert len(report["products"]) == 4
    for name, instructions in {**report["cells"], **report["functions"], **report["products"]}.items():
        assert "div.full.f32" not in instructions, name
        assert "sqrt.approx.f32" not in instructions, name
    for name, instructions in report["cells"].items():
        assert not any(i.startswith("fma") for i in instructions) or report["calls"][name], name
    for name, instructions in report["products"].items():
        assert any(i.startswith("fma") or ".f64" in i for i in instructions), name


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: Triton's interpreter alone was run"
)
def test_auto_takes_triton_on_cuda() -> None:
    outputs, _ = hb.unroll(hb.IFCell().cuda(), torch.rand(3, 2, device="cuda", requires_grad=True))
    assert type(outputs.grad_fn.specification.kernels).__name__ == "GpuKernels"  # type: ignore[union-attr]
    assert hb.Linear(2, 3, device="cuda")(outputs).shape == (3, 3)


@pytest.mark.parametrize("mode", ["auto", "dense", "events"])
def test_a_layer_of_events_multiplies_densely_on_another_device(mode: str) -> None:
    net = nn.Sequential(hb.Linear(8, 4), hb.IF(), hb.Linear(4, 2)).to("meta")
    for layer in (net[0], net[2]):
        layer.mode = mode
    outputs = net(torch.empty(5, 300, 8, device="meta", requires_grad=True))
    assert outputs.shape == (5, 300, 2)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
