"""Speed and memory of text generation beside transformers, with the same folders, in one run.

    python recipes/benchmark_text.py                     # what `make bench` runs
    python recipes/benchmark_text.py --new-tokens 100 --runs 3

Systems take turns, and every figure is the median of ratios within a turn, so that a machine which is busy
for a while is busy for all of them. "Own cost" is wall time less the time inside the models' forward passes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import multispec as ms
from multispec.bench.ours import Meter
from multispec.drafters import DraftModel
from multispec.generator import Generator
from multispec.loading import assets
from multispec.targets.loading import load_model

PROMPT = "Once upon a time there was"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure; every field is a flag of the command line."""

    target: str = ""
    draft: str = ""
    new_tokens: int = 200
    num_draft_tokens: int = 5
    runs: int = 7
    threads: int = 0
    long_tokens: int = 1600
    out: str = ".bench/text.json"
    memory: str = ""


@dataclass(frozen=True)
class Run:
    """One generation of one system."""

    seconds: float
    forward: float
    tokens: tuple[int, ...]
    rounds: int

    @property
    def own_per_round(self) -> float:
        """Milliseconds per round outside the forward passes."""
        return 1000 * (self.seconds - self.forward) / max(self.rounds, 1)


class Bench:
    """The two models, once for us and once for transformers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.meter, self.target_meter = Meter(), Meter()
        folder = settings.target or str(assets() / "text" / "target")
        draft = settings.draft or str(assets() / "text" / "draft")
        self.ids = _prompt_ids(folder)
        self.model, self.assistant = _endless(load_model(folder)), _endless(load_model(draft))
        self.generator, self.drafter = self._ours(folder, draft)
        self._instrument()

    def _ours(self, folder: str, draft: str) -> tuple[Generator, DraftModel]:
        target = ms.targets.CausalTarget(_endless(load_model(folder)), owned=True)
        small = ms.targets.CausalTarget(_endless(load_model(draft)), owned=True)
        for one in (target, small):
            one.meter(self.meter.around)
        drafter = DraftModel(small, num_draft_tokens=self.settings.num_draft_tokens)
        return Generator(target, draft=small), drafter

    def _instrument(self) -> None:
        self.model.forward = self.target_meter.around(self.meter.around(self.model.forward))
        self.assistant.forward = self.meter.around(self.assistant.forward)
        self.assistant.generation_config.num_assistant_tokens = self.settings.num_draft_tokens
        self.assistant.generation_config.num_assistant_tokens_schedule = "constant"
        self.assistant.generation_config.assistant_confidence_threshold = 0.0

    def ours(
        self,
        drafter: Any,
        temperature: float,
        tokens: int,
        verifier: str = "coupled",
        policy: str | None = None,
    ) -> Run:
        """One generation by multispec; without a policy at the drafter's own length."""
        self.meter.seconds = 0.0
        sampling = ms.Sampling(temperature=temperature, seed=1)
        start = time.perf_counter()
        result = self.generator.generate(
            self.ids,
            drafter=drafter,
            verifier=verifier,
            policy=policy,
            sampling=sampling,
            max_new_tokens=tokens,
        )
        seconds = time.perf_counter() - start
        found = tuple(result.tokens.tolist())
        return Run(seconds, self.meter.seconds, found, result.report.rounds)

    def theirs(self, temperature: float, tokens: int, **words: Any) -> Run:
        """One generation by transformers."""
        self.meter.seconds, self.target_meter.calls = 0.0, 0
        ids = torch.tensor([self.ids])
        sample = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
        torch.manual_seed(1)
        start = time.perf_counter()
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            **(sample or {"do_sample": False}),
            **words,
        )
        seconds = time.perf_counter() - start
        return Run(
            seconds, self.meter.seconds, tuple(out[0, ids.shape[1] :].tolist()), self.target_meter.calls
        )

    def systems(self, temperature: float) -> dict[str, Callable[[], Run]]:
        """Everything that takes turns at one temperature."""
        n, look = self.settings.new_tokens, ms.drafters.PromptLookup()
        return {
            "multispec plain": lambda: self.ours(None, temperature, n),
            "multispec auto": lambda: self.ours("auto", temperature, n, policy="auto"),
            "multispec draft model": lambda: self.ours(self.drafter, temperature, n),
            "multispec draft model, rejection": lambda: self.ours(self.drafter, temperature, n, "rejection"),
            "multispec prompt lookup": lambda: self.ours(look, temperature, n),
            "transformers plain": lambda: self.theirs(temperature, n),
            "transformers draft model": lambda: self.theirs(temperature, n, assistant_model=self.assistant),
            "transformers prompt lookup": lambda: self.theirs(temperature, n, prompt_lookup_num_tokens=10),
        }


def _prompt_ids(folder: str) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids: list[int] = tokenizer(PROMPT)["input_ids"]
    return ids


def _endless(model: Any) -> Any:
    """Without an end id, so that every system makes the same number of symbols."""
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    return model


def turns(systems: dict[str, Callable[[], Run]], runs: int) -> list[dict[str, Run]]:
    """One warm-up, then ``runs`` turns in which every system generates once."""
    found = [{name: system() for name, system in systems.items()} for _ in range(runs + 1)]
    return found[1:]


