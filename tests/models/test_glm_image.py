"""GLM-Image: the same codes as the model's own generate, positions on grids, nothing on the module."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageImageProcessorPil,
    GlmImageProcessor,
    GlmImageTextConfig,
    GlmImageVisionConfig,
    GlmImageVQVAEConfig,
    LlamaConfig,
)

import multispec as ms
from multispec.errors import ModelLoadError, PromptError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image.families import glm_image
from multispec.modalities.image.families.glm_image import (
    GRIDS,
    GlmImage,
    PreviewedRaster,
    grids_of,
    positions,
)
from multispec.modalities.image.family import Family, PictureCodec
from multispec.modalities.layout import Layout, Raster
from multispec.sampling import Sampling
from multispec.stream import Allowed, Forced
from tests.models import pictures

CODES, HEAD = 24, 32
CAPTIONS = ("a red dog", "two cats", "blue", "a long sentence about 3 birds")
# The picture and its preview, small enough to draw many.
SMALL = (((3, 4), (2, 2)), ((2, 2), (1, 3)), ((4, 2), (2, 1)), ((1, 5), (1, 4)))
TEMPLATE = "user: {{ messages[0].content[0].text }}"


@cache
def words() -> Any:
    """A tiny tokenizer: the codes, the marks, then words."""
    named = {
        "bos_token": "<boi>",
        "image_token": "<img>",
        "grid_bos_token": "<sop>",
        "grid_eos_token": "<eop>",
    }
    first = [*(f"<code {n}>" for n in range(CODES)), "<boi>", "<eoi>"]
    return pictures.tokenizer(named, first=first)


def processor(template: str | None = None) -> Any:
    """The real processor around it, whose own pictures have 96 x 64 pixels."""
    images = GlmImageImageProcessorPil(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, patch_size=4, merge_size=1, temporal_patch_size=1
    )
    made = GlmImageProcessor(images, words(), chat_template=template)
    made.target_h, made.target_w = 96, 64
    return made


def build(seed: int = 0, **changes: Any) -> Any:
    """A random GLM-Image of 24 codes, a head of 32 and a vocabulary of 96."""
    text: dict[str, Any] = {
        "vocab_size": 96,
        "vision_vocab_size": HEAD,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "max_position_embeddings": 512,
        "pad_token_id": words().pad_token_id,
        "eos_token_id": CODES + 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]},
    }
    sight: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "intermediate_size": 32,
        "initializer_range": 0.3,
    }
    vq = GlmImageVQVAEConfig(embed_dim=8, num_embeddings=CODES, latent_channels=16, initializer_range=0.3)
    config = GlmImageConfig(
        text_config=GlmImageTextConfig(**(text | changes)).to_dict(),
        vision_config=GlmImageVisionConfig(**sight).to_dict(),
        vq_config=vq.to_dict(),
        image_token_id=words().image_token_id,
        image_start_token_id=CODES,
        image_end_token_id=CODES + 1,
    )
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = GlmImageForConditionalGeneration(config).eval()
    return model


@cache
def family(seed: int = 0) -> GlmImage:
    """One family per seed, shared by the tests."""
    return GlmImage.from_model(build(seed), processor())


@cache
def roomy() -> GlmImage:
    """One with room for pictures of the usual sizes."""
    return GlmImage.from_model(build(max_position_embeddings=10_000), processor())


@cache
def asked() -> Any:
    """The model of ``family()`` again, whose own generate leaves notes on the module."""
    return build()


def small(caption: str, grids: Sequence[Sequence[int]] = SMALL[0], scale: float = 1.0) -> ms.Prompt:
    """A prompt for a picture of a few codes, with an other branch of another length."""
    conditioning = {GRIDS: torch.tensor([[1, *grid] for grid in grids])}
    prompt = replace(family().prompt(caption), conditioning=conditioning)
    prompt = replace(prompt, spec=family().layout_of(prompt).spec)
    other = replace(prompt, ids=family().unconditional(family().prompt(caption), "low quality").ids)
    return replace(prompt, guidance=Guidance(scale=scale, convention="log_softmax"), unconditional=other)


def own_generate(prompt: ms.Prompt, **settings: Any) -> list[int]:
    """The model's own greedy generate, held to codes and then the end."""
    layout = family().layout_of(prompt)
    start = len(prompt.ids)

    def allowed(batch: int, ids: torch.Tensor) -> Sequence[int]:
        return range(CODES) if len(ids) - start < layout.length - 1 else [CODES + 1]

    found = asked().generate(
        prompt.ids[None],
        attention_mask=torch.ones_like(prompt.ids[None]),
        image_grid_thw=prompt.conditioning[GRIDS],
        images_per_sample=torch.tensor([2]),
        max_new_tokens=layout.length,
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        **settings,
    )
    return list(found[0, start:].tolist())


