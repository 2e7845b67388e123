"""Every way to draw a picture, side by side: what it costs, what it gains, what becomes of the pictures.

    python recipes/compare_image_methods.py                            # the embedded model
    python recipes/compare_image_methods.py --model FOLDER --draft FOLDER --captions "red heart; cat face"
    python recipes/compare_image_methods.py --only "jacobi,budget" --seeds 8

Temperature 1, with the guidance of the model. Each picture (a caption with a seed) is drawn in all ways in
turn, one picture at a time. Written are figures.json, figures.csv, pictures.png (one picture in all ways)
and, with matplotlib, quality.png.

target calls    mean per picture; "share" is that of plain decoding
TV / code       total variation spent per code, by the meter: 0 for exact ways
nats / code     -log p of the codes under the guided target
PSNR, SSIM      against the plain picture of the same seed: inf and 1 where the seed decides. An exact way
                that keeps the law only draws another picture, as good as any
Frechet         distance of mean codebook vectors to plain pictures of other seeds; "plain" is the floor
seconds         relative to plain in the same turn, median
"""

from __future__ import annotations

import math
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from rich.console import Console
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

import multispec as ms  # noqa: E402
from multispec.errors import DrafterWarning  # noqa: E402
from multispec.measures import token_nll  # noqa: E402
from multispec.modalities.image.adapter import Images, to_pixels  # noqa: E402
from multispec.modalities.image.measures import (  # noqa: E402
    WINDOW,
    codebook_features,
    frechet_distance,
    psnr,
    ssim,
)
from multispec.modalities.image.seeing import contact_sheet  # noqa: E402
from recipes import (
    _flags,  # noqa: E402
    _turns,  # noqa: E402
)
from recipes._image_plot import Floor, Point, plot  # noqa: E402
from recipes._image_ways import all_ways  # noqa: E402
from recipes._plot import missing  # noqa: E402
from recipes._turns import asked_for, in_turn, parts, show_left_out, table, written  # noqa: E402
from recipes._ways import PLAIN, Way, usable  # noqa: E402

WARM_UP_CODES = 8
REFERENCE_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare; every field is a flag of the command line."""

    model: str = "image"  # the embedded model, a folder or a hub id
    draft: str = ""  # a folder or hub id; empty: what comes with the model
    captions: str = "red heart; cat face; rocket; green apple"  # separated by semicolons
    seeds: int = 4  # pictures per caption
    first_seed: int = 0
    references: int = 3  # times as many plain pictures of other seeds, for the Frechet distances
    only: str = ""  # parts of the names of the ways, separated by commas; empty: all
    side: int = 128  # pixels of each picture on the contact sheet
    threads: int = 0  # 0: as torch likes it
    out: str = "runs/compare_image"

    @property
    def requests(self) -> list[tuple[str, int]]:
        """Captions with seeds."""
        return self._with(range(self.first_seed, self.first_seed + self.seeds))

    def reference(self, group: int) -> list[tuple[str, int]]:
        """The same captions with seeds that no other group has."""
        start = self.first_seed + self.seeds * (group + 1)
        return self._with(range(start, start + self.seeds))

    def _with(self, seeds: Sequence[int]) -> list[tuple[str, int]]:
        return list(product(parts(self.captions, ";"), seeds))


@dataclass(frozen=True)
class Drawn:
    """One picture, how long it took, and what is measured on it alone."""

    seconds: float
    result: Any
    pixels: Tensor
    nll: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One line of the table."""

    way: str
    family: str
    setting: str
    trained: bool  # whether it drafts with a draft model
    exactness: str
    drafter: str
    verifier: str
    pictures: int
    target_calls: float
    calls_share: float
    step_compression: float
    mean_acceptance_length: float
    variation_per_code: float
    nats_per_code: float
    identical: float  # share of pictures with the codes of plain decoding
    psnr: float
    ssim: float  # NaN where pictures are smaller than its window
    frechet: float  # NaN for a single picture
    frechet_floor: float
    seconds_share: float