def ratio(found: list[dict[str, Run]], above: str, below: str) -> tuple[float, float, float]:
    """(median, lowest, highest) of how many times faster ``above`` was than ``below``, turn by turn."""
    pairs = [turn[below].seconds / turn[above].seconds for turn in found]
    return statistics.median(pairs), min(pairs), max(pairs)


def own(found: list[dict[str, Run]], name: str) -> float:
    """Median own cost per round in milliseconds."""
    return statistics.median(turn[name].own_per_round for turn in found)


def _speed(found: list[dict[str, Run]], label: str) -> list[dict[str, Any]]:
    best = "multispec draft model"
    wanted = [
        (best, "transformers plain", 2.0),
        (best, "transformers draft model", 1.5),
        ("multispec plain", "transformers plain", 1.0),
        (best, "multispec plain", None),
        ("multispec auto", "multispec plain", 0.97),
        ("multispec auto", best, None),
        ("multispec draft model, rejection", "transformers plain", None),
        ("multispec prompt lookup", "transformers prompt lookup", None),
    ]
    rows = []
    for above, below, goal in wanted:
        middle, low, high = ratio(found, above, below)
        rows.append(
            _row(f"{label}: {above} / {below}, tokens per second", middle, goal, f"{low:.2f} to {high:.2f}")
        )
    return rows


def _row(what: str, value: float, goal: float | None, spread: str = "", most: bool = False) -> dict[str, Any]:
    met = None if goal is None else (value <= goal if most else value >= goal)
    return {"what": what, "value": value, "goal": goal, "most": most, "spread": spread, "met": met}


def _costs(found: list[dict[str, Run]], label: str) -> list[dict[str, Any]]:
    ours, theirs = own(found, "multispec draft model"), own(found, "transformers draft model")
    return [
        _row(f"{label}: own cost per round, multispec draft model, ms", ours, 0.6, most=True),
        _row(f"{label}: own cost per round, transformers draft model, ms", theirs, None),
        _row(f"{label}: own cost, multispec / transformers", ours / theirs, 0.2, most=True),
    ]


def _linear(bench: Bench) -> dict[str, Any]:
    long, short = bench.settings.long_tokens, bench.settings.long_tokens // 4
    pairs = []
    for _ in range(3):
        times = [bench.ours(bench.drafter, 0.0, n).seconds for n in (short, long)]
        pairs.append(times[1] / times[0])
    what = f"time of {long} new tokens / {short}, multispec draft model, greedy"
    return _row(what, statistics.median(pairs), 4.4, f"{min(pairs):.2f} to {max(pairs):.2f}", most=True)


def _memory(settings: Settings) -> dict[str, Any]:
    peaks = [_peak(settings, system) for system in ("multispec", "transformers")]
    what = f"peak memory, multispec / transformers ({peaks[0]:.0f} / {peaks[1]:.0f} MiB)"
    return _row(what, peaks[0] / peaks[1], 1.15, most=True)


def _peak(settings: Settings, system: str) -> float:
    flags = [
        f"--{f.name.replace('_', '-')}={getattr(settings, f.name)}"
        for f in fields(settings)
        if f.name != "memory"
    ]
    command = [sys.executable, __file__, *flags, f"--memory={system}"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.strip().splitlines()[-1])


def _print_peak(settings: Settings) -> None:
    """Load the two models with one system, generate once, and print this process's peak in MiB."""
    folder = settings.target or str(assets() / "text" / "target")
    small = settings.draft or str(assets() / "text" / "draft")
    ids = _prompt_ids(folder)
    if settings.memory == "multispec":
        generator = ms.load(folder, draft=small)
        generator.generate(ids, drafter="draft_model", max_new_tokens=settings.new_tokens)
    else:
        model, assistant = load_model(folder), load_model(small)
        model.generate(torch.tensor([ids]), assistant_model=assistant, max_new_tokens=settings.new_tokens)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The table of ratios, with what is asked of each."""
    table = Table("figure", "median", "lowest to highest", "asked", "met")
    for row in rows:
        asked = "" if row["goal"] is None else f"{'at most' if row['most'] else 'at least'} {row['goal']}"
        met = "" if row["met"] is None else ("yes" if row["met"] else "no")
        table.add_row(row["what"], f"{row['value']:.2f}", row["spread"], asked, met)
    console.print(table)


def measure(settings: Settings) -> list[dict[str, Any]]:
    """All figures."""
    bench, rows = Bench(settings), []
    for label, temperature in (("greedy", 0.0), ("temperature 0.8", 0.8)):
        found = turns(bench.systems(temperature), settings.runs)
        drafted = ("multispec draft model", "multispec auto")
        same = all(t["multispec plain"].tokens == t[name].tokens for t in found for name in drafted)
        rows += [*_speed(found, label), *_costs(found, label)]
        rows.append(_row(f"{label}: plain and drafted tokens identical (1 is yes)", float(same), 1.0))
    return [*rows, _linear(bench), _memory(settings)]


def parse(arguments: list[str] | None = None) -> Settings:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for one in fields(Settings):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default)
    return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and keep the figures as JSON."""
    settings = parse(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.memory:
        _print_peak(settings)
        return
    rows = measure(settings)
    console = Console(width=140)
    show(rows, console)
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        json.dumps({"settings": asdict(settings), "threads": torch.get_num_threads(), "rows": rows}, indent=1)
    )
    console.print(f"{torch.get_num_threads()} threads; figures kept in {out}")


if __name__ == "__main__":
    main()
