"""The report of `explain` on cells, layers and networks."""

import re

import pytest
import torch

import hibana as hb


def saved_values(cell):
    """The report's lines on the values that are saved per step."""
    report = hb.explain(cell).partition("\ngradient")[0].partition("\nlong")[0]
    return [line.partition(": ")[2] for line in report.splitlines()[3:]]


@pytest.mark.parametrize(
    ("cell", "lines"),
    [
        (hb.IFCell(detach_reset=True), ["whether s is 1"]),
        (hb.IFCell(surrogate=hb.surrogate.ATan(), detach_reset=True), ["v' - 1"]),
        (hb.IFCell(), ["v after the step", "whether s is 1"]),
        (
            hb.IFCell(surrogate=hb.surrogate.Box(), detach_reset=True),
            ["whether abs((v' - 1)) < 0.5", "whether s is 1"],
        ),
    ],
)
def test_saved_values_are_named_by_the_state_after_the_step(cell, lines):
    assert saved_values(cell) == lines


class TwoStates(hb.Cell):
    """The derivative of its surrogate has a part that is used twice."""

    def forward(self, input_, u_previous, v_previous, s_previous):
        u = 0.5 * u_previous + input_
        v = (v_previous + u) * (1 - s_previous.detach())
        return u, v, hb.surrogate.ATan()(v - 1)


class Squared(hb.Cell):
    """The gradient of its input needs the input."""

    def forward(self, input_, v_previous):
        return (0.5 * v_previous + input_ * input_,)


def test_saved_values_contain_only_names_of_states_or_are_the_input():
    for line in saved_values(TwoStates()):
        assert set(re.findall(r"[a-z]+\d*'?", line.removeprefix("whether "))) <= {"u'", "v'", "s", "is"}
    assert saved_values(Squared()) == ["the input itself"]


class NamedLikeGradients(hb.Cell):
    """The name of a state is also that of the gradient of another state."""

    def forward(self, input_, x, x_grad, s):
        x_grad = 0.9 * x_grad + input_
        x = 0.5 * x + x_grad
        return x, x_grad, hb.surrogate.ATan()(x - 1 + x_grad)


def test_a_state_with_the_name_of_a_gradient_has_its_own_equation():
    forward, backward = hb.explain(NamedLikeGradients()).split("its gradient")
    targets = [re.findall(r"^  (.*) = ", part, re.MULTILINE) for part in (forward, backward)]
    assert targets[0] == ["x_grad'", "x'", "s'"]
    assert "x_grad_grad before" in targets[1]


class TwoComparisons(hb.Cell):
    """Emits a sum of two comparisons."""

    def forward(self, input_, v):
        v = 0.5 * v + input_
        return ((v > 1).to(v.dtype) + (v < 0).to(v.dtype),)


def test_each_comparison_has_its_own_brackets():
    assert "  v' = [a0 > 1] + [a0 < 0]\n" in hb.explain(TwoComparisons())


def test_the_default_shape_is_that_of_tensors_per_neuron():
    cell = hb.LIFCell(torch.tensor([[2.0, 3.0, 4.0], [2.0, 5.0, 6.0]]))
    assert "one native kernel" in hb.explain(cell)
    assert hb.explain(cell) == hb.explain(cell, (2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_explained_like_float32(dtype):
    assert hb.explain(hb.IFCell(), dtype=dtype) == hb.explain(hb.IFCell())


@pytest.mark.parametrize("kind", ["double", "compiled"])
def test_a_layer_explains_its_last_call(kind):
    layer = hb.Linear(8, 4)
    layer.mode = "events"  # at this size "auto" would be dense
    x = (torch.rand(300, 8) < 0.1).float()
    layer(x)
    assert layer.explain().startswith("events")
    if kind == "double":
        layer.double()(x.double())
    else:
        torch._dynamo.reset()
        torch.compile(layer, backend="eager", fullgraph=True)(x)
    assert layer.explain().startswith("dense: compiled, transformed, or not float32")


def line(text, prefix):
    (match,) = (one for one in text.splitlines() if one.startswith(prefix))
    return match.removeprefix(prefix).strip()


def test_functions_with_other_bits_than_pytorchs_are_named():
    class Gated(hb.Cell):
        def forward(self, input_, v_previous):
            return (torch.sigmoid(v_previous) * input_ + torch.tanh(v_previous),)

    assert line(hb.explain(Gated()), "numerics") == "sigmoid: within 2 ulp, not PyTorch's own bits"
    assert "\nnumerics" not in hb.explain(hb.IFCell())


def test_explain_says_where_the_gradient_matters():
    assert line(hb.explain(hb.IFCell()), "gradient ") == "of what is emitted matters only where s is 1"
    smooth = hb.explain(hb.IFCell(surrogate=hb.surrogate.ATan()))
    assert line(smooth, "gradient ") == "of what is emitted can matter everywhere"


def test_equations_have_the_numbers_that_the_cell_has():
    report = hb.explain(hb.LIFCell(tau=4.0, threshold=0.7))
    assert "s' = [(v' - 0.7) > 0]" in report
    assert "0.75" in report
    assert "d_emitted" in report


def test_a_recurrent_layer_is_explained_with_its_number_of_neurons():
    layer = hb.Recurrent(hb.IFCell(), 5)
    report = hb.explain(layer)
    assert "one native kernel" in report
    assert report.count("backend ") == 1  # not repeated for the cell within


def test_a_module_without_layers_of_hibana_is_refused():
    with pytest.raises(ValueError, match="must hold a cell or an event-driven layer, got Linear"):
        hb.explain(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"backend must be one of cpu, triton.*; got 'auto'"):
        hb.explain(hb.IFCell(), backend="auto")


def three_layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8),
        hb.IF(),
        hb.EachStep(torch.nn.BatchNorm1d(8)),
        hb.LIF(surrogate=hb.surrogate.ATan()),
        hb.Recurrent(hb.LIFCell(), 8),
        hb.Linear(8, 3),
        hb.LI(),
    )


