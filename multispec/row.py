"""One row of a batch: what was asked, what has been committed, and what a round does to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from multispec.errors import InvalidLogitsError
from multispec.frames import Frames
from multispec.history import History, Prefix
from multispec.processing import LogitsProcessor, Pipeline, Places
from multispec.protocols import MAX_NODES, Budget, Drafter, Past, Policy, Request, Standing, Verifier
from multispec.report import NO_PACE, Clock, Pace, Report
from multispec.sampling import CounterNoise, Law, Noise, Sampling
from multispec.stream import (
    Draft,
    Forced,
    Generation,
    Observation,
    Prompt,
    Step,
    StreamSpec,
    Verdict,
)
from multispec.tree import depths, path_to


@runtime_checkable
class Stop(Protocol):
    """Called after each emitted symbol with all ids so far and its scores; True ends the row there."""

    def __call__(self, ids: Sequence[int], scores: Tensor, /) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What is asked of one row."""

    prompt: Prompt
    sampling: Sampling
    verifier: Verifier
    policy: Policy
    max_new_tokens: int
    drafter: Drafter | None = None
    end_ids: tuple[int, ...] = ()
    stops: tuple[Stop, ...] = ()
    processors: tuple[LogitsProcessor, ...] = ()
    # Ids that foreign processors and criteria are shown before the prompt (a batch's left padding).
    padding: tuple[int, ...] = ()
    keep_scores: bool = False
    noise: Noise | None = None


class Outcome(NamedTuple):
    """What a round committed in a row: symbols, the nodes to keep in the cache, whether it is done."""

    emitted: tuple[int, ...]
    path: tuple[int, ...]
    accepted: int
    finish_reason: str | None
    law: Law


_NONE: frozenset[int] = frozenset()


