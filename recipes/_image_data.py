"""Pictures of the image demo: emoji on white, copies in other colours, shifts, contact sheets."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from recipes._image_captions import COLOUR_WORDS, COLOURS, DEMO, PAINTABLE, UNSEEN, captions, recoloured

SIDE = 64
HELD_OUT_EVERY = 24  # of the pictures that are neither painted nor shown in the demo
Pixels = NDArray[np.uint8]  # [H, W, 3], or [N, H, W, 3]

# Hue in degrees, factors of saturation and of value.
PAINTS = {
    "red": (2, 1.0, 1.0),
    "orange": (28, 1.0, 1.05),
    "yellow": (48, 1.0, 1.1),
    "green": (120, 0.85, 0.9),
    "blue": (212, 1.0, 1.0),
    "purple": (278, 0.9, 0.95),
    "pink": (334, 0.65, 1.1),
}
# Where a mirror image would make the caption false or the picture wrong.
ONE_WAY = frozenset(
    "left right clock number digit letter sign button book bills atm abc abacus keyboard".split()
)


@dataclass(frozen=True)
class Picture:
    """One picture `[H, W, 3]` with the ways to say what it shows."""

    name: str
    captions: tuple[str, ...]
    pixels: Pixels
    kind: str = "original"  # or "recoloured"
    held_out: bool = False

    @property
    def mirrors(self) -> bool:
        """Whether the captions stay true in a mirror."""
        return ONE_WAY.isdisjoint(self.captions[0].split())


def on_white(path: Path, side: int = SIDE) -> Pixels:
    """A transparent PNG on a white ground `[side, side, 3]`."""
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(ground, rgba).convert("RGB")
    return np.asarray(flat.resize((side, side), Image.Resampling.BOX))


@dataclass(frozen=True)
class Hue:
    """The main hue of a picture: in degrees, and how much of the picture has it."""

    degrees: float
    purity: float  # of the coloured pixels
    cover: float  # of the pixels that are not white
    value: float  # median brightness


def _hsv(pixels: Pixels) -> NDArray[np.float32]:
    values = np.asarray(Image.fromarray(pixels).convert("HSV"), dtype=np.float32)
    return values / np.float32(255)


def _distance(hue: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Degrees between a hue of 0..1 and one in degrees."""
    turn: NDArray[np.float32] = np.abs(hue * 360 - degrees) % 360
    return np.minimum(turn, 360 - turn)


def main_hue(pixels: Pixels) -> Hue:
    """The main hue of a picture `[H, W, 3]`."""
    hue, saturation, value = np.moveaxis(_hsv(pixels), -1, 0)
    coloured = (saturation > 0.25) & (value > 0.2)
    if not coloured.any():
        return Hue(0.0, 0.0, 0.0, 0.0)
    counts = [(_distance(hue[coloured], d) < 25).mean() for d in range(0, 360, 5)]
    peak = 5.0 * int(np.argmax(counts))
    near = hue[coloured][_distance(hue[coloured], peak) < 25]
    degrees = (peak + float(((near * 360 - peak + 180) % 360 - 180).mean())) % 360
    painted = coloured & (_distance(hue, degrees) < 40)
    shape = (saturation > 0.08) | (value < 0.92)
    purity = painted.sum() / coloured.sum()
    return Hue(degrees, float(purity), float(painted.sum() / shape.sum()), float(np.median(value[painted])))


def paint(pixels: Pixels, colour: str) -> Pixels:
    """The picture with its main hue turned into a colour; other hues, white and gray stay."""
    hsv, main = _hsv(pixels), main_hue(pixels)
    degrees, saturation, value = PAINTS[colour]
    near = _distance(hsv[..., 0], main.degrees) < 40
    turned = np.stack(
        [
            (hsv[..., 0] + (degrees - main.degrees) / 360) % 1,
            np.clip(hsv[..., 1] * saturation, 0, 1),
            np.where(hsv[..., 1] > 0.2, np.clip(hsv[..., 2] * value, 0, 1), hsv[..., 2]),
        ],
        -1,
    )
    mixed = np.where(near[..., None], turned, hsv)
    return np.asarray(Image.fromarray((mixed * 255).round().astype(np.uint8), "HSV").convert("RGB"))


