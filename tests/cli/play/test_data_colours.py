"""The playground shows data in their colours, also in dark mode, and names the features of tables."""

import pandas
import pytest

pytest.importorskip("bokeh", reason="the extra play is not installed")
pytest.importorskip("lightning", reason="the extra train is not installed")

from bokeh.document import Document

from hibana import train
from hibana.cli.play import server
from hibana.cli.play.network_view import NetworkView


def styles(figure):
    return "".join(map(str, figure.stylesheets))


def test_dark_mode_inverts_figures_and_widgets_but_not_data():
    document = Document(theme=server.THEME)
    view = NetworkView(None, [])
    document.add_root(view.layout)
    data, readout, widget = (
        view.layout.select_one({"name": name}) for name in ("input", "readout", "sample")
    )
    assert "invert" in styles(readout)
    assert "invert" in styles(widget)
    assert "filter: none" in styles(data)
    assert "invert" not in styles(data)
    assert data.border_fill_color is None  # the page's own, light or dark


def test_a_row_of_a_table_is_shown_with_the_names_of_its_features(tmp_path):
    kinds = ["a", "b"] * 20
    frame = pandas.DataFrame({"size": range(40), "origin": kinds, "class": kinds}).sample(
        frac=1, random_state=0
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    settings = train.Settings(data=str(tmp_path / "table.csv"), layers="4", epochs=1, steps=2)
    train.fit(settings, tmp_path / "run")
    view = NetworkView(str(tmp_path / "run"), [])
    axis = view.layout.select_one({"name": "input"}).xaxis[0]
    assert axis.ticker.ticks == [0.5, 1.5]
    assert list(axis.major_label_overrides.values()) == ["origin=a", "origin=b"]
