"""The top-level names of hibana, and the errors for mistaken names, arguments and cells."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hibana as hb
from hibana import cells

LAYERS = [name.removesuffix("Cell") for name in cells.__all__ if name.endswith("Cell") and name != "Cell"]
LAZY = ["data", "demo", "metrics", "nir", "plot", "train"]


def run_script(code):
    """Returns the output of `code` in a new process."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.slow
def test_a_module_is_loaded_on_access_and_names_the_missing_extra():
    code = (
        "import sys, hibana as hb; hb.Recurrent(hb.LIFCell(), 2)\n"
        "assert 'hibana.spikes' not in sys.modules  # the kernels of spikes\n"
        f"print({LAZY} == [n for n in {LAZY} if n in dir(hb)],"
        f"[n for n in {LAZY} if 'hibana.' + n in sys.modules], hb.metrics.FiringRate.__name__)\n"
        "assert 'hibana.plot' not in sys.modules; sys.modules['matplotlib'] = None\n"
        "try: hb.plot\nexcept AttributeError as error: print(error)\nprint(hasattr(hb, 'plot'))"
    )
    loaded, message, available = run_script(code).splitlines()
    assert loaded == "True [] FiringRate"
    assert "hibana.plot needs matplotlib" in message
    assert "pip install '.[train]'" in message
    assert available == "False"


def test_every_name_in_all_exists():
    for name in hb.__all__:
        assert getattr(hb, name) is not None


@pytest.mark.parametrize("name", LAYERS)
def test_a_cell_and_its_layer_are_public_and_on_the_page_of_the_api(name):
    assert {name, f"{name}Cell"} <= {*hb.__all__}
    page = (Path(__file__).parents[2] / "docs" / "api" / "hibana.md").read_text(encoding="utf-8")
    assert f"::: hibana.{name}Cell\n" in page
    assert f"`{name}`" in page


@pytest.mark.parametrize("name", LAYERS)
def test_the_docstring_of_a_layer_has_its_equations_and_arguments(name):
    layer, cell = getattr(hb, name), getattr(hb, f"{name}Cell")
    text = inspect.getdoc(layer)
    assert inspect.getdoc(cell).partition("\n\n")[2].partition("\n\n")[0] in text
    assert ">>>" not in text
    arguments = text.partition("Args:")[2].partition("Source:")[0]
    for argument in inspect.signature(layer).parameters:
        assert f"    {argument}: " in arguments, argument


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "LI"])
def test_a_surrogate_is_named_by_a_string(name):
    assert getattr(hb, name)(surrogate="atan").cell.surrogate == hb.surrogate.ATan()


