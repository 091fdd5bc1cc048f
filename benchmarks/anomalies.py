"""Anomalies: NAB's score and three generated kinds, beside three baselines, in memory that does not grow.

``python -m benchmarks.anomalies FOLDER`` scores the streams of the Numenta Anomaly Benchmark in FOLDER (with
``windows.json``, files may end in ``.gz``); without FOLDER it measures the share of generated anomalies that
are alarms, the rate of false alarms, and 10^6 steps that are learned. It needs scikit-learn and stumpy.

NAB's rule (Lavin and Ahmad, 2015): the standard profile and one threshold over all streams. Each detector's
scores pass through one silence: a score counts only if it is above those of the 50 steps before. hibana and
the windowed Gaussian learn as they go; the isolation forest and the matrix profile see the complete stream,
in windows of 64 steps, and their scores are standardized for each stream.
"""

import argparse
import csv
import gzip
import json
import math
import resource
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import hibana as hb

WINDOW, SILENCE = 64, 50
STEPS, RATE = 10_000, 1 / 1000
KINDS = {"bearing": (1, 2, 4), "heartbeat": (1, 2, 4), "stuck": (10, 40, 160)}


def read(folder: Path):
    """The values of each stream, and its windows as the first and the last step."""
    streams = {}
    for name, windows in json.loads((folder / "windows.json").read_text()).items():
        path = folder / name
        text = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
        rows = list(csv.DictReader(text.decode().splitlines()))
        times = [row["timestamp"][:19] for row in rows]
        steps = [
            (int(np.searchsorted(times, start[:19])), int(np.searchsorted(times, end[:19], "right") - 1))
            for start, end in windows
        ]
        streams[name] = np.array([float(row["value"]) for row in rows]), steps
    return streams


def _sigmoid(x):
    return -1.0 if x > 3 else 2 / (1 + math.exp(5 * x)) - 1


def _weights(steps, windows):
    """For each step, its window (-1: none) and what an alarm there adds to the score."""
    inside, weights = np.full(steps, -1), np.full(steps, -0.11)
    for window, (start, end) in enumerate(windows):
        inside[start : end + 1] = window
    last = None
    for step in range(steps):
        if inside[step] >= 0:
            last = start, end = windows[inside[step]]
            weights[step] = _sigmoid(-(end - step + 1) / (end - start + 1)) / _sigmoid(-1)
        elif last:
            weights[step] = 0.11 * _sigmoid(abs(last[1] - step) / max(last[1] - last[0], 1))
    return inside, weights


def nab_score(streams, scores):
    """NAB's score in percent at the best threshold: 0 for no alarms, 100 for the perfect detector."""
    events, windows = [], sum(len(steps) for _, steps in streams.values())
    for name, (values, steps) in streams.items():
        inside, weights = _weights(len(values), steps)
        events += [
            (float(scores[name][step]), (name, int(inside[step])), weights[step])
            for step in range(min(int(0.15 * len(values)), 750), len(values))
        ]
    events.sort(key=lambda event: -event[0])
    best, total, largest = {}, -float(windows), -float(windows)
    for index, (score, window, weight) in enumerate(events):
        if window[1] < 0:
            total += weight
        else:
            total += max(0.0, weight - best[window]) if window in best else 1 + weight
            best[window] = max(weight, best.get(window, weight))
        if index + 1 == len(events) or events[index + 1][0] != score:
            largest = max(largest, total)
    return 100 * (largest + windows) / (2 * windows)


def silenced(scores):
    """Scores of which only those count that are above all of the steps before."""
    return [
        x if i == 0 or x > scores[max(0, i - SILENCE) : i].max() else x - 1e6 for i, x in enumerate(scores)
    ]


def windowed_gaussian(values, width=6400, refresh=100):
    """NAB's baseline: the tail of a normal distribution of the steps before."""
    scores, mean, deviation = np.zeros(len(values)), 0.0, 1.0
    for i, x in enumerate(values):
        if i:
            scores[i] = 1 - 0.5 * math.erfc(abs(x - mean) / (deviation * math.sqrt(2)))
        count = i + 1
        if count == 1 or count % refresh == 0 or count < 10:
            past = values[max(0, count - width) : count]
            mean, deviation = past.mean(), max(past.std(), 1e-6)
    return scores


