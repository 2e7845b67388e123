"""Speech to text: sound in, words out, around a Whisper; a smaller one drafts, or what was said before.

Radford et al. (2022), arXiv 2212.04356. A window of 30 seconds is one prompt: its spectrogram, and the
symbols that say which language is spoken and what is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

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


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    draft: Any = None,
    language: str | None = "en",
) -> Generator:
    """A generator that takes sounds: an ``Audio``, or the path of a file.

    ``draft`` is a smaller Whisper of the same symbols (a folder, a hub id, a target). ``language`` counts for
    models of several languages only.

    Raises:
        ModelLoadError: a part that cannot be read.
        UnknownNameError: a language that the model does not know.

    >>> load("openai/whisper-tiny").generate("speech.wav")                     # doctest: +SKIP
    """
    model = load_model(name_or_path, device=device, dtype=dtype)
    try:
        processor = AutoProcessor.from_pretrained(name_or_path)
    except Exception as error:  # processors raise many kinds for broken files
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"No processor can be read from {str(name_or_path)!r}: {first} Copy preprocessor_config.json and "
            "the tokenizer's files beside the model."
        ) from error
    target = target_for(model, owned=True)
    if isinstance(draft, (str, Path)):
        draft = target_for(load_model(draft, device=device, dtype=dtype), owned=True)
    return Generator(target, Transcriptions.from_model(model, processor, language=language), draft)


@dataclass(frozen=True, kw_only=True)
class Transcriptions:
    """Sounds in, words out.

    ``opening`` are the symbols before the words; ``banned`` ones are never written, and those that are
    ``banned_first`` not at the begin.
    """

    processor: Any
    opening: tuple[int, ...]
    vocab_size: int
    end_ids: tuple[int, ...]
    banned: tuple[int, ...] = ()
    banned_first: tuple[int, ...] = ()

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
            opening=_opening(model, processor.tokenizer, language),
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
        """
        if isinstance(prompt, (str, Path)):
            prompt = Audio.read(prompt)
        if not isinstance(prompt, Audio) or not prompt.waveform.shape[1]:
            raise PromptError(
                f"A transcription is asked for by a sound, an Audio or the path of a file: got "
                f"{str(prompt)[:80]!r} of type {type(prompt).__name__}. Wrap samples: Audio(waveform, rate)."
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
        ids = torch.tensor(self.opening)
        return Prompt(ids=ids, conditioning={"input_features": features}, spec=self.spec)

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


def _opening(model: Any, tokenizer: Any, language: str | None) -> tuple[int, ...]:
    generation = model.generation_config
    languages: dict[str, int] = getattr(generation, "lang_to_id", None) or {}
    symbols = [int(model.config.decoder_start_token_id)]
    if languages and language is not None:
        if f"<|{language}|>" not in languages:
            raise UnknownNameError("language", language, [name.strip("<|>") for name in languages])
        symbols += [languages[f"<|{language}|>"], generation.task_to_id["transcribe"]]
    silent = getattr(generation, "no_timestamps_token_id", None)
    return (*symbols, *([] if silent is None else [int(silent)]))
