"""The playground: neurons and networks in a browser, changed by hand.

``hibana play`` starts :func:`hibana.cli.play.server.serve`. Computing is separate from the page:

============  ===========================================================================
``source``    pasted text -> a cell, or an error message with its line
``controls``  the hyper-parameters of a cell, from its signature
``neuron``    one cell's potential, spikes, F-I curve, surrogate and gradient
``network``   a checkpoint of ``hibana train``, and one sample passing through it
``view``      the two views, of Bokeh's widgets and figures
``server``    Bokeh's server on this machine, at an address that others can't guess
============  ===========================================================================

Nothing here is imported by the rest of hibana, and Bokeh only by ``view`` and ``server``
(``pip install '.[play]'``).
"""

__all__: list[str] = []
