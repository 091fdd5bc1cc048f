"""The compiled loop as an operator: in torch.compile, in exports, and under torch's opcheck."""

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hibana as hb
import hibana.compiler.operator  # otherwise a traced call loads it
from hibana.compiler import programs
from hibana.compiler.graph import serial
from hibana.compiler.tensors import tensors_of

pytestmark = pytest.mark.filterwarnings(
    # Dynamo inspects an autograd function
    "ignore:.*should not be instantiated:DeprecationWarning",
    # torch.library.opcheck reads .grad; torch hides the warning by a filter that "error" overrides
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)


class Matrix(hb.Cell):
    """A step that is not pointwise: the reference loop runs it, compiled or not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.eye(4))

    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (torch.tanh(v @ self.weight + input_),)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 8),
        hb.IF(),
        nn.Linear(8, 4),
        hb.PLIF(surrogate=hb.surrogate.ATan()),
        hb.OverTime(Matrix()),
        hb.LI(),
    )


def gradients(net: nn.Module, inputs: Tensor) -> list[Tensor]:
    net.zero_grad()
    net(inputs).square().sum().backward()
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.dynamo
def test_compile_in_one_graph_equals_eager(dynamic: bool) -> None:
    net = network()
    compiled_net = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for steps, batch in ((5, 2), (7, 3)):
        inputs = 3 * torch.rand(steps, batch, 3)
        torch.testing.assert_close(compiled_net(inputs), net(inputs), rtol=0, atol=0)
        expected = gradients(net, inputs)
        for grad, expected_grad in zip(gradients(compiled_net, inputs), expected, strict=True):
            torch.testing.assert_close(grad, expected_grad)


@pytest.mark.dynamo
def test_compiled_inference_keeps_nothing() -> None:
    net = network().eval()
    compiled_net = torch.compile(net, fullgraph=True, backend="aot_eager")
    inputs = 3 * torch.rand(5, 2, 3)
    with torch.no_grad():
        assert torch.equal(compiled_net(inputs), net(inputs))


@pytest.mark.dynamo
def test_a_changed_hyper_parameter_is_used_by_a_compiled_graph() -> None:
    layer = hb.IF(threshold=1.0)
    compiled_net = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = torch.full([4, 2], 0.6)
    before = compiled_net(inputs)
    layer.cell.threshold = 0.5
    assert torch.equal(compiled_net(inputs), layer(inputs))
    assert not torch.equal(compiled_net(inputs), before)


def test_export_goes_through_the_operator() -> None:
    net = nn.Sequential(nn.Linear(3, 8), hb.LIF(), nn.Linear(8, 2), hb.LI()).eval()
    inputs = 3 * torch.rand(5, 2, 3)
    exported = torch.export.export(net, (inputs,))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count("hibana.unroll.default") == 2
    assert torch.equal(exported.module()(inputs), net(inputs))


CELLS = {
    "if": lambda: hb.IFCell(),
    "lif with a time constant per neuron": lambda: hb.LIFCell(
        nn.Parameter(torch.tensor([2.0, 3.0, 4.0])), surrogate=hb.surrogate.ATan()
    ),
    "plif": lambda: hb.PLIFCell(surrogate=hb.surrogate.Triangle()),
    "izhikevich": lambda: hb.IzhikevichCell(surrogate=hb.surrogate.ATan()),
}


def as_text(cell: hb.Cell, backend: str = "cpu") -> str:
    """The step of `cell` for inputs [T, 2, 3], as the text that a graph stores."""
    kernels = programs.kernels_of(cell, backend, torch.Size([2, 3]), torch.float32)
    return serial.write(kernels.step, kernels.plan, torch.float32)


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("with_state", [False, True])
def test_opcheck(name: str, with_state: bool) -> None:
    cell = CELLS[name]()
    inputs = torch.rand(4, 2, 3, requires_grad=True)
    first = [torch.rand(2, 3, requires_grad=True) for _ in cell.state_names()] if with_state else []
    cell_tensors = list(cell.parameters())
    torch.library.opcheck(torch.ops.hibana.unroll, (inputs, first, cell_tensors, as_text(cell), "cpu", True))


def test_opcheck_at_a_size_whose_eager_outputs_have_an_offset() -> None:
    cell = hb.IFCell(surrogate=hb.surrogate.ATan())
    inputs = torch.rand(8, 8200, requires_grad=True)
    outputs, _ = hb.unroll(cell, inputs)
    assert outputs.untyped_storage().nbytes() > outputs.nbytes
    torch.library.opcheck(torch.ops.hibana.unroll, (inputs, [], [], as_text(cell), "cpu", True))


class UserCell(hb.Cell):
    """A user-defined cell with a literal tensor, a mean of a tensor, and several dtypes."""

    def __init__(self, slope: float = 2.0) -> None:
        super().__init__()
        self.slope = slope
        self.decay = nn.Parameter(torch.tensor([0.5, 0.7, 0.9]))
        self.scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def forward(self, input_: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        decay = torch.sigmoid(self.decay) * self.scale.to(torch.float32).mean()
        v = decay * v * (1 - s) + input_ * torch.tensor(0.3) + -0.0
        return v, hb.surrogate.FastSigmoid(self.slope)(v - 1)


@pytest.mark.parametrize("make", [*CELLS.values(), UserCell], ids=[*CELLS, "user cell"])
def test_reading_a_serialized_step_restores_it(make: type[hb.Cell]) -> None:
    cell = make()
    text = as_text(cell)
    step, plan, dtype = serial.read(text)
    assert serial.write(step, plan, dtype) == text
    assert serial.write(*serial.read(as_text(copy.deepcopy(cell)))) == text
    inputs = 3 * torch.rand(4, 2, 3, requires_grad=True)
    cell_tensors = list(tensors_of(cell).values())
    state = cell.initial_state(inputs[0].detach())
    outputs, *_ = torch.ops.hibana.unroll(inputs, state, cell_tensors, text, "cpu", True)
    expected, _ = hb.unroll(cell, inputs, backend="reference")
    assert torch.equal(outputs, expected)
    sources = [inputs, *cell.parameters()]
    grads = torch.autograd.grad(outputs.square().sum(), sources)
    for gradient, target in zip(grads, torch.autograd.grad(expected.square().sum(), sources), strict=True):
        torch.testing.assert_close(gradient, target)


def test_different_cells_are_serialized_differently() -> None:
    texts = [
        as_text(cell)
        for cell in (
            hb.IFCell(),
            hb.IFCell(threshold=0.5),
            hb.IFCell(detach_reset=True),
            hb.IFCell(surrogate=hb.surrogate.ATan()),
            hb.IFCell(surrogate=hb.surrogate.ATan(3.0)),
            hb.LIFCell(),
            UserCell(),
            UserCell(3.0),
        )
    ]
    assert len(set(texts)) == len(texts)


_GLOBAL = torch.tensor(0.5)


class WithGlobalTensor(hb.Cell):
    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (v * _GLOBAL + input_,)


@pytest.mark.dynamo
def test_a_step_with_a_global_tensor_is_not_serialized_but_compiles() -> None:
    with pytest.raises(hb.compiler.graph.ops.Unsupported, match="takes from elsewhere"):
        as_text(WithGlobalTensor())
    layer, inputs = hb.OverTime(WithGlobalTensor()), torch.rand(4, 2, 3)
    compiled_layer = torch.compile(layer, fullgraph=True, backend="aot_eager")
    try:
        for value in (0.5, 0.25):
            _GLOBAL.fill_(value)
            torch.testing.assert_close(compiled_layer(inputs), layer(inputs), rtol=0, atol=0)
    finally:
        _GLOBAL.fill_(0.5)


@dataclasses.dataclass
class Gain:
    """A callable setting whose value changes between calls."""

    value: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.value * x


def enclosed(values: list[float]) -> Callable[[Tensor], Tensor]:
    return lambda x: values[0] * x


class Gained(hb.Cell):
    def __init__(self, gain: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (0.5 * v + self.gain(input_),)


@pytest.mark.dynamo
def test_a_compiled_graph_uses_a_changed_nested_setting() -> None:
    gain, values = Gain(1.0), [1.0]
    inputs = torch.rand(4, 2)
    for function in (gain, enclosed(values)):
        layer = hb.OverTime(Gained(function))
        torch._dynamo.reset()
        compiled_layer = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for value in (1.0, 2.0, 5.0, 9.0):
            gain.value = values[0] = value
            expected, _ = hb.unroll(layer.cell, inputs, backend="reference")
            torch.testing.assert_close(compiled_layer(inputs), expected)


FACTOR = 1.0


class ClassAttribute(hb.Cell):
    factor = 1.0

    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (0.5 * v + self.factor * input_,)


class GlobalNumber(hb.Cell):
    def forward(self, input_: Tensor, v: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (0.5 * v + FACTOR * input_,)


@pytest.mark.parametrize("kind", [ClassAttribute, GlobalNumber])
def test_a_compiled_graph_uses_a_changed_number_outside_of_the_cell(
    kind: type[hb.Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell: hb.Cell = kind()
    monkeypatch.setattr("hibana.compiler.operator.warn_slow", lambda *_: None)
    monkeypatch.setattr(ClassAttribute, "factor", 1.0)
    compiled_layer = torch.compile(hb.OverTime(cell), backend="eager")
    for value in (1.0, 2.0, 5.0, 9.0):
        monkeypatch.setitem(globals(), "FACTOR", value)
        ClassAttribute.factor = value
        inputs = torch.rand(4, 2)
        expected, _ = hb.unroll(cell, inputs, backend="reference")
        torch.testing.assert_close(compiled_layer(inputs), expected)


@pytest.mark.parametrize("text", ["cell0", "{}", "[]", '{"hibana step": "0.0.0", "facts": []}'])
def test_other_texts_than_steps_of_this_version_are_refused(text: str) -> None:
    with pytest.raises(
        RuntimeError, match=r"no step that hibana wrote|written by hibana 0\.0\.0.*convert\.export"
    ):
        torch.ops.hibana.unroll(torch.ones(3, 1), [], [], text, "cpu", False)


def test_another_dtype_than_the_serialized_one_is_refused() -> None:
    text = as_text(hb.IFCell())
    with pytest.raises(RuntimeError, match=r"written down for torch\.float32, got inputs of torch\.float64"):
        torch.ops.hibana.unroll(torch.ones(3, 1, dtype=torch.float64), [], [], text, "cpu", False)


def output_of(script: str, *arguments: str, **environment: str) -> str:
    """Returns the output of `script` in a new process."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=3600,  # a machine may be busy
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


