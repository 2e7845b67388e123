"""Orpheus, Llasa, NeuTTS, Spark-TTS, OuteTTS: recognised, prompted, and exact whatever drafts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BarkConfig, LlamaConfig, PreTrainedConfig

import multispec as ms
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError, UsageError
from multispec.modalities.speech.adapter import Speech
from multispec.modalities.speech.codecs.snac import SnacCodec
from multispec.modalities.speech.families import FAMILIES, family_of, llasa, neutts, orpheus, spark
from multispec.modalities.speech.families._flat import Reference, named_voice, references
from multispec.modalities.speech.family import FrameLayout, SpeechCodec, SpeechFamily
from multispec.modalities.speech.refused import REFUSED, refuse
from multispec.sampling import Sampling
from multispec.stream import Allowed, Forced
from multispec.targets import target_for
from tests.models import codecs, flat_speech, pictures
from tests.models.flat_speech import CODES, NAMES, family, model, tokenizer

TEXTS = ("hello", "two words", "a", "a longer text of some words")


@pytest.mark.parametrize("name", NAMES)
def test_a_family(name: str) -> None:
    """It keeps the protocols; what its authors sample with is its own."""
    own = family(name)
    assert isinstance(own, SpeechFamily) and isinstance(own.codec, SpeechCodec)
    assert isinstance(own.layout, FrameLayout)
    assert own.target.capabilities.supports_tree and own.guidance.neutral
    assert own.sampling.temperature > 0 and own.sampling != Sampling()
    with pytest.raises(UnsupportedError, match="never trained without a text"):
        own.unconditional(own.prompt("hello"), None)
    assert own.unconditional(own.prompt("hello"), "low").ids.tolist() == own.prompt("low").ids.tolist()


def _named(name: str, ids: Any) -> list[str]:
    found: list[str] = tokenizer(name).convert_ids_to_tokens(list(ids))
    return found


def test_prompts_are_the_published_ones() -> None:
    """Every family opens, says and closes its text as its authors wrote it down."""
    bare = {name: _named(name, family(name).prompt("hi").ids) for name in NAMES}
    end = [f"<custom_token_{n}>" for n in (4, 5, 1)]
    said = ["t", "a", "r", "a", "<unk>", "Ġ", "h", "i"]
    assert bare["orpheus"] == ["<custom_token_3>", "<s>", *said, "<|eot_id|>", *end]
    start, stop = "<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>"
    place = bare["llasa"].index(start)
    assert bare["llasa"][place : place + 5] == [start, "h", "i", stop, "<|eot_id|>"]
    assert bare["llasa"][-1] == "<|SPEECH_GENERATION_START|>"
    spoken = ["<|SPEECH_GENERATION_START|>", *(f"<|speech_{n}|>" for n in (1, 2, 3))]
    assert bare["neutts"][-4:] == spoken
    place = bare["neutts"].index("<|TEXT_PROMPT_START|>")
    assert "".join(bare["neutts"][place + 1 :]).startswith("goodĠdayĠhi<|TEXT_PROMPT_END|>")
    assert bare["spark"][:2] == ["<|task_tts|>", "<|start_content|>"]
    assert bare["spark"][-5:-3] == ["<|end_global_token|>", "<|start_semantic_token|>"]
    assert bare["spark"].count("<|bicodec_global_7|>") == 4
    lines = ["<|im_start|>", "<unk>", "<|text_start|>", "h", "i", "<|text_end|>", "<unk>", "<|audio_start|>"]
    assert bare["outetts"] == [*lines, "<unk>"]


def test_a_llasa_prompt_does_not_depend_on_the_day() -> None:
    """Templates that write a date are given the same one always; a voice goes before the text."""
    ids = family("llasa").prompt("hi").ids
    assert "".join(_named("llasa", ids)).startswith(
        "26ĠJul" if "J" in tokenizer("llasa").get_vocab() else "26Ġ"
    )
    voiced = llasa.from_parts(
        family("llasa").target, tokenizer("llasa"), codecs.codec("xcodec2"), flat_speech.VOICES
    )
    found = _named("llasa", voiced.prompt("hi", "anna").ids)
    assert found[-3:] == ["<|s_1|>", "<|s_2|>", "<|s_3|>"] and "goodĠdayĠhi" in "".join(found)


def _own_generate(name: str, prompt: ms.Prompt, count: int) -> list[int]:
    """The model's own greedy generate, over what the layout's grammar allows."""
    layout, start = family(name).layout, len(prompt.ids)
    spec = layout.spec
    grammar = spec.grammar
    assert grammar is not None

    def allowed(batch: int, ids: torch.Tensor) -> Sequence[int]:
        left = grammar(ids[start:].tolist())
        assert left is not None
        return [left.symbol] if isinstance(left, Forced) else list(left.symbols)

    found = model(name).generate(
        prompt.ids[None],
        attention_mask=torch.ones_like(prompt.ids[None]),
        prefix_allowed_tokens_fn=allowed,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=list(spec.end_ids),
    )
    return list(found[0, start:].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_plain_decoding_is_the_models_own_greedy(name: str) -> None:
    """``generate`` with ``prefix_allowed_tokens_fn``, for several texts; what comes are codes."""
    own = family(name)
    for text in TEXTS[:3]:
        prompt = own.prompt(text)
        found = pictures.symbols(
            own.target, [prompt], None, sampling=Sampling(temperature=0), max_new_tokens=16
        )
        assert pictures.tokens(found) == [_own_generate(name, prompt, 16)]
        codes = own.layout_of(prompt).codes(found[0].tokens.tolist())
        assert codes.shape[1] == own.codec.num_codebooks and bool((codes < CODES).all())


@pytest.mark.parametrize(("name", "seed"), [("orpheus", 0), ("outetts", 0)])
def test_drafting_changes_nothing(name: str, seed: int) -> None:
    """Any drafter, alone and in a batch of texts; the others are one code after the other."""
    own = family(name, seed)
    prompts = [own.prompt(text) for text in TEXTS]
    pictures.assert_drafting_changes_nothing(own.target, family(name, 1).target, prompts)


def test_the_places_of_orpheus() -> None:
    """Seven segments in turn, an end between frames alone; symbols become SNAC's codes and back."""
    layout: Any = family("orpheus").layout
    first = tokenizer("orpheus").convert_tokens_to_ids("<custom_token_10>")
    for place in range(9):
        left = layout.grammar([0] * place)
        assert isinstance(left, Allowed)
        low = first + place % 7 * CODES
        assert set(range(low, low + CODES)) == set(left.symbols) - {layout.end}
        assert (layout.end in left.symbols) == (place % 7 == 0)
    codes = codecs.codes("snac", 3)
    assert torch.equal(layout.codes(layout.tokens(codes).tolist()), codes)
    # The third symbol is the first fast code: number 3 of SNAC's frame (1 slow, 2 middle, 4 fast).
    assert int(layout.tokens(codes)[2]) == first + 2 * CODES + int(codes[0, 3])


