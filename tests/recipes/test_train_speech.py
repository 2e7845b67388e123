"""The speech recipe runs from prepared speech to exported folders, and its measures are what they claim."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Xcodec2FeatureExtractor, Xcodec2Model

from multispec.modalities.speech.families import aligned_llama
from multispec.modalities.speech.pronunciation import Pronunciation
from recipes import _speech_codec as sound
from recipes import _speech_data as data
from recipes import _speech_models as ar
from recipes import _speech_recogniser as judge
from recipes.train_speech import Settings, llama, main, parse, smoke

LETTERS = "abdefgikmnoprstuvz"


def _wave(text: str, pitch: float) -> data.Wave:
    """A tone of two frames for each letter, silence for what is between."""
    time = np.arange(2 * data.HOP) / data.RATE
    tones = [np.sin(2 * np.pi * (pitch + 60 * ord(c) % 997) * time) * (c in LETTERS) for c in text.lower()]
    return np.asarray(8000 * np.concatenate(tones), dtype=np.int16)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the one that espeak-ng's speech is kept in: forty sentences of letters that beep."""
    folder = tmp_path_factory.mktemp("speech")
    draw = random.Random(4)
    words = ["".join(draw.sample(LETTERS, draw.randint(2, 5))) for _ in range(60)]
    (folder / "words.json").write_text(json.dumps({word: " ".join(word) for word in words}))
    told, waves = [], []
    for n in range(40):
        text = " ".join(draw.sample(words, 3)) + "."
        voice, pitch = (("man", 100.0), ("woman", 220.0))[n % 2]
        waves.append(_wave(text, pitch))
        told.append({"text": text, "voice": voice, "samples": len(waves[-1])})
        told[-1]["phonemes"] = " ".join(c for c in text if c in LETTERS)
    np.save(folder / "speech-000.npy", np.concatenate(waves))
    (folder / "speech-000.json").write_text(json.dumps(told))
    return folder


