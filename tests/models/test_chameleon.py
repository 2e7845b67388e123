"""Chameleon, Anole and Lumina-mGPT: picture symbols come back, whatever drafts, guided, in any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

import multispec as ms
from multispec.errors import (
    ModelLoadError,
    OutputWarning,
    PromptError,
    UnknownNameError,
    UnsupportedError,
    UsageError,
)
from multispec.guidance import Guidance
from multispec.modalities.image.families import chameleon
from multispec.modalities.image.families.chameleon import Chameleon, Marks, Style
from multispec.modalities.image.family import Family, PictureCodec
from multispec.modalities.image.vqgan import VQGAN
from multispec.protocols import Target
from multispec.sampling import Sampling
from tests.models import pictures, vqgans

CODES, SIDE = 16, 3
# Codes as letters, in an order that is not that of the ids.
PICTURES = tuple(
    f"IMGIMG{''.join('ABCDEFGHIJ'[int(d)] for d in str((5 * n + 3) % CODES))}Z" for n in range(CODES)
)
PLAIN = ("<reserved08706>", *(f"<reserved{number:05d}>" for number in range(8799, 8806)), "<image>")
NAMED = {"boi_token": "<racm3:break>", "eoi_token": "<eoss>", "sep_token": "<reserved08706>"}


@cache
def words() -> Any:
    """A tiny tokenizer with the names of Chameleon's vocabulary; pictures begin behind four specials."""
    named = {name: token for name, token in NAMED.items() if name != "sep_token"}
    return pictures.tokenizer(named, plain=PLAIN, first=["<pad>", "</s>", "<s>", "<unk>", *PICTURES])


def build(seed: int = 0, bare: bool = False, **changes: Any) -> Any:
    """A random Chameleon of 3 x 3 codes from a codebook of 16."""
    vq = ChameleonVQVAEConfig(
        embed_dim=4,
        num_embeddings=CODES,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=2,
        resolution=2 * SIDE,
        attn_resolutions=[SIDE],
    )
    vocabulary = words().get_vocab()
    options = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "max_position_embeddings": 160,
        "bos_token_id": vocabulary["<s>"],
        "pad_token_id": vocabulary["<pad>"],
        "vq_config": vq.to_dict(),
        "vocabulary_map": {"<image>": vocabulary["<image>"]} if bare else vocabulary,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ChameleonForConditionalGeneration(ChameleonConfig(**options)).eval()


@cache
def original() -> VQGAN:
    """A tiny original picture tokenizer, decoder included."""
    return VQGAN.of(vqgans.state(codes=CODES))


@cache
def model(seed: int = 0) -> Any:
    """A random model, made once."""
    return build(seed)


@cache
def family(style: Style = "chameleon", seed: int = 0) -> Chameleon:
    """The family of a random model, made once."""
    return Chameleon.from_model(model(seed), words(), style=style, vqgan=original(), image_size=_side(style))


def _side(style: Style) -> int:
    return 2 * SIDE if style == "chameleon" else 8


def ids(*names: str) -> list[int]:
    """The ids of these symbols."""
    vocabulary = words().get_vocab()
    return [vocabulary[name] for name in names]


def reference(branches: Sequence[Tensor], codes: Sequence[int], scale: float) -> Tensor:
    """Logits ``[V]`` by the model's own modules, picture symbols not forbidden, both branches mixed."""
    logits: list[Tensor] = []
    for prompt in branches:
        rows = torch.tensor([[*prompt.tolist(), *codes]])
        logits.append(
            model().lm_head(model().model(input_ids=rows, use_cache=False).last_hidden_state)[0, -1]
        )
    return logits[0] if len(logits) == 1 else logits[1] + scale * (logits[0] - logits[1])


def greedy(style: Style, grid: tuple[int, int], branches: Sequence[Tensor], scale: float) -> list[int]:
    """Step by step: row ends and the end where they belong, else the best of the picture symbols."""
    first = ids(PICTURES[0])[0]
    found: list[int] = []
    with torch.no_grad():
        for _ in range(grid[0]):
            for _ in range(grid[1]):
                logits = reference(branches, found, scale)
                found.append(first + int(logits[first : first + CODES].argmax()))
            found += ids("<reserved08799>") if style == "lumina" else []
    return [*found, *ids("<eoss>")]


def guided(made: Chameleon, prompt: ms.Prompt, **changes: Any) -> ms.Prompt:
    """The prompt with its other branch."""
    guidance = replace(made.guidance, **changes)
    return replace(prompt, guidance=guidance, unconditional=made.unconditional(prompt, None))