NETWORK = """
import sys, torch, hibana as hb
class A(hb.Cell):
    def forward(self, input_, v_previous):
        return (0.5 * v_previous + input_,)
class B(hb.Cell):
    def forward(self, input_, v_previous):
        return (0.5 * v_previous + input_ * input_,)
layer = {"A": lambda: hb.OverTime(A()), "B": lambda: hb.OverTime(B()), "IF": hb.IF}[sys.argv[1]]()
x = 0.2 * torch.arange(1.0, 9.0).view(4, 2)
x.requires_grad_()
def numbers(run):
    outputs = run(x)
    return [outputs.detach(), *torch.autograd.grad(outputs.sum(), x)]
"""


@pytest.mark.slow
def test_a_shared_cache_distinguishes_cells_of_the_same_class(tmp_path: Path) -> None:
    script = f"""{NETWORK}
compiled = torch.compile(layer, fullgraph=True)
expected = numbers(lambda x: hb.unroll(layer.cell, x, backend="reference")[0])
for result, target in zip(numbers(compiled), expected):
    torch.testing.assert_close(result, target)
print(torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"])
"""
    shared = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    cache_hits = [int(output_of(script, name, **shared)) > 0 for name in ("A", "B", "A")]
    assert cache_hits == [False, False, True]


def test_a_saved_program_holds_its_step(tmp_path: Path) -> None:
    class A(hb.Cell):
        def forward(self, input_: Tensor, v_previous: Tensor) -> tuple[Tensor]:  # type: ignore[override]
            return (0.5 * v_previous + input_,)

    path, layer, x = str(tmp_path / "net.pt2"), hb.OverTime(A()), 0.2 * torch.arange(1.0, 9.0).view(4, 2)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
    assert "hibana.unroll.default" in [str(node.target) for node in program.graph.nodes]
    torch.export.save(program, path)
    load = f"""{NETWORK}
program = torch.export.load({path!r}).module()
with torch.no_grad():
    print(program(x.detach()).tolist())
"""
    assert output_of(load, "IF").strip() == str(layer(x).tolist())
