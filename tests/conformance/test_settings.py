"""A changed hyper-parameter is used, however it is nested; equal cells share a program."""

import copy
import functools
import gc
import pickle

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.compare import assert_same_gradients, assert_same_values, reference
from conformance.suite import CPU, each_backend
from hibana.cells.surrogate import ATan, Formula
from hibana.compiler import programs
from hibana.compiler.graph.dependencies import dependencies_of

INPUTS = torch.linspace(0.1, 1.7, 24).reshape(6, 4)


def auto(cell, inputs, state):
    return hb.unroll(cell, inputs, state)


class Scaled(hb.Cell):
    """Calls `apply` with `held` and the state."""

    def __init__(self, held, apply):
        super().__init__()
        self.held = held
        self.apply = apply

    def forward(self, input_, v_previous):
        return (self.apply(self.held, v_previous) + input_,)


class Factor:
    def __init__(self, factor):
        self.factor = factor

    def times(self, x):
        return x * self.factor


def times(x, factor):
    return x * factor


def by_call(held, x):
    return held(x)


def test_functions_that_differ_in_their_constants_are_distinguished():
    for make in (
        lambda factor: functools.partial(times, factor=factor),
        lambda factor: Factor(factor).times,
        lambda factor: lambda x: x * factor,
        lambda factor: lambda x, by=factor: x * by,
    ):
        for factor in (0.5, 0.25):
            assert_same_values(auto, Scaled(make(factor), by_call), INPUTS)


def test_a_formula_at_the_address_of_a_deleted_one_is_distinguished():
    for factor in range(1, 9):  # the allocator reuses the address of the deleted one
        cell = hb.IFCell(surrogate=Formula(eval(f"lambda x: {factor}.5 / (1 + x * x)")))
        assert_same_gradients(auto, cell, INPUTS, None, "outputs only")
        del cell
        gc.collect()


def test_a_changed_attribute_is_used():
    cell = hb.LIFCell(surrogate=ATan())
    others = {"tau": 5.0, "threshold": 0.5, "reset": "subtract", "detach_reset": True, "surrogate": ATan(3.0)}
    for name, value in others.items():
        assert_same_gradients(auto, cell, INPUTS, None, "outputs and states")
        setattr(cell, name, value)
        assert_same_gradients(auto, cell, INPUTS, None, "outputs and states")


def test_setting_an_attribute_to_its_value_keeps_the_cached_dependencies():
    cell = hb.LIFCell()
    auto(cell, INPUTS, None)
    before = dependencies_of(cell)
    cell.train(cell.training)  # as in a loop that calls `net.train()` at each step
    cell.surrogate = cell.surrogate
    assert dependencies_of(cell) is before
    cell.eval()
    assert dependencies_of(cell) is not before


class WithClassAttribute(hb.Cell):
    factor = 0.5

    def forward(self, input_, v_previous):
        return (v_previous * self.factor + input_,)


def test_the_class_attribute_is_used_after_deleting_the_instances():
    cell = WithClassAttribute()
    cell.factor = 0.25
    assert_same_values(CPU, cell, INPUTS)
    del cell.factor
    assert_same_values(CPU, cell, INPUTS)


def test_a_cell_in_training_may_differ_from_one_in_evaluation():
    class Noisy(hb.Cell):
        def forward(self, input_, v_previous):
            return (0.5 * v_previous + (2.0 * input_ if self.training else input_),)

    cell = Noisy()
    assert_same_values(CPU, cell, INPUTS)
    cell.eval()
    assert_same_values(CPU, cell, INPUTS)


def test_hooks_on_a_cell_run_at_each_step():
    cell = hb.IFCell()
    auto(cell, INPUTS, None)
    calls = []
    handle = cell.register_forward_hook(lambda *_: calls.append(1))
    auto(cell, INPUTS, None)
    assert len(calls) == len(INPUTS)
    with pytest.raises(RuntimeError, match="hooks on IFCell are to run at each step"):
        hb.unroll(cell, INPUTS, backend="cpu")
    handle.remove()
    hb.unroll(cell, INPUTS, backend="cpu")


