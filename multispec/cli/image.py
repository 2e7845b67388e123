"""``multispec image``: draw a picture, and show what drafting did."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from multispec.cli._console import (
    INTERRUPTED,
    Debug,
    Draft,
    Fast,
    Json,
    Profile,
    console,
    dtype_of,
    load,
    noticed,
    profiled,
    running,
    say,
    table,
)
from multispec.cli._timing import verdict
from multispec.errors import GenerationError, UnsupportedError, UsageError

COLUMNS = ("", "seconds", "codes/s", "speed ratio", "target calls", "step compression")


def image(
    caption: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; without it, a name made of the caption.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help='A folder, a hub id, or "image" for the embedded model.')
    ] = "image",
    draft: Draft = None,
    drafter: Annotated[
        str, typer.Option(help="auto, none, or a drafter that `multispec methods` lists.")
    ] = "auto",
    verifier: Annotated[str, typer.Option(help="A verifier of `multispec methods`.")] = "coupled",
    policy: Annotated[str, typer.Option(help="auto, or a policy of `multispec methods`.")] = "auto",
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; without it, the model's own, as for the next two.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k best; 0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep this much mass; 1 is off.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How much the caption counts; 1 is off.")] = None,
    negative: Annotated[
        str | None, typer.Option(help="What not to draw: the other branch of guidance.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 0,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in pixels; without it, the model's own.")
    ] = None,
    count: Annotated[int, typer.Option(help="Draw several, and a contact sheet of them.")] = 1,
    live: Annotated[
        bool, typer.Option("--live", help="Show the picture in the terminal as it comes.")
    ] = False,
    gif: Annotated[Path | None, typer.Option(help="Write how the picture came, row by row.")] = None,
    heatmap: Annotated[Path | None, typer.Option(help="Write where drafted codes were accepted.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw plainly too, and compare the pixels.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Where to run, such as cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16, float64 or auto.")] = None,
    fast: Fast = None,
    profile: Profile = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw CAPTION; the same seed gives the same picture with any drafter."""
    with running(debug):
        files = _Files.of(caption, output, gif, heatmap, count, as_json)
        asked = {"caption": caption, "size": None if size is None else _size(size)}
        where = {"device": device, "dtype": dtype_of(dtype), "fast": fast}
        generator = load(model, draft, modality="image", **where)
        settings = {
            "drafter": drafter,
            "verifier": verifier,
            "policy": policy,
            "sampling": _samplings(
                generator.modality.sampling, count, seed, temperature=temperature, top_k=top_k, top_p=top_p
            ),
            "guidance": guidance,
            "negative": negative,
        }
        drawing = _Drawing(generator, [asked] * count, settings)
        with profiled(profile):
            drawing.run(live=live, frames=gif is not None)
        written = files.write(drawing)
        compared = _compared(drawing) if compare and drawing.complete else None
        _tell(drawing, written, compared, as_json)
        drawing.fail()


