"""What the page *With other tools* says of each, tried where it is installed."""

import numpy as np
import pytest
import torch
from torch import nn

import hibana as hb


class BatchFirst(nn.Module):
    def __init__(self, net=None, steps=6):
        super().__init__()
        self.net, self.steps = net or network(), steps

    def forward(self, inputs):
        return self.net(hb.encode.constant(inputs, self.steps)).mean(0)


def network(linear=nn.Linear):
    return nn.Sequential(linear(4, 16), hb.IF(surrogate="ATan"), linear(16, 3), hb.LI())


@pytest.mark.filterwarnings("ignore")
def test_torchinfo_sees_layers_shapes_and_parameters():
    torchinfo = pytest.importorskip("torchinfo", reason="torchinfo is not installed")
    told = torchinfo.summary(network(), input_data=torch.rand(6, 5, 4), verbose=0)
    assert told.total_params == 4 * 16 + 16 + 16 * 3 + 3
    assert "IF" in str(told)
    assert "[6, 5, 3]" in str(told)


def test_a_flop_counter_counts_layers_per_spike_as_the_dense_ones_that_they_are_meanwhile():
    from torch.utils.flop_counter import FlopCounterMode

    for linear in (nn.Linear, hb.Linear):
        net, x = network(linear), torch.rand(6, 5, 4)
        net(x)  # compiles, out of the counter's sight
        with FlopCounterMode(display=False) as counter:
            net(x)
        assert counter.get_total_flops() == 2 * 30 * (4 * 16 + 16 * 3)


@pytest.mark.filterwarnings("ignore")
def test_captum_attributes_through_time():
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    inputs = torch.rand(5, 4)
    attributed = captum.IntegratedGradients(BatchFirst()).attribute(inputs, target=0, n_steps=10)
    assert attributed.shape == inputs.shape
    assert attributed.abs().sum() > 0


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_takes_torchs_linear_layers():
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch quantises nothing")
    torch.backends.quantized.engine = "fbgemm"
    net, x = network(), torch.rand(6, 5, 4)
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)
    assert type(quantised[0]) is torch.ao.nn.quantized.dynamic.Linear
    assert torch.allclose(quantised(x), net(x), atol=1.0)


@pytest.mark.filterwarnings("ignore")
def test_skorch_fits_a_network():
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    fitted = skorch.NeuralNetClassifier(
        BatchFirst, criterion=nn.CrossEntropyLoss, max_epochs=30, lr=0.2, verbose=0, train_split=None
    ).fit(x, y)
    assert (fitted.predict(x) == y).mean() > 0.8


@pytest.mark.filterwarnings("ignore")
def test_optuna_chooses_settings():
    pytest.importorskip("lightning", reason="the extra train is not installed")
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tried = []

    def objective(trial):
        tau = trial.suggest_float("tau", 2.0, 20.0)
        tried.append(hb.train.Settings(cell="LIF", tau=tau))
        return abs(tried[-1].tau - 7)

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=5)
    assert study.best_params["tau"] == min(tried, key=lambda settings: abs(settings.tau - 7)).tau
