"""MusicGen and MusicGen-Melody with tiny random weights: our target against the model's own ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
)

from multispec.drafters import Jacobi, PromptLookup
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError
from multispec.generator import Generator
from multispec.guidance import Guidance
from multispec.modalities.speech.families import musicgen
from multispec.modalities.speech.families._slots import read_model, read_tokenizer
from multispec.modalities.speech.family import SpeechFamily
from multispec.sampling import Sampling
from multispec.stream import Draft, Prompt
from tests.models.words import letters

TEXTS = ("a quiet song", "loud drums and a violin", "rain", "nothing but bells")
FRAMES, BOOKS, CODES = 9, 4, 16
KINDS = ("plain", "stereo", "melody")


def config_of(kind: str) -> Any:
    melody = kind == "melody"
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
    }
    decoder = (MusicgenMelodyDecoderConfig if melody else MusicgenDecoderConfig)(
        vocab_size=CODES,
        num_codebooks=BOOKS,
        pad_token_id=CODES,
        bos_token_id=CODES,
        audio_channels=2 if kind == "stereo" else 1,
        max_position_embeddings=20,
        initializer_factor=0.5,
        **sizes,
    )
    text = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    audio = EncodecConfig(
        sampling_rate=1000,
        target_bandwidths=(0.5, 1.0, 2.0),
        num_filters=4,
        upsampling_ratios=(4, 2),
        hidden_size=16,
        codebook_size=CODES,
    )
    extra: dict[str, Any] = {"num_chroma": 6, "chroma_length": 5} if melody else {}
    kinds = (MusicgenMelodyConfig, MusicgenConfig)
    return kinds[not melody](text_encoder=text, audio_encoder=audio, decoder=decoder, **extra)


@lru_cache
def model_of(kind: str) -> Any:
    torch.manual_seed(len(kind))
    config = config_of(kind)
    kinds: Any = (MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration)
    model = kinds[kind == "melody"](config).eval()
    with torch.no_grad():
        for name, weight in model.decoder.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.35 if "embed" in name else 0.2)
            elif "bias" in name:
                weight.normal_(0, 0.1)
        # A bias that the other branch must not see.
        model.enc_to_dec_proj.bias.normal_(0, 0.5)
    settings = model.generation_config
    settings.pad_token_id = settings.bos_token_id = settings.decoder_start_token_id = CODES
    settings.eos_token_id = None
    settings.guidance_scale = 3.0
    return model


@lru_cache
def family_of(kind: str) -> musicgen.Musicgen:
    return musicgen.Musicgen.of(model_of(kind), letters(), frames=FRAMES)


def own_codes(kind: str, text: str, scale: float, **more: Any) -> Tensor:
    """What the model's own ``generate`` gives to its codec ``[T, K]``, greedily."""
    model, seen = model_of(kind), list[Tensor]()

    def decode(codes: Tensor, **_: Any) -> Any:
        seen.append(codes[0, 0].T)
        return SimpleNamespace(audio_values=torch.zeros(1, 1, 1))

    model.audio_encoder.decode = decode
    try:
        length = FRAMES + max(family_of(kind).common.layout.delays)
        given = family_of(kind).prompt(text).conditioning
        model.generate(**given, **more, do_sample=False, guidance_scale=scale, max_new_tokens=length)
    finally:
        del model.audio_encoder.decode
    # Left and right of stereo models are decoded one after the other.
    return torch.stack(seen, -1).flatten(1)


def guided(kind: str, text: str, scale: float, melody: Tensor | None = None) -> Prompt:
    family = family_of(kind)
    prompt = family.prompt(text)
    if melody is not None:
        prompt = replace(prompt, conditioning={**prompt.conditioning, "input_features": melody})
    other = family.unconditional(prompt, None)
    return replace(prompt, guidance=Guidance(scale=scale), unconditional=other)


def made(kind: str, prompts: Sequence[Prompt], **changes: Any) -> list[Any]:
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0), "drafter": None} | changes
    found: list[Any] = Generator(family_of(kind).target).generate(list(prompts), **settings)
    return found


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_decoding_is_generate(kind: str, scale: float) -> None:
    """Greedy codes of the model's own ``generate``: with and without guidance, mono, stereo, a prefix."""
    expected = own_codes(kind, TEXTS[0], scale)
    found = made(kind, [guided(kind, TEXTS[0], scale)])[0]
    assert expected.shape == (FRAMES, BOOKS) and len(expected.unique()) > 4
    codes = family_of(kind).common.layout.codes(found.tokens.flatten().tolist())
    assert torch.equal(codes, expected)
    assert found.report.step_compression == 1 and found.report.forced == 2 * sum(
        family_of(kind).common.layout.delays
    )


