"""``hibana convert`` from NIR files: calibration on the user's data, all targets, and the report."""

import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

import hibana as hb
from c_programs import compiled, needs_cc, outputs_of
from hibana.cli import main
from hibana.cli.convert_source import read_data
from hibana.network import to_c

nir = pytest.importorskip("nir", reason="the extra nir is not installed")

STEPS, SAMPLES, INPUTS, OUTPUTS = 12, 20, 4, 3


def graph():
    """A NIR graph 4-8-3 of LIF neurons in nir's own classes, as another library would write it."""
    random = np.random.default_rng(12)
    nodes = {"input": nir.Input(np.array([INPUTS]))}
    for i, (inputs, outputs, tau) in enumerate(((INPUTS, 8, 4.0), (8, OUTPUTS, 2.0))):
        weight = random.normal(size=(outputs, inputs)).astype(np.float32)
        nodes[f"{i}.linear"] = nir.Affine(weight, random.normal(size=outputs).astype(np.float32) * 0.1)
        taus, ones = np.full(outputs, tau * 1e-3), np.ones(outputs)
        nodes[f"{i}.lif"] = nir.LIF(taus, ones * tau, ones * 0, ones * 0.4)
    nodes["output"] = nir.Output(np.array([OUTPUTS]))
    return nir.NIRGraph(nodes, list(pairwise(nodes)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a NIR file and data in several formats; the labels are the network's own classes."""
    path = tmp_path_factory.mktemp("nir")
    nir.write(path / "net.nir", graph())
    random = np.random.default_rng(1)
    inputs = (random.random((STEPS, SAMPLES, INPUTS)) * random.random((SAMPLES, INPUTS)) * 4).astype(
        np.float32
    )
    net = hb.nir.read(path / "net.nir", dt=1e-3)
    labels = net(torch.from_numpy(inputs)).sum(0).argmax(1).numpy()
    assert len({*labels.tolist()}) == OUTPUTS
    np.savez(path / "data.npz", inputs=inputs, labels=labels)
    np.save(path / "data.npy", inputs)
    np.save(path / "static.npy", inputs[0])
    rows = [[*map(str, inputs[t, n]), str(labels[n])] for n in range(SAMPLES) for t in range(STEPS)]
    header = "a,b,c,d,label"
    (path / "data.csv").write_text("\n".join([header, *map(",".join, rows)]))
    return path


def converted(folder, target, *options):
    """The exit status of ``hibana convert`` of the NIR file to `target`."""
    return main(["convert", str(folder / "net.nir"), str(target), "--dt", "1e-3", *map(str, options)])


@pytest.mark.parametrize("name", ["data.npz", "data.npy", "data.csv"])
def test_all_formats_hold_the_same_inputs(folder, name):
    inputs, labels = read_data(folder / name, (INPUTS,), OUTPUTS, STEPS)
    expected, expected_labels = read_data(folder / "data.npz", (INPUTS,), OUTPUTS, None)
    assert torch.equal(inputs, expected)
    assert name == "data.npy" or torch.equal(labels, expected_labels)


def test_inputs_without_an_axis_of_time_are_repeated(folder):
    inputs, labels = read_data(folder / "static.npy", (INPUTS,), OUTPUTS, 5)
    assert inputs.shape == (5, SAMPLES, INPUTS)
    assert torch.equal(inputs[0], inputs[4])
    assert labels is None


@needs_cc
@pytest.mark.parametrize("bits", [None, 8])
def test_a_program_in_c_has_the_spikes_of_the_nir_network(folder, bits, tmp_path, capsys):
    options = () if bits is None else ("--bits", bits)
    assert converted(folder, tmp_path / "net.c", "--data", folder / "data.npz", "--report", *options) == 0
    output = capsys.readouterr().out
    inputs, _ = read_data(folder / "data.npz", (INPUTS,), OUTPUTS, None)
    net = hb.nir.read(folder / "net.nir", dt=1e-3)
    before = "accuracy on the 20 samples of --data: 100.00% in floats"
    assert before in output
    assert re.search(r"\d+ operations per step at these firing rates, at most \d+", output)
    if bits is not None:
        net, _ = hb.quantize(net, inputs, bits)
        assert re.search(rf"{before}, [\d.]+% in integers", output)
    program = to_c(net, inputs)
    assert (tmp_path / "net.c").read_text() == program.source
    numbers = inputs if bits is None else net.integer_input(inputs)
    outputs, _, classes = outputs_of(compiled(program, tmp_path, STEPS), program, numbers)
    assert torch.equal(outputs.to(inputs), net(inputs))
    assert classes == net(inputs).sum(0).argmax(1).tolist()


def test_a_library_for_arduino_comes_with_a_sample(folder, tmp_path, capsys):
    data = ("--data", folder / "static.npy", "--steps", 5)
    assert converted(folder, tmp_path / "lib", "--arduino", "--report", *data) == 0
    assert "no accuracy: --data has no labels" in capsys.readouterr().out
    assert "prints its class: " in (tmp_path / "lib/examples/lib/lib.ino").read_text()


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="iverilog is not installed")
def test_a_circuit_has_the_spikes_of_the_integer_network(folder, tmp_path, capsys):
    assert converted(folder, tmp_path / "net.v", "--data", folder / "data.npz", "--report") == 0
    output = capsys.readouterr().out
    assert re.search(r"\d+ cycles per step; samples in the simulator: 20 of 20 equal to PyTorch", output)
    assert re.search(r"100.00% in floats, [\d.]+% in integers", output)


def test_onnx_has_the_outputs_of_the_integer_network(folder, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime")
    assert converted(folder, tmp_path / "net.onnx", "--bits", 8, "--data", folder / "data.npz") == 0
    inputs, _ = read_data(folder / "data.npz", (INPUTS,), OUTPUTS, None)
    net, _ = hb.quantize(hb.nir.read(folder / "net.nir", dt=1e-3), inputs, 8)
    model = onnx.load(tmp_path / "net.onnx").SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = session.run(None, {name: net.integer_input(inputs).numpy()})[0]
    assert torch.equal(torch.from_numpy(outputs) * net.output_scale, net(inputs))


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("net.c", "--bits 8", "inputs [steps, samples, 4], or a table with 4 columns, a row per step"),
        ("net.v", "", "--bits needs samples to measure the range of inputs, and a NIR file has none"),
        ("net.html", "", "about 64 samples of the training set"),
        (
            "net.v",
            "--data static.npy",
            "with --steps, or be a table with 4 columns and a row per step; static",
        ),
        ("net.v", "--data data.npz --steps 5", "inputs [5, samples, 4], or [samples, 4] with --steps, or"),
        ("net.v", "--data data.csv --steps 7", "7 rows per sample (--steps); data.csv has 240 rows"),
        ("net.v", "--data data.csv", "label in data.csv must be the same in all 240 rows"),
        ("net.v", "--data data.csv --steps 0", "--steps must be at least 1, got 0"),
        ("net.v", "--data net.nir", "table net.nir can't be read"),
        (
            "net.v",
            "--data few.npz",
            "numbers from 0 to 2, one for each of 20 samples; few.npz has int64 [12], such as 0",
        ),
        ("net.v", "--data names.npz", "names.npz has <U1 [20], such as a"),
        ("net.v", "--data high.npz", "high.npz has int64 [20], such as 3"),
        ("net.v", "--data nan.npy", "--data must have finite numbers"),
        ("net.v", "--data other.npz", "--data must have an array 'inputs', other.npz has a, b"),
    ],
)
def test_data_that_do_not_fit_are_refused(folder, target, options, message, tmp_path, capsys, monkeypatch):
    inputs = np.load(folder / "data.npy")
    np.savez(tmp_path / "few.npz", inputs=inputs, labels=np.zeros(STEPS, int))
    np.savez(tmp_path / "names.npz", inputs=inputs, labels=np.array(["a"] * SAMPLES))
    np.savez(tmp_path / "high.npz", inputs=inputs, labels=np.full(SAMPLES, OUTPUTS))
    np.savez(tmp_path / "other.npz", a=inputs, b=inputs)
    np.save(tmp_path / "nan.npy", inputs * np.nan)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "net.nir", target, "--dt", "1e-3", *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / target).exists()