@pytest.mark.parametrize("style", ["chameleon", "lumina"])
def test_it_is_a_family(style: Style) -> None:
    """The protocols are kept, ragged rows and trees are run, the guidance is the authors'."""
    made = family(style)
    assert (
        isinstance(made, Family) and isinstance(made.codec, PictureCodec) and isinstance(made.target, Target)
    )
    assert made.target.capabilities.way == "ModuleForward" and made.target.capabilities.supports_tree
    assert made.guidance == Guidance(scale=4.0 if style == "lumina" else 3.0)
    assert made.sampling == (
        Sampling(top_k=2000) if style == "lumina" else Sampling(temperature=0.7, top_p=0.9)
    )
    assert list(made.symbols) == ids(*PICTURES) and made.codec.stride == 2
    assert chameleon.fits(model().config) and not chameleon.fits(None)
    spec = made.prompt("a dog").spec
    assert spec is not None and spec.fixed_length == made.layout().length


def test_prompts_are_the_authors() -> None:
    """Chameleon: start, words, end of turn, begin of picture. Lumina: a sentence, and the size in squares."""
    prompt = family().prompt("a dog")
    expected = [*ids("<s>"), *words()("a dog")["input_ids"], *ids("<reserved08706>", "<racm3:break>")]
    assert prompt.ids.tolist() == expected
    assert family().unconditional(prompt, None).ids.tolist() == ids("<s>", "<racm3:break>")
    lumina = family("lumina")
    prompt = lumina.prompt("a dog", (4, 12))
    text = "Generate an image of 12x4 according to the following prompt:\na dog"
    size = ids("<racm3:break>", "<reserved08801>", "<reserved08803>")
    expected = [*ids("<s>"), *words()(text)["input_ids"], *ids("<reserved08706>"), *size]
    assert prompt.ids.tolist() == expected
    assert lumina.unconditional(prompt, None).ids.tolist() == size
    layout = lumina.layout_of(prompt)
    assert (layout.height, layout.width, layout.length) == (2, 6, 2 * 7 + 1)
    negative = lumina.unconditional(prompt, "ugly")
    assert negative.ids.tolist() == lumina.prompt("ugly", (4, 12)).ids.tolist()


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("style", ["chameleon", "lumina"])
def test_pictures_are_the_models_own_without_the_mask(style: Style, scale: float) -> None:
    """Greedy symbols by the model's own modules, guided and not, in two sizes at once where it has them."""
    made = family(style)
    sizes = [(8, 4), (4, 8)] if style == "lumina" else [None, None]
    prompts = [made.prompt(text, size) for text, size in zip(("a dog", "two red cats"), sizes, strict=True)]
    prompts = [guided(made, one, scale=scale) for one in prompts]
    expected = []
    for prompt in prompts:
        assert prompt.unconditional is not None
        layout = made.layout_of(prompt)
        branches = [prompt.ids, prompt.unconditional.ids][: 1 if scale == 1 else 2]
        expected.append(greedy(style, (layout.height, layout.width), branches, scale))
    found = pictures.symbols(made.target, prompts, None, sampling=Sampling(temperature=0))
    assert pictures.tokens(found) == expected
    assert len({*expected[0], *expected[1]}) > 4


def test_the_model_itself_stays_as_it_was() -> None:
    """Its own forward pass still forbids picture symbols."""
    family()
    rows = torch.tensor([ids("<s>")])
    with torch.no_grad():
        own = model()(rows).logits[0, -1]
    assert bool((own[ids(*PICTURES)] == torch.finfo(own.dtype).min).all())
    assert type(model()).forward is ChameleonForConditionalGeneration.forward


@pytest.mark.parametrize(("style", "guides"), [("chameleon", False), ("chameleon", True), ("lumina", True)])
def test_drafting_changes_nothing(style: Style, guides: bool) -> None:
    """Chains, trees and draft models in a ragged batch, guided or not: the symbols of plain decoding."""
    made, stranger = family(style), family(style, 1)
    sizes = [(4, 4), (8, 4), (4, 8), (4, 4)] if style == "lumina" else [None] * 4
    captions = ("a dog", "two red cats", "i", "blue")
    prompts = [made.prompt(text, size) for text, size in zip(captions, sizes, strict=True)]
    if guides:
        prompts = [guided(made, one, scale=2.0) for one in prompts]
    pictures.assert_drafting_changes_nothing(made.target, stranger.target, prompts)


def test_another_norm_runs_too() -> None:
    """Chameleon-30B's order of norms, and its per-shard norms of queries and keys."""
    made = Chameleon.from_model(build(swin_norm=True, model_parallel_size=2), words())
    assert made.target.capabilities.way == "ModuleForward"


