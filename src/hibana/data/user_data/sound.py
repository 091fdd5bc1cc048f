"""Sound in folders by class: recordings of any rate and length as sequences of log-mel frames."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, final

import numpy as np

from hibana.data.user_data.base import Inputs
from hibana.data.user_data.folders import labelled_files
from hibana.data.user_data.samples import RawSamples, reading, span
from hibana.data.user_data.series import LENGTH_VERBS, SequenceInputs, Sequences

Numbers: TypeAlias = "np.ndarray[Any, Any]"

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
"""Suffixes of the formats that libsndfile reads."""
WINDOW, HOP = 0.025, 0.010
"""Seconds of a frame, and from one frame to the next."""
BANDS = 40
LOWEST, HIGHEST = 50.0, 8000.0
"""Hz: the lower end of the first band and the upper end of the last, or half the lowest rate."""
RANGE = 80.0
"""Decibels below the loudest band of a recording at which levels end."""
FRAMES_AT_ONCE = 1024
"""Frames per Fourier transform."""


@dataclass(frozen=True)
class SoundInputs(SequenceInputs):
    """The fields of :class:`SequenceInputs`, and the upper end of the last band in Hz."""

    highest: float = HIGHEST

    def difference_from_training(self, values: list[Numbers]) -> str:
        """A clause on another range than in training, or on a lower rate; empty if neither holds."""
        if self.scale.high[-1] > -RANGE and all((frames[:, -1] <= -RANGE).all() for frames in values):
            edge = _edges(self.highest)[BANDS - 1]
            return f"there is no sound above {edge:,.0f} Hz, as of a lower rate; the training data have some"
        return super().difference_from_training(values)


@final
class Sound(Sequences):
    """Recordings of sound in a folder: ``class/name.wav``, or ``train/class/name.wav`` beside ``test``.

    Each becomes a sequence of frames, one every 10 ms, of 40 levels: the energy in 25 ms of sound (Hann
    window) in 40 triangular bands, evenly spaced in mel from 50 Hz to 8 kHz (or half the lowest rate in the
    data), in decibels below the loudest band of the recording, at most 80.

        level[t, b] = max(-80, 10 log10(E[t, b] / max E)),   mel = 2595 log10(1 + f / 700)

    Channels are averaged. Rates may differ: bands are given in Hz, and nothing is resampled. Files are WAV,
    FLAC, Ogg, Opus, MP3 and AIFF, as ``soundfile`` reads them.

    Args:
        source: the folder, or a list of files with a label each.
        lengths: how recordings get one length; see :class:`Sequences`.
        steps: frames of each input; 64 if ``None``.
        options: see :class:`UserData`.

    Raises:
        OSError, ValueError: on :meth:`setup`, naming a file that can't be read or has no sound.
        ModuleNotFoundError: on :meth:`setup`, if ``soundfile`` is not installed.

    Source: Davis & Mermelstein (1980), *Comparison of parametric representations for monosyllabic word
    recognition in continuously spoken sentences*, for mel-spaced bands.
    """

    kind = "sound"
    inputs: ClassVar[type[Inputs]] = SoundInputs
    highest = 0.0

    def read(self, source: Any) -> RawSamples:
        """The levels of each recording in the folder `source`, ``[frames, 40]``; also sets the band limit."""
        raw = labelled_files(Path(source), SUFFIXES, "recordings of sound")
        rates, seconds = [], []
        for path in raw.values:
            with _open(path) as file:
                rates.append(file.samplerate)
                seconds.append(file.frames / file.samplerate)
        self.highest = self.option("highest") or min(HIGHEST, min(rates) / 2)
        self.steps, self.lengths = self.option("steps"), self.option("lengths")
        raw.values = [read_levels(path, self.highest) for path in raw.values]
        frames = sorted(map(len, raw.values))
        self._features = tuple(f"{edge:.0f} Hz" for edge in _edges(self.highest)[1:-1])
        raw.summary = (
            f"{len(frames):,} recordings of sound, {span(f'{min(seconds):.2f}', f'{max(seconds):.2f}')} s at "
            f"{span(f'{min(rates):,}', f'{max(rates):,}')} Hz, {BANDS} mel bands to {self.highest:,.0f} Hz "
            f"every 10 ms, {span(frames[0], frames[-1])} frames, {LENGTH_VERBS[self.lengths]} to {self.steps}"
        )
        return raw

    def learn(self, raw: RawSamples, training: Sequence[int]) -> Inputs:
        """The description of the sequences, with the upper end of the last band."""
        inputs = super().learn(raw, training)
        return SoundInputs(**vars(inputs), highest=self.highest)


def log_mel(samples: Numbers, rate: int, highest: float = HIGHEST) -> Numbers:
    """Levels ``[frames, 40]`` of `samples`, ``[N]`` at `rate` Hz, in bands up to `highest` Hz."""
    energies = band_energies(samples, rate, highest)
    return levels(energies, float(energies.max()))


def band_energies(samples: Numbers, rate: int, highest: float) -> Numbers:
    """The energy of `samples`, ``[N]`` at `rate` Hz, in each band of each frame, ``[frames, 40]``."""
    length, hop = max(2, round(WINDOW * rate)), max(1, round(HOP * rate))
    padded = np.pad(samples, (0, max(0, length - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]
    window, filters = np.hanning(length + 1)[:-1], _filters(rate, length, highest)
    blocks = [frames[i : i + FRAMES_AT_ONCE] * window for i in range(0, len(frames), FRAMES_AT_ONCE)]
    return np.concatenate([np.abs(np.fft.rfft(block, 2 * length)) ** 2 @ filters for block in blocks])


def levels(energies: Numbers, loudest: float) -> Numbers:
    """`energies` in decibels relative to `loudest`, at least -80."""
    if loudest == 0:
        return np.full(energies.shape, -RANGE)
    decibels: Numbers = 10 * np.log10(np.maximum(energies / loudest, 10 ** (-RANGE / 10)))
    return decibels


def _edges(highest: float) -> tuple[float, ...]:
    """The lower end of the first band, the peaks of all bands, and the upper end of the last, in Hz."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (min(LOWEST, highest / 2), highest))
    return tuple((700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)).tolist())