def test_a_family() -> None:
    """It keeps the protocols, and knows its own configuration."""
    assert isinstance(family(), Family)
    assert isinstance(family().codec, PictureCodec)
    assert isinstance(family().layout(), Layout)
    assert glm_image.fits(family().model.config)
    assert not glm_image.fits(LlamaConfig())
    assert family().guidance.neutral and family().sampling == Sampling(temperature=0.9, top_p=0.75)
    assert family().symbols == range(CODES) and family().codec.stride == 8
    assert family().target.capabilities.supports_tree
    assert family().target.spec.vocab_size == HEAD
    assert family().target.spec.prompt_size == 96


@pytest.mark.parametrize(("caption", "grids"), list(zip(CAPTIONS, SMALL, strict=True)))
def test_plain_decoding_is_the_models_own_greedy(caption: str, grids: Any) -> None:
    """Without a drafter and at temperature 0, preview and picture are those of generate."""
    prompt = small(caption, grids)
    found = pictures.symbols(family().target, [prompt], None, sampling=Sampling(temperature=0))
    assert pictures.tokens(found) == [own_generate(prompt)]


def test_a_whole_picture_is_the_models_own() -> None:
    """The prompt of the processor with its preview of 247 codes, as generate draws it."""
    prompt = family().prompt(CAPTIONS[0], (96, 64))
    truth = own_generate(prompt)
    assert len(truth) == 19 * 13 + 6 + 1
    drafter = pictures.oracle([truth], CODES, tree=True)
    (found,) = pictures.symbols(family().target, [prompt], drafter, sampling=Sampling(temperature=0))
    assert found.tokens.tolist() == truth
    assert found.report.target_calls < len(truth) * 3 // 4
    assert found.report.forced == 1


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_drafting_changes_nothing(scale: float) -> None:
    """Any drafter, alone and in a batch of pictures of several sizes, with and without guidance."""
    prompts = [small(caption, grids, scale) for caption, grids in zip(CAPTIONS, SMALL, strict=True)]
    pictures.assert_drafting_changes_nothing(family().target, family(1).target, prompts)


def test_guidance_is_transformers_own_where_it_can() -> None:
    """A negative prompt as long as the prompt; of another length transformers loses the positions."""
    prompt = small("a red dog", scale=2.0)
    other = replace(prompt, ids=family().prompt("two  cats").ids, guidance=None, unconditional=None)
    assert len(other.ids) == len(prompt.ids)
    same = replace(prompt, unconditional=other)
    found = pictures.symbols(family().target, [same], None, sampling=Sampling(temperature=0))
    expected = own_generate(same, negative_prompt_ids=other.ids[None], guidance_scale=2.0)
    assert pictures.tokens(found) == [expected]
    assert prompt.unconditional is not None
    with pytest.raises(RuntimeError):
        own_generate(prompt, negative_prompt_ids=prompt.unconditional.ids[None], guidance_scale=2.0)


def test_positions_are_the_models_own() -> None:
    """Words, preview, picture, end: as ``get_rope_index`` notes them on the module."""
    for grids in SMALL:
        inner = asked().model
        given = torch.tensor([[1, *grid] for grid in grids])
        ids = family().prompt("a red dog").ids[None]
        words_at, _ = inner.get_rope_index(ids, image_grid_thw=given, images_per_sample=torch.tensor([2]))
        expected = torch.cat([words_at[:, 0], inner._cached_decode_position_ids[0]], 1)
        assert torch.equal(positions(ids.shape[1], given), expected)


