"""What drafting saves when texts are spoken: target calls and time beside plain decoding, in one run.

    python recipes/benchmark_speech.py                     # part of `make bench`
    python recipes/benchmark_speech.py --runs 3 --batches 1

Batches of 1 and 8, at the sampling settings of the model and greedily. In each of these settings a first
turn, which counts for nothing else, tries every candidate and finds the best of each kind. Then plain
decoding and those take turns on other texts and seeds. Every figure is the median of ratios within a turn;
those of time are for a code, since ways that keep only the law say other codes. "First audio" is the time
until the first chunk of a stream. At the end a random model of two levels counts its depth passes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

import multispec as ms  # noqa: E402
from multispec.modalities.speech.long_texts import speaking  # noqa: E402
from recipes import _flags  # noqa: E402
from recipes._bench_table import row, show  # noqa: E402
from recipes._speech_ways import exact_ways  # noqa: E402
from recipes._turns import in_turn, parts  # noqa: E402
from recipes._two_level import depth_passes  # noqa: E402
from recipes._ways import PLAIN, Way, draft_ways, usable  # noqa: E402

WARM_UP_CODES = 8
FRAMES = 32  # of the model of two levels


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure; every field is a flag of the command line."""

    model: str = "speech"  # the embedded model, a folder or a hub id
    draft: str = ""  # a folder or hub id; empty: what comes with the model
    texts: str = (
        "The old man went to the sea; She opened the door and looked out; It was a cold night in winter; "
        "Nobody knew what had become of him; The children ran down to the river; He gave me a long look; "
        "We shall see each other again; There was no light in the house"
    )  # separated by semicolons
    batches: str = "1,8"  # texts said together
    windows: str = "4,8,16,32"  # codes that a window of the candidates holds
    runs: int = 5
    threads: int = 0
    out: str = ".bench/speech.json"


@dataclass(frozen=True)
class Run:
    """One batch of utterances in one way; seconds and calls are for a code, ``sound`` in seconds."""

    seconds: float
    calls: float
    codes: int
    sound: float

    @property
    def pace(self) -> float:
        """Seconds for a code."""
        return self.seconds / self.codes

    @property
    def share(self) -> float:
        """Target calls for a code."""
        return self.calls / self.codes

    @property
    def real_time(self) -> float:
        """Seconds of work for one of sound."""
        return self.seconds / self.sound


@dataclass(frozen=True, kw_only=True)
class Case:
    """Texts said together, at a temperature."""

    batch: int
    sampling: ms.Sampling

    @property
    def greedy(self) -> bool:
        """Whether the most likely code is taken."""
        return self.sampling.temperature == 0

    @property
    def label(self) -> str:
        """What rows of the table begin with."""
        name = "greedy" if self.greedy else f"temperature {self.sampling.temperature:g}"
        return f"batch {self.batch}, {name}"


