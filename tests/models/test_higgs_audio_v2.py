"""Higgs Audio v2 with tiny random weights: our target against the model's own ``generate``."""

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
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2Processor,
)

from multispec.drafters import Jacobi, PromptLookup
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError
from multispec.generator import Generator
from multispec.guidance import Guidance
from multispec.modalities.speech.families import family_of, higgs_audio_v2
from multispec.modalities.speech.families._flat import Reference
from multispec.modalities.speech.families.higgs_audio_v2 import HEARD, TEXT, DrawnAgain, HiggsAudioV2
from multispec.modalities.speech.family import FrameLayout, SpeechFamily
from multispec.repetition_aware import RepetitionAware
from multispec.row import Row
from multispec.sampling import Sampling
from multispec.stream import Draft, Prompt
from multispec.testing import row
from tests.models import codecs
from tests.models.words import byte_level

BOOKS, CODES, STEPS = 4, 16, 14
START, END = CODES, CODES + 1
TEXTS = ("a fox", "the quick brown fox", "dog", "lazy days are over")
SPECIALS = ("<|audio_out_bos|>", "<|AUDIO_OUT|>", "<|audio_eos|>", "<|delay|>", "<|eot_id|>")
VOICE = Reference(text="hello", codes=tuple(range(12)))
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'audio' %}<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: <|audio_out_bos|>{% endif %}"
)


@cache
def tokenizer() -> Any:
    """All bytes, the symbols of audio, and a chat template."""
    made = deepcopy(byte_level())
    made.add_special_tokens({"additional_special_tokens": list(SPECIALS)})
    made.chat_template = TEMPLATE
    return made


@cache
def model() -> Any:
    ids = dict(zip(SPECIALS, tokenizer().convert_tokens_to_ids(list(SPECIALS)), strict=True))
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    stream: dict[str, Any] = {"num_codebooks": BOOKS, "codebook_size": CODES + 2}
    stream |= {"audio_stream_bos_id": START, "audio_stream_eos_id": END}
    config = HiggsAudioV2Config(
        vocab_size=len(tokenizer()),
        num_hidden_layers=2,
        pad_token_id=0,
        eos_token_id=ids["<|eot_id|>"],
        audio_token_id=ids["<|AUDIO_OUT|>"],
        audio_bos_token_id=ids["<|audio_out_bos|>"],
        audio_delay_token_id=ids["<|delay|>"],
        **sizes,
        **heads,
        **stream,
    )
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(2)
        made: Any = HiggsAudioV2ForConditionalGeneration(config).eval()
        for name, weight in made.named_parameters():
            if weight.ndim > 1:
                weight.data.normal_(0, 0.5 if "embed" in name else 0.25)
            elif "norm" in name:
                weight.data.uniform_(0.5, 1.5)
        # Ends come now and then.
        made.audio_lm_head.weight.data[END :: CODES + 2] *= 0.8
    made.generation_config.update(pad_token_id=0, eos_token_id=ids["<|eot_id|>"], temperature=0.9)
    made.generation_config.update(top_k=12, top_p=0.95, do_sample=True)
    return made


def with_repeats(made: Any) -> Any:
    """The same, whose generation settings ask for repetition aware sampling, in a narrow window."""
    settings = made.generation_config
    settings.ras_win_len, settings.ras_win_max_num_repeat = 3, 1
    # Those of a random model are not read with what transformers does not know.
    settings._from_model_config = False
    return made


@cache
def family() -> HiggsAudioV2:
    """A casting of its own, unless a voice is asked for."""
    plain = HiggsAudioV2.of(model(), tokenizer(), codecs.codec("higgs"))
    again = higgs_audio_v2.again_of(with_repeats(deepcopy(model())).generation_config, plain.layout)
    return replace(plain, again=again)


@cache
def heard() -> HiggsAudioV2:
    """With a voice of three frames."""
    return HiggsAudioV2.of(model(), tokenizer(), codecs.codec("higgs"), {"ada": VOICE})


def made(prompts: Sequence[Prompt], **changes: Any) -> list[Any]:
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0), "drafter": None}
    settings |= {"max_new_tokens": STEPS * BOOKS} | changes
    found: list[Any] = Generator(family().target).generate(list(prompts), **settings)
    return found


def own_steps(prompt: Prompt, steps: int = STEPS) -> Tensor:
    """The steps ``[S, K]`` of the model's own greedy ``generate``, the first one of starts included."""
    ids, more = prompt.conditioning[TEXT][None], dict[str, Any]()
    if HEARD in prompt.conditioning:
        steps_heard = prompt.conditioning[HEARD][None]
        more = {"audio_input_ids": steps_heard}
        more["audio_input_ids_mask"] = torch.ones(steps_heard.shape[:2], dtype=torch.bool)
    mask = torch.ones_like(ids)
    found = model().generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=steps + 1, **more)
    codes: Tensor = found[0, -(found.shape[1] - len(prompt.conditioning.get(HEARD, ()))) :]
    return codes


