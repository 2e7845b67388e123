"""A whole run: streams, cases, peers; what the command line asks for."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from multispec.bench.cases import PLAIN, Case, System
from multispec.bench.ceilings import ceilings
from multispec.bench.decisions import decisions
from multispec.bench.files import Results
from multispec.bench.llama_cpp import llama_cpp_systems
from multispec.bench.machine import machine
from multispec.bench.ours import Ours, metered, our_systems
from multispec.bench.peers import image_systems, transformers_systems
from multispec.bench.prompts import TEXT
from multispec.bench.run import Requests, measure
from multispec.bench.synthetic import synthetic
from multispec.errors import MultispecError, UnknownNameError, UnsupportedError, UsageError
from multispec.generator import Generator

STREAMS = ("text", "image", "speech")
PEERS = ("transformers", "llama.cpp")
# What a look takes instead of the defaults below.
QUICK: dict[str, Any] = {"temperatures": (0.0, 0.8), "batches": (1, 4), "runs": 1, "new_tokens": 64}
_QUEUE = 16
_ROOM = 64  # positions beside prompt and new symbols

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run.

    Raises:
        UnknownNameError: a stream, category or peer that does not exist.
        UsageError: a number that cannot be right.
    """

    streams: tuple[str, ...] = STREAMS
    categories: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = (0.0, 0.8, 1.0)
    batches: tuple[int, ...] = (1, 4, 16)
    methods: tuple[str, ...] = ()
    peers: tuple[str, ...] = PEERS
    runs: int = 3
    new_tokens: int = 128
    alphas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("stream", self.streams, STREAMS),
            ("category", self.categories, tuple(TEXT)),
            ("peer", self.peers, PEERS),
        ):
            for one in given:
                if one not in known:
                    raise UnknownNameError(kind, one, known)
        positive = self.runs >= 1 and self.new_tokens >= 2 and all(batch >= 1 for batch in self.batches)
        if not positive or any(heat < 0 for heat in self.temperatures):
            raise UsageError(
                f"A benchmark needs runs and batches >= 1, temperatures >= 0, 2 new tokens at least: got "
                f"{self.runs}, {self.batches}, {self.temperatures} and {self.new_tokens}."
            )
        if any(not 0 <= alpha <= 1 for alpha in self.alphas):
            raise UsageError(f"An acceptance is a chance from 0 to 1: got {self.alphas}.")

    def cases(self, stream: str) -> list[Case]:
        """Every batch at every temperature."""
        return [Case(stream, heat, batch) for batch in self.batches for heat in self.temperatures]

    def turns(self, case: Case) -> int:
        """Of text with one prompt, a turn for each category at least."""
        wanted = len(self.categories or TEXT) if case.stream == "text" and case.batch == 1 else 0
        return max(self.runs, wanted) if self.runs > 1 else self.runs


@dataclass(frozen=True)
class Loaded:
    """A generator with the folder that it came from."""

    generator: Generator
    folder: str
    draft: str | None
    dtype: Any = None


def run(plan: Plan, load: Callable[[str], Loaded], command: str, note: Note = lambda _: None) -> Results:
    """Everything that the plan asks for. A stream whose model is not there is left out, with why."""
    results = Results(command, machine())
    for stream in plan.streams:
        note(f"loading {stream}")
        try:
            loaded = load(stream)
        except MultispecError as error:
            if len(plan.streams) == 1:
                raise
            results.left_out[stream] = str(error)
            continue
        _run_stream(plan, stream, loaded, results, note)
    return results


def _run_stream(plan: Plan, stream: str, loaded: Loaded, results: Results, note: Note) -> None:
    generator = loaded.generator
    ours, left_out = our_systems(generator, stream, plan.methods, _meter(generator))
    results.left_out |= {f"{method} ({stream})": why for method, why in left_out.items()}
    _limits(plan, stream, loaded, ours, results, note)
    if plan.alphas:
        request = _requests(plan, Case(stream, 0.0, 1), generator).turn(0)
        results.synthetic[stream] = synthetic(ours[0], request, plan.alphas, note=note)
        return
    systems: list[System] = [*ours, *_peers(plan, stream, loaded, results)]
    for case in plan.cases(stream):
        cell = measure(systems, _requests(plan, case, generator), plan.turns(case), note)
        results.cells.append(cell)
    if stream == "text":
        _queue(plan, ours, results, note)


def _meter(generator: Generator) -> Any:
    """A clock around the passes of the target and of its draft model; None where one cannot be timed."""
    draft = generator.methods.draft
    return metered(generator.target, *(() if draft is None else (draft,)))


def _requests(plan: Plan, case: Case, generator: Generator) -> Requests:
    new_tokens = plan.new_tokens if case.stream == "text" else None
    return Requests(case, generator.modality.sampling, new_tokens, plan.categories)


def _limits(
    plan: Plan, stream: str, loaded: Loaded, ours: Sequence[Ours], results: Results, note: Note
) -> None:
    note(f"{stream}: limits of the machine, and what deciding costs")
    request = _requests(plan, Case(stream, 0.8, 1), loaded.generator).turn(0)
    prompt = loaded.generator.modality.encode(request.prompts[0])
    try:
        results.ceilings[stream] = ceilings(loaded.generator.target, prompt)
    except MultispecError as error:
        results.left_out[f"limits ({stream})"] = str(error)
    results.decisions[stream] = decisions(ours[1], request)


def _peers(plan: Plan, stream: str, loaded: Loaded, results: Results) -> list[System]:
    """The peers that this machine and this model have."""
    if "transformers" in plan.peers and stream == "image":
        return list(image_systems(loaded.folder, loaded.generator, loaded.dtype))
    if stream != "text":
        return []
    generator = loaded.generator

    def encode(text: str) -> list[int]:
        found: list[int] = generator.modality.encode(text).ids.tolist()
        return found

    found: list[System] = []
    if "transformers" in plan.peers:
        found += transformers_systems(loaded.folder, loaded.draft, encode, loaded.dtype)
    if "llama.cpp" in plan.peers:
        longest = max(len(encode(text)) for texts in TEXT.values() for text in texts)
        try:
            found += llama_cpp_systems(loaded.folder, encode, longest + plan.new_tokens + _ROOM)
        except UnsupportedError as error:
            results.left_out["llama.cpp"] = str(error)
    return found


def _queue(plan: Plan, ours: Sequence[Ours], results: Results, note: Note) -> None:
    """16 prompts in a queue, beside one after the other: plain, and with the draft model."""
    case = Case("text", 0.8, _QUEUE)
    requests = _requests(plan, case, ours[0].generator)
    chosen = [ours[0], *[one for one in ours if one.name == "multispec draft_model 4"]]
    for together in chosen:
        single = replace(together, queued=False)
        pairs = []
        for turn in range(plan.runs + 1):
            note(f"{_QUEUE} prompts queued and one by one: {together.name}, turn {turn} of {plan.runs}")
            request = requests.turn(turn)
            pairs.append(single.run(request).seconds / together.run(request).seconds)
        what = "plain" if together.name == PLAIN else "draft model"
        results.queued[f"{_QUEUE} prompts queued / one by one, {what}"] = statistics.median(pairs[1:])
