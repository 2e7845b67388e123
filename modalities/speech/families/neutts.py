"""NeuTTS (Neuphonic, 2025): a small Qwen or Llama that goes on from phonemes with NeuCodec's codes.

It speaks in the voice of a piece of speech (``voices/NAME.json``), and reads what espeak-ng makes of a text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from multispec.errors import PromptError, UnsupportedError
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
)
from multispec.modalities.speech.family import SpeechCodec
from multispec.modalities.speech.layouts import Flattened
from multispec.protocols import Target
from multispec.sampling import Sampling

CODEC = "neuphonic/neucodec"
_ASK, _ANSWER = "user: Convert the text to speech:", "\nassistant:"
_BEGIN, _END, _CODE = "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>", "<|speech_{}|>"
_TEXT_BEGINS, _TEXT_ENDS = "<|TEXT_PROMPT_START|>", "<|TEXT_PROMPT_END|>"
# What espeak-ng passes over in silence, and the model has learned to read.
_MARKS = re.compile(r"([;:,.!?¡¿—…\"«»“”(){}\[\]]+)")


def fits(config: Any) -> bool:
    """True for a model with NeuCodec's symbols in its vocabulary."""
    return recognised(config, "neutts", _BEGIN, _TEXT_BEGINS, _CODE.format(0))


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
    target: Target,
    tokenizer: Any,
    codec: SpeechCodec,
    voices: Mapping[str, Reference],
    pronounce: Callable[[str], str] | None = None,
) -> FlatSpeech:
    """Around a target, its tokenizer and a NeuCodec; ``pronounce`` turns words into what it reads.

    Raises:
        ModelLoadError: symbols that are missing, or another codec.
    """
    require_codec("NeuTTS", codec, 1, codec.cardinality)
    first, spoken = segment(tokenizer, _CODE, codec.cardinality), pronounce or phonemes
    marks = {name: symbol(tokenizer, name) for name in (_BEGIN, _END, _TEXT_BEGINS, _TEXT_ENDS)}

    def plain(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def writes(text: str, voice: str | None) -> list[int]:
        reference = named_voice(voices, voice)
        if reference is None:
            raise PromptError(
                "NeuTTS speaks in the voice of a piece of speech, and there is none: put voices/NAME.json "
                "with its text and codes (codec.encode(waveform)[:, 0].tolist()) into the model's folder."
            )
        said = plain(f"{spoken(reference.text)} {spoken(text)}")
        heard = [first + code for code in reference.codes]
        asked = [*plain(_ASK), marks[_TEXT_BEGINS], *said, marks[_TEXT_ENDS]]
        return [*asked, *plain(_ANSWER), marks[_BEGIN], *heard]

    layout = Flattened(
        codes_per_book=codec.cardinality,
        order=(0,),
        offsets=(first,),
        vocab_size=target.spec.vocab_size,
        end=marks[_END],
    )
    return FlatSpeech(
        name="NeuTTS",
        target=target,
        codec=codec,
        layout=layout,
        writes=writes,
        voices=tuple(voices),
        sampling=Sampling(top_k=50, min_new_tokens=50),
    )


def phonemes(text: str) -> str:
    """What American English sounds like in the signs of the IPA, with stress, marks kept.

    Raises:
        UnsupportedError: espeak-ng is not installed, or fails.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise UnsupportedError(
            "NeuTTS reads phonemes, which espeak-ng makes, and that is not installed: apt-get install "
            "espeak-ng (or brew install espeak-ng). Or build the family with from_parts(..., pronounce=...)."
        )
    parts = [part if _MARKS.fullmatch(part) else _spoken(program, part) for part in _MARKS.split(text)]
    return re.sub(r"\s+", " ", "".join(parts)).strip()


def _spoken(program: str, text: str) -> str:
    if not text.strip():
        return text
    try:
        command = [program, "-q", "--ipa", "-v", "en-us", "--stdin"]
        found = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnsupportedError(
            f"espeak-ng cannot pronounce {text[:40]!r}: {error}. Install it anew, with its English voices."
        ) from error
    # Languages that it changes to are named in brackets.
    said = " ".join(re.sub(r"\([a-z-]+\)", "", found.stdout).split())
    return f"{' ' * text[0].isspace()}{said}{' ' * text[-1].isspace()}"
