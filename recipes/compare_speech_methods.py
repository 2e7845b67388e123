"""Every way to say a text, side by side: what it costs, what it gains, what becomes of the speech.

    python recipes/compare_speech_methods.py                           # the embedded model
    python recipes/compare_speech_methods.py --model FOLDER --draft FOLDER --texts "Go home; Come here"
    python recipes/compare_speech_methods.py --only "jacobi,budget" --seeds 8 --recogniser runs/speech

At the sampling settings of the model. Each utterance (a text with a seed) is said in all ways in turn.
Written are figures.json, figures.csv, the first utterance in every way that errs as .wav, and, with
matplotlib, quality.png.

target calls    mean per utterance; "share" is that of plain decoding for each code
TV / code       total variation spent per code, by the meter: 0 for exact ways
nats / code     -log p of the codes under the target; lossy ways drift away from plain's
length          seconds of sound against plain's: what is broken ends too soon or never
phonemes        heard wrongly by the recogniser of the training, where it is given
seconds         for a second of sound, relative to plain in the same turn, median
"""

from __future__ import annotations

import math
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

import multispec as ms  # noqa: E402
from multispec.errors import DrafterWarning, UsageError  # noqa: E402
from multispec.measures import token_nll  # noqa: E402
from multispec.modalities.speech.adapter import Speech  # noqa: E402
from multispec.modalities.speech.audio import Audio  # noqa: E402
from recipes import (
    _flags,  # noqa: E402
    _turns,  # noqa: E402
)
from recipes import _speech_recogniser as judge  # noqa: E402
from recipes._plot import missing  # noqa: E402
from recipes._speech_plot import Point, plot  # noqa: E402
from recipes._speech_ways import all_ways  # noqa: E402
from recipes._turns import asked_for, in_turn, parts, show_left_out, table  # noqa: E402
from recipes._ways import PLAIN, Way, usable  # noqa: E402

WARM_UP_CODES = 8
HEARD_RATE = 16_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare; every field is a flag of the command line."""

    model: str = "speech"  # the embedded model, a folder or a hub id
    draft: str = ""  # a folder or hub id; empty: what comes with the model
    texts: str = "The old man went to the sea; She opened the door and looked out"  # separated by semicolons
    seeds: int = 4  # utterances per text
    first_seed: int = 0
    only: str = ""  # parts of the names of the ways, separated by commas; empty: all
    recogniser: str = ""  # the folder of the training that made one
    threads: int = 0  # 0: as torch likes it
    out: str = "runs/compare_speech"

    @property
    def requests(self) -> list[tuple[str, int]]:
        """Texts with seeds."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return list(product(parts(self.texts, ";"), seeds))


class Ear:
    """The recogniser of the training: what share of the phonemes of a text is heard wrongly."""

    def __init__(self, model: judge.Recogniser, number: dict[str, int], words: Any) -> None:
        self._model, self._number, self._words = model.eval(), number, words

    @staticmethod
    def of(folder: str, words: Any) -> Ear:
        """That of a folder, for a model that speaks phonemes.

        Raises:
            UsageError: a model without phonemes.
        """
        from recipes import _speech_data as data
        from recipes._text_trainer import load_weights
        from recipes.train_speech import Settings as Training
        from recipes.train_speech import fresh_judge, heard_phonemes

        if words is None:
            raise UsageError(
                "A recogniser of phonemes needs a model that speaks phonemes: got one of letters."
            )
        speech = data.Speech(Path(folder))
        model = fresh_judge(Training(), speech)
        load_weights(model, Path(folder) / "recogniser")
        return Ear(model, heard_phonemes(speech), words)

    def errors(self, text: str, sound: Audio) -> float:
        """Edits for each phoneme of the text."""
        wanted = [self._number[name] for name in self._phonemes(text)]
        wave = sound.resampled(HEARD_RATE).waveform.mean(0).float().cpu().numpy()
        found = judge.recognised(self._model, wave) if len(wave) else []
        return judge.edits(found, wanted) / max(len(wanted), 1)

    def _phonemes(self, text: str) -> list[str]:
        """Stress and signs aside, as espeak-ng's were counted."""
        plain = [name.lstrip("',") for name in self._words.symbols(text)]
        return [name for name in plain if name in self._number]


