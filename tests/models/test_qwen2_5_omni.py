"""Qwen2.5-Omni's talker, which hears its thinker at every step: the model's own codes, whatever drafts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

import multispec as ms
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError, UsageError
from multispec.modalities.speech.families import family_of, qwen2_5_omni
from multispec.modalities.speech.families.qwen2_5_omni import (
    INPUTS,
    REPLY,
    Qwen25Omni,
    TalkerTarget,
    talker_prompt,
)
from multispec.modalities.speech.family import FrameLayout, SpeechCodec, SpeechFamily
from multispec.sampling import Sampling
from tests.models import pictures

CODES = 20
TEXTS = ("hello", "two words", "a", "a longer text of some words")


@cache
def tokenizer() -> Any:
    """Letters, and the two marks of a chat."""
    return pictures.tokenizer({}, ["<|im_start|>", "<|im_end|>"])


def _config() -> Qwen2_5OmniConfig:
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.3}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {"vocab_size": 64, "rope_parameters": rope, "pad_token_id": 0, **heads, **sizes}
    audio: dict[str, Any] = {
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "d_model": 16,
    }
    vision: dict[str, Any] = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}
    thinker: dict[str, Any] = {
        "text_config": text,
        "audio_config": audio | {"output_dim": 32, "num_mel_bins": 8},
        "vision_config": vision | {"out_hidden_size": 32},
        "audio_token_index": 60,
        "image_token_index": 61,
        "video_token_index": 62,
        "vision_start_token_id": 59,
    }
    talker: dict[str, Any] = {
        "vocab_size": 32,
        "embedding_size": 32,
        "head_dim": 8,
        "rope_parameters": rope,
        "tts_codec_start_token_id": 24,
        "tts_codec_end_token_id": 25,
        "tts_codec_pad_token_id": 26,
        "tts_codec_mask_token_id": 27,
        "tts_text_start_token_id": 50,
        "tts_text_end_token_id": 51,
        "tts_text_pad_token_id": 52,
        **heads,
        **sizes,
    }
    dit: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
        "emb_dim": 8,
        "num_embeds": CODES,
        "mel_dim": 8,
        "block_size": 4,
        "look_ahead_layers": [1],
        "look_backward_layers": [0],
        "enc_emb_dim": 8,
        "enc_dim": 8,
        "enc_channels": [8, 8, 8, 8, 24],
        "enc_attention_channels": 8,
        "enc_se_channels": 8,
    }
    vocoder: dict[str, Any] = {"mel_dim": 8, "upsample_initial_channel": 16, "upsample_rates": [3, 2]}
    vocoder |= {
        "upsample_kernel_sizes": [7, 4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
    }
    sound = {"dit_config": dit, "bigvgan_config": vocoder}
    return Qwen2_5OmniConfig(thinker_config=thinker, talker_config=talker, token2wav_config=sound)


def build(seed: int = 0) -> Any:
    """A random model with two speakers."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Qwen2_5OmniForConditionalGeneration(_config()).eval()
        # Or some texts would end at once.
        model.talker.codec_head.weight.data[[25, 26]] = 0
        for number, name in enumerate(("Chelsie", "Ethan")):
            voice = {"cond": torch.randn(1, 8), "ref_mel": torch.randn(1, 6, 8), "bos_token": 50 + number}
            model.speaker_map[name] = voice
    return model


@cache
def family(seed: int = 0) -> Qwen25Omni:
    """One family per seed, shared by the tests."""
    return Qwen25Omni.from_model(build(seed), tokenizer())


def test_a_family() -> None:
    """It keeps the protocols, and has one voice: that of its vocoder."""
    own = family()
    assert isinstance(own, SpeechFamily) and isinstance(own.codec, SpeechCodec)
    assert isinstance(own.layout, FrameLayout)
    assert (own.codec.cardinality, own.codec.hop, own.layout.size) == (CODES, 12, CODES)
    assert own.voices == ("Chelsie",)
    assert own.target.capabilities.supports_tree
    entry = family_of(own.model.config)
    assert entry is not None and entry.module == "qwen2_5_omni"
    assert own.sampling == Sampling(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)


def _own_generate(prompt: ms.Prompt, count: int, penalty: float = 1.0) -> list[int]:
    """The talker's own greedy generate, given what the thinker made without the talker's marks.

    One position of padding goes before it: ``generate`` drops a mask without padding, and without a mask the
    talker forgets to add its marks.
    """
    own = family()
    talker = own.model.talker
    embed = talker.get_input_embeddings()
    inputs = prompt.conditioning[INPUTS].clone()
    inputs[-2] -= embed(torch.tensor(talker.codec_pad_token))
    inputs[-1] -= embed(torch.tensor(talker.codec_bos_token))
    allowed = [*range(CODES), *own.layout.ends]
    ids = torch.cat([prompt.ids[:1], prompt.ids])
    found = talker.generate(
        input_ids=ids[None],
        input_text_ids=ids[None],
        thinker_reply_part=prompt.conditioning[REPLY][None],
        inputs_embeds=torch.cat([inputs[:1], inputs])[None],
        attention_mask=(torch.arange(len(ids)) > 0).long()[None],
        max_new_tokens=count,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=list(own.layout.ends),
        pad_token_id=talker.codec_pad_token,
        prefix_allowed_tokens_fn=lambda batch, ids: allowed,
    )
    return list(found[0, len(ids) :].tolist())


@torch.inference_mode()
def test_plain_decoding_is_the_talkers_own_greedy() -> None:
    """``generate`` of the talker, with what it hears at each step, and its penalty."""
    own = family()
    for text in TEXTS:
        for penalty in (1.0, 1.05):
            prompt = own.prompt(text)
            sampling = Sampling(temperature=0, repetition_penalty=penalty)
            found = pictures.symbols(own.target, [prompt], None, sampling=sampling, max_new_tokens=14)
            assert pictures.tokens(found) == [_own_generate(prompt, 14, penalty)]


