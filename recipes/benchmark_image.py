"""What drafting saves when pictures are drawn: target calls and time beside plain decoding, in one run.

    python recipes/benchmark_image.py                     # part of `make bench`
    python recipes/benchmark_image.py --runs 3 --batches 1

Temperature 1, batches of 1 and 8, with the model's guidance and without. In each of these settings a first
turn, which counts for nothing else, tries every candidate and finds the best of each kind. Then plain
decoding, SJD as published and those take turns on other captions and seeds. Every figure is the median of
ratios within a turn. Target calls are those of a picture, in a batch the mean.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

import multispec as ms  # noqa: E402
from multispec.drafters import SJD, Jacobi, ScdMaximal, SjdPac  # noqa: E402
from multispec.neighbours import UsesNeighbours  # noqa: E402
from multispec.protocols import Exactness, Standing  # noqa: E402
from multispec.sampling import Law, Noise  # noqa: E402
from multispec.stream import Draft, Verdict  # noqa: E402
from multispec.verifiers import BudgetedRejection, Coupled, Rejection  # noqa: E402
from recipes import _flags  # noqa: E402
from recipes._bench_table import row, show  # noqa: E402
from recipes._turns import in_turn, parts  # noqa: E402
from recipes._ways import PLAIN, Way, draft_model, draft_ways, relaxed_rules, usable  # noqa: E402

PUBLISHED = Way("SJD as published", "", SJD(), Rejection())
# Rules that look at neighbours, and what they decide on here.
LOOKING = ("LANTERN", "GSD")
DRAFTING = Way("scd_mc", "64", ScdMaximal(num_draft_tokens=64), Rejection())
WARM_UP_CODES = 8
NEUTRAL = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure; every field is a flag of the command line."""

    model: str = "image"  # the embedded model, a folder or a hub id
    draft: str = ""  # a folder or hub id; empty: what comes with the model
    captions: str = "red heart; cat face; rocket; green apple; sun; pizza; blue fish; red car"
    batches: str = "1,8"  # pictures drawn together
    windows: str = "32,64,128"  # codes that a window of the candidates holds
    per_token: float = 0.05  # total variation that the budget allows per code
    runs: int = 5
    threads: int = 0
    out: str = ".bench/image.json"


@dataclass
class Meter:
    """Seconds inside a rule of acceptance."""

    seconds: float = 0.0


@dataclass(frozen=True)
class Clocked:
    """A rule of acceptance with a clock; neighbours are looked up inside it."""

    rule: Any
    meter: Meter = field(default_factory=Meter)

    @property
    def name(self) -> str:
        """The rule's."""
        return str(self.rule.name)

    @property
    def exactness(self) -> Exactness:
        """The rule's."""
        promise: Exactness = self.rule.exactness
        return promise

    @property
    def coupled(self) -> bool:
        """The rule's."""
        return bool(self.rule.coupled)

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """The rule's, timed."""
        start = time.perf_counter()
        try:
            found: Verdict = self.rule.verify(draft, p, noise, standing)
        finally:
            self.meter.seconds += time.perf_counter() - start
        return found


@dataclass(frozen=True)
class Run:
    """One batch of pictures in one way."""

    seconds: float
    deciding: float
    calls: float
    variation: float

    @property
    def share(self) -> float:
        """The part of the time that went into acceptance."""
        return self.deciding / self.seconds


@dataclass(frozen=True, kw_only=True)
class Case:
    """Pictures drawn together, with or without guidance."""

    batch: int
    guided: bool

    @property
    def label(self) -> str:
        """What rows of the table begin with."""
        return f"batch {self.batch}, {'guided' if self.guided else 'no guidance'}"


