"""``multispec demo``: plain and speculative side by side, from the embedded models."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
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

PROMPTS = {"story": "Once upon a time", "code": "def fibonacci(n):\n"}
TEMPERATURES = {"greedy": 0.0, "temperature 0.8": 0.8}
COLUMNS = ("prompt", "sampling", "same tokens", "drafter", *_timing.COLUMNS[1:])


@dataclass(frozen=True)
class _Part:
    """One prompt with one temperature: every drafter in turn."""

    prompt: str
    sampling: str
    timed: dict[str, _timing.Timed]

    def rows(self) -> list[list[str]]:
        """One row per drafter."""
        same = "yes" if _timing.identical(self.timed) else "NO"
        return [[self.prompt, self.sampling, same, *row] for row in _timing.rows(self.timed)]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        first = next(iter(self.timed.values()))
        ways = {
            name: one.to_dict()
            | {
                "speed_ratio": one.tokens_per_second / first.tokens_per_second,
                "report": one.result.report.to_dict(),
            }
            for name, one in self.timed.items()
        }
        return {
            "prompt": PROMPTS[self.prompt],
            "sampling": self.sampling,
            "same_tokens": _timing.identical(self.timed),
            "text": first.result.output,
            "drafters": ways,
        }


def demo(
    out: Annotated[Path, typer.Option(help="Where the files go.")] = Path("multispec-demo"),
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per text.")] = 96,
    model: Model = "text",
    draft: Draft = None,
    debug: Debug = False,
) -> None:
    """Generate with the embedded models, plain and speculative side by side; writes files."""
    start = time.perf_counter()
    with running(debug):
        generator = load(model, draft)
        out.mkdir(parents=True, exist_ok=True)
        _show_texts(generator, max_new_tokens)
        parts = [
            _part(generator, prompt, sampling, max_new_tokens)
            for prompt in PROMPTS
            for sampling in TEMPERATURES
        ]
        console().print(table(COLUMNS, [row for part in parts for row in part.rows()], _TITLE))
        hooked = _inside_transformers(generator, max_new_tokens)
        _write(out, parts, hooked)
        _say_the_end(out, time.perf_counter() - start)
        if not hooked or not all(_timing.identical(part.timed) for part in parts):
            raise typer.Exit(1)


_TITLE = "The same seed gives the same tokens; medians of 3 runs in turn, after a warm-up"


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


def _drafters(generator: Any) -> dict[str, Any]:
    """Plain decoding first: the ratios are against it."""
    from multispec.errors import UsageError

    found: dict[str, Any] = {"plain": None}
    try:
        found["draft_model"] = generator.methods.drafter("draft_model")
    except UsageError:  # a model of the user's own, given without a draft
        pass
    return found | {"prompt_lookup": "prompt_lookup"}


def _part(generator: Any, prompt: str, sampling: str, max_new_tokens: int) -> _Part:
    import multispec as ms

    settings = {
        "sampling": ms.Sampling(temperature=TEMPERATURES[sampling]),
        "max_new_tokens": max_new_tokens,
    }
    with console(stderr=True).status(f"{prompt}, {sampling} ..."):
        timed = _timing.take_turns(generator, PROMPTS[prompt], settings, _drafters(generator))
    return _Part(prompt, sampling, timed)


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


def _write(out: Path, parts: list[_Part], hooked: bool) -> None:
    for part in parts:
        first = next(iter(part.timed.values())).result
        name = f"{part.prompt}-{part.sampling.replace(' ', '-')}.txt"
        (out / name).write_text(PROMPTS[part.prompt] + first.output + "\n", encoding="utf-8")
    found = {"runs": [part.to_dict() for part in parts], "transformers_same_tokens": hooked}
    (out / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    rows = [row for part in parts for row in part.rows()]
    (out / "table.md").write_text(markdown(COLUMNS, rows), encoding="utf-8")


def _say_the_end(out: Path, seconds: float) -> None:
    screen = console()
    screen.print(f"Texts, report.json and table.md are in {out} ({seconds:.0f} s).", markup=False)
    screen.print("Image and speech arrive with their models.")