def test_nothing_stays_on_the_module() -> None:
    """Neither making a target nor drawing leaves a trace, so two sessions may take turns."""
    own = GlmImage.from_model(build(), processor())
    first, second = small(CAPTIONS[0]), small(CAPTIONS[3], SMALL[3])
    sessions = [own.target.begin([one], [64], 4) for one in (first, second)]
    with torch.inference_mode():
        found = [session.prefill().logits[0] for session in sessions]
        turns = [session.score([0], [5], [ms.Draft.chain([3, 7])]).logits[0] for session in sessions]
    for prompt, before, after in zip((first, second), found, turns, strict=True):
        session = family().target.begin([prompt], [64], 4)
        with torch.inference_mode():
            torch.testing.assert_close(session.prefill().logits[0], before)
            alone = session.score([0], [5], [ms.Draft.chain([3, 7])]).logits[0]
        torch.testing.assert_close(alone, after)
    inner = own.model.model
    assert inner.rope_deltas is inner._cached_decode_position_ids is inner._prefill_len is None


@torch.inference_mode()
def test_positions_roll_back() -> None:
    """After a rejection, a rewind, and rows that left, every symbol stands where it would have stood."""
    prompts = [small(caption, grids) for caption, grids in zip(CAPTIONS, SMALL, strict=True)]
    session = family().target.begin(prompts, [64] * 4, 8)
    session.prefill()
    tree = ms.Draft(tokens=torch.tensor([1, 8, 9, 2]), parents=(-1, -1, 1, 1))
    session.score(range(4), [6] * 4, [tree] * 4)
    session.commit(range(4), [(), (1, 2), (1, 3), (0,)])
    session.drop([0])
    session.score([1, 2, 3], [4] * 3, [ms.Draft.chain([5, 5])] * 3)
    session.commit([1, 2, 3], [(0, 1), (), (0,)])
    session.rewind(1, session.length(1) - 2)
    rows = {1: [6, 8, 9, 4], 2: [6, 8, 2, 4], 3: [6, 1, 4, 5]}
    found = session.score([1, 2, 3], [7] * 3, [ms.Draft.chain([3])] * 3).logits
    for row, logits in zip(rows, found, strict=True):
        alone = family().target.begin([prompts[row]], [64], 8)
        alone.prefill()
        alone.score([0], [6], [ms.Draft.chain(rows[row][1:])])
        alone.commit([0], [(0, 1, 2)])
        expected = alone.score([0], [7], [ms.Draft.chain([3])]).logits[0]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_layout() -> None:
    """A preview that is no part of the picture, then the picture, then the end."""
    prompt = small(CAPTIONS[0], ((2, 3), (1, 2)))
    layout = family().layout_of(prompt)
    assert [layout.coordinates(n) for n in range(9)] == [
        *[None] * 2,
        *itertools.product(range(2), range(3)),
        None,
    ]
    assert layout.grammar([]) == layout.grammar([0] * 7) == Allowed(range(CODES))
    assert layout.grammar([0] * 8) == Forced(CODES + 1)
    assert layout.grammar([0] * 9) is None
    assert (layout.spec.fixed_length, layout.spec.row_length, layout.spec.vocab_size) == (9, 3, HEAD)
    tokens = [7, 8, 1, 2, 3, 4, 5]
    assert layout.grid(tokens, 9).tolist() == [[1, 2, 3], [4, 5, 9]]
    assert layout.preview_grid(tokens).tolist() == [[7, 8]]
    with pytest.raises(UsageError, match=r"codes must lie in \[0, 24\)"):
        layout.grid([0, 0, CODES])
    assert isinstance(layout, PreviewedRaster) and isinstance(layout.picture, Raster)


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("size", [(96, 64), (64, 96), (1152, 768), (32, 1024), (2048, 2048)])
def test_the_prompt_is_the_processors(size: tuple[int, int], template: str | None) -> None:
    """The ids and grids of the processor, and of its chat template where there is one."""
    made = processor(template)
    text = CAPTIONS[0] if template is None else f"user: {CAPTIONS[0]}"
    given = made(text=[text], target_h=size[0], target_w=size[1], return_tensors="pt")
    own = replace(roomy(), processor=made)
    prompt = own.prompt(CAPTIONS[0], size)
    assert torch.equal(prompt.ids, given["input_ids"][0])
    assert torch.equal(prompt.conditioning[GRIDS], given[GRIDS])
    assert own.layout_of(prompt) == own.layout(size)


