"""Sound: samples with their rate, files of them, and a loudspeaker where the machine has one."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multispec.errors import OutputError, UnsupportedError, UsageError

# What soundfile calls the format of each ending, and the samples in it.
FORMATS: Mapping[str, tuple[str, str]] = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
}
# Samples handed over at once: libsndfile keeps what Vorbis is given in one piece on the stack.
_BLOCK = 2**16


def library(name: str, purpose: str, extra: str = "multispec[speech]") -> Any:
    """A library of an extra, imported on first use.

    Raises:
        UnsupportedError: it cannot be imported; names the command.
    """
    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # a shared library that is missing is an OSError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnsupportedError(
            f"{purpose} needs the package {name.partition('.')[0]}, which cannot be imported ({reason}): "
            f"pip install '{extra}'"
        ) from error


def check_ending(path: str | Path) -> None:
    """Refuse a name whose ending stands for no format of sounds.

    Raises:
        UsageError: names the endings that do.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise UsageError(
            f"the ending of {Path(path).name!r} stands for no format of sounds that can be written: got "
            f"{ending!r}, expected one of {', '.join(FORMATS)}"
        )


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound: ``waveform [C, N]`` of floats in [-1, 1], ``sampling_rate`` samples a second.

    ``info`` is what is known of how it came about: a spoken ``text``, its ``voice``, ``layout``, ``hop``.

    Raises:
        UsageError: a waveform of another shape or kind, or a rate that is none.

    >>> sound = Audio(torch.zeros(1, 8000), 16000)
    >>> sound.duration, (sound + sound).duration
    (0.5, 1.0)
    """

    waveform: Tensor
    sampling_rate: int
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, kind = tuple(self.waveform.shape), self.waveform.dtype
        if len(shape) != 2 or shape[0] < 1 or not kind.is_floating_point:
            raise UsageError(
                f"A waveform is [C, N] of floats in [-1, 1], one row a channel: got {kind} of shape {shape}. "
                "Pass waveform[None] for a single channel."
            )
        if self.sampling_rate < 1:
            raise UsageError(f"A sampling rate is >= 1 samples a second: got {self.sampling_rate}.")

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.waveform.shape[1] / self.sampling_rate

    def __add__(self, other: Audio) -> Audio:
        """This sound, then the other; what is known is that of this one."""
        return replace(self, waveform=joined([self, other]).waveform)

    def __repr__(self) -> str:
        channels, count = self.waveform.shape
        return f"Audio({self.duration:.2f} s, {channels} x {count} samples at {self.sampling_rate} Hz)"

    def resampled(self, sampling_rate: int) -> Audio:
        """The same sound at another rate, by a windowed sinc (torchaudio).

        Raises:
            UsageError: a rate that is none.
            UnsupportedError: torchaudio cannot be imported.
        """
        if sampling_rate == self.sampling_rate:
            return self
        if sampling_rate < 1:
            raise UsageError(f"A sampling rate is >= 1 samples a second: got {sampling_rate}.")
        if not self.waveform.shape[1]:
            return replace(self, sampling_rate=sampling_rate)
        functional = library("torchaudio.functional", "Another sampling rate")
        waveform = functional.resample(self.waveform.float(), self.sampling_rate, sampling_rate)
        return replace(self, waveform=waveform, sampling_rate=sampling_rate)

    def save(self, path: str | Path) -> None:
        """Write a .wav, .flac or .ogg file, as a whole or not at all: a file that was there stays.

        Raises:
            UsageError: an ending that stands for none of these.
            OutputError: the place cannot be written or is full; this sound can be saved elsewhere.
            UnsupportedError: soundfile cannot be imported.
        """
        check_ending(path)
        data = self._encoded(*FORMATS[Path(path).suffix.lower()])
        _write(Path(path), data)

    def _encoded(self, kind: str, samples: str) -> bytes:
        """The file in memory: libsndfile does not say when a disk is full."""
        soundfile, buffer = library("soundfile", "Files of sounds"), io.BytesIO()
        rows = self.waveform.detach().float().cpu().clamp(-1, 1).T.contiguous().numpy()
        with soundfile.SoundFile(
            buffer, "w", self.sampling_rate, rows.shape[1], samples, format=kind
        ) as file:
            for start in range(0, len(rows), _BLOCK):
                file.write(rows[start : start + _BLOCK])
        return buffer.getvalue()

    @staticmethod
    def read(path: str | Path, sampling_rate: int | None = None) -> Audio:
        """The sound of a file, brought to ``sampling_rate`` where one is given.

        Raises:
            UsageError: no file of a sound.
            UnsupportedError: soundfile (or torchaudio, for another rate) cannot be imported.
        """
        soundfile = library("soundfile", "Files of sounds")
        try:
            rows, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise UsageError(
                f"{str(path)!r} cannot be read as a sound: {error}. Pass a .wav, .flac or .ogg file."
            ) from error
        found = Audio(torch.from_numpy(rows).T.contiguous(), rate)
        return found if sampling_rate is None else found.resampled(sampling_rate)

    def play(self) -> None:
        """Play it on the loudspeaker, and wait for its end.

        Raises:
            UnsupportedError: no loudspeaker, or sounddevice cannot be imported.
        """
        with Player(self.sampling_rate, self.waveform.shape[0]) as player:
            player.play(self)


def _write(path: Path, data: bytes) -> None:
    """Beside it first, then renamed: nobody finds half a file."""
    place = path.resolve()
    if place.exists() and not place.is_file():  # a device or a pipe cannot be renamed over
        beside = place
    else:
        beside = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        if beside != place:
            beside.replace(place)
    except OSError as error:
        if beside != place:
            with contextlib.suppress(OSError):  # it may never have come to be
                beside.unlink()
        raise OutputError(
            f"{str(path)!r} cannot be written: {error.strerror or error}. The sound is kept: save it to "
            "another place."
        ) from error


def joined(parts: Sequence[Audio] | Iterable[Audio]) -> Audio:
    """Sounds one after the other, sample by sample; what is known is that of the first.

    Raises:
        UsageError: no sounds, or sounds of different rates or channels.
    """
    sounds = list(parts)
    kinds = sorted({(one.sampling_rate, one.waveform.shape[0]) for one in sounds})
    if len(kinds) != 1:
        raise UsageError(
            f"Sounds are joined where rate and channels are one: got (rate, channels) {kinds} of "
            f"{len(sounds)} sounds. Bring them to one rate with resampled."
        )
    return replace(sounds[0], waveform=torch.cat([one.waveform for one in sounds], 1))


def silence(seconds: float, like: Audio) -> Audio:
    """Nothing, for so long, at the rate and with the channels of another sound."""
    count = round(seconds * like.sampling_rate)
    return Audio(like.waveform.new_zeros(like.waveform.shape[0], count), like.sampling_rate)


class Player:
    """The loudspeaker: sounds that are played one after the other without a gap.

    Raises:
        UnsupportedError: no loudspeaker, or sounddevice cannot be imported.

    >>> with Player(16000) as player:                                          # doctest: +SKIP
    ...     player.play(chunk)
    """

    def __init__(self, sampling_rate: int, channels: int = 1) -> None:
        sounddevice = library("sounddevice", "A loudspeaker", "sounddevice")
        self._failure = sounddevice.PortAudioError
        try:
            self._stream = sounddevice.OutputStream(
                samplerate=sampling_rate, channels=channels, dtype="float32"
            )
        except self._failure as error:
            raise _silent(error) from error

    def __enter__(self) -> Player:
        self._stream.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Wait for the end of what was handed over; after an error, do not."""
        (self._stream.stop if error is None else self._stream.abort)()
        self._stream.close()

    def play(self, sound: Audio) -> None:
        """Hand over a sound; returns when there is room for the next one.

        Raises:
            UnsupportedError: the loudspeaker went away.
        """
        try:
            self._stream.write(sound.waveform.detach().float().cpu().clamp(-1, 1).T.contiguous().numpy())
        except self._failure as error:
            raise _silent(error) from error


def _silent(error: Exception) -> UnsupportedError:
    return UnsupportedError(
        f"This machine plays no sound: {error}. Connect a loudspeaker, or save the sound to a file."
    )