def _run(prepared: Path, root: Path, *more: str) -> None:
    main(["--smoke", f"--speech={prepared}", f"--out={root / 'run'}", f"--export={root / 'export'}", *more])


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, at sizes that take seconds."""
    root = tmp_path_factory.mktemp("training")
    _run(prepared, root)
    return root


def test_the_folders_belong_together(trained: Path) -> None:
    """Target and draft are ordinary Llamas that say where the codes lie; the draft is smaller."""
    models = [AutoModelForCausalLM.from_pretrained(trained / "export" / name) for name in ("target", "draft")]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert sizes[1] < sizes[0]
    tokenizer = AutoTokenizer.from_pretrained(trained / "export" / "target")
    codec: Any = Xcodec2Model.from_pretrained(trained / "export" / "codec")
    for model in models:
        own = model.config.multispec
        assert own["codes"] == {"offset": len(tokenizer), "size": len(codec.quantizer.quantizer.codebook)}
        assert model.config.vocab_size == sum(own["codes"].values())
        assert own["end_of_speech"] == own["codes"]["offset"] - 1
        assert own["begin_of_speech"] == tokenizer.convert_tokens_to_ids(ar.BEGIN)
        assert own["voices"] == ["man", "woman"]


def test_the_family_loads_what_was_exported(trained: Path) -> None:
    """Words become the ids that the recipe trained with, at the same positions; codes become sound."""
    folder = trained / "export" / "target"
    family = aligned_llama.load(folder, device="cpu")
    words = json.loads((trained / "run" / "words.json").read_text())
    text = " ".join(list(words)[:3])
    prompt = family.prompt(text, "woman")
    tokenizer = AutoTokenizer.from_pretrained(trained / "run" / "symbols")
    told = json.loads((trained / "run" / "durations.json").read_text())
    vocabulary = ar.Vocabulary(tokenizer, 16, told["durations"], told["text_scale"])
    symbols = " | ".join(words[word] for word in text.split()) + " ."
    assert prompt.ids.tolist() == vocabulary.prompt(symbols, "woman")
    own = family.target.scale.places(prompt.ids)  # type: ignore[attr-defined]
    assert own.tolist() == vocabulary.scale.places(prompt.ids).tolist()
    assert family.codec.decode(torch.zeros(4, 1, dtype=torch.long)).shape == (1, 4 * data.HOP)


def test_the_report_says_how_good_it_is(trained: Path) -> None:
    """Errors of the original, of the codec and of the model, by a recogniser that heard originals only."""
    report = json.loads((trained / "run" / "report.json").read_text("utf-8"))
    assert report["original"]["cepstral_distortion_db"] == 0
    assert report["original"]["duration_ratio"] == report["codec"]["duration_ratio"] == 1
    assert report["codec"]["cepstral_distortion_db"] > 0
    for name in ("original", "codec", "speech", "speech_greedy"):
        assert report[name]["phoneme_error"] >= 0
    assert 0 < report["real_codes"]["acceptance_at_1.0"] <= 1
    assert 0 <= report["speech"]["ended"] <= 1
    assert 1 <= report["codec"]["codes_used"] <= 16
    assert (trained / "run" / "spoken" / "00-speech.wav").exists()


def test_what_is_finished_is_not_done_again(trained: Path, prepared: Path) -> None:
    """A stage that is run again finds its checkpoint; more minutes go on from there."""
    kept = ("codes.npz", "target.safetensors", "codec.safetensors")
    before = {name: (trained / "run" / name).read_bytes() for name in kept}
    for stage in ("data", "codec", "codes", "target"):
        _run(prepared, trained, "--stage", stage)
    assert before == {name: (trained / "run" / name).read_bytes() for name in kept}
    steps = torch.load(trained / "run" / "draft.pt", weights_only=True)["progress"]["step"]
    _run(prepared, trained, "--stage", "draft", "--minutes", "0.03")
    assert torch.load(trained / "run" / "draft.pt", weights_only=True)["progress"]["step"] > steps


def test_an_unknown_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """By name, with those that there are."""
    with pytest.raises(SystemExit):
        parse(["--stage", "vocoder"])
    assert "choose from all, data, spelling, codec" in capsys.readouterr().err


def test_without_espeak_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback of a missing program."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="apt-get install espeak-ng"):
        data.speak("hello", "en-us")


def test_sentences_are_short_and_plain(tmp_path: Path) -> None:
    """Numbers, quotes and abbreviations stay out; each sentence comes once."""
    line = "A plain sentence of words, and yet another of them stands behind here so that the line is long"
    body = (
        f'{line}\nenough. "Come here, my dear!" said he; I have 3 cats. They saw Mr. Smith go home. Stop.\n'
    )
    (tmp_path / "book.txt").write_text(f"CHAPTER I\n\n{body}\n{body}", encoding="utf-8")
    found = data.sentences(tmp_path, least=3, most=30)
    assert "Come here, my dear!" in found and "said he;" not in found
    assert not any("3" in text or text.endswith("Mr.") or text == "Stop." for text in found)
    assert len(found) == len(set(found))
    assert data.chosen(found, 2, seed=1) == data.chosen(found, 0, seed=1)[:2]


def test_what_espeak_prints_becomes_phonemes() -> None:
    """Pauses, palatal marks and language switches are silent; the glottal stop is no question mark."""
    assert data.parsed("_:__:'oU") == ["'oU"]
    assert data.parsed("V_v_D_@2__:__: (fr)_k_'a_(en-us)_?_I2_;") == [
        "V",
        "v",
        "D",
        "@2",
        "k",
        "'a",
        "q",
        "I2",
    ]
    assert data.without_stress(["'oU", ",I", "k"]) == ["oU", "I", "k"]


def test_silence_is_cut_to_whole_frames() -> None:
    """Two frames stay before and behind what is heard."""
    samples = np.zeros(16000)
    samples[5000:9001] = 0.5
    found = data.trimmed(samples)
    assert len(found) % data.HOP == 0
    assert np.flatnonzero(found)[0] == 2 * data.HOP and found.max() == round(0.5 * 32767 - 0.5)
    assert 0 <= len(found) - (4001 + 4 * data.HOP) < data.HOP


@pytest.fixture(scope="module")
def codec() -> Any:
    """A tiny codec, all of whose other weights are alive."""
    torch.manual_seed(0)
    model = sound.codec(32, 2, (4, 4), 16, 2)
    model.quantizer.project_in.weight.data.mul_(10)  # more codes than the one in the middle
    for layer in model.acoustic_decoder.layers:
        torch.nn.init.normal_(layer.mlp.fc2.weight, std=0.1)
    return model


def test_training_skips_only_what_is_zero(codec: Any) -> None:
    """The parts that training runs give what the model's own encode and decode give."""
    waves = 0.1 * torch.randn(2, 10 * data.HOP, generator=torch.Generator().manual_seed(0))
    made, _ = sound.reconstruct(codec, waves)
    codes = codec.encode(waves[:, None], sound.features(waves)).audio_codes
    assert torch.allclose(codec.decode(codes).audio_values[:, 0], made, atol=1e-5)
    for wave, row in zip(waves, codes, strict=True):
        assert sound.encode(codec, wave.numpy()).tolist() == row[0].tolist()


