"""What looking things up costs: drafting from a long text, building a datastore, verifying a large tree.

    python recipes/benchmark_lookup.py
    python recipes/benchmark_lookup.py --tokens 10000 --megabytes 10 --only "prompt_lookup,rest"

The text is made up from a seed: symbols of a law like that of words, and passages that come back. Each
drafter takes in the text and goes on drafting from it; what is right is what the text itself goes on with.
"Draft" is the time of a round's draft and "learn" that of taking in what became of it, with logits of the
given vocabulary for each node. Memory is what the drafter holds when it has taken in the text. The datastore
is built from symbols of the same law, and asked for what follows places of it. Trees are verified through the
whole loop, with a target whose pass is a look-up, and its time is not counted.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

from multispec.drafters import (  # noqa: E402
    ADED,
    ANPD,
    LLMA,
    Cacheback,
    Datastore,
    NGrammys,
    PromptLookup,
    Rest,
    SuffixAutomatonDrafter,
    SuffixDecoding,
    TokenRecycling,
    build_datastore,
)
from multispec.history import History  # noqa: E402
from multispec.loop import rounds  # noqa: E402
from multispec.policies import FixedLength  # noqa: E402
from multispec.processing import Pipeline  # noqa: E402
from multispec.protocols import Budget, Context, Drafter, DraftSession, Request, Verifier  # noqa: E402
from multispec.report import Clock  # noqa: E402
from multispec.row import Row  # noqa: E402
from multispec.sampling import CounterNoise, Law, Sampling  # noqa: E402
from multispec.stream import Draft, Observation, Prompt, Slot, StreamSpec  # noqa: E402
from multispec.testing import FakeModel, ScriptedDrafter, row  # noqa: E402
from multispec.tree import children  # noqa: E402
from multispec.verifiers import Coupled, Rejection  # noqa: E402
from recipes import _flags  # noqa: E402

ROUND_MS, BUILD_S, TREE_MS = 0.1, 120.0, 1.0
Ints = NDArray[np.int64]
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure; every field is a flag of the command line."""

    tokens: int = 100_000
    rounds: int = 1000
    vocab_size: int = 4096
    megabytes: float = 100.0
    nodes: int = 64
    only: str = ""
    out: str = ".bench/lookup.json"
    smoke: bool = False

    def sized(self) -> Settings:
        """The same with next to nothing to do, for ``--smoke``."""
        if not self.smoke:
            return self
        return Settings(
            tokens=400, rounds=4, vocab_size=64, megabytes=0.02, nodes=8, only=self.only, out=self.out
        )


def made_up(count: int, vocab_size: int, seed: int = 0) -> Ints:
    """``count`` symbols: shares fall like those of words, and two in five are passages from before."""
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, vocab_size + 1)
    text = rng.choice(vocab_size, size=count, p=shares / shares.sum())
    end = 64
    while end < count:
        end += int(rng.integers(16, 64))
        length = int(rng.integers(8, 40))
        start = int(rng.integers(0, max(min(end, count) - length, 1)))
        passage = text[start : start + min(length, max(count - end, 0))].copy()
        text[end : end + len(passage)] = passage
        end += len(passage)
    return text


# ---- drafting ----


def drafters(text: Sequence[int], store: Path) -> dict[str, Drafter]:
    """All that look things up; those with a corpus of their own have this text in it."""
    known: tuple[Drafter, ...] = (
        PromptLookup(),
        SuffixAutomatonDrafter(),
        SuffixDecoding(),
        TokenRecycling(),
        Rest(store),
        Cacheback(),
        ANPD(),
        NGrammys(),
        ADED(),
        LLMA(references=[text]),
    )
    return {one.name: one for one in known}


def begun(drafter: Drafter, prompt: Sequence[int], vocab_size: int) -> DraftSession:
    """A session over one row."""
    return drafter.begin(
        Context(
            prompts={0: Prompt(ids=torch.tensor(prompt))},
            capacity={0: 2 * len(prompt)},
            vocab_size=vocab_size,
            device=torch.device("cpu"),
        )
    )


