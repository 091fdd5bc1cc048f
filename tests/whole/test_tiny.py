"""`examples/tiny.py`, which does not import hibana, computes what hibana computes.

hibana's reference loop defines its results, so everything equals it, gradients and trained weights included.
A compiled layer has equal states and spikes, and gradients within 1e-5 of the largest (docs/how/numerics.md).
"""

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import article
import hibana as hb
from examples import tiny

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tiny.md"
FILE = ROOT / "examples" / "tiny.py"
SURROGATES = {tiny.step: hb.surrogate.Step(), tiny.atan: hb.surrogate.ATan()}
NEURONS = {
    f"{kind}-{derivative.__name__}{'-detached' * detach}": (
        own(**time, derivative=derivative, detach_reset=detach),
        cell(**time, surrogate=SURROGATES[derivative], detach_reset=detach),
    )
    for kind, own, cell, time in (("IF", tiny.IF, hb.IFCell, {}), ("LIF", tiny.LIF, hb.LIFCell, {"tau": 3.0}))
    for derivative in SURROGATES
    for detach in (False, True)
}
"""A neuron of the example and the same cell of the library, by name."""


class LibraryNetwork(nn.Module):
    """The network of the example, whose neurons and readout are run by `backend`."""

    def __init__(self, cell, backend):
        super().__init__()
        self.hidden, self.output = nn.Linear(64, 128), nn.Linear(128, 10)
        self.neurons = hb.OverTime(cell, backend=backend)
        self.readout = hb.OverTime(hb.LICell(), backend=backend)

    def forward(self, inputs):
        spikes = self.neurons(self.hidden(inputs))
        return self.readout(self.output(spikes)), spikes


def train(net):
    """`net` after training by the example's loop on the first 480 digits."""
    inputs, labels = tiny.digits(steps=8)
    torch.manual_seed(1)
    with contextlib.redirect_stdout(io.StringIO()):
        tiny.train(net, inputs[:, :480], labels[:480], epochs=1)
    return net


def train_library(net):
    """`net` after the same training, with the library's loss in a loop of its own."""
    inputs, labels = tiny.digits(steps=8)
    torch.manual_seed(1)
    objective, optimizer = hb.loss.MembraneMean(), torch.optim.Adam(net.parameters(), lr=2e-3)
    for batch in torch.randperm(480).split(32):
        optimizer.zero_grad()
        objective(net(inputs[:, batch])[0], labels[batch]).backward()
        optimizer.step()
    return net


def networks(own, cell, backend):
    """The example's network, and the library's with the same random weights."""
    networks = []
    for make in (lambda: tiny.Network(64, 128, 10, own), lambda: LibraryNetwork(cell, backend)):
        torch.manual_seed(0)
        networks.append(make())
    return networks


def loss_and_gradients(net):
    inputs, labels = tiny.digits(steps=8)
    potentials, spikes = net(inputs[:, :100])
    loss = nn.functional.cross_entropy(potentials.mean(0), labels[:100])
    return potentials, spikes, torch.autograd.grad(loss, list(net.parameters()))


def assert_close(gradient, expected):
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("derivative", SURROGATES, ids=lambda derivative: derivative.__name__)
def test_the_step_and_its_derivative_are_the_librarys(derivative):
    ours, theirs = ((torch.arange(-40, 41) / 20).requires_grad_() for _ in range(2))
    spikes, expected = tiny.Heaviside.apply(ours, derivative), SURROGATES[derivative](theirs)
    assert torch.equal(spikes, expected)
    assert theirs[40] == spikes[40] == 0  # at the threshold
    weights = torch.randn(81)
    (weights * spikes).sum().backward()
    (weights * expected).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", NEURONS)
