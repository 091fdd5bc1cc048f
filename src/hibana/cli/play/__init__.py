"""The playground: neurons and networks in a browser, changed by hand.

``hibana play`` starts :func:`hibana.cli.play.server.serve`, a Bokeh server on this machine. ``source`` turns
pasted text into a cell, ``fields`` a cell's signature into widgets; ``neuron`` and ``network`` compute what
``neuron_view`` and ``network_view`` show. Bokeh is imported by the views, the fields and the server only
(``pip install '.[play]'``).
"""

__all__: list[str] = []