def own_codes(steps: Tensor) -> Tensor:
    """What the model's processor gives to the codec ``[T, K]``."""
    seen = list[Tensor]()

    def decode(codes: Tensor) -> Any:
        seen.append(codes[0].T)
        return SimpleNamespace(audio_values=torch.zeros(1))

    processor: Any = HiggsAudioV2Processor
    me = SimpleNamespace(
        audio_stream_bos_id=START,
        audio_stream_eos_id=END,
        audio_tokenizer=SimpleNamespace(decode=decode),
        revert_delay_pattern=lambda ids: processor.revert_delay_pattern(None, ids),
    )
    processor.batch_decode(me, steps[None])
    return seen[0].clamp(max=CODES - 1)


def test_plain_decoding_is_generate() -> None:
    """Every symbol of the model's own greedy streams, of four texts and of one in a voice; their codes."""
    prompts = [family().prompt(text) for text in TEXTS] + [heard().prompt(TEXTS[0], "ada")]
    reasons = set()
    for prompt, one in zip(prompts, made(prompts), strict=True):
        expected = own_steps(prompt)
        assert expected[0].tolist() == [START] * BOOKS
        assert one.tokens.tolist() == expected[1:].tolist()
        codes = family().layout.codes(one.tokens.flatten().tolist())
        assert torch.equal(codes, own_codes(expected))
        reasons.add(one.finish_reason)
    assert reasons == {"stop", "length"}


DRAFTERS: dict[str, Any] = {"jacobi": Jacobi(num_draft_tokens=12), "prompt_lookup": PromptLookup()}


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_drafts_change_nothing(drafter: str) -> None:
    """The same codes for the same seeds: alone, in a batch of four, whatever is drafted and drawn again."""
    prompts = [family().prompt(text) for text in TEXTS]
    settings = [Sampling(seed=seed, temperature=0.7 * (seed > 0), top_k=12) for seed in range(4)]
    plain = [made([p], sampling=s)[0] for p, s in zip(prompts, settings, strict=True)]
    drafted = made(prompts, sampling=settings, drafter=DRAFTERS[drafter])
    for one, other in zip(plain, drafted, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert other.report.drafter_failures == 0
    assert sum(one.report.drafted for one in drafted) > 0
    if drafter == "jacobi":
        assert sum(one.report.accepted for one in drafted) > 0


def test_one_step_has_the_law_of_transformers() -> None:
    """Its processors make the first law; what has come before is drawn anew from the model's own."""
    sampling = Sampling(temperature=0.6, top_k=5, top_p=0.7)
    scores = torch.randn(BOOKS, CODES + 2, generator=torch.Generator().manual_seed(4)) * 2
    before = torch.randint(CODES, (6, BOOKS), generator=torch.Generator().manual_seed(5))
    before[4], before[3, 2] = scores.argmax(-1), int(scores[2].argmax())
    asked: dict[str, Any] = {"temperature": 0.6, "top_k": 5, "top_p": 0.7, "max_length": 50}
    settings = deepcopy(model().generation_config)
    settings.update(**asked)
    processors: Any = model()._get_logits_processor(settings, device="cpu")
    audio = torch.full((1, 9), model().config.audio_token_id)
    # The first call is for the step of starts.
    first = [processors(audio, scores.flatten()[None]) for _ in range(2)][1].softmax(-1).double()
    repeated = torch.zeros_like(first, dtype=torch.bool)
    for slot in range(BOOKS):
        repeated[slot, before[-3:, slot]] = True
    repeated[:, CODES:] = False
    again = first * repeated
    expected = first - again + again.sum(-1, keepdim=True) * scores.double().softmax(-1)
    running = Row(0, replace(row(sampling=sampling), prompt=family().prompt("dog")), family().target.spec)
    assert running.frames is not None and bool(again.sum(-1).gt(0.1).any())
    for step in before.tolist():
        running.history.extend(step)
        running.frames.commit(step)
    law = running.frames.laws(scores, Draft.empty(), running.history).law
    torch.testing.assert_close(law.probs, expected, atol=1e-6, rtol=1e-5)


def test_ends_come_in_turn() -> None:
    """Behind the first end, whoever says it; starts in the first triangle."""
    layout = family().layout
    checked: FrameLayout = layout
    assert [layout.grammar([0] * n) is not None for n in range(BOOKS)] == [False, True, True, True]
    said = [0, START, START, START, 1, 2, END, START]
    forced = [layout.grammar([*said, *[-1] * slot]) for slot in range(BOOKS)]
    assert [getattr(one, "symbol", None) for one in forced] == [END, None, None, START]
    frames = torch.arange(3 * BOOKS).view(3, BOOKS) % CODES
    assert torch.equal(checked.codes(checked.tokens(frames).tolist()), frames)
    assert checked.coordinates(5) == (0, 1) and checked.coordinates(1) is None


def test_repeats_are_the_checkpoint_s_own() -> None:
    """Off where it says nothing, and greedily; in place of the warpers otherwise."""
    assert heard().again is None and heard().prompt("dog").spec == heard().layout.spec
    again = family().again
    assert again is not None and again == DrawnAgain(3, 1, (START, END))
    assert again.drawn(Sampling(temperature=0)).processors == ()
    drawn = again.drawn(Sampling(temperature=0.5, top_k=3, top_p=0.9, seed=4))
    assert drawn.sampling == Sampling(seed=4)
    nucleus: dict[str, Any] = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "top_k_first": True}
    assert drawn.processors == (RepetitionAware(window=3, repeats=1, ignored=(START, END), **nucleus),)
    published = DrawnAgain(7, 2, (1024, 1025)).drawn(Sampling(top_k=50, top_p=0.95))
    assert published.processors == (RepetitionAware.higgs(),)
    for settings in (Sampling(min_p=0.1), Sampling(typical_p=0.9)):
        with pytest.raises(UnsupportedError, match="nucleus"):
            made([family().prompt("dog")], sampling=settings)


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    """Weights, tokenizer, codec and voices; what the checkpoint says is the default."""
    with_repeats(deepcopy(model())).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    codecs.codec("higgs").model.save_pretrained(tmp_path / "codec")
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "ada.json").write_text(f'{{"text": "hello", "codes": {list(VOICE.codes)}}}')
    loaded = higgs_audio_v2.load(tmp_path, device="cpu")
    entry = family_of(loaded.config)
    assert isinstance(loaded, SpeechFamily) and entry is not None and entry.module == "higgs_audio_v2"
    assert loaded.sampling == Sampling(temperature=0.9, top_k=12, top_p=0.95)
    assert loaded.again == family().again and loaded.guidance == Guidance() and loaded.voices == ("ada",)
    prompt = loaded.prompt("a fox")
    assert prompt.conditioning[HEARD].tolist() == heard().prompt("a fox").conditioning[HEARD].tolist()
    assert loaded.layout_of(prompt) == family().layout
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0), "max_new_tokens": 6 * BOOKS}
    found = Generator(loaded.target).generate(prompt, drafter=None, **settings)
    assert torch.equal(found.tokens, own_steps(prompt, 6)[1:])


