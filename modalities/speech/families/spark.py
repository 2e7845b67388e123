"""Spark-TTS: Wang et al. (2025), arXiv 2503.01710. A Qwen that goes on from a text and a voice with codes.

A voice is 32 codes of its own (``speaker`` in ``voices/NAME.json``), which come before the speech. What turns
both into sound is BiCodec, which transformers does not have: codes are made here, and sound elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.errors import PromptError, UnsupportedError
from multispec.modalities.speech.families._flat import (
    FlatSpeech,
    Reference,
    named_voice,
    read_model,
    recognised,
    references,
    segment,
    symbol,
    words,
)
from multispec.modalities.speech.layouts import Flattened
from multispec.protocols import Target
from multispec.sampling import Sampling

# Codes of the speech and of the voice, as published.
SEMANTIC, SPEAKER, SPEAKER_LENGTH = 8192, 4096, 32
_SEMANTIC, _SPEAKER = "<|bicodec_semantic_{}|>", "<|bicodec_global_{}|>"
_TASK, _TEXT, _TEXT_ENDS = "<|task_tts|>", "<|start_content|>", "<|end_content|>"
_VOICE, _VOICE_ENDS, _SPEECH = "<|start_global_token|>", "<|end_global_token|>", "<|start_semantic_token|>"


def fits(config: Any) -> bool:
    """True for a Qwen with BiCodec's symbols in its vocabulary."""
    return recognised(config, "spark", _TASK, _SEMANTIC.format(0), _SPEAKER.format(0))


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> FlatSpeech:
    """The language model of a folder or hub id (``LLM`` in the published one), with its voices.

    Raises:
        ModelLoadError: a part that is missing.
    """
    target, tokenizer, _ = read_model(name_or_path, device, dtype, trust_remote_code)
    return from_parts(target, tokenizer, references(name_or_path))


@dataclass(frozen=True)
class BiCodec:
    """The facts of Spark's codec, whose network is not here."""

    num_codebooks: int = 1
    cardinality: int = SEMANTIC
    sampling_rate: int = 16000
    hop: int = 320
    reach: tuple[int, int] = (0, 0)

    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """Nothing.

        Raises:
            UnsupportedError: always.
        """
        raise self._missing("what its codes stand for is not known")

    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """Nothing.

        Raises:
            UnsupportedError: always.
        """
        raise self._missing("sound cannot become codes")

    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Nothing.

        Raises:
            UnsupportedError: always; says what turns the codes into sound.
        """
        raise self._missing("codes cannot become sound")

    def _missing(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"transformers has no BiCodec, so {what} here. Give result.tokens, less the id of "
            "'<|bicodec_semantic_0|>', with the codes of the voice, to Spark-TTS's BiCodecTokenizer."
        )


def from_parts(
    target: Target,
    tokenizer: Any,
    voices: Mapping[str, Reference],
    *,
    semantic: int = SEMANTIC,
    speaker: int = SPEAKER,
) -> FlatSpeech:
    """Around a target and its tokenizer, with ``semantic`` codes of speech and ``speaker`` codes of voices.

    Raises:
        ModelLoadError: symbols that are missing.
    """
    first, own = segment(tokenizer, _SEMANTIC, semantic), segment(tokenizer, _SPEAKER, speaker)
    names = (_TASK, _TEXT, _TEXT_ENDS, _VOICE, _VOICE_ENDS, _SPEECH)
    marks = {name: symbol(tokenizer, name) for name in names}

    def writes(text: str, voice: str | None) -> list[int]:
        heard = named_voice(voices, voice)
        if heard is None or len(heard.speaker) != SPEAKER_LENGTH:
            raise PromptError(
                f"Spark-TTS speaks in the voice of a piece of speech, told by {SPEAKER_LENGTH} codes: got "
                f"{0 if heard is None else len(heard.speaker)}. Put voices/NAME.json with text and speaker "
                "into the model's folder: BiCodecTokenizer.tokenize of Spark-TTS makes them."
            )
        said = words(tokenizer, f"{heard.text}{text}" if heard.codes else text)
        opening = [marks[_TASK], marks[_TEXT], *said, marks[_TEXT_ENDS], marks[_VOICE]]
        told = [own + code for code in heard.speaker]
        # Without codes to go on from, the model would say itself that speech begins.
        return [*opening, *told, marks[_VOICE_ENDS], marks[_SPEECH], *(first + code for code in heard.codes)]

    layout = Flattened(
        codes_per_book=semantic,
        order=(0,),
        offsets=(first,),
        vocab_size=target.spec.vocab_size,
        end=symbol(tokenizer, "<|im_end|>"),
    )
    return FlatSpeech(
        name="Spark-TTS",
        target=target,
        codec=BiCodec(cardinality=semantic),
        layout=layout,
        writes=writes,
        voices=tuple(voices),
        sampling=Sampling(temperature=0.8, top_k=50, top_p=0.95),
    )