def test_it_speaks() -> None:
    """Through the whole adapter: a text becomes samples, streamed as at once."""
    own = family("orpheus")
    speaker = ms.Generator(own.target, Speech(own))
    settings: dict[str, Any] = {"max_new_tokens": 40, "sampling": Sampling(seed=3, min_new_tokens=21)}
    result = speaker.generate("hello", **settings)
    frames = len(own.layout.codes(result.tokens.tolist()))
    assert frames > 1 and result.output.waveform.shape == (1, frames * own.codec.hop)
    again = speaker.generate("hello", drafter=None, **settings)
    assert torch.equal(again.output.waveform, result.output.waveform)


def _saved(name: str, folder: Path, **own: Any) -> Path:
    model(name).save_pretrained(folder)
    tokenizer(name).save_pretrained(folder)
    if own:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"multispec": own}), "utf-8")
    return folder


def _snac(folder: Path) -> None:
    own = codecs.codec("snac").model
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(vars(own.config)), "utf-8")
    torch.save(own.state_dict(), folder / "pytorch_model.bin")


def test_orpheus_in_a_folder(tmp_path: Path) -> None:
    """Found by its symbols, loaded with its codec and its voices, and the same as in memory."""
    folder = _saved("orpheus", tmp_path / "3b-fr-ft-research_release")
    entry = family_of(AutoConfig.from_pretrained(folder))
    assert entry is not None and entry.module == "orpheus"
    with pytest.raises(ModelLoadError, match="codec of its own, which cannot be read.*published as"):
        entry.load(folder, device="cpu")
    _snac(folder / "codec")
    found = entry.load(folder, device="cpu")
    assert isinstance(found.codec, SnacCodec) and tuple(found.voices) == ("pierre", "amelie", "marie")
    prompt = found.prompt("bonjour", "marie")
    settings: dict[str, Any] = {"sampling": Sampling(seed=1), "max_new_tokens": 9}
    in_memory = pictures.symbols(family("orpheus").target, [prompt], None, **settings)
    assert pictures.tokens(pictures.symbols(found.target, [prompt], None, **settings)) == pictures.tokens(
        in_memory
    )


@pytest.mark.parametrize("name", NAMES)
def test_each_is_told_from_the_others(name: str, tmp_path: Path) -> None:
    """By the symbols of its tokenizer, or a name in config.json; text models are none of them."""
    entries = [entry for entry in FAMILIES if entry.module in NAMES]
    config = AutoConfig.from_pretrained(_saved(name, tmp_path / "model"))
    assert [entry.module for entry in entries if entry._module.fits(config)] == [name]
    named = LlamaConfig()
    named.multispec = {"family": name}
    assert [entry.module for entry in entries if entry._module.fits(named)] == [name]
    assert family_of(LlamaConfig()) is None
    elsewhere = LlamaConfig()
    elsewhere.name_or_path = str(tmp_path)
    assert family_of(elsewhere) is None