GLOBAL_HOOKS = (
    nn.modules.module.register_module_forward_pre_hook,
    nn.modules.module.register_module_forward_hook,
    nn.modules.module.register_module_full_backward_pre_hook,
    nn.modules.module.register_module_full_backward_hook,
)


@pytest.mark.parametrize("register", GLOBAL_HOOKS)
@pytest.mark.parametrize("cell", [hb.IFCell(), hb.PLIFCell()], ids=["bare", "with a parameter"])
def test_hooks_on_all_modules_run_at_each_step(register, cell):
    auto(cell, INPUTS, None)
    calls = []
    handle = register(lambda module, *_: calls.append(module))
    try:
        auto(cell, INPUTS.clone().requires_grad_(), None)[0].sum().backward()
        assert calls == [cell] * len(INPUTS)
        with pytest.raises(RuntimeError, match=r"hooks on \w+ are to run at each step"):
            hb.unroll(cell, INPUTS, backend="cpu")
    finally:
        handle.remove()
    hb.unroll(cell, INPUTS, backend="cpu")


def test_a_cell_that_holds_itself_is_compiled():
    cell = Scaled(Factor(0.5).times, by_call)
    cell.around = [cell, {"again": cell}]
    assert_same_values(CPU, cell, INPUTS)


def program(cell, shape=(4,), dtype=torch.float32, backend="cpu"):
    return programs.kernels_of(cell, backend, torch.Size(shape), dtype)


def test_equal_cells_share_a_program():
    assert program(hb.LIFCell(3.0)) is program(hb.LIFCell(3.0))
    assert program(hb.LIFCell(3.0)) is not program(hb.LIFCell(4.0))
    assert program(hb.LIFCell(3.0)) is program(hb.LIFCell(3.0), (9,))
    assert program(hb.IFCell()) is program(copy.deepcopy(hb.IFCell()))
    assert program(hb.IFCell()) is program(pickle.loads(pickle.dumps(hb.IFCell())))
    assert program(hb.IFCell()) is program(hb.IFCell(), (700,))
    assert program(hb.IFCell()) is not program(hb.IFCell(), dtype=torch.float64)
    first, second = (hb.IFCell(threshold=torch.full([4], value)) for value in (0.5, 0.9))
    assert program(first) is program(second)
    assert_same_values(auto, first, INPUTS)
    assert_same_values(auto, second, INPUTS)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cell: pickle.loads(pickle.dumps(cell))])
def test_copies_are_independent(copied):
    for cell in (hb.LIFCell(3.0), hb.PLIFCell(3.0), hb.IFCell(nn.Parameter(torch.full([4], 0.7)))):
        expected, _ = auto(cell, INPUTS, None)
        other = copied(cell)
        assert torch.equal(auto(other, INPUTS, None)[0], expected)
        for parameter in other.parameters():
            parameter.data.add_(0.4)
        if not list(other.parameters()):
            other.threshold = 0.4
        assert not torch.equal(auto(other, INPUTS, None)[0], expected)
        assert_same_values(auto, other, INPUTS)
        assert torch.equal(auto(cell, INPUTS, None)[0], expected)


def test_states_share_no_memory_with_the_outputs():
    for inputs in (INPUTS, INPUTS.bfloat16()):
        outputs, state = auto(hb.IFCell(), inputs, None)
        expected = [value.clone() for value in reference(hb.IFCell(), inputs, None)[1]]
        outputs.fill_(7)
        for value, other in zip(state, expected, strict=True):
            assert torch.equal(value, other)
            assert value.untyped_storage().nbytes() == value.numel() * 4


