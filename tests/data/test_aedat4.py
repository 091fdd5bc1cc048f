"""Recordings in iniVation's format ``.aedat4``: the tests write files byte by byte and decode them.

Format: https://docs.inivation.com, *AEDAT 4.0*: a line, a header and packets, each a FlatBuffer.
"""

import struct
import sys

import numpy as np
import pytest
import torch

from hibana import data, extras
from hibana.data.user_data.events import read_events

XML = """<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">
<node name="0" path="/mainloop/Recorder/outInfo/0/">
<attr key="compression" type="string">NONE</attr>
<attr key="originalModuleName" type="string">capture</attr>
<attr key="originalOutputName" type="string">events</attr>
<attr key="typeIdentifier" type="string">EVTS</attr>
<node name="info" path="/mainloop/Recorder/outInfo/0/info/">
<attr key="sizeX" type="int">34</attr><attr key="sizeY" type="int">34</attr>
<attr key="source" type="string">camera</attr></node></node></node></dv>"""


def with_size(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def packet(events: list[tuple[int, int, int, int]]) -> bytes:
    """A packet of stream 0: a table with a vector of events (time in µs, x, y, on)."""
    table = struct.pack("<I4s3H2xiI", 16, b"EVTS", 6, 8, 4, 8, 4)
    elements = b"".join(struct.pack("<qhhB3x", *event) for event in events)
    content = with_size(table + struct.pack("<I", len(events)) + elements)
    return struct.pack("<II", 0, len(content)) + content


def write_recording(path, *packets):
    """Writes an uncompressed file without a table of packets, and returns `path`."""
    header = struct.pack("<I4s5H2xiiqI", 20, b"IOHE", 10, 20, 4, 8, 16, 12, 0, -1, 4)
    text = with_size(XML.encode()) + b"\0"
    path.write_bytes(b"#!AER-DAT4.0\r\n" + with_size(header + text) + b"".join(map(packet, packets)))
    return path


def test_a_recording_is_read(tmp_path):
    pytest.importorskip("aedat", reason="aedat is not installed")
    pytest.importorskip("tonic", reason="the extra data is not installed")
    events = [(10, 1, 2, 1), (20, 3, 4, 0), (35, 33, 30, 1)]
    path = write_recording(tmp_path / "one.aedat4", events[:2], events[2:])
    assert np.array_equal(read_events(path), events)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"recording .*one\.aedat4"):
        read_events(path)


def test_a_folder_of_recordings_is_a_data_set(tmp_path):
    pytest.importorskip("aedat", reason="aedat is not installed")
    pytest.importorskip("lightning", reason="the extra train is not installed")
    for kind, column in (("left", 3), ("right", 30)):
        (tmp_path / kind).mkdir()
        for number in range(6):
            events = [(100 * step, column, 5 + number, step % 2) for step in range(40)]
            write_recording(tmp_path / kind / f"{number}.aedat4", events)
    dataset = data.Events(tmp_path, size=34, steps=8)
    dataset.setup("fit")
    inputs, label = dataset.train_dataloader().dataset[0]
    assert inputs.shape == (8, 2, 34, 34)
    assert inputs.float().sum() == 8 * 2
    assert torch.nonzero(inputs.float().sum((0, 1, 2))).item() == (3, 30)[int(label)]


def test_the_error_names_the_missing_decoder(tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="the extra train is not installed")
    monkeypatch.setitem(sys.modules, "aedat", None)
    (tmp_path / "class").mkdir()
    write_recording(tmp_path / "class" / "one.aedat4", [(1, 1, 1, 1)])
    with pytest.raises(ModuleNotFoundError) as error:
        read_events(tmp_path / "class" / "one.aedat4")
    assert (
        extras.missing_module_message(error.value)
        == "needs aedat, which is not installed; pip install aedat brings it"
    )