def _samplings(usual: Any, count: int, seed: int, **given: float | None) -> list[Any]:
    changes = {name: value for name, value in given.items() if value is not None}
    return [replace(usual, seed=seed, sample=n, **changes) for n in range(count)]


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if found is None:
        raise UsageError(f"--size is HEIGHTxWIDTH in pixels, or one number for both: got {text!r}.")
    return int(found[1]), int(found[2] or found[1])


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Where everything goes; endings are checked before anything is computed."""

    picture: Path | None
    gif: Path | None
    heatmap: Path | None

    @staticmethod
    def of(
        caption: str, picture: Path | None, gif: Path | None, heatmap: Path | None, count: int, as_json: bool
    ) -> _Files:
        """The files asked for, or a name made of the caption.

        Raises:
            UsageError: an ending that stands for no format, or files of one picture for several.
        """
        if count < 1:
            raise UsageError(f"--count must be >= 1: got {count}. Draw one picture at least.")
        if count > 1 and (gif or heatmap):
            raise UsageError(
                f"--gif and --heatmap show how one picture came about: got --count {count}. Leave it out."
            )
        if gif is not None and gif.suffix.lower() != ".gif":
            raise UsageError(f"--gif writes a .gif: got {gif.name!r}.")
        if picture is None and not as_json:
            picture = Path(f"{re.sub(r'[^a-z0-9]+', '-', caption.lower()).strip('-')[:60] or 'picture'}.png")
        for path in (picture, heatmap):
            _check_ending(path)
        return _Files(picture=picture, gif=gif, heatmap=heatmap)

    def write(self, drawing: _Drawing) -> list[Path]:
        """Write what was drawn; the names of the files."""
        from multispec.modalities.image.seeing import animate, heat_map

        written = self._pictures(drawing.results)
        first = drawing.results[0]
        if self.gif is not None and drawing.frames:
            written.append(animate(drawing.frames, _made(self.gif)))
        if self.heatmap is not None and first.output is not None:
            heat_map(first).save(_made(self.heatmap))
            written.append(self.heatmap)
        return written

    def _pictures(self, results: list[Any]) -> list[Path]:
        path = self.picture
        if path is None:
            return []
        if results[0].output is None:
            return [_codes(results, _made(path.with_suffix(".json")))]
        if len(results) == 1:
            return [results[0].save(_made(path))]
        from multispec.modalities.image.seeing import contact_sheet

        words = [_below(one, number) for number, one in enumerate(results)]
        contact_sheet([one.output for one in results], words).save(_made(path))
        return [
            path,
            *(
                one.save(path.with_stem(f"{path.stem}-{number}"))
                for number, one in enumerate(results)
                if _finished(one)
            ),
        ]


def _below(result: Any, number: int) -> str:
    return f"{number}" if _finished(result) else f"{number} (not finished)"


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _codes(results: list[Any], path: Path) -> Path:
    path.write_text(json.dumps([one.tokens.tolist() for one in results]) + "\n", encoding="utf-8")
    return path


def _check_ending(path: Path | None) -> None:
    if path is None:
        return
    try:
        from PIL import Image
    except ImportError as error:
        raise UnsupportedError(
            f"Pictures need the package pillow, which cannot be imported ({error}): "
            "pip install 'multispec[image]'"
        ) from error
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if path.suffix.lower() not in known:
        raise UsageError(
            f"The ending of {path.name!r} stands for no picture format that can be written: got "
            f"{path.suffix!r}. Use .png, .jpg, .webp or .gif."
        )


def _finished(result: Any) -> bool:
    return bool(result.finish_reason == "stop")


@dataclass
class _Drawing:
    """The pictures of one command: ``run`` draws them, and whatever happens keeps what is there."""

    generator: Any
    requests: list[Any]
    settings: dict[str, Any]
    results: list[Any] = field(default_factory=list)
    frames: list[Any] = field(default_factory=list)
    interrupted: bool = False
    failure: GenerationError | None = None
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every picture has its last code."""
        return all(map(_finished, self.results))

    def run(self, *, live: bool, frames: bool) -> None:
        """Draw, showing rows as they are finished."""
        screen = console(stderr=True)
        if live and not screen.is_terminal:
            say("Warning: --live needs a terminal, and this is none.", "yellow")
            live = False
        partial = "row" if live or frames else "none"
        self.generator.modality = replace(self.generator.modality, partial=partial)
        steps = self.generator.stream(self.requests, **self.settings)
        start = time.perf_counter()
        with noticed() as interrupts:
            try:
                with _Screen(self, screen, live) as shown:
                    for step in steps:
                        shown.step(step)
            except KeyboardInterrupt:  # between two rounds, outside the loop that ends quietly
                interrupts.append(0)
            except GenerationError as error:
                self.failure = error
        self.seconds = time.perf_counter() - start
        self.results = self.failure.partial if self.failure is not None else steps.result
        self.interrupted = bool(interrupts) and not self.complete

    def fail(self) -> None:
        """End the command as what happened asks for.

        Raises:
            GenerationError: generation broke.
            UnsupportedError: the codes cannot become pixels.
        """
        if self.failure is not None:
            raise self.failure
        if self.interrupted:
            raise typer.Exit(INTERRUPTED)
        if self.results[0].output is None:
            why = [note for note in self.results[0].report.notes if note.startswith("no output: ")]
            reason = " ".join(note.removeprefix("no output: ") for note in why)
            raise UnsupportedError(f"The codes were kept, and there are no pixels. {reason}")


class _Screen:
    """Progress on the terminal: a line with the rows that are finished, or the pictures themselves."""

    def __init__(self, drawing: _Drawing, screen: Any, live: bool) -> None:
        from multispec.modalities.image.seeing import Preview

        family = drawing.generator.modality.family
        self._layout = family.layout(drawing.requests[0]["size"])
        self._drawing = drawing
        self._rows = [0] * len(drawing.requests)
        self._pictures: dict[int, Any] = {}
        self._preview = Preview(screen) if live else None
        self._status = screen.status("reading the caption ...")

    def __enter__(self) -> _Screen:
        (self._preview or self._status).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        (self._preview or self._status).__exit__(*error)

    def step(self, step: Any) -> None:
        """Take note of a symbol."""
        place = self._layout.coordinates(step.position)
        if place is not None and place[1] == self._layout.width - 1:
            self._rows[step.row] = place[0] + 1
            if self._preview is None:
                self._status.update(self._line)
        if step.delta is not None:
            self._drawing.frames.append(step.delta)
            self._pictures[step.row] = step.delta
            if self._preview is not None:
                self._preview.show([self._pictures[row] for row in sorted(self._pictures)], self._line)

    @property
    def _line(self) -> str:
        return f"row {', '.join(map(str, self._rows))} of {self._layout.height}"


