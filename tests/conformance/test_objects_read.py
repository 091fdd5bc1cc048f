"""Every kind of object that a step can read is followed or refused, so that no change is missed."""

import abc
import builtins
import collections
import contextvars
import dataclasses
import enum
import functools
import logging
import math
import operator
import random
import sys
import threading
import time
import types
import warnings
from math import copysign
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import hibana as hb
from conformance.suite import CELLS, SURROGATES, build
from hibana.compiler.graph.dependencies import Dependencies
from hibana.compiler.graph.ops import Unsupported

INPUTS = torch.linspace(0.1, 1.7, 24).reshape(6, 4)
SLOPE = 0.5
TABLE = {"slope": 0.5}
WEIGHT = torch.tensor(0.5)
VARIABLE = contextvars.ContextVar("VARIABLE", default=0.5)
CONFIG = types.ModuleType("config")
CONFIG.slope = 0.5
sys.modules["config_of_a_test"] = CONFIG


class Scaled(hb.Cell):
    """Scales its state by a number that `read` returns for an object."""

    def __init__(self, held, read):
        super().__init__()
        self.held = held
        self.read = read

    def forward(self, input_, v_previous):
        return (v_previous * self.read(self.held) + input_,)


def value_of(held):
    return held.value


def first_of(held):
    return float(held[0])


def slope_of(held):
    return held.slope


class Holder:
    def __init__(self, value):
        self.value = value

    def read(self):
        return self.value


class WithClassAttribute:
    slope = 0.5


class WithProperty:
    def __init__(self):
        self._inner = [0.5]

    @property
    def slope(self):
        return self._inner[0]


class ReadsAnyName:
    def __init__(self):
        self.data = {"slope": 0.5}

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class Slots:
    __slots__ = ("slope",)

    def __init__(self, slope):
        self.slope = slope


class ReadsGlobal:
    @property
    def slope(self):
        return SLOPE


class Pair(NamedTuple):
    slope: Any
    other: int = 0


class Mode(enum.Enum):
    SLOW = 0.5
    FAST = 0.25


@dataclasses.dataclass
class Numbers:
    slope: float


class Descriptor:
    def __init__(self):
        self.slope = 0.5

    def __get__(self, instance, owner):
        return self.slope


class Described:
    slope = Descriptor()


def with_attribute():
    return with_attribute.slope


def with_default(slope=0.5):
    return slope


def with_keyword(*, slope=0.5):
    return slope


def of_global():
    return SLOPE


def of_global_by_another():
    return of_global()


def of_table():
    return TABLE["slope"]


def of_module():
    return CONFIG.slope


def of_import():
    import config_of_a_test

    return config_of_a_test.slope


def of_globals():
    return globals()["SLOPE"]


def of_weight():
    return WEIGHT


def closure():
    slope = 0.5

    def read():
        return slope

    def change():
        nonlocal slope
        slope = 0.25

    return read, change


def generator():
    slope = [0.5]

    def numbers():
        while True:
            yield slope[0]

    return numbers(), lambda: slope.insert(0, 0.25)


def set_attribute(held, name="slope", value=0.25):
    return lambda: setattr(held, name, value)


def set_global(name, value=0.25):
    return lambda: globals().__setitem__(name, value)


def called(held):
    return held()


def kind(held, read=slope_of, change=None):
    return held, read, set_attribute(held) if change is None else lambda: change(held)


def reading(function, change):
    return function, called, change


def with_slope(held):
    held.slope = 0.5
    return held


def variable_of_closure():
    return reading(*closure())


def bound_method():
    held = Holder(0.5)
    return held.read, called, set_attribute(held, "value")


def decorated():
    holder = Holder(0.5)

    @torch.no_grad()
    def read():
        return holder.value

    return reading(read, set_attribute(holder, "value"))


def replaced_code():
    def read():
        return 0.5

    def other():
        return 0.25

    return reading(read, lambda: setattr(read, "__code__", other.__code__))


class WithSlope:
    slope = 0.5


class WithAnother:
    slope = 0.25


class OwnModule(types.ModuleType):
    def __getattr__(self, name):
        return TABLE[name]


def of_builtins():
    return slope_of_builtins  # noqa: F821 - see below


class OtherSlope:
    slope = 0.25


def with_other_bases():
    class Derived(WithSlope):
        pass

    return kind(Derived(), slope_of, lambda _: setattr(Derived, "__bases__", (OtherSlope,)))


