"""Looking at what was drawn and how: contact sheets, heat maps of acceptance, animations, previews."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.console import Console
from rich.live import Live
from rich.style import Style
from rich.text import Text

from multispec.errors import UsageError
from multispec.modalities.layout import Layout
from multispec.stream import Generation

Colour = tuple[int, int, int]
PAPER: Colour = (252, 251, 249)
INK: Colour = (38, 38, 40)
FAINT: Colour = (128, 126, 122)
BAR: Colour = (224, 221, 216)
# Anchors of viridis (van der Walt and Smith 2015), which grows evenly in lightness.
SCALE: tuple[Colour, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_TINT = 0.72
_MARGIN = 14
_BODY = 352  # pixels of the longer side of a heat map, where that leaves room for each code


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at ``side`` at least, by a whole factor: pixels stay pixels."""
    factor = max(math.ceil(side / max(picture.size)), 1)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """The picture inside a square: small ones enlarged by a whole factor, large ones reduced."""
    factor = side // max(picture.size)
    if factor >= 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return ImageOps.contain(picture, (side, side))


def _lines(
    text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int = 2
) -> list[str]:
    """Words on lines of at most ``width`` pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        lines.append(" ".join(words[:count]))
        words = words[count:]
    cut = bool(words)
    for place, line in enumerate(lines):
        ends = "…" if cut and place == len(lines) - 1 else ""
        if font.getlength(line + ends) > width:
            ends = "…"
        while line and font.getlength(line + ends) > width:
            line = line[:-1]
        lines[place] = line.rstrip() + ends
    return lines


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    side: int = 192,
) -> Image.Image:
    """Pictures side by side, each in a square of ``side`` pixels above its caption.

    Captions are those that the pictures know unless they are given. Pictures of different sizes may
    be mixed. As square as it goes without ``columns``.

    Raises:
        UsageError: no pictures, another number of captions, no columns or no room.
    """
    if not len(pictures) or (columns is not None and columns < 1) or side < 8:
        raise UsageError(
            "A contact sheet needs one picture, one column and 8 pixels a side at least: got "
            f"{len(pictures)} pictures, columns={columns}, side={side}."
        )
    words = [str(one.info.get("caption", "")) for one in pictures] if captions is None else list(captions)
    if len(words) != len(pictures):
        raise UsageError(f"Each picture has one caption: got {len(words)} for {len(pictures)} pictures.")
    font = _font(13)
    texts = [_lines(one, side, font) for one in words]
    across = columns or math.ceil(math.sqrt(len(pictures)))
    below = 6 + 17 * max(map(len, texts))
    rows = math.ceil(len(pictures) / across)
    across = min(across, len(pictures))
    wide, high = side + _MARGIN, side + below + _MARGIN
    sheet = Image.new("RGB", (across * wide + _MARGIN, rows * high + _MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
        left, top = _MARGIN + place % across * wide, _MARGIN + place // across * high
        _paste(sheet, _fitted(picture.convert("RGB"), side), left, top, side)
        for number, line in enumerate(lines):
            draw.text((left + side / 2, top + side + 6 + 17 * number), line, INK, font, anchor="ma")
    return sheet


def _paste(sheet: Image.Image, shown: Image.Image, left: int, top: int, side: int) -> None:
    """Put a picture into the middle of a square, with a line around it."""
    x, y = left + (side - shown.width) // 2, top + (side - shown.height) // 2
    sheet.paste(shown, (x, y))
    ImageDraw.Draw(sheet).rectangle((x - 1, y - 1, x + shown.width, y + shown.height), outline=BAR)


@dataclass(frozen=True)
class Cell:
    """How one code came about: whether it was ``drafted``, in which round, and how many symbols that gave."""

    drafted: bool
    round: int
    together: int


def rounds_of(from_draft: Sequence[bool]) -> list[Cell]:
    """How each symbol came about: a round is accepted drafts, then one symbol of the target's own.

    >>> [(one.round, one.together) for one in rounds_of([False, True, True, False])]
    [(0, 1), (1, 3), (1, 3), (1, 3)]
    """
    cells: list[Cell] = []
    start = number = 0
    for place, drafted in enumerate(from_draft):
        # The last round may have been cut where the picture was full.
        if not drafted or place == len(from_draft) - 1:
            count = place + 1 - start
            cells += [Cell(flag, number, count) for flag in from_draft[start : place + 1]]
            start, number = place + 1, number + 1
    return cells


def _drawn_by(result: Generation) -> tuple[Image.Image, Layout, dict[tuple[int, int], Cell]]:
    """The picture of a result, its layout, and how each of its codes came about.

    Raises:
        UsageError: a result without a picture.
    """
    picture = result.output
    layout = picture.info.get("layout") if isinstance(picture, Image.Image) else None
    if not isinstance(picture, Image.Image) or not isinstance(layout, Layout):
        raise UsageError(
            f"Only the result of an image generator shows where its symbols came from: got an output of type "
            f"{type(picture).__name__}. Pass what generate returned."
        )
    cells = enumerate(rounds_of(result.from_draft))
    return picture, layout, {at: cell for n, cell in cells if (at := layout.coordinates(n)) is not None}


def acceptance_by_row(result: Generation) -> list[float]:
    """Of each row of codes that was finished or begun, the share that was drafted and accepted.

    Rows that the prompt gave are left out.

    Raises:
        UsageError: a result without a picture.
    """
    _, _, cells = _drawn_by(result)
    return list(_shares(cells).values())


def _shares(cells: Mapping[tuple[int, int], Cell]) -> dict[int, float]:
    rows: dict[int, list[bool]] = {}
    for (row, _), cell in cells.items():
        rows.setdefault(row, []).append(cell.drafted)
    return {row: sum(drafted) / len(drafted) for row, drafted in rows.items()}


def colour_at(share: float) -> Colour:
    """The colour of ``SCALE`` at a share in [0, 1]."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(place), len(SCALE) - 2)
    first, second = SCALE[low], SCALE[low + 1]
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def heat_map(result: Generation) -> Image.Image:
    """The picture in grey with every accepted code in colour, and the acceptance of each row beside it.

    The colour says how many symbols the round gave that a code came from. What the target chose itself
    has a ring and no colour.

    Raises:
        UsageError: a result without a picture.
    """
    picture, layout, cells = _drawn_by(result)
    return _HeatMap(layout, cells).draw(picture, _title(result))


