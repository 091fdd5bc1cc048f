"""The example of an event camera: its recordings, and a played file classified as by the network."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the extra train is not installed")

import hibana as hb
from examples import event_camera
from hibana.data.user_data.events import read_events


def test_a_played_file_is_classified_as_by_the_network(tmp_path):
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    event_camera.write_recordings(tmp_path, 5, random)
    data = hb.data.Events(tmp_path, size=event_camera.SIDE, steps=event_camera.WINDOWS, batch_size=8)
    data.setup()
    assert data.names == tuple(sorted(event_camera.SHAPES))
    assert data.shape == (2, 32, 32)
    net = event_camera.network()
    before = [weights.clone() for weights in net.parameters()]
    event_camera.train(net, data, 1)
    assert not any(map(torch.equal, before, net.parameters()))
    events = read_events(tmp_path / "cross" / "000.npy")
    width = data.description.inputs.duration / event_camera.WINDOWS
    inputs = torch.zeros(int((events[-1, 0] - events[0, 0]) // width) + 1, 1, 2, 32, 32)
    for t, x, y, p in events.astype(np.int64):
        inputs[int((t - events[0, 0]) // width), 0, p, y, x] = 1
    assert 0.005 < inputs.mean() < 0.5
    stream = hb.compile(net, inputs).stream()
    played = list(event_camera.play(stream, events, width, fast=True))
    with torch.no_grad():
        expected = net.eval()(inputs)
    decisive = expected.topk(2).values.diff().abs().flatten() > 1e-3
    classes = torch.tensor([answer.shape for answer in played])
    assert torch.equal(classes[decisive], expected.argmax(2).flatten()[decisive])
    assert decisive.sum() > len(played) / 2


def test_a_moving_shape_is_brighter_before_it_and_darker_behind_it(monkeypatch):
    monkeypatch.setattr(event_camera, "NOISE", 0.0)

    class ToTheRight(np.random.Generator):
        """Draws the centre of the picture as the position, and the direction 0."""

        def uniform(self, low, high, size=None):
            return np.full(size, event_camera.SIDE / 2) if size else low

    events = event_camera.record("circle", 60, ToTheRight(np.random.PCG64(0)), start=5)
    assert 5000 <= events["t"].min() <= events["t"].max() < 65_000
    assert (np.diff(events["t"]) >= 0).all()
    brighter, darker = events[events["p"] == 1], events[events["p"] == 0]
    assert min(len(brighter), len(darker)) > 10
    assert brighter["x"].min() > event_camera.SIDE / 2 > darker["x"].max()


def test_the_example_runs(monkeypatch, capsys):
    arguments = ["--fast", "--recordings", "5", "--epochs", "1", "--seconds", "0.5"]
    monkeypatch.setattr(sys, "argv", ["event_camera.py", *arguments])
    event_camera.main()
    output = capsys.readouterr().out
    assert "99th percentile" in output
    assert "(shown: circle)" in output
