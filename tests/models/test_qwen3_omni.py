"""Qwen3-Omni's talker: the same codes as its own generate, whatever drafts, in batches."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

import multispec as ms
from multispec.drafters import Jacobi, PromptLookup
from multispec.drafters.depth_ngram import DepthNgram
from multispec.drafters.previous_frame import PreviousFrame
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError
from multispec.modalities.speech.families import qwen3_omni
from multispec.modalities.speech.families.qwen3_omni import INPUTS, PAD, REPLY, Qwen3Omni
from multispec.modalities.speech.family import SpeechCodec, SpeechFamily
from multispec.protocols import Drafter
from multispec.sampling import Sampling
from multispec.stream import Generation
from multispec.testing import ScriptedDrafter, play, row
from tests.models import words

BOOKS, CODES, FRAMES, END = 4, 16, 5, 18
TEXTS = ("a fox", "the quick brown fox", "dog", "lazy days are over")


def _config() -> Any:
    size: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 16}
    more: dict[str, Any] = {"intermediate_size": 32, "initializer_range": 0.5, "head_dim": 8}
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    turn = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = size | more | experts | {"num_hidden_layers": 1, "rope_parameters": turn}
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    hearing = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    talker = {
        "code_predictor_config": size
        | more
        | {"vocab_size": CODES, "num_code_groups": BOOKS}
        | {"num_hidden_layers": 2},
        "text_config": text
        | {"vocab_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 128}
        | {"shared_expert_intermediate_size": 16},
        "num_code_groups": BOOKS,
        "thinker_hidden_size": 16,
        "codec_eos_token_id": END,
        "codec_nothink_id": 19,
        "codec_think_bos_id": 20,
        "codec_think_eos_id": 21,
        "codec_pad_id": 16,
        "codec_bos_id": 17,
        "speaker_id": {"ethan": 22, "chelsie": 23},
        "spatial_merge_size": 2,
    }
    wave = {"codebook_size": CODES, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    wave |= {"sliding_window": 4, "num_hidden_layers": 1, "num_quantizers": BOOKS, "decoder_dim": 8}
    return Qwen3OmniMoeConfig(
        thinker_config={
            "text_config": text | {"vocab_size": 400},
            "audio_config": hearing | {"num_mel_bins": 8, "downsample_hidden_size": 8, "output_dim": 16},
            "vision_config": sight | {"deepstack_visual_indexes": [0]},
        },
        talker_config=talker,
        code2wav_config=wave | {"intermediate_size": 32, "upsample_rates": (2, 2), "upsampling_ratios": (2,)},
        im_start_token_id=390,
        im_end_token_id=391,
        tts_pad_token_id=392,
        tts_bos_token_id=393,
        tts_eos_token_id=394,
        user_token_id=395,
        assistant_token_id=396,
    )


@cache
def model() -> Any:
    """A random Qwen3-Omni of four codebooks."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        found: Any = Qwen3OmniMoeForConditionalGeneration(_config()).eval()
        # transformers leaves the talker's experts as they lie in memory.
        for layer in found.talker.model.layers:
            for weight in layer.mlp.experts.parameters():
                torch.nn.init.normal_(weight, std=0.1)
    return found


@cache
def family() -> Qwen3Omni:
    """The family around it."""
    return Qwen3Omni.from_model(model(), words.byte_level())


def speak(drafter: Drafter | None, texts: tuple[str, ...] = TEXTS, **changes: Any) -> list[Generation]:
    """The frames of some texts together."""
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0), "max_new_tokens": FRAMES * BOOKS}
    asked = row(drafter=drafter, end_ids=(END,), **(settings | changes))
    return play(family().target, *(replace(asked, prompt=family().prompt(text)) for text in texts))