class Matched:
    __match_args__ = ("slope", "other")

    def __init__(self):
        self.slope, self.other = 0.5, 0.25


def matched(held):
    match held:
        case Matched(slope):
            return slope


def of_absolute():
    return abs(-0.5)


class Abstract(abc.ABC):
    @abc.abstractmethod
    def read(self): ...


def of_isinstance():
    return 0.25 if isinstance(CONFIG, Abstract) else 0.5


def made_by_exec():
    variables = {}
    exec("class Made:\n    slope = 0.5", variables)
    kind = variables["Made"]
    assert kind.__module__ == "builtins"
    return kind


def sign_of(held):
    return 0.25 + copysign(0.125, held[0].imag)


FOLLOWED = {
    "a class that is registered with another": lambda: reading(
        of_isinstance, lambda: Abstract.register(types.ModuleType)
    ),
    "a class that is made by exec": lambda: kind(
        made_by_exec()(), slope_of, lambda held: setattr(type(held), "slope", 0.25)
    ),
    "the sign of a zero in a complex number": lambda: kind(
        [complex(1, 0.0)], sign_of, lambda held: held.__setitem__(0, complex(1, -0.0))
    ),
    "a complex NaN": lambda: kind(
        [complex(0, math.nan)], sign_of, lambda held: held.__setitem__(0, complex(0, -math.nan))
    ),
    "a variable of a module of torch": lambda: reading(
        lambda: torch._tensor_str.PRINT_OPTS.edgeitems / 8, lambda: torch.set_printoptions(edgeitems=2)
    ),
    "a variable of a module of torch, by another name": lambda: kind(
        torch,
        lambda held: held._tensor_str.PRINT_OPTS.edgeitems / 8,
        lambda _: torch.set_printoptions(edgeitems=2),
    ),
    "the bases of a class": with_other_bases,
    "a built-in function": lambda: reading(
        of_absolute, set_attribute(builtins, "abs", lambda x, true=abs: 0.25 if x == -0.5 else true(x))
    ),
    "a list": lambda: kind([0.5], first_of, lambda held: held.insert(0, 0.25)),
    "a dict": lambda: kind({"a": 0.5}, lambda held: held["a"], lambda held: held.update(a=0.25)),
    "a set": lambda: kind({0.5}, lambda held: next(iter(held)), lambda held: (held.clear(), held.add(0.25))),
    "a named tuple": lambda: kind(
        Pair([0.5]), lambda held: held.slope[0], lambda held: held[0].insert(0, 0.25)
    ),
    "an attribute of a function": lambda: reading(with_slope(with_attribute), set_attribute(with_attribute)),
    "a default": lambda: reading(with_default, lambda: setattr(with_default, "__defaults__", (0.25,))),
    "a default by keyword": lambda: reading(
        with_keyword, lambda: with_keyword.__kwdefaults__.update(slope=0.25)
    ),
    "the code of a function": replaced_code,
    "a variable of a closure": variable_of_closure,
    "a partial": lambda: reading(
        functools.partial(first_of, listed := [0.5]), lambda: listed.insert(0, 0.25)
    ),
    "a bound method": bound_method,
    "a function that torch decorates": decorated,
    "a global number": lambda: reading(of_global, set_global("SLOPE")),
    "a global number, through another function": lambda: reading(of_global_by_another, set_global("SLOPE")),
    "a global dictionary": lambda: reading(of_table, lambda: TABLE.update(slope=0.25)),
    "a global tensor": lambda: reading(of_weight, set_global("WEIGHT", torch.tensor(0.25))),
    "a global tensor's value": lambda: reading(of_weight, lambda: WEIGHT.fill_(0.25)),
    "a global function": lambda: reading(of_global_by_another, set_global("of_global", lambda: 0.25)),
    "a module's attribute": lambda: reading(of_module, set_attribute(CONFIG)),
    "an attribute of the object's class": lambda: kind(
        WithClassAttribute(), slope_of, lambda _: setattr(WithClassAttribute, "slope", 0.25)
    ),
    "an attribute of a class": lambda: kind(WithClassAttribute),
    "a property": lambda: kind(WithProperty(), slope_of, lambda held: held._inner.insert(0, 0.25)),
    "a global that a property reads": lambda: kind(ReadsGlobal(), slope_of, lambda _: set_global("SLOPE")()),
    "a descriptor": lambda: kind(
        Described(), slope_of, lambda _: setattr(vars(Described)["slope"], "slope", 0.25)
    ),
    "attributes by __getattr__": lambda: kind(
        ReadsAnyName(), slope_of, lambda held: held.data.update(slope=0.25)
    ),
    "the class of an object": lambda: kind(
        WithSlope(), slope_of, lambda held: setattr(held, "__class__", WithAnother)
    ),
    "a built-in name": lambda: reading(of_builtins, set_attribute(builtins, "slope_of_builtins")),
    "a dataclass": lambda: kind(Numbers(0.5)),
    "a member of an enum, in a list": lambda: kind(
        [Mode.SLOW], lambda held: held[0].value, lambda held: held.insert(0, Mode.FAST)
    ),
    "a number of NumPy, in a list": lambda: kind(
        [np.float32(0.5)], first_of, lambda held: held.insert(0, np.float32(0.25))
    ),
}


