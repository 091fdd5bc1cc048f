"""The spiking Rocket: rates, closed-form readout, unequal lengths, errors."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import hibana as hb
from c_programs import WARNINGS, compiled, needs_cc, outputs_of
from hibana.nn.models.ridge import ridge


def series(count: int, steps: int = 60, channels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a slowly rising or falling bump at a random time: ``[T, N, channels]``, and its class."""
    generator = torch.Generator().manual_seed(seed)
    values = 0.3 * torch.randn(steps, count, channels, generator=generator)
    labels = torch.arange(count) % 2
    for number, label in enumerate(labels.tolist()):
        start = int(torch.randint(0, steps - 12, (), generator=generator))
        saw = torch.linspace(0, 2.5, 12)
        values[start : start + 12, number, -1] += saw.flip(0) if label else saw
    return values, labels


def scores(net: torch.nn.Module, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
    return hb.loss.MembraneMean().scores(net(inputs), lengths)


@pytest.fixture(scope="module")
def fitted() -> tuple[torch.nn.Module, Tensor, Tensor, float]:
    inputs, labels = series(40)
    net = hb.models.rocket((1,), 2, steps=60)
    return net, inputs, labels, net.fit(inputs, labels)


@pytest.mark.parametrize("shape", [(12, 30), (30, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_equals_a_fit_without_the_sample(
    shape: tuple[int, int], weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("hibana.nn.models.ridge.PENALTIES", torch.tensor([0.1]))
    features, targets = torch.randn(shape).double(), torch.randn(shape[0], 2).double()
    weights = torch.rand(shape[0]).double() + 0.5 if weighted else torch.ones(shape[0]).double()
    result = ridge(features, targets, weights if weighted else None)

    share = weights / weights.sum()
    deviation = (share @ (features - share @ features).square()).sqrt()
    unit = ((features - share @ features) / deviation).square() * weights[:, None]
    penalty = 0.1 * float(unit.sum()) / shape[0]
    for left_out in range(shape[0]):
        rest = torch.arange(shape[0]) != left_out
        x, y, w = features[rest] / deviation, targets[rest], weights[rest]
        mean, target_mean = w @ x / w.sum(), w @ y / w.sum()
        x, y = x - mean, y - target_mean
        slope = torch.linalg.solve(
            x.T @ (w[:, None] * x) + penalty * torch.eye(shape[1]).double(), x.T @ (w[:, None] * y)
        )
        expected = (features[left_out] / deviation - mean) @ slope + target_mean
        torch.testing.assert_close(result.held_out[left_out], expected)


def test_the_penalty_has_the_least_error() -> None:
    torch.manual_seed(0)
    noise = ridge(torch.randn(50, 200), torch.randn(50, 1))
    line = torch.randn(200, 3)
    clear = ridge(line, line @ torch.ones(3, 1))
    assert noise.penalty > 1 > 1e-4 > clear.penalty
    assert noise.held_out.abs().mean() < 1


def test_constant_features_have_weight_zero() -> None:
    features = torch.cat([torch.full((20, 1), 0.3), torch.linspace(0, 1, 20)[:, None]], dim=1)
    result = ridge(features, features[:, 1:])
    assert float(result.weight[0, 0]) == 0
    assert result.weight.isfinite().all()


def test_recognizes_a_pattern_at_any_position(fitted) -> None:
    net, _, _, held_out = fitted
    inputs, labels = series(200, seed=1)
    accuracy = float((scores(net, inputs).argmax(1) == labels).float().mean())
    assert accuracy > 0.9
    assert abs(held_out - accuracy) < 0.1  # leave-one-out predicts the accuracy
    assert 0.08 < float(net.rates(inputs).mean()) < 0.18


def test_weights_are_integers_and_scores_follow_from_the_rates(fitted) -> None:
    net, inputs, _, _ = fitted
    for _, window in net._windows():
        assert set(window.weight.unique().tolist()) == {-2.0, -1.0, 1.0, 2.0}
    weight = torch.cat([readout.weight for readout in net._readouts], dim=1)
    torch.testing.assert_close(
        scores(net, inputs), net.rates(inputs) @ weight.T + net._readouts[0].bias, atol=1e-4, rtol=1e-4
    )


def test_cross_entropy_is_calibrated(fitted) -> None:
    net, _, _, _ = fitted
    inputs, labels = series(200, seed=2)
    assert float(hb.loss.MembraneMean()(net(inputs), labels)) < 0.4


def test_streams_in_chunks(fitted) -> None:
    net, inputs, _, _ = fitted
    full = net(inputs[:, :4])
    first, state = hb.run(net, inputs[:25, :4])
    second, _ = hb.run(net, inputs[25:, :4], state)
    torch.testing.assert_close(torch.cat([first, second]), full)


@needs_cc
def test_the_c_program_computes_the_same_scores(tmp_path: Path) -> None:
    inputs, labels = series(20, steps=40)
    net = hb.models.rocket((1,), 2, steps=40, neurons=4)
    net.fit(inputs, labels)
    program = hb.convert.to_c(net, inputs[:, :2], name="rocket", scores="sum")
    outputs, sums, _ = outputs_of(
        compiled(program, tmp_path, 40, flags=[*WARNINGS, "-O1"]), program, inputs[:, :4]
    )
    torch.testing.assert_close(outputs, net(inputs[:, :4]).double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sums / 40, scores(net, inputs[:, :4]).double(), atol=1e-4, rtol=1e-4)


def test_a_padded_series_equals_the_series_alone() -> None:
    inputs, labels = series(24, channels=3)
    lengths = torch.tensor([60, 40, 51] * 8)
    padded = hb.lengths.masked(inputs, lengths)
    polluted = hb.lengths.masked(inputs, lengths, 1e3)
    nets = [hb.models.rocket((3,), 2, steps=60) for _ in range(2)]
    fits = [net.fit(part, labels, lengths) for net, part in zip(nets, (padded, polluted), strict=True)]
    assert fits[0] == fits[1]
    for one, other in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(one, other)
    rates = nets[0].rates(polluted, lengths)
    for number in (0, 1, 2):
        alone = nets[0].rates(inputs[: lengths[number], number : number + 1])
        torch.testing.assert_close(rates[number], alone[0])


def test_neurons_read_few_channels() -> None:
    net = hb.models.rocket((20,), 2, steps=30)
    channels = torch.cat([(window.weight != 0).all(2).sum(1) for _, window in net._windows()])
    assert int(channels.min()) == 1
    assert int(channels.max()) == 9
    assert float(channels.float().mean()) < 5


def test_learns_a_quantity() -> None:
    generator = torch.Generator().manual_seed(0)
    speed = 0.2 + torch.rand(80, generator=generator)
    inputs = torch.sin(torch.arange(50.0)[:, None] * speed)[..., None]
    net = hb.models.rocket((1,), 1, steps=50)
    assert net.fit(inputs[:, :60], speed[:60]) > 0.95
    torch.testing.assert_close(scores(net, inputs[:, 60:])[:, 0], speed[60:], atol=0.1, rtol=0)


def test_class_weights_shift_the_predictions() -> None:
    inputs, labels = series(40, seed=3)
    inputs = inputs + 2 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    plain, heavy = (hb.models.rocket((1,), 2, steps=60) for _ in range(2))
    plain.fit(inputs, labels)
    heavy.fit(inputs, labels, weights=(1.0, 50.0))
    test = torch.randn(60, 50, 1, generator=torch.Generator().manual_seed(1))
    counts = [int(scores(net, test).argmax(1).sum()) for net in (plain, heavy)]
    assert counts[1] > counts[0]


def test_can_be_trained_by_gradient(fitted) -> None:
    _, inputs, labels, _ = fitted
    net = hb.models.rocket((1,), 2, steps=60, neurons=4).requires_grad_()
    net.fit(inputs, labels)
    hb.loss.MembraneMean()(net(inputs), labels).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in net.parameters())
    assert any(float(window.weight.grad.abs().sum()) > 0 for _, window in net._windows())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (2, 3)}, r"shape must be \(channels,\)"),
        ({"shape": (0,)}, "channels must be a whole number"),
        ({"classes": 0}, "classes must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"steps": 4.0}, "steps must be a whole number"),
        ({"neurons": 6}, "neurons must be a multiple of 4"),
        ({"period": -1}, "period must be a whole number"),
    ],
)
def test_refuses_sizes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hb.models.rocket(**{"shape": (1,), "classes": 2, "steps": 20, **options})  # type: ignore[arg-type]


def test_refuses_data() -> None:
    net = hb.models.rocket((1,), 2, steps=20)
    inputs, labels = torch.randn(20, 6, 1), torch.tensor([0, 1] * 3)
    with pytest.raises(ValueError, match=r"inputs must be \[T, batch, 1\]"):
        net.fit(inputs[..., 0], labels)
    with pytest.raises(ValueError, match="labels must be one for each of 6"):
        net.fit(inputs, labels[:5])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\)"):
        net.fit(inputs, labels + 1)
    with pytest.raises(TypeError, match="labels must be class indices"):
        net.fit(inputs, labels.float())
    with pytest.raises(ValueError, match="inputs must be finite"):
        net.fit(inputs / 0, labels)
    with pytest.raises(ValueError, match="weights must be one for each of 2 classes"):
        net.fit(inputs, labels, weights=(1.0,))
    with pytest.raises(ValueError, match="lengths must lie in"):
        net.fit(inputs, labels, torch.tensor([21] * 6))
    with pytest.raises(ValueError, match="at least two samples"):
        net.fit(inputs[:, :1], labels[:1])


