"""Figures with Matplotlib.

Each function draws on the axes that it is passed, or on a new figure, and returns the axes. Functions with
several panels return the figure or all axes. Text, grids and backgrounds follow Matplotlib's current style
(``plt.style.use("dark_background")``); the colours of the data are readable on light and dark backgrounds.

No function keeps global state (no pyplot) or writes a file: ``axes.figure.savefig(path)`` writes a picture.
Only :func:`gradient_norms` returns values. `dt` is the length of a step in milliseconds; without it, time is
counted in steps.

Importing this module needs Matplotlib (``pip install '.[train]'``).
"""

from hibana.runtime.extras import explain_import_error

with explain_import_error("hibana.plot"):
    from hibana.plot.activity import most_active
    from hibana.plot.anomalies import anomalies
    from hibana.plot.fits import fit
    from hibana.plot.learning import gradient_norms, learning_curves, output_potentials, training
    from hibana.plot.neurons import current_step, membrane, surrogate
    from hibana.plot.spikes import activity, population_rates, raster

__all__ = ["activity", "anomalies", "current_step", "fit", "gradient_norms", "learning_curves", "membrane"]
__all__ += ["most_active"]
__all__ += ["output_potentials", "population_rates", "raster", "surrogate", "training"]
