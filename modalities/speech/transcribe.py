"""Speech to text: sound in, words out, around a Whisper; a smaller one drafts, or what was said before.

Radford et al. (2022), arXiv 2212.04356. A window of 30 seconds is one prompt: its spectrogram, and the
symbols that say which language is spoken and what is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, ProcessorMixin

from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError, UsageError
from multispec.generator import Generator
from multispec.guidance import Guidance
from multispec.modalities.speech.audio import Audio
from multispec.modality import StreamDecoder
from multispec.row import Stop
from multispec.sampling import Sampling
from multispec.stream import Allowed, Forced, Prompt, Slot, StreamSpec
from multispec.targets import target_for
from multispec.targets.loading import load_model

_BROKEN = "\ufffd"


def fits(config: Any) -> bool:
    """True for a Whisper."""
    return getattr(config, "model_type", None) == "whisper"


def hears(model: Any, processor: Any) -> bool:
    """True for a Whisper with what turns sounds into its input: all that transcribing takes."""
    return fits(getattr(model, "config", None)) and isinstance(processor, ProcessorMixin)


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    draft: Any = None,
    language: str | None = "en",
    trust_remote_code: bool = False,
) -> Generator:
    """A generator that takes sounds: an ``Audio``, the path of a file, or one with its language.

    ``draft`` is a smaller Whisper of the same symbols (a folder, a hub id, a target). ``language`` is what is
    spoken where a prompt does not say; it counts for models of several languages only.

    Raises:
        ModelLoadError: a part that cannot be read.
        UnknownNameError: a language that the model does not know.

    >>> load("openai/whisper-tiny").generate("speech.wav")                     # doctest: +SKIP
    """
    where: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    model = load_model(name_or_path, **where)
    try:
        processor = AutoProcessor.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except Exception as error:  # processors raise many kinds for broken files
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"No processor can be read from {str(name_or_path)!r}: {first} Copy preprocessor_config.json and "
            "the tokenizer's files beside the model, or give prompts as ids: "
            'multispec.load(..., modality="text").'
        ) from error
    target = target_for(model, owned=True)
    if isinstance(draft, (str, Path)):
        draft = target_for(load_model(draft, **where), owned=True)
    return Generator(target, Transcriptions.from_model(model, processor, language=language), draft)


@dataclass(frozen=True, kw_only=True)
class Transcriptions:
    """Sounds in, words out.

    A prompt is a sound (an ``Audio``, the path of a file), or ``{"audio": ..., "language": "de"}``.
    ``opening`` are the symbols before the words where nobody names a language, ``openings`` those of each
    language that the model knows; ``banned`` ones are never written, and those that are ``banned_first`` not
    at the begin.
    """

    processor: Any
    opening: tuple[int, ...]
    vocab_size: int
    end_ids: tuple[int, ...]
    banned: tuple[int, ...] = ()
    banned_first: tuple[int, ...] = ()
    openings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def from_model(model: Any, processor: Any, *, language: str | None = "en") -> Transcriptions:
        """For a ``WhisperForConditionalGeneration`` and its ``WhisperProcessor``.

        Raises:
            UnsupportedError: a model of another kind.
            UnknownNameError: a language that the model does not know.
        """
        if not fits(model.config):
            raise UnsupportedError(
                f"Only Whisper transcribes here: got {type(model).__name__}. Other models of speech to text "
                "run as text models, with Prompt(ids=..., conditioning=...)."
            )
        ends = model.generation_config.eos_token_id
        return Transcriptions(
            processor=processor,
            opening=_opening(model, language),
            openings={name: _opening(model, name) for name in _languages(model)},
            vocab_size=int(model.get_output_embeddings().weight.shape[0]),
            end_ids=tuple(ends) if isinstance(ends, (list, tuple)) else (int(ends),),
            banned=tuple(model.generation_config.suppress_tokens or ()),
            banned_first=tuple(model.generation_config.begin_suppress_tokens or ()),
        )

    @cached_property
    def spec(self) -> StreamSpec:
        """Words, until the end."""
        slot = Slot(size=self.vocab_size)
        return StreamSpec(
            slots=(slot,), end_ids=self.end_ids, grammar=self.grammar if self.banned_first else None
        )

    @cached_property
    def _first(self) -> Allowed:
        return Allowed(tuple(sorted(set(range(self.vocab_size)) - set(self.banned_first))))

    def grammar(self, generated: Sequence[int], /) -> Forced | Allowed | None:
        """Not everything can stand at the begin."""
        return None if len(generated) else self._first

    def encode(self, prompt: Any) -> Prompt:
        """The spectrogram of a sound, and the symbols before the words.

        Raises:
            PromptError: no sound, an empty one, or one that is longer than a window.
            UnknownNameError: a language that the model does not know.
            UsageError: a language, for a model of one.
        """
        ids = torch.tensor(self.opening)
        if isinstance(prompt, Mapping) and {"audio"} <= set(prompt) <= {"audio", "language"}:
            if prompt.get("language") is not None:
                ids = torch.tensor(self._opened(prompt["language"]))
            prompt = prompt["audio"]
        if isinstance(prompt, (str, Path)):
            prompt = Audio.read(prompt)
        if not isinstance(prompt, Audio) or not prompt.waveform.shape[1]:
            raise PromptError(
                'A transcription is asked for by a sound, an Audio or the path of a file, or by {"audio": '
                f'..., "language": ...}}: got {str(prompt)[:80]!r} of type {type(prompt).__name__}. '
                "Wrap samples: Audio(waveform, rate)."
            )
        extractor = self.processor.feature_extractor
        if prompt.duration > extractor.chunk_length:
            raise PromptError(
                f"Whisper hears {extractor.chunk_length} seconds at once: got {prompt.duration:.1f}. Split "
                "the sound where it is silent, and give the parts as a list."
            )
        rate = int(extractor.sampling_rate)
        heard = prompt.resampled(rate).waveform.mean(0).numpy()
        features = extractor(heard, sampling_rate=rate, return_tensors="pt").input_features
        return Prompt(ids=ids, conditioning={"input_features": features}, spec=self.spec)

    def _opened(self, language: Any) -> tuple[int, ...]:
        if not self.openings:
            raise UsageError(f"This Whisper knows one language: got language={language!r}. Leave it out.")
        if language not in self.openings:
            raise UnknownNameError("language", str(language), self.openings)
        return self.openings[language]

    @property
    def guidance(self) -> Guidance:
        """None."""
        return Guidance()

    @property
    def sampling(self) -> Sampling:
        """The most probable words, without the symbols that its authors ban."""
        return Sampling(temperature=0, logit_bias=dict.fromkeys(self.banned, -torch.inf))

    @property
    def drafter(self) -> str:
        """What was said comes again."""
        return "prompt_lookup"

    @property
    def neighbours(self) -> None:
        """None: words have no distances."""

    def unconditional(self, prompt: Prompt, negative: Any) -> Prompt:
        """Nothing.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("Whisper has nothing to guide away from. Leave guidance at 1.")

    def stops(self, prompt: Prompt, strings: Sequence[str]) -> list[Stop]:
        """None: it ends with the sound.

        Raises:
            UsageError: stop strings.
        """
        if strings:
            raise UsageError(f"A transcription ends with its sound: got stop={list(strings)}. Leave it out.")
        return []

    def decode(self, prompt: Prompt, tokens: Sequence[int], strings: Sequence[str]) -> str:
        """The words."""
        text: str = self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text.strip()

    def stream(self, prompt: Prompt, strings: Sequence[str]) -> StreamDecoder:
        """A decoder for one row."""
        return _Words(self.processor.tokenizer)


class _Words:
    """The words of one row as they come; never half a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._given = ""

    def push(self, token: int) -> str | None:
        """What this symbol adds."""
        self._tokens.append(token)
        return self._more(whole=False)

    def finish(self) -> str | None:
        """What was held back."""
        return self._more(whole=True)

    def _more(self, whole: bool) -> str | None:
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        if (not whole and text.endswith(_BROKEN)) or not text.startswith(self._given):
            return None
        new, self._given = text[len(self._given) :], text
        return new or None


def _languages(model: Any) -> dict[str, int]:
    """The symbol of each language; none for models of one."""
    known: dict[str, int] = getattr(model.generation_config, "lang_to_id", None) or {}
    return {name.strip("<|>"): symbol for name, symbol in known.items()}


def _opening(model: Any, language: str | None) -> tuple[int, ...]:
    generation, languages = model.generation_config, _languages(model)
    symbols = [int(model.config.decoder_start_token_id)]
    if languages and language is not None:
        if language not in languages:
            raise UnknownNameError("language", language, languages)
        symbols += [languages[language], generation.task_to_id["transcribe"]]
    silent = getattr(generation, "no_timestamps_token_id", None)
    return (*symbols, *([] if silent is None else [int(silent)]))
