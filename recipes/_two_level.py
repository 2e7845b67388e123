"""A random model of two levels, for counts that do not depend on what it says: passes of its depth model."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from transformers import CsmConfig, CsmForConditionalGeneration

from multispec.modalities.speech.families.csm import Csm
from multispec.sampling import Sampling
from multispec.targets.two_level import TwoLevelTarget
from multispec.testing import ScriptedDrafter, play, row

BOOKS, CODES = 16, 64
_SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "initializer_range": 0.5,
}


def _config() -> CsmConfig:
    depth = {"num_codebooks": BOOKS, "backbone_hidden_size": 48, "vocab_size": CODES, "hidden_size": 32}
    codec = {
        "model_type": "mimi",
        "hidden_size": 16,
        "num_filters": 4,
        "upsampling_ratios": [4, 2],
        "codebook_size": CODES,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": BOOKS,
        "upsample_groups": 16,
        **_SMALL,
        "num_key_value_heads": 2,
    }
    rest: dict[str, Any] = {"depth_decoder_config": depth | _SMALL, "codec_config": codec} | _SMALL
    return CsmConfig(
        num_codebooks=BOOKS,
        vocab_size=CODES,
        text_vocab_size=400,
        hidden_size=48,
        max_position_embeddings=512,
        codebook_pad_token_id=CODES - 1,
        codebook_eos_token_id=0,
        audio_token_id=398,
        audio_eos_token_id=399,
        pad_token_id=0,
        bos_token_id=None,
        **rest,
    )


@cache
def random_target(seed: int = 0) -> TwoLevelTarget:
    """A CSM with random weights, 16 codebooks in a frame."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = CsmForConditionalGeneration(_config()).eval()
    return Csm.from_model(model, tokenizer=None).target


def depth_passes(frames: int, right: float | None = None) -> float:
    """Passes of the depth model per frame, greedily; ``right`` of the guesses come true, None: no draft."""
    target = random_target()
    script = _played(target, frames, None)
    before = target.passes.depth
    found = _played(target, frames, None if right is None else _guesses(script, right))
    assert found == script, "greedy codes do not depend on guesses"
    return (target.passes.depth - before) / frames


def _guesses(script: list[int], right: float) -> ScriptedDrafter:
    """The codes to come, some of them wrong."""
    chance = torch.Generator().manual_seed(0)
    wrong = (torch.rand(len(script), generator=chance) > right).tolist()
    codes = [(code + off) % (CODES - 1) for code, off in zip(script, wrong, strict=True)]
    return ScriptedDrafter(codes, num_draft_tokens=2 * BOOKS)


def _played(target: TwoLevelTarget, frames: int, drafter: ScriptedDrafter | None) -> list[int]:
    greedy = Sampling(temperature=0)
    asked = row(range(1, 7), sampling=greedy, max_new_tokens=frames * BOOKS, drafter=drafter)
    return cast(list[int], play(target, asked)[0].tokens.flatten().tolist())
