"""From a trained ReLU network to integrate-and-fire neurons, and from any network to a program of its own.

This module rewrites networks that others trained: :func:`from_ann` puts neurons where the activations were,
:func:`export` writes the loop over time out into plain PyTorch operations, :func:`to_c` writes a file of C.
Nothing is trained here.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hibana.network.ann import from_ann
from hibana.network.report import Conversion, LayerReport, accuracy_over_time
from hibana.network.torch_export import export

if TYPE_CHECKING:
    from hibana.network.c import CProgram, to_c
    from hibana.network.integer_network import Quantized
    from hibana.network.onnx_export import to_onnx
    from hibana.network.quantized import (
        Quantization,
        QuantizationAware,
        quantization_aware,
        quantize,
    )

__all__ = [
    "CProgram",
    "Conversion",
    "LayerReport",
    "Quantization",
    "QuantizationAware",
    "Quantized",
    "accuracy_over_time",
    "export",
    "from_ann",
    "quantization_aware",
    "quantize",
    "to_c",
    "to_onnx",
]

_LAZY = {
    **dict.fromkeys(("CProgram", "to_c"), "c"),
    **dict.fromkeys(("Quantization", "QuantizationAware", "quantization_aware", "quantize"), "quantized"),
    "Quantized": "integer_network",
    "to_onnx": "onnx_export",
}
"""What is loaded when it is first touched, and where it is: for programs of C."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"hibana.network.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
