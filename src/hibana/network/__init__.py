"""Conversion of trained networks: from ReLU networks, and to integers, C, ONNX and PyTorch programs.

:func:`from_ann` replaces activations by integrate-and-fire neurons, :func:`quantize` real numbers by
integers. :func:`to_c`, :func:`to_onnx` and :func:`export` write the loop over time for other programs,
:func:`to_verilog` a circuit. :func:`to_snntorch` converts to modules of snnTorch.
:func:`to_neo` and :func:`to_nwb` convert recorded spikes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hibana.cells.peer_aliases import suggestion
from hibana.network.ann import from_ann
from hibana.network.report import Conversion, LayerReport, accuracy_over_time
from hibana.network.torch_export import export
from hibana.runtime.extras import explain_import_error

if TYPE_CHECKING:
    from hibana.network.c import CProgram, to_c
    from hibana.network.c.detector import CDetector, detector_to_c
    from hibana.network.integer_network import Quantized
    from hibana.network.onnx_export import to_onnx
    from hibana.network.quantized import Quantization, QuantizationAware, quantization_aware, quantize
    from hibana.network.snntorch_export import to_snntorch
    from hibana.network.spike_export import to_neo, to_nwb
    from hibana.network.verilog import VerilogProgram, to_verilog

__all__ = [
    "CDetector",
    "CProgram",
    "Conversion",
    "LayerReport",
    "Quantization",
    "QuantizationAware",
    "Quantized",
]
__all__ += [
    "VerilogProgram",
    "accuracy_over_time",
    "detector_to_c",
    "export",
    "from_ann",
    "quantization_aware",
    "quantize",
]
__all__ += ["to_c", "to_neo", "to_nwb", "to_onnx", "to_snntorch", "to_verilog"]

_LAZY = {
    **dict.fromkeys(("CProgram", "to_c"), "c"),
    **dict.fromkeys(("CDetector", "detector_to_c"), "c.detector"),
    **dict.fromkeys(("Quantization", "QuantizationAware", "quantization_aware", "quantize"), "quantized"),
    "Quantized": "integer_network",
    **dict.fromkeys(("VerilogProgram", "to_verilog"), "verilog"),
    "to_onnx": "onnx_export",
    "to_snntorch": "snntorch_export",
    **dict.fromkeys(("to_neo", "to_nwb"), "spike_export"),
}
"""Modules of this package that are imported at the first use of a name, by name."""


def __getattr__(name: str) -> Any:
    """Imports the module of a public name when the name is first read."""
    if name in _LAZY:
        with explain_import_error(f"hibana.convert.{name}"):
            return getattr(importlib.import_module(f"hibana.network.{_LAZY[name]}"), name)
    hint = suggestion(name, __all__)
    raise AttributeError(f"module 'hibana.convert' has no attribute {name!r}{hint}")
