"""Every method of the catalog on one stream, side by side: how fast, and what it costs of the law.

    python recipes/compare_methods.py --stream text                     # or image, speech: embedded models
    python recipes/compare_methods.py --stream text --model FOLDER --draft FOLDER --references BOOKS
    python recipes/compare_methods.py --stream image --only "jacobi,budget" --new-tokens 64

Each drafter goes with the exact rule that is natural for it, each rule and policy with the draft model, on
text each structure too. In a turn every method continues the same prompt with the same seed, one at a time
and plain decoding again and again between them; each turn begins with another method. What is done is kept
in runs.jsonl: started again, the program goes on from there (after a change of the model use --restart).
Written are figures.csv, table.md and, with matplotlib, speed.png; below the table stands what could not be
run, and why.

accepted      symbols emitted per verification, its own one included (mean acceptance length)
target calls  for each symbol, as a share of plain decoding
speed         symbols a second relative to the last plain decoding in the same turn, median over the turns
TV / symbol   total variation spent, by the meter: 0 for exact methods
"""

from __future__ import annotations

import math
import re
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

import multispec as ms  # noqa: E402
from multispec.errors import DrafterWarning, MultispecError, OutputWarning, UsageError  # noqa: E402
from recipes import _flags  # noqa: E402
from recipes._catalog_ways import Entrant, LeftOut, References, entrants, stream_of  # noqa: E402
from recipes._journal import Journal  # noqa: E402
from recipes._method_plot import Point, plot  # noqa: E402
from recipes._plot import missing  # noqa: E402
from recipes._turns import asked_for, in_turn, lines_of, parts, show_left_out, table, write_csv  # noqa: E402
from recipes._ways import PLAIN, Way, failure, why_not  # noqa: E402

FUNCTION = '''def add(self, name, value):
    """Add an item with this name."""
    if name in self.items:
        raise KeyError(name)
    self.items[name] = value
    return value
'''
LOOP = """def read_lines(path, limit):
    result = []
    with open(path) as file:
        for line in file:
            if len(result) == limit:
                break
            result.append(line.strip())
    return result
"""


def edited(code: str, old: str, new: str) -> str:
    """A function, an edit of it, and the first line of a second edit: what follows is mostly there."""
    again = code.replace(old, new)
    return f"{code}\n\n{again}\n\n{code.partition(chr(10))[0]}\n"


PROMPTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "text": {
        "free text": ("Once upon a time there was", "The old man looked at the sea and"),
        "code editing": (edited(FUNCTION, "KeyError", "ValueError"), edited(LOOP, "strip", "lower")),
    },
    "image": {"captions": ("red heart", "cat face")},
    "speech": {"sentences": ("The old man went to the sea", "She opened the door and looked out")},
}
# The upper half of a picture of the embedded model; an utterance ends by itself.
NEW_TOKENS: Mapping[str, int] = {"text": 64, "image": 128}
TEMPERATURE = 0.8  # of text; other streams are drawn as the model says
WARM_UP, WARM_SEED = 8, 10**6
EVERY = 8  # methods between two plain decodings: a machine is not equally busy throughout a turn
# Texts that drafters look into: of so many other seeds, or so many symbols of the files that are given.
REFERENCE_SEED, REFERENCE_COUNT, REFERENCE_SYMBOLS = 10**5, 8, 200_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare; every field is a flag of the command line."""

    stream: str = "text"
    model: str = ""  # a folder or a hub id; empty: the embedded model of the stream
    draft: str = ""  # a folder or a hub id; empty: what comes with the model
    prompts: str = ""  # separated by semicolons; empty: those of the recipe
    references: str = ""  # of text: a .txt or a folder of them; empty: what plain decoding writes
    new_tokens: int = 0  # 0: 64 of text, 128 of a picture, whole utterances
    seeds: int = 2  # turns for each prompt
    first_seed: int = 0
    temperature: float = -1.0  # below 0: 0.8 for text, else the model's own
    only: str = ""  # parts of the names of methods, separated by commas; empty: all
    threads: int = 0  # 0: as torch likes it
    restart: bool = False  # throw away what an earlier start has measured
    out: str = ""  # empty: runs/compare_methods/STREAM

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.out or f"runs/compare_methods/{self.stream}")

    @property
    def length(self) -> int | None:
        """The most symbols of a run; None: as long as the stream is."""
        return self.new_tokens or NEW_TOKENS.get(self.stream)

    @property
    def measured(self) -> dict[str, Any]:
        """What has to agree between two starts; of methods and seeds there may be more."""
        free = ("only", "seeds", "restart", "out")
        return {name: value for name, value in asdict(self).items() if name not in free}

    def turns(self) -> list[Turn]:
        """Every prompt with every seed, all prompts before the next seed."""
        known: Mapping[str, Sequence[str]] = {"prompts": parts(self.prompts, ";")}
        known = known if self.prompts else PROMPTS[self.stream]
        asked = [(kind, prompt) for kind, some in known.items() for prompt in some]
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [Turn(kind, n, prompt, seed) for seed in seeds for n, (kind, prompt) in enumerate(asked)]


@dataclass(frozen=True)
class Turn:
    """A prompt, which of them it is, of which kind, and a seed."""

    prompts: str
    number: int
    prompt: str
    seed: int

    @property
    def key(self) -> tuple[int, int]:
        """What it is told by."""
        return self.number, self.seed


@dataclass(frozen=True, kw_only=True)
class Run:
    """One continuation by one method, as the journal keeps it.

    A step is what a plain call emits; ``plain`` the seconds for a symbol of the last plain decoding before.
    """

    name: str
    prompts: str
    number: int
    seed: int
    exactness: str
    seconds: float
    symbols: int
    steps: float
    calls: int
    rounds: int
    variation: float
    plain: float

    @property
    def speed(self) -> float:
        """How many times as fast as plain: methods that keep only the law make another number of symbols."""
        return self.plain / self.pace

    @property
    def turn(self) -> tuple[int, int]:
        """The key of its turn."""
        return self.number, self.seed

    @property
    def pace(self) -> float:
        """Seconds for a symbol."""
        return self.seconds / max(self.symbols, 1)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One line of the table: a method on one kind of prompts."""

    kind: str
    method: str
    beside: str
    prompts: str
    exactness: str
    turns: int
    mean_acceptance_length: float
    calls_share: float
    speed: float
    slowest: float
    fastest: float
    variation_per_symbol: float


