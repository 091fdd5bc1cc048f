"""ExecuTorch, PyTorch's runtime for devices, runs exported networks with the loop over time in them."""

import pytest
import torch
from torch import nn

import hibana as hb

exir = pytest.importorskip("executorch.exir", reason="executorch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # ExecuTorch's warnings


@pytest.mark.parametrize("dynamic_time", [False, True])
def test_executorch_runs_an_exported_network(dynamic_time):
    from executorch.runtime import Runtime

    net = nn.Sequential(nn.Linear(6, 8), hb.LIF(4.0, 0.3), nn.Linear(8, 3), hb.IF(0.2))
    x = torch.rand(25, 1, 6)
    program = exir.to_edge(hb.convert.export(net, x, dynamic_time=dynamic_time)).to_executorch()
    assert len(program.buffer) < 40_000 or not dynamic_time  # the loop is not unrolled
    method = Runtime.get().load_program(bytes(program.buffer)).load_method("forward")
    for steps in (25, 10) if dynamic_time else (25,):  # at most as many as in the example
        assert torch.equal(method.execute([x[:steps]])[0], net(x[:steps]))