def test_codes_count_in_the_order_of_the_ids() -> None:
    """The vocabulary map's names say which code an id stands for, and the codec follows them."""
    made = family()
    assert made.marks.offset == 4 and made.marks.order[:3] == (3, 8, 13)
    assert torch.equal(made.codec.codebook[1], original().codebook[8])
    grid = torch.arange(9).view(3, 3)
    layout = made.layout()
    tokens = [*(grid + 4).flatten().tolist(), *ids("<eoss>")]
    assert torch.equal(layout.grid(tokens), grid)
    order = torch.tensor(made.marks.order)
    assert torch.equal(made.codec.decode(grid), original().decode(order[grid]))
    pixels = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(order[made.codec.encode(pixels)], original().encode(pixels))
    own = model().model.vocabulary_mapping
    assert [own.bpe2img[token] for token in range(4, 4 + CODES)] == list(made.marks.order)


def test_ids_are_as_released_where_the_map_is_silent() -> None:
    """The defaults are the released ids; named ones win; picture ids must be a range of all codes."""
    released = Marks.of(None, 8192)
    assert (released.offset, released.begin, released.end, released.row_end) == (4, 8197, 8196, 8803)
    assert (released.sizes, released.turn, released.order[-1]) == (8804, 8710, 8191)
    assert Marks.of({"<eoss>": 7}, 8).end == 7
    assert Chameleon.from_model(build(bare=True, vocab_size=8820), words()).marks.begin == 8197
    with pytest.raises(UnsupportedError, match="one range"):
        Marks.of({"IMGIMGAZ": 4, "IMGIMGBZ": 6}, 2)
    with pytest.raises(UnsupportedError, match="one range"):
        Marks.of({"IMGIMGAZ": 4}, 2)
    with pytest.raises(UnsupportedError, match="names no code"):
        Marks.of({"IMGIMGX": 4}, 1)


def test_without_a_decoder_pictures_are_read_and_not_drawn() -> None:
    """transformers' tokenizer encodes; the message says where the decoder is, and tokens are returned."""
    made = Chameleon.from_model(model(), words())
    vqmodel = model().model.vqmodel
    pixels = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model().model.get_image_tokens(pixels[None] * 2 - 1).view(3, 3)
    assert torch.equal(made.codec.encode(pixels) + 4, expected)
    assert len(vqmodel.quantize.embedding.weight) == made.codec.cardinality
    result = ms.Generator(made.target).generate(made.prompt("a dog"), drafter="prompt_lookup")
    assert len(result.tokens) == SIDE * SIDE + 1
    with pytest.raises(UnsupportedError, match=r"vqgan\.ckpt"):
        made.codec.decode(made.layout().grid(result.tokens.tolist()))
    with pytest.raises(UsageError, match="multiples of 2"):
        made.codec.encode(pixels[:, :5])
    with pytest.raises(UsageError, match="must lie in"):
        made.codec.decode(torch.full((1, 1), CODES))


def test_a_picture_may_stand_in_the_prompt() -> None:
    """Pixels given beside the ids are what their own codes in the prompt are."""
    made = family()
    pixels = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        codes = model().model.get_image_tokens(pixels[None] * 2 - 1)[0]
    front, back = ids("<s>", "<racm3:break>"), ids("<eoss>", "<racm3:break>")
    spelled = ms.Prompt(ids=torch.tensor([*front, *codes.tolist(), *back]), spec=made.layout().spec)
    given = {"pixel_values": pixels[None] * 2 - 1}
    blank = replace(
        spelled, ids=torch.tensor([*front, *ids("<image>") * len(codes), *back]), conditioning=given
    )
    found = [pictures.symbols(made.target, [one], None)[0].tokens.tolist() for one in (spelled, blank)]
    assert found[0] == found[1]


def test_a_guided_batch_through_the_front_door() -> None:
    """Two sizes in one batch of Lumina, with pixels at the end."""
    made = family("lumina")
    prompts = [guided(made, made.prompt("a dog", (4, 8))), guided(made, made.prompt("a red cat", (8, 4)))]
    results = ms.Generator(made.target).generate(prompts)
    for prompt, result, shape in zip(prompts, results, [(3, 4, 8), (3, 8, 4)], strict=True):
        grid = made.layout_of(prompt).grid(result.tokens.tolist())
        assert made.codec.decode(grid).shape == shape and not result.report.notes