def _windows(values):
    return np.lib.stride_tricks.sliding_window_view(values, WINDOW)


def _from_end(scores):
    """The score of each step: that of the window which ends there."""
    return np.concatenate([np.full(WINDOW - 1, scores.min()), scores])


def isolation_forest(training, values):
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(random_state=0).fit(_windows(training))
    return _from_end(-forest.score_samples(_windows(values)))


def matrix_profile(training, values):
    import stumpy

    other = None if training is values else training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of equal windows
        profile = stumpy.stump(values, WINDOW, T_B=other, ignore_trivial=other is None)[:, 0].astype(float)
    return _from_end(np.nan_to_num(profile, posinf=0.0))


def online(values, seed):
    return hb.learn.AnomalyDetector(seed=seed)(torch.from_numpy(values)).numpy()


def score_nab(folder: Path, seeds: int):
    streams = read(folder)
    results = {
        "windowed Gaussian": lambda x: windowed_gaussian(x),
        "isolation forest": lambda x: isolation_forest(x, x),
        "matrix profile": lambda x: matrix_profile(x, x),
    }
    for seed in range(seeds):
        results[f"hibana, seed {seed}"] = lambda x, seed=seed: online(x, seed)
    print(f"{len(streams)} streams, {sum(len(steps) for _, steps in streams.values())} windows")
    for name, detect in results.items():
        scores = {stream: detect(values) for stream, (values, _) in streams.items()}
        if name in ("isolation forest", "matrix profile"):  # else one threshold would not fit all streams
            scores = {stream: (each - each.mean()) / each.std() for stream, each in scores.items()}
        plain = nab_score(streams, scores)
        silent = nab_score(streams, {stream: silenced(each) for stream, each in scores.items()})
        print(f"{name:20} {plain:5.1f}, with silence {silent:5.1f}", flush=True)


