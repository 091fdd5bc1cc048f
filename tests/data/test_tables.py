"""Tables: categories that are new, and rows that are the steps of sequences."""

import pandas
import pytest

from hibana import data, train
from hibana.cli import main


def fruits(count=40):
    """A table with a category `origin`, from which the label follows."""
    origins = ["north", "south"] * (count // 2)
    sizes = [k % 5 + (origin == "north") for k, origin in enumerate(origins)]
    return pandas.DataFrame({"size": sizes, "origin": origins, "class": origins})


def test_a_category_that_was_not_in_the_training_data_is_named_in_a_warning(tmp_path, capsys):
    fruits().to_csv(tmp_path / "fruits.csv", index=False)
    new = fruits(4).assign(origin=["north", "Mars", None, "south"])
    new.to_csv(tmp_path / "new.csv", index=False)
    run, file = str(tmp_path / "run"), str(tmp_path / "fruits.csv")
    train.fit(train.Settings(data=file, label="class", layers="4", epochs=1, steps=2), run)
    assert main(["predict", run, str(tmp_path / "new.csv")]) == 0
    warning = "the samples differ from the training data: column 'origin' has 'Mars', which is not in the"
    assert warning in capsys.readouterr().err
    known = new.assign(origin=["north", None, "south", "south"])
    assert train.predict(run, known).warning == ""


def long_table(**changes):
    """Ten cases of four steps each."""
    cases = [case for case in range(10) for _ in range(4)]
    times, values = [0, 1, 2, 3] * 10, [k * 0.37 % 1 for k in range(40)]
    return pandas.DataFrame({"case": cases, "t": times, "x": values, "y": [c % 2 for c in cases]} | changes)


@pytest.mark.parametrize("names", ["case", ["a"] * 20 + ["b"] * 20])
def test_a_long_table_without_a_group_asks_for_it(tmp_path, capsys, names):
    if names == "case":
        table = long_table()
    else:  # texts as cases, and times that go on within them
        table = long_table(case=names, t=[*range(20)] * 2, y=[0] * 20 + [1] * 20)
    table.to_csv(tmp_path / "long.csv", index=False)
    assert main(["train", "--data", str(tmp_path / "long.csv")]) == 2
    error = capsys.readouterr().err
    assert "the times 't' repeat for each 'case', whose rows have one label 'y'" in error
    assert "--group case" in error
    sequences = data.Sequences(tmp_path / "long.csv", group="case")
    assert sequences.read(sequences.source).values[0].shape == (4 if names == "case" else 20, 1)
    table = data.Table(tmp_path / "long.csv", columns=["x", "t"])
    assert table.shape == (2,)


@pytest.mark.parametrize(
    "changes",
    [
        {"t": list(range(40))},  # each row has a time of its own
        {"t": [0] * 40},  # a time repeats within a case
        {"y": [k % 2 for k in range(40)]},  # labels differ within a case
        {"case": [k * 0.1 for k in range(40)]},
    ],
)
def test_other_tables_with_times_are_read_row_by_row(changes):
    table = data.Table(long_table(**changes))
    table.setup()
    assert len(table.training) > 20