@dataclass
class Row:
    """The running state of one row."""

    number: int
    settings: RowSettings
    spec: StreamSpec
    report: Report = field(default_factory=Report)
    finish_reason: str | None = None
    # The clock of the batch when this row came in; None while it waits.
    entered: Clock | None = None

    def __post_init__(self) -> None:
        asked = self.settings
        self.spec = asked.prompt.spec or self.spec
        self._drawn = self.spec.drawn(asked.sampling)
        own_symbols = self.spec.prompt_size is None
        self.history = History(asked.prompt.ids.tolist(), asked.padding, foreign_prompt=not own_symbols)
        self.pipeline = Pipeline(
            self._drawn.sampling,
            self.spec.vocab_size,
            end_ids=asked.end_ids,
            grammar=self.spec.grammar,
            processors=self._processors,
        )
        slots, self.step = len(self.spec.slots), self.spec.step
        self.report.step = self.step
        self.frames = self._frames() if self.step > 1 else None
        # Whole steps only.
        self.limit = asked.max_new_tokens // self.step * self.step
        own = CounterNoise(asked.sampling.seed, asked.sampling.sample, slots)
        self.noise: Noise = own if asked.noise is None else asked.noise
        self.past = Past()
        self.budget = Budget(nodes=0)
        self.from_draft: list[bool] = []
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._drafting = asked.drafter is not None
        self._closed = False

    def _frames(self) -> Frames:
        prompt, ends = self.history.ids, self.settings.end_ids
        return Frames(self.spec, prompt, self._drawn.sampling, ends, self._processors)

    @property
    def _processors(self) -> tuple[LogitsProcessor, ...]:
        """Those that were asked for, then the model's own."""
        return (*self.settings.processors, *self._drawn.processors)

    @property
    def remaining(self) -> int:
        """Symbols that may still be emitted."""
        return self.limit - self.history.position

    @property
    def root(self) -> list[int]:
        """What the next pass begins with: the last symbol, of parallel slots the last step."""
        return self.history.ids[-self.step :]

    def request(self, rows: int = 1, pace: Pace = NO_PACE) -> Request | None:
        """What to ask of the drafter in a round of so many rows; None for a plain step."""
        drafter = self.settings.drafter
        if drafter is None or not self._drafting:
            self.budget = Budget(nodes=0)
            return None
        past = self.past._replace(rows=rows, step=self.step, **pace._asdict())
        wanted = self.settings.policy.budget(past, drafter.num_draft_tokens)
        if wanted.note:
            self.report.why.append(f"round {self.report.rounds}: {wanted.note}")
        if self.frames is not None:
            nodes = self.frames.nodes(wanted.nodes, self.remaining, MAX_NODES)
        else:
            # One symbol always comes from the target, so a draft may fill all but one of what remains.
            nodes = max(min(wanted.nodes, self.remaining - 1, MAX_NODES), 0)
        self.budget = wanted._replace(nodes=nodes)
        if nodes == 0:
            return None
        return Request(
            row=self.number,
            history=self.history,
            budget=self.budget,
            noise=self.noise,
            pipeline=self.pipeline.fork(),
            coupled=self.settings.verifier.coupled,
        )

    def give_up_drafting(self, why: str) -> None:
        """Go on plainly, and say so in the report."""
        self._drafting = False
        self.report.drafter_failures += 1
        self.report.notes.append(f"drafter set aside: {why}")

    def decide(self, draft: Draft, logits: Tensor) -> Outcome:
        """Verify a draft on ``logits [D + 1, V]``, trim, and commit the symbols to the row.

        Raises:
            InvalidLogitsError: no symbol can be drawn at a place that is to be emitted.
        """
        if self.frames is not None:
            return self._decide_steps(self.frames, draft, logits)
        places = Places(self.history, self._prefixes(draft))
        law = self.pipeline.law(logits, places)
        verdict = self.settings.verifier.verify(draft, law, self.noise, self._standing())
        outcome = self._trim(verdict, law, self._drawable(law, verdict, logits, places))
        self._count(draft, verdict, outcome)
        nodes = (0, *(node + 1 for node in verdict.path))[: len(outcome.emitted)]
        self._keep(logits, law, nodes)
        self.from_draft += [i < outcome.accepted for i in range(len(outcome.emitted))]
        self.pipeline.commit(outcome.emitted)
        self.finish_reason = outcome.finish_reason
        return outcome

    def _keep(self, logits: Tensor, law: Law, places: Sequence[int]) -> None:
        if self.settings.keep_scores:
            self._kept += [(logits[n].clone(), law.scores[n].clone()) for n in places]

    def _decide_steps(self, frames: Frames, draft: Draft, logits: Tensor) -> Outcome:
        """The same for parallel slots, on ``logits [D + K, V]``: whole steps."""
        verifier = self.settings.verifier
        laws = frames.laws(logits, draft, self.history)
        law = laws.law
        decided = frames.verify(verifier, draft, law, self.noise, self._standing())
        count = frames.drawable(verifier, law, decided.tokens)
        if not count:
            frames.refuse(self.number, logits, draft, law, self.history)
        emitted, reason = self._emit(decided.tokens[:count], range(count), law)
        kept, size = decided.kept[: len(emitted)], len(emitted)
        counted = frames.counted(draft, size, kept, laws, reason is not None)
        self.report.forced += counted.forced
        self.report.count_round(counted.drafted, counted.accepted, size, decided.spent[:size], counted.whole)
        self._remember(counted.drafted, counted.accepted, counted.whole)
        self._keep(logits, law, range(size))
        self.from_draft += kept
        frames.commit(emitted)
        self.finish_reason = reason
        return Outcome(emitted, tuple(range(size - self.step)), sum(kept), reason, law)

    def _remember(self, drafted: Sequence[int], accepted: Sequence[int], whole: Collection[int]) -> None:
        """What policies may look at: depths drafted, accepted, and accepted in all slots."""
        self.past = Past(
            rounds=self.past.rounds + 1,
            last_nodes=self.budget.nodes,
            last_drafted=len(drafted),
            last_accepted=len(accepted),
            last_depth=max(drafted, default=0),
            last_kept=max(whole, default=0),
            memory=self.budget.memory,
        )

    def _standing(self) -> Standing:
        length = self.limit
        if self.spec.fixed_length is not None:
            length = min(length, self.spec.fixed_length)
        return Standing(self.history.position, self.report.variation_spent, length)

    def _prefixes(self, draft: Draft) -> tuple[tuple[int, ...], ...]:
        if not self.pipeline.needs_prefix:
            return ((),) * (len(draft) + 1)
        tokens = draft.ids
        paths = (path_to(draft.parents, node) for node in range(-1, len(draft)))
        return tuple(tuple(tokens[node] for node in path) for path in paths)

    def _drawable(self, law: Law, verdict: Verdict, logits: Tensor, places: Places) -> int:
        """How many symbols come before the first place from which none can be drawn."""
        nodes = (0, *(node + 1 for node in verdict.path))
        # A symbol that is an argmax tells by itself that its place is sound; others have to be looked at.
        if self.settings.verifier.coupled and all(law.finite_at(nodes, verdict.tokens)):
            return len(verdict.tokens)
        invalid = law.invalid_places(nodes)
        for depth, node in enumerate((-1, *verdict.path)):
            if node + 1 in invalid:
                if depth:
                    return depth  # plain decoding may stop before it; else the next round meets it first
                rule = self.pipeline.culprit(logits, places, node + 1)
                raise InvalidLogitsError(
                    f"No symbol can be drawn at position {self.history.position + depth} of row "
                    f"{self.number}: after {rule} the scores are NaN, +inf or -inf everywhere. Check that "
                    "rule, or the model's weights and dtype."
                )
        return len(verdict.tokens)

    def _trim(self, verdict: Verdict, law: Law, count: int) -> Outcome:
        places = (0, *(node + 1 for node in verdict.path))
        emitted, reason = self._emit(verdict.tokens[:count], places, law)
        accepted = min(len(verdict.path), len(emitted))
        path = verdict.path[: len(emitted) - 1]
        return Outcome(emitted, path, accepted, reason, law)

    def _emit(
        self, tokens: Sequence[int], places: Sequence[int], law: Law
    ) -> tuple[tuple[int, ...], str | None]:
        """Symbol by symbol up to the first stop; a step in which one stops is finished."""
        emitted: list[int] = []
        reason: str | None = None
        for token, place in zip(tokens, places, strict=False):
            self.history.extend((token,))
            emitted.append(token)
            reason = self._stopped(token, law, place) or reason
            if reason is not None and len(emitted) % self.step == 0:
                break
        return tuple(emitted), reason

    def _stopped(self, token: int, law: Law, place: int) -> str | None:
        asked = self.settings
        if self._ended(token):
            return "stop"
        # Stops before the length: a text that ends exactly at the cap did stop. Every rule sees
        # every symbol.
        if asked.stops and any([stop(self.history.ids, law.scores[place]) for stop in asked.stops]):
            return "stop"
        if self.spec.fixed_length is not None and self.history.position >= self.spec.fixed_length:
            return "stop"
        return "length" if self.remaining <= 0 else None

    def _ended(self, token: int) -> bool:
        """By the rule of the stream, where it has one; else by an id."""
        if self.spec.ended is None:
            return token in self.settings.end_ids
        whole = self.history.position % self.step == 0
        return whole and self.spec.ended(Prefix(self.history))

    def _count(self, draft: Draft, verdict: Verdict, outcome: Outcome) -> None:
        reached = len(outcome.emitted) if outcome.finish_reason else len(draft)
        forced = self._forced(outcome.emitted) if self.spec.grammar is not None else _NONE
        self.report.forced += len(forced)
        # Depth d holds the d-th symbol of the round: what the grammar forced was no guess.
        known = {node for depth, node in enumerate(verdict.path[: outcome.accepted]) if depth in forced}
        tried = enumerate(depths(draft.parents))
        drafted = tuple(d for node, d in tried if d <= reached and node not in known)
        accepted = tuple(d for d in range(1, outcome.accepted + 1) if d - 1 not in forced)
        count = len(outcome.emitted)
        self.report.count_round(drafted, accepted, count, verdict.spent[:count])
        self._remember(drafted, accepted, accepted)

    def _forced(self, emitted: Sequence[int]) -> Collection[int]:
        grammar = self.spec.grammar
        before = self.history.position - len(emitted)
        after = (Prefix(self.history, generated=before + i) for i in range(len(emitted)))
        return {i for i, prefix in enumerate(after) if grammar and isinstance(grammar(prefix), Forced)}

    def observation(self, draft: Draft, outcome: Outcome, logits: Tensor) -> Observation:
        """What the drafter is told about this round."""
        return Observation(
            draft=draft,
            path=outcome.path,
            emitted=outcome.emitted,
            logits=logits,
            law=outcome.law,
            start=self.history.position - len(outcome.emitted),
        )

    def steps(self, count: int) -> list[Step]:
        """The last ``count`` symbols as steps of a stream."""
        start = self.history.position - count
        tokens = self.history.ids[len(self.history.ids) - count :]
        flags = self.from_draft[len(self.from_draft) - count :]
        pairs = enumerate(zip(tokens, flags, strict=True), start)
        return [Step(token, flag, None, self.number, position) for position, (token, flag) in pairs]

    def close(self, clock: Clock) -> None:
        """Stop the time of a row that is done."""
        if self.finish_reason is not None:
            self._time(clock)
            self._closed = True

    def _time(self, clock: Clock) -> None:
        if self.entered is None:
            self.report.waited = clock.total
        else:
            self.report.clock = clock.since(self.entered)

    def result(self, clock: Clock, decode: Callable[[Row], Any]) -> Generation:
        """Everything this row has produced so far."""
        if not self._closed:
            self._time(clock)
        tokens = torch.tensor(self.history.generated, dtype=torch.long)
        slots = len(self.spec.slots)
        kept = self._kept
        scores = torch.stack([s for _, s in kept]) if kept else None
        return Generation(
            tokens=tokens if slots == 1 else tokens[: len(tokens) // slots * slots].view(-1, slots),
            output=decode(self),
            report=self.report,
            from_draft=tuple(self.from_draft),
            logits=torch.stack([raw for raw, _ in kept]) if kept else None,
            scores=scores,
            log_probs=self._log_probs(scores, tokens),
            finish_reason=self.finish_reason or "interrupted",
        )

    def _log_probs(self, scores: Tensor | None, tokens: Tensor) -> Tensor | None:
        if scores is None:
            return None
        return scores.log_softmax(-1).gather(-1, tokens[:, None].to(scores.device))[:, 0]
