"""Spikes as objects of Neo and of Neurodata Without Borders (NWB), for tools of neuroscience."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np

from hibana.nn.spike_trains import SpikeTrains
from hibana.runtime.extras import explain_import_error

__all__ = ["to_neo", "to_nwb"]


@explain_import_error("hibana.convert.to_neo")
def to_neo(populations: Mapping[str, SpikeTrains] | SpikeTrains, dt: float) -> Any:
    """The spikes as a ``neo.Block`` with one segment, which holds one ``neo.SpikeTrain`` per neuron.

    Elephant analyses these objects, and ``neo.io`` writes them to files. A spike at step t has the time
    ``t * dt``. Each train has the annotations `population`, the name, and `neuron`, the number within the
    population: ``block.segments[0].filter(population="L4E")``.

    Args:
        populations: the spikes of each population by name, or of one population, with the empty name.
        dt: the length of a step in milliseconds.

    Raises:
        ModuleNotFoundError: if neo is not installed.
        ValueError: if `dt` is not positive.
    """
    import neo

    segment = neo.Segment()
    for population, neuron, times, duration in _trains(populations, dt):
        train = neo.SpikeTrain(times, duration, units="ms", population=population, neuron=neuron)
        segment.spiketrains.append(train)
    block = neo.Block()
    block.segments.append(segment)
    return block


@explain_import_error("hibana.convert.to_nwb")
def to_nwb(populations: Mapping[str, SpikeTrains] | SpikeTrains, dt: float, description: str) -> Any:
    """The spikes as a ``pynwb.NWBFile`` in memory, with one row of its table ``units`` per neuron.

    The columns are ``spike_times`` in seconds, ``obs_intervals`` (the duration), ``population`` and
    ``neuron``. The start of the session is the time of this call. ``pynwb.NWBHDF5IO(path, "w").write(file)``
    writes the file.

    Args:
        populations: the spikes of each population by name, or of one population, with the empty name.
        dt: the length of a step in milliseconds.
        description: the description of the session, which NWB requires.

    Raises:
        ModuleNotFoundError: if pynwb is not installed.
        ValueError: if `dt` is not positive.
    """
    import pynwb

    file = pynwb.NWBFile(description, str(uuid4()), datetime.now(UTC))
    file.add_unit_column("population", "name of the population")
    file.add_unit_column("neuron", "number of the neuron within its population")
    for population, neuron, times, duration in _trains(populations, dt / 1000):
        interval = [[0.0, duration]]
        file.add_unit(spike_times=times, obs_intervals=interval, population=population, neuron=neuron)
    return file


def _trains(
    populations: Mapping[str, SpikeTrains] | SpikeTrains, dt: float
) -> Iterator[tuple[str, int, Any, float]]:
    """Population, number, spike times and duration of each neuron; times are in the unit of `dt`."""
    if not dt > 0:
        raise ValueError(f"dt must be the positive length of a step in milliseconds, got {dt!r}")
    for name, spikes in (populations if isinstance(populations, Mapping) else {"": populations}).items():
        times = (spikes.steps[spikes.neurons.argsort(stable=True)].double() * dt).cpu().numpy()
        ends = spikes.neurons.bincount(minlength=spikes.shape[1]).cumsum(0).cpu().numpy()
        for neuron, train in enumerate(np.split(times, ends)[:-1]):
            yield name, neuron, train, spikes.shape[0] * dt
