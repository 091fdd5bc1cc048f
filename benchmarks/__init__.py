"""What hibana costs beside ``torch.relu`` and beside its peers: ``python -m benchmarks``."""
