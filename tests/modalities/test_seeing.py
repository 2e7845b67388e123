"""Contact sheets, heat maps, animations, previews: the right pixels in the right places."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence
from rich.console import Console
from rich.text import Text

from multispec.errors import UsageError
from multispec.modalities.image import animate, contact_sheet, heat_map
from multispec.modalities.image.seeing import (
    INK,
    PAPER,
    SCALE,
    Cell,
    Preview,
    acceptance_by_row,
    colour_at,
    half_blocks,
    rounds_of,
)
from multispec.modalities.layout import Raster
from multispec.report import Report
from multispec.stream import Generation

RED, BLUE = (255, 0, 0), (0, 0, 255)


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8), caption: str = "") -> Image.Image:
    image = Image.new("RGB", size, colour)
    image.info["caption"] = caption
    return image


def drawn(flags: list[bool], layout: Raster | None = None) -> Generation:
    """A result whose symbols came about like this."""
    layout = layout or Raster(height=2, width=3, codes=4)
    image = flat((200, 200, 200), (layout.width * 4, layout.height * 4), "a heart")
    image.info["layout"] = layout
    report = Report(new_tokens=len(flags), target_calls=4)
    return Generation(
        tokens=torch.zeros(len(flags), dtype=torch.long),
        output=image,
        report=report,
        from_draft=tuple(flags),
    )


# ---- contact sheets


def test_a_sheet_holds_every_picture_in_order() -> None:
    sheet = contact_sheet([flat(RED), flat(BLUE), flat(RED, (200, 400))], side=64, columns=2)
    left, top, step = 14 + 32, 14 + 32, 64 + 14
    below = step + 6
    assert sheet.getpixel((left, top)) == RED and sheet.getpixel((left + step, top)) == BLUE
    assert sheet.getpixel((left, top + below)) == RED
    assert sheet.getpixel((left + step, top + below)) == PAPER
    # The tall picture is fitted into the square: 32 of 64 pixels wide.
    assert sheet.getpixel((left - 20, top + below)) == PAPER


def test_small_pictures_keep_their_pixels() -> None:
    image = flat(RED)
    image.putpixel((0, 0), BLUE)
    sheet = contact_sheet([image], side=64)
    box = sheet.crop((14, 14, 14 + 64, 14 + 64))
    colours = dict((colour, count) for count, colour in box.getcolors() or [])
    assert colours == {RED: 64 * 63, BLUE: 64}


def test_captions_are_written_beneath() -> None:
    named, bare = contact_sheet([flat(RED, caption="a red heart")]), contact_sheet([flat(RED)])
    assert named.height > bare.height

    def ink(sheet: Image.Image) -> int:
        below = sheet.crop((0, 14 + 192 + 4, sheet.width, sheet.height)).convert("L")
        return sum(below.histogram()[:100])

    assert ink(named) > 20 and ink(bare) == 0
    given = contact_sheet([flat(RED, caption="a red heart")], [""])
    assert given.tobytes() == bare.tobytes()


def test_long_captions_stay_inside_their_column() -> None:
    words = "a caption that goes on and on and on and on and on until nobody reads it " * 3
    for caption in (words, "x" * 300):
        sheet = contact_sheet([flat(RED)], [caption], side=96)
        assert sheet.width == 96 + 28
        margin = sheet.crop((0, 14 + 96 + 4, 13, sheet.height))
        assert margin.getcolors() == [(13 * margin.height, PAPER)]


@pytest.mark.parametrize(
    ("pictures", "settings", "message"),
    [
        ([], {}, "got 0 pictures"),
        ([flat(RED)], {"columns": 0}, "columns=0"),
        ([flat(RED)], {"side": 4}, "side=4"),
        ([flat(RED)], {"captions": ["a", "b"]}, "got 2 for 1 pictures"),
    ],
)
def test_sheets_that_cannot_be(
    pictures: list[Image.Image], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        contact_sheet(pictures, **settings)  # type: ignore[arg-type]


# ---- heat maps


def test_rounds_end_with_the_targets_own_symbol() -> None:
    found = rounds_of([False, True, True, False, True, False, True])
    assert found == [
        Cell(False, 0, 1),
        *(Cell(flag, 1, 3) for flag in (True, True, False)),
        *(Cell(flag, 2, 2) for flag in (True, False)),
        Cell(True, 3, 1),  # the picture was full
    ]
    assert rounds_of([]) == []


def test_acceptance_counts_codes_only() -> None:
    """Row ends are forced, and nobody's merit."""
    layout = Raster(height=2, width=2, codes=4, row_end=4, header=(4,), vocab_size=5)
    flags = [False, True, False, True, True, True, True]
    assert acceptance_by_row(drawn(flags, layout)) == [0.5, 1.0]
    assert acceptance_by_row(drawn(flags[:3], layout)) == [0.5]


def test_the_scale_begins_and_ends_where_it_says() -> None:
    assert [colour_at(share) for share in (-1, 0, 0.25, 1, 2)] == [
        SCALE[0],
        SCALE[0],
        SCALE[1],
        SCALE[-1],
        SCALE[-1],
    ]


