"""The image recipe runs from pictures to exported folders, and its captions and codes are what they claim."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image, ImageDraw
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import _image_data as data
from recipes import _image_models as ar
from recipes import _image_tokenizer as vq
from recipes._image_captions import DEMO, PAINTABLE, UNSEEN, captions, shortened
from recipes._text_trainer import thread_pool
from recipes.train_image import Settings, llama, smoke

RECIPE = Path(__file__).parents[2] / "recipes" / "train_image.py"
NAMES = {
    "2764": "heavy black heart",
    "1f534": "large red circle",
    "1f431": "cat face",
    "1f34e": "red apple",
    "1f4d5": "closed book",
    "1f427": "penguin",  # held out
    "1f355": "slice of pizza",
    "0023": "number sign",  # left out
}


def _draw(folder: Path) -> None:
    folder.mkdir()
    lines = ["file\tcaption"]
    for i, (code, name) in enumerate(NAMES.items()):
        image = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
        ImageDraw.Draw(image).ellipse((10, 10 + 4 * i, 118, 118), fill=(220, 40 + 8 * i, 30, 255))
        image.save(folder / f"emoji_u{code}.png")
        lines.append(f"emoji_u{code}.png\t{name}")
    (folder / "captions.tsv").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the one of the emoji, with eight ellipses."""
    folder = tmp_path_factory.mktemp("emoji") / "png"
    _draw(folder)
    return folder


