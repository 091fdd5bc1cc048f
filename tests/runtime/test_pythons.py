"""Behaviour that depends on the release of Python: the interpreter's lock, and the start of processes."""

import multiprocessing
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
FREE = "import sys; sys._is_gil_enabled = lambda: {enabled}; import hibana; print('imported')"


def _run(folder, code, *arguments):
    (folder / "program.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "program.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_hibana_needs_the_global_interpreter_lock(tmp_path):
    free = _run(tmp_path, FREE.format(enabled=False))
    (error,) = [line for line in free.stderr.splitlines() if line.startswith("ImportError")]
    assert "global interpreter lock, which is off" in error
    assert "PYTHON_GIL=1" in error
    assert free.stdout == ""
    assert _run(tmp_path, FREE.format(enabled=True)).stdout == "imported\n"


PROCESSES = """
import multiprocessing
import sys

import pandas
import torch
from torch import nn

import hibana as hb


class Own(hb.Cell):
    def forward(self, input_, v_previous, s_previous):
        v = 0.9 * v_previous * (1 - s_previous) + input_
        return v, hb.spike(v - 1, hb.surrogate.ATan())


def trained(net, inputs):
    net(inputs).sum().backward()
    return [each.grad.numpy() for each in net.parameters()]


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    smooth = hb.surrogate.ATan()
    layers = [nn.Linear(8, 64), hb.PLIF(surrogate=smooth), hb.Recurrent(hb.LIFCell(surrogate=smooth), 64)]
    net = nn.Sequential(*layers, hb.OverTime(Own()), nn.Linear(64, 4), hb.LI())
    inputs = 5 * torch.rand(10, 16, 8)
    here = [each.copy() for each in trained(net, inputs)]  # kernels are compiled, and threads run
    net.zero_grad()
    with multiprocessing.Pool(1) as pool:
        there = pool.apply(trained, (net, inputs))
    assert all((a == b).all() and abs(a).max() > 0 for a, b in zip(here, there, strict=True))

    labels = [0, 1] * 20
    frames = [pandas.DataFrame(torch.rand(5 + i % 3, 2).numpy()) for i in range(40)]
    for kind, source in ((hb.data.Arrays, torch.rand(40, 1, 8, 8)), (hb.data.Sequences, frames)):
        batches = []
        for workers in (0, 2):
            data = kind(source, labels=labels, batch_size=8, workers=workers)
            data.setup()
            batches.append([part for batch in data.train_dataloader() for part in batch])
        assert len(batches[0]) > 4
        assert all(map(torch.equal, *batches))
    print("equal")
"""


def test_networks_and_data_can_be_sent_to_processes_of_a_fork_server(tmp_path):
    """Python 3.14 starts processes this way on Linux; earlier releases fork."""
    methods = multiprocessing.get_all_start_methods()
    process = _run(tmp_path, PROCESSES, "forkserver" if "forkserver" in methods else "spawn")
    assert process.stdout == "equal\n", process.stderr