@pytest.mark.parametrize("layer", [hb.IF(), hb.Recurrent(hb.LIFCell(), 3), hb.Delay(1.0)], ids=repr)
@pytest.mark.parametrize("name", ["reset_mem", "reset", "init_leaky", "set_step_mode", "reset_net"])
def test_the_reset_functions_of_other_libraries_raise_an_error_with_the_fix(layer, name):
    for owner in (layer, hb):
        with pytest.raises(AttributeError, match=rf"{name}.*every call starts at rest; .*use hb\.run\("):
            getattr(owner, name)
        assert not hasattr(owner, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'other'$"):
        getattr(layer, "oth" + "er")
    setattr(layer, name, torch.nn.Identity())
    assert isinstance(getattr(layer, name), torch.nn.Identity)
    delattr(layer, name)


MISSPELT = {
    "Lif": (lambda: hb.Lif, "module 'hibana' has no attribute 'Lif'; did you mean 'LIF'"),
    "Atan": (lambda: hb.surrogate.Atan, "'hibana.surrogate' has no attribute 'Atan'; did you mean 'ATan'"),
    "rates": (lambda: hb.loss.rates, "'hibana.loss' has no attribute 'rates'; did you mean 'Rate'"),
    "to_onx": (
        lambda: hb.convert.to_onx,
        "'hibana.convert' has no attribute 'to_onx'; did you mean 'to_onnx'",
    ),
    "Tabel": (lambda: hb.data.Tabel, "'hibana.data' has no attribute 'Tabel'; did you mean 'Table'"),
    "Setings": (lambda: hb.train.Setings, "'hibana.train' has no .* 'Setings'; did you mean 'Settings'"),
    "qqq": (lambda: hb.qqq, "module 'hibana' has no attribute 'qqq'$"),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_the_error_of_a_misspelt_name_suggests_the_most_similar_one(name):
    read, message = MISSPELT[name]
    with pytest.raises(AttributeError, match=message):
        read()


MISTAKEN_CALLS = {
    "a size": (lambda: hb.IF(16), "is its threshold, not a number of neurons"),
    "a decay": (lambda: hb.LIF(beta=0.9), "hibana's is tau, in time steps"),
    "a threshold": (lambda: hb.LIFCell(v_threshold=1.0), "hibana's is threshold"),
    "a synapse": (lambda: hb.CubaLIF(alpha=0.9), "hibana's is tau_synapse"),
    "a gradient": (lambda: hb.IF(spike_grad=None), "hibana's is surrogate, such as 'ATan'"),
    "a reset": (lambda: hb.PLIF(v_reset=None), "hibana's is reset, a potential"),
    "a length": (lambda: hb.QIF(num_steps=10), "time is the first axis of the input"),
    "a mode": (lambda: hb.IF(step_mode="m"), "always takes a whole sequence"),
    "a readout": (lambda: hb.LI(beta=0.9), "hibana's is tau, in time steps"),
    "time": (lambda: hb.LIF(batch_first=True), "time is the first axis of the input"),
    "arguments": (lambda: hb.encode.constant(8, torch.rand(3)), "got int; the arguments are values, steps"),
    "a letter": (lambda: hb.ALIF(treshold=1.0), "did you mean 'threshold'?"),
    "a word": (lambda: hb.Izhikevich(colour=1), "it takes a, b, c, d, dt, threshold"),
    "a coding's length": (lambda: hb.encode.poisson(torch.rand(3), num_steps=10), "hibana's is steps"),
    "a class": (lambda: hb.IF(surrogate=hb.surrogate.ATan), "must be an object, ATan(), got the class"),
    "another surrogate": (lambda: hb.IF(surrogate="relu"), "surrogate must be one of Step, ATan"),
    "no surrogate": (lambda: hb.IF(surrogate=3), "or its name, got 3"),
    "a class of cells": (lambda: hb.OverTime(hb.IFCell), "one step of a neuron, got the class IFCell"),
}


@pytest.mark.parametrize("kind", MISTAKEN_CALLS)
def test_the_error_of_a_mistaken_argument_names_the_right_one(kind):
    call, message = MISTAKEN_CALLS[kind]
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_threshold_may_be_an_integer():
    assert hb.IF(1).cell.threshold == hb.IF(threshold=1).cell.threshold == 1
    assert hb.IF(16.0).cell.threshold == hb.IF(threshold=16).cell.threshold == 16


@pytest.mark.parametrize(("foreign", "name"), [("Leaky", "LIF"), ("IFNode", "IF"), ("spikegen", "encode")])
def test_the_error_of_another_librarys_name_gives_hibanas(foreign, name):
    with pytest.raises(AttributeError, match=rf"its own is hibana\.{name}$"):
        getattr(hb, foreign)


class OneState(hb.Cell):
    def forward(self, input_, v_previous, s_previous):
        return (v_previous + input_,)


class TooMany(hb.Cell):
    def forward(self, input_, v_previous):
        return v_previous + input_, input_


class NoTuple(hb.Cell):
    def forward(self, input_, v_previous):
        return v_previous + input_


class NoTensor(hb.Cell):
    def forward(self, input_, v_previous):
        return (1.0,)


class WithoutSuperInit(hb.Cell):
    def __init__(self):
        self.rate = 1.0

    def forward(self, input_, v_previous):
        return (v_previous + input_,)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (OneState, "must return its states, (v, s), each like the input; got 1 for the 2 that it takes"),
        (TooMany, "must return its states, (v,), each like the input; got 2 for the 1 that it takes"),
        (NoTuple, "must return its states, (v,), each like the input; got a Tensor, no tuple"),
        (NoTensor, "each like the input; v is of type float"),
        (WithoutSuperInit, r"WithoutSuperInit.__init__ must call super().__init__()"),
    ],
)
def test_the_error_of_a_wrong_cell_says_what_to_return(cell, message):
    for length in (1, 3):
        with pytest.raises(TypeError) as raised:
            hb.OverTime(cell())(torch.rand(length, 2))
        assert message in str(raised.value)
