"""What the benchmark makes of seconds: ratios within a turn, the best fixed method, goals, falls."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from multispec.bench import regression
from multispec.bench.cases import Case, Request, Run
from multispec.bench.files import Results, markdown, write
from multispec.bench.goals import geometric, goals
from multispec.bench.machine import machine
from multispec.bench.prompts import TEXT, prompts
from multispec.bench.run import Cell, Requests, measure
from multispec.bench.session import Plan
from multispec.errors import UnknownNameError, UsageError
from multispec.sampling import Sampling

CASE = Case("text", 0.8, 2)


@dataclass(frozen=True)
class Fake:
    """Takes the seconds that it is told, turn by turn; a negative number is a failure."""

    name: str
    seconds: tuple[float, ...]
    tokens: tuple[int, ...] = (1, 2, 3, 4)
    why_not: str = ""
    asked: list[Request] = field(default_factory=list)

    def refuses(self, case: Case) -> str:
        return self.why_not

    def run(self, request: Request) -> Run:
        taken = self.seconds[len(self.asked) % len(self.seconds)]
        self.asked.append(request)
        if taken < 0:
            raise RuntimeError("no such luck")
        return Run(taken, (self.tokens, self.tokens), forward=0.9 * taken, rounds=4)


def _cell(*systems: Fake, turns: int = 3) -> Cell:
    return measure(systems, Requests(CASE, Sampling(), 4), turns)


def test_ratios_are_taken_within_a_turn() -> None:
    """A machine that is ten times slower in one turn changes nothing."""
    plain, auto = (
        Fake("multispec plain", (4.0, 4.0, 40.0, 4.0)),
        Fake("multispec auto", (9.0, 2.0, 20.0, 2.0)),
    )
    cell = _cell(plain, auto)
    assert cell.ratios("multispec auto", "multispec plain") == [2.0, 2.0, 2.0]
    figures = cell.to_dict()["systems"]["multispec auto"]
    assert (figures["against_plain"], figures["own_share"]) == (2.0, pytest.approx(0.1))
    assert figures["symbols_per_second"] == 4.0


def test_every_turn_has_other_prompts_and_seeds_the_same_for_all() -> None:
    """Nobody is asked for something else."""
    plain, auto = Fake("multispec plain", (1.0,)), Fake("multispec auto", (1.0,))
    _cell(plain, auto)
    assert plain.asked == auto.asked
    seeds = [law.seed for request in plain.asked for law in request.sampling]
    assert seeds == [*range(8)]
    assert len({request.prompts for request in plain.asked}) == 4


def test_only_the_fastest_fixed_methods_take_turns() -> None:
    """Three were tried; the best of the two that go on is the best of the medians."""
    fixed = [
        Fake(f"multispec {n}", seconds) for n, seconds in (("a", (3.0, 1.0)), ("b", (2.0,)), ("c", (9.0,)))
    ]
    cell = _cell(Fake("multispec plain", (4.0,)), Fake("multispec auto", (2.0,)), *fixed)
    assert cell.fixed == ["multispec a", "multispec b"]
    assert set(cell.tried) == {
        "multispec plain",
        "multispec auto",
        "multispec a",
        "multispec b",
        "multispec c",
    }
    assert cell.best_fixed == "multispec a"


def test_what_fails_or_refuses_is_left_out_with_the_reason() -> None:
    """The others go on."""
    failing, refusing = (
        Fake("llama.cpp plain", (-1.0,)),
        Fake("transformers plain", (1.0,), why_not="too many"),
    )
    cell = _cell(Fake("multispec plain", (1.0,)), failing, refusing)
    assert cell.names == ["multispec plain"]
    assert cell.left_out == {
        "llama.cpp plain": "RuntimeError: no such luck",
        "transformers plain": "too many",
    }
    assert math.isnan(cell.ratio("llama.cpp plain", "multispec plain"))


def test_other_symbols_are_noticed() -> None:
    """Ours have to agree; a peer draws its own."""
    plain, auto = Fake("multispec plain", (1.0,)), Fake("multispec auto", (1.0,), tokens=(1, 2, 3, 5))
    peer = Fake("transformers plain", (1.0,), tokens=(9,))
    assert not _cell(plain, auto).identical
    assert _cell(plain, peer).identical


def test_goals_are_means_over_cells_and_name_the_worst() -> None:
    """Two cells: 2x and 0.5x."""
    fast = _cell(Fake("multispec plain", (4.0,)), Fake("multispec auto", (2.0,)))
    slow = _cell(Fake("multispec plain", (2.0,)), Fake("multispec auto", (4.0,)))
    found = {one.what: one for one in goals([fast, slow])}
    worst = found["auto / plain, worst cell"]
    assert (worst.value, worst.met, worst.detail) == (0.5, False, "text, 0.8, batch 2")
    assert found["auto / plain, geometric mean of all cells"].value == pytest.approx(1.0)
    assert found["own time outside forward passes, auto, median"].met is False
    assert found["plain / llama.cpp plain"].met is None
    assert math.isnan(geometric([]))


def test_ratios_that_fell_are_found(tmp_path: Path) -> None:
    """Kept, read, and compared with a run in which auto is half as fast."""
    before = _cell(Fake("multispec plain", (4.0,)), Fake("multispec auto", (2.0,)))
    now = _cell(Fake("multispec plain", (4.0,)), Fake("multispec auto", (4.0,)))
    file = tmp_path / "deep" / "baseline.json"
    regression.save(file, [before], machine())
    kept = regression.load(file)
    assert regression.falls(kept, [before], 0.1) == []
    (fall,) = regression.falls(kept, [now], 0.1)
    assert (fall.case, fall.before, fall.now, fall.share) == ("text, 0.8, batch 2", 2.0, 1.0, 0.5)
    assert regression.falls(kept, [now], 0.6) == []


def test_a_foreign_baseline_is_refused(tmp_path: Path) -> None:
    """Not there, no JSON, and something else."""
    file = tmp_path / "baseline.json"
    for text in (None, "{", '{"ratios": [1]}'):
        if text is not None:
            file.write_text(text)
        with pytest.raises(UsageError, match="--save-baseline"):
            regression.load(file)


def test_files_hold_every_figure(tmp_path: Path) -> None:
    """JSON is valid though something was not measured; Markdown has a table for each case."""
    cell = _cell(Fake("multispec plain", (4.0,)), Fake("multispec auto", (2.0,)))
    results = Results("multispec bench", machine(), [cell], left_out={"llama.cpp": "not there"})
    written = write(results, tmp_path)
    assert {"bench.json", "bench.md"} <= {path.name for path in written}
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["cells"][0]["systems"]["multispec auto"]["against_plain"] == 2.0
    text = markdown(results)
    assert "### text, 0.8, batch 2" in text and "- llama.cpp: not there" in text and "identical" in text


def test_categories_of_text_take_turns() -> None:
    """Each comes once before any comes twice."""
    found = [name for name, _ in prompts("text")]
    assert found[: len(TEXT)] == list(TEXT) and len(found) == 2 * len(TEXT)
    assert {name for name, _ in prompts("text", ("chat",))} == {"chat"}


@pytest.mark.parametrize(
    "wrong",
    [{"streams": ("smell",)}, {"categories": ("poem",)}, {"peers": ("vllm",)}],
)
def test_unknown_names_are_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    """With what there is."""
    with pytest.raises(UnknownNameError):
        Plan(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"runs": 0}, {"batches": (0,)}, {"temperatures": (-1.0,)}, {"new_tokens": 1}, {"alphas": (2.0,)}],
)
def test_numbers_that_cannot_be_right_are_refused(wrong: dict[str, object]) -> None:
    """Before anything is run."""
    with pytest.raises(UsageError):
        Plan(**wrong)  # type: ignore[arg-type]
