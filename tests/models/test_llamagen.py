"""LlamaGen: published weight names, a plain loop as reference, drafts, trees, guidance and its interval."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import multispec as ms
from multispec.errors import ModelLoadError, PromptError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image import checkpoints
from multispec.modalities.image.families import llamagen
from multispec.modalities.image.families._llamagen_model import LlamaGenConfig, LlamaGenModel
from multispec.modalities.image.families.llamagen import LlamaGen
from multispec.modalities.image.family import Family, PictureCodec
from multispec.modalities.image.vqgan import VQGAN
from multispec.protocols import Target
from multispec.sampling import Sampling
from tests.models import pictures, vqgans

GRID, CODES, DIM, HEADS, LAYERS = 3, 24, 32, 4, 2
CLASSES, FEATURES, ROOM = 6, 10, 7


def weights(seed: int = 0, text: bool = False, kv_heads: int = HEADS) -> dict[str, Tensor]:
    """Random weights under the published names."""
    made = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made) * 0.3

    state = {"tok_embeddings.weight": random(CODES, DIM), "output.weight": random(CODES, DIM)}
    state["norm.weight"] = 1 + random(DIM)
    for layer in range(LAYERS):
        shapes = {
            "attention.wqkv": ((HEADS + 2 * kv_heads) * DIM // HEADS, DIM),
            "attention.wo": (DIM, DIM),
            "feed_forward.w1": (48, DIM),
            "feed_forward.w3": (48, DIM),
            "feed_forward.w2": (DIM, 48),
        }
        state |= {f"layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        norms = ("attention_norm", "ffn_norm")
        state |= {f"layers.{layer}.{name}.weight": 1 + random(DIM) for name in norms}
    if not text:
        return state | {"cls_embedding.embedding_table.weight": random(CLASSES + 1, DIM)}
    projection = {"fc1": (DIM, FEATURES), "fc2": (DIM, DIM)}
    state |= {f"cls_embedding.cap_proj.{name}.weight": random(*shape) for name, shape in projection.items()}
    return state | {"cls_embedding.uncond_embedding": random(ROOM, FEATURES)}


@cache
def codec() -> VQGAN:
    """A tiny VQGAN with LlamaGen's names."""
    return VQGAN.of(vqgans.llamagen_names(vqgans.state(codes=CODES, channels=8)))


@cache
def family(seed: int = 0, text: bool = False) -> LlamaGen:
    """The family of random weights, made once."""
    return LlamaGen.from_model(LlamaGenModel.of(weights(seed, text), GRID, HEADS), codec())