def generated(kind, random, level=0, starts=()):
    """A series of 10,000 steps with an anomaly of this level at each of `starts`, and its length."""
    time_, length = np.arange(STEPS), 200
    if kind == "bearing":
        values = random.standard_normal(STEPS) + 2 * np.sin(2 * np.pi * time_ / 25)
        for start in starts:
            tone = np.sin(2 * np.pi * 0.23 * np.arange(length) + random.uniform(0, 6))
            values[start : start + length] += level * tone
    elif kind == "heartbeat":
        beats = np.cumsum(40 * (1 + 0.04 * random.standard_normal(STEPS // 40 + 20)))
        present = np.ones(len(beats), bool)
        for start in starts:
            first = np.searchsorted(beats, start)
            present[first : first + level] = False
        values, length = 0.05 * random.standard_normal(STEPS), 40 * (level + 1)
        for centre, width, height in (
            (-7, 2.5, 0.2), (-1, 0.9, -0.15), (0, 0.9, 1.0), (1.5, 1.0, -0.25), (10, 4, 0.3)
        ):  # fmt: skip
            for beat in beats[present & (beats < STEPS + 40)]:
                near = slice(max(0, int(beat) - 40), max(0, int(beat) + 40))
                values[near] += height * np.exp(-0.5 * ((time_[near] - beat - centre) / width) ** 2)
    else:
        noise, drift = random.standard_normal((2, STEPS)) * 0.1, np.zeros(STEPS)
        for i in range(1, STEPS):
            drift[i] = 0.95 * drift[i - 1] + noise[0, i]
        values, length = 20 + 5 * np.sin(2 * np.pi * time_ / 288) + drift + noise[1], level
        for start in starts:
            values[start : start + level] = values[start]
    return values, length


def _hibana(training, *others):
    detector = hb.learn.AnomalyDetector()
    detector(torch.from_numpy(training))
    results = []
    for values in others:
        detector.reset()
        results.append(detector(torch.from_numpy(values), learn=False).numpy())
    return results


DETECTORS = {
    "windowed Gaussian": lambda a, *rest: [abs(x - a.mean()) / a.std() for x in rest],
    "isolation forest": lambda a, *rest: [isolation_forest(a, x) for x in rest],
    "matrix profile": lambda a, *rest: [matrix_profile(a, x) for x in rest],
    "hibana": _hibana,
}


def score_generated(repetitions: int):
    """Prints the share of anomalies that are alarms, and alarms on normal series over the requested ones."""
    starts = [300 + 950 * i for i in range(10)]
    for name, detect in DETECTORS.items():
        for kind, levels in KINDS.items():
            shares, false, expected = dict.fromkeys(levels, 0.0), 0, 0.0
            for seed in range(repetitions):
                random = np.random.default_rng(seed)
                training, held_out, normal = (generated(kind, random)[0] for _ in range(3))
                series = [generated(kind, random, level, starts) for level in levels]
                held_scores, normal_scores, *rest = detect(
                    training, held_out, normal, *(values for values, _ in series)
                )
                judge = hb.learn.AnomalyDetector()
                judge.calibrate(torch.tensor(held_scores, dtype=torch.float32), RATE)
                false += len(judge.alarms(torch.tensor(normal_scores)))
                expected += RATE * STEPS
                for level, (_, length), scores in zip(levels, series, rest, strict=True):
                    judge.reset()
                    alarms = np.array(judge.alarms(torch.tensor(scores)))
                    shares[level] += sum(
                        bool(((alarms >= start) & (alarms < start + length + WINDOW)).any())
                        for start in starts
                    )
            text = ", ".join(f"{level}: {100 * n / 10 / repetitions:.0f}%" for level, n in shares.items())
            print(f"{name:18} {kind:10} {text}; alarms / requested {false / expected:.2f}", flush=True)


def score_memory(steps: int = 1_000_000, at_once: int = 10_000):
    """Prints the time of a step that is learned, and how much the process grows in 10^6 steps."""
    detector, random = hb.learn.AnomalyDetector(threshold=8.0), np.random.default_rng(0)
    sizes, seconds = [], 0.0
    for start in range(0, steps, at_once):
        wave = torch.from_numpy(
            np.sin(np.arange(start, start + at_once) / 20) + random.normal(0, 0.1, at_once)
        )
        begin = time.perf_counter()
        detector.alarms(detector(wave))
        seconds += time.perf_counter() - begin
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    grown = sizes[-1] - sizes[len(sizes) // 10]
    print(f"{steps:,} learned steps: {1e6 * seconds / steps:.2f} µs each, process grows by {grown} kB")
    print(
        f"C: {_c_time(detector):.2f} µs a value, {hb.convert.detector_to_c(detector).changing_bytes:,} bytes"
    )


def _c_time(detector, steps: int = 200_000) -> float:
    """Microseconds of a step of the C program without learning."""
    with tempfile.TemporaryDirectory() as folder:
        hb.convert.detector_to_c(detector).write(Path(folder) / "detector.c")
        main = f"""#include <stdio.h>
#include <math.h>
#include <time.h>
#include "detector.h"
static detector_state net;
int main(void) {{
    detector_reset(&net);
    clock_t begin = clock();
    float sum = 0;
    for (int t = 0; t < {steps}; t++) {{ float x = sinf(t / 20.0f); sum += detector_step(&net, &x); }}
    printf("%g %g", (double)(clock() - begin) / CLOCKS_PER_SEC / {steps} * 1e6, (double)sum);
}}"""
        (Path(folder) / "main.c").write_text(main)
        subprocess.run(["cc", "-O2", "-o", "run", "main.c", "detector.c", "-lm"], cwd=folder, check=True)
        output = subprocess.run([f"{folder}/run"], capture_output=True, text=True, check=True).stdout
    return float(output.split()[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.folder:
        score_nab(options.folder, options.seeds)
    else:
        score_memory()
        score_generated(options.seeds)