@dataclass(frozen=True)
class Made:
    """One utterance, how long it took, and what is measured on it alone."""

    seconds: float
    result: Any
    nll: float
    error: float


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
    utterances: int
    target_calls: float
    calls_share: float
    step_compression: float
    mean_acceptance_length: float
    variation_per_code: float
    nats_per_code: float
    identical: float  # share of utterances with the codes of plain decoding
    length_share: float
    ended: float  # share that came to their end
    phoneme_error: float  # NaN without a recogniser
    seconds_share: float


class Comparison:
    """Says everything, and measures it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.generator = ms.load(settings.model, draft=settings.draft or None, modality="speech")
        self.speech = cast(Speech, self.generator.modality)
        words = getattr(self.speech.family, "words", None)
        self.ear = Ear.of(settings.recogniser, words) if settings.recogniser else None
        first = settings.requests[0][0]
        self.ways, self.refused = usable(self.generator, self._asked(), first, max_new_tokens=self._warm_up)

    @property
    def _warm_up(self) -> int:
        return WARM_UP_CODES * len(self.generator.target.spec.slots)

    def _asked(self) -> list[Way]:
        found, only = all_ways(self.generator), self.settings.only
        return [way for way in found if way is PLAIN or asked_for(way.name, only)]

    def turns(self, console: Console) -> list[dict[str, Made]]:
        """Every utterance in every way; each turn begins with another way."""
        found = []
        for number, (text, seed) in enumerate(self.settings.requests):
            console.print(f"{text}, seed {seed}: {len(self.ways)} ways", style="dim")
            found.append({way.name: self.made(way, text, seed) for way in in_turn(self.ways, number)})
        return found

    def made(self, way: Way, text: str, seed: int) -> Made:
        """One utterance in one way."""
        sampling = replace(self.speech.sampling, seed=seed)
        start = time.perf_counter()
        result = way.draw(self.generator, text, sampling=sampling)
        seconds = time.perf_counter() - start
        error = math.nan if self.ear is None else self.ear.errors(self.speech.read(text), result.output)
        return Made(seconds, result, self._nll(text, result, sampling), error)

    def _nll(self, text: str, result: Any, sampling: ms.Sampling) -> float:
        """-log p of a code in the mean; of parallel slots given the steps before."""
        prompt = self.speech.encode(text)
        codes = result.tokens.flatten().tolist()
        found = token_nll(self.generator.target, prompt, codes, sampling=sampling)
        return float(found.mean())


def figures(comparison: Comparison, turns: list[dict[str, Made]]) -> list[Figures]:
    """One line for each way."""
    return [_figures(way, turns) for way in comparison.ways]


def _figures(way: Way, turns: list[dict[str, Made]]) -> Figures:
    pairs = [(turn[way.name], turn[PLAIN.name]) for turn in turns]
    own = [one for one, _ in pairs]
    reports = [one.result.report for one in own]
    calls, new = sum(one.target_calls for one in reports), sum(one.new_tokens for one in reports)
    plain = [one.result.report for _, one in pairs]
    per_code = sum(one.target_calls for one in plain) / sum(one.new_tokens for one in plain)
    length = sum(one.result.output.duration for one in own)
    return Figures(
        way=way.name,
        family=way.family,
        setting=way.setting,
        trained=way.trained,
        exactness=way.exactness,
        drafter=f"draft model, {way.drafter.num_draft_tokens}" if way.trained else repr(way.drafter),
        verifier=way.verifier.name,
        utterances=len(pairs),
        target_calls=calls / len(pairs),
        calls_share=calls / new / per_code,
        step_compression=sum(one.step_compression * one.target_calls for one in reports) / calls,
        mean_acceptance_length=sum(one.mean_acceptance_length * one.rounds for one in reports)
        / sum(one.rounds for one in reports),
        variation_per_code=sum(one.variation_spent for one in reports) / new,
        nats_per_code=statistics.mean(one.nll for one in own),
        identical=statistics.mean(one.result.tokens.equal(other.result.tokens) for one, other in pairs),
        length_share=length / max(sum(one.result.output.duration for _, one in pairs), 1e-9),
        ended=statistics.mean(one.result.finish_reason == "stop" for one in own),
        phoneme_error=statistics.mean(one.error for one in own),
        seconds_share=statistics.median(_pace(one) / _pace(other) for one, other in pairs),
    )


def _pace(made: Made) -> float:
    """Seconds for each code: ways that keep only the law say other codes, and another number of them."""
    return float(made.seconds / made.result.report.new_tokens)


def scatter(turns: list[dict[str, Made]]) -> float:
    """The standard error of plain decoding's nats per code; 0 for a single utterance."""
    values = [turn[PLAIN.name].nll for turn in turns]
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