def test_accepted_codes_are_coloured_and_others_ringed() -> None:
    sheet = heat_map(drawn([False, True, True, False, True, False]))
    cell, top, left = 64, 52, 14  # two rows of three, as large as cells get

    def at(row: int, column: int, dx: int = 8, dy: int = 8) -> object:
        return sheet.getpixel((left + column * cell + dx, top + row * cell + dy))

    grey = (200, 200, 200)
    assert at(0, 0) == at(1, 0) == at(1, 2) == grey
    tinted = [at(0, 1), at(0, 2), at(1, 1)]
    assert tinted[0] == tinted[1] != tinted[2] and grey not in tinted
    expected = tuple(round(0.72 * a + 0.28 * b) for a, b in zip(SCALE[-1], grey, strict=True))
    assert isinstance(tinted[0], tuple)
    assert all(abs(a - b) <= 2 for a, b in zip(tinted[0], expected, strict=True))
    middle = [at(row, column, 32 + 3, 32) for row, column in ((0, 0), (0, 1))]
    assert middle[0] == INK and middle[1] == tinted[0]


def test_the_bars_are_as_long_as_the_shares() -> None:
    sheet = heat_map(drawn([True, True, False, False, False, False]))
    row = [sheet.getpixel((x, 52 + 32)) for x in range(sheet.width)]
    filled = sum(one == SCALE[2] for one in row)
    assert filled == pytest.approx((190 - 44) * 2 / 3, abs=2)


def test_a_heat_map_of_plain_decoding_has_no_colour() -> None:
    sheet = heat_map(drawn([False] * 6)).crop((0, 0, 14 + 192, 200))
    assert all(max(one) - min(one) < 8 for _, one in sheet.getcolors(100_000) or [] if isinstance(one, tuple))


def test_large_grids_stay_small_and_small_ones_are_seen() -> None:
    large = heat_map(drawn([True] * 2160, Raster(height=45, width=48, codes=4)))
    assert large.width < 700 and large.height < 600
    assert heat_map(drawn([True], Raster(height=1, width=1, codes=4))).width > 300


def test_only_pictures_have_heat_maps() -> None:
    words = replace(drawn([True]), output="once upon a time")
    strange = replace(drawn([True]), output=flat(RED))
    for result in (words, strange):
        with pytest.raises(UsageError, match="Only the result of an image generator"):
            heat_map(result)
        with pytest.raises(UsageError, match="Only the result of an image generator"):
            acceptance_by_row(result)


# ---- animations


def test_an_animation_shows_every_frame_and_holds_the_last(tmp_path: Path) -> None:
    frames = [flat(colour) for colour in (RED, BLUE, (0, 128, 0))]
    path = animate(frames, tmp_path / "a.gif", milliseconds=50, hold=900, side=20)
    with Image.open(path) as found:
        assert found.info["loop"] == 0
        shown = [
            (one.convert("RGB").getpixel((0, 0)), one.info["duration"], one.size)
            for one in ImageSequence.Iterator(found)
        ]
    assert [size for *_, size in shown] == [(24, 24)] * 3
    assert [duration for _, duration, _ in shown] == [50, 50, 900]
    for (pixel, *_), frame in zip(shown, frames, strict=True):
        expected = frame.getpixel((0, 0))
        assert isinstance(pixel, tuple) and isinstance(expected, tuple)
        assert all(abs(a - b) <= 8 for a, b in zip(pixel, expected, strict=True))


def test_one_frame_is_an_animation(tmp_path: Path) -> None:
    with Image.open(animate([flat(RED)], tmp_path / "a.GIF")) as found:
        assert found.convert("RGB").getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("frames", "name", "settings"),
    [
        ([], "a.gif", {}),
        ([flat(RED)], "a.png", {}),
        ([flat(RED)], "a.gif", {"milliseconds": 0}),
        ([flat(RED)], "a.gif", {"hold": 5}),
    ],
)
def test_animations_that_cannot_be(
    frames: list[Image.Image], name: str, settings: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="An animation is a .gif of one frame at least"):
        animate(frames, tmp_path / name, **settings)


# ---- previews


def blocks(text: Text) -> list[tuple[str, str]]:
    """The two colours of every character."""
    return [
        (str(span.style.color.name), str(span.style.bgcolor.name))
        for span in text.spans
        if not isinstance(span.style, str) and span.style.color and span.style.bgcolor
    ]


def test_a_character_holds_two_pixels() -> None:
    image = flat(RED, (2, 2))
    image.putpixel((1, 1), BLUE)
    text = half_blocks(image, 2, 1)
    assert text.plain == "▀▀"
    assert blocks(text) == [("#ff0000", "#ff0000"), ("#ff0000", "#0000ff")]


@pytest.mark.parametrize(
    ("size", "room", "expected"),
    [((64, 64), (80, 21), (42, 21)), ((64, 64), (10, 50), (10, 5)), ((4, 64), (80, 4), (1, 4))],
)
def test_a_preview_fits_and_keeps_its_shape(
    size: tuple[int, int], room: tuple[int, int], expected: tuple[int, int]
) -> None:
    lines = half_blocks(flat(RED, size), *room).plain.split("\n")
    assert (len(lines[0]), len(lines)) == expected


def test_a_preview_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="one column and one line at least: got 0 x 3"):
        half_blocks(flat(RED), 0, 3)


@pytest.mark.parametrize(("count", "shape"), [(1, (18, 9)), (2, (37, 9)), (4, (39, 5))])
def test_the_terminal_shows_pictures_side_by_side(count: int, shape: tuple[int, int]) -> None:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, color_system="truecolor", width=40, height=12, legacy_windows=False
    )
    with Preview(console) as preview:
        preview.show([])
        assert "▀" not in stream.getvalue()
        preview.show([flat(RED, (32, 32))] * count, "row 1 of 4")
        shown = stream.getvalue()
    lines = [line.count("▀") for line in shown.splitlines() if "▀" in line]
    assert (max(lines), len(lines)) == shape
    assert "row 1 of 4" in shown and "38;2;255;0;0" in shown
