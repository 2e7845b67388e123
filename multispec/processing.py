"""From raw logits to the law p: penalties, bans, foreign processors, temperature and truncation.

Every rule sees, for each place, the prefix that leads there: the committed symbols *and* the draft
nodes on the way (``Places``). Rules of our own work on all places at once; a foreign processor is
called once per place. A processor that keeps state is only ever moved forward along committed
symbols: drafted places see copies.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import generation

from multispec.errors import UnsupportedError
from multispec.history import History, Prefix
from multispec.sampling import Law, Sampling
from multispec.stream import Allowed, Forced, Grammar

# Sets of allowed symbols whose masks are kept.
_MASKS = 64


@dataclass(frozen=True)
class Places:
    """``n`` places in a tree: ``drafted[i]`` are the symbols between the committed ones and place i."""

    history: History
    drafted: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.drafted)

    def scattered(self, base: Tensor, add: bool) -> Tensor:
        """``base [V]`` repeated per place, with the drafted symbols set (or counted)."""
        rows = base.expand(len(self), -1).clone()
        width = max(map(len, self.drafted))
        if width:
            flat = [(row, token) for row, path in enumerate(self.drafted) for token in path]
            where = torch.tensor(flat, device=base.device).T
            one = torch.ones((), dtype=base.dtype, device=base.device)
            rows.index_put_((where[0], where[1]), one, accumulate=add)
        return rows


@runtime_checkable
class Rule(Protocol):
    """One step from logits to scores; pure."""

    def __call__(self, scores: Float[Tensor, "n V"], places: Places) -> Float[Tensor, "n V"]: ...


@dataclass(frozen=True)
class LogitBias:
    """Add a constant to some symbols."""

    bias: Tensor

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        return scores + self.bias.to(scores)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divide positive scores, multiply negative ones, of every symbol seen in prompt or output."""

    penalty: float

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        seen = places.scattered(places.history.seen(scores.shape[-1], scores.device), add=False)
        weaker = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, weaker, scores)


@dataclass(frozen=True)
class CountPenalty:
    """Subtract ``presence`` once and ``frequency`` per occurrence of a symbol in the output."""

    presence: float
    frequency: float

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        counts = places.scattered(places.history.counts(scores.shape[-1], scores.device), add=True)
        return scores - self.presence * (counts > 0) - self.frequency * counts.to(scores)


@dataclass(frozen=True)
class BadWords:
    """Ban the last id of a sequence where the ids before it have just been emitted."""

    words: tuple[tuple[int, ...], ...]

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        scores = scores.clone()
        start = max(len(places.history) - max(map(len, self.words)) + 1, 0)
        for row, drafted in enumerate(places.drafted):
            tail = (*places.history.ids[start:], *drafted)
            banned = [w[-1] for w in self.words if tail[len(tail) - len(w) + 1 :] == w[:-1]]
            scores[row, banned] = -torch.inf
        return scores


@dataclass(frozen=True)
class AllowedIds:
    """Ban every other symbol."""

    banned: Tensor

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        return scores.masked_fill(self.banned.to(scores.device), -torch.inf)


@dataclass(frozen=True)
class MinNewTokens:
    """Ban the end ids until ``count`` symbols were emitted."""

    count: int
    end_ids: tuple[int, ...]

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        start = places.history.position
        early = [row for row, path in enumerate(places.drafted) if start + len(path) < self.count]
        if not early:
            return scores
        scores = scores.clone()
        scores[torch.tensor(early)[:, None], torch.tensor(self.end_ids)] = -torch.inf
        return scores