def test_what_it_cannot_do() -> None:
    """No words, control symbols, an unknown voice, guidance; other codecs, ragged voices, no template."""
    with pytest.raises(PromptError, match="reads nothing"):
        family().prompt("")
    with pytest.raises(PromptError, match="control symbol"):
        family().prompt("a <|AUDIO_OUT|> fox")
    with pytest.raises(UnknownNameError, match="'bob'"):
        heard().prompt("a fox", "bob")
    with pytest.raises(UnsupportedError, match="guide away"):
        family().unconditional(family().prompt("a fox"), None)
    assert family().unconditional(family().prompt("a fox"), "dog").text == "dog"
    small = deepcopy(model().config)
    small.codebook_size = CODES
    for config, codec in ((model().config, codecs.codec("mimi")), (small, codecs.codec("higgs"))):
        wrong = codec if config is small else replace(codec, num_codebooks=2)
        with pytest.raises(UnsupportedError, match="Use the one it was trained with"):
            higgs_audio_v2.layout_of(config, wrong)
    with pytest.raises(ModelLoadError, match="whole frames"):
        HiggsAudioV2.of(
            model(), tokenizer(), codecs.codec("higgs"), {"half": Reference(text="x", codes=(1,))}
        )


def test_the_chat_form_is_the_tokenizer_s() -> None:
    """None, and one that has no place for a piece of speech."""
    with pytest.raises(ModelLoadError, match="no chat template"):
        replace(family(), tokenizer=byte_level()).prompt("a fox")
    deaf = deepcopy(tokenizer())
    deaf.chat_template = "{% for message in messages %}{{ message.role }}{% endfor %}"
    with pytest.raises(ModelLoadError, match="for 1 pieces"):
        replace(heard(), tokenizer=deaf).prompt("a fox", "ada")
    begun = replace(family(), tokenizer=deaf).prompt("a fox")
    assert begun.conditioning[TEXT][-1] == model().config.audio_bos_token_id
