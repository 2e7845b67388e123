"""Looking at what was said and how: the waveform, its spectrogram, and which frames drafts gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.errors import UsageError
from multispec.modalities.speech.audio import Audio, library
from multispec.modalities.speech.family import FrameLayout
from multispec.modalities.speech.long_texts import Spoken
from multispec.stream import Generation

ENDINGS = (".png", ".pdf", ".svg")
SIZE, DPI = (11.0, 5.6), 130
INK, FAINT, GROUND = "#262628", "#8a8883", "#fcfbf9"
# Of a draft and accepted; the target's own choice; nothing there.
ACCEPTED, OWN, EMPTY = "#21918c", "#e8a33d", "#e0ddd8"
# Decibels below the loudest place, beneath which all is dark.
_DEPTH = 80.0


@dataclass(frozen=True)
class Frames:
    """How the codes of a sound came about: ``drafted [T K]`` is 1 or 0, NaN where nothing is."""

    drafted: Float[Tensor, "T K"]

    @property
    def share(self) -> float:
        """Of the codes that are there, those that came from a draft; 0 where there are none."""
        there = self.drafted[~self.drafted.isnan()]
        return float(there.mean()) if len(there) else 0.0

    @staticmethod
    def of(result: Generation) -> Frames:
        """Those of one utterance.

        Raises:
            UsageError: a result without a sound.
        """
        layout = _layout_of(result)
        found: dict[tuple[int, int], bool] = {}
        for position, drafted in enumerate(result.from_draft):
            place = layout.coordinates(position)
            if place is not None:
                found[place] = drafted
        count = round(result.output.waveform.shape[1] / result.output.info["hop"])
        rows = torch.full((count, layout.num_codebooks), math.nan)
        for (frame, level), drafted in found.items():
            if frame < count:
                rows[frame, level] = float(drafted)
        return Frames(rows)


def _layout_of(result: Generation) -> FrameLayout:
    layout = result.output.info.get("layout") if isinstance(result.output, Audio) else None
    if not isinstance(layout, FrameLayout):
        raise UsageError(
            "Only the result of a speech generator shows where its frames came from: got an output of type "
            f"{type(result.output).__name__}. Pass what generate returned."
        )
    return layout


def spectrogram(sound: Audio, seconds: float = 0.025, bins: int = 1024) -> Float[Tensor, "F T"]:
    """Decibels below the loudest place, in windows of so many ``seconds`` every quarter of them.

    Channels are added up. ``bins`` is the resolution from 0 Hz to the rate itself.

    Raises:
        UsageError: a sound without samples.
    """
    mono = sound.waveform.detach().float().cpu().mean(0)
    if not len(mono):
        raise UsageError("A sound without samples has no spectrogram. Say something first.")
    size = min(round(seconds * sound.sampling_rate), bins)
    window = torch.hann_window(size)
    found = torch.stft(
        mono,
        bins,
        max(size // 4, 1),
        size,
        window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = found.abs().square().clamp(min=1e-20)
    return (10 * (power / power.max()).log10()).clamp(min=-_DEPTH)


def check_picture(path: str | Path) -> None:
    """Refuse a name that stands for no picture, and a machine without matplotlib.

    Raises:
        UsageError: another ending.
        UnsupportedError: matplotlib cannot be imported.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(
            f"The ending of {Path(path).name!r} stands for no picture: got {ending!r}. Use one of "
            f"{', '.join(ENDINGS)}."
        )
    library("matplotlib", "A spectrogram", "multispec[plots]")


def draw(said: Generation | Spoken, path: str | Path) -> Path:
    """Write a picture: waveform, spectrogram, and beneath them every frame, drafted or the target's own.

    Raises:
        UsageError: a result without a sound, or another ending than .png, .pdf or .svg.
        UnsupportedError: matplotlib cannot be imported.

    >>> draw(generator.generate("the quick brown fox"), "fox.png")             # doctest: +SKIP
    """
    check_picture(path)
    sheet = _Sheet.of(said)
    figure = _part("figure").Figure(figsize=SIZE, dpi=DPI, layout="constrained", facecolor=GROUND)
    sheet.fill(figure)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor=GROUND)
    return Path(path)


def _part(name: str) -> Any:
    return library(f"matplotlib.{name}", "A spectrogram", "multispec[plots]")


