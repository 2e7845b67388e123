"""Orpheus (Canopy Labs, 2025): a Llama that goes on from ``voice: text`` with the codes of SNAC.

Seven symbols are a frame of 85 ms: a code of the slow codebook, then for each half of the frame one of the
second codebook and two of the third. Each place of the seven has symbols of its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from multispec.modalities.speech.families._flat import (
    FlatSpeech,
    own_settings,
    read_codec,
    read_model,
    recognised,
    require_codec,
    segment,
    symbol,
    words,
)
from multispec.modalities.speech.family import SpeechCodec
from multispec.modalities.speech.layouts import Flattened
from multispec.protocols import Target
from multispec.sampling import Sampling

CODEC = "hubertsiuzdak/snac_24khz"
# The codebook of SNAC's frame at each place: slow, then twice (middle, fast, fast).
ORDER = (0, 1, 3, 4, 2, 5, 6)
# Control symbols by number, and where codes begin.
_BEGIN, _END, _HUMAN, _HUMAN_ENDS, _ANSWER, _CODES = 1, 2, 3, 4, 5, 10
VOICES = {
    "en": ("tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe"),
    "fr": ("pierre", "amelie", "marie"),
    "de": ("jana", "thomas", "max"),
    "ko": ("유나", "준서"),
    "hi": ("ऋतिका",),
    "zh": ("长乐", "白芷"),
    "es_it": ("javi", "sergio", "maria", "pietro", "giulia", "carlo"),
}


def fits(config: Any) -> bool:
    """True for a Llama with SNAC's symbols in its vocabulary."""
    return recognised(config, "orpheus", _name(_BEGIN), _name(_CODES), "<|eot_id|>")


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> FlatSpeech:
    """The model of a folder or hub id, with its codec.

    Raises:
        ModelLoadError: a part that is missing, or parts that do not belong together.
    """
    target, tokenizer, config = read_model(name_or_path, device, dtype, trust_remote_code)
    codec = read_codec(name_or_path, config, CODEC, target.device)
    voices = own_settings(config).get("voices") or voices_of(str(name_or_path))
    return from_parts(target, tokenizer, codec, voices=tuple(map(str, voices)))


def from_parts(
    target: Target, tokenizer: Any, codec: SpeechCodec, *, voices: tuple[str, ...] = VOICES["en"]
) -> FlatSpeech:
    """Around a target, its tokenizer and a SNAC codec.

    Raises:
        ModelLoadError: symbols that are missing, or another codec.
    """
    size = codec.cardinality
    require_codec("Orpheus", codec, len(ORDER), size)
    first = segment(tokenizer, "<custom_token_{}>", _CODES + len(ORDER) * size) + _CODES
    opening = [symbol(tokenizer, _name(_HUMAN))]
    marks = ("<|eot_id|>", _name(_HUMAN_ENDS), _name(_ANSWER), _name(_BEGIN))
    closing = [symbol(tokenizer, mark) for mark in marks]

    def writes(text: str, voice: str | None) -> list[int]:
        said = f"{voice or voices[0]}: {text}" if voices else text
        return [*opening, *words(tokenizer, said, special=True), *closing]

    layout = Flattened(
        codes_per_book=size,
        order=ORDER,
        offsets=tuple(first + place * size for place in range(len(ORDER))),
        vocab_size=target.spec.vocab_size,
        end=symbol(tokenizer, _name(_END)),
    )
    return FlatSpeech(
        name="Orpheus",
        target=target,
        codec=codec,
        layout=layout,
        writes=writes,
        voices=voices,
        sampling=Sampling(temperature=0.6, top_p=0.95, repetition_penalty=1.1),
    )


def voices_of(name: str) -> tuple[str, ...]:
    """The voices of a checkpoint, by the language in its name; those of the English one without.

    >>> voices_of("canopylabs/3b-fr-ft-research_release")
    ('pierre', 'amelie', 'marie')
    """
    parts = set(re.split(r"[-/.]", name.lower()))
    return next((names for language, names in VOICES.items() if language in parts), VOICES["en"])


def _name(number: int) -> str:
    return f"<custom_token_{number}>"
