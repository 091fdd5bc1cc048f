"""The playground: cells, networks and their pictures in a browser, moved by hand.

``hibana play`` starts :func:`hibana.cli.play.server.serve`. Computing is apart from the page:

============  =====================================================================================
``source``    pasted text -> a cell, or a sentence that says what is wrong and in which line
``controls``  the hyper-parameters of a cell, discovered from its signature and by trying values
``neuron``    one cell's answer: potential, spikes, F-I curve, surrogate, gradient
``network``   a checkpoint of ``hibana train``, and one sample on its way through it
``worker``    the process in which all of that runs: pasted code can hang or end it, and nothing else
``pump``      the latest question is answered, those that came meanwhile are dropped
``view``      the two views, of Bokeh's widgets and figures
``server``    who may ask: this machine, this address, who has the token
============  =====================================================================================

**Why Bokeh.** The same page, one slider that redraws a line of 400 points, was written with each candidate
and timed in headless Chromium on two shared cores, from the key press to the answer on screen (medians;
``docs/play.md`` has the table): Bokeh 22 ms, NiceGUI 23 ms, Panel 69 ms, marimo 193 ms. Of the two that leave
time for computing within 100 ms, Bokeh installs 11 distributions, of which a hibana with the extra ``train``
lacks three, and NiceGUI 49. Bokeh serves its own scripts, so no network is needed, checks the origin of a
websocket, sends arrays as bytes, and its plots zoom and can be saved.

Nothing here is imported by the rest of hibana, and Bokeh only by ``view`` and ``server``
(``pip install '.[play]'``).
"""

__all__: list[str] = []
