"""Statistics of spikes stored as events, against numpy's on the dense spikes."""

import numpy as np
import pytest
import torch

import hibana as hb
from scenes import spikes

T, N = 500, 40
DENSE = spikes(T, N, rate=0.05)
DENSE[:, 7] = 0  # a silent neuron
DENSE[:, 8] = 0
DENSE[[3, 90], 8] = 1  # one interval


def trains():
    return hb.SpikeTrains.from_dense(DENSE)


def dense(trains):
    values = torch.zeros(trains.shape)
    values[trains.steps, trains.neurons.long()] = 1
    return values


@pytest.mark.parametrize(("start", "stop"), [(0, None), (100, 350), (100, 9999), (-50, None), (350, 100)])
def test_a_part_of_the_steps_is_a_slice(start, stop):
    part = trains().between(start, stop)
    assert (len(part), part.shape) == (int(DENSE[start:stop].sum()), DENSE[start:stop].shape)
    assert torch.equal(dense(part), DENSE[start:stop])


def test_groups_are_consecutive_neurons():
    groups = trains().split({"a": 5, "empty": 0, "b": 35})
    assert torch.equal(torch.cat([dense(group) for group in groups.values()], 1), DENSE)
    assert [group.shape for group in groups.values()] == [(T, 5), (T, 0), (T, 35)]
    with pytest.raises(ValueError, match="sizes must sum to 40 neurons, got 5"):
        trains().split({"a": 5})


def test_rates_are_per_step_or_per_second():
    assert torch.allclose(trains().rates(), DENSE.double().mean(0))
    assert torch.allclose(trains().rates(dt=0.1), DENSE.double().mean(0) * 10_000)


def test_irregularity_is_the_spread_of_the_intervals_over_their_mean():
    intervals = [np.diff(column.nonzero()[0]) for column in DENSE.numpy().T]
    expected = [i.std() / i.mean() if len(i) > 1 else np.nan for i in intervals]
    assert np.isnan(expected).nonzero()[0].tolist() == [7, 8]
    torch.testing.assert_close(trains().irregularity(), torch.tensor(expected).double(), equal_nan=True)


@pytest.mark.parametrize(("bin_width", "dt", "steps"), [(3, None, 3), (3.0, 0.1, 30), (50, 0.5, 100)])
def test_synchrony_and_correlations_are_those_of_binned_counts(bin_width, dt, steps):
    counts = DENSE[: T // steps * steps].view(T // steps, steps, N).sum(1).double()
    population = counts.sum(1).numpy()
    assert trains().synchrony(bin_width, dt) == pytest.approx(population.var() / population.mean())
    chosen = [n for n in range(N) if n != 7][:12]
    matrix = torch.corrcoef(counts[:, chosen].T)
    pairs = matrix[tuple(torch.triu_indices(12, 12, 1))]
    correlations = trains().correlations(bin_width, dt, most=12)
    torch.testing.assert_close(correlations, pairs, equal_nan=True)


def test_without_spikes_there_are_no_pairs_and_no_synchrony():
    silent = hb.SpikeTrains.from_dense(torch.zeros(10, 3))
    assert silent.correlations().shape == (0,)
    assert np.isnan(silent.synchrony())
    assert silent.irregularity().isnan().all()


@pytest.mark.parametrize(
    ("steps", "neurons", "message"),
    [
        ([0, 1], [0], r"must both be \[spikes\], got \(2,\) and \(1,\)"),
        ([0, 5], [0, 0], r"steps must lie in \[0, 5\), got 0 to 5"),
        ([0, 1], [-1, 0], r"neurons must lie in \[0, 3\), got -1 to 0"),
        ([2, 1], [0, 0], "steps must be in ascending order"),
    ],
)
def test_indices_outside_of_the_shape_are_refused(steps, neurons, message):
    with pytest.raises(ValueError, match=message):
        hb.SpikeTrains(torch.tensor(steps), torch.tensor(neurons), (5, 3))
    with pytest.raises(ValueError, match="bin_width must be from one step to half of the 500 steps"):
        trains().synchrony(251)
