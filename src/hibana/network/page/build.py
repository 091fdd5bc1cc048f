"""Builds the web page of a network: its C program as WebAssembly, in one file without external resources."""

import base64
import html
import json
import re
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from hibana.network.c import CProgram, to_c
from hibana.network.integer_network import Quantized
from hibana.network.quantized import quantize
from hibana.runtime.extras import explain_import_error

__all__ = ["to_page", "webassembly"]

_EXPORTS = """
#include "net.h"

static net_state state;
static net_state *const net = &state;
static uint8_t input[NET_INPUTS];
static int32_t output[NET_OUTPUTS];

void *input_at(void) {{ return input; }}
void *output_at(void) {{ return output; }}
void begin(void) {{ net_reset(net); }}
void go(int again) {{
    net_step(net, again ? 0 : input);
    net_output(net, output);
}}
void *scores_at(void) {{
    net_scores(net, output);
    return output;
}}
void *spikes_at(int layer) {{
    switch (layer) {{
{cases}
    default: return 0;
    }}
}}
"""
EXPORTED = ("input_at", "output_at", "begin", "go", "scores_at", "spikes_at")
"""The functions of the WebAssembly module that ``page.html`` calls."""


def to_page(
    net: nn.Module, example: Tensor, *, title: str = "hibana", scores: str = "sum", bits: int = 8
) -> str:
    """The HTML of a page on which `net`, a network for images, classifies drawings and shows its spikes.

    The network runs in integers (:func:`hibana.quantize`), as WebAssembly in the page. The page loads no
    other file, and opens without a server.

    Args:
        net: a network over ``[T, batch, height, width]`` or ``[T, batch, 1, height, width]``.
        example: inputs of `net` that are equal at all steps; the page shows the first twelve as samples.
        title: the title of the page.
        scores: how the outputs over time become scores, as in :func:`to_c`.
        bits: bits of a weight.

    Raises:
        ModuleNotFoundError: if ziglang, which compiles the network, is not installed.
        ValueError: if inputs are not images, or change over time.
        Unsupported: naming the layer, if it has no form in integers or in C.
    """
    shape = tuple(example.shape[2:])
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise ValueError(f"example must hold images [T, batch, height, width], got {tuple(example.shape)}")
    if not bool((example == example[:1]).all()):
        raise ValueError(
            "example must be the same image at each step, which a drawing is, and changes over time"
        )
    small, _ = quantize(net, example, bits)
    program = to_c(small, example, scores=scores)
    page = files("hibana.network.page").joinpath("page.html").read_text(encoding="utf-8")
    description = json.dumps(_description(program, small, example))
    wasm = base64.b64encode(webassembly(program)).decode()
    parts = {"TITLE": html.escape(title), "NETWORK": description.replace("<", "\\u003c"), "WASM": wasm}
    return re.sub(f"@({'|'.join(parts)})@", lambda match: parts[match[1]], page)


def _description(program: CProgram, net: Quantized, example: Tensor) -> dict[str, Any]:
    """The object ``NET`` of the page's script."""
    height, width = example.shape[-2:]
    spiking = {layer.name: i for i, layer in enumerate(program.spiking)}
    samples = net.integer_input(example[0, :12]).flatten(1).to(torch.int64)
    return {
        "height": height,
        "width": width,
        "steps": len(example),
        "scale": net.input_scale,
        "range": list(net.input_range),
        "outputs": program.outputs,
        "outputScale": net.output_scale,
        "bytes": [program.constant_bytes, program.changing_bytes],
        "layers": [{"name": layer.name, "neurons": layer.neurons} for layer in program.spiking],
        "weights": [
            {"dense": cost.dense, "from": spiking.get(cost.source), "size": cost.size}
            for cost in program.costs
            if cost.dense
        ],
        "samples": samples.tolist(),
    }


@explain_import_error("hibana.convert.page")
def webassembly(program: CProgram) -> bytes:
    """An integer program as a WebAssembly module.

    Raises:
        ModuleNotFoundError: if ziglang is not installed.
        RuntimeError: if ziglang cannot compile it.
    """
    if find_spec("ziglang") is None:
        raise ModuleNotFoundError("No module named 'ziglang'", name="ziglang")
    cases = "\n".join(f"    case {i}: return {layer.array};" for i, layer in enumerate(program.spiking))
    with TemporaryDirectory() as name:
        folder = Path(name)
        source, _ = program.write(folder / "net.c")
        (folder / "page.c").write_text(_EXPORTS.format(cases=cases), encoding="utf-8")
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "wasm32-freestanding", "-std=c99", "-O2"]
        command += ["-nostdlib", "-fno-builtin", "-Wl,--no-entry", "-Wl,--strip-all"]
        command += [f"-Wl,--export={exported}" for exported in EXPORTED]
        command += ["-o", str(folder / "net.wasm"), str(source), str(folder / "page.c")]
        process = subprocess.run(command, capture_output=True, check=False)
        if process.returncode:
            reason = process.stderr.decode(errors="replace")
            raise RuntimeError(f"ziglang could not compile the network: {reason.strip()[-400:]}")
        return (folder / "net.wasm").read_bytes()
