"""From what a caller asks to the rows of a batch: prompts, methods by name, transformers' own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from multispec.drafters import Among, DraftModel, PromptLookup
from multispec.errors import PromptError, UnknownNameError, UsageError
from multispec.experience import Experience
from multispec.guidance import Guidance
from multispec.methods import Kind, Lent, find, iterates, make, pair_trouble, refuse
from multispec.modality import Modality
from multispec.neighbours import UsesNeighbours, needed
from multispec.policies import Auto, Candidate, Confidence, CostTable, FixedLength, Heuristic, Off
from multispec.protocols import Drafter, Policy, Target, Verifier
from multispec.queue import Limits, Queue
from multispec.row import Row, RowSettings
from multispec.sampling import Sampling
from multispec.settings import FromConfig, criteria_stops, read_config
from multispec.stream import Prompt

DEFAULT_NEW_TOKENS = 128
_LONG_WINDOW = 16
# transformers' words for drafting, which select a drafter here.
WORDS = frozenset(
    "assistant_model num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold "
    "prompt_lookup_num_tokens max_matching_ngram_size stop_strings".split()
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The settings of ``Generator.generate``; ``words`` are transformers' own."""

    drafter: Any = "auto"
    verifier: Any = "coupled"
    policy: Any = "auto"
    sampling: Any = None
    max_new_tokens: Any = None
    stop: Any = None
    generation_config: GenerationConfig | None = None
    logits_processor: Any = None
    stopping_criteria: Any = None
    output_scores: bool = False
    guidance: Any = None
    negative: Any = None
    batch_size: Any = None
    max_memory: Any = None
    words: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(settings: Mapping[str, Any]) -> Asked:
        """From keyword arguments.

        Raises:
            UnknownNameError: an option that nobody reads; names the nearest.
        """
        own = {one.name for one in fields(Asked)} - {"words"}
        words = {name: value for name, value in settings.items() if name not in own}
        check_words(words)
        return Asked(**{name: value for name, value in settings.items() if name in own}, words=words)


@dataclass(frozen=True)
class Batch:
    """Rows ready to run, in their ``queue``.

    ``strings`` are each row's stop strings, ``single`` says it was one prompt, ``together`` how many rows run
    at once.
    """

    rows: list[Row]
    strings: list[tuple[str, ...]]
    single: bool
    queue: Queue
    together: int


def check_words(words: Mapping[str, Any]) -> None:
    """Refuse options that nobody reads.

    Raises:
        UnknownNameError: names the nearest option.
    """
    for word in words:
        if word not in WORDS:
            raise UnknownNameError("option", word, [*WORDS, *(one.name for one in fields(Asked)), "streamer"])