def test_every_weight_that_is_trained_has_a_gradient(codec: Any) -> None:
    """As it is initialised by transformers, most gradients are zero."""
    waves = 0.1 * torch.randn(2, 10 * data.HOP, generator=torch.Generator().manual_seed(0))
    weights = {name: one for name, one in codec.named_parameters() if one.requires_grad}
    grads = torch.autograd.grad(sound.codec_loss(codec, waves), list(weights.values()))
    still = [name for name, grad in zip(weights, grads, strict=True) if not bool(grad.abs().sum() > 0)]
    assert not [name for name in still if "linear_k.bias" not in name]  # softmax does not see a key's bias


def test_codes_are_used_evenly_where_the_spread_is_right() -> None:
    """Independent logistic values cost nothing; what is shifted, shrunk or tied together does."""
    draw = torch.Generator().manual_seed(0)
    even = torch.atanh(1.999 * torch.rand(1, 20000, 3, generator=draw) - 0.9995)
    assert float(sound.spread_loss(even)) < 0.01
    for other in (even + 1, even / 4, even[..., :1].expand(-1, -1, 3)):
        assert float(sound.spread_loss(other)) > 0.1


def test_a_sample_depends_on_few_frames(codec: Any) -> None:
    """Five frames around it: a piece with those around decodes to the very samples of the whole."""
    codes = torch.randint(16, (40,), generator=torch.Generator().manual_seed(1)).numpy()
    whole, piece = sound.decode(codec, codes), sound.decode(codec, codes[10:30])
    inner = slice(5 * data.HOP, 15 * data.HOP)
    assert np.allclose(piece[inner], whole[10 * data.HOP :][inner], atol=1e-6)


def test_features_are_those_of_the_extractor() -> None:
    """Kaldi's, as the feature extractor of the class computes them one by one."""
    wave = 0.1 * torch.randn(16 * data.HOP - 10, generator=torch.Generator().manual_seed(2))
    found = Xcodec2FeatureExtractor()(wave.numpy(), sampling_rate=data.RATE, return_tensors="pt")
    assert torch.allclose(sound.features(found["input_values"][:, 0]), found["input_features"], atol=1e-4)


def _vocabulary() -> ar.Vocabulary:
    tokenizer = ar.phoneme_tokenizer(["a", "'b", "c"], ["man"])
    return ar.Vocabulary(tokenizer, 8, {"a": 1.6}, 3.0)