@torch.inference_mode()
def test_a_prompt_is_what_the_whole_model_makes() -> None:
    """A thinker that answers by itself gives its talker what is given here for the same answer."""
    own = family()
    asked = torch.tensor(tokenizer()("hello you")["input_ids"])
    given: dict[str, Any] = {}
    talker = own.model.talker
    kept = talker.generate

    def seen(**inputs: Any) -> torch.Tensor:
        given.update(inputs)
        return torch.cat([inputs["input_ids"], torch.tensor([[1, 2, talker.codec_eos_token]])], 1)

    talker.generate = seen
    try:
        said, waveform = own.model.generate(
            asked[None],
            attention_mask=torch.ones_like(asked[None]),
            speaker="Chelsie",
            thinker_max_new_tokens=5,
            thinker_do_sample=False,
            thinker_eos_token_id=63,
            talker_eos_token_id=list(own.layout.ends),
        )
    finally:
        talker.generate = kept
    reply = said[0, len(asked) : -1]  # the last symbol, which ends the text, is never run
    prompt = talker_prompt(own.model, asked, reply, 50)
    embed = talker.get_input_embeddings()
    inputs = prompt.conditioning[INPUTS].clone()
    inputs[-2] -= embed(torch.tensor(talker.codec_pad_token))
    inputs[-1] -= embed(torch.tensor(talker.codec_bos_token))
    assert torch.equal(prompt.ids, given["input_ids"][0])
    torch.testing.assert_close(inputs, given["inputs_embeds"][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        prompt.conditioning[REPLY], given["thinker_reply_part"][0], rtol=1e-4, atol=1e-4
    )
    assert waveform.shape == own.codec.decode(torch.tensor([[1], [2]]))[0].shape


@torch.inference_mode()
def test_every_step_hears_something_else() -> None:
    """The reply is heard: another one gives other codes, behind the same prompt."""
    own = family()
    prompt = own.prompt(TEXTS[1])
    deaf = replace(prompt, conditioning={**prompt.conditioning, REPLY: prompt.conditioning[REPLY][-1:]})
    found = pictures.symbols(own.target, [prompt, deaf], None, max_new_tokens=14)
    assert len({tuple(one) for one in pictures.tokens(found)}) == 2


def test_drafting_changes_nothing() -> None:
    """Any drafter, trees and chains, alone and in a batch of texts of several lengths."""
    prompts = [family().prompt(text) for text in TEXTS]
    pictures.assert_drafting_changes_nothing(family().target, family(1).target, prompts)


def test_codes_and_sound() -> None:
    """The end is no code; sound is the same every time, and draws nothing from torch's own generator."""
    own = family()
    layout, codec = own.layout, own.codec
    codes = torch.tensor([[3], [0], [7]])
    assert torch.equal(layout.codes([*layout.tokens(codes).tolist(), layout.ends[1], 5]), codes)
    assert layout.coordinates(4) == (4, 0)
    with pytest.raises(UsageError, match=r"must lie in \[0, 20\): got 21"):
        layout.codes([21])
    state = torch.get_rng_state()
    samples = codec.decode(codes)
    assert samples.shape == (1, 36) and torch.equal(samples, codec.decode(codes))
    assert torch.equal(torch.get_rng_state(), state)
    assert codec.decode(codes[:0]).shape == (1, 0)
    assert codec.codebook(0).shape == (CODES, 8)
    other = Qwen25Omni.from_model(own.model, tokenizer(), "Ethan")
    assert not torch.allclose(other.codec.decode(codes), samples)
    with pytest.raises(UnsupportedError, match="without the encoder"):
        codec.encode(torch.zeros(1, 9))


def test_bad_input() -> None:
    """Another voice, a control symbol, a prompt that hears nothing, a model that cannot speak."""
    own = family()
    with pytest.raises(UnknownNameError, match="Unknown voice 'Ethan'"):
        own.prompt("hello", "Ethan")
    with pytest.raises(PromptError, match="control symbol"):
        own.prompt("hello <|im_end|>")
    with pytest.raises(UnsupportedError, match="guide away from"):
        own.unconditional(own.prompt("hello"), None)
    assert len(own.unconditional(own.prompt("hello"), "low").ids) > 0
    bare = replace(own.prompt("hello"), conditioning={})
    with pytest.raises(PromptError, match="got nothing as 'inputs_embeds'"):
        pictures.symbols(own.target, [bare], None)
    with pytest.raises(UnknownNameError, match="Unknown speaker"):
        Qwen25Omni.from_model(own.model, tokenizer(), "Alice")
    mute = build()
    mute.speaker_map = {}
    with pytest.raises(ModelLoadError, match="spk_dict.pt"):
        Qwen25Omni.from_model(mute, tokenizer())


def test_a_talker_that_runs_otherwise_is_refused() -> None:
    """Where a plain pass gives other logits than ours, nothing is run."""
    talker = build().talker

    class Loud(torch.nn.Module):
        """Another projection on every call."""

        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.calls

    talker.thinker_to_talker_proj = Loud()
    with pytest.raises(UnsupportedError, match="otherwise than by its plain forward pass"):
        TalkerTarget(talker)


def test_folders_that_are_none(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is said; a model without a talker is not this family's."""
    with pytest.raises(ModelLoadError, match="spk_dict.pt"):
        qwen2_5_omni.load(tmp_path, device="cpu")
    silent = _config()
    silent.enable_audio_output = False
    assert not qwen2_5_omni.fits(silent)
