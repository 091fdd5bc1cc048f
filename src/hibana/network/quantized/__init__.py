"""Networks in integers: weights of 2 to 8 bits, potentials of 32, and the same spikes on every machine."""

from hibana.network.quantized.aware import QuantizationAware, quantization_aware
from hibana.network.quantized.network import LayerChange, Quantization, quantize

__all__ = ["LayerChange", "Quantization", "QuantizationAware", "quantization_aware", "quantize"]