@pytest.mark.parametrize("period", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_the_quantized_network_predicts_the_same_classes(period: int) -> None:
    inputs, labels = series(40)
    net = hb.models.rocket((1,), 2, steps=60, period=period)
    net.fit(inputs, labels)
    small, report = hb.quantize(net, inputs, 8)
    for layer in report.layers:
        if layer.name.endswith("window"):
            assert layer.weight_error == 0  # -1 and 2 are multiples of one step size
    assert float((scores(small, inputs).argmax(1) == scores(net, inputs).argmax(1)).float().mean()) >= 0.95
    test, classes = series(200, seed=1)
    assert float((scores(small, test).argmax(1) == classes).float().mean()) > 0.88


@needs_cc
def test_the_quantized_c_program_is_bit_equal(tmp_path: Path) -> None:
    inputs, labels = series(20, steps=40)
    net = hb.models.rocket((1,), 2, steps=40, neurons=4, period=3)
    net.fit(inputs, labels)
    small, _ = hb.quantize(net, inputs, 4)
    program = hb.convert.to_c(small, inputs[:, :2], name="rocket", scores="sum")
    outputs, _, _ = outputs_of(
        compiled(program, tmp_path, 40, flags=[*WARNINGS, "-O1"]), program, small.integer_input(inputs[:, :4])
    )
    assert torch.equal(outputs.double(), small.net(small.integer_input(inputs[:, :4])).double())


def test_refractory_neurons_spike_less_and_not_within_their_period() -> None:
    inputs, labels = series(40)
    net = hb.models.rocket((1,), 2, steps=60, period=3)
    assert net.fit(inputs, labels) > 0.85
    assert 0.04 < float(net.rates(inputs).mean()) < 0.14
    held_out = ridge(net.rates(inputs), 2.0 * torch.nn.functional.one_hot(labels).double() - 1).held_out
    targets = 2.0 * torch.nn.functional.one_hot(labels).double() - 1
    assert net.error == pytest.approx(float((held_out - targets).square().mean()))
    spikes = net.branches[0][:-1](inputs)
    for k in (1, 2, 3):
        assert not bool((spikes[k:] * spikes[:-k]).any())
    assert bool((spikes[4:] * spikes[:-4]).any())
