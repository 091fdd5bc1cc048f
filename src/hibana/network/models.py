"""Ready networks: the spiking Rocket, and the integrate-and-fire network of a wiring diagram."""

from hibana.network.connectome import connectome
from hibana.nn.models.rocket import rocket

__all__ = ["connectome", "rocket"]
