"""The three kinds of streams of speech, 2 frames x 2 codebooks x 3 codes, with laws read off their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from multispec.drafters.rowwise import EachRow
from multispec.loop import rounds
from multispec.modalities.speech.layouts import Delayed, Flattened, Levels
from multispec.protocols import Budget, Context, Drafter, DraftSession, Past, Request, Verifier
from multispec.report import Clock
from multispec.row import Row
from multispec.sampling import Noise, Purpose
from multispec.stream import Draft, Observation, StreamSpec
from multispec.testing import FakeModel, SlotTableModel, TableModel, row
from tests.core.two_levels import Tiny

CODES, START = 3, 3
JointLaw = dict[tuple[int, ...], float]
FLAT = Flattened(codes_per_book=CODES, order=(0, 1), offsets=(0, 3), vocab_size=6, frames=2)
DELAYED = Delayed(delays=(0, 1), codes_per_book=CODES, start=START, frames=2)
LEVELS = Levels(num_codebooks=2, codes_per_book=CODES, frames=2)


@dataclass(frozen=True, eq=False)
class Speech:
    """A model of one kind of stream, and one that is near it."""

    model: FakeModel
    near: FakeModel
    prompt: tuple[int, ...]

    @property
    def spec(self) -> StreamSpec:
        """Its stream."""
        return self.model.spec

    @property
    def length(self) -> int:
        """Symbols of the whole stream."""
        return self.spec.fixed_length or 0

    def permitted(self, made: Sequence[int]) -> list[range]:
        """What each slot of the step behind ``made`` may hold, by hand."""
        frame, place = divmod(len(made), 2)
        if self.spec.step == 1:
            first = 3 * place if self.spec.vocab_size == 6 else 0
            return [range(first, first + CODES)]
        inside = (frame < 2, 0 < frame < 3)
        return [range(CODES) if one else range(START, START + 1) for one in inside]

    def laws(self, made: Sequence[int], near: bool = False) -> Tensor:
        """p of each slot of the next step ``[K, V]``; the near model leaves two symbols."""
        return self._laws(tuple(made), near)

    @lru_cache  # noqa: B019
    def _laws(self, made: tuple[int, ...], near: bool) -> Tensor:
        model = self.near if near else self.model
        logits = model.after([*self.prompt, *made], len(self.prompt)).reshape(self.spec.step, -1)
        scores = torch.full_like(logits, -torch.inf)
        for slot, symbols in enumerate(self.permitted(made)):
            own = logits[slot, symbols.start : symbols.stop]
            kept = own >= own.topk(min(2, len(own))).values[-1] if near else own == own
            scores[slot, symbols.start : symbols.stop] = own.masked_fill(~kept, -torch.inf)
        return scores.softmax(-1)

    def law(self) -> JointLaw:
        """That of whole streams."""
        law: JointLaw = {(): 1.0}
        while min(map(len, law)) < self.length:
            grown: JointLaw = {}
            for made, mass in law.items():
                for step, chance in outcomes(self.laws(made)).items():
                    grown[*made, *step] = mass * chance
            law = grown
        return law


def outcomes(laws: Tensor) -> JointLaw:
    """The joint law of symbols that are independent of each other."""
    law: JointLaw = {(): 1.0}
    for probs in laws.tolist():
        law = {(*ids, x): mass * p for ids, mass in law.items() for x, p in enumerate(probs) if p > 0}
    return law


def flat(seed: int = 4, **changes: Any) -> Speech:
    """Codes in order, each codebook with ids of its own."""
    spec = replace(FLAT, **changes).spec
    model = TableModel(6, order=2, seed=seed, scale=1.0, spec=spec)
    table = model.table + 0.6 * TableModel(6, order=2, seed=9, scale=1.0).table
    return Speech(model, TableModel(6, order=2, table=table, spec=spec, strict=False), (1, 4))


def delayed(seed: int = 3, **changes: Any) -> Speech:
    """Two codebooks side by side, the second a step late."""
    spec = replace(DELAYED, **changes).spec
    model = SlotTableModel(2, 4, seed=seed, spec=spec)
    table = model.table + 0.6 * SlotTableModel(2, 4, seed=8).table
    return Speech(model, SlotTableModel(table=table, spec=spec, strict=False), (START, START))


def two_level(seed: int = 0, scale: float = 0.6, **changes: Any) -> Speech:
    """A model of frames and one of the codes in them."""
    spec = replace(LEVELS, **changes).spec
    tiny = Tiny(scale=scale, seed=seed)
    known = lru_cache(lambda prefix, length: tiny.after(prefix, length))
    near = TableModel(CODES, order=2, seed=5, spec=spec, strict=False)
    model = FakeModel(lambda prefix, length: known(tuple(prefix), length), spec, supports_tree=False)
    return Speech(model, near, (1,))


STREAMS: dict[str, Callable[[], Speech]] = {"flat": flat, "delayed": delayed, "two_level": two_level}


@dataclass(frozen=True, eq=False)
class Near:
    """Chains from the near model: its best symbols, or draws from it with their q."""

    name: ClassVar[str] = "near"
    speech: Speech
    kind: str = "sampled"
    num_draft_tokens: int = 4

    def begin(self, context: Context) -> DraftSession:
        """One for all rows."""
        return EachRow(context, lambda _: self)

    def propose(self, request: Request) -> Draft:
        """Step by step."""
        tokens, q = list[int](), list[Tensor]()
        while len(tokens) < request.budget.nodes:
            laws = self.speech.laws([*request.history.generated, *tokens], near=True)
            first = request.round_start + len(tokens)
            tokens += self.drawn(laws, request, range(first, first + len(laws)))
            q.append(laws)
        return Draft.chain(tokens, torch.cat(q) if self.kind == "sampled" and q else None)

    def drawn(self, laws: Tensor, request: Request, positions: range) -> list[int]:
        """The symbols of a step."""
        if self.kind == "point":
            found: list[int] = laws.argmax(-1).tolist()
            return found
        return list(map(int, request.noise.choose(laws, positions, Purpose.DRAFT, request.round_start)))

    def observe(self, observation: Observation) -> None:
        """Nothing."""


@dataclass(frozen=True)
class _At:
    """Drafts in one round."""

    name: ClassVar[str] = "at"
    rounds: int
    nodes: int

    def budget(self, past: Past, default_nodes: int) -> Budget:
        return Budget(nodes=self.nodes if past.rounds == self.rounds else 0)


@dataclass
class Tally:
    """What was drafted and accepted over all branches."""

    drafted: int = 0
    accepted: int = 0


def leads_to(speech: Speech, made: Sequence[int]) -> FakeModel:
    """The same model, which says for certain what was ``made``; free from there on."""
    width = speech.spec.vocab_size

    def after(prefix: Sequence[int], prompt_length: int) -> Tensor:
        first, step = len(prefix) - prompt_length, speech.spec.step
        if first >= len(made):
            return speech.model.after(prefix, prompt_length)
        certain = torch.full((step, width), -torch.inf, dtype=torch.float64)
        certain[range(step), list(made[first : first + step])] = 0.0
        return certain if step > 1 else certain[0]

    return FakeModel(after, speech.spec, supports_tree=False)


def a_round(
    speech: Speech, made: Sequence[int], drafter: Drafter | None, verifier: Verifier, noise: Noise, nodes: int
) -> Row:
    """The row behind the round that follows ``made``, through the real loop."""
    count = len(made) // speech.spec.step
    asked = row(
        speech.prompt,
        drafter=drafter,
        verifier=verifier,
        policy=_At(count, nodes),
        max_new_tokens=speech.length,
        noise=noise,
    )
    target = leads_to(speech, made)
    one = Row(0, asked, target.spec)
    going = rounds(target, [one], Clock())
    for _ in range(count + 1):
        next(going)
    return one
