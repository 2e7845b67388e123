"""Pictures and speech of ``multispec demo``: both ways, the files, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multispec.cli import _timing
from multispec.cli._console import console, load
from multispec.errors import ModelLoadError, UnsupportedError

CAPTIONS = ("red heart", "cat face")
TEXTS = {"fox": "The quick brown fox jumps over the lazy dog.", "verse": "Once upon a midnight dreary."}
# One run each: a picture is hundreds of symbols, which is measure enough.
RUNS = 1


@dataclass(frozen=True)
class Part:
    """One prompt with one temperature: every drafter in turn. ``kind`` is text, image or speech."""

    kind: str
    name: str
    prompt: str
    sampling: str
    timed: dict[str, _timing.Timed]
    files: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[list[str]]:
        """One row per drafter."""
        same = "yes" if _timing.identical(self.timed) else "NO"
        name = self.name if self.kind == "text" else f"{self.kind}: {self.name}"
        return [[name, self.sampling, same, *row] for row in _timing.rows(self.timed)]

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
        found = {
            "kind": self.kind,
            "prompt": self.prompt,
            "sampling": self.sampling,
            "same_tokens": _timing.identical(self.timed),
            "drafters": ways,
        }
        own = {"text": first.result.output} if self.kind == "text" else {"files": list(self.files)}
        return found | own | dict(self.more)


def media(kind: str, model: str, draft: str | None, out: Path) -> list[Part] | str:
    """The parts of pictures or speech; why there are none, where the embedded models are missing.

    Raises:
        MultispecError: a model that was asked for cannot be run.
    """
    try:
        generator = load(model, draft, modality=kind)
        run: Callable[[Any, Path], list[Part]] = _pictures if kind == "image" else _speech
        return run(generator, out)
    except (ModelLoadError, UnsupportedError) as error:
        if model != kind:
            raise
        return str(error)


def drafters(generator: Any, alone: str) -> dict[str, Any]:
    """Plain decoding first: the ratios are against it."""
    from multispec.errors import UsageError

    found: dict[str, Any] = {"plain": None}
    try:
        found["draft_model"] = generator.methods.drafter("draft_model")
    except UsageError:  # a model of the user's own, given without a draft
        pass
    return found | {alone.partition(":")[0]: alone}


def _timed(generator: Any, prompt: Any, name: str) -> dict[str, _timing.Timed]:
    ways = drafters(generator, generator.modality.drafter)
    settings = {"sampling": generator.modality.sampling}
    with console(stderr=True).status(f"{name} ..."):
        return _timing.take_turns(generator, prompt, settings, ways, RUNS)


def _label(generator: Any) -> str:
    return f"temperature {generator.modality.sampling.temperature:g}"


def _pictures(generator: Any, out: Path) -> list[Part]:
    from multispec.modalities.image import contact_sheet, heat_map

    parts = []
    for caption in CAPTIONS:
        timed = _timed(generator, caption, caption)
        words = [f"{way}: {one.result.report.target_calls} calls" for way, one in timed.items()]
        stem = caption.replace(" ", "-")
        names = (f"{stem}.png", f"{stem}-side-by-side.png", f"{stem}-accepted.png")
        last = [*timed.values()][-1].result
        last.output.save(out / names[0])
        contact_sheet([one.result.output for one in timed.values()], words, columns=len(words)).save(
            out / names[1]
        )
        heat_map(last).save(out / names[2])
        parts.append(Part("image", caption, caption, _label(generator), timed, names))
    return parts


def _speech(generator: Any, out: Path) -> list[Part]:
    parts = []
    for name, text in TEXTS.items():
        from multispec.modalities.speech import utterances

        speech = generator.modality
        # What does not fit into one breath of this voice is left out.
        said = utterances(speech.read(text), speech.family.text_limit)[0].text
        timed = _timed(generator, said, text)
        files = [*(_saved(one.result, out / f"{name}-{way}.wav") for way, one in timed.items())]
        files += _seen([*timed.values()][-1].result, out / f"{name}.png")
        times = {way: _delivered(generator, said, way) for way in timed}
        parts.append(Part("speech", name, said, _label(generator), timed, tuple(files), {"delivery": times}))
    return parts


def _saved(result: Any, path: Path) -> str:
    result.save(path)
    return path.name


def _seen(result: Any, path: Path) -> list[str]:
    """A spectrogram, where it can be drawn."""
    from multispec.modalities.speech import draw

    try:
        return [draw(result, path).name]
    except UnsupportedError:  # no matplotlib: the sound is there
        return []


def _delivered(generator: Any, text: str, way: str) -> dict[str, float]:
    """When the chunks came, streamed once more."""
    from multispec.modalities.speech import speaking

    drafter = drafters(generator, generator.modality.drafter)[way]
    chunks = speaking(generator, text, drafter=drafter)
    for _ in chunks:
        pass
    return dict(chunks.delivery.to_dict())


def show_times(parts: list[Part]) -> None:
    """One line for each sound: when it began, and whether it kept up."""
    for part in parts:
        for way, times in part.more.get("delivery", {}).items():
            console().print(
                f"{part.name}, {way}: first sound after {times['first_audio']:.2f} s, "
                f"real-time factor {times['real_time_factor']:.2f}, "
                f"worst gap between chunks {times['worst_gap']:.2f} s",
                markup=False,
            )