class Bench:
    """One loaded model, and the candidates that it can be run with."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.generator = ms.load(settings.model, draft=settings.draft or None, modality="speech")
        self.texts = parts(settings.texts, ";")
        self.free = self._usable(exact_ways([int(size) for size in settings.windows.split(",")]))
        self.drafted = self._usable(draft_ways(self.generator))

    def _usable(self, ways: Sequence[Way]) -> list[Way]:
        return usable(self.generator, ways, self.texts[0], max_new_tokens=WARM_UP_CODES)[0]

    def cases(self) -> list[Case]:
        """Every batch, as the model samples and greedily."""
        usual = self.generator.modality.sampling
        sizes = [int(size) for size in self.settings.batches.split(",")]
        laws = (usual, replace(usual, temperature=0))
        return [Case(batch=size, sampling=law) for size in sizes for law in laws]

    def _requests(self, case: Case, turn: int) -> tuple[list[str], list[ms.Sampling]]:
        numbers = range(turn * case.batch, (turn + 1) * case.batch)
        texts = [self.texts[n % len(self.texts)] for n in numbers]
        return texts, [replace(case.sampling, seed=n) for n in numbers]

    def run(self, way: Way, case: Case, turn: int) -> Run:
        """One batch; the text and the seed of each follow from the turn."""
        texts, sampling = self._requests(case, turn)
        start = time.perf_counter()
        made = way.draw(self.generator, texts, sampling=sampling)
        return Run(
            time.perf_counter() - start,
            sum(one.report.target_calls for one in made),
            sum(one.report.new_tokens for one in made),
            sum(one.output.duration for one in made),
        )

    def first_audio(self, way: Way, case: Case, turn: int) -> float:
        """Seconds until the first chunk of a stream."""
        (text, *_), (sampling, *_) = self._requests(case, turn)
        own = {"drafter": way.drafter, "verifier": way.verifier, "policy": way.policy}
        chunks = speaking(self.generator, text, sampling=sampling, **own)
        for _ in chunks:
            break
        return chunks.delivery.first_audio


@dataclass(frozen=True)
class Chosen:
    """The best of each kind, by a turn of its own: by target calls, or by time."""

    free: Way
    lossless: Way
    fastest: Way

    @staticmethod
    def of(bench: Bench, case: Case) -> Chosen:
        """Try every candidate once."""
        exact = [*bench.free, *bench.drafted]
        tried = {way: bench.run(way, case, 0) for way in (PLAIN, *exact)}
        return Chosen(
            free=min(bench.free, key=lambda way: tried[way].share),
            lossless=min(exact, key=lambda way: tried[way].share),
            fastest=min(exact, key=lambda way: tried[way].pace),
        )

    def systems(self) -> dict[str, Way]:
        """What takes turns."""
        return {"plain": PLAIN} | {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class Turn:
    """Every way once, and when each of them would have been heard first."""

    runs: dict[str, Run]
    heard: dict[str, float]


def turns(bench: Bench, case: Case, systems: dict[str, Way]) -> list[Turn]:
    """In each turn every way speaks once; each turn begins with another."""
    found, names = [], list(systems)
    for turn in range(1, bench.settings.runs + 1):
        runs, heard = dict[Way, Run](), dict[Way, float]()
        for way in (systems[name] for name in in_turn(names, turn)):
            # The same way may be the best in more than one respect.
            if way not in runs:
                runs[way] = bench.run(way, case, turn)
                heard[way] = bench.first_audio(way, case, turn) if case.batch == 1 else 0.0
        found.append(Turn({n: runs[systems[n]] for n in names}, {n: heard[systems[n]] for n in names}))
    return found


def rows(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """All figures of one setting."""
    systems = Chosen.of(bench, case).systems()
    found, names = turns(bench, case, systems), {key: way.name for key, way in systems.items()}
    fewer = 1 / 2.5 if case.greedy else 1 / 1.8

    def ratios(what: str, key: str) -> list[float]:
        return [getattr(one.runs[key], what) / getattr(one.runs["plain"], what) for one in found]

    lines = [
        row(
            f"{case.label}: target calls, exact and untrained ({names['free']}) / plain",
            ratios("share", "free"),
        ),
        row(
            f"{case.label}: target calls, exact ({names['lossless']}) / plain",
            ratios("share", "lossless"),
            fewer,
        ),
        row(f"{case.label}: time, exact ({names['fastest']}) / plain", ratios("pace", "fastest"), 1 / 1.5),
        row(
            f"{case.label}: seconds for one of sound, {names['fastest']}",
            [one.runs["fastest"].real_time for one in found],
            1.0,
        ),
        row(f"{case.label}: seconds for one of sound, plain", [one.runs["plain"].real_time for one in found]),
    ]
    if case.batch == 1:
        heard = [one.heard["fastest"] / one.heard["plain"] for one in found]
        lines.append(row(f"{case.label}: first audio, {names['fastest']} / plain", heard, 1.0))
    return lines


def depth_rows() -> list[dict[str, Any]]:
    """Depth passes of a random CSM, greedy, where so many of the guesses are right."""
    plain = depth_passes(FRAMES)
    what = "two levels, random CSM, greedy: depth passes per frame where guesses are right"
    return [
        row(f"{what} {right:.0%} / plain", [depth_passes(FRAMES, right) / plain], goal)
        for right, goal in ((0.98, 1 / 3), (0.95, None), (0.9, None))
    ]


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line."""
    return _flags.parse(Settings, arguments, __doc__, _wrong)


def _wrong(settings: Settings) -> str:
    enough = settings.runs >= 1 and settings.texts.strip("; ")
    return "" if enough else "--runs and --texts: one at least"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and keep the figures as JSON."""
    settings, console = parse(arguments), Console(width=140)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    bench = Bench(settings)
    lines = [line for case in bench.cases() for line in rows(bench, case)] + depth_rows()
    show(lines, console)
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    known = {"settings": asdict(settings), "threads": torch.get_num_threads(), "rows": lines}
    out.write_text(json.dumps(known, indent=1))
    console.print(f"{torch.get_num_threads()} threads; figures kept in {out}")


if __name__ == "__main__":
    main()