class Playing:
    """Rounds of one drafter over a text that is known beforehand."""

    def __init__(self, drafter: Drafter, text: Sequence[int], tokens: int, vocab_size: int) -> None:
        self._text, self._nodes = list(text), drafter.num_draft_tokens
        self.session = begun(drafter, self._text[:tokens], vocab_size)
        self.history = History(self._text[:tokens])
        self._pipeline = Pipeline(Sampling(), vocab_size)
        generator = torch.Generator().manual_seed(0)
        self._logits = torch.randn(self._nodes + 1, vocab_size, generator=generator)
        self.drafted, self.learnt, self.emitted = list[float](), list[float](), list[int]()

    def round(self) -> None:
        """Draft, compare with the text, learn."""
        asked = Request(0, self.history, Budget(self._nodes), CounterNoise(0), self._pipeline, True)
        start = time.perf_counter()
        draft = self.session.propose([asked])[0]
        self.drafted.append(time.perf_counter() - start)
        path, emitted = followed(draft, self._text, len(self.history))
        self.history.extend(emitted)
        logits = self._logits[: len(draft) + 1]
        seen = Observation(
            draft, path, emitted, logits, Law(logits, greedy=False), self.history.position - len(emitted)
        )
        start = time.perf_counter()
        self.session.observe(0, seen)
        self.learnt.append(time.perf_counter() - start)
        self.emitted.append(len(emitted))

    @property
    def over(self) -> bool:
        """Whether the text is at its end."""
        return len(self.history) + self._nodes >= len(self._text)


