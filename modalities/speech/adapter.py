"""The speech modality: texts in, sound out, around any family of models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from multispec.errors import PromptError, UnknownNameError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.speech.audio import Audio
from multispec.modalities.speech.family import FrameLayout, SpeechCodec, SpeechFamily
from multispec.modalities.speech.reading import Reads, check_sayable
from multispec.modalities.speech.streaming import AudioStream, Windows
from multispec.modality import IdsOnly, StreamDecoder
from multispec.neighbours import Neighbours
from multispec.row import Stop
from multispec.sampling import Sampling
from multispec.stream import Prompt

# A text that takes longer than this never ends: slow speech has ten characters a second.
SECONDS_PER_CHARACTER, SECONDS_AT_LEAST = 0.2, 4.0


@dataclass(frozen=True)
class Speech:
    """Texts in, sound out.

    A prompt is one utterance: a text, or ``{"text": ..., "voice": ...}``; ``speak`` takes longer ones.
    A sound's ``info`` holds its ``text``, its ``layout`` and the ``hop`` of its frames. Streams give
    the sound in chunks of ``chunk`` frames (a third of a second, where that is None), each decoded with
    ``around`` frames before and behind it (the codec's own reach).

    A stream that has no length of its own is given five times that of ordinary speech: what has not ended
    by then never will, and the report says so.

    Raises:
        UsageError: a chunk of no frames.

    >>> generator = Generator(family.target, Speech(family))                   # doctest: +SKIP
    >>> generator.generate("the quick brown fox").save("fox.wav")              # doctest: +SKIP
    """

    family: SpeechFamily
    chunk: int | None = None
    around: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        Windows.of(self.family.codec, self.chunk, self.around)

    @property
    def windows(self) -> Windows:
        """How a stream is decoded."""
        return Windows.of(self.family.codec, self.chunk, self.around)

    def read(self, text: str) -> str:
        """The text as the model is given it: in words, where it knows nothing else.

        Raises:
            PromptError: nothing that can be said.
        """
        check_sayable(text)
        return self.family.read(text) if isinstance(self.family, Reads) else text

    def encode(self, prompt: Any) -> Prompt:
        """The prompt with the stream of its sound, the model's own guidance, and the other branch of that.

        Raises:
            PromptError: no text, one that cannot be said, or one that is too long for one utterance.
            UnknownNameError: an unknown voice.
        """
        text, voice = _asked(prompt)
        check_voice(self.family, voice)
        said = self.read(text)
        if len(said) > self.family.text_limit:
            raise PromptError(
                f"One utterance of this voice has {self.family.text_limit} characters at most: got "
                f"{len(said)}. Use multispec.modalities.speech.speak, which splits texts and joins the sound."
            )
        made = self.family.prompt(said, voice)
        guidance = made.guidance or self.family.guidance
        other = made.unconditional
        if other is None and not guidance.neutral:
            other = self.family.unconditional(made, None)
        capped = self._capped(made, len(said))
        return replace(capped, guidance=guidance, unconditional=other, text=text)

    def _capped(self, prompt: Prompt, characters: int) -> Prompt:
        spec = prompt.spec
        if spec is None or spec.fixed_length is not None or spec.usual_length is not None:
            return prompt
        seconds = max(SECONDS_PER_CHARACTER * characters, SECONDS_AT_LEAST)
        codec, layout = self.family.codec, self.family.layout_of(prompt)
        frames = math.ceil(seconds * codec.sampling_rate / codec.hop)
        length = len(layout.tokens(torch.zeros(frames, layout.num_codebooks, dtype=torch.long)))
        limit = self.family.target.context_length
        if limit is not None:
            length = max(min(length, limit - len(prompt.ids)), 1)
        return replace(prompt, spec=replace(spec, usual_length=length))

    @property
    def guidance(self) -> Guidance:
        """The family's own."""
        return self.family.guidance

    @property
    def sampling(self) -> Sampling:
        """The family's own."""
        return self.family.sampling

    @property
    def drafter(self) -> str:
        """Frames hang on those just before them: a window settles in a few passes, and needs no model."""
        return "jacobi:num_draft_tokens=8"

    @property
    def neighbours(self) -> Neighbours | None:
        """Codes that sound alike, by the codec.

        None where a symbol means another code in each slot, and where the codec tells no codebook that fits
        the layout: then rules that need one say so, and how to give them one.
        """
        return self._near

    @cached_property
    def _near(self) -> Neighbours | None:
        if len(self.family.target.spec.slots) > 1:
            return None
        try:
            layout = self.family.layout_of(self.family.prompt("hello"))
            symbols = _symbols(layout, self.family.codec.cardinality)
            codebook = _codebooks(self.family.codec, layout.num_codebooks)
            return Neighbours(codebook=codebook, symbols=symbols)
        except (UsageError, UnsupportedError):
            return None

    def unconditional(self, prompt: Prompt, negative: Any) -> Prompt:
        """The prompt without a text, or with a negative one.

        Raises:
            PromptError: a negative that is no text.
        """
        if isinstance(negative, Prompt):
            return negative
        if negative is not None and not isinstance(negative, str):
            raise PromptError(f"A negative prompt is a text: got {type(negative).__name__}.")
        return self.family.unconditional(prompt, negative)

    def stops(self, prompt: Prompt, strings: Sequence[str]) -> list[Stop]:
        """None: a sound ends by itself.

        Raises:
            UsageError: stop strings.
        """
        if strings:
            raise UsageError(f"A sound holds no text to stop at: got stop={list(strings)}. Leave it out.")
        return []

    def decode(self, prompt: Prompt, tokens: Sequence[int], strings: Sequence[str]) -> Audio | None:
        """The sound of all frames that are complete; None for ids that were given without a layout.

        Raises:
            UsageError: a symbol that is no code of this model.
        """
        if prompt.spec is None:
            return None
        codec, layout = self.family.codec, self.family.layout_of(prompt)
        codes = layout.codes(tokens)
        waveform = codec.decode(codes) if len(codes) else torch.zeros(1, 0)
        return Audio(waveform, codec.sampling_rate, self._info(prompt, layout))

    def _info(self, prompt: Prompt, layout: FrameLayout) -> Mapping[str, Any]:
        return {"text": prompt.text or "", "layout": layout, "hop": self.family.codec.hop}

    def stream(self, prompt: Prompt, strings: Sequence[str]) -> StreamDecoder:
        """A decoder for one row."""
        if prompt.spec is None:
            return IdsOnly().stream(prompt, strings)
        layout = self.family.layout_of(prompt)
        return AudioStream(self.family.codec, layout, self.windows, self._info(prompt, layout))


def _asked(prompt: Any) -> tuple[str, str | None]:
    if isinstance(prompt, str):
        return prompt, None
    if isinstance(prompt, Mapping) and {"text"} <= set(prompt) <= {"text", "voice"}:
        text, voice = prompt["text"], prompt.get("voice")
        if isinstance(text, str) and isinstance(voice, str | None):
            return text, voice
    raise PromptError(
        'Speech is asked for by a text, or by {"text": ..., "voice": ...}: got '
        f"{str(prompt)[:80]!r} of type {type(prompt).__name__}."
    )


def check_voice(family: SpeechFamily, voice: str | None) -> None:
    """Refuse a voice that the family does not have.

    Raises:
        UnknownNameError: names those it has.
        UsageError: it has one without a name.
    """
    if voice is None or voice in family.voices:
        return
    if not family.voices:
        raise UsageError(f"This model has one voice, without a name: got voice={voice!r}. Leave it out.")
    raise UnknownNameError("voice", voice, family.voices)


def _symbols(layout: FrameLayout, cardinality: int) -> list[int]:
    """The symbol of every code: those of the first codebook, then those of the next."""
    every = torch.arange(cardinality)[:, None].expand(-1, layout.num_codebooks)
    found: dict[tuple[int, int], int] = {}
    for position, symbol in enumerate(layout.tokens(every).tolist()):
        place = layout.coordinates(position)
        if place is not None:
            found[place[1], place[0]] = symbol
    return [symbol for _, symbol in sorted(found.items())]


def _codebooks(codec: SpeechCodec, count: int) -> Float[Tensor, "N C"]:
    """All codebooks one under the other, too far from each other for a code of another to be near."""
    books = [codec.codebook(level).float().cpu() for level in range(count)]
    if count == 1:
        return books[0]
    width = max(book.shape[1] for book in books)
    apart = 100 * max(float(book.norm(dim=1).max()) for book in books) + 1
    rows = [
        torch.cat([F.pad(book, (0, width - book.shape[1])), torch.full((len(book), 1), level * apart)], 1)
        for level, book in enumerate(books)
    ]
    return torch.cat(rows)