def _title(result: Generation) -> tuple[str, str]:
    report, words = result.report, str(result.output.info.get("caption", ""))
    return words, f"{report.new_tokens} symbols in {report.target_calls} target calls"


class _HeatMap:
    """The sheet: a title, the picture with bars beside it, a legend. Sizes in pixels."""

    _TOP, _LEGEND, _CHART = 52, 52, 190

    def __init__(self, layout: Layout, cells: dict[tuple[int, int], Cell]) -> None:
        self._cells = cells
        self._cell = min(max(_BODY // max(layout.height, layout.width), 7), 64)
        self._size = (layout.width * self._cell, layout.height * self._cell)
        self._longest = max((cell.together for cell in cells.values()), default=1)
        self._ring = min(max(self._cell // 7, 1), 4)

    def draw(self, picture: Image.Image, title: tuple[str, str]) -> Image.Image:
        """The whole sheet."""
        wide, high = max(self._size[0], _BODY - 60), self._size[1]
        size = (_MARGIN * 3 + wide + self._CHART, self._TOP + high + self._LEGEND + _MARGIN)
        sheet = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(sheet)
        sheet.paste(self._overlaid(picture), (_MARGIN, self._TOP))
        for line in _lines(title[0], wide, _font(14), 1):
            draw.text((_MARGIN, 10), line, INK, _font(14))
        draw.text((_MARGIN, 30), title[1], FAINT, _font(13))
        self._bars(draw, _MARGIN * 2 + wide)
        self._legend(draw, self._TOP + high + 12)
        return sheet

    def _overlaid(self, picture: Image.Image) -> Image.Image:
        grey = picture.convert("L").convert("RGB").resize(self._size, Image.Resampling.NEAREST)
        tint, mask = Image.new("RGB", self._size), Image.new("L", self._size)
        colours, where = ImageDraw.Draw(tint), ImageDraw.Draw(mask)
        for at, cell in self._cells.items():
            if cell.drafted:
                colours.rectangle(self._box(at), fill=self._colour(cell))
                where.rectangle(self._box(at), fill=round(255 * _TINT))
        grey.paste(tint, (0, 0), mask)
        draw = ImageDraw.Draw(grey)
        for (row, column), cell in self._cells.items():
            if not cell.drafted:
                self._mark(draw, int((column + 0.5) * self._cell), int((row + 0.5) * self._cell))
        return grey

    def _colour(self, cell: Cell) -> Colour:
        # The shortest round with an accepted code gives two symbols.
        return colour_at((cell.together - 2) / max(self._longest - 2, 1))

    def _box(self, at: tuple[int, int]) -> tuple[int, int, int, int]:
        row, column = at
        left, top = column * self._cell, row * self._cell
        return left, top, left + self._cell - 1, top + self._cell - 1

    def _mark(self, draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
        """A ring that is seen on light and on dark ground."""
        for radius, colour in ((self._ring, PAPER), (self._ring - 1, INK)):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)

    def _bars(self, draw: ImageDraw.ImageDraw, left: int) -> None:
        room, gap = self._CHART - 44, max(self._cell // 6, 1)
        draw.text((left, 30), "accepted, by row", FAINT, _font(13))
        every = math.ceil(15 / self._cell)  # numbers that do not touch each other
        for row, share in _shares(self._cells).items():
            top = self._TOP + row * self._cell
            low, high = top + gap, max(top + self._cell - 1 - gap, top + gap)
            draw.rectangle((left, low, left + room, high), fill=BAR)
            if share > 0:
                draw.rectangle((left, low, left + round(room * share), high), fill=SCALE[2])
            if row % every == 0:
                middle = top + self._cell // 2
                draw.text((left + self._CHART, middle), f"{share:.0%}", INK, _font(12), anchor="rm")

    def _legend(self, draw: ImageDraw.ImageDraw, top: int) -> None:
        width, left = 120, _MARGIN
        if self._longest > 1:
            for x in range(width):
                draw.line((left + x, top, left + x, top + 10), fill=colour_at(x / (width - 1)))
            draw.text((left, top + 16), f"2 to {self._longest} symbols in its round", FAINT, _font(12))
            left += width + 70
        self._mark(draw, left + 4, top + 5)
        draw.text((left + 14, top - 2), "the target's own choice", FAINT, _font(12))


def animate(
    frames: Sequence[Image.Image],
    path: str | Path,
    *,
    milliseconds: int = 90,
    hold: int = 1600,
    side: int = 256,
) -> Path:
    """Write partial pictures as a GIF that shows the last of them for ``hold`` milliseconds.

    Small pictures are enlarged to ``side`` pixels by a whole factor.

    Raises:
        UsageError: no frames, a frame without duration, or a name that does not end in .gif.
    """
    target = Path(path)
    if not frames or milliseconds < 20 or hold < 20 or target.suffix.lower() != ".gif":
        raise UsageError(
            "An animation is a .gif of one frame at least, each shown for 20 milliseconds or more: got "
            f"{target.name!r}, {len(frames)} frames, {milliseconds} and {hold} milliseconds."
        )
    shown = [enlarged(frame.convert("RGB"), side) for frame in frames]
    # One palette for all: with one each, grounds flicker between almost equal colours.
    palette = _palette(shown)
    painted = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in shown]
    durations = [milliseconds] * (len(painted) - 1) + [hold]
    painted[0].save(target, save_all=True, append_images=painted[1:], duration=durations, loop=0)
    return target


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """Of a few frames spread over all, the last among them."""
    chosen = frames[:: -max(len(frames) // 6, 1)]
    high = max(frame.height for frame in chosen)
    strip = Image.new("RGB", (sum(frame.width for frame in chosen), high), PAPER)
    left = 0
    for frame in chosen:
        strip.paste(frame, (left, 0))
        left += frame.width
    return strip.quantize(colors=256)


def half_blocks(picture: Image.Image, columns: int, lines: int) -> Text:
    """The picture in ``columns`` by ``lines`` characters at most: two pixels in each, one above the other.

    Raises:
        UsageError: no room.
    """
    if columns < 1 or lines < 1:
        raise UsageError(f"A preview needs one column and one line at least: got {columns} x {lines}.")
    scale = min(columns / picture.width, 2 * lines / picture.height)
    wide = max(round(picture.width * scale), 1)
    high = max(round(picture.height * scale / 2), 1) * 2
    small = picture.convert("RGB").resize((wide, high), Image.Resampling.BOX)
    pixels = [[_hex(small.getpixel((x, y))) for x in range(wide)] for y in range(high)]
    text = Text(no_wrap=True, end="")
    for number, (upper, lower) in enumerate(zip(pixels[::2], pixels[1::2], strict=True)):
        if number:
            text.append("\n")
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=above, bgcolor=below))
    return text


def _hex(pixel: object) -> str:
    if not isinstance(pixel, tuple):
        raise TypeError("a pixel of an RGB picture is a triple")
    return "#{:02x}{:02x}{:02x}".format(*pixel)


class Preview:
    """Pictures in the terminal while they are being drawn, as large as the terminal allows.

    >>> with Preview(Console()) as preview:                                    # doctest: +SKIP
    ...     preview.show([partial_picture])
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Preview:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, pictures: Sequence[Image.Image], line: str = "") -> None:
        """Put these pictures side by side, with a line of words beneath."""
        if not pictures:
            return
        width, height = self._console.size
        columns, lines = max(width - 1, 1), max(height - 3, 1)
        text = half_blocks(_strip(pictures, columns / (2 * lines)), columns, lines)
        if line:
            text.append("\n" + line)
        self._live.update(text, refresh=True)


def _strip(pictures: Sequence[Image.Image], shape: float) -> Image.Image:
    """Pictures in rows, as large as they can be on a ground that is ``shape`` times as wide as high."""
    if len(pictures) == 1:
        return pictures[0]
    wide, high = (max(sizes) for sizes in zip(*(one.size for one in pictures), strict=True))
    gap = max(wide // 32, 1)
    count = len(pictures)
    across = max(
        range(1, count + 1), key=lambda n: min(shape / (n * wide), 1 / (math.ceil(count / n) * high))
    )
    rows = math.ceil(count / across)
    strip = Image.new("RGB", (across * (wide + gap) - gap, rows * (high + gap) - gap), PAPER)
    for place, one in enumerate(pictures):
        strip.paste(one, (place % across * (wide + gap), place // across * (high + gap)))
    return strip