class Comparison:
    """Runs everything that is asked for and not done yet."""

    def __init__(self, settings: Settings, generator: Any, journal: Journal) -> None:
        self.settings, self.generator, self._journal = settings, generator, journal
        self.turns = settings.turns()
        vocab_size = generator.target.spec.vocab_size
        store = References(self._references, vocab_size, settings.folder / "references.datastore")
        found = entrants(generator, settings.stream, store)
        asked = [one for one in found if one.name == PLAIN.name or asked_for(one.name, settings.only)]
        self.plain, *self.entrants = (one for one in asked if isinstance(one, Entrant))
        self._refused = {one.name: one.why for one in asked if isinstance(one, LeftOut)}
        self._ready: dict[str, Way] = {}

    @property
    def runs(self) -> list[Run]:
        """What is done."""
        return [Run(**line) for line in self._journal.lines if "why" not in line]

    @property
    def left_out(self) -> dict[str, str]:
        """What cannot be run, and why in a sentence."""
        names = {one.name for one in self.entrants}
        failed = {line["name"]: line["why"] for line in self._journal.lines if "why" in line}
        found = self._refused | {name: why for name, why in failed.items() if name in names}
        return {name: sentence(why) for name, why in found.items()}

    def run(self, console: Console) -> None:
        """All turns; each begins with another method."""
        shown = TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*shown, console=console) as progress:
            task = progress.add_task("", total=len(self.turns) * len(self.entrants))
            for number, turn in enumerate(self.turns):
                known = {run.name for run in self.runs if run.turn == turn.key} | {*self.left_out}
                left = [one for one in in_turn(self.entrants, number) if one.name not in known]
                progress.advance(task, len(self.entrants) - len(left))
                if not left and PLAIN.name not in known:
                    self._plainly(turn)
                for entrant in self._beside_plain(left, turn):
                    progress.update(task, description=entrant.name, advance=1)

    def _beside_plain(self, methods: Sequence[Entrant], turn: Turn) -> Iterator[Entrant]:
        """Some methods after each plain decoding; yields each when it is done."""
        for start in range(0, len(methods), EVERY):
            pace = self._plainly(turn)
            for entrant in methods[start : start + EVERY]:
                self._once(entrant, turn, pace)
                yield entrant

    def _plainly(self, turn: Turn) -> float:
        """Plain decoding once more; seconds for a symbol."""
        run = self._measured(PLAIN.name, self._way(self.plain, turn.prompt), turn)
        before = [one.pace for one in self.runs if one.name == PLAIN.name and one.turn == run.turn]
        self._journal.add(asdict(replace(run, plain=before[-1] if before else run.pace)))
        return run.pace

    def _once(self, entrant: Entrant, turn: Turn, pace: float) -> None:
        try:
            way = self._way(entrant, turn.prompt)
            line = asdict(replace(self._measured(entrant.name, way, turn), plain=pace))
        except MultispecError as error:
            line = {"name": entrant.name, "why": str(error)}
        self._journal.add(line)

    def _way(self, entrant: Entrant, prompt: str) -> Way:
        """Made and warmed up before its first turn."""
        if entrant.name not in self._ready:
            way = entrant.make()
            sampling = self.sampling(WARM_SEED)
            if why := why_not(self.generator, way, prompt, sampling=sampling, max_new_tokens=self._few):
                raise UsageError(why)
            self._ready[entrant.name] = way
        return self._ready[entrant.name]

    @property
    def _few(self) -> int:
        step: int = self.generator.target.spec.step
        return WARM_UP * step

    def _measured(self, name: str, way: Way, turn: Turn) -> Run:
        sampling, length = self.sampling(turn.seed), self.settings.length
        start = time.perf_counter()
        result = way.draw(self.generator, turn.prompt, sampling=sampling, max_new_tokens=length)
        seconds, report = time.perf_counter() - start, result.report
        if why := failure(report):
            raise UsageError(why)
        return Run(
            name=name,
            prompts=turn.prompts,
            number=turn.number,
            seed=turn.seed,
            exactness=way.exactness,
            seconds=seconds,
            symbols=report.new_tokens,
            steps=report.new_tokens / report.step,
            calls=report.target_calls,
            rounds=report.rounds,
            variation=report.variation_spent,
            plain=math.nan,
        )

    def sampling(self, seed: int) -> ms.Sampling:
        """Of a run with this seed."""
        settings = self.settings
        usual: ms.Sampling = self.generator.modality.sampling
        if settings.temperature >= 0:
            usual = replace(usual, temperature=settings.temperature)
        elif settings.stream == "text":
            usual = replace(usual, temperature=TEMPERATURE)
        return replace(usual, seed=seed)

    def _references(self) -> list[list[int]]:
        """Texts of ids that are like what will be made, and none of it."""
        if self.settings.references:
            return read_references(Path(self.settings.references), self.generator)
        found = []
        for prompt in dict.fromkeys(turn.prompt for turn in self.turns):
            seeds = range(REFERENCE_SEED, REFERENCE_SEED + REFERENCE_COUNT)
            sampling = [self.sampling(seed) for seed in seeds]
            asked = {"sampling": sampling, "max_new_tokens": self.settings.length}
            found += PLAIN.draw(self.generator, [prompt] * len(sampling), **asked)
        return [one.tokens.flatten().tolist() for one in found if len(one.tokens)]


