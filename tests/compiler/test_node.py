"""The node in C++: the same bits as the node in Python, and all that autograd asks of a node."""

import functools
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hibana as hb
from conformance.suite import CELLS, REPRESENTATIVE, SURROGATES, drive, made, takes
from hibana.cells.surrogate import ATan, Box, Step
from hibana.cli import main
from hibana.compiler import emitted, programs
from hibana.compiler.cpu import kernels as cpu
from hibana.compiler.cpu import node
from hibana.compiler.cpu.row_walk import OUTPUT_OFFSET, PAGE
from hibana.compiler.cpu.walk import ALIASING_FROM

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler"),
    pytest.mark.slow,
]


@functools.cache
def _module(folder: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node, "kept_in", lambda: folder)
        node.built.cache_clear()
        found = node.built()
        if found is None:
            node.build()
            found = node.built()
        node.built.cache_clear()
    return found


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the node is built, once for all who test at a time."""
    return tmp_path_factory.mktemp("node")


@pytest.fixture(autouse=True)
def _built(folder, monkeypatch):
    """Every test of this module runs with the node, and leaves no program that knows of it."""
    found = node.built() or _module(folder)
    monkeypatch.setattr(cpu, "built", lambda: found)
    monkeypatch.setattr(programs, "_SHARED", {})


def in_python(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "built", lambda: None)
    monkeypatch.setattr(programs, "_SHARED", {})


def is_native(outputs: Tensor) -> bool:
    return type(outputs.grad_fn).__module__ == "hibana_node"


def ran(cell: hb.Cell, inputs: Tensor, weight: Tensor, ends: bool = True):
    """Everything a run gives: outputs, last states, the gradient of the inputs, and its node's class."""
    inputs = inputs.clone().requires_grad_()
    outputs, last = emitted(cell, inputs, of_a_layer=not ends)
    loss = (outputs * weight).sum() + sum((0.3 * value).sum() for value in last)
    (grad,) = torch.autograd.grad(loss, inputs)
    return outputs.detach(), [value.detach() for value in last], grad, is_native(outputs)


def runs():
    """Every cell in both dtypes, with a surrogate of each kind that something else is kept for; every
    surrogate once. Both nodes run the same kernels, and bind for them what a plan keeps."""
    for kind in CELLS:
        rest = () if kind.__name__ in REPRESENTATIVE else pytest.mark.exhaustive
        for surrogate in (Step, Box) if takes(kind, "surrogate") else ():
            yield pytest.param(kind, surrogate, torch.float32, marks=rest)
        surrogate = ATan if takes(kind, "surrogate") else None
        yield kind, surrogate, torch.float32
        yield pytest.param(kind, surrogate, torch.float64, marks=rest)
    for surrogate in SURROGATES:
        if surrogate not in (Step, Box, ATan):
            yield pytest.param(hb.IFCell, surrogate, torch.float32, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    ("kind", "surrogate", "dtype"), list(runs()), ids=lambda of: getattr(of, "__name__", str(of))
)
def test_the_numbers_are_those_of_the_node_in_python(kind, surrogate, dtype, monkeypatch):
    make = functools.partial(kind, surrogate=made(surrogate)) if surrogate else kind
    inputs = drive(make(), dtype=dtype)
    weight = torch.randn_like(inputs)
    cell = make()
    native = ran(cell, inputs, weight)
    with torch.no_grad():
        silent = emitted(cell, inputs)
    in_python(monkeypatch)
    other = ran(make(), inputs, weight)
    assert native[3] == (not list(cell.parameters()) and cell.rests_at_zero())
    assert not other[3]
    assert torch.equal(native[0], other[0])
    assert all(map(torch.equal, native[1], other[1]))
    assert torch.equal(native[2], other[2])
    assert torch.equal(silent[0], other[0])
    assert all(map(torch.equal, silent[1], other[1]))


SHAPES = [(1, 3), (1000, 5), (7, 0), (3,), (5, 0, 4), (16, 65536), (33, 40000), (32, 262144)]