def test_a_network_is_explained_as_a_table_and_its_code_on_request():
    net = three_layers()
    header, *rows, hint = hb.explain(net).splitlines()
    assert header.split() == ["layer", "class", "keeps", "gradient", "runs"]
    assert [row.split()[:2] for row in rows] == [
        ["1", "IF"],
        ["3", "LIF"],
        ["4", "Recurrent"],
        ["5", "Linear"],
        ["6", "LI"],
    ]
    assert "33 bits  where s is 1  cpu: one native kernel" in rows[0]
    assert "code=True" in hint
    assert "source, forward" not in hb.explain(net[1])
    assert "source, forward" in hb.explain(net[1], code=True)
    assert hb.explain(net, code=True).count("source, forward") == 4


def test_equal_layers_show_their_code_once():
    net = torch.nn.Sequential(hb.IF(), hb.IF())
    report = hb.explain(net, code=True)
    assert report.count("source, forward") == 1
    assert "\n0, 1: IFCell   state" in report


def test_one_call_shows_shapes_densities_and_what_ran():
    net, x = three_layers(), torch.ones(6, 2, 4)
    training = net[2].module.running_mean.clone()
    first, header, *rows = hb.explain(net, x).splitlines()
    assert first.startswith("read as 6 steps of 2 samples")
    assert header.split("  ")[0] == "layer"
    cells = {row.split()[0]: re.split(r"\s\s+", row) for row in rows[:7]}
    assert list(cells) == ["0", "1", "2.module", "3", "4", "5", "6"]
    assert cells["0"][1:5] == ["Linear", "[6, 2, 4]", "[6, 2, 8]", "100% -> 100%"]
    assert cells["0"][-1] == "torch"
    assert cells["2.module"][2] == "[12, 8]"
    spikes = net[:2](x).mean()
    assert cells["1"][4] == f"100% -> {spikes:.0%}"
    assert cells["5"][-1] == "dense: looking for spikes does not pay at these sizes"
    assert torch.equal(net[2].module.running_mean, training)
    assert not any(module._forward_hooks for module in net.modules())


def test_explain_says_that_no_gradient_flows():
    class Compared(hb.Cell):
        def forward(self, input_, v_previous, s_previous):
            v = v_previous * (1 - s_previous) + input_
            return v, (v > 1).float()

    report = hb.explain(Compared())
    assert line(report, "gradient ").startswith(
        "of what is emitted never reaches the input: the step compares"
    )
    table = hb.explain(torch.nn.Sequential(hb.OverTime(Compared()), hb.IF()))
    assert re.search(r"0 +OverTime +\d+ bits +none +cpu", table)


@pytest.mark.parametrize(("module", "text"), [("LIF", "got 'LIF'"), (hb.LIF, "got the class LIF: call it")])
def test_an_object_that_is_no_module_is_refused(module, text):
    with pytest.raises(TypeError, match=rf"module must be a torch\.nn\.Module.*{text}"):
        hb.explain(module)