def read_references(path: Path, generator: Any) -> list[list[int]]:
    """The ids of a text, or of the beginning of each .txt of a folder.

    Raises:
        UsageError: no such file or folder, or no text in it.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError(f"--references takes a text or a folder of .txt: got {path}, expected some there.")
    most = REFERENCE_SYMBOLS // len(files)
    # A symbol has some characters: what is read need not be turned into ids as a whole.
    texts = [file.read_text(encoding="utf-8", errors="ignore")[: 8 * most] for file in files]
    found = [generator.modality.encode(text).ids[:most].tolist() for text in texts if text.strip()]
    if not found:
        raise UsageError(f"--references has no text: got {path}, expected a text or a folder of .txt.")
    return found


def sentence(text: str) -> str:
    """The first sentence, on one line."""
    return re.split(r"(?<!\.)\. ", " ".join(text.split()))[0].rstrip(".") + "."


def figures(methods: Sequence[Entrant], runs: Sequence[Run], turns: Sequence[Turn]) -> list[Figures]:
    """A line for each method on each kind of prompts that it was run on, the fastest first in each kind."""
    wanted = {turn.key for turn in turns}
    plain = {run.turn: run for run in runs if run.name == PLAIN.name}
    rows = []
    for kind in dict.fromkeys(turn.prompts for turn in turns):
        some = [run for run in runs if run.prompts == kind and run.turn in wanted]
        own = {one: [run for run in some if run.name == one.name] for one in methods}
        lines = [_figures(one, found, plain) for one, found in own.items() if found]
        order = list(dict.fromkeys(one.kind for one in lines))
        rows += sorted(lines, key=lambda one: (order.index(one.kind), -one.speed))
    return rows


def _figures(entrant: Entrant, runs: Sequence[Run], plain: Mapping[tuple[int, int], Run]) -> Figures:
    ratios = [run.speed for run in runs]
    symbols = sum(run.symbols for run in runs)
    beside = [plain[run.turn] for run in runs]
    per_symbol = sum(one.calls for one in beside) / sum(one.symbols for one in beside)
    return Figures(
        kind=entrant.kind,
        method=entrant.method,
        beside=entrant.beside,
        prompts=runs[0].prompts,
        exactness=runs[0].exactness,
        turns=len({run.turn for run in runs}),
        mean_acceptance_length=sum(run.steps for run in runs) / max(sum(run.rounds for run in runs), 1),
        calls_share=sum(run.calls for run in runs) / symbols / per_symbol,
        speed=statistics.median(ratios),
        slowest=min(ratios),
        fastest=max(ratios),
        variation_per_symbol=sum(run.variation for run in runs) / symbols,
    )


COLUMNS = (
    "method",
    "kind",
    "with",
    "promise",
    "accepted",
    "target calls",
    "speed",
    "from",
    "to",
    "TV / symbol",
)
WORDS = 4  # of the columns; the others are numbers


def cells(row: Figures) -> tuple[str, ...]:
    """One line of the table."""
    return (
        row.method,
        row.kind,
        row.beside,
        row.exactness,
        f"{row.mean_acceptance_length:.2f}",
        f"{row.calls_share:.3f}",
        f"{row.speed:.2f}",
        f"{row.slowest:.2f}",
        f"{row.fastest:.2f}",
        f"{row.variation_per_symbol:.4f}",
    )


def by_prompts(rows: Sequence[Figures]) -> dict[str, list[Figures]]:
    """The lines of each kind of prompts."""
    kinds = dict.fromkeys(row.prompts for row in rows)
    return {kind: [row for row in rows if row.prompts == kind] for kind in kinds}


def markdown(title: str, rows: Sequence[Figures], left_out: Mapping[str, str]) -> str:
    """The tables and what was left out."""
    lines = [f"# {title}"]
    for kind, some in by_prompts(rows).items():
        lines += ["", f"## {kind.capitalize()}", "", f"| {' | '.join(COLUMNS)} |"]
        lines.append("|" + "---|" * WORDS + "---:|" * (len(COLUMNS) - WORDS))
        lines += [f"| {' | '.join(cells(row))} |" for row in some]
    if left_out:
        lines += ["", "## Left out", ""]
        lines += [f"- {name}: {why}" for name, why in left_out.items()]
    return "\n".join(lines) + "\n"


def title_of(comparison: Comparison) -> str:
    """What was measured, in a line."""
    settings = comparison.settings
    length = f"up to {settings.length} symbols" if settings.length else "whole streams"
    temperature = comparison.sampling(0).temperature
    return (
        f"Methods on {settings.stream}: {settings.model or 'the embedded model'}, {length}, temperature "
        f"{temperature:g}; turns: {len(comparison.turns)}, threads: {torch.get_num_threads()}"
    )


def keep(comparison: Comparison, rows: Sequence[Figures], console: Console) -> None:
    """figures.csv, table.md and speed.png."""
    folder, title = comparison.settings.folder, title_of(comparison)
    write_csv(folder / "figures.csv", lines_of(rows), [one.name for one in fields(Figures)])
    (folder / "table.md").write_text(markdown(title, rows, comparison.left_out), encoding="utf-8")
    if why := missing():
        console.print(why, style="yellow")
        return
    plot([point(row) for row in rows], title, folder / "speed.png")


def point(row: Figures) -> Point:
    """Where a line of the table lies in the plot."""
    return Point(
        kind=row.kind,
        method=row.method,
        prompts=row.prompts,
        exactness=row.exactness,
        speed=row.speed,
        variation=row.variation_per_symbol,
    )


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line."""
    return _flags.parse(Settings, arguments, __doc__, _wrong)


