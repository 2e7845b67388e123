"""CSM: the same codes as the model's own generate, whatever drafts, in batches, with and without a voice."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CsmConfig, CsmForConditionalGeneration

import multispec as ms
from multispec.drafters import Jacobi, PromptLookup
from multispec.drafters.depth_ngram import DepthNgram
from multispec.drafters.previous_frame import PreviousFrame
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError
from multispec.modalities.speech.families import csm
from multispec.modalities.speech.families._flat import Reference
from multispec.modalities.speech.families.csm import AllButLast, Csm
from multispec.modalities.speech.family import SpeechFamily
from multispec.protocols import Drafter
from multispec.row import RowSettings
from multispec.sampling import Sampling
from multispec.stream import EverySlot, Generation
from multispec.testing import ScriptedDrafter, play, row
from tests.models import words

BOOKS, CODES, FRAMES = 4, 16, 5
TEXTS = ("a fox", "the quick brown fox", "dog", "lazy days are over")


def build(seed: int = 0, codes: int = CODES, attention: str = "sdpa") -> Any:
    """A random CSM of four codebooks, sharp enough to have clear opinions."""
    size: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    depth = {"num_codebooks": BOOKS, "backbone_hidden_size": 24, "vocab_size": codes, "hidden_size": 16}
    codec = {
        "model_type": "mimi",
        "sampling_rate": 1600,
        "hidden_size": 16,
        "num_filters": 4,
        "upsampling_ratios": [4, 2],
        "codebook_size": CODES,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": BOOKS,
        "upsample_groups": 16,
        "num_hidden_layers": 1,
        **size,
        "num_key_value_heads": 2,
    }
    config = CsmConfig(
        num_codebooks=BOOKS,
        vocab_size=codes,
        text_vocab_size=400,
        hidden_size=24,
        num_hidden_layers=2,
        max_position_embeddings=128,
        codebook_pad_token_id=codes - 1,
        codebook_eos_token_id=0,
        audio_token_id=398,
        audio_eos_token_id=399,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.5,
        depth_decoder_config=depth | size | {"num_hidden_layers": 2, "initializer_range": 0.5},
        codec_config=codec,
        **size,
    )
    config._attn_implementation = attention
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = CsmForConditionalGeneration(config).eval()
    return model


@cache
def model() -> Any:
    """One model for all tests that leave it as it is."""
    return build()


@cache
def family() -> Csm:
    """With a voice of two frames."""
    voice = Reference(text="hello", codes=(1, 2, 3, 4, 5, 6, 7, 8))
    return Csm.from_model(model(), words.byte_level(), {"ada": voice})


def speak(drafter: Drafter | None, texts: tuple[str, ...] = TEXTS, **changes: Any) -> list[Generation]:
    """The frames of some texts together."""
    prompts = [family().prompt(text, "0") for text in texts]
    return play(family().target, *(request(one, drafter=drafter, **changes) for one in prompts))


def request(prompt: ms.Prompt, **changes: Any) -> RowSettings:
    """Greedily, five frames."""
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0), "max_new_tokens": FRAMES * BOOKS}
    return replace(row(**(settings | changes)), prompt=prompt)


def own_codes(prompt: ms.Prompt, frames: int = FRAMES, of: Any = None, **inputs: Any) -> torch.Tensor:
    """What the model's own generate says, greedily."""
    ids = prompt.ids[None]
    with torch.random.fork_rng():
        found = (of or model()).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            depth_decoder_do_sample=False,
            max_new_tokens=frames,
            **inputs,
        )
    codes: torch.Tensor = found[0]
    return codes


def test_plain_greedy_is_the_models_own_generate() -> None:
    """Each of four texts, generated together."""
    family_: SpeechFamily = family()
    found = speak(None)
    for text, one in zip(TEXTS, found, strict=True):
        assert torch.equal(one.tokens, own_codes(family_.prompt(text, "0")))
    assert len({tuple(one.tokens.flatten().tolist()) for one in found}) > 1


def test_a_voice_is_heard_before() -> None:
    """Its codes lie where the processor would put what the codec makes of its sound."""
    prompt = family().prompt("a fox", "ada")
    config = model().config
    assert (prompt.ids == config.audio_token_id).sum() == 2
    inputs = model()._merge_input_ids_with_input_values
    codec, codes = model().codec_model, prompt.conditioning["codes"]

    class Encoded:
        audio_codes = codes.T[None]

    # The model's own merge, with an encoder that hears these very codes.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "encode", lambda *_: Encoded)
        patch.setattr(codec, "get_audio_codes_mask", lambda _: torch.ones(1, 2, dtype=torch.bool))
        expected = inputs(prompt.ids[None], torch.zeros(1, 1, 16), torch.tensor([[16]]))["inputs_embeds"]
    torch.testing.assert_close(family().target.time.prompt(prompt), expected[0])


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
    """One text alone and four together, greedily and by a seed."""
    for temperature in (0.0, 0.3):
        expected = plain(temperature)
        for texts in (TEXTS[:1], TEXTS):
            found = speak(DRAFTERS[name], texts, sampling=Sampling(temperature=temperature, seed=3))
            for one, other in zip(found, expected, strict=False):
                assert torch.equal(one.tokens, other.tokens)
                assert one.report.drafter_failures == 0