def set_flag(owner, name):
    return lambda: setattr(owner, name, not getattr(owner, name))


REFUSED = {
    "whether algorithms are deterministic": lambda: reading(
        lambda: 0.5 / (1 + torch.are_deterministic_algorithms_enabled()),
        lambda: torch.use_deterministic_algorithms(True),
    ),
    "the precision of products": lambda: reading(
        lambda: 0.5 if torch.get_float32_matmul_precision() == "highest" else 0.25,
        lambda: torch.set_float32_matmul_precision("high"),
    ),
    "autocast": lambda: reading(
        lambda: 0.5 / (1 + torch.is_autocast_cpu_enabled()), lambda: torch.set_autocast_enabled("cpu", True)
    ),
    "a flag of a backend of torch": lambda: reading(
        lambda: 0.5 / (1 + torch.backends.mkldnn.enabled), set_flag(torch.backends.mkldnn, "enabled")
    ),
    "a flag of a part of a backend": lambda: reading(
        lambda: 0.5 / (1 + torch.backends.cuda.matmul.allow_tf32),
        set_flag(torch.backends.cuda.matmul, "allow_tf32"),
    ),
    "whether processes are grouped": lambda: reading(
        lambda: 0.5 / (1 + torch.distributed.is_initialized()), lambda: None
    ),
    "a function of torch, by another name of the module": lambda: kind(
        torch, lambda held: 0.5 / (1 + held.is_warn_always_enabled()), lambda _: torch.set_warn_always(True)
    ),
    "the attributes that a pattern matches": lambda: kind(
        Matched(), matched, lambda _: setattr(Matched, "__match_args__", ("other", "slope"))
    ),
    "the global variables of a function": lambda: kind(
        of_global, lambda held: held.__globals__["SLOPE"], lambda _: set_global("SLOPE")()
    ),
    "a deque": lambda: kind(collections.deque([0.5]), first_of, lambda held: held.appendleft(0.25)),
    "a method in C": lambda: reading(
        functools.partial((table := {"a": 0.5}).get, "a"), lambda: table.update(a=0.25)
    ),
    "a module that the step imports": lambda: reading(of_import, set_attribute(CONFIG)),
    "slots": lambda: kind(Slots(0.5)),
    "a subclass of modules": lambda: kind(OwnModule("own"), slope_of, lambda _: TABLE.update(slope=0.25)),
    "an array": lambda: kind(np.array([0.5]), first_of, lambda held: held.fill(0.25)),
    "the settings of NumPy": lambda: reading(
        lambda: len(np.geterr()["over"]) / 8, functools.partial(np.seterr, over="ignore")
    ),
    "globals()": lambda: reading(of_globals, set_global("SLOPE")),
    "a generator of random numbers": lambda: kind(
        random.Random(0), lambda held: held.getstate()[1][0] / 2**33, lambda held: held.seed(5)
    ),
    "a lock": lambda: kind(
        threading.Lock(), lambda held: 0.25 if held.locked() else 0.5, lambda held: held.acquire()
    ),
    "the clock": lambda: reading(lambda: 0.25 + 0.5 * (time.time() < START + 2), lambda: None),
    "a getter of attributes": lambda: reading(
        functools.partial(operator.attrgetter("slope"), (held := Numbers(0.5))), set_attribute(held)
    ),
    "a tensor of a subclass": lambda: kind(
        [torch.zeros(()).as_subclass(Subclass)],
        lambda held: held[0].slope,
        lambda _: setattr(Subclass, "slope", 0.25),
    ),
}
START = time.time()


