"""What people look at: drawings with Matplotlib.

Each function takes the axes to draw on, or makes a figure with axes of its own, and returns the axes; what
has several panels returns the figure or all of its axes. Text, grids and backgrounds follow Matplotlib's
style in force (``plt.style.use("dark_background")``), and the data's colours read on light and on dark.

Nothing here keeps global state (no pyplot) or touches a file:
``axes.figure.savefig(path)`` writes a picture. Only :func:`gradient_norms` computes what is shown.

Where a function takes `dt`, it is the length of a step in milliseconds; without it time is counted in steps.

Importing this module needs Matplotlib (``pip install '.[train]'``).
"""

from hibana.runtime.extras import explain_import_error

with explain_import_error("hibana.plot"):
    from hibana.plot.gradients import gradient_norms
    from hibana.plot.learning import learning_curves, training
    from hibana.plot.neurons import current_step, membrane, surrogate
    from hibana.plot.outputs import output_potentials
    from hibana.plot.spikes import raster

__all__ = [
    "current_step",
    "gradient_norms",
    "learning_curves",
    "membrane",
    "output_potentials",
    "raster",
    "surrogate",
    "training",
]
