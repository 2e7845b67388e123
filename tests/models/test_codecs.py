"""Codecs on tiny random models: the model's own codes and sound, what a frame changes, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MimiConfig, MimiModel

from multispec.errors import ModelLoadError, UnsupportedError, UsageError
from multispec.modalities.speech import codecs as table
from multispec.modalities.speech.codecs._reach import UNBOUNDED, measured
from multispec.modalities.speech.codecs.encodec import EncodecCodec
from multispec.modalities.speech.codecs.mimi import MimiCodec
from multispec.modalities.speech.codecs.snac import SnacCodec
from multispec.modalities.speech.family import SpeechCodec
from tests.models import codecs

# Each kind: sampling rate, hop, cardinality, codebooks.
FACTS: dict[str, tuple[int, int, int, int]] = {
    "encodec": (1000, 8, 16, 4),
    "encodec 32k": (1000, 8, 16, 4),
    "dac": (800, 8, 16, 3),
    "dac odd": (800, 10, 16, 3),
    "mimi": (1600, 16, 16, 4),
    "xcodec": (16000, 320, 16, 4),
    "higgs": (24000, 960, 16, 4),
    "xcodec2": (16000, 320, 16, 1),
    "neucodec": (24000, 480, 16, 1),
    "snac": (600, 24, 16, 7),
}
GLOBAL = ("xcodec2", "neucodec")
LOCAL = tuple(name for name in FACTS if name not in GLOBAL)


@pytest.mark.parametrize("name", FACTS)
def test_facts(name: str) -> None:
    """The numbers of a codec are those of its config."""
    own = codecs.codec(name)
    assert isinstance(own, SpeechCodec)
    assert (own.sampling_rate, own.hop, own.cardinality, own.num_codebooks) == FACTS[name]
    first = own.codebook(0)
    assert first.shape[0] == own.cardinality and not first.requires_grad
    assert not torch.equal(first, own.codebook(own.num_codebooks - 1)) or own.num_codebooks == 1


@pytest.mark.parametrize("name", FACTS)
def test_a_round_trip(name: str) -> None:
    """Sound to codes in range, codes to samples in range, the same every time, a hop for each frame."""
    own = codecs.codec(name)
    waveform = codecs.sound(1, 5 * own.hop + 3) * (8 if name == "encodec" else 1)
    found = own.encode(waveform)
    # Semantic features of NeuCodec end where a last window does not fit any more.
    frames = 5 if name == "neucodec" else 6
    assert found.shape == (frames, own.num_codebooks) and found.dtype == torch.long
    assert 0 <= int(found.min()) <= int(found.max()) < own.cardinality
    assert len(found[:, 0].unique()) > 1, "a codec that always says the same tests nothing"
    samples = own.decode(found)
    assert samples.shape == (1, frames * own.hop) and samples.dtype == torch.float32
    assert float(samples.abs().max()) <= 1
    assert torch.equal(samples, own.decode(own.encode(waveform)))
    assert not torch.allclose(samples, own.decode(found.roll(1, 0)))
    assert own.decode(found[:0]).shape == (1, 0)


@pytest.mark.parametrize("name", [name for name in FACTS if name != "snac"])
def test_the_models_own_codes_and_sound(name: str) -> None:
    """As the transformers class itself encodes and decodes, at its own full bandwidth."""
    own, model = codecs.codec(name), codecs.codec(name).model
    waveform = codecs.sound(1, 4 * own.hop)
    with torch.inference_mode():
        if name in GLOBAL:
            rate = own.extractor.sampling_rate
            heard = waveform[:, : 4 * 320] if name == "neucodec" else waveform
            inputs = own.extractor(heard[0].numpy(), sampling_rate=rate, return_tensors="pt")
            out = model(input_values=inputs["input_values"], input_features=inputs["input_features"])
            waveform = heard
        elif name.startswith("encodec"):
            out = model(waveform[None], bandwidth=2.0)
        else:
            out = model(waveform[None])
    expected = out.audio_codes.reshape(own.num_codebooks, -1).T
    if name != "neucodec":  # which hears another rate than it speaks: its encoder is compared below
        assert torch.equal(own.encode(waveform), expected)
    played = out.audio_values.reshape(1, -1).clamp(-1, 1)
    torch.testing.assert_close(own.decode(expected)[:, : played.shape[1]], played)


def test_neucodec_hears_what_it_speaks_at_another_rate() -> None:
    """A sound at 24 kHz is brought down to 16 kHz: as many frames as its length asks for."""
    own = codecs.codec("neucodec")
    steps = torch.arange(4 * own.hop) / own.sampling_rate
    fast, slow = torch.sin(600 * steps)[None], torch.sin(600 * steps * 1.5)[None, : 4 * 320]
    given = own.extractor(slow[0].numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        expected = own.model.encode(given["input_values"], given["input_features"]).audio_codes[0].T
    same = (own.encode(fast)[: len(expected)] == expected).float().mean()
    assert same >= 0.5, "resampling moves a few codes at most"


@pytest.mark.parametrize("name", LOCAL)
def test_reach_is_what_a_frame_changes(name: str) -> None:
    """A frame changes no sample outside of its reach; where kernels alone decide, all of it."""
    own = codecs.codec(name)
    before, behind = own.reach
    found = measured(own, 0.0, frames=2 * max(before, behind, 8) + 2)
    assert found[0] <= before and found[1] <= behind
    if not name.startswith("encodec"):
        assert found == (before, behind)
    assert found[1] == behind, "no memory looks ahead"
    assert behind == 0 or name not in ("encodec", "mimi"), "these two are causal"


@pytest.mark.parametrize("name", LOCAL)
def test_a_part_decodes_as_it_does_in_the_whole(name: str) -> None:
    """With its reach around it, a chunk has the samples of the whole sound: what streams rest on."""
    own = codecs.codec(name)
    before, behind = own.reach
    start, stop = before + 3, before + 7
    codes = codecs.codes(name, stop + behind + 3)
    whole = own.decode(codes)[:, start * own.hop : stop * own.hop]
    chunk = own.decode(codes[start - before : stop + behind])
    part = chunk[:, before * own.hop : (before + 4) * own.hop]
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GLOBAL)
def test_a_decoder_that_hears_everything_says_so(name: str) -> None:
    """Attention and norms over the whole sound: one frame changes them all."""
    own = codecs.codec(name)
    assert own.reach == (UNBOUNDED, UNBOUNDED)
    assert measured(own, 1e-7, frames=24) == (11, 12)


@pytest.mark.parametrize("name", FACTS)
def test_codebooks_add_up_to_the_latent(name: str) -> None:
    """What the codes of a frame stand for is, added up, what the decoder gets."""
    own, model = codecs.codec(name), codecs.codec(name).model
    frame = codecs.codes(name, 1)
    vectors = [own.codebook(level)[frame[0, level]] for level in range(own.num_codebooks)]
    with torch.inference_mode():
        if name in GLOBAL:
            expected = model.quantizer.quantizer._indices_to_codes(frame[0])[0]
        elif name.startswith("dac"):
            expected = model.quantizer.from_codes(frame.T[None])[0][0, :, 0]
        elif name == "snac":
            columns = [[n for n, (book, _) in enumerate(own.places) if book == level] for level in range(3)]
            parts = [book.latent(frame[:, of]) for book, of in zip(model.codebooks, columns, strict=True)]
            # The first step of a frame hears the first code of each codebook.
            expected, vectors = torch.stack(parts).sum(0)[0, :, 0], [vectors[of[0]] for of in columns]
        elif name == "mimi":
            expected = model.quantizer.decode(frame.T[None])[0, :, 0]
        else:
            expected = model.quantizer.decode(frame.T[:, None])[0, :, 0]
    torch.testing.assert_close(torch.stack(vectors).sum(0), expected)


def test_fewer_codebooks() -> None:
    """The first ones are those of all; numbers that no bandwidth gives are refused."""
    waveform = codecs.sound(1, 40)
    for name, known, unknown in (("encodec", 2, 3), ("dac", 2, 4), ("mimi", 3, 5), ("xcodec", 1, 3)):
        kind, model = codecs.KINDS[name], codecs.codec(name).model
        fewer = kind.from_model(model, num_codebooks=known)
        assert torch.equal(fewer.encode(waveform), codecs.codec(name).encode(waveform)[:, :known])
        assert fewer.decode(fewer.encode(waveform)).shape[0] == 1
        with pytest.raises(UsageError, match=f"no way to use {unknown} codebooks"):
            kind.from_model(model, num_codebooks=unknown)
    with pytest.raises(UsageError, match="no way to use 0 codebooks: it knows 1 .. 4"):
        MimiCodec.from_model(codecs.codec("mimi").model, num_codebooks=0)


def test_both_channels_by_a_mono_model() -> None:
    """Codebooks take turns, left and right, and each channel is that of the mono codec."""
    mono = codecs.codec("encodec")
    stereo = EncodecCodec.from_model(mono.model, stereo=True)
    waveform = codecs.sound(2, 64)
    codes = stereo.encode(waveform)
    assert (stereo.num_codebooks, codes.shape) == (8, (8, 8))
    for channel in range(2):
        one = mono.encode(waveform[channel][None])
        assert torch.equal(codes[:, channel::2], one)
        torch.testing.assert_close(stereo.decode(codes)[channel][None], mono.decode(one))
    assert torch.equal(stereo.codebook(3), mono.codebook(1))
    assert stereo.decode(codes[:0]).shape == (2, 0)


def test_a_stereo_model() -> None:
    """A model of two channels has them in its sound, and the codebooks of one."""
    model = codecs._encodec(audio_channels=2).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    own = EncodecCodec.from_model(model)
    assert own.decode(own.encode(codecs.sound(2, 20))).shape == (2, 24)
    with pytest.raises(UsageError, match="takes 2 channels: got 1"):
        own.encode(codecs.sound(1, 20))


@pytest.mark.parametrize("name", FACTS)
def test_refusals(name: str) -> None:
    """Codes out of range, another number of codebooks, sound that is none."""
    own = codecs.codec(name)
    codes = codecs.codes(name, 2)
    codes[1, -1] = own.cardinality
    last = own.num_codebooks - 1
    with pytest.raises(UsageError, match=f"got {own.cardinality} in frame 1, codebook {last}"):
        own.decode(codes)
    with pytest.raises(UsageError, match=r"must lie in \[0, 16\): got -1"):
        own.decode(-torch.ones_like(codes))
    with pytest.raises(UsageError, match=f"takes {own.num_codebooks} codebooks a frame: got 9"):
        own.decode(torch.zeros((2, 9), dtype=torch.long))
    with pytest.raises(UsageError, match="needs samples: got none"):
        own.encode(torch.zeros(1, 0))
    with pytest.raises(UsageError, match="takes 1 channel: got 2"):
        own.encode(torch.zeros(2, 100))
    with pytest.raises(UsageError, match="finite numbers"):
        own.encode(torch.full((1, 100), torch.nan))
    with pytest.raises(UnsupportedError, match="no encoder weights"):
        replace(own, encodes=False).encode(torch.zeros(1, 100))
    if name != "snac":
        other = codecs.codec("dac" if name == "mimi" else "mimi").model
        with pytest.raises(UsageError, match="looks at the type"):
            codecs.KINDS[name].from_model(other)


def test_loudness_beside_the_codes_is_refused() -> None:
    """The 48 kHz EnCodec, whose chunks have a loudness that is no code."""
    model = codecs._encodec(normalize=True, chunk_length_s=1.0, overlap=0.01)
    with pytest.raises(UnsupportedError, match="Use a model of 24 or 32 kHz"):
        EncodecCodec.from_model(model)


def test_halves_of_mimi() -> None:
    """A checkpoint of the decoder alone decodes; one of the encoder alone is refused."""
    config: dict[str, Any] = codecs.codec("mimi").model.config.to_dict()
    half = MimiCodec.from_model(MimiModel(cast(Any, MimiConfig)(**(config | {"encoder_config": None}))))
    with pytest.raises(UnsupportedError, match="no encoder weights"):
        half.encode(codecs.sound(1, 20))
    with pytest.raises(UnsupportedError, match="encoder alone"):
        MimiCodec.from_model(MimiModel(cast(Any, MimiConfig)(**(config | {"decoder_config": None}))))


def _save(name: str, folder: Path) -> None:
    model = codecs.codec(name).model
    if name != "snac":
        model.save_pretrained(folder)
        return
    folder.mkdir()
    config = {key: value for key, value in vars(model.config).items()}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("name", [name for name in FACTS if name not in ("encodec 32k", "dac odd")])
def test_folders(name: str, tmp_path: Path) -> None:
    """Written and read again by type; without the encoder it decodes; without the rest it is refused."""
    own, folder = codecs.codec(name), tmp_path / "codec"
    _save(name, folder)
    found = table.load(folder)
    codes = codecs.codes(name, 3)
    assert type(found) is type(own)
    torch.testing.assert_close(found.decode(codes), own.decode(codes))
    sound = codecs.sound(1, 3 * own.hop)
    assert torch.equal(found.encode(sound), own.encode(sound))
    if name in ("snac", "dac", "xcodec2", "neucodec"):
        with pytest.raises(UsageError, match="no way to use 99 codebooks"):
            table.load(folder, num_codebooks=99)
    if name not in ("snac", "higgs", "neucodec"):
        _without_encoder(own, folder)


def _without_encoder(own: Any, folder: Path) -> None:
    codes = torch.zeros((3, own.num_codebooks), dtype=torch.long)
    state = load_file(folder / "model.safetensors")
    ways = ("encoder.", "acoustic_encoder.", "semantic_encoder.", "encoder_semantic.", "semantic_model.")
    kept = {key: value for key, value in state.items() if not key.startswith(ways)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    half: Any = table.load(folder)
    assert not half.encodes
    torch.testing.assert_close(half.decode(codes), own.decode(codes))
    if type(own).__name__ != "DacCodec":
        return
    decoder = next(key for key in kept if "decoder" in key and "semantic" not in key)
    save_file(
        {key: kept[key] for key in kept if key != decoder}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelLoadError, match="would be random numbers"):
        table.load(folder)


def test_snac_folders_that_are_none(tmp_path: Path) -> None:
    """No config, one of something else, weights of another size, files cut short, models with attention."""
    with pytest.raises(ModelLoadError, match="expected a folder"):
        SnacCodec.load(tmp_path)
    folder = tmp_path / "codec"
    _save("snac", folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "pytorch_model.bin").rename(tmp_path / "kept.bin")
    with pytest.raises(ModelLoadError, match=r"none of model.safetensors"):
        SnacCodec.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK short")
    with pytest.raises(ModelLoadError, match="cut short"):
        SnacCodec.load(folder)
    state = torch.load(tmp_path / "kept.bin", weights_only=True)
    torch.save({key: value for key, value in state.items() if "decoder.model.0" not in key}, folder / "w.bin")
    (folder / "w.bin").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="'decoder.model.0.bias' is missing"):
        SnacCodec.load(folder)
    torch.save(state | {"more": state["decoder.model.0.bias"]}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="'more' is not known"):
        SnacCodec.load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"attn_window_size": 32}), "utf-8")
    with pytest.raises(UnsupportedError, match="made for music"):
        SnacCodec.load(folder)
    (folder / "config.json").write_text("{", "utf-8")
    with pytest.raises(ModelLoadError, match="names vq_strides"):
        SnacCodec.load(folder)


def test_snac_folds_weight_normalisation(tmp_path: Path) -> None:
    """The published weights are normalised: read, they are those of the same network without."""
    folder = tmp_path / "codec"
    _save("snac", folder)
    own, state = codecs.codec("snac"), {}
    for key, value in own.model.state_dict().items():
        if key.endswith(".weight") and "codebook" not in key:
            stem, length = key.removesuffix(".weight"), value.flatten(1).norm(dim=1)[:, None, None]
            state[f"{stem}.parametrizations.weight.original0"] = length
            state[f"{stem}.parametrizations.weight.original1"] = value * 3
        else:
            state[key] = value
    torch.save(state, folder / "pytorch_model.bin")
    codes = codecs.codes("snac", 3)
    torch.testing.assert_close(table.load(folder).decode(codes), own.decode(codes))


def test_snac_noise_comes_from_the_codes() -> None:
    """Decoding draws nothing from torch's own generator, and equal frames sound equal."""
    own = codecs.codec("snac")
    state = torch.get_rng_state()
    middle = max(own.reach)
    codes = codecs.codes("snac", 1).repeat(2 * middle + 2, 1)
    samples = own.decode(codes).view(len(codes), own.hop)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(samples[middle], samples[middle + 1])
    silent = SnacCodec(codecs.build("snac"))
    for name, module in silent.model.named_modules():
        if name.endswith(".linear"):
            torch.nn.init.zeros_(cast(Any, module).weight)
    assert not torch.allclose(silent.decode(codes), own.decode(codes)), "the noise is heard"


def test_unknown_codecs(tmp_path: Path) -> None:
    """What is no codec, what no codec is known for, and what has no codes."""
    with pytest.raises(ModelLoadError, match="Expected a folder"):
        table.load(tmp_path)
    whys = {"llama": "No codec of type 'llama'", "vibevoice_acoustic_tokenizer": "no vocabulary"}
    for kind, why in whys.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
        with pytest.raises(UnsupportedError, match=why):
            table.load(tmp_path)
