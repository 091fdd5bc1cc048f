"""Cells are torch modules: created on any device, copied, saved, loaded and sharded."""

import copy
import math
import pickle

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

import hibana as hb
from conformance.suite import CELLS, drive, few, takes
from hibana.cells.surrogate import ATan

SHAPE = (8, 2, 5)
VALUES = {"tau": 3.0, "threshold": 0.9, "tau_synapse": 2.5, "tau_adaptation": 20.0}
every_cell = pytest.mark.parametrize("kind", CELLS)
few_cells = pytest.mark.parametrize("kind", few(CELLS))


def smooth(kind, **settings):
    return kind(**({"surrogate": ATan()} if takes(kind, "surrogate") else {}), **settings)


def with_parameters(kind):
    """A cell of `kind` for five neurons; its time constants and threshold are parameters per neuron."""
    able = [name for name in VALUES if takes(kind, name) and not (kind is hb.PLIFCell and name == "tau")]
    scale = 30.0 if kind is hb.IzhikevichCell else 1.0
    return smooth(
        kind,
        **{n: nn.Parameter(VALUES[n] * (scale if n == "threshold" else 1) * torch.ones(5)) for n in able},
    )


@few_cells
def test_a_cell_created_on_the_meta_device_can_be_filled_later(kind):
    for make in (lambda: kind(), lambda: with_parameters(kind)):
        cell = make()
        with torch.device("meta"):
            empty = make()
        assert all(tensor.is_meta for tensor in empty.state_dict().values())
        filled = empty.to_empty(device="cpu")
        filled.load_state_dict(cell.state_dict())
        inputs = drive(cell, SHAPE)
        assert torch.equal(hb.OverTime(filled)(inputs), hb.OverTime(cell)(inputs))


@every_cell
def test_a_layer_can_be_created_in_fake_tensor_mode(kind):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        hb.OverTime(kind())
        hb.OverTime(with_parameters(kind))


@every_cell
def test_a_cell_created_on_the_meta_device_runs_there(kind):
    with torch.device("meta"):
        layer = hb.OverTime(with_parameters(kind))
        assert layer(torch.rand(SHAPE)).shape == SHAPE


def test_parameters_can_be_reset_after_to_empty():
    with torch.device("meta"):
        cell = hb.PLIFCell(tau=4.0)
    cell.to_empty(device="cpu")
    cell.reset_parameters()
    assert torch.equal(cell.w, hb.PLIFCell(tau=4.0).w)


@pytest.mark.cover(1)
@every_cell
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_no_number(kind, dtype):
    expected = kind()
    inputs = drive(expected, SHAPE)
    torch.set_default_dtype(dtype)
    try:
        cell = kind()
        cell.load_state_dict(expected.state_dict())
        cell.float()
        for backend in ("auto", "reference"):
            outputs, _ = hb.unroll(cell, inputs, backend=backend)
            assert outputs.dtype == torch.float32
            assert torch.equal(outputs, hb.unroll(expected, inputs, backend="reference")[0])
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def process_group(tmp_path):
    """Creates a distributed group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@few_cells
def test_a_network_of_each_cell_is_sharded(kind, process_group):
    for make in (lambda: smooth(kind), lambda: with_parameters(kind)):
        net = nn.Sequential(nn.Linear(5, 5), hb.OverTime(make()))
        twin = copy.deepcopy(net)
        inputs = 100 * torch.rand(SHAPE)
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        fully_shard(net, mesh=mesh)
        outputs = net(inputs)
        assert torch.equal(outputs, twin(inputs))
        outputs.sum().backward()
        twin(inputs).sum().backward()
        for sharded, plain in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(sharded.grad.full_tensor(), plain.grad)


def test_a_sharded_time_constant_stays_in_its_range(process_group):
    net = nn.Sequential(nn.Linear(5, 5), hb.LI(tau=nn.Parameter(torch.full([5], 1.1))))
    twin = copy.deepcopy(net)
    fully_shard(net, mesh=distributed.device_mesh.init_device_mesh("cpu", (1,)))
    inputs = torch.rand(SHAPE)
    for value in (-0.5, 1.7):
        with torch.no_grad():
            net[1].cell.tau.fill_(value)
            dict(twin[1].cell.named_parameters())["tau"].fill_(value)
        for _ in range(2):
            net.zero_grad(), twin.zero_grad()
            outputs, expected = net(inputs), twin(inputs)
            assert torch.equal(outputs, expected)
            outputs.sum().backward(), expected.sum().backward()
            for sharded, plain in zip(net.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(sharded.grad.full_tensor(), plain.grad)


def test_a_checkpoint_of_a_scalar_time_constant_loads():
    cell = hb.PLIFCell(tau=4.0)
    layer = hb.PLIF(tau=2.0)
    layer.load_state_dict({"cell.w": torch.tensor(-math.log(3.0))})
    assert torch.equal(layer.cell.w, cell.w)
    assert layer.cell.w.shape == (1,)


def test_one_time_constant_serves_steps_without_dimensions():
    outputs, (v, _) = hb.unroll(hb.PLIFCell(), torch.rand(4))
    assert outputs.shape == (4,)
    assert v.shape == ()


@every_cell
def test_a_cell_is_pickled_under_its_public_module(kind):
    assert kind.__module__ == "hibana.cells"
    assert b"hibana.cells\n" in pickle.dumps(kind, protocol=0)
    assert pickle.loads(f"chibana.cells\n{kind.__name__}\n.".encode()) is kind


@pytest.mark.parametrize("kind", [hb.IFCell, hb.LIFCell, hb.IzhikevichCell, hb.ALIFCell])
@pytest.mark.parametrize("place", ["object", "class"])
@pytest.mark.parametrize("layer", [hb.OverTime, lambda cell: hb.Recurrent(cell, 4)])
def test_an_initial_state_of_the_object_or_of_a_subclass_is_used(kind, place, layer):
    torch.manual_seed(0)
    cell, inputs = type("Own", (kind,), {})(), torch.rand(5, 3, 4)
    net = layer(cell)
    net(inputs)

    def initial_state(input_):
        return tuple(torch.full_like(input_, 0.25) for _ in kind.state_names())

    if place == "object":
        cell.initial_state = initial_state
    else:
        type(cell).initial_state = lambda self, input_: initial_state(input_)
        net = layer(cell := type(cell)())
    out, last = hb.run(net, inputs)
    expected, expected_last = hb.run(net, inputs, {"": initial_state(inputs[0])})
    assert torch.equal(out, expected)
    assert all(map(torch.equal, last[""], expected_last[""]))
