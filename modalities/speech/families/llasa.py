"""Llasa: Ye et al. (2025), arXiv 2502.04128. A Llama that goes on from a chat with X-Codec2's codes.

With a voice (``voices/NAME.json``) it goes on from a piece of speech and its words.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from multispec.modalities.speech.families._flat import (
    FlatSpeech,
    Reference,
    named_voice,
    read_codec,
    read_model,
    recognised,
    references,
    require_codec,
    segment,
    symbol,
    words,
)
from multispec.modalities.speech.family import SpeechCodec
from multispec.modalities.speech.layouts import Flattened
from multispec.protocols import Target
from multispec.sampling import Sampling

CODEC = "HKUSTAudio/xcodec2-hf"
# Templates of Llama 3.2 write the day into a prompt, which would sound different every day.
DATE = "26 Jul 2024"
_ASK = "Convert the text to speech:<|TEXT_UNDERSTANDING_START|>{}<|TEXT_UNDERSTANDING_END|>"
_BEGIN, _END, _CODE = "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>", "<|s_{}|>"


def fits(config: Any) -> bool:
    """True for a Llama with X-Codec2's symbols in its vocabulary."""
    return recognised(config, "llasa", _BEGIN, "<|TEXT_UNDERSTANDING_START|>", _CODE.format(0))


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> FlatSpeech:
    """The model of a folder or hub id, with its codec and its voices.

    Raises:
        ModelLoadError: a part that is missing, or parts that do not belong together.
    """
    target, tokenizer, config = read_model(name_or_path, device, dtype, trust_remote_code)
    codec = read_codec(name_or_path, config, CODEC, target.device)
    return from_parts(target, tokenizer, codec, references(name_or_path))


def from_parts(
    target: Target, tokenizer: Any, codec: SpeechCodec, voices: Mapping[str, Reference] | None = None
) -> FlatSpeech:
    """Around a target, its tokenizer and an X-Codec2 codec.

    Raises:
        ModelLoadError: symbols that are missing, another codec, or a voice of another codec.
    """
    known = dict(voices or {})
    require_codec("Llasa", codec, 1, codec.cardinality)
    first = segment(tokenizer, _CODE, codec.cardinality)
    layout = Flattened(
        codes_per_book=codec.cardinality,
        order=(0,),
        offsets=(first,),
        vocab_size=target.spec.vocab_size,
        end=symbol(tokenizer, _END),
    )

    def writes(text: str, voice: str | None) -> list[int]:
        reference = named_voice(known, voice)
        said = text if reference is None else f"{reference.text.rstrip()} {text}"
        words(tokenizer, said)
        spoken = "" if reference is None else "".join(_CODE.format(code) for code in reference.codes)
        return _chat(tokenizer, _ASK.format(said), _BEGIN + spoken)

    return FlatSpeech(
        name="Llasa",
        target=target,
        codec=codec,
        layout=layout,
        writes=writes,
        voices=tuple(known),
        sampling=Sampling(temperature=0.8),
    )


def _chat(tokenizer: Any, ask: str, answer: str) -> list[int]:
    messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    ids: list[int] = tokenizer.apply_chat_template(
        messages, tokenize=True, continue_final_message=True, return_dict=False, date_string=DATE
    )
    return ids