COLUMNS = (
    "way",
    "promise",
    "target calls",
    "share",
    "symbols per call",
    "mean accepted length",
    "TV / code",
    "nats / code",
    "length",
    "phonemes",
    "seconds",
)


def show(rows: Sequence[Figures], refused: dict[str, str], console: Console) -> None:
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
            f"{row.length_share:.2f}",
            "" if math.isnan(row.phoneme_error) else f"{row.phoneme_error:.3f}",
            f"{row.seconds_share:.2f}",
        )
        lines.append((row.way, row.exactness, *numbers))
    console.print(table(COLUMNS, lines))
    show_left_out(refused, console)


def keep(settings: Settings, rows: Sequence[Figures], spread: float, refused: dict[str, str]) -> None:
    """figures.json and figures.csv."""
    columns = [one.name for one in fields(Figures)]
    _turns.keep(settings, rows, columns, refused, nats_standard_error=spread)


def keep_sounds(comparison: Comparison, turn: dict[str, Made], folder: Path) -> None:
    """The first utterance plainly, and in every way that errs."""
    for way in comparison.ways:
        if way is PLAIN or not way.exact:
            name = "".join(one if one.isalnum() or one in "._" else "-" for one in way.name)
            turn[way.name].result.save(folder / f"{name}.wav")


def point(row: Figures) -> Point:
    """Where a line of the table lies in the plot."""
    return Point(
        name=row.way,
        family=row.family,
        exactness=row.exactness,
        calls=row.calls_share,
        nats=row.nats_per_code,
        variation=row.variation_per_code,
        error=None if math.isnan(row.phoneme_error) else row.phoneme_error,
    )


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line."""
    return _flags.parse(Settings, arguments, __doc__, _wrong)


def _wrong(settings: Settings) -> str:
    enough = min(settings.seeds, len(settings.requests)) >= 1
    return "" if enough else "--texts and --seeds: one at least"


def main(arguments: Sequence[str] | None = None) -> None:
    """Say, measure, print, and keep."""
    settings, console = parse(arguments), Console(width=150)
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", DrafterWarning)  # said in the table of what was left out
    if settings.threads:
        torch.set_num_threads(settings.threads)
    comparison = Comparison(settings)
    turns = comparison.turns(console)
    rows, spread = figures(comparison, turns), scatter(turns)
    show(rows, comparison.refused, console)
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    keep(settings, rows, spread, comparison.refused)
    keep_sounds(comparison, turns[0], folder)
    if why := missing():
        console.print(why, style="yellow")
    elif not any(math.isnan(row.nats_per_code) for row in rows):
        plot([point(row) for row in rows], spread, folder / "quality.png")
    console.print(f"{torch.get_num_threads()} threads; kept in {folder}")


if __name__ == "__main__":
    main()