class Comparison:
    """Draws everything, and measures it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.generator = ms.load(settings.model, draft=settings.draft or None, modality="image")
        self.images = cast(Images, self.generator.modality)
        first = settings.requests[0][0]
        found, self.refused = usable(self.generator, self._asked(), first, max_new_tokens=WARM_UP_CODES)
        self.ways = found
        self._known: dict[tuple[str, tuple[int, ...]], float] = {}

    def _asked(self) -> list[Way]:
        found, only = all_ways(self.generator), self.settings.only
        return [way for way in found if way is PLAIN or asked_for(way.name, only)]

    def turns(self, console: Console) -> list[dict[str, Drawn]]:
        """Every picture in every way; each turn begins with another way."""
        found = []
        for number, (caption, seed) in enumerate(self.settings.requests):
            console.print(f"{caption}, seed {seed}: {len(self.ways)} ways", style="dim")
            found.append({way.name: self.drawn(way, caption, seed) for way in in_turn(self.ways, number)})
        return found

    def drawn(self, way: Way, caption: str, seed: int) -> Drawn:
        """One picture in one way."""
        start = time.perf_counter()
        result = way.draw(self.generator, caption, sampling=ms.Sampling(seed=seed))
        seconds = time.perf_counter() - start
        return Drawn(seconds, result, to_pixels(result.output), self._nll(caption, result))

    def _nll(self, caption: str, result: Any) -> float:
        codes = tuple(result.tokens.tolist())
        if (caption, codes) not in self._known:
            prompt = self.images.encode(caption)
            found = token_nll(self.generator.target, prompt, codes)
            self._known[caption, codes] = float(found.mean())
        return self._known[caption, codes]

    def features(self, pictures: Sequence[Tensor]) -> Tensor:
        """Mean codebook vectors."""
        return codebook_features(self.images.family.codec, pictures)

    def reference(self, group: int) -> Tensor:
        """Features of plain pictures of other seeds, drawn together: a batch changes nothing about them."""
        asked, pictures = self.settings.reference(group), list[Tensor]()
        for start in range(0, len(asked), REFERENCE_BATCH):
            some = asked[start : start + REFERENCE_BATCH]
            sampling = [ms.Sampling(seed=seed) for _, seed in some]
            made = PLAIN.draw(self.generator, [caption for caption, _ in some], sampling=sampling)
            pictures += [to_pixels(one.output) for one in made]
        return self.features(pictures)


def floor_of(plain: Tensor, groups: Sequence[Tensor]) -> Floor:
    """Plain against plain: what the distances of exact ways scatter about."""
    value = distance(plain, torch.cat(list(groups)))
    every = [plain, *groups]
    others = [torch.cat([one for one in every if one is not group]) for group in groups]
    found = [value, *(distance(group, rest) for group, rest in zip(groups, others, strict=True))]
    return Floor(value, min(found), max(found))


def distance(first: Tensor, second: Tensor) -> float:
    """The Frechet distance; NaN where there are too few pictures for one."""
    return math.nan if min(len(first), len(second)) < 2 else frechet_distance(first, second)


def figures(comparison: Comparison, turns: list[dict[str, Drawn]]) -> tuple[list[Figures], Floor]:
    """One line for each way, and how far plain pictures are from plain pictures."""
    groups = [comparison.reference(group) for group in range(comparison.settings.references)]
    plain = comparison.features([turn[PLAIN.name].pixels for turn in turns])
    floor, reference = floor_of(plain, groups), torch.cat(groups)
    rows = []
    for way in comparison.ways:
        features = comparison.features([turn[way.name].pixels for turn in turns])
        rows.append(_figures(way, turns, distance(features, reference), floor))
    return rows, floor


def _figures(way: Way, turns: list[dict[str, Drawn]], frechet: float, floor: Floor) -> Figures:
    pairs = [(turn[way.name], turn[PLAIN.name]) for turn in turns]
    reports = [own.result.report for own, _ in pairs]
    calls = [one.target_calls for one in reports]
    plain_calls = sum(plain.result.report.target_calls for _, plain in pairs)
    new = sum(one.new_tokens for one in reports)
    return Figures(
        way=way.name,
        family=way.family,
        setting=way.setting,
        trained=way.trained,
        exactness=way.exactness,
        drafter=f"draft model, {way.drafter.num_draft_tokens}" if way.trained else repr(way.drafter),
        verifier=way.verifier.name,
        pictures=len(pairs),
        target_calls=statistics.mean(calls),
        calls_share=sum(calls) / plain_calls,
        step_compression=new / sum(calls),
        mean_acceptance_length=new / sum(one.rounds for one in reports),
        variation_per_code=sum(one.variation_spent for one in reports) / new,
        nats_per_code=statistics.mean(own.nll for own, _ in pairs),
        identical=statistics.mean(own.result.tokens.equal(plain.result.tokens) for own, plain in pairs),
        psnr=statistics.median(psnr(own.pixels, plain.pixels) for own, plain in pairs),
        ssim=statistics.mean(_ssim(own.pixels, plain.pixels) for own, plain in pairs),
        frechet=frechet,
        frechet_floor=floor.value,
        seconds_share=statistics.median(own.seconds / plain.seconds for own, plain in pairs),
    )


def _ssim(first: Tensor, second: Tensor) -> float:
    return ssim(first, second) if min(first.shape[1:]) >= WINDOW else math.nan


COLUMNS = (
    "way",
    "promise",
    "target calls",
    "share",
    "symbols per call",
    "mean accepted length",
    "TV / code",
    "nats / code",
    "PSNR",
    "SSIM",
    "Frechet",
    "seconds",
)


def show(rows: Sequence[Figures], floor: Floor, refused: dict[str, str], console: Console) -> None:
    """The table, and what was left out."""
    lines = []
    for row in rows:
        numbers = (
            f"{row.target_calls:.1f}",
            f"{row.calls_share:.3f}",
            f"{row.step_compression:.2f}",
            f"{row.mean_acceptance_length:.2f}",
            f"{row.variation_per_code:.4f}",
            f"{row.nats_per_code:.3f}",
            f"{row.psnr:.1f}",
            f"{row.ssim:.3f}",
            f"{row.frechet:.3g}",
            f"{row.seconds_share:.2f}",
        )
        lines.append((row.way, row.exactness, *numbers))
    console.print(table(COLUMNS, lines))
    scatter = f"{floor.low:.3g} to {floor.high:.3g}"
    console.print(f"Frechet distance of plain pictures to plain pictures of other seeds: {scatter}")
    show_left_out(refused, console)


def sheet(comparison: Comparison, turn: dict[str, Drawn], side: int) -> Any:
    """One caption in all ways."""
    pictures = [turn[way.name].result.output for way in comparison.ways]
    words = [f"{way.name}: {turn[way.name].result.report.target_calls}" for way in comparison.ways]
    return contact_sheet(pictures, words, side=side)


def keep(settings: Settings, rows: Sequence[Figures], floor: Floor, refused: dict[str, str]) -> None:
    """figures.json and figures.csv."""
    scatter = {name: written(value) for name, value in asdict(floor).items()}
    columns = [one.name for one in fields(Figures)]
    _turns.keep(settings, rows, columns, refused, frechet_floor=scatter)


def point(row: Figures) -> Point:
    """Where a line of the table lies in the plot."""
    return Point(
        family=row.family,
        setting=row.setting,
        exactness=row.exactness,
        calls=row.calls_share,
        frechet=row.frechet,
        variation=row.variation_per_code,
        trained=row.trained,
    )


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line."""
    return _flags.parse(Settings, arguments, __doc__, _wrong)


def _wrong(settings: Settings) -> str:
    enough = min(settings.seeds, settings.references, len(settings.requests)) >= 1
    return "" if enough else "--captions, --seeds and --references: one at least"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, measure, print, and keep."""
    settings, console = parse(arguments), Console(width=150)
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", DrafterWarning)  # said in the table of what was left out
    if settings.threads:
        torch.set_num_threads(settings.threads)
    comparison = Comparison(settings)
    turns = comparison.turns(console)
    rows, floor = figures(comparison, turns)
    show(rows, floor, comparison.refused, console)
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    keep(settings, rows, floor, comparison.refused)
    sheet(comparison, turns[0], settings.side).save(folder / "pictures.png")
    if why := missing():
        console.print(why, style="yellow")
    else:
        plot([point(row) for row in rows], floor, folder / "quality.png")
    console.print(f"{torch.get_num_threads()} threads; kept in {folder}")


if __name__ == "__main__":
    main()
