"""Streams with parallel slots: a round moves on by whole steps of K symbols.

K codebooks run side by side: those of a step do not see each other, each sees all steps before. One pass
over n drafted steps gives the laws of ``(n + 1) K`` symbols. The next step is looked at if all slots of this
one were accepted. What is emitted are whole steps: those accepted and one more.

Given the steps before, the target's law of a step is the product of its slots' laws. So there are four ways
to decide on one, and a rule goes one of them:

* ``seed`` (shared noise): each slot is what the seed says there; together they could be nothing else.
* Rules that judge a step as one symbol (``JudgesSteps``, ``rejection``): the step is kept with 1 - TV of the
  joint laws, the most that a rule of laws can, and else comes from the joint residual.
* Other rules of laws: the draft is a chain over the slots in their order, whose laws are known whatever was
  drawn before in the same step. What is left of the step in which the chain is given up comes from p. Rules
  that judge a chain as a whole (``block``, ``traversal``) keep more of it than slots by themselves do.
* Relaxed rules, and ``rejection`` with ``frames="slots"``: each slot by itself, as a draft of one node at its
  own position. What a rule says that it spends is what it spends: slots of a step add up.

Penalties, bans and foreign processors work on each slot as on a stream of its own, as transformers does
with the rows ``B K`` of such models; so ``min_new_tokens`` is rounded up to whole steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multispec.errors import DraftError, InvalidLogitsError, PromptError
from multispec.history import History, Prefix
from multispec.processing import LogitsProcessor, Pipeline, Places
from multispec.protocols import Standing, Verifier
from multispec.sampling import Law, Noise, Purpose, Sampling
from multispec.stream import Allowed, Draft, Forced, StreamSpec, Verdict
from multispec.tree import chain_parents

# What a grammar sees of the step that it speaks of.
_HIDDEN = -1


@runtime_checkable
class JudgesSteps(Protocol):
    """A rule that can decide on the parallel slots of a step together; ``frames`` says whether it does.

    ``verify_step`` is given the K nodes of a step, or none, and their K laws. Its path is that of all nodes
    or of none, and it emits K symbols.
    """

    @property
    def frames(self) -> Literal["joint", "slots"]:
        """Together, or each by itself."""
        ...

    def verify_step(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Decide on one step; ``p`` has K rows."""
        ...


class StepLaws(NamedTuple):
    """The law at each position of a round, and the positions that the grammar forces."""

    law: Law
    forced: frozenset[int]


class Decided(NamedTuple):
    """The symbols of whole steps; which of them are drafted ones that were kept, and what each spent."""

    tokens: tuple[int, ...]
    kept: tuple[bool, ...]
    spent: tuple[float, ...] = ()


@dataclass(frozen=True)
class Counted:
    """Depths (in steps) of what a round drafted, accepted, and accepted in all slots."""

    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    whole: frozenset[int]
    forced: int


def whole_steps(draft: Draft, step: int) -> Draft:
    """The draft without the part of a step at its end.

    Raises:
        DraftError: a tree; parallel slots are checked step by step.
    """
    if not draft.is_chain:
        raise DraftError(
            f"A stream with {step} parallel slots takes chains, in the order of its positions: got parents "
            f"{draft.parents}. Draft.chain(tokens, q) makes one."
        )
    size = len(draft) // step * step
    return draft if size == len(draft) else _part(draft, 0, size)


def _part(draft: Draft, first: int, last: int) -> Draft:
    """The nodes ``first .. last - 1`` of a chain, as a draft of their own."""
    if first == last:
        return Draft.empty()
    return Draft(
        tokens=draft.tokens[first:last],
        parents=chain_parents(last - first),
        q=None if draft.q is None else draft.q[first:last],
        kind=draft.kind,
        settled=min(max(draft.settled - first, 0), last - first),
    )


