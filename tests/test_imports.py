"""What `import hibana` loads."""

import subprocess
import sys

HEAVY = [
    "bokeh",
    "lightning",
    "matplotlib",
    "nir",
    "numba",
    "rich",
    "sklearn",
    "tonic",
    "torchmetrics",
    "torchvision",
    "triton",
]


def test_import_hibana_loads_no_extra_and_no_numba():
    code = f"import sys, hibana; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_neuron_is_compiled_without_numba():
    code = (
        "import sys, torch, hibana as hb; x = torch.rand(4, 9, requires_grad=True);"
        "hb.unroll(hb.IFCell(), x, backend='cpu')[0].sum().backward(); print('numba' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
