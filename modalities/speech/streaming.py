"""Sound as it comes: chunks of frames decoded with what surrounds them, and when each of them was there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.errors import MultispecError, UsageError
from multispec.modalities.speech.audio import Audio
from multispec.modalities.speech.family import FrameLayout, SpeechCodec

# Seconds of a chunk when nobody says otherwise.
CHUNK = 0.32
# Of a decoder that hears further than this, a window hears so much before and behind a chunk.
HEARD = 2.0, 0.24
# Seconds over which one window goes over into the next.
SEAM = 0.01


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What is decoded at once: ``chunk`` frames, with ``before`` and ``behind`` of them around.

    Each chunk costs ``before + chunk + behind`` frames of decoding, and the first one is there when
    ``chunk + behind`` frames are.

    Raises:
        UsageError: a chunk of no frames, or surroundings of less than none.
    """

    chunk: int
    before: int
    behind: int

    def __post_init__(self) -> None:
        if self.chunk < 1 or min(self.before, self.behind) < 0:
            raise UsageError(
                "A chunk is one frame at least, heard with 0 frames or more before and behind: got chunk="
                f"{self.chunk}, before={self.before}, behind={self.behind}."
            )

    @staticmethod
    def of(codec: SpeechCodec, chunk: int | None = None, around: tuple[int, int] | None = None) -> Windows:
        """Those of a codec: as far as it reaches where that has a bound of ``HEARD[0]`` seconds.

        Within it the chunks are the whole sound but for rounding. A decoder without such a bound
        (attention over everything) is cut off, and its chunks come near the whole.
        """
        rate = codec.sampling_rate / codec.hop
        far, near = (math.ceil(seconds * rate) for seconds in HEARD)
        before, behind = codec.reach
        if around is None:
            bounded = max(before, behind) <= far
            around = (before, behind) if bounded else (min(before, far), min(behind, near))
        frames = max(round(CHUNK * rate), 1) if chunk is None else chunk
        return Windows(chunk=frames, before=around[0], behind=around[1])