def followed(draft: Draft, text: Sequence[int], at: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The path through the draft that the text takes, and the symbols up to the one behind it."""
    below, path, node = children(draft.parents), list[int](), -1
    while (
        step := next((n for n in below.get(node, ()) if draft.ids[n] == text[at + len(path)]), None)
    ) is not None:
        path.append(step)
        node = step
    return tuple(path), tuple(text[at : at + len(path) + 1])


def drafting(name: str, drafter: Drafter, text: Sequence[int], settings: Settings) -> Figures:
    """One line of the first table: milliseconds per round, of the first one, bytes per symbol."""
    gc.collect()
    tracemalloc.start()
    held = Playing(drafter, text, settings.tokens, settings.vocab_size)
    before = tracemalloc.get_traced_memory()[0]
    held.round()
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    del held
    play = Playing(drafter, text, settings.tokens, settings.vocab_size)
    for _ in range(settings.rounds + 1):
        play.round()
        if play.over:
            break
    rounds_ms = [1000 * (a + b) for a, b in zip(play.drafted[1:], play.learnt[1:], strict=True)]
    return {
        "drafter": name,
        "draft_ms": 1000 * statistics.median(play.drafted[1:]),
        "learn_ms": 1000 * statistics.median(play.learnt[1:]),
        "round_ms": statistics.median(rounds_ms),
        "mean_ms": statistics.mean(rounds_ms),
        "first_s": play.drafted[0],
        "bytes_per_token": kept / settings.tokens,
        "accepted": statistics.mean(play.emitted),
    }


# ---- the datastore ----


def building(folder: Path, settings: Settings) -> Figures:
    """Seconds to build a store of so many megabytes, and milliseconds to ask it."""
    symbols = int(settings.megabytes * 1e6 / 6)
    text = made_up(symbols, settings.vocab_size, seed=1)
    parts = [part.data for part in np.array_split(text, max(symbols // 100_000, 1))]
    start = time.perf_counter()
    path = build_datastore(parts, folder / "large", vocab_size=settings.vocab_size)
    seconds = time.perf_counter() - start
    store = Datastore(path)
    asked = np.random.default_rng(2).integers(16, len(parts[0]) - 16, 200 if not settings.smoke else 4)
    session = begun(Rest(store), [0], settings.vocab_size)
    pipeline, taken = Pipeline(Sampling(), settings.vocab_size), list[float]()
    for place in asked.tolist():
        history = History(text[place - 16 : place].tolist())
        request = Request(0, history, Budget(32), CounterNoise(0), pipeline, True)
        start = time.perf_counter()
        session.propose([request])
        taken.append(time.perf_counter() - start)
    return {
        "symbols": symbols,
        "seconds": seconds,
        "file_mb": path.stat().st_size / 1e6,
        "query_ms": 1000 * statistics.median(taken),
    }


# ---- trees ----


def laws_of(vocab_size: int) -> Tensor:
    """64 laws ``[64, V]`` for the target to look up by the last symbol."""
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(64, vocab_size, generator=generator)


def free_target(laws: Tensor) -> FakeModel:
    """A target whose pass is a look-up."""
    spec = StreamSpec(slots=(Slot(size=laws.shape[1]),))
    return FakeModel(lambda prefix, _: laws[prefix[-1] % 64], spec, strict=False)


def tree_of(nodes: int, laws: Tensor, drawn: bool) -> Callable[[Request], Draft]:
    """Trees of the four likeliest symbols behind every node; ``drawn`` says they come with a q."""
    parents = tuple(node // 4 - 1 for node in range(nodes))
    best = laws.topk(4).indices.tolist()
    q = laws.softmax(-1, dtype=torch.float64)

    def tree(request: Request) -> Draft:
        before = [request.history.ids[-1]]
        for node in range(nodes):
            before.append(best[before[node // 4] % 64][node % 4])
        tokens = torch.tensor(before[1:])
        if not drawn:
            return Draft(tokens=tokens, parents=parents)
        rows = [before[node // 4] % 64 for node in range(nodes)]
        return Draft(tokens=tokens, parents=parents, q=q[rows], kind="sampled")

    return tree


def verifying(verifier: Verifier, drawn: bool, nodes: int, settings: Settings) -> Figures:
    """Milliseconds per round outside the pass and the drafting."""
    laws = laws_of(settings.vocab_size)
    target = free_target(laws)
    drafter = ScriptedDrafter(tree_of(nodes, laws, drawn), num_draft_tokens=max(nodes, 1))
    asked = row(
        verifier=verifier,
        drafter=drafter if nodes else None,
        policy=FixedLength(),
        max_new_tokens=10**6,
    )
    one, clock, taken = Row(0, asked, target.spec), Clock(), list[float]()
    for number, _ in enumerate(rounds(target, [one], clock)):
        taken.append(clock.overhead)
        if number == settings.rounds:
            break
    own = [1000 * (after - before) for before, after in zip(taken[1:], taken[2:], strict=False)]
    return {
        "verifier": verifier.name,
        "drafts": "drawn" if drawn else "given",
        "nodes": nodes,
        "accepted": one.report.mean_acceptance_length,
        "own_ms": statistics.median(own),
    }


def trees(settings: Settings) -> Iterator[Figures]:
    """Both kinds of draft under both natural rules."""
    for verifier in (Coupled(), Rejection()):
        yield verifying(verifier, False, 0, settings)
        yield verifying(verifier, False, settings.nodes, settings)
    yield verifying(Rejection(), True, settings.nodes, settings)


# ---- the program ----


def shown(figures: Sequence[Figures], title: str, asked: Callable[[Figures], bool | None]) -> Table:
    """A table of one kind of figures."""
    table = Table(*figures[0], "as asked", title=title)
    for line in figures:
        met = asked(line)
        words = [
            one if isinstance(one, str) else f"{one:,}" if isinstance(one, int) else f"{one:.3f}"
            for one in line.values()
        ]
        table.add_row(*words, "" if met is None else "yes" if met else "no")
    return table


def measured(settings: Settings, console: Console) -> Figures:
    """All three tables."""
    found: Figures = {"settings": asdict(settings), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        text = made_up(settings.tokens + 34 * (settings.rounds + 2), settings.vocab_size)
        ids = text.tolist()
        small = build_datastore(
            [text[: settings.tokens].data], Path(folder) / "small", vocab_size=settings.vocab_size
        )
        wanted = settings.only.split(",") if settings.only else None
        found["drafting"] = [
            drafting(name, one, ids, settings)
            for name, one in drafters(ids[: settings.tokens], small).items()
            if wanted is None or name in wanted
        ]
        title = f"a round of drafting behind {settings.tokens:,} symbols"
        console.print(shown(found["drafting"], title, lambda line: line["round_ms"] < ROUND_MS))
        found["datastore"] = building(Path(folder), settings)
        console.print(shown([found["datastore"]], "a datastore", lambda line: line["seconds"] < BUILD_S))
    found["trees"] = list(trees(settings))
    console.print(shown(found["trees"], "verifying, beyond the pass", lambda line: line["own_ms"] < TREE_MS))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show, write."""
    settings = _flags.parse(Settings, arguments, __doc__).sized()
    found = measured(settings, Console())
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
