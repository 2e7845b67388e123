"""Dia with tiny random weights: our target against the model's own ``generate``, endings included."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DacConfig,
    DacModel,
    DiaConfig,
    DiaDecoderConfig,
    DiaEncoderConfig,
    DiaForConditionalGeneration,
)

from multispec.drafters import Jacobi, PromptLookup
from multispec.errors import PromptError, UnknownNameError, UnsupportedError
from multispec.generator import Generator
from multispec.guidance import Guidance
from multispec.modalities.speech.codecs.dac import DacCodec
from multispec.modalities.speech.families import dia, parler
from multispec.modalities.speech.family import SpeechFamily
from multispec.row import Row
from multispec.sampling import Sampling
from multispec.stream import Draft, Prompt
from multispec.testing import SlotTableModel, play, row
from tests.models.words import letters

CODES, FRAMES, DELAYS, TOP_K = 16, 12, (0, 2, 3), 6
TEXTS = ("hello", "a longer sentence to say", "yes", "no no")
MASKED = Guidance(scale=3.0, convention="masked", top_k=TOP_K)


@cache
def model() -> Any:
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2,
        "head_dim": 8,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    encoder = DiaEncoderConfig(vocab_size=64, hidden_size=32, num_key_value_heads=4, **sizes)
    decoder = DiaDecoderConfig(
        vocab_size=CODES + 4,
        hidden_size=32,
        num_key_value_heads=2,
        cross_num_attention_heads=4,
        cross_head_dim=8,
        cross_num_key_value_heads=4,
        cross_hidden_size=32,
        num_channels=len(DELAYS),
        eos_token_id=CODES,
        pad_token_id=CODES + 1,
        bos_token_id=CODES + 2,
        max_position_embeddings=64,
        **sizes,
    )
    config = DiaConfig(encoder_config=encoder, decoder_config=decoder, delay_pattern=list(DELAYS))
    made = DiaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.5 if "embed" in name else 0.25)
    settings = made.generation_config
    settings.update(
        bos_token_id=CODES + 2, decoder_start_token_id=CODES + 2, eos_token_id=CODES, pad_token_id=CODES + 1
    )
    settings.update(guidance_scale=3.0, top_k=TOP_K, temperature=1.2, do_sample=True)
    return made


@cache
def codec() -> DacCodec:
    sizes: dict[str, Any] = {
        "codebook_size": CODES,
        "codebook_dim": 4,
        "sampling_rate": 800,
        "n_codebooks": 3,
    }
    config = DacConfig(downsampling_ratios=(2, 4), encoder_hidden_size=4, decoder_hidden_size=16, **sizes)
    return DacCodec.from_model(DacModel(config))


@cache
def family() -> dia.Dia:
    return dia.Dia.of(model(), letters(), codec(), frames=FRAMES)


def guided(text: str, guidance: Guidance) -> Prompt:
    prompt = family().prompt(text)
    other = family().unconditional(prompt, None)
    return replace(prompt, guidance=guidance, unconditional=other)


def made(prompts: Sequence[Prompt], **changes: Any) -> list[Any]:
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0), "drafter": None} | changes
    found: list[Any] = Generator(family().target).generate(list(prompts), **settings)
    return found


def own_stream(text: str, scale: float) -> Tensor:
    """The steps ``[S, K]`` of the model's own greedy ``generate``, start triangle and ends included."""
    ids = letters()(text, return_tensors="pt")["input_ids"]
    columns = max(DELAYS) + 1
    delayed = torch.full((1, columns, len(DELAYS)), CODES + 1)
    for slot, delay in enumerate(DELAYS):
        delayed[0, : delay + 1, slot] = CODES + 2
    found: Tensor = model().generate(
        ids,
        decoder_input_ids=delayed,
        decoder_attention_mask=torch.ones(1, columns, dtype=torch.long),
        do_sample=False,
        guidance_scale=scale,
        top_k=TOP_K,
        max_new_tokens=FRAMES + max(DELAYS) + 1,
    )
    return found[0, 1:]


@pytest.mark.parametrize("guidance", [Guidance(), MASKED], ids=["alone", "guided"])
@pytest.mark.parametrize("text", TEXTS[:2])
def test_plain_decoding_is_generate(text: str, guidance: Guidance) -> None:
    """Every symbol of the model's own greedy stream, to the countdown at its end."""
    expected = own_stream(text, guidance.scale)
    found = made([guided(text, guidance)])[0]
    assert found.tokens.tolist() == expected.tolist()
    assert len(expected[:FRAMES].unique()) > 4 and found.finish_reason == "stop"
    codes = family().common.layout.codes(found.tokens.flatten().tolist())
    assert codes.shape == (found.tokens[:, 0].tolist().index(CODES), 3)


