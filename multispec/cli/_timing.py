"""Honest timings: the ways take turns, and the median of each counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multispec.cli._console import table

WARM_UP_TOKENS = 8
COLUMNS = ("", "seconds", "tokens/s", "speed ratio", "target calls", "mean acceptance length")


@dataclass(frozen=True)
class Timed:
    """One way of generating: the median of its seconds, and what it made."""

    seconds: float
    result: Any

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of wall time, the prompt's own time included."""
        return len(self.result.tokens) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "seconds": self.seconds,
            "tokens": len(self.result.tokens),
            "tokens_per_second": self.tokens_per_second,
            "target_calls": self.result.report.target_calls,
            "mean_acceptance_length": self.result.report.mean_acceptance_length,
        }


def take_turns(
    generator: Any,
    prompt: Any,
    settings: Mapping[str, Any],
    drafters: Mapping[str, Any],
    runs: int = 3,
) -> dict[str, Timed]:
    """Generate with each drafter in turn, ``runs`` times, after one short warm-up each."""
    asked = {name: {**settings, "drafter": drafter} for name, drafter in drafters.items()}
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    results: dict[str, Any] = {}
    for one in asked.values():
        generator.generate(prompt, **(one | {"max_new_tokens": WARM_UP_TOKENS}))
    for _ in range(runs):
        for name, one in asked.items():
            start = time.perf_counter()
            results[name] = generator.generate(prompt, **one)
            seconds[name].append(time.perf_counter() - start)
    return {name: Timed(statistics.median(seconds[name]), results[name]) for name in asked}


def identical(timed: Mapping[str, Timed]) -> bool:
    """Whether all ways gave the same tokens."""
    tokens = [one.result.tokens.tolist() for one in timed.values()]
    return all(one == tokens[0] for one in tokens)


def rows(timed: Mapping[str, Timed]) -> list[list[str]]:
    """One row per way; the speed ratio is against the first."""
    first = next(iter(timed.values())).tokens_per_second
    return [
        [
            name,
            f"{one.seconds:.2f}",
            f"{one.tokens_per_second:.1f}",
            f"{one.tokens_per_second / first:.2f}x",
            str(one.result.report.target_calls),
            f"{one.result.report.mean_acceptance_length:.2f}",
        ]
        for name, one in timed.items()
    ]


def as_table(timed: Mapping[str, Timed], title: str = "") -> Any:
    """The rows, ready to print."""
    return table(COLUMNS, rows(timed), title)


def verdict(what: str, same: bool, promise: str) -> str:
    """Whether a comparison found what was promised; ``what`` was compared: "Pixels", "Samples"."""
    if same:
        return f"{what}: identical to plain decoding with this seed."
    if promise == "seed":
        return (
            f"[red]{what}: NOT identical.[/red] In half precision a near-tie may round differently; in "
            "float32 this breaks the promise of the verifier: run multispec check."
        )
    return f"{what}: not identical, nor promised: this verifier's promise is {promise!r}."
