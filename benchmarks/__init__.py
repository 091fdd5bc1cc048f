"""Time and memory of hibana compared with ``torch.relu`` and other libraries: ``python -m benchmarks``."""
