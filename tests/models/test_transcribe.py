"""Whisper: the model's own words for a sound, alone and in batches, with a draft model and without."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

import multispec as ms
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError, UsageError
from multispec.modalities.speech.audio import Audio
from multispec.modalities.speech.transcribe import Transcriptions, load
from multispec.modality import Modality
from multispec.sampling import Sampling
from multispec.targets import target_for
from tests.models import codecs, pictures

BANNED, BANNED_FIRST = (7, 9), (6, 12)


@cache
def processor() -> Any:
    """Letters, Whisper's symbols, and spectrograms of two seconds."""
    marks = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    return WhisperProcessor(extractor, pictures.tokenizer({}, marks))


def build(seed: int = 0) -> Any:
    """A random Whisper with one layer of each kind."""
    words = processor().tokenizer
    start = words.convert_tokens_to_ids("<|startoftranscript|>")
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    heads |= {"encoder_layers": 1, "decoder_layers": 2}
    sizes: dict[str, Any] = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.5}
    ids: dict[str, Any] = {
        "bos_token_id": start,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    rest: dict[str, Any] = {"num_mel_bins": 8, "max_source_positions": 100, "max_target_positions": 48}
    rest |= {"decoder_start_token_id": start, "vocab_size": len(words), "begin_suppress_tokens": None}
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = WhisperForConditionalGeneration(WhisperConfig(**heads, **sizes, **ids, **rest)).eval()
    generation = model.generation_config
    generation._from_model_config = False  # or reading takes all below for derived, and drops it
    generation.lang_to_id = {name: words.convert_tokens_to_ids(name) for name in ("<|en|>", "<|de|>")}
    generation.task_to_id = {"transcribe": words.convert_tokens_to_ids("<|transcribe|>")}
    generation.no_timestamps_token_id = words.convert_tokens_to_ids("<|notimestamps|>")
    generation.suppress_tokens, generation.begin_suppress_tokens = list(BANNED), list(BANNED_FIRST)
    return model


@cache
def model(seed: int = 0) -> Any:
    """One model per seed."""
    return build(seed)


@cache
def writer() -> ms.Generator:
    """With a stranger as the draft model."""
    words = Transcriptions.from_model(model(), processor())
    return ms.Generator(target_for(model()), words, target_for(model(1)))


SOUNDS = tuple(Audio(codecs.sound(1, 5000 * n), 8000) for n in (1, 2, 3))


def _own_generate(sound: Audio) -> list[int]:
    """The greedy generate that Whisper inherits, with the same opening and bans."""
    words: Any = writer().modality
    prompt = words.encode(sound)
    generate: Any = transformers.GenerationMixin.generate  # pyright: ignore[reportAttributeAccessIssue]
    found = generate(
        model(),
        prompt.conditioning["input_features"],
        decoder_input_ids=prompt.ids[None],
        max_new_tokens=10,
        do_sample=False,
        suppress_tokens=list(BANNED),
        begin_suppress_tokens=list(BANNED_FIRST),
    )
    ids: list[int] = found[0, len(prompt.ids) :].tolist()
    return ids


def test_the_models_own_words() -> None:
    """Greedy, for sounds of several lengths, together and one by one, with a draft model and without."""
    assert isinstance(writer().modality, Modality)
    expected = [_own_generate(sound) for sound in SOUNDS]
    assert len({tuple(one) for one in expected}) > 1
    for drafter in (None, "draft_model"):
        together = writer().generate(list(SOUNDS), drafter=drafter, max_new_tokens=10)
        assert [one.tokens.tolist() for one in together] == expected
        assert not any(one.report.drafter_failures for one in together)
    alone = writer().generate(SOUNDS[2], max_new_tokens=10)
    assert alone.tokens.tolist() == expected[2]
    assert alone.output == processor().tokenizer.decode(expected[2], skip_special_tokens=True).strip()
    assert not {*alone.tokens.tolist()} & set(BANNED)


def test_the_same_seed_gives_the_same_words() -> None:
    """Sampled too, whatever drafts."""
    settings: dict[str, Any] = {"sampling": Sampling(seed=5), "max_new_tokens": 10}
    plain = writer().generate(list(SOUNDS), drafter=None, **settings)
    drafted = writer().generate(list(SOUNDS), drafter="draft_model", **settings)
    assert [one.tokens.tolist() for one in plain] == [one.tokens.tolist() for one in drafted]
    assert sum(one.report.drafted for one in drafted) > 0


def test_words_come_as_they_are_said() -> None:
    """What a stream adds is, together, the text."""
    steps = writer().stream(SOUNDS[1], max_new_tokens=12)
    said = "".join(step.delta or "" for step in steps)
    assert said.strip() == writer().generate(SOUNDS[1], max_new_tokens=12).output


def test_openings() -> None:
    """The language asked for; models of one language have neither that nor a task."""
    words = processor().tokenizer

    def opening(**settings: Any) -> list[str]:
        made = Transcriptions.from_model(model(), processor(), **settings)
        found: list[str] = words.convert_ids_to_tokens(list(made.opening))
        return found

    marks = ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    assert opening(language="de") == marks
    assert opening(language=None) == [marks[0], marks[-1]]
    with pytest.raises(UnknownNameError, match="Unknown language 'fr'"):
        opening(language="fr")


def test_a_folder_and_a_file(tmp_path: Path) -> None:
    """Loaded with its draft, given the path of a file."""
    model().save_pretrained(tmp_path / "target")
    with pytest.raises(ModelLoadError, match="No processor"):
        load(tmp_path / "target", device="cpu")
    processor().save_pretrained(tmp_path / "target")
    model(1).save_pretrained(tmp_path / "draft")
    SOUNDS[0].save(tmp_path / "sound.wav")
    found = load(tmp_path / "target", device="cpu", draft=tmp_path / "draft")
    result = found.generate(str(tmp_path / "sound.wav"), max_new_tokens=8)
    again = writer().generate(Audio.read(tmp_path / "sound.wav"), max_new_tokens=8)
    assert result.tokens.tolist() == again.tokens.tolist() and result.report.drafted > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("whisper")
    model().save_pretrained(found)
    processor().save_pretrained(found)
    return found


def test_a_whisper_is_known_by_its_config(folder: Path, tmp_path: Path) -> None:
    """``load`` of a folder hears, with a draft and without; so does an object with its processor."""
    expected = writer().generate(SOUNDS[1], drafter=None, max_new_tokens=10)
    model(1).save_pretrained(tmp_path)
    for found in (
        ms.load(folder, device="cpu"),
        ms.load(folder, device="cpu", draft=tmp_path),
        ms.load(model=model(), tokenizer=processor()),
    ):
        assert isinstance(found.modality, Transcriptions)
        result = found.generate(SOUNDS[1], max_new_tokens=10)
        assert result.tokens.tolist() == expected.tokens.tolist() and result.output == expected.output


def test_as_a_model_of_text_it_takes_ids(folder: Path) -> None:
    """Asked for by its modality, or where there is no processor."""
    for found in (ms.load(folder, device="cpu", modality="text"), ms.load(model=model())):
        assert not isinstance(found.modality, Transcriptions)


def test_a_whisper_speaks_nothing(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="hears and speaks nothing. Leave the modality out"):
        ms.load(folder, modality="speech")
    with pytest.raises(UsageError, match="writes with the tokenizer in its folder"):
        ms.load(folder, tokenizer=processor().tokenizer)


def test_each_sound_may_have_a_language() -> None:
    """Together in one batch; a language that is not known is named, and so is a model of one language."""
    words = writer().modality
    prompts = [{"audio": SOUNDS[0], "language": "de"}, {"audio": SOUNDS[0]}, SOUNDS[0]]
    german = Transcriptions.from_model(model(), processor(), language="de").encode(SOUNDS[0])
    made = [words.encode(one).ids.tolist() for one in prompts]
    assert made[0] == german.ids.tolist() != made[1] == made[2]
    together = writer().generate(prompts, max_new_tokens=8)
    alone = [writer().generate(one, max_new_tokens=8) for one in prompts]
    assert [one.tokens.tolist() for one in together] == [one.tokens.tolist() for one in alone]
    with pytest.raises(UnknownNameError, match="Unknown language 'fr'"):
        words.encode({"audio": SOUNDS[0], "language": "fr"})
    with pytest.raises(UsageError, match="knows one language: got language='de'"):
        replace(words, openings={}).encode({"audio": SOUNDS[0], "language": "de"})  # type: ignore[type-var]


def test_bad_input() -> None:
    """No sound, an empty one, a long one, stop strings, guidance, another model."""
    for wrong in (3.0, Audio(torch.zeros(1, 0), 8000)):
        with pytest.raises(PromptError, match="asked for by a sound"):
            writer().generate(wrong)
    with pytest.raises(PromptError, match="hears 2 seconds at once: got 2.5"):
        writer().generate(Audio(torch.zeros(1, 20000), 8000))
    with pytest.raises(UsageError, match="ends with its sound"):
        writer().generate(SOUNDS[0], stop=["a"])
    with pytest.raises(UnsupportedError, match="nothing to guide away from"):
        writer().generate(SOUNDS[0], guidance=2.0)
    with pytest.raises(UnsupportedError, match="Only Whisper transcribes"):
        Transcriptions.from_model(codecs.codec("mimi").model, processor())