class Subclass(torch.Tensor):
    slope = 0.5


@pytest.fixture(autouse=True)
def _settings_stay():
    tf32, mkldnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.mkldnn.enabled
    with np.errstate():
        yield
    torch.set_printoptions(profile="default")
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.set_autocast_enabled("cpu", False)
    torch.set_warn_always(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.mkldnn.enabled = tf32, mkldnn


def restore_after(monkeypatch):
    for name in ("SLOPE", "WEIGHT", "of_global"):
        monkeypatch.setitem(globals(), name, globals()[name])
    monkeypatch.setattr(with_default, "__defaults__", (0.5,))
    monkeypatch.setitem(with_keyword.__kwdefaults__, "slope", 0.5)
    monkeypatch.setitem(TABLE, "slope", 0.5)
    monkeypatch.setattr(CONFIG, "slope", 0.5)
    monkeypatch.setattr(WithClassAttribute, "slope", 0.5)
    monkeypatch.setattr(ReadsGlobal, "slope", vars(ReadsGlobal)["slope"])
    monkeypatch.setitem(globals(), "WEIGHT", torch.tensor(0.5))
    monkeypatch.setattr(builtins, "abs", abs)
    monkeypatch.setattr(Matched, "__match_args__", ("slope", "other"))
    monkeypatch.setattr(builtins, "slope_of_builtins", 0.5, raising=False)


def compare_backends(cell):
    results = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for backend in ("auto", "reference"):
            inputs = INPUTS.clone().requires_grad_()
            outputs, _ = hb.unroll(cell, inputs, backend=backend)
            results.append((outputs.detach(), *torch.autograd.grad(outputs.sum(), inputs)))
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)
    return results[0][0], [warning for warning in caught if issubclass(warning.category, hb.SlowPathWarning)]


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_object_that_is_followed(name, monkeypatch):
    restore_after(monkeypatch)
    held, read, change = FOLLOWED[name]()
    cell = Scaled(held, read)
    before, warned = compare_backends(cell)
    assert not warned
    assert "reference loop" not in hb.explain(cell)
    assert torch.equal(compare_backends(cell)[0], before)
    change()
    after, warned = compare_backends(cell)
    assert not warned
    assert not torch.equal(after, before)
    assert torch.equal(compare_backends(Scaled(held, read))[0], after)


@pytest.mark.parametrize("name", REFUSED)
def test_an_object_that_is_refused(name, monkeypatch):
    restore_after(monkeypatch)
    held, read, change = REFUSED[name]()
    cell = Scaled(held, read)
    reason = r"the step may (read|call) .*(can change unseen|can give another result|make it a tensor)"
    with pytest.raises(Unsupported, match=reason):
        hb.unroll(cell, INPUTS, backend="cpu")
    assert "reference loop, because the step may " in hb.explain(cell)
    monkeypatch.setattr("hibana.compiler.checks._WARNED", set())
    _, warned = compare_backends(cell)
    assert len(warned) == 1
    change()
    _, warned = compare_backends(cell)
    assert not warned


def test_a_global_that_a_formula_reads_is_followed(monkeypatch):
    cell = hb.IFCell(surrogate=hb.surrogate.Formula(lambda x: SLOPE / (1 + x.abs())))
    grads = []
    for slope in (0.5, 0.25):
        monkeypatch.setitem(globals(), "SLOPE", slope)
        _, warned = compare_backends(cell)
        assert not warned
        inputs = INPUTS.clone().requires_grad_()
        grads += torch.autograd.grad(hb.unroll(cell, inputs)[0].sum(), inputs)
    assert not torch.equal(*grads)


class Learned(hb.Cell):
    """Reads a parameter or another tensor without an operation of torch."""

    def __init__(self, read):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5]))
        self.loose = [torch.tensor([0.5])]
        self.read = read

    def forward(self, input_, v_previous):
        return (v_previous * self.read(self) + input_,)


def change_tensors(cell):
    with torch.no_grad():
        cell.weight.mul_(0.5)
        cell.loose[0].mul_(0.5)
    cell.loose[0].grad = torch.ones(1)