def test_voices_in_a_folder(tmp_path: Path) -> None:
    """Each file is a voice; one that says nothing is refused."""
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "bert.json").write_text('{"text": "good day", "codes": [1, 2], "speaker": [3]}')
    assert references(tmp_path) == {"bert": Reference(text="good day", codes=(1, 2), speaker=(3,))}
    (tmp_path / "voices" / "carl.json").write_text('{"codes": ["x"]}')
    with pytest.raises(ModelLoadError, match="describes no voice"):
        references(tmp_path)


def test_spark_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its language model alone: codes are made, and that sound is made elsewhere is said."""
    monkeypatch.setattr(spark, "SEMANTIC", CODES)
    folder = _saved("spark", tmp_path / "LLM")
    with pytest.raises(ModelLoadError, match="must follow each other"):
        spark.load(folder, device="cpu")
    own = family("spark")
    with pytest.raises(UnsupportedError, match="transformers has no BiCodec, so codes cannot"):
        own.codec.decode(torch.zeros(2, 1).long())
    with pytest.raises(UnsupportedError, match="transformers has no BiCodec, so what its codes"):
        own.codec.codebook(0)
    with pytest.raises(UnsupportedError, match="sound cannot become codes"):
        own.codec.encode(torch.zeros(1, 9))
    silent = spark.from_parts(
        own.target, tokenizer("spark"), {}, semantic=CODES, speaker=flat_speech.SPEAKERS
    )
    with pytest.raises(PromptError, match="told by 32 codes"):
        silent.prompt("hello")


def test_the_pairs_of_outetts() -> None:
    """A first code is followed by a second; elsewhere anything but codes; a broken pair is refused."""
    layout: Any = family("outetts").layout
    first, second = layout.offsets
    every = set(range(layout.vocab_size))
    books = [set(range(start, start + CODES)) for start in (first, second)]
    allowed = {last: set(layout.grammar([last]).symbols) for last in (layout.code, first, second, 5)}
    assert allowed == {
        layout.code: books[0],
        first: books[1],
        second: books[0] | {layout.word_end},
        5: every - books[0] - books[1],
    }
    assert set(layout.grammar([]).symbols) == allowed[5]
    codes = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(layout.codes([*layout.tokens(codes).tolist(), first]), codes)
    assert layout.coordinates(3) is None
    with pytest.raises(UsageError, match="come in pairs"):
        layout.codes([second, first])


def test_neutts_reads_phonemes(monkeypatch: pytest.MonkeyPatch) -> None:
    """espeak-ng's, with the marks that it passes over; without it, what to install is said."""
    if shutil.which("espeak-ng"):
        assert neutts.phonemes("Hello, world!") == "həlˈoʊ, wˈɜːld!"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UnsupportedError, match="apt-get install espeak-ng"):
        neutts.phonemes("hello")
    monkeypatch.setattr(shutil, "which", lambda name: "/nowhere/espeak-ng")
    with pytest.raises(UnsupportedError, match="cannot pronounce 'hello'"):
        neutts.phonemes("hello")
    own = family("neutts")
    silent = neutts.from_parts(own.target, tokenizer("neutts"), own.codec, {})
    with pytest.raises(PromptError, match="voices/NAME.json"):
        silent.prompt("hello")


def test_bad_input() -> None:
    """Control symbols in a text, nothing to read, unknown voices, a text that fills the context."""
    own = family("orpheus")
    for text, why in (("say <|eot_id|>", "control symbol '<|eot_id|>'"), ("a" * 300, "no room for sound")):
        with pytest.raises(PromptError, match=why.replace("|", r"\|")):
            own.prompt(text)
    with pytest.raises(PromptError, match="reads nothing"):
        family("llasa").prompt("!?")
    with pytest.raises(UnknownNameError, match="Unknown voice 'tarra'. Did you mean 'tara'"):
        own.prompt("hello", "tarra")
    with pytest.raises(UnknownNameError, match="Unknown voice"):
        named_voice(flat_speech.VOICES, "bert")


def test_parts_that_do_not_belong_together() -> None:
    """Another codec, a tokenizer without the symbols, symbols that do not follow each other."""
    target = family("orpheus").target
    with pytest.raises(ModelLoadError, match="7 codes a frame of 16 each: got a codec with 3"):
        orpheus.from_parts(target, tokenizer("orpheus"), codecs.codec("dac"))
    with pytest.raises(ModelLoadError, match="no symbol '<custom_token_0>'"):
        orpheus.from_parts(target, tokenizer("llasa"), codecs.codec("snac"))
    words = pictures.tokenizer({}, flat_speech.SYMBOLS["orpheus"][:-1])
    with pytest.raises(ModelLoadError, match="'<custom_token_121>' has the id None"):
        orpheus.from_parts(target_for(model("orpheus")), words, codecs.codec("snac"))


def test_what_has_no_vocabulary_is_refused() -> None:
    """With its name and the reason; every other config passes."""
    with pytest.raises(UnsupportedError, match="Bark cannot be run here: it ends with a fine stage"):
        refuse(BarkConfig())
    for kind in REFUSED:
        config: Any = PreTrainedConfig()
        config.model_type = kind
        with pytest.raises(UnsupportedError, match="cannot be run here"):
            refuse(config)
    refuse(LlamaConfig())
