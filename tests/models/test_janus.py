"""Janus: the same codes as the model's own generate, whatever drafts, in batches, guided or not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessorPil,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

import multispec as ms
from multispec.errors import ModelLoadError, PromptError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.families import janus
from multispec.modalities.image.families.janus import Janus
from multispec.modalities.image.family import Family, PictureCodec
from multispec.sampling import Sampling
from tests.models import pictures

SIDE = 4
CAPTIONS = ("a red dog", "two cats", "blue", "a very long sentence about 3 birds")
TEMPLATE = "user: {{ messages[0].content[0].text }} assistant:"


@cache
def words() -> Any:
    """A tiny tokenizer with the names that Janus needs."""
    named = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"}
    return pictures.tokenizer(named, bos=True)


def processor(template: str | None = None) -> Any:
    """The real processor around it."""
    images = JanusImageProcessorPil(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": 16, "width": 16}
    )
    return JanusProcessor(images, words(), chat_template=template, num_image_tokens=SIDE * SIDE)


def build(seed: int = 0, text: Any = None, **vision: Any) -> Any:
    """A random Janus of 16 codes from a codebook of 48."""
    language = text or LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=128,
    )
    sight: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "projection_dim": 32,
        "num_image_tokens": SIDE * SIDE,
        "depth": 1,
    }
    vq = JanusVQVAEConfig(
        num_embeddings=48,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=1,
        projection_dim=32,
        image_token_embed_dim=32,
        initializer_range=0.3,
    )
    config = JanusConfig(
        text_config=language.to_dict(),
        vision_config=JanusVisionConfig(**(sight | vision)).to_dict(),
        vq_config=vq.to_dict(),
        image_token_id=words().image_token_id,
        tie_word_embeddings=False,
    )
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = JanusForConditionalGeneration(config).eval()
    own = model.generation_config
    own.bos_token_id, own.pad_token_id, own.eos_token_id = words().bos_token_id, words().pad_token_id, None
    own.generation_kwargs = {"boi_token_id": words().boi_token_id}
    return model


@cache
def family(seed: int = 0) -> Janus:
    """One family per seed, shared by the tests."""
    return Janus.from_model(build(6 + seed), processor())


def guided(caption: str, scale: float | None = None) -> ms.Prompt:
    """The prompt with its other branch, as the modality makes it."""
    prompt = family().prompt(caption)
    guidance = family().guidance if scale is None else Guidance(scale=scale)
    return replace(prompt, guidance=guidance, unconditional=family().unconditional(prompt, None))


def own_generate(prompts: list[ms.Prompt], scale: float) -> list[list[int]]:
    """What the model's own greedy generate makes of a batch, with padding on the left."""
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), words().pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = prompt.ids
        mask[row, width - len(prompt.ids) :] = 1
    found = family().model.generate(
        ids, attention_mask=mask, generation_mode="image", guidance_scale=scale, do_sample=False
    )
    return list(found.tolist())


def test_a_family() -> None:
    """It keeps the protocols, and knows its own configuration."""
    assert isinstance(family(), Family)
    assert isinstance(family().codec, PictureCodec)
    assert janus.fits(family().model.config)
    assert not janus.fits(LlamaConfig())
    assert family().guidance == Guidance(scale=5.0)
    assert family().target.capabilities.supports_tree
    assert family().target.spec.fixed_length == SIDE * SIDE
    assert family().target.spec.grammar is None
    assert family().target.context_length == 128


@pytest.mark.parametrize("scale", [1.5, 5.0])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_plain_decoding_is_the_models_own_greedy(caption: str, scale: float) -> None:
    """Without a drafter and at temperature 0: what ``generate(generation_mode="image")`` emits."""
    prompt = guided(caption, scale)
    found = pictures.symbols(family().target, [prompt], None, sampling=Sampling(temperature=0))
    assert pictures.tokens(found) == own_generate([prompt], scale)