class Bench:
    """One loaded model, and the candidates that it can be run with."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.generator = ms.load(settings.model, draft=settings.draft or None, modality="image")
        self.captions = parts(settings.captions, ";")
        self.neighbours = self.generator.modality.neighbours
        free = free_ways([int(size) for size in settings.windows.split(",")])
        self.free = self._usable(free)
        self.drafted = self._usable(draft_ways(self.generator))
        self.budgets = self._usable(budget_ways(self.generator, free, settings.per_token))

    def _usable(self, ways: Sequence[Way]) -> list[Way]:
        return usable(self.generator, ways, self.captions[0], max_new_tokens=WARM_UP_CODES)[0]

    def run(self, way: Way, case: Case, turn: int) -> Run:
        """One batch; the caption and the seed of each picture follow from the turn."""
        numbers = range(turn * case.batch, (turn + 1) * case.batch)
        rule, meter = way.verifier, Meter()
        if isinstance(rule, UsesNeighbours):
            known: Any = rule
            rule = replace(known, neighbours=self.neighbours)
        clocked = replace(way, verifier=Clocked(rule, meter))
        start = time.perf_counter()
        made = clocked.draw(
            self.generator,
            [self.captions[n % len(self.captions)] for n in numbers],
            sampling=[ms.Sampling(seed=n) for n in numbers],
            guidance=None if case.guided else NEUTRAL,
        )
        seconds, reports = time.perf_counter() - start, [one.report for one in made]
        return Run(
            seconds,
            meter.seconds,
            statistics.mean(one.target_calls for one in reports),
            sum(one.variation_spent for one in reports) / sum(one.new_tokens for one in reports),
        )

    def cases(self) -> list[Case]:
        """Every batch, guided where the model is, and not."""
        guided = [False] if self.generator.modality.guidance.neutral else [True, False]
        sizes = [int(size) for size in self.settings.batches.split(",")]
        return [Case(batch=size, guided=on) for size in sizes for on in guided]


def free_ways(windows: Sequence[int]) -> list[Way]:
    """Exact ways that need no training: windows of several lengths by either exact rule."""
    makers: tuple[tuple[str, Callable[[int], Any], Any], ...] = (
        ("jacobi", lambda n: Jacobi(num_draft_tokens=n), Coupled()),
        ("scd_mc", lambda n: ScdMaximal(num_draft_tokens=n), Rejection()),
        ("sjd_pac, coupled", lambda n: SjdPac(num_draft_tokens=n), Coupled()),
        ("sjd_pac, rejection", lambda n: SjdPac(num_draft_tokens=n), Rejection()),
    )
    return [Way(family, str(n), make(n), rule) for family, make, rule in makers for n in windows]


def budget_ways(generator: ms.Generator, free: Sequence[Way], per_token: float) -> list[Way]:
    """The budgeted rule on the windows that sample, and on the draft model where there is one."""
    rule = BudgetedRejection(per_token=per_token)
    found = [replace(way, verifier=rule) for way in free if way.exactness == "law"]
    drafter = draft_model(generator)
    if drafter is not None:
        drafters = [(n, replace(drafter, num_draft_tokens=n)) for n in (8, 16)]
        found += [Way("draft model", str(n), one, rule, True) for n, one in drafters]
    return found


@dataclass(frozen=True)
class Chosen:
    """The best of each kind, by a turn of its own: by target calls, or by time."""

    free: Way
    fastest: Way
    lossless: Way
    budget: Way

    @staticmethod
    def of(bench: Bench, case: Case) -> Chosen:
        """Try every candidate once."""
        exact = [*bench.free, *bench.drafted]
        tried = {way: bench.run(way, case, 0) for way in (PLAIN, *exact, *bench.budgets)}
        return Chosen(
            free=min(bench.free, key=lambda way: tried[way].calls),
            fastest=min(bench.free, key=lambda way: tried[way].seconds),
            lossless=min(exact, key=lambda way: tried[way].calls),
            budget=min(bench.budgets, key=lambda way: tried[way].calls),
        )

    def systems(self, bench: Bench) -> dict[str, Way]:
        """What takes turns."""
        known = [] if bench.neighbours is None else relaxed_rules(bench.neighbours)[::-1]
        some = {rule: replace(DRAFTING, verifier=one) for rule, _, one in known if rule in LOOKING}
        best = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"plain": PLAIN, "sjd": PUBLISHED, **best, **some}


def turns(bench: Bench, case: Case, systems: dict[str, Way]) -> list[dict[str, Run]]:
    """In each turn every way draws once; each turn begins with another."""
    found, names = [], list(systems)
    for turn in range(1, bench.settings.runs + 1):
        known: dict[Way, Run] = {}
        for way in (systems[name] for name in in_turn(names, turn)):
            # The same way may be the best in more than one respect.
            if way not in known:
                known[way] = bench.run(way, case, turn)
        found.append({name: known[systems[name]] for name in names})
    return found


def ratios(found: Sequence[dict[str, Run]], above: str, below: str, what: str) -> list[float]:
    """Turn by turn."""
    return [getattr(turn[above], what) / getattr(turn[below], what) for turn in found]


def rows(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """All figures of one setting."""
    chosen = Chosen.of(bench, case)
    systems = chosen.systems(bench)
    found, names = turns(bench, case, systems), {key: way.name for key, way in systems.items()}
    wanted = (
        ("calls", "free", "plain", 1 / 3, "target calls, exact and untrained"),
        ("calls", "free", "sjd", 1 / 2, "target calls, exact and untrained"),
        ("seconds", "fastest", "plain", 1 / 2, "time, exact and untrained"),
        ("seconds", "fastest", "sjd", None, "time, exact and untrained"),
        ("calls", "lossless", "plain", 1 / 4, "target calls, exact"),
        ("seconds", "lossless", "plain", None, "time, exact"),
        ("calls", "budget", "plain", 1 / 5, f"target calls, budget {bench.settings.per_token:g} per code"),
        ("seconds", "budget", "plain", None, f"time, budget {bench.settings.per_token:g} per code"),
    )
    lines = [
        row(
            f"{case.label}: {text} ({names[above]}) / {names[below]}", ratios(found, above, below, what), goal
        )
        for what, above, below, goal, text in wanted
    ]
    spent = [turn["budget"].variation for turn in found]
    what = f"{case.label}: variation spent per code by the budget"
    return [*lines, row(what, spent, bench.settings.per_token), *_shares(case, systems, found)]


def _shares(case: Case, systems: dict[str, Way], found: list[dict[str, Run]]) -> list[dict[str, Any]]:
    """What acceptance costs: the symbols' law, the draws, and the neighbours that are looked up for them."""
    lines = []
    for key in (key for key in systems if key in ("free", "budget", *LOOKING)):
        name = f"{DRAFTING.family} {DRAFTING.setting}" if key in LOOKING else systems[key].name
        what = f"{case.label}: share of the time for acceptance, {systems[key].verifier.name} ({name})"
        lines.append(row(what, [turn[key].share for turn in found], 1 / 20))
    return lines


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line."""
    return _flags.parse(Settings, arguments, __doc__, _wrong)


def _wrong(settings: Settings) -> str:
    enough = settings.runs >= 1 and settings.captions.strip("; ")
    return "" if enough else "--runs and --captions: one at least"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and keep the figures as JSON."""
    settings, console = parse(arguments), Console(width=140)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    bench = Bench(settings)
    lines = [line for case in bench.cases() for line in rows(bench, case)]
    show(lines, console)
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    known = {"settings": asdict(settings), "threads": torch.get_num_threads(), "rows": lines}
    out.write_text(json.dumps(known, indent=1))
    console.print(f"{torch.get_num_threads()} threads; figures kept in {out}")


if __name__ == "__main__":
    main()