@pytest.mark.cover(1)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "through the reset"])
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "no ends"])
def test_every_size_has_the_same_numbers(shape, detach, ends, monkeypatch):
    """Also those so large that they are streamed, run again, and put apart from what is read."""
    if len(shape) == 1 and not ends:
        shape = (*shape, 1)  # a layer's inputs have a batch
    inputs, weight = torch.rand(shape), torch.randn(shape)

    def cell():
        return hb.IFCell(1.0, hb.surrogate.ATan(), detach_reset=detach)

    native = ran(cell(), inputs, weight, ends)
    in_python(monkeypatch)
    other = ran(cell(), inputs, weight, ends)
    assert (native[3], other[3]) == (True, False)
    assert torch.equal(native[0], other[0])
    assert len(native[1]) == len(other[1]) == ends
    assert all(map(torch.equal, native[1], other[1]))
    assert torch.equal(native[2], other[2])


GRADIENTS = {
    "expanded": lambda shape: torch.ones(()).expand(shape),
    "constant over time": lambda shape: torch.randn(shape[1:]).expand(shape),
    "transposed": lambda shape: torch.randn(shape[::-1]).permute(2, 1, 0),
    "every other step": lambda shape: torch.randn(2 * shape[0], *shape[1:])[::2],
    "not contiguous": lambda shape: torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2],
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("shape", [(6, 4, 5), (16, 8, 8192)], ids=str)
def test_gradients_of_any_layout(name, shape, monkeypatch):
    grad = GRADIENTS[name](shape)
    inputs = torch.rand(shape, requires_grad=True)
    outputs, _ = emitted(hb.IFCell(), inputs)
    assert is_native(outputs)
    (native,) = torch.autograd.grad(outputs, inputs, grad)
    in_python(monkeypatch)
    (other,) = torch.autograd.grad(emitted(hb.IFCell(), inputs)[0], inputs, grad)
    assert torch.equal(native, other)


def test_only_the_last_state_gets_a_gradient(monkeypatch):
    inputs = torch.rand(9, 70, requires_grad=True)
    outputs, (v,) = emitted(hb.LIFCell(), inputs)
    assert is_native(outputs)
    (native,) = torch.autograd.grad(v.square().sum(), inputs)
    in_python(monkeypatch)
    (other,) = torch.autograd.grad(emitted(hb.LIFCell(), inputs)[1][0].square().sum(), inputs)
    assert native.count_nonzero() > 0
    assert torch.equal(native, other)