def test_a_batch_is_the_models_own_batch() -> None:
    """Prompts of different length together: what generate makes of them with padding on the left."""
    prompts = [guided(caption) for caption in CAPTIONS]
    found = pictures.symbols(family().target, prompts, None, sampling=Sampling(temperature=0))
    assert pictures.tokens(found) == own_generate(prompts, 5.0)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_drafting_changes_nothing(scale: float) -> None:
    """Any drafter, alone and in a batch, with and without guidance."""
    prompts = [guided(caption, scale) for caption in CAPTIONS]
    pictures.assert_drafting_changes_nothing(family().target, family(1).target, prompts)


def test_guided_and_plain_rows_share_a_batch() -> None:
    """Rows with different scales, and one without, give what each gives alone."""
    prompts = [guided(CAPTIONS[0], 5.0), guided(CAPTIONS[1], 1.0), guided(CAPTIONS[2], 2.0)]
    alone = [pictures.tokens(pictures.symbols(family().target, [one], None))[0] for one in prompts]
    drafter = pictures.oracle(alone, 48, tree=True)
    assert pictures.tokens(pictures.symbols(family().target, prompts, drafter)) == alone


def test_transformers_refuses_what_we_do() -> None:
    """Its generate neither drafts for pictures nor makes them without guidance."""
    model, ids = family().model, family().prompt(CAPTIONS[0]).ids[None]
    settings = {"attention_mask": torch.ones_like(ids), "generation_mode": "image", "do_sample": False}
    with pytest.raises(ValueError, match="incompatible mode for Image Generation"):
        model.generate(ids, prompt_lookup_num_tokens=3, **settings)
    with pytest.raises(RuntimeError, match="must match the existing size"):
        model.generate(ids, guidance_scale=1.0, **settings)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_the_prompt_is_the_processors(template: str | None) -> None:
    """The ids of the processor in image mode, with and without a chat template."""
    made = processor(template)
    text = CAPTIONS[0] if template is None else f"user: {CAPTIONS[0]} assistant:"
    expected = made(text=text, generation_mode="image", return_tensors="pt")["input_ids"][0]
    own = Janus.from_model(family().model, made)
    prompt = own.prompt(CAPTIONS[0])
    assert torch.equal(prompt.ids, expected)
    assert prompt.spec == own.layout().spec
    assert own.layout_of(prompt) == own.layout((16, 16))


def test_a_tokenizer_alone_will_do() -> None:
    """Prompts are the same without the image processor."""
    own = Janus.from_model(family().model, words())
    assert torch.equal(own.prompt(CAPTIONS[1]).ids, family().prompt(CAPTIONS[1]).ids)


def test_the_other_branch() -> None:
    """Pad everywhere but at bos and begin-of-image; a negative caption has a prompt of its own."""
    prompt = family().prompt("abc")
    blank = family().unconditional(prompt, None)
    bos, pad, boi = words().bos_token_id, words().pad_token_id, words().boi_token_id
    assert blank.ids.tolist() == [bos, pad, pad, pad, boi]
    assert torch.equal(family().unconditional(prompt, "two cats").ids, family().prompt("two cats").ids)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("", "reads nothing"),
        ("  ", "reads nothing"),
        ("日本語", "unknown"),
        ("a <boi> b", "control symbol '<boi>'"),
        ("a" * 120, "Shorten the caption"),
    ],
)
def test_captions_that_cannot_be_read(caption: str, message: str) -> None:
    """Nothing, spaces, another script, control symbols: refused, in negatives too."""
    with pytest.raises(PromptError, match=message):
        family().prompt(caption)
    with pytest.raises(PromptError, match=message):
        family().unconditional(family().prompt("a"), caption)


def test_sizes_that_it_cannot_draw() -> None:
    """It draws one size, and says which."""
    with pytest.raises(UsageError, match="16 x 16 pixels and no others: got 32 x 16"):
        family().prompt("a", (32, 16))