class Frames:
    """The K parallel slots of one row: their laws, the verdict on a draft, and what was counted.

    Raises:
        PromptError: a prompt in the symbols of the stream that is no number of whole steps.
    """

    def __init__(
        self,
        spec: StreamSpec,
        prompt: Sequence[int],
        sampling: Sampling,
        end_ids: tuple[int, ...],
        processors: Sequence[LogitsProcessor],
    ) -> None:
        self.spec, self.step = spec, spec.step
        own = list(prompt) if spec.prompt_size is None else []
        if len(own) % self.step:
            raise PromptError(
                f"The prompt of a stream with {self.step} parallel slots holds whole steps: got {len(own)} "
                "symbols. Give every slot a symbol for each step."
            )
        # min_new_tokens counts symbols, and a slot counts its own.
        sampling = replace(sampling, min_new_tokens=-(-sampling.min_new_tokens // self.step))
        first = Pipeline(sampling, spec.vocab_size, end_ids=end_ids, processors=processors)
        slots = range(self.step if first.needs_prefix else 1)
        self._pipelines = [
            Pipeline(sampling, spec.vocab_size, end_ids=end_ids, processors=processors) for _ in slots
        ]
        self._histories = [History(own[slot :: self.step]) for slot in slots]
        self._banned = _outside(spec)
        self._none = torch.full((spec.vocab_size,), -torch.inf, dtype=torch.float64)
        self._none[0] = 0.0

    # ---- how much ----

    def nodes(self, wanted: int, remaining: int, most: int) -> int:
        """A budget in whole steps, rounded up: part of a step cannot be checked."""
        steps = -(-wanted // self.step)
        return max(min(steps, remaining // self.step - 1, most // self.step), 0) * self.step

    # ---- laws ----

    def laws(self, logits: Float[Tensor, "R V"], draft: Draft, history: History) -> StepLaws:
        """p at every position of the round, from the raw logits."""
        scores, forced = self._permitted(logits, draft, history)
        if len(self._pipelines) == 1:
            law = self._pipelines[0].law(scores, Places(self._histories[0], ((),) * len(scores)))
        else:
            law = self._by_slot(scores, draft)
        if forced:
            # No penalty or ban takes a forced symbol away.
            rows, symbols = list(forced), list(forced.values())
            law.scores[rows] = -torch.inf
            law.scores[rows, symbols] = 0.0
        return StepLaws(law, frozenset(forced))

    def _by_slot(self, scores: Tensor, draft: Draft) -> Law:
        laws = [
            pipeline.law(scores[slot :: self.step], self._places(slot, draft))
            for slot, pipeline in enumerate(self._pipelines)
        ]
        together = torch.stack([law.scores for law in laws], dim=1).flatten(0, 1)
        return Law(together, greedy=laws[0].greedy)

    def _places(self, slot: int, draft: Draft) -> Places:
        own = tuple(draft.ids[slot :: self.step])
        return Places(self._histories[slot], tuple(own[:step] for step in range(len(own) + 1)))

    def _permitted(self, logits: Tensor, draft: Draft, history: History) -> tuple[Tensor, dict[int, int]]:
        """What slots and grammar leave; the symbols that the grammar forces, by place."""
        if self._banned is not None:
            repeated = self._banned.to(logits.device).repeat(len(logits) // self.step, 1)
            logits = logits.masked_fill(repeated, -torch.inf)
        if self.spec.grammar is None:
            return logits, {}
        left = self._grammar(draft, history, len(logits))
        forced = {place: one.symbol for place, one in enumerate(left) if isinstance(one, Forced)}
        kinds = {one: number for number, one in enumerate(dict.fromkeys(left))}
        table = torch.stack([_ban(one, self.spec.vocab_size) for one in kinds]).to(logits.device)
        banned = table[torch.tensor([kinds[one] for one in left], device=logits.device)]
        scores = logits.masked_fill(banned, -torch.inf)
        if forced:
            scores[list(forced), list(forced.values())] = 0.0
        return scores, forced

    def _grammar(self, draft: Draft, history: History, places: int) -> list[Forced | Allowed | None]:
        grammar = self.spec.grammar
        if grammar is None:
            return [None] * places
        hidden = (_HIDDEN,) * self.step
        ids = tuple(draft.ids)
        found: list[Forced | Allowed | None] = []
        for first in range(0, places, self.step):
            before = ids[:first]
            found += [grammar(Prefix(history, before + hidden[:slot])) for slot in range(self.step)]
        return found

    # ---- verdicts ----

    def verify(self, verifier: Verifier, draft: Draft, law: Law, noise: Noise, standing: Standing) -> Decided:
        """Step by step up to the first one with a corrected slot, or the one behind the draft."""
        if verifier.exactness == "seed":
            return self._same(draft, law, noise, standing)
        if isinstance(verifier, JudgesSteps):
            if verifier.frames == "joint":
                return self._together(verifier, draft, law, noise, standing)
        elif verifier.exactness == "law":
            return self._in_line(verifier, draft, law, noise, standing)
        return self._apart(verifier, draft, law, noise, standing)

    def _together(
        self, verifier: JudgesSteps, draft: Draft, law: Law, noise: Noise, standing: Standing
    ) -> Decided:
        """Each step as one symbol."""
        tokens: list[int] = []
        kept: list[bool] = []
        for first in range(0, len(law), self.step):
            last = first + self.step
            one = _part(draft, first, min(last, len(draft)))
            p = Law(law.scores[first:last], greedy=law.greedy)
            at = standing._replace(start=standing.start + first, depth=first // self.step)
            verdict = verifier.verify_step(one, p, noise, at)
            tokens += verdict.tokens
            kept += _equal(verdict.tokens, one.ids)
            if not verdict.path:
                break
        return Decided(tuple(tokens), tuple(kept))

    def _in_line(
        self, verifier: Verifier, draft: Draft, law: Law, noise: Noise, standing: Standing
    ) -> Decided:
        """The draft as one chain, and the rest of the step in which it ends from p."""
        size = len(draft) + 1
        p = Law(law.scores[:size], greedy=law.greedy)
        verdict = verifier.verify(draft, p, noise, standing)
        done = len(verdict.tokens)
        rest = range(done, -(-done // self.step) * self.step)
        tokens = verdict.tokens
        if rest:
            last = Law(law.scores[rest.start : rest.stop], greedy=law.greedy)
            # The rule draws from noise of this kind no further than it emits.
            positions = [standing.start + place for place in rest]
            tokens += tuple(noise.choose(last.probs, positions, Purpose.RESIDUAL, standing.start).tolist())
        return Decided(tokens, _equal(tokens, draft.ids))

    def _apart(self, verifier: Verifier, draft: Draft, law: Law, noise: Noise, standing: Standing) -> Decided:
        """Each slot by itself."""
        tokens: list[int] = []
        kept: list[bool] = []
        spent: list[float] = []
        for place in range(len(law)):
            if place % self.step == 0 and not all(kept):
                break
            verdict = self._alone(verifier, draft, law, noise, standing, place, sum(spent))
            tokens.append(verdict.tokens[0])
            kept.append(bool(verdict.path))
            spent += verdict.spent[:1]
        return Decided(tuple(tokens), tuple(kept), tuple(spent))

    def _same(self, draft: Draft, law: Law, noise: Noise, standing: Standing) -> Decided:
        """What plain sampling emits with this seed, all slots and steps at once."""
        x = noise.symbols(law, range(standing.start, standing.start + len(law))).tolist()
        equal = _equal(x, draft.ids)
        size = (equal.index(False) // self.step + 1) * self.step
        return Decided(tuple(x[:size]), equal[:size])

    def _alone(
        self,
        verifier: Verifier,
        draft: Draft,
        law: Law,
        noise: Noise,
        standing: Standing,
        place: int,
        spent: float,
    ) -> Verdict:
        """The verdict on one symbol, as on a draft of one node."""
        at = standing._replace(
            start=standing.start + place, spent=standing.spent + spent, depth=place // self.step
        )
        if place >= len(draft):
            return verifier.verify(Draft.empty(), law.at(place), noise, at)
        # A rule wants a law behind the node too. What it draws there is not used, and has one outcome.
        two = torch.stack([law.scores[place], self._none.to(law.scores)])
        one = _part(draft, place, place + 1)
        return verifier.verify(one, Law(two, greedy=law.greedy), noise, at)

    def drawable(self, verifier: Verifier, law: Law, tokens: Sequence[int]) -> int:
        """How many of the symbols come before the first step in which one cannot be drawn."""
        if verifier.coupled and all(law.finite_at(range(len(tokens)), tokens)):
            return len(tokens)
        invalid = min(law.invalid_places(), default=len(tokens))
        return min(invalid // self.step * self.step, len(tokens))

    def refuse(self, row: int, logits: Tensor, draft: Draft, law: Law, history: History) -> None:
        """Say which rule leaves nothing to draw in the first step.

        Raises:
            InvalidLogitsError: always.
        """
        place = law.invalid_places()[0]
        scores, _ = self._permitted(logits, draft, history)
        pipeline, places = self._pipelines[0], Places(self._histories[0], ((),) * len(scores))
        slot = place % self.step
        if len(self._pipelines) > 1:
            pipeline, places = self._pipelines[slot], self._places(slot, draft)
            scores, place = scores[slot :: self.step], place // self.step
        raise InvalidLogitsError(
            f"No symbol can be drawn for slot {slot} at position {history.position + slot} of row {row}: "
            f"after {pipeline.culprit(scores, places, place)} the scores are NaN, +inf or -inf everywhere. "
            "Check that rule, or the model's weights and dtype."
        )

    # ---- what a round leaves behind ----

    def commit(self, emitted: Sequence[int]) -> None:
        """Move every slot's own stream forward."""
        if len(self._pipelines) == 1:
            return  # nothing here looks back
        for slot, (pipeline, history) in enumerate(zip(self._pipelines, self._histories, strict=True)):
            own = tuple(emitted[slot :: self.step])
            history.extend(own)
            pipeline.commit(own)

    def counted(
        self, draft: Draft, emitted: int, kept: Sequence[bool], laws: StepLaws, ended: bool
    ) -> Counted:
        """Forced symbols count neither as drafted nor as accepted."""
        reached = min(emitted, len(draft)) if ended else len(draft)
        known = {place for place in laws.forced if place < emitted}
        accepted = [place for place in range(emitted) if kept[place] and place not in known]
        drafted = [p for p in range(reached) if not (p in known and kept[p])]
        whole = frozenset(
            first // self.step + 1
            for first in range(0, emitted, self.step)
            if all(kept[first : first + self.step])
        )
        return Counted(self._depths(drafted), self._depths(accepted), whole, len(known))

    def _depths(self, places: Sequence[int]) -> tuple[int, ...]:
        return tuple(place // self.step + 1 for place in places)


def _equal(tokens: Sequence[int], drafted: Sequence[int]) -> tuple[bool, ...]:
    """Which symbols are what was drafted there."""
    known = [mine == theirs for mine, theirs in zip(tokens, drafted, strict=False)]
    return (*known, *(False,) * (len(tokens) - len(known)))


def _outside(spec: StreamSpec) -> Bool[Tensor, "K V"] | None:
    """Which symbols each slot does not have; None where all have all."""
    ids = torch.arange(spec.vocab_size)
    rows = [(ids < slot.offset) | (ids >= slot.offset + slot.size) for slot in spec.slots]
    banned = torch.stack(rows)
    return banned if bool(banned.any()) else None


@lru_cache(maxsize=512)
def _ban(left: Forced | Allowed | None, vocab_size: int) -> Bool[Tensor, " V"]:
    banned = torch.zeros(vocab_size, dtype=torch.bool)
    if left is None:
        return banned
    symbols = (left.symbol,) if isinstance(left, Forced) else left.symbols
    banned[:] = True
    if isinstance(symbols, range) and symbols.step == 1:
        banned[symbols.start : max(symbols.start, symbols.stop)] = False
    else:
        banned[list(symbols)] = False
    return banned