def _filters(rate: int, length: int, highest: float) -> Numbers:
    """Triangular filters, ``[length + 1, 40]``, for spectra of ``2 * length`` samples at `rate` Hz."""
    hertz = np.arange(length + 1)[:, None] * rate / (2 * length)
    edges = np.array(_edges(highest))
    below, peak, above = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (hertz - below) / (peak - below), (above - hertz) / (above - peak)
    weights: np.ndarray[Any, Any] = np.maximum(0, np.minimum(rising, falling))
    return weights


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The open ``soundfile.SoundFile`` at `path`.

    Raises ValueError if it can't be read, or is truncated.
    """
    import soundfile

    with reading(f"recording {path}"), soundfile.SoundFile(path) as file:
        if path.stat().st_size < _size_in_header(path):
            raise ValueError("it is truncated")
        yield file


def _size_in_header(path: Path) -> int:
    """The size in bytes that the header of a WAV or AIFF file declares; 0 for other files.

    Programs that write to a pipe declare about 2^31 or 2^32 bytes, because they do not know the size.
    """
    with path.open("rb") as file:
        form, size = file.read(4), file.read(4)
    if form not in (b"RIFF", b"FORM"):
        return 0
    declared = int.from_bytes(size, "little" if form == b"RIFF" else "big") + 8
    return declared if declared < 0x7FFF0000 else 0


def read_levels(path: Path, highest: float) -> Numbers:
    """The levels of the recording in a file, in bands up to `highest` Hz; see :func:`log_mel`.

    Raises ValueError if the file is truncated or empty, or contains numbers that are not finite.
    """
    with _open(path) as file:
        samples, rate = file.read(dtype="float64", always_2d=True), file.samplerate
        if len(samples) == 0 or not np.isfinite(samples).all():
            raise ValueError("it must hold samples, and these must be finite numbers")
    return log_mel(samples.mean(axis=1), rate, highest)