def test_a_melody_is_heard() -> None:
    """Chroma in front of the words; the other branch hears none, as in ``generate``."""
    melody = torch.rand(1, 3, 6, generator=torch.Generator().manual_seed(0))
    found = made("melody", [guided("melody", TEXTS[0], 3.0, melody)])[0]
    codes = family_of("melody").common.layout.codes(found.tokens.flatten().tolist())
    assert torch.equal(codes, own_codes("melody", TEXTS[0], 3.0, input_features=melody))
    assert not torch.equal(codes, own_codes("melody", TEXTS[0], 3.0))


DRAFTERS: dict[str, Any] = {
    "jacobi": Jacobi(num_draft_tokens=12),
    "prompt_lookup": PromptLookup(),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_drafts_change_nothing(kind: str, drafter: str) -> None:
    """The same codes for the same seeds: alone, in a batch of four, whatever is drafted."""
    prompts = [guided(kind, text, scale) for text, scale in zip(TEXTS, (3.0, 1.0, 2.0, 3.0), strict=True)]
    settings = [Sampling(seed=seed, temperature=0.5) for seed in range(4)]
    plain = [made(kind, [p], sampling=s)[0] for p, s in zip(prompts, settings, strict=True)]
    drafted = made(kind, prompts, sampling=settings, drafter=DRAFTERS[drafter])
    alone = made(kind, prompts[:1], sampling=settings[:1], drafter=DRAFTERS[drafter])
    for one, other in zip([*plain, plain[0]], [*drafted, *alone], strict=True):
        assert torch.equal(one.tokens, other.tokens)
    assert sum(one.report.drafted for one in drafted) > 0
    if drafter == "jacobi":
        assert sum(one.report.accepted for one in drafted) > 0


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    """Weights, tokenizer and codec beside each other; the defaults of the checkpoint."""
    model_of("plain").save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    family: Any = musicgen.load(tmp_path, device="cpu")
    assert isinstance(family, SpeechFamily) and musicgen.fits(model_of("plain").config)
    assert family.guidance == Guidance(scale=3.0) and family.sampling.top_k == 250
    assert family.codec.num_codebooks == BOOKS and family.codec.cardinality == CODES
    prompt = family.prompt(TEXTS[0])
    layout: Any = family.layout_of(prompt)
    assert layout.frames == 30 * 125
    mine = family_of("plain").prompt(TEXTS[0])
    ready = [replace(one, spec=mine.spec) for one in (prompt, mine)]
    found = Generator(family.target).generate(ready, drafter=None, sampling=Sampling(temperature=0))
    assert torch.equal(found[0].tokens, made("plain", [mine])[0].tokens)
    assert family.layout_of(ready[0]) == family_of("plain").layout_of(mine)


def test_what_it_cannot_read() -> None:
    """Nothing, a voice, a folder without a model; a target that is walked symbol by symbol."""
    family = family_of("plain")
    with pytest.raises(PromptError, match="needs a description"):
        family.prompt("  ")
    with pytest.raises(UnknownNameError, match="'Bach'"):
        family.prompt("a fugue", "Bach")
    assert family.unconditional(family.prompt("loud"), "soft").text == "soft"
    session = family.target.begin([family.prompt("a")], [60], 8)
    session.prefill()
    with pytest.raises(UnsupportedError, match="symbol by symbol"):
        session.walk(0, [1], lambda logits: None)


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    """What cannot be read is named."""
    kind: Any = MusicgenForConditionalGeneration
    with pytest.raises(ModelLoadError, match="No MusicgenForConditionalGeneration"):
        read_model(kind, tmp_path, "cpu", None)
    with pytest.raises(ModelLoadError, match="No tokenizer"):
        read_tokenizer(tmp_path)


def test_caches_go_back(tmp_path: Path) -> None:
    """A session that rewinds to whole steps gives what one that never went on gives."""
    target = family_of("plain").target
    prompts = [family_of("plain").prompt(text) for text in TEXTS[:2]]
    one, other = (target.begin(prompts, [60, 60], 8) for _ in range(2))
    for session in (one, other):
        session.prefill()
        session.extend([0, 1], [1, 16, 16, 16, 2, 16, 16, 16])
    one.score([0, 1], [3, 4, 16, 16, 5, 6, 16, 16], [Draft.chain([1, 2, 3, 16]), Draft.empty()])
    one.commit([0, 1], [(0, 1, 2, 3), ()])
    one.checkpoint(0)
    assert one.length(0) == 16 and one.rewind(0, 8) == 8 == other.length(0)
    assert one.rewind(1, 8) == 8
    roots = [7, 8, 9, 16, 1, 2, 3, 16]
    same = zip(one.extend([0, 1], roots), other.extend([0, 1], roots), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in same)
    one.drop([0])
    assert one.length(1) == 12