def test_text_and_sound_share_a_scale() -> None:
    """Symbols stand where their sound is expected; what takes no time does not count."""
    vocabulary = _vocabulary()
    prompt = vocabulary.prompt("a 'b | a .", "man")
    assert prompt[0] == vocabulary.tokenizer.convert_tokens_to_ids("<man>") and prompt[-1] == vocabulary.begin
    stream = torch.tensor([*prompt, vocabulary.offset, vocabulary.offset + 3])
    assert vocabulary.scale.places(stream).tolist() == [0, 0, 2, 5, 8, 9, 0, 1, 2]


def test_durations_are_what_explains_the_lengths() -> None:
    """Never negative; a symbol that was never met takes the mean."""
    counts = np.array([[1.0, 2.0, 0.0], [3.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    found = ar.durations(counts, counts @ np.array([2.0, 5.0, 0.0]))
    assert np.allclose(found, [2.0, 5.0, 37 / 11])


def test_rereading_gives_the_states_of_saying_it() -> None:
    """Padding left or right, with a cache or without: the same states, whatever the neighbours."""
    vocabulary = _vocabulary()
    settings = smoke(Settings(device="cpu"))
    model: Any = llama(settings, "target", vocabulary).eval()
    torch.nn.init.normal_(model.model.layers[0].self_attn.o_proj.weight)
    prompts = [vocabulary.prompt("a 'b | a", "man"), vocabulary.prompt("c", "man")]
    said = ar.say(model, prompts, vocabulary, 12, torch.tensor([1.0, 0.0]), seed=0)
    read = ar.reread(model, prompts, said.codes, vocabulary)
    for ours, theirs in zip(said.hidden, read.hidden, strict=True):
        assert torch.allclose(ours.float(), theirs.float(), atol=2e-2)
    lessons = ar.Lessons.of([(prompts, read)], [(prompts, said)])
    prompt, codes, hidden = lessons.stream(3)
    assert prompt == prompts[1] and codes.tolist() == said.codes[1].tolist()
    assert torch.equal(hidden, said.hidden[1]) and lessons.said.tolist() == [False, False, True, True]


def test_errors_are_edits_for_each_phoneme() -> None:
    """One replaced, one too many, one missing."""
    assert judge.edits([1, 2, 3], [1, 2, 3]) == 0
    assert judge.edits([], [1, 2]) == 2
    assert judge.error_rate([[1, 9, 3], [1, 1]], [[1, 2, 3], [1]]) == 0.5


def test_warping_finds_the_cheapest_way() -> None:
    """Against the plain recursion; the same sound twice as slow costs nothing."""
    rng = np.random.default_rng(0)
    distance = rng.random((5, 7))
    cost = np.full((6, 8), np.inf)
    cost[0, 0] = 0
    for i in range(5):
        for j in range(7):
            cost[i + 1, j + 1] = distance[i, j] + min(cost[i, j], cost[i, j + 1], cost[i + 1, j])
    assert judge.warped(distance)[0] == pytest.approx(cost[-1, -1])
    once, twice = np.arange(4.0), np.repeat(np.arange(4.0), 2)
    assert judge.warped(np.abs(once[:, None] - twice)) == (0.0, 8)


def test_distortion_is_in_decibels() -> None:
    """A sound that is only louder has none: the first cepstrum is left out."""
    wave = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    assert judge.cepstral_distortion(2 * wave, wave) == pytest.approx(0, abs=1e-3)
    other = np.convolve(wave, [1, 0.9], mode="same").astype(np.float32)
    assert 1 < judge.cepstral_distortion(other, wave) < 20


def test_words_that_no_book_has_are_spelled(trained: Path) -> None:
    """By the model of spelling; known ones by the list."""
    words = Pronunciation.load(trained / "export" / "pronunciation")
    known = next(iter(words.words))
    assert words.of_word(known) == list(known)
    assert words.of_word("zzzq") == words.spelled("zzzq")
    assert set(words.spelled("zzzq")) <= set(words.phonemes)
