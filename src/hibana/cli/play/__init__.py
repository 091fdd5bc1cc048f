"""The playground: a page in the browser to change neurons and watch networks.

``hibana play`` starts :func:`hibana.cli.play.server.serve`, a Bokeh server on this machine. ``source``
compiles pasted text to a cell, ``fields`` creates widgets for a cell's signature. ``neuron`` and ``network``
compute the data that ``neuron_view`` and ``network_view`` draw. Only the views, ``figures``, ``fields`` and
``server`` import Bokeh (``pip install '.[play]'``).
"""

__all__: list[str] = []