def caption(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Features of a caption as an encoder gives them: padding behind them, with a mask."""
    features = torch.randn(ROOM, FEATURES, generator=torch.Generator().manual_seed(seed))
    return features, (torch.arange(ROOM) < count).long()


def words(text: str) -> tuple[Tensor, Tensor]:
    """A text encoder: the words of a caption decide what its features are."""
    return caption(len(text), min(len(text.split()), ROOM))


def turned(x: Tensor, prefix: int) -> Tensor:
    """The published rotation of ``x [S, heads, C]``: pairs of channels by row, then by column, of a code."""
    places = torch.arange(len(x) - prefix)
    steps = 10000.0 ** (-torch.arange(0, x.shape[2] // 2, 2) / (x.shape[2] // 2))
    angles = torch.cat([(places // GRID)[:, None] * steps, (places % GRID)[:, None] * steps], -1)[:, None]
    a, b = x[prefix:, :, 0::2], x[prefix:, :, 1::2]
    out = torch.zeros_like(x)
    out[prefix:, :, 0::2] = a * angles.cos() - b * angles.sin()
    out[prefix:, :, 1::2] = b * angles.cos() + a * angles.sin()
    return out


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def reference(state: dict[str, Tensor], prefix: Tensor, codes: Sequence[int], mask: Tensor | None) -> Tensor:
    """Logits after the last code by the published formulas, without a cache; ``mask`` hides padding."""
    x = torch.cat([prefix, state["tok_embeddings.weight"][list(codes)]])
    size, start = len(x), len(prefix)
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    if mask is not None:
        seen[:, :start] &= mask.bool()
    seen |= torch.eye(size, dtype=torch.bool)
    for layer in range(LAYERS):
        own = {name.split(".", 2)[2]: w for name, w in state.items() if name.startswith(f"layers.{layer}.")}
        qkv = rms(x, own["attention_norm.weight"]) @ own["attention.wqkv.weight"].T
        shared = (qkv.shape[1] - DIM) // 2
        parts = [part.unflatten(-1, (-1, DIM // HEADS)) for part in qkv.split([DIM, shared, shared], -1)]
        q, k = (turned(part, start) for part in parts[:2])
        k, v = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in (k, parts[2]))
        score = torch.einsum("qhc,khc->hqk", q, k) / (DIM // HEADS) ** 0.5
        law = score.masked_fill(~seen, -torch.inf).softmax(-1)
        x = x + torch.einsum("hqk,khc->qhc", law, v).flatten(1) @ own["attention.wo.weight"].T
        inner = rms(x, own["ffn_norm.weight"])
        gate = F.silu(inner @ own["feed_forward.w1.weight"].T) * (inner @ own["feed_forward.w3.weight"].T)
        x = x + gate @ own["feed_forward.w2.weight"].T
    return rms(x, state["norm.weight"])[-1] @ state["output.weight"].T


def projected(state: dict[str, Tensor], features: Tensor) -> Tensor:
    """Features of a caption as the transformer reads them."""
    inner = F.gelu(features @ state["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh")
    return inner @ state["cls_embedding.cap_proj.fc2.weight"].T


def greedy(
    state: dict[str, Tensor], branches: Sequence[tuple[Tensor, Tensor | None]], scale: float, interval: int
) -> list[int]:
    """The authors' loop at temperature 0: both branches step by step, guided up to the interval."""
    codes: list[int] = []
    for step in range(-1, GRID * GRID - 1):
        logits = [reference(state, prefix, codes, mask) for prefix, mask in branches]
        guided = len(logits) == 2 and (step < 0 or interval == -1 or step <= interval)
        mixed = logits[1] + scale * (logits[0] - logits[1]) if guided else logits[0]
        codes.append(int(mixed.argmax()))
    return codes


def found(made: LlamaGen, prompts: Sequence[ms.Prompt], **settings: Any) -> list[list[int]]:
    """Whole pictures by our target at temperature 0, plainly."""
    settings = {"sampling": Sampling(temperature=0), **settings}
    return pictures.tokens(pictures.symbols(made.target, prompts, None, **settings))


def guided(made: LlamaGen, prompt: ms.Prompt, guidance: Guidance | None = None) -> ms.Prompt:
    """The prompt with its other branch."""
    return replace(prompt, guidance=guidance or made.guidance, unconditional=made.unconditional(prompt, None))


@pytest.mark.parametrize("text", [False, True])
def test_it_is_a_family(text: bool) -> None:
    """The protocols are kept; prompts and codes have vocabularies of their own."""
    made = family(text=text)
    assert (
        isinstance(made, Family) and isinstance(made.codec, PictureCodec) and isinstance(made.target, Target)
    )
    spec = made.target.spec
    assert (spec.vocab_size, spec.fixed_length, spec.row_length) == (CODES, GRID * GRID, GRID)
    assert spec.prompt_size == (1 if text else CLASSES + 1)
    assert made.target.context_length == GRID * GRID + (ROOM if text else 1)
    assert llamagen.fits(LlamaGenModel.of(weights(text=text), GRID, HEADS).config) and not llamagen.fits(None)
    assert made.symbols == range(CODES) and made.sampling == Sampling(top_k=1000 if text else 2000)
    assert made.layout((6, 6)) == made.layout() == made.layout_of(ms.Prompt(ids=torch.tensor([0])))


@pytest.mark.parametrize("kv_heads", [HEADS, 2])
def test_class_pictures_are_the_authors_loop(kv_heads: int) -> None:
    """Codes and logits of a class as by the published formulas; also where heads share their keys."""
    state = weights(kv_heads=kv_heads)
    model = LlamaGenModel.of(state, GRID, HEADS)
    assert model.config.kv_heads == kv_heads
    made = LlamaGen.from_model(model, codec())
    table = state["cls_embedding.embedding_table.weight"]
    expected = [greedy(state, [(table[[n]], None)], 1.0, -1) for n in (2, 5)]
    assert found(made, [made.prompt("2"), made.prompt(5)]) == expected
    assert len(set(expected[0])) > 3


@pytest.mark.parametrize(("scale", "interval"), [(4.0, -1), (2.5, 3), (2.5, 0)])
def test_guided_class_pictures_are_the_authors_loop(scale: float, interval: int) -> None:
    """Both branches, the class for nothing, and the interval after which guidance ends."""
    state = weights()
    made = LlamaGen.from_model(
        LlamaGenModel.of(state, GRID, HEADS), codec(), scale=scale, cfg_interval=interval
    )
    table = state["cls_embedding.embedding_table.weight"]
    branches = [(table[[3]], None), (table[[CLASSES]], None)]
    expected = greedy(state, branches, scale, interval)
    assert found(made, [guided(made, made.prompt("3"))]) == [expected]
    assert expected != greedy(state, branches[:1], 1.0, -1)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_text_pictures_are_the_authors_loop(scale: float) -> None:
    """Padding moved to the left and hidden there, in both branches, is padding left out."""
    state = weights(text=True)
    made = family(text=True)
    nothing = state["cls_embedding.uncond_embedding"]
    expected, prompts = [], []
    for seed, count in ((1, 3), (2, ROOM), (3, 1)):
        features, mask = caption(seed, count)
        left = torch.cat([features[count:] * 0, features[:count]])
        branches = [(projected(state, one), mask.flip(0)) for one in (left, nothing)]
        expected.append(greedy(state, branches[: 1 if scale == 1 else 2], scale, -1))
        prompts.append(guided(made, made.featured(features, mask), Guidance(scale=scale)))
    assert found(made, prompts) == expected
    assert len({tuple(one) for one in expected}) == 3


@pytest.mark.parametrize(("text", "guides"), [(False, False), (False, True), (True, True)])
def test_drafting_changes_nothing(text: bool, guides: bool) -> None:
    """Chains, trees and draft models in a ragged batch, guided or not: the symbols of plain decoding."""
    made = family(text=text)
    if text:
        prompts = [made.featured(*caption(n, count)) for n, count in enumerate((2, ROOM, 1, 4))]
    else:
        prompts = [made.prompt(str(n)) for n in (0, 1, 4, 5)]
    if guides:
        interval = replace(made.guidance, scale=2.0, stop=5)
        guidances = [made.guidance, interval, made.guidance, interval]
        prompts = [guided(made, one, g) for one, g in zip(prompts, guidances, strict=True)]
    pictures.assert_drafting_changes_nothing(made.target, family(1, text).target, prompts)


def test_a_batch_through_the_front_door() -> None:
    """A guided batch keeps its rows apart, and pictures come out of the codec."""
    made = family()
    prompts = [guided(made, made.prompt(str(n))) for n in range(3)]
    results = ms.Generator(made.target).generate(prompts, drafter="prompt_lookup")
    alone = [ms.Generator(made.target).generate(prompt, drafter=None) for prompt in prompts]
    assert [one.tokens.tolist() for one in results] == [one.tokens.tolist() for one in alone]
    pixels = made.codec.decode(made.layout().grid(results[0].tokens.tolist()))
    assert pixels.shape == (3, 2 * GRID, 2 * GRID) and not results[0].report.notes


def test_words_through_a_text_encoder() -> None:
    """With an encoder captions are words, negative ones too; without one the message says what to do."""
    model = LlamaGenModel.of(weights(text=True), GRID, HEADS)
    made = LlamaGen.from_model(model, codec(), encoder=words)
    prompt = made.prompt("a red dog")
    assert torch.equal(prompt.conditioning["features"], words("a red dog")[0][:3]) and len(prompt.ids) == 3
    assert len(made.unconditional(prompt, "ugly").ids) == 1
    own = made.unconditional(prompt, None).conditioning["features"]
    assert torch.equal(own, weights(text=True)["cls_embedding.uncond_embedding"][-3:])
    with pytest.raises(PromptError, match="reads features of T5"):
        family(text=True).prompt("a red dog")
    with pytest.raises(PromptError, match="family.featured"):
        made.target.begin([ms.Prompt(ids=torch.zeros(2, dtype=torch.long))], [4], 1)


@pytest.mark.parametrize("wrong", ["a red dog", "", "6", "-1", 6, "1.5"])
def test_a_caption_that_is_no_class_is_refused(wrong: str | int) -> None:
    """The message says that classes have numbers, and which."""
    with pytest.raises(PromptError, match=r"classes 0 \.\. 5 by number"):
        family().prompt(wrong)


def test_features_that_do_not_fit_are_refused() -> None:
    """Too many, of another encoder, padding alone, for a model of classes."""
    made = family(text=True)
    for shape in ((ROOM + 1, FEATURES), (2, FEATURES + 1)):
        with pytest.raises(PromptError, match="takes up to"):
            made.featured(torch.zeros(shape))
    with pytest.raises(PromptError, match="padding alone"):
        made.featured(torch.zeros(2, FEATURES), torch.zeros(2))
    with pytest.raises(PromptError, match="draws classes"):
        family().featured(torch.zeros(2, FEATURES))


def test_settings_that_do_not_fit_are_refused() -> None:
    """Sizes, intervals, picture tokenizers and grids."""
    model = LlamaGenModel.of(weights(), GRID, HEADS)
    with pytest.raises(UsageError, match="6 x 6"):
        family().layout((16, 8))
    with pytest.raises(UsageError, match="cfg_interval"):
        LlamaGen.from_model(model, codec(), cfg_interval=-2)
    with pytest.raises(ModelLoadError, match="24 codes"):
        LlamaGen.from_model(model, VQGAN.of(vqgans.llamagen_names(vqgans.state(codes=8, channels=8))))
    with pytest.raises(UsageError, match="grid"):
        LlamaGenModel.of(weights(), 0, HEADS)


def test_a_model_that_runs_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at the start compares trees and ragged rows with a plain pass."""
    plain = LlamaGenModel.forward
    monkeypatch.setattr(LlamaGenModel, "forward", lambda *given: plain(*given) ** 2)
    with pytest.raises(UnsupportedError, match="differ by"):
        LlamaGen.from_model(LlamaGenModel.of(weights(), GRID, HEADS), codec())


@pytest.mark.parametrize(
    ("dim", "layers", "heads"),
    [(768, 12, 12), (1024, 24, 16), (1280, 36, 20), (1536, 48, 24), (3200, 24, 32)],
)
def test_published_shapes_tell_their_heads(dim: int, layers: int, heads: int) -> None:
    """GPT-B, L, XL, XXL and 3B by their shapes alone."""
    with torch.device("meta"):
        state = {f"layers.{n}.attention.wqkv.weight": torch.empty(3 * dim, dim) for n in range(layers)}
        state["layers.0.feed_forward.w1.weight"] = torch.empty(8, dim)
        state["tok_embeddings.weight"] = torch.empty(16384, dim)
        state["cls_embedding.embedding_table.weight"] = torch.empty(1001, dim)
    config = LlamaGenConfig.of(state, 24)
    assert (config.heads, config.kv_heads, config.layers, config.classes) == (heads, heads, layers, 1000)


def test_names_and_shapes_that_are_wrong_are_named() -> None:
    """Missing and unknown weights, unknown heads, wrong shapes, another model; tables are not minded."""
    state = weights()
    for change, message in (
        ({"norm.weight": None}, r"1 weights .* 'norm\.weight'"),
        ({"layers.1.attention.wo.weight": None}, r"wo\.weight"),
        ({"extra.weight": torch.zeros(1)}, "no place in a LlamaGen"),
        ({"output.weight": torch.zeros(3, DIM)}, "do not fit together"),
        ({"tok_embeddings.weight": None}, "no LlamaGen's"),
        ({"cls_embedding.embedding_table.weight": None}, "no LlamaGen's"),
    ):
        changed = {name: value for name, value in (state | change).items() if value is not None}
        with pytest.raises(ModelLoadError, match=message):
            LlamaGenModel.of(changed, GRID, HEADS)
    with pytest.raises(ModelLoadError, match="heads=None"):
        LlamaGenModel.of(state, GRID)
    with pytest.raises(ModelLoadError, match="heads=5"):
        LlamaGenModel.of(state, GRID, 5)
    assert LlamaGenModel.of(state | {"freqs_cis": torch.zeros(2)}, GRID, HEADS).config.grid == GRID


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", "ema", None])
def test_weights_come_out_of_their_wrapper(tmp_path: Path, wrapper: str | None) -> None:
    """As the authors' scripts save them, arguments and all."""
    state = weights()
    held = state if wrapper is None else {wrapper: state, "steps": 3, "args": argparse.Namespace(lr=1e-4)}
    torch.save(held, tmp_path / "c2i_B_256.pt")
    read = checkpoints.read_state(tmp_path / "c2i_B_256.pt")
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)