def test_good_guesses_cut_sequential_depth_passes() -> None:
    """Three depth passes a frame plainly, and two frames in one pass where they were guessed right."""
    script, target, counts = plain(0.0)[0].tokens.flatten().tolist(), family().target, []
    for drafter in (None, ScriptedDrafter(script, num_draft_tokens=2 * BOOKS)):
        before = target.passes.depth
        (found,) = speak(drafter, TEXTS[:1])
        assert found.tokens.flatten().tolist() == script
        counts.append(target.passes.depth - before)
    assert counts[0] == FRAMES * (BOOKS - 1)
    assert counts[1] * 3 <= counts[0]


def test_a_frame_of_zeros_ends_the_sound() -> None:
    """As it ends the model's own generate; that frame is none of the sound."""
    silent = build()
    with torch.no_grad():
        silent.lm_head.weight.zero_()
        silent.depth_decoder.codebooks_head.weight.zero_()
        silent.depth_decoder.codebooks_head.weight[-1, :, 5] = 1e-3
        silent.depth_decoder.codebooks_head.weight[-1, :, 6] = -1e-3
    quiet = Csm.from_model(silent, words.byte_level())
    prompt = quiet.prompt("a fox")
    (found,) = play(quiet.target, request(prompt, max_new_tokens=40))
    assert found.finish_reason == "stop"
    assert torch.equal(found.tokens, own_codes(prompt, of=silent))
    # The model looks at all codes but the last, and so do both.
    assert found.tokens.shape == (1, BOOKS)
    assert found.tokens[0, -1] in (5, 6)
    assert quiet.layout_of(prompt).codes([0] * BOOKS).shape == (0, BOOKS)


def test_the_end_is_a_whole_frame() -> None:
    """Zeros across two frames are none."""
    ended = AllButLast(symbol=0, slots=3)
    assert [ended([0, 0, 7][:n]) for n in range(4)] == [False, False, False, True]
    assert not ended([1, 0, 0, 0, 7, 0])
    assert EverySlot(ids=(0,), slots=3)([0, 0, 0]) and ended([0, 0, 0])


def test_codes_beyond_the_codec_are_left_out() -> None:
    """A vocabulary with specials behind the codes of Mimi: the grammar leaves codes alone."""
    wide = Csm.from_model(build(codes=CODES + 3), words.byte_level())
    prompt = wide.prompt("a fox")
    found = play(wide.target, request(prompt, sampling=Sampling()))[0]
    assert int(found.tokens.max()) < CODES
    codes = wide.layout_of(prompt).codes(found.tokens.flatten().tolist())
    assert wide.codec.decode(codes).shape == (1, len(codes) * wide.codec.hop)


def test_another_kind_of_attention_gives_the_same_codes() -> None:
    """Eager attention makes no causal mask of its own, so it is given one."""
    eager = Csm.from_model(build(attention="eager"), words.byte_level())
    prompt = eager.prompt("a fox", "0")
    assert torch.equal(play(eager.target, request(prompt))[0].tokens, plain(0.0)[0].tokens)


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    """Model, tokenizer, codec and voices; weights that are missing are refused."""
    model().save_pretrained(tmp_path)
    words.byte_level().save_pretrained(tmp_path)
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "ada.json").write_text('{"text": "hello", "codes": [1, 2, 3, 4, 5, 6, 7, 8]}')
    found = csm.load(tmp_path, device="cpu")
    assert csm.fits(found.config) and found.voices[:2] == ("ada", "0")
    prompt = found.prompt("a fox")
    torch.testing.assert_close(prompt.ids, family().prompt("a fox", "ada").ids)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelLoadError, match="cut short"):
        csm.load(tmp_path, device="cpu")


def test_what_cannot_be_said_is_refused() -> None:
    """Unknown voices, no text, a text beyond the context, guidance, voices of half a frame."""
    with pytest.raises(UnknownNameError, match="voice"):
        family().prompt("a fox", "bob")
    with pytest.raises(PromptError, match="holds 128"):
        family().prompt("a fox " * 60)
    with pytest.raises(UnsupportedError, match="guide away"):
        family().unconditional(family().prompt("a fox"), None)
    assert len(family().unconditional(family().prompt("a fox"), "dog").ids) > 0
    with pytest.raises(ModelLoadError, match="whole frames"):
        Csm.from_model(model(), words.byte_level(), {"half": Reference(text="x", codes=(1, 2, 3))})