def test_a_frozen_parameter_is_distinguished_from_a_buffer():
    def cells():
        buffer, frozen = hb.LIFCell(torch.tensor(3.0)), hb.LIFCell(nn.Parameter(torch.tensor(3.0)))
        frozen.requires_grad_(False)
        frozen.load_state_dict({"tau": torch.tensor(-1.0)})
        return buffer, frozen

    for cell in (*cells(), *reversed(cells())):
        assert_same_values(auto, cell, INPUTS)


@each_backend
def test_another_value_of_a_number_uses_the_same_source(run):
    one, other = (program(c, backend=run.name) for c in (hb.LIFCell(3.0), hb.LIFCell(4.0, threshold=0.7)))
    assert one is not other
    for direction in ("forward", "backward"):
        assert other.source(direction) == one.source(direction)


def leaking(held, v):
    """Multiplies `v` by a leak per neuron, or by one for all."""
    return v * torch.sigmoid(held)


def _replace(cell, leak):
    cell._parameters["held"] = nn.Parameter(leak)


REPLACEMENTS = {
    "written in place": lambda cell: cell.held.data.fill_(-1.0),
    "one for each neuron, unseen": lambda cell: _replace(cell, torch.linspace(-1, 1, 4)),
    "one for all, unseen": lambda cell: _replace(cell, torch.tensor([2.0])),
    "frozen": lambda cell: cell.held.requires_grad_(False),
    "learned again": lambda cell: cell.held.requires_grad_(True),
    "a buffer, unseen": lambda cell: cell._buffers.update(held=cell._parameters.pop("held").detach()),
    "a parameter again": lambda cell: setattr(cell, "held", nn.Parameter(torch.tensor([0.3]))),
}


@each_backend
def test_replaced_tensors_are_used(run):
    cell = Scaled(nn.Parameter(torch.tensor([0.5])), leaking)
    for name, replace in REPLACEMENTS.items():
        replace(cell)
        for _ in range(2):
            results = []
            for call in (run, reference):
                x = INPUTS.clone().requires_grad_()
                outputs, _ = call(cell, x, None)
                sources = [x, *(p for p in cell.parameters() if p.requires_grad)]
                results.append([outputs, *torch.autograd.grad((outputs**2).sum(), sources)])
            for result, expected in zip(*results, strict=True):
                torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5, msg=name)


def test_functional_call_uses_the_substituted_parameters():
    layer = hb.OverTime(Scaled(nn.Parameter(torch.tensor([0.5])), leaking))
    others = [torch.tensor([0.5]), torch.linspace(-1, 1, 4), torch.tensor([-2.0]), torch.linspace(1, 2, 4)]
    for leak in (*others, *others):
        expected, _ = reference(Scaled(leak, leaking), INPUTS, None)
        assert torch.equal(torch.func.functional_call(layer, {"cell.held": leak}, (INPUTS,)), expected)
        assert torch.equal(layer(INPUTS), reference(layer.cell, INPUTS, None)[0])


class Times(nn.Module):
    """Multiplies its input by a learned number."""

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor([number]))

    def forward(self, x):
        return self.number * x


class Both(hb.Cell):
    """Applies two modules, or two parameters, to the potential and to the input."""

    def __init__(self, leak, weight):
        super().__init__()
        self.leak = leak
        self.weight = weight

    def forward(self, input_, v_previous):
        if isinstance(self.leak, nn.Module):
            return (self.leak(v_previous) + self.weight(input_),)
        return (self.leak * v_previous + self.weight * input_,)


@each_backend
@pytest.mark.parametrize("make", [Times, lambda number: nn.Parameter(torch.tensor([number]))])
@pytest.mark.parametrize("first", ["one", "two"])
def test_one_shared_tensor_is_distinguished_from_two_equal_ones(run, make, first):
    one = make(0.5)
    cells = {"one": Both(one, one), "two": Both(make(0.5), make(2.0))}
    for name in (first, *cells, *cells):
        assert_same_values(run, cells[name], INPUTS)
        assert_same_gradients(run, cells[name], INPUTS, None, "outputs and states")