def test_grids_are_the_processors() -> None:
    """Our arithmetic of previews and that of the processor, over all sizes up to 2048 pixels."""
    shape = processor()._get_target_shape
    for height, width in itertools.product(range(1, 65), repeat=2):
        large, wide, low, narrow = shape(height * 32, width * 32)
        assert grids_of(height, width).tolist() == [[1, large, wide], [1, low, narrow]]


def test_its_own_size_and_the_other_branch() -> None:
    """The processor's size without one; the same grids behind another caption."""
    assert family().layout() == family().layout((96, 64))
    prompt = family().prompt("a dog")
    blank, negative = (family().unconditional(prompt, one) for one in (None, "a cat"))
    assert words().decode(blank.ids) == "<sop>3 2<eop><sop>19 13<eop><boi>"
    assert words().decode(negative.ids) == "a cat<sop>3 2<eop><sop>19 13<eop><boi>"
    assert torch.equal(blank.conditioning[GRIDS], prompt.conditioning[GRIDS])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((96, 70), "multiples of 32 pixels: got 96 x 70. The nearest is 96 x 64"),
        ((0, 64), "multiples of 32 pixels: got 0 x 64. The nearest is 32 x 64"),
        ((32, 32 * 300), "no code in one direction. One side may be up to 256 times"),
    ],
)
def test_sizes_that_it_cannot_draw(size: tuple[int, int], message: str) -> None:
    """Odd ones and endless ones: it says what it can draw."""
    with pytest.raises(UsageError, match=message):
        family().prompt("a", size)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("", "reads nothing"),
        ("日本語", "unknown"),
        ("a<sop>b", "control symbol"),
        ("a" * 300, "Shorten the caption"),
    ],
)
def test_captions_that_cannot_be_read(caption: str, message: str) -> None:
    """Nothing, another script, control symbols, no room left."""
    with pytest.raises(PromptError, match=message):
        family().prompt(caption)


def test_ids_need_their_grids() -> None:
    """A prompt of bare ids says nothing of the picture."""
    with pytest.raises(PromptError, match="places its symbols by the grids"):
        family().target.begin([ms.Prompt(ids=torch.tensor([40, 41]))], [8], 4)


def test_decoding_says_where_to_get_pixels() -> None:
    """No decoder in the checkpoint; the codes go to diffusers, each doubled in both directions."""
    codec, codes = family().codec, torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(UnsupportedError, match="GlmImageVQVAE encodes only.*GlmImagePipeline"):
        codec.decode(codes)
    with pytest.raises(UsageError, match=r"Codes must lie in \[0, 24\)"):
        codec.decode(codes + CODES)
    assert codec.prior_token_ids(codes).tolist() == [[1, 1, 2, 2] * 2 + [3, 3, 4, 4] * 2]


def test_encoding_is_the_models_own() -> None:
    """The codes that the model's own vision tower and processor give a picture."""
    pixels = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(2))
    large = pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    codes = family().codec.encode(large)
    assert codes.shape == (2, 3)
    half = torch.nn.functional.interpolate(large[None], (8, 12), mode="bicubic", antialias=True)[0].clamp(
        0, 1
    )
    given = processor().image_processor(half.numpy(), do_resize=False, do_rescale=False, return_tensors="pt")
    model = family().model
    with torch.inference_mode():
        seen = model.get_image_features(given["pixel_values"], given["image_grid_thw"]).pooler_output
        expected = model.get_image_tokens(seen).view(2, 3)
    assert torch.equal(codes, expected)
    assert len(set(codes.flatten().tolist())) > 1
    assert family().codec.codebook.shape == (CODES, 8)
    with pytest.raises(UsageError, match="multiples of 8 pixels: got 16 x 20"):
        family().codec.encode(torch.rand(3, 16, 20))


def test_a_folder(tmp_path: Path) -> None:
    """Saved by transformers, loaded by us: the same codes; a tokenizer alone will not do."""
    family().model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    loaded = glm_image.load(tmp_path, device="cpu")
    prompt = small(CAPTIONS[0])
    found = pictures.symbols(loaded.target, [prompt], None)
    assert pictures.tokens(found) == pictures.tokens(pictures.symbols(family().target, [prompt], None))
    with pytest.raises(ModelLoadError, match="needs its GlmImageProcessor"):
        GlmImage.from_model(family().model, words())
    with pytest.raises(ModelLoadError, match="The weights of the picture model cannot be read"):
        glm_image.load(tmp_path / "nothing", device="cpu")