def test_states_spikes_and_gradients_of_a_neuron_are_the_librarys(name):
    own, cell = NEURONS[name]
    inputs = torch.rand(50, 3, 20)
    ours, theirs, compiled = (inputs.clone().requires_grad_() for _ in range(3))
    potentials, spikes = tiny.over_time(own, ours)
    states = hb.record(cell, theirs)
    emitted, (v, s) = hb.unroll(cell, compiled, backend="cpu")
    assert 0.05 < spikes.mean() < 0.95
    for values, expected in ((potentials, states["v"]), (spikes, states["s"]), (spikes, emitted)):
        assert torch.equal(values, expected)
    assert torch.equal(potentials[-1], v)
    assert torch.equal(spikes[-1], s)

    of_spikes, of_last = torch.randn_like(inputs), torch.randn_like(inputs[0])
    ((of_spikes * spikes).sum() + (of_last * potentials[-1]).sum()).backward()
    ((of_spikes * states["s"]).sum() + (of_last * states["v"][-1]).sum()).backward()
    ((of_spikes * emitted).sum() + (of_last * v).sum()).backward()
    assert torch.equal(ours.grad, theirs.grad)
    assert_close(compiled.grad, ours.grad)


@pytest.mark.parametrize("detach_reset", [False, True])
def test_if_is_the_articles(detach_reset):
    ours, theirs = (torch.rand(50, 20, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    states = tiny.over_time(tiny.IF(detach_reset=detach_reset), ours.requires_grad_())
    expected = article.over_time(theirs.requires_grad_(), detach_reset=detach_reset)
    weights = torch.randn(2, *ours.shape)
    for values, article_values in zip(states, expected, strict=True):
        assert torch.equal(values, article_values)
    (weights[0] * states[0] + weights[1] * states[1]).sum().backward()
    (weights[0] * expected[0] + weights[1] * expected[1]).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", ["IF-atan-detached", "LIF-step"])
def test_trained_weights_are_the_librarys(name):
    ours, theirs = networks(*NEURONS[name], "reference")
    train(ours)
    train_library(theirs)
    start = tiny.Network(64, 128, 10, tiny.IF()).state_dict()
    for weight, expected, before in zip(ours.parameters(), theirs.parameters(), start.values(), strict=True):
        assert torch.equal(weight, expected)
        assert not torch.equal(weight, before)


@pytest.mark.parametrize("name", ["IF-atan-detached", "LIF-step"])
def test_a_trained_network_and_its_gradients_are_those_of_compiled_layers(name):
    ours, theirs = networks(*NEURONS[name], "cpu")
    theirs.load_state_dict(train(ours).state_dict())
    potentials, spikes, gradients = loss_and_gradients(ours)
    expected_potentials, expected_spikes, expected_gradients = loss_and_gradients(theirs)
    assert torch.equal(potentials, expected_potentials)
    assert torch.equal(spikes, expected_spikes)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected)


def test_digits_scores_and_accuracy_are_the_librarys():
    inputs, labels = tiny.digits(steps=8)
    assert torch.equal(inputs, hb.encode.constant(inputs[0], 8))
    net = train(tiny.Network(64, 128, 10, tiny.IF(derivative=tiny.atan, detach_reset=True)))
    objective = hb.loss.MembraneMean()
    with torch.no_grad():
        potentials, _ = net(inputs)
    assert torch.equal(tiny.scores(potentials), objective.scores(potentials))
    assert tiny.accuracy(net, inputs, labels) == objective.accuracy(potentials, labels).item() > 0.4


def test_a_raster_has_one_mark_per_spike():
    spikes = (torch.rand(10, 7) < 0.3).float()
    (marks,) = tiny.raster(spikes).axes[0].collections
    assert torch.equal(torch.tensor(marks.get_offsets().data).long(), spikes.nonzero())


def test_one_neuron_prints_the_numbers_of_the_page(capsys):
    tiny.one_neuron()
    printed = capsys.readouterr().out
    assert printed in PAGE.read_text(encoding="utf-8")
    assert printed.splitlines()[-1].split()[2:] == ["2.00"] * 3 + ["5.00"] * 3 + ["0.00"] * 2


def test_the_example_is_short_and_does_not_import_hibana():
    text = FILE.read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(text)) if not isinstance(node, ast.expr_context)]
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert not any(module.startswith(("hibana", "examples")) for module in modules)
    assert len(text.splitlines()) <= 500
    assert len(nodes) <= 2500


def test_the_page_prints_the_example():
    text = FILE.read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert all(block in text for block in code)
    assert ast.dump(ast.parse("".join(code))) == ast.dump(ast.parse(text))


def test_files_that_the_page_names_exist():
    paths = re.findall(r"`((?:src|examples|tests)/[^`]*)`", PAGE.read_text(encoding="utf-8"))
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
