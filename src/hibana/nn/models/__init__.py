"""Networks that ``hibana train`` chooses by itself. Deep networks are in ``examples/deep_networks.py``."""

from hibana.nn.models.rocket import rocket

__all__ = ["rocket"]