@pytest.mark.parametrize("shape", [(6, 70), (16, 65536)], ids=str)
def test_what_is_kept_is_seen_and_may_be_replaced_by_hooks(shape, monkeypatch):
    def kept(pack):
        seen = []

        def see(tensor):
            seen.append((tuple(tensor.shape), tensor.dtype))
            return pack(tensor)

        inputs = torch.rand(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            outputs, _ = emitted(hb.IFCell(surrogate=hb.surrogate.ATan()), inputs)
        outputs.sum().backward()
        return seen, inputs.grad, is_native(outputs)

    native = kept(torch.clone)
    changed = kept(torch.zeros_like)
    in_python(monkeypatch)
    other = kept(torch.clone)
    assert (native[2], other[2]) == (True, False)
    assert native[0] == other[0]
    assert len(native[0]) > 0
    assert torch.equal(native[1], other[1])
    assert not torch.equal(changed[1], native[1])


def test_the_node_says_how_it_was_run_and_where_a_gradient_can_matter():
    inputs = torch.rand(5, 70, requires_grad=True)
    cell = hb.IFCell(1.0, hb.surrogate.Box(), detach_reset=True)
    emitted(cell, inputs)
    outputs, _ = emitted(cell, inputs)
    seen = outputs.grad_fn
    assert seen.specification is programs.known(cell, hb.compiler.call._key("auto", inputs, True))
    assert seen.specification.program.step.states == ("v_state", "s_state")
    assert seen.support.shape == (5, 9)
    assert seen.support.dtype == torch.uint8
    assert seen.spikes.shape == (5, 9)
    assert seen.spikes is not seen.support
    assert seen.name() == "_RunBackward"
    assert seen.next_functions[0][0].variable is inputs
    outputs.sum().backward()
    assert seen.support is None, "given back with all that was kept"
    assert seen.spikes is None
    bare, _ = emitted(hb.IFCell(surrogate=hb.surrogate.ATan()), inputs)
    assert bare.grad_fn.support is None


def test_backward_twice_needs_what_was_kept():
    inputs = torch.rand(5, 70, requires_grad=True)
    outputs, _ = emitted(hb.IFCell(), inputs)
    assert is_native(outputs)
    (once,) = torch.autograd.grad(outputs.sum(), inputs, retain_graph=True)
    (again,) = torch.autograd.grad(outputs.sum(), inputs)
    assert torch.equal(once, again)
    says = r"(?s)backward through the graph a second time.*detach it between the calls"
    with pytest.raises(RuntimeError, match=says):
        torch.autograd.grad(outputs.sum(), inputs)


def test_a_second_derivative_is_refused_where_it_is_asked_for():
    inputs = torch.rand(5, 70, requires_grad=True)
    weight = torch.rand(5, 70, requires_grad=True)
    outputs, _ = emitted(hb.IFCell(), inputs)
    assert is_native(outputs)
    (grad,) = torch.autograd.grad((outputs * weight).sum(), inputs, create_graph=True)
    plain = (outputs.detach() * weight).sum()
    assert torch.autograd.grad(plain, weight)[0].shape == weight.shape
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(emitted(hb.IFCell(), inputs)[0].sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):  # though another way leads to the inputs
        torch.autograd.grad((grad * inputs).sum(), inputs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own
def test_a_forward_derivative_is_the_loops():
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.rand(5, 7), torch.ones(5, 7))
        outputs, _ = emitted(hb.IFCell(), dual)
        assert torch.autograd.forward_ad.unpack_dual(outputs).tangent is not None


def test_kept_inputs_must_not_be_written_to():
    """A run that goes forward again reads its inputs again."""
    inputs = torch.rand(16, 65536, requires_grad=True)
    copy = inputs.clone()
    outputs, _ = emitted(hb.IFCell(surrogate=hb.surrogate.ATan()), copy)
    assert is_native(outputs)
    assert outputs.grad_fn.specification.plan.reads_input
    with torch.no_grad():
        copy.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


@pytest.mark.parametrize("native", [True, False])
def test_large_outputs_lie_apart_from_what_they_are_computed_from(native, monkeypatch):
    if not native:
        in_python(monkeypatch)
    inputs = torch.rand(8, 8192 + 128, requires_grad=True)
    outputs, _ = emitted(hb.IFCell(), inputs)
    assert is_native(outputs) == native
    weight = torch.rand_like(outputs)
    (grad,) = torch.autograd.grad(outputs, inputs, weight)
    for written, read in ((outputs, inputs), (grad, weight)):
        assert inputs.numel() * inputs.element_size() >= ALIASING_FROM
        assert (written.data_ptr() - read.data_ptr() - OUTPUT_OFFSET) % PAGE < 64
        assert written._base is None
        assert written.is_contiguous()
        assert written.data_ptr() % 64 == 0
    outputs, _ = emitted(hb.IFCell(), inputs)
    outputs.mul_(2.0)  # it is nobody's view
    outputs.sum().backward()
    assert torch.equal(
        inputs.grad[0], torch.autograd.grad(2 * emitted(hb.IFCell(), inputs)[0].sum(), inputs)[0][0]
    )


def test_a_changed_hyper_parameter_is_seen():
    inputs = torch.full((4, 3), 0.6, requires_grad=True)
    cell = hb.IFCell()
    assert emitted(cell, inputs)[0][:, 0].tolist() == [0, 1, 0, 1]
    cell.threshold = 0.5
    outputs, _ = emitted(cell, inputs)
    assert outputs[:, 0].tolist() == [1, 1, 1, 1]
    assert is_native(outputs)


def test_one_thread_gives_the_same_bits():
    inputs, weight = torch.rand(16, 65536), torch.rand(16, 65536)
    cell = hb.IFCell(surrogate=hb.surrogate.ATan())
    several = ran(cell, inputs, weight)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ran(cell, inputs, weight)
    finally:
        torch.set_num_threads(threads)
    assert several[3]
    assert one[3]
    assert torch.equal(several[0], one[0])
    assert torch.equal(several[2], one[2])


def test_nodes_let_go_of_everything_whichever_thread_ends_them():
    cell = hb.IFCell()
    inputs = torch.rand(5, 70, requires_grad=True)
    emitted(cell, inputs)
    outputs, _ = emitted(cell, inputs)
    specification = outputs.grad_fn.specification
    del outputs
    before = sys.getrefcount(specification)
    held = [emitted(cell, inputs)[0] for _ in range(10)]
    assert sys.getrefcount(specification) == before + 10
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert sys.getrefcount(specification) == before


def test_a_deep_graph_ends():
    value = torch.rand(1, 3, requires_grad=True)
    cell = hb.LICell()
    outputs = value
    for _ in range(20000):
        outputs, _ = emitted(cell, outputs)
    assert is_native(outputs)
    del outputs


def test_checkpointing_runs_it_again():
    cell = hb.LIFCell()
    inputs = torch.rand(6, 70, requires_grad=True)
    (plain,) = torch.autograd.grad(emitted(cell, inputs)[0].sum(), inputs)
    again = torch.utils.checkpoint.checkpoint(lambda x: emitted(cell, x)[0], inputs, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.sum(), inputs)[0], plain)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder to keep the node in, and whether it is found there."""
    monkeypatch.setattr(node, "kept_in", lambda: tmp_path)
    node.built.cache_clear()
    yield tmp_path
    node.built.cache_clear()


def test_a_damaged_node_or_one_of_another_source_is_not_loaded(kept, monkeypatch):
    assert node.built() is None
    library = b"not a library"
    whole = kept / node._name_of(library)
    whole.write_bytes(library[:-1])
    node.built.cache_clear()
    assert node.built() is None, "what is in it is not what its name says"
    loaded = []
    monkeypatch.setattr(node, "_loaded", loaded.append)
    whole.write_bytes(library)
    node.built.cache_clear()
    node.built()
    assert loaded == [whole]
    other = kept / "other.cpp"
    other.write_text("// another source")
    monkeypatch.setattr(node, "SOURCE", other)
    node._stem.cache_clear()
    node.built.cache_clear()
    try:
        assert node.built() is None
    finally:
        node._stem.cache_clear()


def test_it_can_be_switched_off(kept, monkeypatch):
    monkeypatch.setattr(node, "_loaded", lambda path: path)
    (kept / node._name_of(b"x")).write_bytes(b"x")
    monkeypatch.setenv("HIBANA_NODE", "off")
    assert node.built() is None
    monkeypatch.setenv("HIBANA_NODE", "")
    node.built.cache_clear()
    assert node.built() is not None


def test_what_keeps_it_from_being_built_is_said(kept, monkeypatch, capfd):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(RuntimeError, match="the C\\+\\+ compiler did not build the node"):
        node.build()
    assert list(kept.iterdir()) == []
    monkeypatch.setattr(node, "kept_in", lambda: None)
    with pytest.raises(RuntimeError, match="no folder to keep the node in"):
        node.build()
    assert main(["build"]) == 2
    assert "hibana build: there is no folder" in capfd.readouterr().err  # torch may log there before


def test_the_command_builds_what_later_processes_find(kept, monkeypatch, capsys):
    def compiled(folder):
        made = folder / "hibana_node.so"
        made.write_bytes(b"a library")
        return made

    monkeypatch.setattr(node, "_compiled", compiled)
    assert main(["build"]) == 0
    (built,) = kept.iterdir()
    assert str(built) in capsys.readouterr().out
    loaded = []
    monkeypatch.setattr(node, "_loaded", loaded.append)
    node.built()
    assert loaded == [built]


@pytest.mark.parametrize("create", [False, True])
def test_a_batch_of_gradients_is_gone_through_one_by_one(create):
    x = torch.rand(5, 3, 8, requires_grad=True)
    outputs = hb.LIF(surrogate=ATan())(x)
    assert type(outputs.grad_fn).__module__ != "torch.autograd.function"
    grads = torch.randn(4, *outputs.shape)
    wanted = torch.stack([torch.autograd.grad(outputs, x, grad, retain_graph=True)[0] for grad in grads])
    (found,) = torch.autograd.grad(
        outputs, x, grads, is_grads_batched=True, retain_graph=True, create_graph=create
    )
    assert torch.equal(found, wanted)
    if create:
        with pytest.raises(RuntimeError, match="twice differentiated"):
            found.sum().backward()
    with pytest.raises(RuntimeError, match="is_grads_batched"):
        torch.vmap(lambda grad: torch.autograd.grad(outputs, x, grad, retain_graph=True)[0])(grads)