@pytest.mark.parametrize("drafter", [Jacobi(num_draft_tokens=9), PromptLookup()], ids=lambda d: d.name)
def test_drafts_change_nothing(drafter: Any) -> None:
    """The same codes for the same seeds: alone, in a batch of four, whatever is drafted."""
    prompts = [
        guided(text, one) for text, one in zip(TEXTS, (MASKED, Guidance(), MASKED, MASKED), strict=True)
    ]
    settings = [Sampling(seed=seed, temperature=0.8) for seed in range(4)]
    plain = [made([p], sampling=s)[0] for p, s in zip(prompts, settings, strict=True)]
    drafted = made(prompts, sampling=settings, drafter=drafter)
    for one, other in zip(plain, drafted, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert other.tokens[-1, -1] == CODES
    assert sum(one.report.drafted for one in drafted) > 0


def own_law(scores: Tensor, other: Tensor, **settings: Any) -> Tensor:
    """What transformers' processors make of the logits ``[K, V]`` of both branches, behind eight steps."""
    config = replace_settings(max_length=60, **settings)
    given = torch.zeros(len(DELAYS), 8, dtype=torch.long)
    processors: Any = model()._get_logits_processor(config, device="cpu", encoder_input_ids=given)
    guided = config.guidance_scale not in (None, 1.0)
    found: Tensor = processors(given, torch.cat([scores, other]) if guided else scores)
    return found.softmax(-1)


@pytest.mark.parametrize("best", [True, False], ids=["the end is best", "it is not"])
@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 3.0, "top_k": TOP_K, "temperature": 1.3},
        {"guidance_scale": None, "top_k": 5, "top_p": 0.8, "temperature": 1.6},
        {"guidance_scale": None, "top_k": None, "temperature": 1.0},
    ],
    ids=["guided", "truncated", "bare"],
)
def test_one_step_has_the_law_of_transformers(settings: dict[str, Any], best: bool) -> None:
    """The end is certain or impossible, in every channel, under any truncation and guidance."""
    chance = torch.Generator().manual_seed(1)
    scores, other = torch.randn(2, len(DELAYS), CODES + 4, generator=chance)
    scores[:, CODES] = 9.0 if best else 1.0
    other[:, CODES] = 0.0
    expected = own_law(scores, other, **settings)
    guidance = dia.guidance_of(replace_settings(**settings))
    mixed = scores if guidance.neutral else guidance.mix(scores, other, range(len(DELAYS)))
    asked: dict[str, Any] = {"top_p": 1.0} | settings
    sampling = Sampling(
        temperature=asked["temperature"], top_k=asked["top_k"] or 0, top_p=asked["top_p"], seed=1
    )
    asked_row = replace(row(sampling=sampling), prompt=family().prompt("yes"))
    running = Row(0, asked_row, family().target.spec)
    running.history.extend([0] * 8 * len(DELAYS))
    assert running.frames is not None
    law = running.frames.laws(mixed, Draft.empty(), running.history).law
    torch.testing.assert_close(law.probs, expected.double())
    assert law.probs[0, CODES] == float(best) and not law.probs[1:, CODES].any()


def test_the_end_is_not_drawn() -> None:
    """Sampled streams end where the end is best; for greedy ones nothing changes."""
    spec = family().prompt("yes").spec
    assert spec is not None and spec.drawn(Sampling(temperature=0)).processors == ()
    prompt = guided(TEXTS[3], Guidance())
    found = made([prompt], sampling=Sampling(seed=5), output_scores=True)[0]
    leader = found.logits[0 :: len(DELAYS)][:, : CODES + 1]
    said = found.tokens[:, 0] == CODES
    places = [place for place in range(len(said)) if not said[:place].any() and place < FRAMES]
    assert [bool(leader[n].argmax() == CODES) for n in places] == said[places].tolist()


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    """Weights, tokenizer, and the codec in a folder beside them; what the checkpoint says is the default."""
    model().save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    codec().model.save_pretrained(tmp_path / "codec")
    loaded: Any = dia.load(tmp_path, device="cpu")
    assert isinstance(loaded, SpeechFamily) and dia.fits(model().config)
    assert loaded.guidance == MASKED and loaded.sampling.temperature == 1.2
    layout: Any = loaded.layout_of(loaded.prompt("yes"))
    assert layout.frames == 64 - 3 - 2
    prompt = replace(loaded.prompt(TEXTS[0]), spec=family().prompt(TEXTS[0]).spec)
    found = Generator(loaded.target).generate(prompt, drafter=None, sampling=Sampling(temperature=0))
    assert torch.equal(found.tokens, made([family().prompt(TEXTS[0])])[0].tokens)


def test_what_it_cannot_do() -> None:
    """Nothing to say, a voice, the codec of another model."""
    with pytest.raises(PromptError, match="something to say"):
        family().prompt(" ")
    with pytest.raises(UnknownNameError, match="'Anna'"):
        family().prompt("hello", "Anna")
    assert family().unconditional(family().prompt("a"), "b").text == "b"
    with pytest.raises(UnsupportedError, match="got a codec of 2 codebooks"):
        dia.Dia.of(model(), letters(), replace(codec(), num_codebooks=2))


def test_guidance_is_that_of_the_checkpoint() -> None:
    """None, 1, and a scale without a choice of symbols."""
    settings = replace_settings(guidance_scale=None)
    assert dia.guidance_of(settings).neutral
    assert dia.guidance_of(replace_settings(guidance_scale=1.0)).neutral
    assert dia.guidance_of(replace_settings(top_k=None)) == Guidance(scale=3.0, convention="extrapolate")


def replace_settings(**changes: Any) -> Any:
    settings = deepcopy(model().generation_config)
    settings.update(**changes)
    return settings


def test_parler_has_a_layout_and_no_class() -> None:
    """Each codebook ends by itself, at the earliest a step behind the one before."""
    decoder = SimpleNamespace(num_codebooks=2, eos_token_id=4, bos_token_id=5)
    layout = parler.layout_of(decoder)
    spec = layout.spec
    found = play(SlotTableModel(2, 6, seed=1, spec=spec), row((5, 5), end_ids=(4,), max_new_tokens=100))[0]
    assert found.finish_reason == "stop" and found.tokens[-1].tolist() == [4, 4]
    first, second = (column.index(4) for column in found.tokens.T.tolist())
    assert first < second
    assert parler.fits(SimpleNamespace(model_type="parler_tts"))
    with pytest.raises(UnsupportedError, match="no class"):
        parler.load("parler-tts/parler-tts-mini-v1")