def own_codes(prompt: ms.Prompt) -> torch.Tensor:
    """What the talker's own generate says, greedily: residual codes come with the step behind theirs."""
    talker, given = model().talker, prompt.conditioning
    with torch.random.fork_rng():
        out = talker.generate(
            inputs_embeds=given[INPUTS][None],
            trailing_text_hidden=given[REPLY][None],
            tts_pad_embed=given[PAD][None],
            attention_mask=torch.ones(1, len(given[INPUTS]), dtype=torch.long),
            do_sample=False,
            max_new_tokens=FRAMES + 1,
            eos_token_id=END,
            suppress_tokens=[one for one in range(CODES, 24) if one != END],
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    codes = [states[-1] for states in out.hidden_states if states[-1] is not None]
    return torch.cat(codes) if codes else torch.empty(0, BOOKS, dtype=torch.long)


def test_plain_greedy_is_the_talkers_own_generate() -> None:
    """Each of four texts, generated together; the text goes with the frames, then padding."""
    family_: SpeechFamily = family()
    found = speak(None)
    assert min(len(family().prompt(text).conditioning[REPLY]) for text in TEXTS) < FRAMES
    for text, one in zip(TEXTS, found, strict=True):
        assert torch.equal(one.tokens, own_codes(family_.prompt(text)))
    assert len({tuple(one.tokens.flatten().tolist()) for one in found}) > 1


DRAFTERS: dict[str, Drafter] = {
    "prompt_lookup": PromptLookup(),
    "jacobi": Jacobi(num_draft_tokens=9),
    "previous_frame": PreviousFrame(num_draft_tokens=6),
    "depth_ngram": DepthNgram(num_draft_tokens=11),
}


@cache
def plain(temperature: float) -> list[Generation]:
    """What the seeds say."""
    return speak(None, sampling=Sampling(temperature=temperature, seed=3))


@pytest.mark.parametrize("name", DRAFTERS)
def test_any_drafter_leaves_the_codes_as_they_are(name: str) -> None:
    """One text alone greedily, four together by a seed."""
    for temperature, texts in ((0.0, TEXTS[:1]), (0.3, TEXTS)):
        found = speak(DRAFTERS[name], texts, sampling=Sampling(temperature=temperature, seed=3))
        for one, other in zip(found, plain(temperature), strict=False):
            assert torch.equal(one.tokens, other.tokens)
            assert one.report.drafter_failures == 0


def test_good_guesses_cut_sequential_depth_passes() -> None:
    """A draft of the talker's own codes and of symbols that no codebook has."""
    script, target, counts = plain(0.0)[0].tokens.flatten().tolist(), family().target, []
    for guesses in (None, script, [23] * len(script)):
        before = target.passes.depth
        drafter = None if guesses is None else ScriptedDrafter(guesses, num_draft_tokens=2 * BOOKS)
        assert speak(drafter, TEXTS[:1])[0].tokens.flatten().tolist() == script
        counts.append(target.passes.depth - before)
    assert counts[1] * 3 <= counts[0] or len(script) < 2 * BOOKS


def test_the_prompt_is_the_models_own() -> None:
    """Speaker and text of the reply, as the model's own generate puts them together."""
    one, other = family().prompt("a fox", "ethan"), family().prompt("a fox", "chelsie")
    own = [prompt.conditioning[INPUTS] for prompt in (one, other)]
    assert [*(own[0] != own[1]).any(-1).nonzero().flatten()] == [len(own[0]) - 3]
    said = words.byte_level()("a fox")["input_ids"]
    expected = model().talker.text_projection(
        model().thinker.get_input_embeddings()(torch.tensor([said[1:]]))
    )
    torch.testing.assert_close(one.conditioning[REPLY][:-1], expected[0])
    assert len(one.ids) == len(own[0]) and family().layout_of(one).num_codebooks == BOOKS


def test_the_codec_decodes_what_was_said() -> None:
    """As the model's own; without an encoder."""
    codec: SpeechCodec = family().codec
    codes = torch.arange(12).view(3, BOOKS)
    wave = codec.decode(codes)
    assert wave.shape == (1, 3 * codec.hop) and codec.decode(codes[:0]).shape == (1, 0)
    own = model().code2wav(codes.T[None])[0, :, : wave.shape[1]]
    torch.testing.assert_close(wave[:, : own.shape[1]], own)
    assert codec.codebook(1).shape == (CODES, 16) and codec.reach[1] == 1
    with pytest.raises(UnsupportedError, match="without its encoder"):
        codec.encode(wave)


def test_what_cannot_be_said_is_refused() -> None:
    """Unknown voices, ids without embeddings, guidance, a model without a talker."""
    assert qwen3_omni.fits(model().config) and family().voices == ("ethan", "chelsie")
    with pytest.raises(UnknownNameError, match="voice"):
        family().prompt("a fox", "bob")
    with pytest.raises(PromptError, match="embeddings, not ids"):
        family().target.begin([ms.Prompt(ids=torch.tensor([1]))], [9], 4)
    with pytest.raises(UnsupportedError, match="guide away"):
        family().unconditional(family().prompt("a fox"), None)
    assert len(family().unconditional(family().prompt("a fox"), "dog").ids) > 0

    class Silent:
        has_talker = False

    with pytest.raises(UnsupportedError, match="no talker"):
        Qwen3Omni.from_model(Silent(), words.byte_level())


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    """Model and tokenizer; a file that is cut short is refused."""
    model().save_pretrained(tmp_path)
    words.byte_level().save_pretrained(tmp_path)
    found = qwen3_omni.load(tmp_path, device="cpu")
    one, other = (each.prompt("a fox").conditioning[INPUTS] for each in (found, family()))
    torch.testing.assert_close(one, other)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelLoadError, match="cut short"):
        qwen3_omni.load(tmp_path, device="cpu")
