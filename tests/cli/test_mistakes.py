"""Common mistakes on the command line: each prints a one-line error message, and nothing else.

Tests of untrusted files are in `test_untrusted_files`.
"""

from pathlib import Path

import numpy
import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

from PIL import Image

from hibana import train
from hibana.cli import _APP, _COMMANDS, main
from hibana.cli.common import _integer
from hibana.train import checkpoint

HEADER = "a,b,label\n"
ROWS = "".join(f"{i % 11},{i % 7},{'xy'[i % 2]}\n" for i in range(40))
FILES = {
    "empty.csv": "",
    "header.csv": HEADER,
    "good.csv": HEADER + ROWS,
    "inf.csv": HEADER + ROWS + "inf,3,x\n",
    "unlabelled.csv": "a,b,label\n1,2,\n3,4,\n",
    "ragged.csv": HEADER + "1,2,x\n1,2,3,4,5,y\n",
    "one-class.csv": HEADER + "".join(f"{i},1,x\n" for i in range(30)),
    "names.csv": "name,label\n" + "".join(f"n{i},{'xy'[i % 2]}\n" for i in range(300)),
    "gap.csv": HEADER + ROWS + ",3,x\n",
    "na.csv": HEADER + "1,2,yes\n3,4,NA\n" * 20,
    "few.csv": HEADER + "1,2,x\n3,4,y\n",
    "words.csv": "a,label\n" + "".join(f"{i % 9},w{i}\n" for i in range(50)),
    "bytes.csv": "a,label\n1,\0\udcff\n",
    "kanji.csv": HEADER + "1,2,\udc81\n" + ROWS,
    "fewer.csv": "a\n1\n2\n",
    "text.csv": "a,b\n1,one\n2,two\n",
    "far.csv": "a,b\n" + "1e9,1e9\n" * 5,
    "short.ts": "@data\n1,2\n3,4,5\n",
    "bad.ts": "@classLabel true x y\n@data\n1,two:x\n",
    "archive.zip": "PK",
    "half.npz": "PK\x03\x04",
    "theirs.yaml": "learnin_rate: 3\n",
    "list.yaml": "- 1\n- 2\n",
    "numbers.csv": "a,y\n" + "".join(f"{i % 9},{i / 7}\n" for i in range(60)),
    "one-row.csv": "a,b\n1,2\n",
    "cell.py": "class NoCell: pass\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of files that each have one fault, and checkpoints of untrained networks."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    numpy.savez(folder / "unnamed.npz", foo=numpy.zeros([9, 2]), bar=numpy.zeros(9))
    numpy.savez(folder / "lengths.npz", x=numpy.zeros([9, 2]), y=numpy.zeros(8))
    numpy.savez(folder / "nan.npz", x=numpy.full([9, 2], numpy.nan), y=numpy.arange(9) % 2)
    numpy.save(folder / "pixels.npy", numpy.full([2, 8, 8], 16.0))
    numpy.save(folder / "images.npy", numpy.zeros([9, 8, 8]))
    numpy.savez(
        folder / "pictures.npz", x=numpy.random.default_rng(0).random([40, 8, 8]), y=numpy.arange(40) % 2
    )
    numpy.savez(
        folder / "series.npz", x=numpy.random.default_rng(0).random([40, 30, 2]), y=numpy.arange(40) % 2
    )
    for name in ("nothing/x/a.xyz", *(f"broken/{kind}/{name}.png" for kind in "xy" for name in "abcdef")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x89PNG not really")
    (folder / "blank").mkdir()
    for number in range(4):
        (folder / "pictures" / "xy"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (5, 4), number * 9).save(folder / "pictures" / "xy"[number % 2] / f"{number}.png")
        (folder / "events" / "xy"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "events" / "xy"[number % 2] / f"{number}.txt").write_text("1 2 3\n")
    for data, name in (("good.csv", "own"), ("digits", "digits")):
        settings = train.Settings(data=data if data == "digits" else str(folder / data), layers="4", steps=2)
        samples = settings.samples()
        samples.setup()
        model = train.build_classifier(settings, samples)
        description = {} if data == "digits" else {"description": model.description.to_plain()}
        content = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict(), **description}
        checkpoint.write(content, folder / f"{name}.ckpt")
    return folder


MISTAKES = [
    ("", "needs a command, one of convert, demo"),
    ("trian", 'Unknown command "trian". Did you mean "train"?'),
    ("train --lr 1", "Unknown option: --lr. Did you mean --learning-rate?"),
    ("train --attached-reset", "Did you mean --no-detach-reset?"),
    ("train --learning-rat 1", "Did you mean --learning-rate?"),
    ("train --xyzzy 1", "Unknown option: --xyzzy."),
    ("train --epochs many", "--epochs: it must be a whole number, got many"),
    ("train --epochs", "--epochs"),
    ("train extra", "extra belongs to no option; data are passed by --data, and --help lists all options"),
    (
        "train good.csv",
        "good.csv belongs to no option; data are passed by --data, and --help lists all options",
    ),
    ("train --cell lif", "RefractoryLIF; got 'lif'; did you mean LIF?"),
    ("train --rewire deepr", "got 'deepr'; did you mean deep-r?"),
    ("train --threads 0", "--threads. Must be >= 1"),
    ("train --threads 99999999999999999999", "--threads. Must be <= 1024"),
    ("train --download 8.5", "8.5 belongs to no option"),
    ("train --data good.csv --root folder", "unexpected keyword argument 'root'"),
    ("train --data good.csv --download", "unexpected keyword argument 'download'"),
    ("train --cell Leaky", "cell must be one of IF, LIF"),
    ("train --coding rate", "coding must be one of constant, poisson"),
    ("train --class-weights yes", "class_weights must be one of none, balanced"),
    ("train --learning-rate -1", "learning_rate must be positive and finite, got -1.0"),
    ("train --steps 0", "steps must be at least 1 and below 2^31, got 0"),
    ("train --epochs 0", "epochs must be at least 1, got 0"),
    ("train --devices 5", "batch_size must be divisible by 5 processes, got 64"),
    ("train --seed -1", "seed must be in [0, 2^32), got -1"),
    ("train --delta-threshold 0.5", "--delta-threshold has no effect on digits: it is for --coding delta"),
    (
        "train --rate-penalty 0 --rate-target 0.1",
        "it is for --rate-penalty above 0",
    ),
    ("train --layers p2 --surrogate ATan", "--surrogate has no effect on digits: it is for layers of --cell"),
    (
        "train --layers p2 --start-rate 0.1",
        "--start-rate has no effect on digits: it is for layers that spike",
    ),
    (
        "train --lengths stretch",
        "--lengths has no effect on digits: it is for sequences, sound, a class",
    ),
    ("train --data pictures.npz --kind arrays --encoding cp932", "it is for table, sequences, a class"),
    ("train --data numbers.csv --smoothing 0.1", "--smoothing has no effect on numbers: it is for classif"),
    ("train --data numbers.csv --class-weights balanced", "it is for classification"),
    ("train --data series.npz --layers rocket9 --clip 1", "it is for --epochs above 0"),
    ("train --data series.npz --layers rocket9 --readout-tau 9", "it is for layers described by words"),
    ("train --trust mine:net", "--trust has no effect on digits: it is for --settings, --resume"),
    ("train --layers absent:net", "layers 'absent:net' can't be found"),
    ("train --tau 3", "IF has no argument 'tau'"),
    ("train --data mnist --root nowhere", "root must hold MNIST's four idx files"),
    ("train --data shd", "root must hold the unpacked files of SHD, hibana-data/SHD holds none"),
    ("train --settings absent.yaml", "settings absent.yaml can't be read"),
    ("train --layers 99999999", "weights together, got 7,499,999,935"),
    ("train --layers conv", "'conv' of 'conv' is not a layer"),
    ("train --layers p9", "'p9' must fit on 8x8"),
    ("train --accelerator gpu", "accelerator must be one that this machine has"),
    ("train --accelerator abacus", "accelerator must be one of cpu, gpu"),
    ("train --data digit", "there is no 'digit'; did you mean digits?"),
    ("train --data cifar", "data must be one of digits"),
    ("train --data no/such.csv", "or a file or folder, and there is no 'no/such.csv'"),
    ("train --data archive.zip", "or --kind must name their kind; got archive.zip"),
    ("train --data blank", "data must be files by class"),
    ("train --data empty.csv", "can't be read: the file is empty"),
    ("train --data header.csv", "must have rows, it has none"),
    ("train --data inf.csv", "column 'a' must be finite numbers, row 41 has inf"),
    ("train --data ragged.csv", "ragged.csv can't be read: Error tokenizing"),
    (
        "train --data bytes.csv",
        "bytes.csv can't be read: the file contains zero bytes, so it is not a text file",
    ),
    (
        "train --data kanji.csv",
        "can't be read: its text is neither UTF-8 nor cp932 nor cp1252; give its encoding (--encoding)",
    ),
    (
        "train --data unlabelled.csv",
        "must have at least two classes, got none; 2 samples of unlabelled.csv have none",
    ),
    (
        "train --data one-class.csv",
        "must have at least two classes, and each of 30 samples has 'x'; choose a",
    ),
    (
        "train --data one-row.csv",
        "must have at least two classes, and the only sample has '2'; choose another",
    ),
    (
        "train --data na.csv",
        "at least two classes, got yes; 20 samples of na.csv have none: NA, N/A, None, nan",
    ),
    ("train --data words.csv", "has 50 classes in 50 samples"),
    ("train --data names.csv", "or as text that differs from row to row: `name`"),
    ("train --data few.csv", "samples must be enough to train, validate and test on, got 2"),
    ("train --data good.csv --label c", "label must be a column of good.csv: a, b, label; got 'c'"),
    ("train --data good.csv --columns a,c", "each of columns must be a column of good.csv: a, b; got 'c'"),
    ("train --data good.csv --task regression", "label 'label' must be finite numbers, got 'x' in row 1"),
    ("train --data good.csv --task learning", "task must be one of classification, regression"),
    ("train --data good.csv --kind video", "kind must be one of arrays, events, "),
    ("train --data good.csv --group c", "group must be a column of good.csv: a, b, label; got 'c'"),
    ("train --data good.csv --layers 8c3", "needs images"),
    ("train --data good.csv --coding delta", "must be one of constant, poisson"),
    ("train --data digits --label x", "unexpected keyword argument 'label'"),
    ("train --class-weights balanced", "class_weights must be none for data sets by name"),
    (
        "train --data good.csv --augment flip",
        "augment must be none for inputs that are no images, got 'flip'",
    ),
    ("train --loss first-spike", "loss first-spike needs outputs that spike; layers"),
    ("train --data pictures --size big", "size must be pixels such as 32 or 28x34"),
    ("train --data broken", "broken/x/a.png can't be read"),
    ("train --data events", "of events t, x, y, p can't be read: it has the shape (1, 3)"),
    ("train --data short.ts", "must have labels ('class')"),
    ("train --data bad.ts", "bad.ts, line 3 can't be read: could not convert string to float: 'two'"),
    ("train --data half.npz", "half.npz can't be read: File is not a zip file"),
    ("train --data unnamed.npz", "arrays must be called inputs and labels"),
    ("train --data lengths.npz", "inputs must be [N, ...] and labels [N], got (9, 2) and (8,)"),
    ("train --data nan.npz", "inputs must be finite numbers, sample 1 is not, at [0]"),
    ("train --data images.npy", "images.npy must have labels ('class')"),
    ("train --data mine:Data", "data 'mine:Data' can't be found"),
    ("train --settings theirs.yaml", "there is no setting 'learnin_rate'; did you mean learning_rate?"),
    ("train --settings list.yaml", "must hold names and values, got list"),
    ("train --resume nowhere", "No such file or directory: 'nowhere'"),
    ("train --resume own.ckpt --steps 3", "steps must be 2, as in own.ckpt, which is resumed, got 3"),
    ("runs", "there is no folder hibana-runs"),
    ("runs pictures", "folder must hold runs of hibana train, pictures holds none"),
    ("train --resume pictures", "folder pictures holds no run of hibana train"),
    ("predict nowhere good.csv", "No such file or directory: 'nowhere'"),
    ("predict pictures good.csv", "Is a directory: 'pictures'"),
    ("predict", "CHECKPOINT"),
    ("predict good.csv", "checkpoint must be a file that `hibana train` wrote"),
    ("predict own.ckpt fewer.csv", "it has 1, and no 'b'"),
    ("predict own.ckpt text.csv", "column 'b' must be finite numbers, row 1 has 'one'"),
    ("predict own.ckpt nowhere.csv", "samples must be in a file or folder, there is no nowhere.csv"),
    ("predict own.ckpt half.npz", "(the network was trained on data of kind table)"),
    ("predict own.ckpt --json", "--json has no effect on the test set: it is for files of samples, --stream"),
    ("predict own.ckpt good.csv --csv --json", "--csv and --json are two formats; pass one of them"),
    (
        "predict own.ckpt good.csv --window 5",
        "--window has no effect on good.csv: it is for --stream of event",
    ),
    ("predict own.ckpt --rate 8000", "--rate has no effect on the test set: it is for --stream of sound"),
    (
        "predict digits.ckpt pixels.npy",
        "inputs must be in [0, 1] like those of digits; they range from 16 to 16",
    ),
    ("predict digits.ckpt good.csv", "good.csv can't be read: it is not a NumPy file of numbers"),
    ("convert own.ckpt out.tflite", "target must end in .c, .html, .nir, .onnx, .pt2, .v, or --arduino"),
    ("convert own.ckpt net2.c --arduino", "target must be a folder with --arduino, such as net2, got net2.c"),
    ("convert own.ckpt good.csv --arduino", "must be a folder with --arduino, such as good, got good.csv"),
    ("convert own.ckpt net.html", "a page (.html) shows images, and good has inputs of shape [2]"),
    ("play nothere.ckpt", "nothere.ckpt can't be read"),
    ("play --port 70000", "port must be in 0 to 65535, got 70000"),
    ("explain Leaky", "cell must be one of ALIF"),
    ("explain cell:NoCell", "or MODULE:CLASS of your own"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line or "nothing" for line, _ in MISTAKES])
def test_a_mistake_prints_a_one_line_error(line, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = set(Path().rglob("*"))
    assert main(line.split()) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("hibana")
    assert err.count("\n") == 1
    new_files = {path for path in set(Path().rglob("*")) - before if "__pycache__" not in str(path)}
    assert not {path for path in new_files if path.suffix in (".ckpt", ".yaml", ".png")}


@pytest.mark.parametrize("command", ["predict", "convert", "share"])
def test_a_run_that_is_named_without_its_folder_is_suggested(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hibana-runs" / "fruits-0").mkdir(parents=True)
    target = {"predict": [], "convert": ["net.c"], "share": ["shared"]}[command]
    assert main([command, "fruits-0", *target]) == 2
    assert capsys.readouterr().err.endswith("'fruits-0'; did you mean hibana-runs/fruits-0?\n")
    assert main([command, "nuts-0", *target]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("command", _COMMANDS)
def test_no_command_rounds_a_number(command):
    for argument in _APP[command].assemble_argument_collection():
        if argument.hint is int:
            assert argument.parameter.converter is _integer, argument.name


def test_a_warning_names_samples_outside_the_training_range(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["predict", "own.ckpt", "far.csv"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5
    message = "the samples differ from the training data: column 'a' goes from 1e+09 to 1e+09; the training"
    assert message in err


def test_options_are_parsed_alike_if_pydantic_is_imported(folder, capsys):
    pytest.importorskip("pydantic")
    assert main(["train", "--lr", "1"]) == 2
    assert "Did you mean --learning-rate?" in capsys.readouterr().err