def _compared(drawing: _Drawing) -> dict[str, Any]:
    """Both ways once more, without anything shown, after the first drawing has warmed up."""
    drawing.generator.modality = replace(drawing.generator.modality, partial="none")
    found: dict[str, Any] = {}
    made = {}
    for way, drafter in (("plain", None), ("speculative", drawing.settings["drafter"])):
        start = time.perf_counter()
        made[way] = drawing.generator.generate(drawing.requests, **(drawing.settings | {"drafter": drafter}))
        found[way] = {
            "seconds": time.perf_counter() - start,
            "target_calls": max(one.report.target_calls for one in made[way]),
            "step_compression": _compression(made[way]),
        }
    pairs = list(zip(made["plain"], made["speculative"], strict=True))
    return found | {
        "identical_codes": all(one.tokens.equal(other.tokens) for one, other in pairs),
        "identical_pixels": all(_pixels(one) == _pixels(other) for one, other in pairs),
        "promise": drawing.generator.methods.verifier(drawing.settings["verifier"]).exactness,
        "speed_ratio": found["plain"]["seconds"] / found["speculative"]["seconds"],
    }


def _pixels(result: Any) -> tuple[Any, ...] | None:
    return None if result.output is None else (result.output.size, result.output.tobytes())


def _compression(results: list[Any]) -> float:
    """The mean over the pictures."""
    return float(sum(one.report.step_compression for one in results) / len(results))


def _tell(drawing: _Drawing, written: list[Path], compared: dict[str, Any] | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_found(drawing, written, compared), ensure_ascii=False))
    else:
        say(_summary(drawing), "dim")
        if written:
            say(f"Written: {', '.join(map(str, written))}")
    if drawing.failure is not None or drawing.interrupted:
        done = sum(map(_finished, drawing.results))
        word = "Interrupted" if drawing.interrupted else "Broken off"
        say(f"{word}: {done} of {len(drawing.results)} pictures are finished.", "yellow")
    if compared is not None and not as_json:
        _show_comparison(drawing, compared)


def _found(drawing: _Drawing, written: list[Path], compared: dict[str, Any] | None) -> dict[str, Any]:
    pictures = [
        {
            "tokens": one.tokens.tolist(),
            "from_draft": list(one.from_draft),
            "finish_reason": one.finish_reason,
            "report": one.report.to_dict(),
        }
        for one in drawing.results
    ]
    found = {
        "caption": drawing.requests[0]["caption"],
        "files": [str(path) for path in written],
        "seconds": drawing.seconds,
        "pictures": pictures,
    }
    return found if compared is None else found | {"compare": compared}


def _summary(drawing: _Drawing) -> str:
    """What it cost, in one line."""
    reports = [one.report for one in drawing.results]
    several = f"{len(reports)} pictures, " if len(reports) > 1 else ""
    return (
        f"{several}{sum(one.new_tokens for one in reports)} codes in {drawing.seconds:.2f} s: "
        f"{max(one.target_calls for one in reports)} target calls, "
        f"step compression {_compression(drawing.results):.2f}, "
        f"{sum(one.accepted for one in reports)} of {sum(one.drafted for one in reports)} drafted accepted"
    )


def _show_comparison(drawing: _Drawing, compared: dict[str, Any]) -> None:
    codes = sum(len(one.tokens) for one in drawing.results)
    rows = [
        [
            way,
            f"{one['seconds']:.2f}",
            f"{codes / one['seconds']:.1f}",
            f"{compared['plain']['seconds'] / one['seconds']:.2f}x",
            str(one["target_calls"]),
            f"{one['step_compression']:.2f}",
        ]
        for way, one in ((way, compared[way]) for way in ("plain", "speculative"))
    ]
    screen = console()
    screen.print(table(COLUMNS, rows, "one run each, after the first drawing"))
    same = compared["identical_codes"] and compared["identical_pixels"]
    screen.print(verdict("Pixels", same, compared["promise"]))
