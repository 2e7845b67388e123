"""Sounds through codecs and back: what each costs, what is left of the sound, and how far its decoder hears.

    python recipes/roundtrip_codecs.py --codecs "kyutai/mimi, descript/dac_16khz" --sounds FOLDER
    python recipes/roundtrip_codecs.py --codecs assets/speech/codec --sounds digits --books 0 --out
    runs/codecs

Every .wav and .flac file of the folder (``--limit`` of them) is brought to one channel at the rate of the
codec, encoded and decoded. Written are codecs.json and, with ``--keep``, the first few sounds as they come
back.

kbit/s          what the codes take
SNR             of the samples, in dB. Codecs that are trained to sound right score low here; a sound that
came from
                random weights is noise, near or below 0
spectral        log-spectral distance in dB, over frames of 25 ms
used            share of the codes of the first codebook that were used at all
hears           frames before and behind a frame, as declared, and as measured at 1 % of the loudest sample
encode, decode  times real time
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

from multispec.errors import MultispecError, UsageError  # noqa: E402
from multispec.modalities.speech import codecs  # noqa: E402
from multispec.modalities.speech.audio import Audio  # noqa: E402
from multispec.modalities.speech.family import SpeechCodec  # noqa: E402
from recipes import _flags  # noqa: E402

# How far a decoder hears is measured on so many frames.
FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to send through; every field is a flag of the command line."""

    codecs: str  # folders and hub ids, separated by commas
    sounds: str  # a folder of .wav or .flac files
    books: int = 0  # codebooks to use; 0: all
    limit: int = 50  # sounds
    keep: int = 0  # sounds to write as they come back
    out: str = "runs/codecs"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One line of the table."""

    codec: str
    sampling_rate: int
    frame_rate: float
    codebooks: int
    cardinality: int
    kilobits: float
    snr: float
    spectral: float
    used: float
    reach: tuple[int, int]
    measured: tuple[int, int]
    encode_speed: float
    decode_speed: float
    sounds: int


def sounds(folder: Path, limit: int) -> list[Audio]:
    """The first sounds of a folder, by name, taken evenly.

    Raises:
        UsageError: there are none.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".wav", ".flac"))
    if not paths:
        raise UsageError(f"No .wav or .flac file in {str(folder)!r}. Name a folder of sounds.")
    step = max(len(paths) // limit, 1)
    return [Audio.read(path) for path in paths[::step][:limit]]


def snr(sound: Tensor, back: Tensor) -> float:
    """Signal to noise in dB."""
    noise = (back - sound).square().sum()
    return float(10 * torch.log10(sound.square().sum() / noise.clamp(min=1e-20)))


def spectral_distance(sound: Tensor, back: Tensor, rate: int) -> float:
    """The root mean square difference of log spectra, in dB, of frames within 60 dB of the loudest."""
    size = 2 ** round(math.log2(0.025 * rate))
    spectra = [_spectrum(one, size) for one in (sound, back)]
    loud = spectra[0].amax(0) > spectra[0].max() - 60
    difference = (spectra[0] - spectra[1])[:, loud]
    return float(difference.square().mean(0).sqrt().mean())


def _spectrum(sound: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size)
    spectrum = torch.stft(sound[0], size, size // 2, window=window, return_complex=True, pad_mode="constant")
    return 20 * spectrum.abs().clamp(min=1e-6).log10()


def through(name: str, codec: SpeechCodec, given: Sequence[Audio], keep: Path | None, count: int) -> Figures:
    """All sounds through one codec."""
    used: set[int] = set()
    scores: list[tuple[float, float]] = []
    clock = {"encode": 0.0, "decode": 0.0}
    total = 0.0
    for number, audio in enumerate(given):
        mono = Audio(audio.waveform.mean(0, keepdim=True), audio.sampling_rate).resampled(codec.sampling_rate)
        start = time.perf_counter()
        codes = codec.encode(mono.waveform)
        half = time.perf_counter()
        back = codec.decode(codes)
        clock["encode"] += half - start
        clock["decode"] += time.perf_counter() - half
        total += mono.duration
        used |= set(codes[:, 0].tolist())
        length = min(back.shape[1], mono.waveform.shape[1])
        pair = mono.waveform[:, :length], back[:, :length]
        scores.append((snr(*pair), spectral_distance(*pair, codec.sampling_rate)))
        if keep is not None and number < count:
            Audio(back, codec.sampling_rate).save(keep / f"{number}.wav")
    frame_rate = codec.sampling_rate / codec.hop
    return Figures(
        codec=name,
        sampling_rate=codec.sampling_rate,
        frame_rate=frame_rate,
        codebooks=codec.num_codebooks,
        cardinality=codec.cardinality,
        kilobits=frame_rate * codec.num_codebooks * math.log2(codec.cardinality) / 1000,
        snr=statistics.mean(one for one, _ in scores),
        spectral=statistics.mean(one for _, one in scores),
        used=len(used) / codec.cardinality,
        reach=codec.reach,
        measured=codecs.measured(codec, 0.01, frames=FRAMES),
        encode_speed=total / clock["encode"],
        decode_speed=total / clock["decode"],
        sounds=len(scores),
    )


def _far(frames: tuple[int, int]) -> str:
    return " ".join("all" if one == codecs.UNBOUNDED else str(one) for one in frames)


def table(lines: Sequence[Figures]) -> Table:
    """One row a codec."""
    names = "codec|Hz|frames/s|books x size|kbit/s|SNR|spectral|used|hears|measured|encode|decode".split("|")
    found = Table(*names)
    for one in lines:
        books = f"{one.codebooks} x {one.cardinality}"
        sizes = (f"{one.sampling_rate}", f"{one.frame_rate:.1f}", books, f"{one.kilobits:.2f}")
        quality = (f"{one.snr:.1f}", f"{one.spectral:.1f}", f"{one.used:.0%}")
        speeds = (f"{one.encode_speed:.1f}x", f"{one.decode_speed:.1f}x")
        found.add_row(one.codec, *sizes, *quality, _far(one.reach), _far(one.measured), *speeds)
    return found


def main(arguments: Sequence[str] | None = None) -> list[Figures]:
    """Read the flags, send the sounds through, print and write the table."""
    settings = _flags.parse(Settings, arguments, __doc__)
    out, console = Path(settings.out), Console(width=160)
    out.mkdir(parents=True, exist_ok=True)
    given = sounds(Path(settings.sounds), settings.limit)
    lines = []
    for name in (one.strip() for one in settings.codecs.split(",") if one.strip()):
        try:
            codec = codecs.load(name, num_codebooks=settings.books or None)
            keep = out / Path(name).name if settings.keep else None
            if keep is not None:
                keep.mkdir(exist_ok=True)
            lines.append(through(name, codec, given, keep, settings.keep))
        except MultispecError as error:
            console.print(f"{name}: {error}", style="red")
    console.print(table(lines))
    if any(one.snr < 1 for one in lines):
        console.print(
            "Where SNR is near or below 0 and the spectral distance large, what comes back is noise."
        )
    (out / "codecs.json").write_text(json.dumps([asdict(one) for one in lines], indent=1), "utf-8")
    return lines


if __name__ == "__main__":
    main()