class Methods:
    """Names and objects to drafters, verifiers and policies.

    "auto" drafts with the model ``draft``, or without one by the method called ``alone``. A drafter that is
    asked for by its name is made once, so that what it computed or learned is there the next time. Those that
    draft with the target's own model are made of ``target``.
    """

    def __init__(self, draft: Any = None, alone: str = "prompt_lookup", target: Any = None) -> None:
        self._draft = draft
        self._alone = alone
        self._target = target
        self._settled: str | None = None
        self._model: DraftModel | None = None
        self._made: dict[str, Drafter] = {}
        self._among: Among | None = None
        # What says what passes of the target cost; measured on the first prompt that "auto" is asked for.
        self.costs: Callable[[Prompt], CostTable | None] | None = None
        self.experience = Experience()

    def settle(self, method: str) -> None:
        """From now on "auto" is this method, with a draft model or without.

        Raises:
            UnknownNameError: no such drafter.
        """
        find("drafter", method)
        self._settled = method

    @property
    def draft(self) -> Any:
        """The draft model that was loaded beside the target; None where there is none."""
        return self._draft

    def drafter(self, drafter: Any) -> Drafter | None:
        """The drafter of that name, as ``rest:FILE`` with options; None and "none" are plain decoding.

        Raises:
            UnknownNameError: no such drafter, or no such setting.
            UsageError: it needs something beside its name, as a draft model, and none was given.
        """
        if drafter is None or drafter == "none":
            return None
        if drafter == "auto" and self._settled is not None:
            return self.drafter(self._settled)
        if drafter == "auto":
            default = self._default()
            return self.drafter(self._alone) if default is None else default
        if not isinstance(drafter, str):
            chosen: Drafter = _fitting("drafter", drafter, "begin")
            return chosen
        return self._named(drafter)

    def _named(self, drafter: str) -> Drafter:
        if drafter not in self._made:
            entry = find("drafter", drafter, extra=("auto", "none"))
            own = self._default()
            if drafter == DraftModel.name and own is not None:
                return own
            self._made[drafter] = entry.make(drafter.partition(":")[2], Lent(self._target, self._draft))
        return self._made[drafter]

    def _default(self) -> DraftModel | None:
        if self._draft is not None and self._model is None:
            self._model = DraftModel(self._draft)
        return self._model

    def verifier(self, verifier: Any) -> Verifier:
        """The verifier of that name.

        Raises:
            UnknownNameError: no such verifier.
        """
        chosen: Verifier = _fitting("verifier", _named("verifier", verifier), "verify")
        return chosen

    def policy(self, policy: Any, drafter: Drafter | None = None, prompt: Prompt | None = None) -> Policy:
        """The policy of that name, "auto" for this drafter; None is the drafter's own length.

        Raises:
            UnknownNameError: no such policy.
        """
        if policy == "auto":
            known = self.costs(prompt) if self.costs and drafter is not None and prompt is not None else None
            return automatic(drafter, known)
        chosen: Policy = _fitting(
            "policy", FixedLength() if policy is None else _named("policy", policy), "budget"
        )
        return chosen

    def pair(
        self, drafter: Any, policy: Any, verifier: Verifier, prompt: Prompt | None = None
    ) -> tuple[Drafter | None, Policy]:
        """Drafter and policy; where both are "auto", the policy chooses among all that is there."""
        chosen = self.drafter(drafter)
        if drafter == "auto" and policy == "auto" and self._settled is None and chosen is not None:
            chosen = self._several(chosen, verifier)
        return chosen, self.policy(policy, chosen, prompt)

    def _several(self, first: Drafter, verifier: Verifier) -> Drafter:
        """A draft model together with what needs none, unless the rule makes no sense for that."""
        other = self.drafter(self._alone)
        if other is None or other is first or pair_trouble(other, verifier):
            return first
        if self._among is None:
            self._among = Among((first, other))
        return self._among

    def parts(
        self, drafter: Any, verifier: Any, policy: Any, words: Mapping[str, Any]
    ) -> tuple[Drafter | None, Verifier, Any]:
        """What these names, objects and transformers' words stand for; "auto" is left for ``policy``."""
        drafter, policy, _ = translate(words, drafter, policy, None)
        if policy != "auto":
            policy = self.policy(policy)
        return self.drafter(drafter), self.verifier(verifier), policy


def automatic(drafter: Drafter | None, costs: CostTable | None = None) -> Policy:
    """``Auto`` for this drafter, or for those that it is made of."""
    members = drafter.drafters if isinstance(drafter, Among) else () if drafter is None else (drafter,)
    if not members:
        return Off()
    candidates = [one for n, member in enumerate(members) for one in _candidates(n, member)]
    return Auto(candidates=candidates, costs=costs)


