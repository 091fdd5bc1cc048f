"""The commands of the command line: their output and files, and one-line errors."""

import io
import re
import subprocess
import sys

import numpy
import pytest
import torch

import article
from hibana.cli import _COMMANDS, main

SMALL = ["--layers", "24", "--epochs", "2", "--steps", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of `hibana train`, and the printed text."""
    folder = tmp_path_factory.mktemp("run")
    stdout, sys.stdout = sys.stdout, io.StringIO()
    try:
        assert main(["train", *SMALL, "--out", str(folder)]) == 0
        return folder, sys.stdout.getvalue()
    finally:
        sys.stdout = stdout


def refusal(capsys, *arguments):
    """The one-line error message of `hibana` for refused `arguments`, which prints nothing else."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"hibana {arguments[0]}: ")
    assert err.count("\n") == 1
    return err


def is_picture(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


def test_demo_prints_the_article_and_draws(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "new" / "folder")]) == 0
    output = capsys.readouterr().out
    assert article.DEMO_1.replace("backwardした", "after the backward") in output
    for name in ("heaviside", "demo1", "demo2"):
        picture = tmp_path / "new" / "folder" / f"{name}.png"
        assert str(picture) in output
        assert is_picture(picture)


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_help_is_plain_text(command, capsys):
    assert main([command, "--help"]) == 0
    output = capsys.readouterr().out
    assert len(output) > 50
    assert "`" not in output
    assert "()" not in output
    assert not re.search(r":\w+:", output)


def test_the_help_has_no_command_that_does_nothing(capsys):
    assert main(["--help"]) == 0
    assert "build" not in capsys.readouterr().out
    assert main(["build"]) == 0
    assert "no longer needed" in capsys.readouterr().out


def test_demo_repeats_with_the_seed_and_only_with_it(tmp_path, capsys):
    output = []
    for seed in ("1", "1", "2"):
        main(["demo", "--seed", seed, "--out", str(tmp_path)])
        output.append(capsys.readouterr().out)
    assert output[0] == output[1] != output[2]


def test_train_writes_a_checkpoint_a_picture_and_a_table(trained):
    folder, output = trained
    for label in ("test accuracy", "linear classifier", "firing rate, if1", "time", "checkpoint", "picture"):
        assert sum(line.startswith(f"│ {label} ") for line in output.splitlines()) == 1
    assert is_picture(folder / "training.png")
    content = torch.load(folder / "checkpoint.ckpt", weights_only=True)
    assert content["epoch"] == 1


def test_predict_uses_the_checkpoint(trained, tmp_path, capsys):
    folder, output = trained
    assert main(["predict", str(folder / "checkpoint.ckpt")]) == 0
    accuracy = output.partition("test accuracy")[2].split("│")[1].strip()
    assert f"accuracy {accuracy}" in capsys.readouterr().out

    numpy.save(tmp_path / "own.npy", numpy.zeros([3, 8, 8]))
    assert main(["predict", str(folder / "checkpoint.ckpt"), str(tmp_path / "own.npy")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10] for line in lines] == ["sample 1  ", "sample 2  ", "sample 3  "]
    assert {line[10] for line in lines} <= set("0123456789")


def test_resume_continues_the_run(trained, tmp_path, capsys):
    folder, _ = trained
    content = torch.load(folder / "checkpoint.ckpt", weights_only=True)
    arguments = ["--resume", str(folder), "--epochs", "3", "--out", str(tmp_path / "longer")]
    assert main(["train", *arguments]) == 0
    assert "test accuracy" in capsys.readouterr().out
    resumed = torch.load(tmp_path / "longer" / "checkpoint.ckpt", weights_only=True)
    assert resumed["lr_schedulers"][0]["total_steps"] == resumed["global_step"]
    assert resumed["epoch"] == 2
    assert resumed["global_step"] == content["global_step"] * 3 // 2
    (curves,) = [state["values"] for state in resumed["callbacks"].values() if "values" in state]
    assert len(curves["validation/accuracy"]) == 3
    message = f"steps must be 4, as in {folder}, which is resumed, got 5; only accelerator, data,"
    assert message in refusal(capsys, "train", "--resume", folder, "--steps", "5")


