"""Deep spiking networks of the literature: each one file to be read as a recipe, built of public parts.

Each is a function of the shape of one step of input, the number of classes and what makes a neuron, as
``hibana train --layers hibana.models:sew_resnet`` calls it, and gives a network
``[T, batch, channels, height, width] -> [T, batch, classes]``.
"""

from hibana.nn.models.rocket import rocket
from hibana.nn.models.sew_resnet import sew_resnet
from hibana.nn.models.spikformer import spikformer
from hibana.nn.models.spiking_vgg import spiking_vgg

__all__ = ["rocket", "sew_resnet", "spikformer", "spiking_vgg"]