def _candidates(number: int, drafter: Drafter) -> list[Candidate]:
    """A drafter as it is; one that iterates over a long window, at its own length and at a quarter of it."""
    own, name = drafter.num_draft_tokens, drafter.name
    if not iterates(drafter):
        return [Candidate(name, number, own)]
    sizes = (own, own // 4) if own >= _LONG_WINDOW else (own,)
    return [Candidate(f"{name} {size}", number, size, elastic=False) for size in sizes]


def _fitting(kind: str, method: Any, needed: str) -> Any:
    if not callable(getattr(method, needed, None)) or isinstance(method, type):
        hint = " For a model, pass assistant_model=... or multispec.drafters.DraftModel(model)."
        raise UsageError(
            f"A {kind} is a name, or an object with the method {needed!r}: got {type(method).__name__}."
            + (hint if kind == "drafter" else "")
        )
    return method


def _named(kind: Kind, method: Any) -> Any:
    return make(kind, method, extra=("auto",)) if isinstance(method, str) else method


def translate(words: Mapping[str, Any], drafter: Any, policy: Any, stop: Any) -> tuple[Any, Any, Any]:
    """transformers' words for drafting, as drafter, policy and stops.

    Raises:
        UnknownNameError: a schedule that does not exist.
    """
    count = words.get("num_assistant_tokens")
    if words.get("assistant_model") is not None:
        drafter = DraftModel(words["assistant_model"], num_draft_tokens=count or 5)
    if words.get("prompt_lookup_num_tokens") is not None:
        longest = words.get("max_matching_ngram_size") or 2
        drafter = PromptLookup(max_ngram=longest, num_draft_tokens=words["prompt_lookup_num_tokens"])
    stop = words.get("stop_strings") if words.get("stop_strings") is not None else stop
    return drafter, _schedule(words, policy, count), stop


def _schedule(words: Mapping[str, Any], policy: Any, count: int | None) -> Any:
    schedule = words.get("num_assistant_tokens_schedule")
    if schedule not in (None, "constant", "heuristic", "heuristic_transient"):
        known = ["constant", "heuristic", "heuristic_transient"]
        raise UnknownNameError("num_assistant_tokens_schedule", str(schedule), known)
    if schedule in ("heuristic", "heuristic_transient"):
        return Heuristic()
    threshold = words.get("assistant_confidence_threshold")
    if threshold:
        return Confidence(threshold=threshold, max_draft_tokens=count or 20)
    return FixedLength(num_draft_tokens=count) if count and policy == "auto" else policy


def batch_of(target: Target, modality: Modality, methods: Methods, prompt: Any, asked: Asked) -> Batch:
    """The rows of a request, every setting checked before anything is computed.

    Raises:
        UsageError: a setting or a prompt that cannot be right.
    """
    limits = Limits.of(asked.batch_size, asked.max_memory)
    drafter, policy, stop = translate(asked.words, asked.drafter, asked.policy, asked.stop)
    prompts, single = _prompts(prompt, target, modality)
    count = len(prompts)
    verifier = _informed(methods.verifier(asked.verifier), modality, target.spec.vocab_size)
    asked_pairs = zip(_per_row(drafter, count, "drafter"), _per_row(policy, count, "policy"), strict=True)
    pairs = [methods.pair(*one, verifier, prompts[0]) for one in asked_pairs]
    samplings = _per_row(asked.sampling, count, "sampling")
    lengths = _per_row(asked.max_new_tokens, count, "max_new_tokens")
    config = None if asked.generation_config is None else read_config(asked.generation_config)
    guidance = config.guidance if config is not None and asked.guidance is None else asked.guidance
    guidances, negatives = _per_row(guidance, count, "guidance"), _per_row(asked.negative, count, "negative")
    prompts = [_guided(prompts[n], guidances[n], negatives[n], target, modality) for n in range(count)]
    strings = [texts + (config.stop if config else ()) for texts in _stops(stop, count)]
    together = min(count, limits.rows or count)
    maker = _RowMaker(target, modality, verifier, asked, config, methods.experience, together)
    rows = [maker.make(n, prompts[n], samplings[n], lengths[n], strings[n], *pairs[n]) for n in range(count)]
    return Batch(rows, strings, single, Queue(target, rows, limits), together)


def _informed(verifier: Verifier, modality: Modality, vocab_size: int) -> Verifier:
    """A rule that looks at neighbours takes those of the modality, where it was given none."""
    if not isinstance(verifier, UsesNeighbours):
        return verifier
    known = verifier.neighbours or modality.neighbours
    if verifier.needs_neighbours:
        known = needed(known, verifier.name, vocab_size)
    rule: Any = verifier
    informed: Verifier = replace(rule, neighbours=known)
    return informed


@dataclass(frozen=True)
class _RowMaker:
    """What the rows of a batch have in common."""

    target: Target
    modality: Modality
    verifier: Verifier
    asked: Asked
    config: FromConfig | None
    experience: Experience
    together: int

    def make(
        self,
        number: int,
        prompt: Prompt,
        sampling: Sampling | None,
        length: int | None,
        strings: tuple[str, ...],
        drafter: Drafter | None,
        policy: Policy,
    ) -> Row:
        spec, config = prompt.spec or self.target.spec, self.config
        if not isinstance(sampling, Sampling | None):
            raise UsageError(
                f"sampling must be a multispec.Sampling: got {type(sampling).__name__}. Use "
                "multispec.Sampling(temperature=..., seed=...)."
            )
        chosen = sampling or (config.sampling if config else self.modality.sampling)
        _check_ids(chosen, spec.vocab_size)
        refuse(drafter, self.verifier, spec, chosen.greedy, self.target.capabilities.supports_tree)
        wanted = length
        if wanted is None and config is not None:
            wanted = config.new_tokens(len(prompt.ids))
        if wanted is None:
            wanted = spec.fixed_length or spec.usual_length or DEFAULT_NEW_TOKENS
        room, note = _room(self.target, prompt, wanted)
        own = config.processors(len(prompt.ids)) if config else []
        ends = config.end_ids if config is not None and config.end_ids is not None else spec.end_ids
        settings = RowSettings(
            prompt=prompt,
            sampling=chosen,
            verifier=self.verifier,
            policy=policy,
            max_new_tokens=room,
            drafter=drafter,
            end_ids=ends,
            stops=(*self.modality.stops(prompt, strings), *criteria_stops(self.asked.stopping_criteria)),
            processors=(*own, *(self.asked.logits_processor or ())),
            keep_scores=self.asked.output_scores,
        )
        row = Row(number, self.experience.recalled(settings, self.together), spec)
        row.report.notes.extend([note] if note else [])
        return row


def _room(target: Target, prompt: Prompt, wanted: int) -> tuple[int, str]:
    if not isinstance(wanted, Integral) or wanted < 1:
        raise UsageError(f"max_new_tokens must be >= 1: got {wanted!r}. Ask for one symbol at least.")
    step = (prompt.spec or target.spec).step
    if wanted < step:
        raise UsageError(
            f"max_new_tokens counts symbols, and this stream moves by steps of {step}: got {wanted}. "
            f"Ask for {step} at least."
        )
    wanted = wanted // step * step
    limit, length = target.context_length, len(prompt.ids)
    if limit is None or length + wanted <= limit:
        return wanted, ""
    if length >= limit:
        raise PromptError(
            f"The prompt has {length} symbols and the model's context is {limit}: nothing can follow. "
            "Shorten the prompt, or use a model with a longer context."
        )
    return limit - length, f"max_new_tokens cut from {wanted} to {limit - length}: the context is {limit}"


def _prompts(prompt: Any, target: Target, modality: Modality) -> tuple[list[Prompt], bool]:
    if isinstance(prompt, Tensor):
        prompt = prompt.tolist()
    batch = isinstance(prompt, (list, tuple)) and bool(prompt) and not _one_of_several(prompt[0])
    listed = list(prompt) if batch else [prompt]
    size = target.spec.prompt_size or target.spec.vocab_size
    return [_prompt(one, modality, size) for one in listed], not batch


def _one_of_several(first: Any) -> bool:
    """True for an id, and for a message of a chat: what a prompt is made of, not a prompt."""
    return isinstance(first, int) or (isinstance(first, Mapping) and "role" in first)


def _guided(prompt: Prompt, guidance: Any, negative: Any, target: Target, modality: Modality) -> Prompt:
    """The prompt with its guidance and the other branch; a number is a scale in the model's convention."""
    if isinstance(guidance, Real):
        guidance = replace(prompt.guidance or modality.guidance, scale=float(guidance))
    if not isinstance(guidance, Guidance | None):
        raise UsageError(
            f"guidance is a scale or a multispec.Guidance: got {type(guidance).__name__}. "
            "Pass guidance=3.0, or multispec.Guidance(scale=3.0, convention=...)."
        )
    prompt = replace(prompt, guidance=guidance or prompt.guidance)
    if negative is None and (not prompt.guided or prompt.unconditional is not None):
        return prompt
    other = modality.unconditional(prompt, negative)
    _checked(other, target.spec.prompt_size or target.spec.vocab_size)
    return replace(prompt, unconditional=other)


def _prompt(prompt: Any, modality: Modality, vocab_size: int) -> Prompt:
    if isinstance(prompt, Tensor):
        prompt = prompt.tolist()
    if isinstance(prompt, Prompt):
        found = prompt
    elif isinstance(prompt, (list, tuple)) and all(isinstance(one, int) for one in prompt):
        found = Prompt(ids=torch.tensor(list(prompt), dtype=torch.long))
    else:
        found = modality.encode(prompt)
    return _checked(found, vocab_size)


def _checked(prompt: Prompt, vocab_size: int) -> Prompt:
    ids = prompt.ids
    if ids.ndim != 1 or not len(ids):
        raise PromptError(
            f"A prompt needs at least one symbol: got shape {tuple(ids.shape)}. For an empty text, pass the "
            "tokenizer's bos id, as [tokenizer.bos_token_id]."
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise PromptError(f"Prompt ids must be whole numbers: got {ids.dtype}. Pass ids.long().")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise PromptError(
            f"Prompt ids must lie in [0, {vocab_size}): got {low if low < 0 else high}. "
            "Is this the tokenizer that belongs to the model?"
        )
    return prompt


def _per_row(value: Any, count: int, name: str) -> list[Any]:
    """One value for all rows, or a list with one for each."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name} must be one value or one per prompt: got {len(value)} for {count} prompts.")
    return list(value)


def _stops(stop: Any, count: int) -> list[tuple[str, ...]]:
    """Stop strings per row: a string, several for all rows, or a list of them for each row."""
    nested = isinstance(stop, (list, tuple)) and any(not isinstance(one, str) for one in stop)
    shared = () if stop is None else (stop,) if isinstance(stop, str) else stop
    each = _per_row(stop, count, "stop") if nested else [shared] * count
    found = [(one,) if isinstance(one, str) else tuple(one or ()) for one in each]
    if any(not text for texts in found for text in texts):
        raise UsageError(
            f"A stop string must not be empty: got {stop!r}. An empty one would stop everywhere."
        )
    return found


def _check_ids(sampling: Sampling, vocab_size: int) -> None:
    named = {
        "logit_bias": list(sampling.logit_bias),
        "allowed_ids": list(sampling.allowed_ids or ()),
        "bad_words": [token for word in sampling.bad_words for token in word],
    }
    for name, ids in named.items():
        wrong = [token for token in ids if not 0 <= token < vocab_size]
        if wrong:
            raise UsageError(f"{name} names ids outside [0, {vocab_size}): got {wrong[:5]}. Drop them.")