def test_a_module_in_the_working_directory_is_imported_if_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_here.py").write_text(
        "from hibana.train import architecture\n"
        "def net(shape, classes, cell): return architecture.build('4', shape, classes, cell)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    options = ["--epochs", "1", "--steps", "2", "--out", "run"]
    assert main(["train", "--threads", "1", *options[:-1], "plain"]) == 0
    assert "" not in sys.path
    assert main(["train", "--layers", "mine_here:net", *options]) == 0
    sys.modules.pop("mine_here")
    sys.path.remove("")
    assert main(["predict", "run", "--trust", "mine_here:net"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_network_without_spiking_layers_is_trained_and_plotted(tmp_path, capsys):
    command = ["train", "--layers", "p2", "--epochs", "1", "--steps", "2", "--out", str(tmp_path / "run")]
    with pytest.warns(UserWarning, match="net has no spiking layer"):
        assert main(command) == 0
    assert "firing rate" not in capsys.readouterr().out
    assert (tmp_path / "run" / "training.png").stat().st_size > 1000


@pytest.mark.parametrize("command", ["demo", "train"])
def test_a_folder_that_cannot_be_written_is_refused(command, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    folders = [tmp_path / "file", tmp_path / "file" / "below"]
    if sys.platform.startswith("linux"):
        folders.append("/proc/none")
    for folder in folders:
        assert re.search(rf"Errno.*: '{tmp_path}|Errno.*'/proc", refusal(capsys, command, "--out", folder))


def test_invalid_checkpoints_are_refused(trained, tmp_path, capsys):
    from hibana.train import checkpoint

    (tmp_path / "text").write_text("accuracy 100%")
    (tmp_path / "cut").write_bytes((trained[0] / "checkpoint.ckpt").read_bytes()[:-1])
    checkpoint.write({"state_dict": {}, "hyper_parameters": {"seed": 0}}, tmp_path / "parts")
    for name in ("text", "cut", "parts", "missing", "."):
        error = refusal(capsys, "predict", tmp_path / name)
        assert "checkpoint must be a file that `hibana train` wrote" in error
        assert str(tmp_path / name) in error
    assert "checkpoint must be" in refusal(capsys, "train", "--resume", tmp_path / "text")


def test_samples_that_do_not_fit_are_refused(trained, tmp_path, capsys):
    folder, _ = trained
    numpy.save(tmp_path / "flat.npy", numpy.zeros([3, 64]))
    numpy.save(tmp_path / "words.npy", numpy.full([2, 8, 8], "nine"))
    (tmp_path / "text.npy").write_text("1 2 3")
    for name, message in {
        "flat.npy": "inputs must have the shape [N, 8, 8], got (3, 64)",
        "words.npy": "must be one array of numbers",
        "text.npy": "text.npy can't be read: it is not a NumPy file of numbers",
        "missing.npy": "samples must be in a file or folder, there is no",
    }.items():
        assert message in refusal(capsys, "predict", folder / "checkpoint.ckpt", tmp_path / name)


def test_training_flushes_denormal_numbers(capsys):
    tiny = torch.tensor(1e-40)
    assert tiny * 1 == tiny
    refusal(capsys, "train", "--epochs", "0")
    assert tiny * 1 == 0


def test_the_command_line_as_a_process_refuses_with_a_one_line_error():
    process = subprocess.run([sys.executable, "-m", "hibana", "dance"], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith('hibana: Unknown command "dance". Available commands: convert')


@pytest.mark.parametrize("batches", [3, 30])
def test_an_interrupted_training_prints_the_command_to_resume(batches, tmp_path, capsys, monkeypatch):
    batches_seen = []

    def interrupt(inputs, augmentation):
        batches_seen.append(inputs)
        if len(batches_seen) == batches:
            raise KeyboardInterrupt
        return inputs

    monkeypatch.setattr("hibana.train.classifier.augment_batch", interrupt)
    assert main(["train", *SMALL, "--out", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert error.startswith("hibana train: interrupted")
    checkpoint = tmp_path / "checkpoint.ckpt"
    assert checkpoint.exists() == (f"`hibana train --resume {checkpoint}`" in error) == (batches == 30)


def test_convert_writes_nir_and_converts_it_to_a_program(trained, tmp_path, capsys):
    pytest.importorskip("nir", reason="the extra nir is not installed")
    checkpoint, graph, program = trained[0] / "checkpoint.ckpt", tmp_path / "net.nir", tmp_path / "net.pt2"
    assert main(["convert", str(checkpoint), str(graph)]) == 0
    assert capsys.readouterr().out.startswith("lost: NIR has no field for training settings: ")
    assert main(["convert", str(graph), str(program), "--steps", "4"]) == 0
    assert "[4, batch, 8, 8]" in capsys.readouterr().out
    assert main(["convert", str(checkpoint), str(tmp_path / "direct.pt2")]) == 0
    x = torch.rand(4, 3, 8, 8)
    answers = [torch.export.load(path).module()(x) for path in (program, tmp_path / "direct.pt2")]
    assert torch.equal(*answers)
    assert answers[0].shape == (4, 3, 10)


def test_convert_refuses(trained, tmp_path, capsys):
    pytest.importorskip("nir", reason="the extra nir is not installed")
    checkpoint = trained[0] / "checkpoint.ckpt"
    assert ".c, .html, .nir, .onnx, .pt2, .v, or" in refusal(
        capsys, "convert", checkpoint, tmp_path / "x.tflite"
    )
    assert "folder" in refusal(capsys, "convert", checkpoint, tmp_path / "nowhere" / "x.nir")
    assert "source must be a NIR file, there is no" in refusal(
        capsys, "convert", tmp_path / "none.nir", tmp_path / "x.pt2"
    )
    assert "dt must be positive" in refusal(capsys, "convert", checkpoint, tmp_path / "x.nir", "--dt", "-1")
    assert main(["convert", str(checkpoint), str(tmp_path / "net.nir")]) == 0
    capsys.readouterr()
    assert "--steps must" in refusal(capsys, "convert", tmp_path / "net.nir", tmp_path / "x.pt2")
    assert not (tmp_path / "x.nir").exists()


def test_convert_writes_c_with_its_header_or_nothing(trained, tmp_path, capsys):
    checkpoint = trained[0] / "checkpoint.ckpt"
    assert main(["convert", str(checkpoint), str(tmp_path / "digits.c")]) == 0
    output = capsys.readouterr().out
    header = (tmp_path / "digits.h").read_text()
    assert "void digits_step(digits_state *net, const float input[DIGITS_INPUTS]);" in header
    assert '#include "digits.h"' in (tmp_path / "digits.c").read_text()
    assert re.search(r"[\d,]+ bytes of constants, [\d,]+ of variables", output)
    target = tmp_path / "small.c"
    assert "--ram is 100, and the network takes" in refusal(
        capsys, "convert", checkpoint, target, "--ram", "100"
    )
    assert "without code" in refusal(capsys, "convert", checkpoint, target, "--flash", "100")
    assert "--ram must be" in refusal(capsys, "convert", checkpoint, target, "--ram", "-1")
    assert "name must be letters" in refusal(capsys, "convert", checkpoint, tmp_path / "2.c")
    assert "checkpoint must be" in refusal(capsys, "convert", tmp_path / "digits.c", target)
    assert not list(tmp_path.glob("*small*"))


def test_convert_writes_c_with_integers(trained, tmp_path, capsys):
    checkpoint = trained[0] / "checkpoint.ckpt"
    assert main(["convert", str(checkpoint), str(tmp_path / "small.c"), "--bits", "8"]) == 0
    assert "weights changed" in capsys.readouterr().out
    header = (tmp_path / "small.h").read_text()
    assert "void small_step(small_state *net, const uint8_t input[SMALL_INPUTS]);" in header
    assert "No number overflows within 4 steps" in header
    assert "#define SMALL_STEPS 4 /* the most after a reset" in header
    assert "bits must be" in refusal(capsys, "convert", checkpoint, tmp_path / "no.c", "--bits", "9")
    assert not (tmp_path / "no.c").exists()


def test_convert_writes_a_library_for_arduino(trained, tmp_path, capsys):
    checkpoint, target = trained[0] / "checkpoint.ckpt", tmp_path / "digits"
    assert main(["convert", str(checkpoint), str(target), "--arduino", "--flash", "9"]) == 2
    assert "--flash is 9" in capsys.readouterr().err
    assert not target.exists()
    assert main(["convert", str(checkpoint), str(target), "--arduino"]) == 0
    assert "weights changed" in capsys.readouterr().out
    assert "of the test set, and prints its class: " in (target / "examples/digits/digits.ino").read_text()
    assert "const uint8_t input[DIGITS_INPUTS]" in (target / "src" / "digits.h").read_text()


def test_convert_writes_a_circuit_of_a_board(trained, tmp_path, capsys):
    checkpoint, target = trained[0] / "checkpoint.ckpt", tmp_path / "net.v"
    options = ["--samples", "3", "--adders", "4", "--top", "ecp5-85k"]
    assert main(["convert", str(checkpoint), str(target), *options]) == 0
    assert "the serial port of a board, ULX3S 85F" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {
        *("net.v", "net_tb.v", "net_tb.hex", "net_top.v", "net.lpf")
    }
    assert "SAMPLES = 3" in (tmp_path / "net_tb.v").read_text()


def test_convert_writes_nothing_if_a_circuit_is_refused(trained, tmp_path, capsys):
    command = ["convert", str(trained[0] / "checkpoint.ckpt"), str(tmp_path / "net.v")]
    assert main([*command, "--adders", "3"]) == 2
    assert "adders must be one of 1, 2, 4, 8, 16, 32, got 3" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_convert_writes_a_page(trained, tmp_path, capsys):
    pytest.importorskip("ziglang", reason="the extra page is not installed")
    target = tmp_path / "page.html"
    assert main(["convert", str(trained[0] / "checkpoint.ckpt"), str(target)]) == 0
    assert "<title>hibana: digits</title>" in target.read_text(encoding="utf-8")


def test_convert_writes_onnx(trained, tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    target = tmp_path / "net.onnx"
    assert main(["convert", str(trained[0] / "checkpoint.ckpt"), str(target)]) == 0
    assert "[T, batch, 8, 8]" in capsys.readouterr().out
    assert [node.op_type for node in onnx.load(target).graph.node].count("Scan") == 1


def test_convert_writes_onnx_with_integers(trained, tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    checkpoint, target = trained[0] / "checkpoint.ckpt", tmp_path / "net.onnx"
    assert main(["convert", str(checkpoint), str(target), "--bits", "8"]) == 0
    assert "x / 0.00392156863, rounded, from 0 to 255, as float32" in capsys.readouterr().out
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(target).graph.initializer]
    assert all((values == values.round()).all() for values in constants)


@pytest.mark.parametrize(
    ("target", "option", "message"),
    [
        ("net.pt2", ["--steps", "0"], "--steps must be given, at least 1"),
        ("net.v", ["--samples", "0"], "--samples must be at least 1, got 0"),
        ("net.v", ["--report"], "--report has no effect from"),
        ("net.v", ["--top", "ulx3s"], "--top must be one of ice40-up5k, ecp5-85k, got ulx3s"),
        ("", [], "target must end in .c, "),
    ],
)
def test_convert_refuses_invalid_options(trained, target, option, message, tmp_path, capsys):
    checkpoint = trained[0] / "checkpoint.ckpt"
    assert message in refusal(capsys, "convert", checkpoint, tmp_path / target, *option)
    assert not list(tmp_path.iterdir())


def test_progress_is_shown_on_a_terminal(monkeypatch, capsys):
    from hibana.cli import common

    monkeypatch.setattr(common.sys.stderr, "isatty", lambda: True)
    with common.progress("reading a table [1]"):
        pass
    assert "reading a table [1] …" in capsys.readouterr().err
