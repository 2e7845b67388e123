"""``multispec demo``: plain and speculative side by side, from the embedded models."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from multispec.cli import _timing
from multispec.cli._console import (
    Debug,
    Draft,
    Model,
    Painter,
    console,
    load,
    markdown,
    running,
    table,
)
from multispec.cli._media_demo import Part, drafters, media, show_times
from multispec.errors import UnknownNameError

PROMPTS = {"story": "Once upon a time", "code": "def fibonacci(n):\n"}
TEMPERATURES = {"greedy": 0.0, "temperature 0.8": 0.8}
COLUMNS = ("prompt", "sampling", "same tokens", "drafter", *_timing.COLUMNS[1:])


KINDS = ("text", "image", "speech")


def demo(
    out: Annotated[Path, typer.Option(help="Where the files go.")] = Path("multispec-demo"),
    only: Annotated[
        list[str] | None, typer.Option(help="text, image or speech; may be repeated. Without it, all.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per text.")] = 96,
    model: Model = "text",
    draft: Draft = None,
    image_model: Annotated[str, typer.Option(help="What draws: a folder or a hub id.")] = "image",
    image_draft: Annotated[str | None, typer.Option(help="Its draft model.")] = None,
    speech_model: Annotated[str, typer.Option(help="What speaks: a folder or a hub id.")] = "speech",
    speech_draft: Annotated[str | None, typer.Option(help="Its draft model.")] = None,
    debug: Debug = False,
) -> None:
    """Generate with the embedded models, plain and speculative side by side; writes files."""
    start = time.perf_counter()
    with running(debug):
        kinds = only or list(KINDS)
        wrong = next((kind for kind in kinds if kind not in KINDS), None)
        if wrong is not None:
            raise UnknownNameError("kind of output", wrong, KINDS)
        out.mkdir(parents=True, exist_ok=True)
        shown = _Shown()
        if "text" in kinds:
            shown.texts(load(model, draft), max_new_tokens)
        for kind, name, other in (
            ("image", image_model, image_draft),
            ("speech", speech_model, speech_draft),
        ):
            if kind in kinds:
                shown.add(kind, media(kind, name, other, out))
        shown.show()
        shown.write(out)
        screen = console()
        seconds = time.perf_counter() - start
        screen.print(f"Files, report.json and table.md are in {out} ({seconds:.0f} s).", markup=False)
        if not shown.same:
            raise typer.Exit(1)


@dataclass
class _Shown:
    """What was made, of every kind, and why some kinds were not."""

    parts: list[Part] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    hooked: bool | None = None

    def texts(self, generator: Any, max_new_tokens: int) -> None:
        """All texts, plainly and drafted, and once inside transformers."""
        _show_texts(generator, max_new_tokens)
        for prompt in PROMPTS:
            for sampling in TEMPERATURES:
                self.parts.append(_part(generator, prompt, sampling, max_new_tokens))
        self.hooked = _inside_transformers(generator, max_new_tokens)

    def add(self, kind: str, found: list[Part] | str) -> None:
        """Parts, or why there are none."""
        if isinstance(found, str):
            self.missing[kind] = found
        else:
            self.parts += found

    @property
    def same(self) -> bool:
        """Whether drafting changed nothing anywhere."""
        return self.hooked is not False and all(_timing.identical(part.timed) for part in self.parts)

    @property
    def rows(self) -> list[list[str]]:
        """One for each prompt and drafter."""
        return [row for part in self.parts for row in part.rows()]

    def show(self) -> None:
        """The table, when sounds came, and what is missing."""
        screen = console()
        if self.parts:
            screen.print(table(COLUMNS, self.rows, _TITLE))
        show_times(self.parts)
        for kind, why in self.missing.items():
            screen.print(f"No {kind}: {why}", style="yellow", markup=False)

    def write(self, out: Path) -> None:
        """report.json, table.md and the texts."""
        for part in self.parts:
            if part.kind == "text":
                first = next(iter(part.timed.values())).result
                name = f"{part.name}-{part.sampling.replace(' ', '-')}.txt"
                (out / name).write_text(part.prompt + first.output + "\n", encoding="utf-8")
        found = {
            "runs": [part.to_dict() for part in self.parts],
            "transformers_same_tokens": self.hooked,
            "missing": self.missing,
        }
        (out / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (out / "table.md").write_text(markdown(COLUMNS, self.rows), encoding="utf-8")


_TITLE = (
    "The same seed gives the same tokens; texts: medians of 3 runs in turn, media: one run, after a warm-up"
)


def _show_texts(generator: Any, max_new_tokens: int) -> None:
    """Each text once, as it comes, with what was drafted in colour."""
    import multispec as ms

    painter = Painter()
    painter.legend()
    for name, prompt in PROMPTS.items():
        console().print(f"-- {name} --", style="bold", markup=False)
        painter.write(prompt, False)
        sampling = ms.Sampling(temperature=0.8)
        for step in generator.stream(prompt, sampling=sampling, max_new_tokens=max_new_tokens):
            painter.write(step.delta, step.from_draft)
        painter.write("\n\n", False)


def _part(generator: Any, prompt: str, sampling: str, max_new_tokens: int) -> Part:
    import multispec as ms

    settings = {
        "sampling": ms.Sampling(temperature=TEMPERATURES[sampling]),
        "max_new_tokens": max_new_tokens,
    }
    with console(stderr=True).status(f"{prompt}, {sampling} ..."):
        timed = _timing.take_turns(generator, PROMPTS[prompt], settings, drafters(generator, "prompt_lookup"))
    return Part("text", prompt, PROMPTS[prompt], sampling, timed)


def _inside_transformers(generator: Any, max_new_tokens: int) -> bool:
    """Show that one argument is enough inside transformers' own generate."""
    import multispec as ms

    model = generator.target.model
    ids = generator.modality.encode(PROMPTS["code"]).ids[None].to(model.device)
    asked = {"max_new_tokens": max_new_tokens, "do_sample": False}
    plain = model.generate(ids, **asked)
    drafted = model.generate(ids, custom_generate=ms.speculative(drafter="prompt_lookup"), **asked)
    same = bool(plain.shape == drafted.shape and (plain == drafted).all())
    line = 'model.generate(ids, custom_generate=ms.speculative(drafter="prompt_lookup"))'
    said = "the same tokens as without" if same else "OTHER tokens than without"
    console().print(f"{line}: {said}", markup=False, style="" if same else "red")
    return same
