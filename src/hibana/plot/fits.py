"""A fitted neuron beside its recording."""

from matplotlib.figure import Figure

from hibana.learn.fit import Fit
from hibana.plot import style

MOST_STEPS = 20_000
"""Steps before and after the first held-out step that are drawn."""


def fit(result: Fit, trial: int = 0) -> Figure:
    """Draws potential and spikes of a recording and of the fitted cell, around the first held-out step.

    Args:
        result: the result of :func:`hibana.learn.fit_cell`.
        trial: the trial to draw.
    """
    recording = result.recording
    part = slice(max(0, result.step - MOST_STEPS), result.step + MOST_STEPS)
    voltage, spikes = (values[part, trial] for values in result.simulate(recording.currents))
    figure = style.new_figure(9, 4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    times = style.times(below, len(recording.currents), recording.dt)[part]
    for row, colour, train in (1, style.BLUE, recording.spikes[part, trial]), (0, style.ORANGE, spikes):
        above.vlines(times[train.numpy() > 0], row - 0.4, row + 0.4, color=colour)
    above.set_yticks([1, 0], ["recording", "fit"])
    if recording.voltage is not None:
        below.plot(times, recording.voltage[part, trial], color=style.BLUE, linewidth=0.8, label="recording")
    below.plot(times, voltage, color=style.ORANGE, linewidth=0.8, label="fit")
    below.set_ylabel("Potential")
    for axes in above, below:
        style.without_frame(axes)
        if result.step < len(recording.currents):
            end = len(recording.currents) * recording.dt
            axes.axvspan(result.step * recording.dt, end, color=style.GREY, alpha=0.2, label="held out")
    below.set_xlim(times[0], times[-1])
    below.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), fontsize="small")
    return figure