def _wrong(settings: Settings) -> str:
    enough = settings.seeds >= 1 and (not settings.prompts or parts(settings.prompts, ";"))
    return "" if enough else "--seeds and --prompts: one at least"


def comparison_of(settings: Settings) -> Comparison:
    """The journal and the model, of the stream that is asked for.

    Raises:
        UsageError: no such stream, references that are no text, a journal with other settings.
    """
    stream = stream_of(settings.stream, tuple(PROMPTS))
    if settings.references and stream != "text":
        raise UsageError(
            f"--references are texts: got {settings.references!r} for the stream {stream}. Leave it out: "
            "plain decoding of other seeds is looked into."
        )
    measured = settings.measured | {"threads": torch.get_num_threads()}
    journal = Journal.at(settings.folder / "runs.jsonl", measured, restart=settings.restart)
    generator = ms.load(settings.model or stream, draft=settings.draft or None, modality=stream)
    return Comparison(settings, generator, journal)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not done yet, print, and keep."""
    settings, console = parse(arguments), Console(width=150)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for expected in (
        DrafterWarning,
        OutputWarning,
    ):  # said in the table; parts of pictures
        warnings.simplefilter("ignore", expected)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    comparison = comparison_of(settings)
    comparison.run(console)
    methods = [comparison.plain, *comparison.entrants]
    rows = figures(methods, comparison.runs, comparison.turns)
    for kind, some in by_prompts(rows).items():
        console.print(f"\n{kind}", style="bold")
        console.print(table(COLUMNS, [cells(row) for row in some], WORDS))
    show_left_out(comparison.left_out, console)
    keep(comparison, rows, console)
    console.print(f"{torch.get_num_threads()} threads; kept in {settings.folder}")


if __name__ == "__main__":
    try:
        main()
    except MultispecError as error:
        sys.exit(str(error))