def test_loading_checkpoint_files(tmp_path: Path) -> None:
    """By the file and by its folder; the VQGAN beside it is found."""
    torch.save({"model": weights(), "args": argparse.Namespace(lr=1e-4)}, tmp_path / "c2i_B_256.pt")
    torch.save(
        {"model": vqgans.llamagen_names(vqgans.state(codes=CODES, channels=8))}, tmp_path / "vq_ds16.pt"
    )
    for name in (tmp_path, tmp_path / "c2i_B_256.pt"):
        made = llamagen.load(name, image_size=6, heads=HEADS, device="cpu")
        assert found(made, [made.prompt("2")]) == found(family(), [family().prompt("2")])
        assert isinstance(made.codec, VQGAN) and made.codec.stride == 2


def test_the_size_is_found(tmp_path: Path) -> None:
    """In config.json, in the file's name, as an argument; else the message asks for it."""
    save_file(vqgans.llamagen_names(vqgans.state(codes=CODES, channels=8)), tmp_path / "vq.safetensors")
    save_file(weights(), tmp_path / "c2i_256.safetensors")
    given: dict[str, Any] = {"heads": HEADS, "device": "cpu"}
    assert llamagen.load(tmp_path, **given).layout().height == 128
    (tmp_path / "c2i_256.safetensors").rename(tmp_path / "other.safetensors")
    for size in (None, 7):
        with pytest.raises(ModelLoadError, match="size of the pictures"):
            llamagen.load(tmp_path, image_size=size, **given)
    (tmp_path / "config.json").write_text(json.dumps({"block_size": 16, "n_head": HEADS}))
    made = llamagen.load(tmp_path, dtype="float64", device="cpu")
    assert made.layout().height == 4
    assert made.target.begin([made.prompt("1")], [4], 1).prefill().logits[0].dtype == torch.float64
    (tmp_path / "config.json").write_text(json.dumps({"block_size": 10}))
    with pytest.raises(ModelLoadError, match="squares"):
        llamagen.load(tmp_path, **given)
    with pytest.raises(UsageError, match="float7"):
        llamagen.load(tmp_path, image_size=6, dtype="float7", **given)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="no JSON"):
        llamagen.load(tmp_path, **given)


