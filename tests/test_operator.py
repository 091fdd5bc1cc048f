"""The compiled loop as an operator: compiled, exported, checked by torch itself."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import hibana as hb
import hibana.loop.operator  # what a traced call would load

pytestmark = pytest.mark.filterwarnings(
    # Dynamo's own way of looking at an autograd function
    "ignore:.*should not be instantiated:DeprecationWarning"
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
def test_compile_in_one_graph_equals_eager(dynamic: bool) -> None:
    net = network()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for steps, batch in ((5, 2), (7, 3)):
        inputs = 3 * torch.rand(steps, batch, 3)
        torch.testing.assert_close(compiled(inputs), net(inputs), rtol=0, atol=0)
        expected = gradients(net, inputs)
        for found, wanted in zip(gradients(compiled, inputs), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_compiled_inference_keeps_nothing() -> None:
    net = network().eval()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    inputs = 3 * torch.rand(5, 2, 3)
    with torch.no_grad():
        assert torch.equal(compiled(inputs), net(inputs))


def test_a_changed_hyper_parameter_is_used_by_a_compiled_graph() -> None:
    layer = hb.IF(threshold=1.0)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = torch.full([4, 2], 0.6)
    before = compiled(inputs)
    layer.cell.threshold = 0.5
    assert torch.equal(compiled(inputs), layer(inputs))
    assert not torch.equal(compiled(inputs), before)


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


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("begun", [False, True])
def test_opcheck(name: str, begun: bool) -> None:
    cell = CELLS[name]()
    inputs = torch.rand(4, 2, 3, requires_grad=True)
    first = [torch.rand(2, 3, requires_grad=True) for _ in cell.states] if begun else []
    held = list(cell.parameters())
    torch.library.opcheck(torch.ops.hibana.unroll, (inputs, first, held, cell.key, "cpu", True))


def test_opcheck_where_eager_outputs_would_begin_later_than_their_memory() -> None:
    cell = hb.IFCell(surrogate=hb.surrogate.ATan())
    inputs = torch.rand(8, 8200, requires_grad=True)
    assert hb.unroll(cell, inputs)[0].storage_offset() > 0
    torch.library.opcheck(torch.ops.hibana.unroll, (inputs, [], [], cell.key, "cpu", True))


def test_a_copy_of_a_cell_is_a_cell_of_its_own() -> None:
    cell = hb.IFCell(threshold=0.5)
    for other in (copy.deepcopy(cell), copy.copy(cell), pickle.loads(pickle.dumps(cell))):
        assert other.key != cell.key
        other.threshold = 2.0
        inputs = torch.ones(3, 1, requires_grad=True)
        outputs, *_ = torch.ops.hibana.unroll(inputs, [], [], cell.key, "cpu", True)
        assert outputs.sum() == 3


def test_a_cell_that_is_gone_is_named() -> None:
    with pytest.raises(KeyError, match="no living cell"):
        torch.ops.hibana.unroll(torch.ones(3, 1), [], [], "cell-none", "cpu", False)
