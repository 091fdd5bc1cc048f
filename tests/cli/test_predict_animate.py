"""``hibana predict --animate``: a recording on its way through a network, as a picture that moves."""

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("matplotlib", reason="the extra train is not installed")

from PIL import Image

from hibana import train
from hibana.cli import main


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """Bars that move left or right, and a network that was hardly trained on them."""
    folder, drawn = tmp_path_factory.mktemp("bars"), np.random.default_rng(0)
    for k in range(20):
        way = 1 - k % 2 * 2
        t, y = np.arange(30).repeat(6), np.tile(np.arange(6), 30)
        events = np.stack([t * 1000 + y, 6 + way * t // 6, 2 + y, drawn.integers(0, 2, 180)], 1)
        path = folder / "mine" / ("right", "left")[k % 2] / f"{k:02}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, events)
    settings = train.Settings(
        data=str(folder / "mine"), kind="events", steps=6, layers="3c3-16", epochs=1, batch_size=8
    )
    train.fit(settings, folder / "run")
    return folder


def test_a_recording_is_answered_and_shown(bars, tmp_path, capsys):
    target = tmp_path / "new.gif"
    recording = bars / "mine" / "left" / "01.npy"
    assert main(["predict", str(bars / "run"), str(recording), "--animate", str(target)]) == 0
    assert "01.npy" in capsys.readouterr().out
    with Image.open(target) as image:
        assert image.n_frames >= 6
        first = np.asarray(image.convert("L"))
        image.seek(5)
        assert not np.array_equal(first, np.asarray(image.convert("L")))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("mine", "--animate", "new.gif"), "--animate shows one sample"),
        (("mine/left/01.npy", "--animate", "new.png"), "--animate needs a .gif or .mp4, got new.png"),
        (("--animate", "new.gif"), "--animate needs a sample to show"),
    ],
)
def test_what_can_not_be_shown_is_refused(bars, tmp_path, monkeypatch, capsys, given, says):
    monkeypatch.chdir(bars)
    assert main(["predict", str(bars / "run"), *given]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not list(bars.glob("new.*"))
