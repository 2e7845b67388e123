"""``multispec image``."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import multispec as ms
from multispec import loop
from multispec.cli import app
from multispec.generator import Stream
from tests.models import drawing

CAPTION = "the quick fox"
SIDE = drawing.GRID[0] * drawing.STRIDE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawing.save(tmp_path_factory.mktemp("image"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the command."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, model: Path) -> Result:
    drafter = [] if "--drafter" in arguments else ["--drafter", "prompt_lookup"]
    return CliRunner().invoke(app, ["image", "--model", str(model / "target"), *drafter, *arguments])


def expected(model: Path, sample: int = 0, **settings: Any) -> ms.Generation:
    """What the library draws for the same."""
    sampling = ms.Sampling(sample=sample, seed=settings.pop("seed", 0))
    generator = ms.load(model / "target")
    found: ms.Generation = generator.generate(CAPTION, drafter=None, sampling=sampling, **settings)
    return found


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_the_file_is_the_picture(model: Path, here: Path) -> None:
    result = run(CAPTION, "-o", "folder/fox.png", model=model)
    assert result.exit_code == 0 and result.stdout == ""
    assert pixels(here / "folder" / "fox.png") == expected(model).output.tobytes()
    assert "16 codes in" in result.stderr and "step compression" in result.stderr
    assert "Written: folder/fox.png" in result.stderr


def test_without_a_name_the_caption_is_one(model: Path, here: Path) -> None:
    run("The quick, brown fox!", model=model)
    assert [path.name for path in here.iterdir()] == ["the-quick-brown-fox.png"]
    run("...", model=model)
    assert (here / "picture.png").is_file()


def test_settings_reach_the_model(model: Path, here: Path) -> None:
    run(CAPTION, "-o", "a.png", "--seed", "3", "--guidance", "1", "--size", f"{SIDE}x{SIDE}", model=model)
    assert pixels(here / "a.png") == expected(model, seed=3, guidance=1.0).output.tobytes()
    run(CAPTION, "-o", "b.png", "--negative", "lazy dog", "--size", str(SIDE), model=model)
    assert pixels(here / "b.png") == expected(model, negative="lazy dog").output.tobytes()


def test_json_is_one_object(model: Path, here: Path) -> None:
    draft = ["--drafter", "draft_model", "--draft", str(model / "draft")]
    result = run(CAPTION, "--json", "--compare", *draft, model=model)
    found = json.loads(result.stdout)
    assert found["caption"] == CAPTION and found["files"] == [] and list(here.iterdir()) == []
    (picture,) = found["pictures"]
    assert picture["tokens"] == expected(model).tokens.tolist()
    assert picture["finish_reason"] == "stop" and len(picture["from_draft"]) == 16
    assert picture["report"]["draft_calls"] > 0 and picture["report"]["step_compression"] >= 1
    compared = found["compare"]
    assert compared["identical_codes"] is compared["identical_pixels"] is True
    assert compared["plain"]["target_calls"] == 16 and compared["promise"] == "seed"


def test_compare_shows_a_table(model: Path, here: Path) -> None:
    result = run(CAPTION, "--compare", model=model)
    assert "Pixels: identical to plain decoding" in result.stdout
    assert "step compression" in result.stdout and "1.00x" in result.stdout


def test_compare_does_not_promise_too_much(model: Path, here: Path) -> None:
    result = run(CAPTION, "--compare", "--verifier", "rejection", model=model)
    assert "nor promised" in result.stdout


def test_several_pictures_are_a_sheet_and_files(model: Path, here: Path) -> None:
    result = run(CAPTION, "-o", "fox.png", "--count", "3", model=model)
    assert sorted(path.name for path in here.iterdir()) == [
        "fox-0.png",
        "fox-1.png",
        "fox-2.png",
        "fox.png",
    ]
    for number in range(3):
        assert pixels(here / f"fox-{number}.png") == expected(model, sample=number).output.tobytes()
    with Image.open(here / "fox.png") as sheet:
        assert sheet.width > 3 * SIDE
    assert "3 pictures, 48 codes" in result.stderr


def test_an_animation_and_a_heat_map(model: Path, here: Path) -> None:
    result = run(CAPTION, "-o", "a.png", "--gif", "b/a.gif", "--heatmap", "c/map.png", model=model)
    assert result.exit_code == 0
    with Image.open(here / "b" / "a.gif") as found:
        assert getattr(found, "n_frames", 0) == drawing.GRID[0]
    with Image.open(here / "c" / "map.png") as found:
        assert found.width > 300
    assert "Written: a.png, b/a.gif, c/map.png" in result.stderr


def test_live_shows_the_picture_in_the_terminal(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "40", "LINES": "12"}.items():
        monkeypatch.setenv(name, value)
    result = run(CAPTION, "--live", "--count", "2", model=model)
    assert result.stderr.count("▀") > 100 and "row 4, 4 of 4" in result.stderr
    assert "▀" not in result.stdout


def test_live_without_a_terminal_goes_on(model: Path, here: Path) -> None:
    result = run(CAPTION, "--live", model=model)
    assert result.exit_code == 0 and "Warning: --live needs a terminal" in result.stderr
    assert (here / "the-quick-fox.png").is_file()


class Uneven:
    """A drafter that knows the first picture, which is therefore finished long before the others."""

    name = "uneven"
    num_draft_tokens = 5
    calls = 0

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def begin(self, context: Any) -> Uneven:
        return self

    def propose(self, requests: Any) -> Any:
        def draft(request: Any) -> ms.Draft:
            start = request.round_start
            known = self._tokens[start : start + request.budget.nodes] if request.row == 0 else []
            return ms.Draft.chain(known) if known else ms.Draft.empty()

        return [draft(request) for request in requests]

    def observe(self, row: int, observation: Any) -> None:
        """Nothing is learned."""

    def end(self, rows: Any) -> None:
        """Nothing is kept."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "Interrupted: 1 of 3 pictures are finished."),
        (RuntimeError("out of luck"), 1, "Broken off: 1 of 3 pictures are finished."),
    ],
)
def test_what_is_finished_is_kept(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    whole = expected(model)
    original = ms.Generator.stream

    def stream(self: Any, prompt: Any, **settings: Any) -> Stream:
        return original(self, prompt, **(settings | {"drafter": Uneven(whole.tokens.tolist())}))

    def rounds(*arguments: Any) -> Iterator[Any]:
        for number, steps in enumerate(loop.rounds(*arguments)):
            yield steps
            if number == 4:
                if isinstance(error, KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
                raise error

    monkeypatch.setattr(ms.Generator, "stream", stream)
    monkeypatch.setattr("multispec.generator.rounds", rounds)
    result = run(CAPTION, "-o", "fox.png", "--count", "3", model=model)
    assert result.exit_code == code and said in result.stderr
    assert sorted(path.name for path in here.iterdir()) == ["fox-0.png", "fox.png"]
    assert pixels(here / "fox-0.png") == whole.output.tobytes()
    assert ("out of luck" in result.stderr) == (code == 1) and "Traceback" not in result.stderr


def test_half_a_picture_is_written(model: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single picture is kept as far as it came, also where Ctrl-C comes between two rounds."""

    def stop(self: Any, step: Any) -> None:
        if step.position == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr("multispec.cli.image._Screen.step", stop)
    result = run(CAPTION, "-o", "fox.png", "--drafter", "none", "--compare", model=model)
    with Image.open(here / "fox.png") as image:
        assert image.getpixel((0, SIDE - 1)) == (222, 219, 214)
        assert image.getpixel((0, 0)) != (222, 219, 214)
    assert result.stdout == "" and result.exit_code == 130
    assert "Interrupted: 0 of 1 pictures are finished." in result.stderr


def test_codes_without_a_decoder_are_kept(model: Path, here: Path, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("blind")
    shutil.copytree(model / "target", folder / "target")
    drawing.save_vq(folder / "vq", without="decoder.")
    result = run(CAPTION, "-o", "fox.png", "--heatmap", "m.png", "--gif", "a.gif", model=folder)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if "decoder" in line]
    assert line.startswith("Error: The codes were kept, and there are no pixels. The picture tok")
    assert [path.name for path in here.iterdir()] == ["fox.json"]
    assert json.loads((here / "fox.json").read_text()) == [expected(model).tokens.tolist()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "fox.xyz"], "The ending of 'fox.xyz' stands for no picture format"),
        (["-o", "fox"], "got ''. Use .png"),
        (["--heatmap", "map.doc"], "The ending of 'map.doc'"),
        (["--gif", "a.png"], "--gif writes a .gif: got 'a.png'"),
        (["--gif", "a.gif", "--count", "2"], "Leave it out"),
        (["--count", "0"], "--count must be >= 1: got 0"),
        (["--size", "large"], "--size is HEIGHTxWIDTH in pixels, or one number for both: got 'large'"),
        (["--size", "9x9"], "draws pictures of 8 x 8 pixels and no others: got 9 x 9"),
        (["--guidance", "-2"], "guidance scale must be a finite number >= 0: got -2"),
        (["--drafter", "promt_lookup"], "Did you mean 'prompt_lookup'"),
        (["--dtype", "float23"], "Unknown dtype 'float23'"),
        (["--negative", "лиса"], "has never seen 'л' (cyrillic)"),
    ],
)
def test_wrong_usage_is_one_line(model: Path, here: Path, arguments: list[str], message: str) -> None:
    result = run(CAPTION, *arguments, model=model)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == "" and list(here.iterdir()) == []


def test_a_model_of_words_is_refused(here: Path, target: str) -> None:
    result = CliRunner().invoke(app, ["image", CAPTION, "--model", target])
    assert result.exit_code == 1 and "draws no pictures" in result.stderr


def test_without_pillow_the_command_is_named(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    result = run(CAPTION, model=model)
    assert result.exit_code == 1 and "pip install 'multispec[image]'" in result.stderr


def test_endings_are_checked_before_a_model_is_read(here: Path) -> None:
    result = run(CAPTION, "-o", "fox.xyz", model=Path("nowhere"))
    assert result.exit_code == 2 and "fox.xyz" in result.stderr