def test_what_it_cannot_do_is_refused() -> None:
    """Sizes, captions, styles, prompts of another kind, tokenizers of another model."""
    with pytest.raises(UsageError, match="pictures of 6 x 6 pixels and no others"):
        family().layout((8, 8))
    with pytest.raises(UsageError, match="takes 111 symbols"):
        Chameleon.from_model(build(max_position_embeddings=100), words(), style="lumina", image_size=20)
    for size in ((6, 8), (0, 4), (24, 4)):
        with pytest.raises(UsageError, match="sides of 4, 8"):
            family("lumina").layout(size)
    for caption in ("", "  ", "§§"):
        with pytest.raises(PromptError):
            family("lumina").prompt(caption)
    with pytest.raises(PromptError, match="control symbol"):
        family().prompt("a <eoss>")
    with pytest.raises(UnknownNameError, match="lumina"):
        Chameleon.from_model(model(), words(), style="lumia")
    with pytest.raises(UsageError, match="ends with"):
        family("lumina").layout_of(family().prompt("a dog"))
    with pytest.raises(ModelLoadError, match="16 picture codes"):
        Chameleon.from_model(model(), words(), vqgan=VQGAN.of(vqgans.state(codes=8)))
    with torch.device("meta"):
        hollow = ChameleonForConditionalGeneration(model().config)
    with pytest.raises(ModelLoadError, match="no weights"):
        Chameleon.from_model(hollow, words())


def test_lumina_is_known_by_its_name_or_its_trainer() -> None:
    """The style and the size that a checkpoint was trained for."""
    plain = build()
    assert Chameleon.from_model(plain, words()).style == "chameleon"
    plain.config.z_loss_weight = 1e-5
    assert Chameleon.from_model(plain, words(), image_size=8).style == "lumina"
    named = build()
    named.config._name_or_path = "somebody/Lumina-mGPT-7B-768"
    with pytest.raises(UsageError, match="768 x 768"):  # more squares than this tiny vocabulary has sizes
        Chameleon.from_model(named, words())


def saved(folder: Path) -> Path:
    """A checkpoint folder as transformers writes it."""
    build().save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("place", ["vqgan.ckpt", "tokenizer/vqgan.ckpt", "model.safetensors", "argument"])
def test_decoders_are_found(tmp_path: Path, place: str) -> None:
    """Beside the model in the original layout, among its own weights as in ports, or by name."""
    folder = saved(tmp_path / "model")
    option: Path | None = None
    state = vqgans.state(codes=CODES)
    if place == "model.safetensors":
        weights = load_file(folder / place) | {
            f"model.vqmodel.{name}": value for name, value in state.items()
        }
        save_file(weights, folder / place, metadata={"format": "pt"})
    else:
        path = tmp_path / "pictures.ckpt" if place == "argument" else folder / place
        path.parent.mkdir(exist_ok=True)
        torch.save({"state_dict": state}, path)
        option = path if place == "argument" else None
    made = chameleon.load(folder, device="cpu", vqgan=option)
    grid = torch.arange(9).view(3, 3)
    torch.testing.assert_close(made.codec.decode(grid), family().codec.decode(grid))
    if place == "model.safetensors":
        draw = [pictures.symbols(one.target, [one.prompt("a dog")], None) for one in (made, family())]
        assert pictures.tokens(draw[0]) == pictures.tokens(draw[1])


def test_loading_says_what_is_missing(tmp_path: Path) -> None:
    """A folder without a decoder loads; one without an encoder, a weight, or a whole file does not."""
    folder = saved(tmp_path)
    made = chameleon.load(folder, device="cpu", dtype=torch.float64)
    assert made.target.begin([made.prompt("i")], [99], 1).prefill().logits[0].dtype == torch.float64
    with pytest.warns(OutputWarning, match="no decoder"):
        result = ms.load(folder, device="cpu").generate("a dog")
    assert result.output is None and len(result.tokens) == SIDE * SIDE + 1
    path = folder / "model.safetensors"
    whole = load_file(path)
    save_file({n: v for n, v in whole.items() if "vqmodel" not in n}, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="vqmodel"):
        chameleon.load(folder, device="cpu")
    torch.save(vqgans.state(codes=CODES), folder / "vqgan.pt")
    assert chameleon.load(folder, device="cpu").codec.cardinality == CODES
    save_file({n: v for n, v in whole.items() if n != "model.norm.weight"}, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight"):
        chameleon.load(folder, device="cpu")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ModelLoadError, match="cannot be read"):
        chameleon.load(folder, device="cpu")
    (folder / "vqgan.pt").unlink()
    with pytest.raises(ModelLoadError, match="cut short"):
        chameleon.load(folder, device="cpu")


def test_a_tokenizer_is_needed(tmp_path: Path) -> None:
    """A folder with weights alone."""
    build().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="The tokenizer of the picture model cannot be read"):
        chameleon.load(tmp_path, device="cpu")
