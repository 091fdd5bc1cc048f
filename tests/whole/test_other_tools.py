"""The statements of the page *With other tools*, for each tool that is installed."""

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
    summary = torchinfo.summary(network(), input_data=torch.rand(6, 5, 4), verbose=0)
    assert summary.total_params == 4 * 16 + 16 + 16 * 3 + 3
    assert "IF" in str(summary)
    assert "[6, 5, 3]" in str(summary)


def test_a_flop_counter_counts_event_layers_as_dense_layers():
    from torch.utils.flop_counter import FlopCounterMode

    for linear in (nn.Linear, hb.Linear):
        net, x = network(linear), torch.rand(6, 5, 4)
        net(x)  # compiles before the counter starts
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
def test_dynamic_quantization_replaces_torchs_linear_layers():
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no quantization")
    torch.backends.quantized.engine = "fbgemm"
    net, x = network(), torch.rand(6, 5, 4)
    quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)
    assert type(quantized[0]) is torch.ao.nn.quantized.dynamic.Linear
    assert torch.allclose(quantized(x), net(x), atol=1.0)


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
@pytest.mark.parametrize("linear", [nn.Linear, hb.Linear])
def test_peft_adds_and_trains_only_low_rank_matrices(linear):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, x = BatchFirst(network(linear)), torch.rand(5, 4)
    expected = model(x).detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["net.0", "net.2"]))
    torch.testing.assert_close(adapted(x), expected)  # the second matrix of each pair is initially zero
    adapted(x).square().sum().backward()
    trained = {name.rsplit(".", 3)[1] for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained == {"lora_A", "lora_B"}
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_()
    changed = adapted(x)
    merged = adapted.merge_and_unload()
    assert type(merged.net[0]) is linear
    torch.testing.assert_close(merged(x), changed, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_hugging_faces_trainer_trains_and_from_pretrained_loads(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    class Config(transformers.PretrainedConfig):
        model_type = "spiking"

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.spiking = BatchFirst()
            self.post_init()

        def forward(self, inputs, labels=None):
            logits = self.spiking(inputs)
            return {
                "loss": None if labels is None else nn.functional.cross_entropy(logits, labels),
                "logits": logits,
            }

    x = torch.randn(64, 4)
    data = [{"inputs": row, "labels": (row[0] > 0).long()} for row in x]
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=20, learning_rate=0.05, per_device_train_batch_size=16, use_cpu=True,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(Model(Config()), arguments, train_dataset=data)
    trainer.train()
    model = trainer.model.eval()
    assert (model(x)["logits"].argmax(1) == (x[:, 0] > 0)).float().mean() > 0.9
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(Model.from_pretrained(tmp_path / "saved").eval()(x)["logits"], model(x)["logits"])


@pytest.mark.filterwarnings("ignore")
def test_accelerate_prepares_a_network_and_saves_it(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    from safetensors.torch import load_file

    accelerator, x = accelerate.Accelerator(cpu=True), torch.randn(64, 4)
    batches = torch.utils.data.DataLoader([(row, (row[0] > 0).long()) for row in x], 16)
    plain = BatchFirst()
    net, optimizer, batches = accelerator.prepare(plain, torch.optim.Adam(plain.parameters(), 0.05), batches)
    for _ in range(20):
        for inputs, labels in batches:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(net(inputs), labels))
            optimizer.step()
    assert (net(x).argmax(1) == (x[:, 0] > 0)).float().mean() > 0.9
    accelerator.save_model(net, str(tmp_path))
    other = BatchFirst()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(x), plain(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("linear", [nn.Linear, hb.Linear])
def test_torchao_quantizes_weights(linear):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    layer, x = nn.Sequential(linear(64, 48)).eval(), (torch.rand(6, 50, 64) < 0.1).float()
    expected = layer(x).detach()
    torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
    assert "Int8" in type(layer[0].weight).__name__
    assert (layer(x) - expected).abs().max() < 0.02
    net = nn.Sequential(layer, hb.IF(0.1))
    assert 0 < net(x).mean() < 1


def test_fully_shard_accepts_a_network(tmp_path):
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not torch.distributed.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        net, x = network(hb.Linear), torch.rand(6, 5, 4)
        expected = net(x).detach()
        net(x).square().sum().backward()
        gradient = net[0].weight.grad.clone()
        net.zero_grad()
        sharded = fully_shard(net, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
        assert isinstance(sharded, FSDPModule)
        outputs = sharded(x)
        torch.testing.assert_close(outputs, expected)
        outputs.square().sum().backward()
        torch.testing.assert_close(net[0].weight.grad.full_tensor(), gradient)
    finally:
        torch.distributed.destroy_process_group()
