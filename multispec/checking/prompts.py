"""What a model is asked: ids drawn from its vocabulary, texts, captions, and something to encode."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from multispec.errors import MultispecError, UnsupportedError
from multispec.generator import Generator
from multispec.protocols import Target
from multispec.stream import Prompt

TEXTS = ("Once upon a time", "def add(a, b):\n    return", "one two three one two three one")
CAPTIONS = ("a red dog", "two cats", "blue", "a long sentence about 3 birds")
# Models that draw classes, and models that draw from nothing.
_OTHERS = (("0", "1", "2", "3"), ("",))
# The scale of guided prompts where the model names none, and a second one.
_SCALES = (3.0, 1.5)
_SIZES = (9, 4, 1)
_LONGEST = 99


def model_of(target: Target) -> Any:
    """The transformers model behind a target, or None."""
    return getattr(target, "model", None)


def family_of(generator: Generator) -> Any:
    """The family of picture models, or None for words and ids."""
    return getattr(generator.modality, "family", None)


def draws(prompts: Sequence[Prompt]) -> bool:
    """True for prompts whose streams have a form of their own, as pictures have."""
    return any(prompt.spec is not None for prompt in prompts)


def refuse_steps(target: Target, prompts: Sequence[Prompt]) -> None:
    """Refuse what looks at one symbol after the other where several move together.

    Raises:
        UnsupportedError: parallel slots.
    """
    step = max([target.spec.step, *(prompt.spec.step for prompt in prompts if prompt.spec is not None)])
    if step > 1:
        raise UnsupportedError(
            f"{step} slots of this stream move together, and this looks at single symbols: got a step of "
            f"{step}, expected 1. The rows that compare tokens cover whole steps."
        )


def encodes(model: Any) -> bool:
    """True for encoder-decoder models."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def default_prompts(generator: Generator) -> list[Prompt]:
    """Prompts of several lengths, the first with a repetition, and texts where there is a tokenizer.

    Models that draw are given captions, guided and not, or what stands for captions there.

    Raises:
        UnsupportedError: the model's encoder takes something that cannot be made up, or a model that draws
            reads no captions here.
    """
    pictures = _pictures(generator)
    if pictures:
        return pictures
    model, rng = model_of(generator.target), random.Random(0)
    drawn = _drawn(generator.target, rng)
    if not encodes(model):
        return [Prompt(ids=torch.tensor(ids)) for ids in drawn] + _texts(generator)
    start = _start(model)
    decoder = [[start], [start, *drawn[1][:3]], [start]]
    pairs = zip(decoder, drawn, strict=True)
    return [
        Prompt(ids=torch.tensor(ids), conditioning=_encoder_inputs(model, source, rng))
        for ids, source in pairs
    ] + _texts(generator)


def usable_ids(target: Target, count: int = 50_000) -> list[int]:
    """Ids that end nothing, begin nothing and pad nothing."""
    config = getattr(model_of(target), "config", None)
    names = ("pad_token_id", "bos_token_id", "decoder_start_token_id")
    special = {*target.spec.end_ids, *(getattr(config, name, None) for name in names)}
    return [i for i in range(min(target.spec.vocab_size, count)) if i not in special]


def _drawn(target: Target, rng: random.Random) -> list[list[int]]:
    usable = usable_ids(target)
    limit = max(min(target.context_length or _LONGEST, _LONGEST) // 4, 1)
    drawn = [[rng.choice(usable) for _ in range(min(size, limit))] for size in _SIZES]
    repeated = (drawn[0][:4] * 3)[: min(_SIZES[0], limit)]
    return [repeated, *drawn[1:]]


def _texts(generator: Generator, texts: Sequence[str] = TEXTS) -> list[Prompt]:
    spec, found = generator.target.spec, []
    for text in texts:
        try:
            prompt = generator.modality.encode(text)
        except MultispecError:  # no tokenizer, or a text of which it knows no symbol
            continue
        if int(prompt.ids.max()) < (spec.prompt_size or spec.vocab_size):
            found.append(prompt)
    return found


def _pictures(generator: Generator) -> list[Prompt]:
    for captions in (CAPTIONS, *_OTHERS):
        found = [prompt for prompt in _texts(generator, captions) if prompt.spec is not None]
        if captions == ("",):
            found += _completions(generator, found[0]) if found else []
        if found:
            return [_branched(generator, prompt, place) for place, prompt in enumerate(found)]
    if family_of(generator) is not None:
        raise UnsupportedError(
            "No prompt can be made up for this picture model: it reads neither captions, such as "
            f"{CAPTIONS[0]!r}, nor class numbers, nor the empty caption. Pass prompts."
        )
    return []


def _completions(generator: Generator, whole: Prompt) -> list[Prompt]:
    """Where nothing is read, pictures may be completed from their upper rows: random ones here."""
    spec, rng = whole.spec or generator.target.spec, random.Random(0)
    width, codes = spec.row_length or 1, spec.vocab_size
    rows = [[[rng.randrange(codes) for _ in range(width)] for _ in range(height)] for height in (1, 2, 1)]
    try:
        return [generator.modality.encode({"rows": one}) for one in rows]
    except MultispecError:
        return []


def _branched(generator: Generator, prompt: Prompt, place: int) -> Prompt:
    """Guided by the model's own scale, not at all, guided by another scale, and so on."""
    plain = replace(prompt, guidance=None, unconditional=None)
    if place % 4 == 1:
        return plain
    guidance = prompt.guidance or generator.modality.guidance
    if place % 4 == 2 or guidance.neutral:
        guidance = replace(guidance, scale=_SCALES[place % 4 == 2])
    try:
        other = prompt.unconditional or generator.modality.unconditional(plain, None)
    except UnsupportedError:  # it cannot be guided
        return plain
    return replace(prompt, guidance=guidance, unconditional=other)


def _start(model: Any) -> int:
    for config in (getattr(model, "generation_config", None), model.config):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise UnsupportedError(
        f"{type(model).__name__} names no decoder_start_token_id: got None in its configurations, "
        "expected an id. Set it, or pass prompts."
    )


def _encoder_inputs(model: Any, ids: Sequence[int], rng: random.Random) -> dict[str, Tensor]:
    config = model.config
    names = inspect.signature(model.get_encoder().forward).parameters
    if "input_ids" in names:
        return {"input_ids": torch.tensor([list(ids)])}
    if "input_features" in names and hasattr(config, "num_mel_bins"):
        source = torch.Generator().manual_seed(rng.randrange(2**31))
        size = (1, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": torch.randn(size, generator=source).to(model.dtype)}
    raise UnsupportedError(
        f"The encoder of {type(model).__name__} takes {sorted(names)}, which cannot be made up "
        "here: expected input_ids or mel input_features. Pass prompts with their conditioning."
    )