def test_the_codec_decodes_as_the_model() -> None:
    """Pixels are those of ``decode_image_tokens``, moved from [-1, 1] to [0, 1]."""
    codes = torch.randint(48, (SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    pixels = family().codec.decode(codes)
    with torch.inference_mode():
        own = family().model.decode_image_tokens(codes.reshape(1, -1))[0].permute(2, 0, 1)
    torch.testing.assert_close(pixels, (own / 2 + 0.5).clamp(0, 1))
    assert pixels.shape == (3, 16, 16)
    with pytest.raises(UsageError, match=r"Codes must lie in \[0, 48\)"):
        family().codec.decode(codes + 48)
    with pytest.raises(UsageError, match="draws 4 x 4 codes: got 2 x 4"):
        family().codec.decode(codes[:2])


def test_encoding_measures_what_decoding_uses() -> None:
    """The lengths of codebook vectors, which no decoded pixel depends on, change no code either."""
    model = build(3)
    codec = Janus.from_model(model, processor()).codec
    pixels = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(2))
    codes = codec.encode(pixels)
    assert codes.shape == (SIDE, SIDE)
    assert len(set(codes.flatten().tolist())) > 1
    before = codec.decode(codes)
    weight = model.model.vqmodel.quantize.embedding.weight.data
    weight *= torch.rand(48, 1, generator=torch.Generator().manual_seed(3)) * 3 + 0.1
    torch.testing.assert_close(codec.decode(codes), before)
    assert torch.equal(codec.encode(pixels), codes)
    torch.testing.assert_close(codec.codebook.norm(dim=-1), torch.ones(48))
    with pytest.raises(UsageError, match="multiples of 4 pixels: got 16 x 18"):
        codec.encode(torch.rand(3, 16, 18))


def test_a_folder(tmp_path: Path) -> None:
    """Saved by transformers, loaded by us: the same codes; without its parts: what is missing."""
    family().model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    loaded = janus.load(tmp_path, device="cpu")
    found = pictures.symbols(loaded.target, [loaded.prompt(CAPTIONS[0])], None)
    again = pictures.symbols(family().target, [family().prompt(CAPTIONS[0])], None)
    assert pictures.tokens(found) == pictures.tokens(again)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match="The processor of the picture model cannot be read"):
        janus.load(tmp_path, device="cpu")
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelLoadError, match="The weights of the picture model cannot be read"):
        janus.load(tmp_path, device="cpu")


def test_a_checkpoint_with_weights_missing(tmp_path: Path) -> None:
    """Random weights are never filled in quietly."""
    from safetensors.torch import load_file, save_file

    family().model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {name: one for name, one in load_file(file).items() if "generation_head" not in name}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(
        ModelLoadError, match="weights of .* are missing, the first is 'model.generation_head"
    ):
        janus.load(tmp_path, device="cpu")


def test_models_that_do_not_fit() -> None:
    """Too few codes, no begin-of-image, no pad, no weights, a language model that takes no mask of ours."""
    with pytest.raises(ModelLoadError, match="draws 9 codes, and its picture tokenizer takes 4 x 4"):
        Janus.from_model(build(num_image_tokens=9), processor())
    with pytest.raises(ModelLoadError, match="names no boi_token"):
        Janus.from_model(family().model, pictures.tokenizer({}))
    model = build()
    model.generation_config.pad_token_id = None
    padless = pictures.tokenizer({"boi_token": "<boi>"})
    padless.pad_token = None
    with pytest.raises(ModelLoadError, match="needs pad_token"):
        Janus.from_model(model, padless)
    with pytest.raises(ModelLoadError, match="meta device"):
        Janus.from_model(build().to("meta"), processor())
    bloom = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(UnsupportedError, match="with a BloomConfig inside cannot be run over ragged rows"):
        Janus.from_model(build(text=bloom), processor())
    drifting = build()
    drifting.model.generation_head.register_forward_hook(lambda *_: torch.randn(2, 9, 48))
    with pytest.raises(UnsupportedError, match="runs here otherwise than by its plain forward"):
        Janus.from_model(drifting, processor())
