"""Texts of any length: split into utterances, spoken one after the other, joined without clicks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from multispec.errors import GenerationError, UsageError
from multispec.generator import Generator, Stream
from multispec.modalities.speech.adapter import Speech, check_voice
from multispec.modalities.speech.audio import Audio, joined, silence
from multispec.modalities.speech.reading import Utterance, utterances
from multispec.modalities.speech.streaming import Delivery, rising, softened
from multispec.stream import Generation, Step

# Seconds over which each utterance rises from silence and falls back to it.
EDGE = 0.005


@dataclass(frozen=True)
class Spoken:
    """What was said: the ``audio`` of all utterances, a result for each that was begun, and the times.

    ``utterances`` are all that were to be said.
    """

    audio: Audio
    utterances: tuple[Utterance, ...]
    results: tuple[Generation, ...]
    delivery: Delivery

    @property
    def complete(self) -> bool:
        """Whether every utterance came to its end."""
        ended = [one.finish_reason == "stop" for one in self.results]
        return len(ended) == len(self.utterances) and all(ended)

    def save(self, path: str | Path) -> Path:
        """Write the sound to a .wav, .flac or .ogg file.

        Raises:
            UsageError: another ending.
            OutputError: the place cannot be written.
        """
        self.audio.save(path)
        return Path(path)


def speak(
    generator: Generator, text: str, *, voice: str | None = None, together: int = 1, **settings: Any
) -> Spoken:
    """Say a text of any length; ``settings`` are those of ``Generator.generate``.

    A text within the model's limit is what ``generate`` makes of it. The utterances of a longer one are
    samples of the same seed, ``together`` of them in one batch, which changes nothing about them.

    Raises:
        UsageError: a setting that cannot be right, or a text that cannot be said.
        GenerationError: something broke half-way; ``error.partial`` holds a result for each utterance so far.

    >>> speak(load("speech"), "Call me Ishmael. Some years ago, ...").save("moby.wav")  # doctest: +SKIP
    """
    if together < 1:
        raise UsageError(f"together is how many utterances are made at once, 1 at least: got {together}.")
    plan = _Plan.of(generator, text, voice, settings)
    delivery, results = Delivery(), list[Generation]()
    for start in range(0, len(plan.utterances), together):
        some = range(start, min(start + together, len(plan.utterances)))
        sampling = [plan.settings(number)["sampling"] for number in some]
        asked: dict[str, Any] = settings | {"sampling": sampling}
        try:
            results += generator.generate([plan.prompt(number) for number in some], **asked)
        except GenerationError as error:
            error.partial = [*results, *error.partial]
            raise
        delivery.note(plan.sound(results[start:], start))
        if any(one.finish_reason == "interrupted" for one in results):
            break
    return Spoken(plan.sound(results), plan.utterances, tuple(results), delivery)


def speaking(
    generator: Generator,
    text: str,
    *,
    voice: str | None = None,
    watch: Callable[[Step], None] | None = None,
    **settings: Any,
) -> Speaking:
    """Say a text of any length in chunks, as they come; ``result`` is what ``speak`` would have returned.

    ``watch`` is shown every symbol, those of an utterance from position 0 on.

    Raises:
        UsageError: a setting that cannot be right, or a text that cannot be said; nothing was computed.
        GenerationError: something broke half-way, while chunks were asked for.

    >>> with Player(16000) as player:                                          # doctest: +SKIP
    ...     for chunk in speaking(load("speech"), "Call me Ishmael."):
    ...         player.play(chunk)
    """
    return Speaking(generator, _Plan.of(generator, text, voice, settings), watch)


@dataclass(frozen=True)
class _Plan:
    """What is to be said, and how."""

    speech: Speech
    utterances: tuple[Utterance, ...]
    voice: str | None
    asked: dict[str, Any]

    @staticmethod
    def of(generator: Generator, text: str, voice: str | None, settings: dict[str, Any]) -> _Plan:
        speech = generator.modality
        if not isinstance(speech, Speech):
            raise UsageError(
                f"Only a speech model speaks: got a generator of {type(speech).__name__}. Load one with "
                "multispec.load('speech')."
            )
        check_voice(speech.family, voice)
        some = utterances(speech.read(text), speech.family.text_limit)
        asked = settings | {"sampling": settings.get("sampling") or speech.sampling}
        return _Plan(speech, tuple(some), voice, asked)

    def prompt(self, number: int) -> dict[str, str | None]:
        return {"text": self.utterances[number].text, "voice": self.voice}

    def settings(self, number: int) -> dict[str, Any]:
        """The same seed for all, another sample for each."""
        sampling = self.asked["sampling"]
        return self.asked | {"sampling": replace(sampling, sample=sampling.sample + number)}

    def sound(self, results: list[Generation], first: int = 0) -> Audio:
        """Utterances from the ``first`` on, each with its pause."""
        found = [one.output for one in results if isinstance(one.output, Audio)]
        if not found:
            return Audio(torch.zeros(1, 0), self.speech.family.codec.sampling_rate)
        parts = list[Audio]()
        for number, one in enumerate(results, first):
            if isinstance(one.output, Audio):
                parts.append(softened(one.output, EDGE))
                parts.append(silence(self.utterances[number].pause, one.output))
        return joined(parts)


class Speaking:
    """An iterator of chunks of sound; Ctrl-C ends it quietly with what was said."""

    def __init__(self, generator: Generator, plan: _Plan, watch: Callable[[Step], None] | None) -> None:
        self._generator, self._plan, self._watch = generator, plan, watch
        self._results: list[Generation] = []
        self.delivery = Delivery()
        self._steps: Stream | None = self._open(0)
        self._chunks = self._said()

    def _open(self, number: int) -> Stream:
        return self._generator.stream(self._plan.prompt(number), **self._plan.settings(number))

    def __iter__(self) -> Speaking:
        return self

    def __next__(self) -> Audio:
        found = next(self._chunks)
        self.delivery.note(found)
        return found

    @property
    def utterances(self) -> tuple[Utterance, ...]:
        """All that are to be said."""
        return self._plan.utterances

    @property
    def finished(self) -> int:
        """How many were said."""
        return len(self._results)

    @property
    def result(self) -> Spoken:
        """What was said up to now."""
        begun = [*self._results, *([] if self._steps is None else [self._steps.result])]
        return Spoken(self._plan.sound(begun), self._plan.utterances, tuple(begun), self.delivery)

    def _said(self) -> Iterator[Audio]:
        last = len(self._plan.utterances) - 1
        for number, utterance in enumerate(self._plan.utterances):
            self._steps = self._steps or self._open(number)
            heard = None
            for heard in _softly(self._heard(self._steps)):
                yield heard
            result: Generation = self._steps.result
            self._results.append(result)
            self._steps = None
            if result.finish_reason == "interrupted":
                return
            if heard is not None and utterance.pause and number < last:
                yield silence(utterance.pause, heard)

    def _heard(self, steps: Stream) -> Iterator[Audio]:
        try:
            for step in steps:
                if self._watch is not None:
                    self._watch(step)
                if isinstance(step.delta, Audio):
                    yield step.delta
        except GenerationError as error:
            error.partial = [*self._results, *error.partial]
            raise


def _softly(chunks: Iterator[Audio]) -> Iterator[Audio]:
    """The chunks of one utterance with soft edges: a little is held back, as any chunk may be the last."""
    held, begun = None, False
    for chunk in chunks:
        held = chunk if held is None else held + chunk
        edge = round(EDGE * held.sampling_rate)
        count = held.waveform.shape[1] - edge
        if count <= edge:
            continue
        if not begun:
            held, begun = softened(held, EDGE, end=False), True
        yield replace(held, waveform=held.waveform[:, :count])
        held = replace(held, waveform=held.waveform[:, count:])
    if held is not None:
        yield _fallen(held) if begun else softened(held, EDGE)


def _fallen(held: Audio) -> Audio:
    """The end of a longer sound, falling."""
    count = min(round(EDGE * held.sampling_rate), held.waveform.shape[1])
    gain = torch.ones_like(held.waveform[0])
    gain[len(gain) - count :] = rising(count, gain).flip(0)
    return replace(held, waveform=held.waveform * gain)
