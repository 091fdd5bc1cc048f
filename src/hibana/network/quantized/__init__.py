"""Networks in whole numbers: weights of eight bits, potentials in thirty-two, spikes the same everywhere."""

from hibana.network.quantized.aware import QuantizationAware, quantization_aware
from hibana.network.quantized.changes import LayerChange, Quantization
from hibana.network.quantized.network import quantize

__all__ = ["LayerChange", "Quantization", "QuantizationAware", "quantization_aware", "quantize"]
