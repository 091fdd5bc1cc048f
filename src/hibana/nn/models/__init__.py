"""Networks that ``hibana train`` selects by default. Deep networks are in ``examples/deep_networks.py``."""

from hibana.nn.models.rocket import rocket

__all__ = ["rocket"]
