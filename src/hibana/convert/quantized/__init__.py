"""Networks in whole numbers: weights of eight bits, potentials in thirty-two, spikes the same everywhere."""

from hibana.convert.quantized.network import LayerChange, Quantization, quantize
from hibana.convert.quantized.training import quantization_aware

__all__ = ["LayerChange", "Quantization", "quantization_aware", "quantize"]
