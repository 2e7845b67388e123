"""Tiny random language models over codec symbols: tokenizers with the published names, and families."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from multispec.modalities.speech.codecs.dac import DacCodec
from multispec.modalities.speech.families import llasa, neutts, orpheus, outetts, spark
from multispec.modalities.speech.families._flat import FlatSpeech, Reference
from multispec.targets import target_for
from tests.models import codecs, pictures

CODES = codecs.CODES
SPEAKERS = 8
CHAT = "{{ date_string }}{% for m in messages %}{{ m['role'] }}{{ m['content'] }}<|eot_id|>{% endfor %}"


def _numbered(pattern: str, count: int) -> list[str]:
    return [pattern.format(n) for n in range(count)]


SYMBOLS: dict[str, list[str]] = {
    "orpheus": ["<|eot_id|>", *_numbered("<custom_token_{}>", 10 + 7 * CODES)],
    "llasa": [
        "<|eot_id|>",
        "<|TEXT_UNDERSTANDING_START|>",
        "<|TEXT_UNDERSTANDING_END|>",
        "<|SPEECH_GENERATION_START|>",
        "<|SPEECH_GENERATION_END|>",
        *_numbered("<|s_{}|>", CODES),
    ],
    "neutts": [
        *_numbered("<|speech_{}|>", CODES),
        "<|TEXT_PROMPT_START|>",
        "<|TEXT_PROMPT_END|>",
        "<|SPEECH_GENERATION_START|>",
        "<|SPEECH_GENERATION_END|>",
    ],
    "spark": [
        "<|im_end|>",
        "<|task_tts|>",
        *(f"<|{end}_{part}|>" for end in ("start", "end") for part in ("content", "global_token")),
        "<|start_semantic_token|>",
        *_numbered("<|bicodec_global_{}|>", SPEAKERS),
        *_numbered("<|bicodec_semantic_{}|>", CODES),
    ],
    "outetts": [
        *(f"<|{name}|>" for name in ("im_start", "text_start", "text_end", "audio_start", "audio_end")),
        *(f"<|{name}|>" for name in ("word_start", "word_end", "features", "code", "t_0.10", "t_0.20")),
        *_numbered("<|c1_{}|>", CODES),
        *_numbered("<|c2_{}|>", CODES),
    ],
}
NAMES = tuple(SYMBOLS)
ENDS = ("<custom_token_2>", "<|SPEECH_GENERATION_END|>", "<|im_end|>", "<|audio_end|>")


@cache
def tokenizer(name: str) -> Any:
    """Letters, and the symbols of one family."""
    made = pictures.tokenizer({}, SYMBOLS[name], bos=name == "orpheus")
    made.chat_template = CHAT
    return made


def build(name: str, seed: int = 0) -> Any:
    """A random Llama over that vocabulary."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    words = tokenizer(name)
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=len(words) + 3, max_position_embeddings=256, **sizes, **heads, **ids)
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    ends = [words.convert_tokens_to_ids(end) for end in ENDS if end in words.get_vocab()]
    model.lm_head.weight.data[ends] = 0  # or some would end at once
    return model


@cache
def model(name: str, seed: int = 0) -> Any:
    """One model per family and seed."""
    return build(name, seed)


VOICES = {"anna": Reference(text="good day", codes=(1, 2, 3), speaker=tuple(n % SPEAKERS for n in range(32)))}
FAMILIES: dict[str, Callable[[Any, Any], FlatSpeech]] = {
    "orpheus": lambda target, words: orpheus.from_parts(target, words, codecs.codec("snac")),
    "llasa": lambda target, words: llasa.from_parts(target, words, codecs.codec("xcodec2")),
    "neutts": lambda target, words: neutts.from_parts(
        target, words, codecs.codec("neucodec"), VOICES, pronounce=str.lower
    ),
    "spark": lambda target, words: spark.from_parts(target, words, VOICES, semantic=CODES, speaker=SPEAKERS),
    "outetts": lambda target, words: outetts.from_parts(
        target, words, DacCodec.from_model(codecs.codec("dac").model, num_codebooks=2)
    ),
}


@cache
def family(name: str, seed: int = 0) -> FlatSpeech:
    """One family of each kind, shared by the tests."""
    return FAMILIES[name](target_for(model(name, seed)), tokenizer(name))