def test_the_front_door_knows_its_folder(tmp_path: Path) -> None:
    """A config.json that names the family is all that ``load`` needs; captions are numbers of classes."""
    torch.save(weights(), tmp_path / "c2i.pt")
    torch.save(vqgans.llamagen_names(vqgans.state(codes=CODES, channels=8)), tmp_path / "vq.pt")
    settings = {"model_type": "llamagen", "block_size": GRID * GRID, "n_head": HEADS}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    result = ms.load(tmp_path, device="cpu").generate("2")
    assert result.output.size == (6, 6) and len(result.tokens) == GRID * GRID


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    """No checkpoint, two of them, no VQGAN, a truncated file, a file of something else."""
    given: dict[str, Any] = {"image_size": 6, "heads": HEADS, "device": "cpu"}
    with pytest.raises(ModelLoadError, match="One LlamaGen checkpoint"):
        llamagen.load(tmp_path, **given)
    torch.save(weights(), tmp_path / "a.pt")
    with pytest.raises(ModelLoadError, match="needs the VQGAN"):
        llamagen.load(tmp_path, **given)
    vq = tmp_path / "vq.pt"
    torch.save(vqgans.llamagen_names(vqgans.state(codes=CODES, channels=8)), vq)
    torch.save(weights(), tmp_path / "b.pt")
    with pytest.raises(ModelLoadError, match=r"a\.pt.*b\.pt"):
        llamagen.load(tmp_path, **given)
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:3000])
    with pytest.raises(ModelLoadError, match="cut short"):
        llamagen.load(tmp_path / "b.pt", codec=vq, **given)
    torch.save({"optimizer": [1]}, tmp_path / "b.pt")
    with pytest.raises(ModelLoadError, match="no state dict"):
        llamagen.load(tmp_path / "b.pt", codec=vq, **given)
    torch.save({"model": weights(), "hook": print}, tmp_path / "b.pt")
    with pytest.raises(ModelLoadError, match="pickled objects"):
        llamagen.load(tmp_path / "b.pt", codec=vq, **given)
    with pytest.raises(ModelLoadError, match="There is no file"):
        llamagen.load("c2i_B_256.pt", **given)


def test_a_file_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``owner/repository/file`` is fetched; what cannot be had is named."""
    torch.save(weights(), tmp_path / "c2i.pt")
    torch.save(vqgans.llamagen_names(vqgans.state(codes=CODES, channels=8)), tmp_path / "vq.pt")

    def download(repository: str, name: str) -> str:
        if repository != "owner/models":
            raise OSError("no such repository")
        return str(tmp_path / name)

    monkeypatch.setattr(checkpoints, "hf_hub_download", download)
    given: dict[str, Any] = {"image_size": 6, "heads": HEADS, "device": "cpu"}
    made = llamagen.load("owner/models/c2i.pt", codec="owner/models/vq.pt", **given)
    assert found(made, [made.prompt("2")]) == found(family(), [family().prompt("2")])
    with pytest.raises(ModelLoadError, match="no such repository"):
        llamagen.load("nobody/models/c2i.pt", **given)