@dataclass(frozen=True)
class _Sheet:
    """The three parts of a picture, over one axis of time; ``starts`` are where each result begins."""

    whole: Audio
    results: Sequence[Generation]
    starts: Sequence[float]
    frames: Sequence[Frames]

    @staticmethod
    def of(said: Generation | Spoken) -> _Sheet:
        """The sheet of one result, or of several with their pauses."""
        if isinstance(said, Generation):
            frames = [Frames.of(said)]
            return _Sheet(said.output, [said], [0.0], frames)
        frames = [Frames.of(one) for one in said.results]
        starts, at = list[float](), 0.0
        for one, utterance in zip(said.results, said.utterances, strict=False):
            starts.append(at)
            at += one.output.duration + utterance.pause
        return _Sheet(said.audio, said.results, starts, frames)

    @property
    def levels(self) -> int:
        """Codebooks."""
        return max((one.drafted.shape[1] for one in self.frames), default=1)

    def fill(self, figure: Any) -> None:
        """Draw into an empty figure."""
        heights = (1.0, 3.2, 0.24 + 0.1 * self.levels)
        wave, spectrum, marks = figure.subplots(3, 1, sharex=True, height_ratios=heights)
        self._title(figure)
        self._wave(wave)
        self._spectrum(spectrum)
        self._marks(marks)
        self._legend(figure)
        for axes in (wave, spectrum, marks):
            axes.set_facecolor(GROUND)
            axes.tick_params(colors=FAINT, labelsize=8)
            for side in axes.spines.values():
                side.set_visible(False)
        marks.set_xlim(0, max(self.whole.duration, 1e-3))
        marks.set_xlabel("seconds", color=INK, fontsize=9)

    def _title(self, figure: Any) -> None:
        said = " ".join(str(one.output.info.get("text", "")) for one in self.results)
        reports = [one.report for one in self.results]
        calls = sum(one.target_calls for one in reports)
        cost = f"{sum(one.new_tokens for one in reports)} symbols in {calls} target calls"
        title = said if len(said) <= 84 else said[:83] + "…"
        figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=11)
        figure.text(0.988, 0.982, cost, ha="right", va="top", color=FAINT, fontsize=9)

    def _wave(self, axes: Any) -> None:
        whole = self.whole
        mono = whole.waveform.detach().float().cpu().mean(0)
        # A line through every sample of a long sound is as heavy as the sound: the outline looks the same.
        size = max(len(mono) // 4000, 1)
        blocks = mono[: len(mono) // size * size].view(-1, size)
        time = torch.arange(len(blocks)) * size / whole.sampling_rate
        axes.fill_between(
            time.numpy(), blocks.amin(1).numpy(), blocks.amax(1).numpy(), color=INK, linewidth=0.4
        )
        axes.set_ylim(-1, 1)
        axes.set_yticks([-1, 0, 1])

    def _spectrum(self, axes: Any) -> None:
        whole = self.whole
        found = spectrogram(whole)
        extent = (0, whole.duration, 0, whole.sampling_rate / 2000)
        axes.imshow(
            found.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-_DEPTH, vmax=0
        )
        axes.set_ylabel("kHz", color=INK, fontsize=9)

    def _marks(self, axes: Any) -> None:
        palette = _part("colors").ListedColormap([OWN, ACCEPTED]).with_extremes(bad=EMPTY)
        levels = self.levels
        for one, frames, start in zip(self.results, self.frames, self.starts, strict=True):
            count, rows = frames.drafted.shape
            if count:
                extent = (start, start + one.output.duration, rows - 0.5, -0.5)
                axes.imshow(
                    frames.drafted.T.numpy(), aspect="auto", extent=extent, cmap=palette, vmin=0, vmax=1,
                    interpolation="nearest",
                )  # fmt: skip
        axes.set_ylim(levels - 0.5, -0.5)
        axes.set_yticks(range(levels) if levels <= 4 else [0, levels - 1])
        axes.set_ylabel("codebook" if levels > 1 else "", color=INK, fontsize=9)
        if levels == 1:
            axes.set_yticks([])

    def _legend(self, figure: Any) -> None:
        patches = _part("patches")
        share = Frames(torch.cat([one.drafted.flatten() for one in self.frames])[:, None]).share
        handles = [
            patches.Patch(color=ACCEPTED, label=f"drafted, accepted by the target ({share:.0%})"),
            patches.Patch(color=OWN, label="the target's own choice"),
        ]
        figure.legend(
            handles=handles, loc="outside lower right", ncols=2, frameon=False, fontsize=9, labelcolor=INK
        )