TENSORS = {
    "a parameter's numpy": lambda cell: float(cell.weight.detach().numpy()[0]),
    "a parameter's tolist": lambda cell: cell.weight.tolist()[0],
    "a parameter as text": lambda cell: float(repr(cell.weight.data)[8:-2]),
    "a loose tensor's tolist": lambda cell: cell.loose[0].tolist()[0],
    "an array made of a tensor": lambda cell: float(np.asarray(cell.loose[0])[0]),
    "a gradient": lambda cell: 0.5 if cell.loose[0].grad is None else 0.25,
    "a version": lambda cell: 1 / (2 + cell.loose[0]._version),
    "whether it was made in inference mode": lambda cell: 0.5 / (1 + cell.loose[0].is_inference()),
    "the tensor of a view": lambda cell: 0.5 if cell.loose[0]._base is None else 0.25,
    "whether gradients are recorded": lambda cell: 0.5 * torch.is_grad_enabled() * cell.loose[0],
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_read_by_no_operation_is_refused(name):
    cell = Learned(TENSORS[name])
    with pytest.raises(Unsupported, match=r"the step looks at|the step may call"):
        hb.unroll(cell, INPUTS, backend="cpu")
    for _ in range(2):
        compare_backends(cell)
        change_tensors(cell)


class MakesTensor(hb.Cell):
    def forward(self, input_, v_previous):
        return (torch.tensor(0.1) * v_previous + input_,)


def test_a_changed_default_dtype_is_followed():
    cells = [MakesTensor(), MakesTensor()]
    inputs = INPUTS.double()
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            for cell in (*cells, MakesTensor()):
                expected, _ = hb.unroll(cell, inputs, backend="reference")
                for _ in range(2):
                    assert torch.equal(hb.unroll(cell, inputs, backend="cpu")[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)


class NamedLikeAFunction(hb.Cell):
    def __init__(self):
        super().__init__()
        self.seed = self.compile = 0.5

    def forward(self, input_, v_previous):
        with torch.no_grad():
            scale = torch.ones_like(input_, device=torch.device("cpu")) * self.seed
        return (torch.nn.functional.relu(v_previous) * scale + torch.ops.aten.relu(input_) * self.compile,)


def test_an_attribute_may_have_the_name_of_a_function_of_torch_that_reads_a_state():
    hb.unroll(NamedLikeAFunction(), INPUTS, backend="cpu")


class WithUnread(hb.Cell):
    """A cell with an attribute that its step does not read."""

    def __init__(self, unread):
        super().__init__()
        self.unread = unread
        self.decay = 0.5

    def forward(self, input_, v_previous):
        return (v_previous * self.decay + input_,)

    def report(self):
        return self.unread


UNREAD = {
    "a lock": threading.Lock,
    "a logger": lambda: logging.getLogger("hibana"),
    "an optimiser": lambda: torch.optim.Adam([torch.zeros(1, requires_grad=True)]),
    "a generator": lambda: torch.Generator(),
    "a large array": lambda: np.zeros(100_000),
    "an iterator": lambda: iter([1.0]),
    "a context variable": lambda: VARIABLE,
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", UNREAD)
@pytest.mark.parametrize("kind", [WithUnread, hb.LIFCell])
def test_unread_objects_are_not_refused(name, kind):
    cell = kind() if kind is hb.LIFCell else kind(UNREAD[name]())
    cell.unread = UNREAD[name]()
    hb.unroll(cell, INPUTS, backend="cpu")
    assert cell._hibana.dependencies.cache, "nothing was remembered"
    _, warned = compare_backends(cell)
    assert not warned


def test_all_attributes_count_if_the_step_computes_a_name():
    class Computes(WithUnread):
        def forward(self, input_, v_previous):
            return (v_previous * getattr(self, "dec" + "ay") + input_,)

    hb.unroll(Computes(0.5), INPUTS, backend="cpu")
    with pytest.raises(Unsupported, match=r"the step may read self\.unread, of type _thread\.lock"):
        hb.unroll(Computes(threading.Lock()), INPUTS, backend="cpu")


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate_is_followed(surrogate):
    assert Dependencies(hb.IFCell(surrogate=build(surrogate))).refusal == ""


@pytest.mark.parametrize("kind", CELLS)
def test_every_cell_of_the_package_is_followed_and_costs_a_call_nothing(kind):
    dependencies = Dependencies(kind())
    assert dependencies.refusal == ""
    assert dependencies.watched == []
    assert dependencies.variables == []
