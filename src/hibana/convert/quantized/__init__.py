"""Networks in whole numbers: weights of eight bits, potentials in thirty-two, spikes the same everywhere."""

from hibana.convert.quantized.aware import QuantizationAware, quantization_aware
from hibana.convert.quantized.changes import LayerChange, Quantization
from hibana.convert.quantized.network import quantize

__all__ = ["LayerChange", "Quantization", "QuantizationAware", "quantization_aware", "quantize"]