def _run(pictures: Path, root: Path) -> None:
    command = [sys.executable, str(RECIPE), "--smoke", f"--pictures={pictures}"]
    command += [f"--out={root / 'run'}", f"--export={root / 'export'}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, at sizes that take seconds."""
    root = tmp_path_factory.mktemp("training")
    _run(pictures, root)
    return root


def test_the_folders_belong_together(trained: Path) -> None:
    """Target and draft are ordinary Llamas that say where the codes lie; the draft is smaller."""
    models = [AutoModelForCausalLM.from_pretrained(trained / "export" / name) for name in ("target", "draft")]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert sizes[1] < sizes[0]
    tokenizer = AutoTokenizer.from_pretrained(trained / "export" / "target")
    codebook = VQModel.from_pretrained(trained / "export" / "vq").quantize.embedding.weight
    for model in models:
        own = model.config.multispec
        assert own["codes"] == {"offset": len(tokenizer), "size": len(codebook)}
        assert model.config.vocab_size == len(tokenizer) + len(codebook)
        assert own["begin_of_image"] == tokenizer.convert_tokens_to_ids("<boi>")


def test_a_caption_is_framed_and_any_text_is_taken(trained: Path) -> None:
    """bos, words, boi; capitals and unknown scripts are no problem."""
    tokenizer = AutoTokenizer.from_pretrained(trained / "export" / "target")
    names = tokenizer.convert_ids_to_tokens(tokenizer("Red Heart")["input_ids"])
    assert (names[0], names[-1]) == ("<bos>", "<boi>")
    assert tokenizer("red heart")["input_ids"] == tokenizer(" Red HEART ")["input_ids"]
    bare = tokenizer("ежик!", add_special_tokens=False)["input_ids"]
    assert str(tokenizer.decode(bare)).strip() == "ежик!"
    assert len(tokenizer("")["input_ids"]) == 2


def test_the_folder_decodes_codes_by_itself(trained: Path) -> None:
    """Codes become the picture that the recipe makes of them, through nothing but diffusers."""
    model: Any = VQModel.from_pretrained(trained / "export" / "vq")
    codes = torch.randint(16, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), thread_pool(1) as pool:
        vectors = model.quantize.embedding.weight[codes].movedim(-1, 1)
        plain = model.decode(vectors, force_not_quantize=True).sample
        assert plain.shape == (2, 3, 64, 64)
        found = vq.decode(model, codes, pool).astype(int)
    assert np.abs(found - vq.as_pixels(plain)).max() <= 1


def test_the_report_says_how_good_it_is(trained: Path) -> None:
    """Figures of tokenizer, target and draft, and sheets to look at."""
    report = json.loads((trained / "run" / "report.json").read_text("utf-8"))
    assert report["tokenizer"]["codes"] == 16
    assert 0 < report["tokenizer"]["perplexity"] <= 16
    assert 0 < report["drawn"]["acceptance_at_1.0"] <= 1
    assert report["held_out"]["target_nats_per_code"] > 0
    assert (trained / "run" / "demo.png").exists()


def test_what_is_finished_is_not_done_again(trained: Path, pictures: Path) -> None:
    """A second run finds everything, and gives the same report."""
    before = {name: (trained / "run" / name).read_bytes() for name in ("codes.npz", "report.json")}
    _run(pictures, trained)
    assert before == {name: (trained / "run" / name).read_bytes() for name in before}


def test_pictures_are_chosen_and_painted(pictures: Path) -> None:
    """The number sign is left out, copies have true colours, and unseen pairs are never painted."""
    found = data.load_pictures(pictures)
    said = {caption for picture in found for caption in picture.captions}
    assert {"red heart", "blue heart", "cat face", "pizza", "green book"} <= said
    assert not any("number" in caption for caption in said)
    assert said.isdisjoint(UNSEEN)
    blue = next(picture for picture in found if picture.captions == ("blue heart",))
    assert blue.pixels[32, 32].argmax() == 2
    assert (blue.pixels[0, 0] == 255).all()
    assert [picture.captions[0] for picture in found if picture.held_out] == ["penguin"]


def test_captions_are_what_people_say() -> None:
    """Rules for people, tables for things, and nothing for skin tones."""
    assert captions("2764", "heavy black heart") == ("red heart",)
    assert captions("1f469_200d_1f680", "woman rocket") == ("woman astronaut",)
    assert captions("1f9dc_200d_2642", "merperson male sign") == ("merman",)
    assert captions("1f44d_1f3fb", "thumbs up sign") == ()
    assert shortened("pink heart with an arrow") == "pink heart"
    assert len(set(DEMO)) == 32 and set(UNSEEN) < set(DEMO) and PAINTABLE.isdisjoint(UNSEEN)


def test_a_moved_picture_keeps_its_ground() -> None:
    """What comes in from the edge is white, and what moves stays itself."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    moved = data.shifted(pixels, 2, -1)
    assert (moved[:2] == 255).all() and (moved[:, -1] == 255).all() and (moved[2:, :-1] == 0).all()


def test_white_ground_has_a_code_of_its_own() -> None:
    """Code 0 where a cell is all white, and nowhere else."""
    images = torch.ones(1, 3, 64, 64)
    images[:, :, 8:12, 4:8] = 0.5
    white = vq.white_cells(images)
    assert white.sum() == 255 and not white[0, 2, 1]
    codes = vq.assign(torch.full((1, 16, 16, 4), 2.0), torch.full((3, 4), 2.0), white)
    assert codes[0, 2, 1] > 0 and (codes == 0).sum() == 255


def test_merging_keeps_the_rare_and_joins_the_close() -> None:
    """Two close pairs become two codes; the lonely rare one stays."""
    vectors = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.0, 5.1], [-9.0, 9.0]])
    merged = vq.merge(vectors, torch.tensor([50, 50, 40, 40, 1]), 3)
    expected = torch.tensor([[0.05, 0.0], [5.0, 5.05], [-9.0, 9.0]])
    assert torch.allclose(merged, expected, atol=1e-6)


def test_k_means_uses_every_centre() -> None:
    """Four clusters, four centres, wherever it starts."""
    rng = torch.Generator().manual_seed(3)
    corners = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0]])
    points = corners.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=rng)
    found = vq.k_means(points, 4, 12, seed=0)
    assert torch.cdist(corners, found).min(1).values.max() < 0.2


def test_usage_counts_codes() -> None:
    """Four codes, two of them used alike."""
    found = vq.usage(torch.tensor([[[0, 0], [3, 3]]]), 4)
    assert found["codes_used"] == 2
    assert found["perplexity"] == pytest.approx(2.0)
    assert found["white_share"] == 0.5


def test_reading_a_drawing_gives_the_states_of_drawing_it() -> None:
    """Padding left or right, with a cache or without: the same states for both branches."""
    tokenizer = ar.caption_tokenizer(["red heart", "a green apple with a hat"], 270)
    vocabulary = ar.Vocabulary.of(tokenizer, 8)
    model: Any = llama(smoke(Settings(device="cpu")), "target", vocabulary).eval()
    torch.nn.init.normal_(model.model.layers[0].self_attn.o_proj.weight)
    prompts = [tokenizer(words)["input_ids"] for words in ("red heart", "a green apple with a hat")]
    drawn = ar.draw(model, prompts, vocabulary, 12, 2.0, torch.tensor([1.0, 0.5]), seed=0)
    assert drawn.codes.shape == (2, 12) and int(drawn.codes.max()) < 8
    read = ar.reread(model, prompts, drawn.codes, vocabulary)
    assert torch.allclose(read.hidden.float(), drawn.hidden.float(), atol=2e-2)


def test_corruption_changes_at_most_its_share() -> None:
    """None at zero; about half of the rate's range on average."""
    torch.manual_seed(0)
    codes, table = torch.zeros(64, 256, dtype=torch.long), torch.ones(4, 256, dtype=torch.long)
    assert int(ar.corrupted(codes, table, 0.0).sum()) == 0
    share = ar.corrupted(codes, table, 0.5).double().mean(1)
    assert float(share.max()) < 0.6 and 0.2 < float(share.mean()) < 0.3
