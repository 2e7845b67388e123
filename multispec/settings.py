"""What transformers users bring along, turned into our settings: generation configs and criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import (
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from multispec.errors import UnsupportedError
from multispec.processing import LogitsProcessor
from multispec.row import Stop
from multispec.sampling import Sampling

# Fields that say nothing about which symbols come out, or that are read elsewhere.
_HARMLESS = frozenset(
    "transformers_version use_cache pad_token_id bos_token_id decoder_start_token_id max_length "
    "max_new_tokens eos_token_id do_sample temperature top_k top_p min_p typical_p "
    "repetition_penalty bad_words_ids min_new_tokens stop_strings no_repeat_ngram_size sequence_bias "
    "suppress_tokens begin_suppress_tokens num_assistant_tokens num_assistant_tokens_schedule "
    "assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size "
    "assistant_lookbehind target_lookbehind return_dict_in_generate output_scores output_logits "
    "cache_implementation is_assistant return_legacy_cache disable_compile compile_config "
    "prefill_chunk_size renormalize_logits early_stopping length_penalty trust_remote_code "
    "guidance_scale _from_model_config".split()
)
# Where another value than None and False also asks for nothing. In general it does: 0 and 1 are ids in
# forced_eos_token_id, True is a wish in remove_invalid_values.
_NEUTRAL: dict[str, float] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "min_length": 0,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "penalty_alpha": 0,
}


@dataclass(frozen=True, kw_only=True)
class FromConfig:
    """What a ``GenerationConfig`` asks for, in our terms."""

    sampling: Sampling
    max_new_tokens: int | None
    max_length: int | None
    end_ids: tuple[int, ...] | None
    stop: tuple[str, ...]
    guidance: float | None
    processors: Callable[[int], list[LogitsProcessor]]

    def new_tokens(self, prompt_length: int) -> int | None:
        """How many symbols may follow such a prompt; None where the config names no length."""
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens
        return self.max_length - prompt_length


def read_config(config: GenerationConfig) -> FromConfig:
    """Translate a generation config.

    Raises:
        UnsupportedError: the config asks for something that this loop does not do.
    """
    _refuse(config)
    ends = config.eos_token_id
    stops = config.stop_strings
    return FromConfig(
        sampling=_sampling(config),
        max_new_tokens=config.max_new_tokens,
        max_length=config.max_length,
        end_ids=None if ends is None else tuple(ends) if isinstance(ends, list) else (ends,),
        stop=() if stops is None else (stops,) if isinstance(stops, str) else tuple(stops),
        guidance=config.guidance_scale,
        processors=lambda prompt_length: _processors(config, prompt_length),
    )


def _refuse(config: GenerationConfig) -> None:
    default = GenerationConfig().to_dict()
    for name, value in config.to_dict().items():
        off = value is None or value is False or value == default.get(name)
        if off or name in _HARMLESS or (name in _NEUTRAL and value == _NEUTRAL[name]):
            continue
        raise UnsupportedError(
            f"The generation config sets {name}={value!r}, which speculative decoding here does not do. "
            "Leave it out, or pass a logits processor that does it."
        )


def _sampling(config: GenerationConfig) -> Sampling:
    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    base = Sampling(
        temperature=given(config.temperature, 1.0) if config.do_sample else 0.0,
        repetition_penalty=given(config.repetition_penalty, 1.0),
        bad_words=given(config.bad_words_ids, ()),
        min_new_tokens=given(config.min_new_tokens, 0),
    )
    if not config.do_sample:
        return base
    return replace(
        base,
        top_k=given(config.top_k, 50),
        top_p=given(config.top_p, 1.0),
        min_p=given(config.min_p, 0.0),
        typical_p=given(config.typical_p, 1.0),
    )


def _processors(config: GenerationConfig, prompt_length: int) -> list[LogitsProcessor]:
    found: list[LogitsProcessor] = []
    if config.sequence_bias:
        found.append(SequenceBiasLogitsProcessor(sequence_bias=config.sequence_bias))
    if config.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.suppress_tokens:
        found.append(SuppressTokensLogitsProcessor(config.suppress_tokens))
    if config.begin_suppress_tokens:
        found.append(SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, prompt_length))
    return found


@dataclass(frozen=True)
class Criterion:
    """A transformers ``StoppingCriteria``, asked after every single symbol."""

    criteria: Any
    padding: tuple[int, ...] = ()

    def __call__(self, ids: Sequence[int], scores: Tensor, /) -> bool:
        seen = torch.tensor([[*self.padding, *ids]], device=scores.device)
        found = self.criteria(seen, scores[None])
        return bool(found.all()) if isinstance(found, Tensor) else bool(found)


def criteria_stops(criteria: Any) -> tuple[Stop, ...]:
    """One stop per criterion; a single criterion may be given bare."""
    if criteria is None:
        return ()
    listed = criteria if isinstance(criteria, (list, tuple)) else [criteria]
    return tuple(Criterion(one) for one in listed)