class AudioStream:
    """The sound of one row of a batch, chunk by chunk, as its symbols come.

    Nothing is decoded from the start again: a chunk is decoded in its window. One window goes over
    into the next within ``SEAM`` seconds, so that what a cut-off decoder hears differently makes no
    click; where they agree that changes nothing.
    """

    def __init__(
        self, codec: SpeechCodec, layout: FrameLayout, windows: Windows, info: Mapping[str, Any]
    ) -> None:
        self._codec, self._layout, self._windows, self._info = codec, layout, windows, info
        self._tokens: list[int] = []
        self._symbols = 0  # those that are codes
        self._done = 0  # frames given
        self._next = windows.chunk + windows.behind  # frames, before which it is no use to look
        self._following: Tensor | None = None  # how the last window goes on
        self._silent = False

    def push(self, token: int) -> Audio | None:
        """The chunks that this symbol finishes; None where it finishes none."""
        self._tokens.append(token)
        self._symbols += self._layout.coordinates(len(self._tokens) - 1) is not None
        if self._symbols // self._layout.num_codebooks < self._next:
            return None
        codes = self._codes()
        if codes is None:
            return None
        chunk, behind = self._windows.chunk, self._windows.behind
        # Delayed codebooks finish a frame later than they are counted.
        ready = max((len(codes) - behind - self._done) // chunk * chunk, 0)
        found = self._sound(codes, self._done + ready) if ready else None
        missing = self._done + chunk + behind - len(codes)
        self._next = self._symbols // self._layout.num_codebooks + missing
        return found

    def finish(self) -> Audio | None:
        """The rest."""
        codes = self._codes()
        return None if codes is None or len(codes) <= self._done else self._sound(codes, len(codes))

    def _codes(self) -> Int[Tensor, "T K"] | None:
        if self._silent:
            return None
        try:
            return self._layout.codes(self._tokens)
        except MultispecError:  # said once, with the result, which keeps the symbols
            self._silent = True
            return None

    def _sound(self, codes: Int[Tensor, "T K"], end: int) -> Audio | None:
        """From where it stands to ``end``."""
        hop, first = self._codec.hop, max(self._done - self._windows.before, 0)
        try:
            window = self._codec.decode(codes[first : end + self._windows.behind])
        except MultispecError:
            self._silent = True
            return None
        start, stop = (self._done - first) * hop, (end - first) * hop
        rate = self._codec.sampling_rate
        piece = window[:, start:stop]
        if self._following is not None:
            piece = _gone_over(self._following, piece)
        self._following, self._done = window[:, stop : stop + round(SEAM * rate)], end
        return Audio(piece, rate, self._info)


def _gone_over(old: Float[Tensor, "C n"], new: Float[Tensor, "C N"]) -> Float[Tensor, "C N"]:
    """The new sound, which begins as the old one would have gone on."""
    count = min(old.shape[1], new.shape[1])
    share = rising(count, new)
    seam = old[:, :count] * (1 - share) + new[:, :count] * share
    return torch.cat([seam, new[:, count:]], 1)


def rising(count: int, like: Tensor) -> Float[Tensor, " n"]:
    """From 0 to 1 as half a cosine, without either end."""
    steps = torch.arange(1, count + 1, dtype=like.dtype, device=like.device) / (count + 1)
    return 0.5 - 0.5 * torch.cos(math.pi * steps)


@dataclass(frozen=True)
class Arrival:
    """A chunk: ``at`` seconds after the request, ``duration`` seconds long."""

    at: float
    duration: float


class Delivery:
    """When the chunks of a sound came, counted from its making.

    >>> times = iter([10.0, 10.5, 12.5])
    >>> delivery = Delivery(lambda: next(times))
    >>> for _ in range(2):
    ...     delivery.note(Audio(torch.zeros(1, 16000), 16000))
    >>> delivery.first_audio, delivery.worst_gap, delivery.stalled, delivery.real_time_factor
    (0.5, 2.0, 1.0, 1.25)
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._start = clock, clock()
        self.arrivals: list[Arrival] = []

    def note(self, sound: Audio) -> None:
        """A chunk is there."""
        self.arrivals.append(Arrival(self._clock() - self._start, sound.duration))

    @property
    def duration(self) -> float:
        """Seconds of sound."""
        return sum(one.duration for one in self.arrivals)

    @property
    def seconds(self) -> float:
        """Until the last chunk; 0 before the first."""
        return self.arrivals[-1].at if self.arrivals else 0.0

    @property
    def first_audio(self) -> float:
        """Seconds until there was something to hear; 0 where there is nothing yet."""
        return self.arrivals[0].at if self.arrivals else 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for one of sound: under 1 is faster than speech; 0 before the first chunk."""
        return self.seconds / self.duration if self.arrivals else 0.0

    @property
    def worst_gap(self) -> float:
        """The longest time between two chunks; 0 where there are no two."""
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        return max((later.at - one.at for one, later in pairs), default=0.0)

    @property
    def stalled(self) -> float:
        """Seconds of silence that one hears who listens from the first chunk on."""
        silent, until = 0.0, self.first_audio
        for one in self.arrivals:
            silent += max(one.at - until, 0.0)
            until = max(one.at, until) + one.duration
        return silent

    def to_dict(self) -> dict[str, float]:
        """All of it in seconds, ready for JSON."""
        names = ("seconds", "duration", "first_audio", "real_time_factor", "worst_gap", "stalled")
        return {name: float(getattr(self, name)) for name in names}


def softened(sound: Audio, seconds: float = 0.005, *, start: bool = True, end: bool = True) -> Audio:
    """The sound rising from silence and falling back to it, so that it may stand anywhere.

    >>> softened(Audio(torch.ones(1, 400), 16000)).waveform[0, [0, 200, -1]].round().tolist()
    [0.0, 1.0, 0.0]
    """
    count = min(round(seconds * sound.sampling_rate), sound.waveform.shape[1] // 2)
    gain = torch.ones_like(sound.waveform[0])
    if count and start:
        gain[:count] = rising(count, gain)
    if count and end:
        gain[-count:] = rising(count, gain).flip(0)
    return replace(sound, waveform=sound.waveform * gain)