def colour_of(pixels: Pixels) -> str | None:
    """The word for the main colour of a picture; None where people may not agree on it."""
    main = main_hue(pixels)
    hue = np.asarray(main.degrees / 360, dtype=np.float32)
    far = {colour: float(_distance(hue, degrees)) for colour, (degrees, _, _) in PAINTS.items()}
    nearest = min(far, key=lambda colour: far[colour])
    return nearest if far[nearest] < 7.5 and main.value > 0.75 else None


def _original(path: Path, said: tuple[str, ...]) -> Picture:
    pixels = on_white(path)
    colour = colour_of(pixels) if said[0] in PAINTABLE else None
    if colour and COLOUR_WORDS.isdisjoint(said[0].split()):
        own = recoloured(said[0], colour)
        said = said if own in UNSEEN else (*said, own)
    protected = said[0] in PAINTABLE or not set(said).isdisjoint(DEMO)
    held_out = not protected and zlib.crc32(said[0].encode()) % HELD_OUT_EVERY == 0
    return Picture(path.stem, said, pixels, held_out=held_out)


def copies(picture: Picture) -> list[Picture]:
    """Copies of a paintable picture in the colours that it does not have, but for the unseen ones."""
    if picture.captions[0] not in PAINTABLE:
        return []
    own = colour_of(picture.pixels)
    found = []
    for colour in COLOURS:
        caption = recoloured(picture.captions[0], colour)
        if colour != own and caption not in UNSEEN and caption not in picture.captions:
            painted = paint(picture.pixels, colour)
            found.append(Picture(f"{picture.name}-{colour}", (caption,), painted, "recoloured"))
    return found


def load_pictures(root: Path, limit: int | None = None) -> list[Picture]:
    """The curated pictures with their captions, then the copies in other colours.

    `limit` caps the originals (for a smoke run).
    """
    rows = [line.split("\t") for line in (root / "captions.tsv").read_text("utf-8").splitlines()[1:]]
    named = [
        (root / file, captions(file.removeprefix("emoji_u").removesuffix(".png"), name))
        for file, name in rows
    ]
    kept = [(path, said) for path, said in named if said]
    step = max(1, len(kept) // limit) if limit else 1
    originals = [_original(path, ways) for path, ways in kept[::step]]
    return originals + [copy for picture in originals for copy in copies(picture)]


def shifted(pixels: Pixels, down: int, right: int) -> Pixels:
    """The picture moved on its white ground."""
    padded = np.pad(pixels, ((8, 8), (8, 8), (0, 0)), constant_values=255)
    side = pixels.shape[0]
    return padded[8 - down : 8 - down + side, 8 - right : 8 - right + side]


def views(picture: Picture, count: int, seed: int, reach: int = 2) -> list[Pixels]:
    """The picture as it is, then moved by up to `reach` pixels and mirrored where that is true."""
    rng = np.random.default_rng((seed, zlib.crc32(picture.name.encode())))
    found = [picture.pixels]
    while len(found) < count:
        moved = shifted(picture.pixels, *rng.integers(-reach, reach + 1, 2).tolist())
        found.append(moved[:, ::-1] if picture.mirrors and rng.random() < 0.5 else moved)
    return found


def contact_sheet(
    pictures: Sequence[Pixels], labels: Sequence[str], columns: int = 8, zoom: int = 2
) -> Image.Image:
    """Pictures in rows, each above its label."""
    cell = SIDE * zoom + 8
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + 12)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = i % columns * cell, i // columns * (cell + 12)
        side = SIDE * zoom
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (x + 4, y))
        draw.text((x + 4, y + side), label[: cell // 6], fill="black")
    return sheet