@dataclass(frozen=True)
class GrammarRule:
    """Keep what the stream's grammar allows after each prefix."""

    grammar: Grammar
    _masks: dict[int, tuple[Allowed, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        scores = scores.clone()
        alike: dict[int, tuple[Allowed, list[int]]] = {}
        for row, drafted in enumerate(places.drafted):
            left = self.grammar(Prefix(places.history, drafted))
            if isinstance(left, Forced):
                # A forced symbol is emitted even where the model itself gives it no mass.
                scores[row] = -torch.inf
                scores[row, left.symbol] = 0.0
            elif left is not None:
                alike.setdefault(id(left), (left, []))[1].append(row)
        for left, rows in alike.values():
            at = slice(None) if len(rows) == len(scores) else rows
            scores[at] = scores[at].masked_fill(self._banned(left, scores), -torch.inf)
        return scores

    def _banned(self, left: Allowed, scores: Tensor) -> Tensor:
        """[V]: what is not allowed. A grammar that gives the same object again has it made once."""
        found = self._masks.get(id(left))
        if found is not None and found[1].device == scores.device and len(found[1]) == scores.shape[-1]:
            return found[1]
        if len(self._masks) >= _MASKS:
            self._masks.clear()
        mask = torch.ones(scores.shape[-1], dtype=torch.bool)
        mask[_index(left.symbols)] = False
        # The object is kept with its mask, so that no other one gets its id.
        self._masks[id(left)] = (left, mask.to(scores.device))
        return self._masks[id(left)][1]


def _index(symbols: Sequence[int]) -> slice | list[int]:
    if isinstance(symbols, range) and symbols.step == 1:
        return slice(symbols.start, max(symbols.start, symbols.stop))
    return list(symbols)


@dataclass(frozen=True)
class Temperature:
    """Divide by the temperature."""

    temperature: float

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        return scores / self.temperature


@dataclass(frozen=True)
class TopK:
    """Keep the k best (and what equals the k-th)."""

    k: int

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        kth = scores.topk(min(self.k, scores.shape[-1])).values[:, -1:]
        return scores.masked_fill(scores < kth, -torch.inf)


@dataclass(frozen=True)
class TopP:
    """Keep the smallest set of best symbols whose mass reaches p."""

    p: float

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        ascending, order = scores.sort(descending=False)
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - self.p
        drop[:, -1] = False
        return scores.masked_fill(drop.scatter(-1, order, drop), -torch.inf)


@dataclass(frozen=True)
class MinP:
    """Keep symbols with at least ``min_p`` of the best one's probability."""

    min_p: float

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        best = scores.amax(-1, keepdim=True)
        probs = scores.softmax(-1)
        drop = probs < self.min_p * probs.amax(-1, keepdim=True)
        return scores.masked_fill(drop & (scores < best), -torch.inf)


@dataclass(frozen=True)
class TypicalP:
    """Keep the symbols whose surprise is nearest the entropy, up to mass p (Meister 2022, eq. 4)."""

    p: float

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        log_p = scores.log_softmax(-1)
        probs = log_p.exp()
        entropy = -(probs * log_p).nansum(-1, keepdim=True)
        distance, order = (-log_p - entropy).abs().sort(descending=False)
        mass = probs.gather(-1, order).cumsum(-1)
        last = (mass < self.p).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        drop = distance > distance.gather(-1, last)
        drop[:, 0] = False
        return scores.masked_fill(drop.scatter(-1, order, drop), -torch.inf)


@runtime_checkable
class LogitsProcessor(Protocol):
    """transformers' own interface: ``processor(input_ids [1, S], scores [1, V]) -> scores [1, V]``."""

    def __call__(self, input_ids: Any, scores: Any, /) -> Any: ...


@runtime_checkable
class Pure(Protocol):
    """A processor that keeps nothing between calls, and says what it looks at.

    One that ``reads`` scores alone is called once for all places.
    """

    @property
    def reads(self) -> Literal["scores", "prefix"]:
        """The scores of a place, or the ids before it as well."""
        ...

    def __call__(self, input_ids: Any, scores: Any, /) -> Any: ...


# These look at nothing but the scores, so one call serves all places.
_POINTWISE = frozenset(
    "TemperatureLogitsWarper TopKLogitsWarper TopPLogitsWarper TopHLogitsWarper MinPLogitsWarper "
    "TypicalLogitsWarper EpsilonLogitsWarper EtaLogitsWarper SuppressTokensLogitsProcessor "
    "InfNanRemoveLogitsProcessor LogitNormalization".split()
)
# These look at the ids they are given and keep nothing between calls.
_STATELESS = frozenset(
    "RepetitionPenaltyLogitsProcessor EncoderRepetitionPenaltyLogitsProcessor MinLengthLogitsProcessor "
    "MinNewTokensLengthLogitsProcessor NoRepeatNGramLogitsProcessor SequenceBiasLogitsProcessor "
    "EncoderNoRepeatNGramLogitsProcessor NoBadWordsLogitsProcessor PrefixConstrainedLogitsProcessor "
    "ForcedBOSTokenLogitsProcessor ForcedEOSTokenLogitsProcessor ExponentialDecayLengthPenalty "
    "SuppressTokensAtBeginLogitsProcessor WhisperTimeStampLogitsProcessor".split()
)
# These own a model with a cache that nothing can roll back.
_UNCOPIABLE = frozenset({"UnbatchedClassifierFreeGuidanceLogitsProcessor"})


def _from_transformers(processor: object, names: frozenset[str]) -> bool:
    kind = type(processor)
    return kind.__module__.startswith("transformers.") and kind.__name__ in names


@dataclass(frozen=True)
class Pointwise:
    """A processor that looks at scores alone: one call for all places."""

    processor: LogitsProcessor

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        ids = torch.zeros((len(scores), 1), dtype=torch.long, device=scores.device)
        return torch.as_tensor(self.processor(ids, scores))


class Foreign:
    """Any logits processor, called once per place on the prefix that leads there.

    State is safe: ``_committed`` has seen committed prefixes only, and each drafted place works on
    a copy of the state of the place before it. ``commit`` keeps the state of the path that was
    accepted.
    """

    def __init__(self, processor: LogitsProcessor) -> None:
        self.processor = processor
        self.stateless = isinstance(processor, Pure) or _from_transformers(processor, _STATELESS)
        self._committed = processor if self.stateless else self._copy(processor)
        self._after: dict[tuple[int, ...], LogitsProcessor] = {}

    def _copy(self, processor: LogitsProcessor) -> LogitsProcessor:
        name = type(processor).__name__
        if _from_transformers(processor, _UNCOPIABLE):
            raise UnsupportedError(
                f"{name} runs a model with a cache of its own, which cannot follow a rejected draft or a "
                "batch of rows. Pass guidance=scale (and negative=...) instead: it runs as a second branch."
            )
        try:
            return copy.deepcopy(processor)
        except Exception as error:
            raise UnsupportedError(
                f"The logits processor {name} cannot be copied ({error}), so drafted prefixes could leak "
                "into its state. Give it a __deepcopy__, or make it a plain function of its arguments."
            ) from error

    def fork(self) -> Foreign:
        """The same committed state with no drafted places: what a drafter works with."""
        twin = Foreign.__new__(Foreign)
        twin.processor, twin.stateless = self.processor, self.stateless
        twin._committed, twin._after = self._committed, {}
        return twin

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        rows = [self._one(row, drafted, places) for row, drafted in zip(scores, places.drafted, strict=True)]
        return torch.cat(rows)

    def _one(self, row: Tensor, drafted: tuple[int, ...], places: Places) -> Tensor:
        history = places.history
        ids = torch.tensor([[*history.padding, *history.ids, *drafted]], device=row.device)
        return torch.as_tensor(self._state(drafted)(ids, row[None].clone())).to(row)

    def _state(self, drafted: tuple[int, ...]) -> LogitsProcessor:
        if self.stateless:
            return self.processor
        before = self._after.get(drafted[:-1], self._committed) if drafted else self._committed
        self._after[drafted] = self._copy(before)
        return self._after[drafted]

    def commit(self, emitted: tuple[int, ...]) -> None:
        """Keep the state that has seen all but the last emitted symbol; forget the rest."""
        self._committed = self._after.get(emitted[:-1], self._committed)
        self._after = {}


def own_rules(
    sampling: Sampling, vocab_size: int, end_ids: tuple[int, ...], grammar: Grammar | None
) -> tuple[list[Rule], list[Rule]]:
    """The rules of ``sampling`` that go before and after foreign processors, in transformers' order."""
    before: list[Rule] = []
    if sampling.logit_bias:
        bias = torch.zeros(vocab_size)
        bias[list(sampling.logit_bias)] = torch.tensor(list(sampling.logit_bias.values())).to(bias)
        before.append(LogitBias(bias))
    if sampling.repetition_penalty != 1:
        before.append(RepetitionPenalty(sampling.repetition_penalty))
    if sampling.presence_penalty or sampling.frequency_penalty:
        before.append(CountPenalty(sampling.presence_penalty, sampling.frequency_penalty))
    if sampling.bad_words:
        before.append(BadWords(tuple(tuple(word) for word in sampling.bad_words)))
    if sampling.allowed_ids is not None:
        banned = torch.ones(vocab_size, dtype=torch.bool)
        banned[list(sampling.allowed_ids)] = False
        before.append(AllowedIds(banned))
    if sampling.min_new_tokens and end_ids:
        before.append(MinNewTokens(sampling.min_new_tokens, end_ids))
    if grammar is not None:
        before.append(GrammarRule(grammar))
    return before, [] if sampling.greedy else _warpers(sampling)


def _warpers(sampling: Sampling) -> list[Rule]:
    rules: list[Rule] = []
    if sampling.temperature != 1:
        rules.append(Temperature(sampling.temperature))
    if sampling.top_k:
        rules.append(TopK(sampling.top_k))
    if sampling.top_p < 1:
        rules.append(TopP(sampling.top_p))
    if sampling.min_p > 0:
        rules.append(MinP(sampling.min_p))
    if sampling.typical_p < 1:
        rules.append(TypicalP(sampling.typical_p))
    return rules


class Pipeline:
    """All rules of one row, in order: ``law`` turns logits into p, ``commit`` moves states forward.

    ``needs_prefix`` is False when every rule looks at the scores alone.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        *,
        end_ids: tuple[int, ...] = (),
        grammar: Grammar | None = None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        before, after = own_rules(sampling, vocab_size, end_ids, grammar)
        foreign = [_wrap(processor) for processor in processors]
        self.greedy = sampling.greedy
        self.rules: list[Rule] = [*before, *foreign, *after]
        self._stateful = [rule for rule in foreign if isinstance(rule, Foreign)]
        self.needs_prefix = any(not isinstance(rule, _PREFIX_FREE) for rule in self.rules)

    def fork(self) -> Pipeline:
        """The same rules for a drafter: its places never touch the states of this pipeline."""
        if not self._stateful:
            return self
        twin = Pipeline.__new__(Pipeline)
        twin.greedy = self.greedy
        twin.rules = [rule.fork() if isinstance(rule, Foreign) else rule for rule in self.rules]
        twin._stateful = [rule for rule in twin.rules if isinstance(rule, Foreign)]
        twin.needs_prefix = self.needs_prefix
        return twin

    def law(self, logits: Float[Tensor, "n V"], places: Places) -> Law:
        """p at every place. float16 and bfloat16 logits are processed in float32."""
        scores = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        for rule in self.rules:
            scores = rule(scores, places)
        return Law(scores, greedy=self.greedy)

    def culprit(self, logits: Float[Tensor, "n V"], places: Places, place: int) -> str:
        """The name of the first rule after which nothing can be drawn at ``place``."""
        if not _drawable(logits[place]):
            return "the model's own logits"
        scores = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        for rule in self.fork().rules:
            scores = rule(scores, places)
            if not _drawable(scores[place]):
                inner = rule.processor if isinstance(rule, (Foreign, Pointwise)) else rule
                return type(inner).__name__
        return "the rules together"

    def commit(self, emitted: tuple[int, ...]) -> None:
        """Move stateful processors along the emitted symbols."""
        for rule in self._stateful:
            rule.commit(emitted)


_PREFIX_FREE = (LogitBias, AllowedIds, Temperature, TopK, TopP, MinP, TypicalP, Pointwise)


def _drawable(scores: Tensor) -> bool:
    return math.isfinite(float(scores.max()))


def _wrap(processor: LogitsProcessor) -> Rule:
    # transformers' repetition penalty without an ignored prompt is ours, done for all places at
    # once.
    if type(processor) is generation.RepetitionPenaltyLogitsProcessor:
        # A tensor is what ``generate`` sets for left padding, which is not in our history at all.
        ignored = getattr(processor, "prompt_ignore_length", None)
        if ignored is None or isinstance(ignored, Tensor):
            return RepetitionPenalty(processor.penalty)
    scores_only = isinstance(processor, Pure) and processor.reads == "scores"
    if scores_only or _from_transformers(processor, _POINTWISE):
        return Pointwise(processor)
    return Foreign(processor)
