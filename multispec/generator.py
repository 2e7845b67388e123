"""The front door: prompts in, generations out. Knows ids and batches, and leaves words and pixels to a modality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig

from multispec.catalog import find
from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import (
    GenerationError,
    MultispecError,
    PromptError,
    UnknownNameError,
    UsageError,
)
from multispec.loop import rounds
from multispec.policies import Confidence, FixedLength, Heuristic
from multispec.processing import LogitsProcessor
from multispec.protocols import Drafter, Policy, Target, Verifier
from multispec.report import Clock
from multispec.row import Row, RowSettings, Stop
from multispec.sampling import Sampling
from multispec.settings import FromConfig, criteria_stops, read_config
from multispec.stream import Generation, Prompt, Step

DEFAULT_NEW_TOKENS = 128
# transformers' words for drafting, which select a drafter here.
_WORDS = frozenset(
    "assistant_model num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold "
    "prompt_lookup_num_tokens max_matching_ngram_size stop_strings".split()
)


class StreamDecoder(Protocol):
    """Turns one row's symbols into output as they come; never gives half a character."""

    def push(self, token: int) -> Any:
        """What this symbol adds."""
        ...

    def finish(self) -> Any:
        """What was held back."""
        ...


class Modality(Protocol):
    """Between symbols and what people read, see or hear."""

    def encode(self, prompt: Any) -> Prompt:
        """A prompt of any form that this modality knows."""
        ...

    def stops(self, prompt: Prompt, strings: Sequence[str]) -> list[Stop]:
        """Fresh stop rules for one row."""
        ...

    def decode(self, prompt: Prompt, tokens: Sequence[int], strings: Sequence[str]) -> Any:
        """The output of a finished row; what follows a stop string is left out, and the string itself."""
        ...

    def stream(self, prompt: Prompt, strings: Sequence[str]) -> StreamDecoder:
        """A decoder for one row."""
        ...


class IdsOnly:
    """No modality: prompts are ids, and there is no output beside the tokens."""

    def encode(self, prompt: Any) -> Prompt:
        """Ids as they are.

        Raises:
            PromptError: words need a tokenizer.
        """
        raise PromptError(
            f"Without a tokenizer a prompt must be ids or a Prompt: got {type(prompt).__name__}. "
            "Pass tokenizer=... to multispec.load."
        )

    def stops(self, prompt: Prompt, strings: Sequence[str]) -> list[Stop]:
        """None.

        Raises:
            UsageError: stop strings need a tokenizer.
        """
        if strings:
            raise UsageError("Stop strings need a tokenizer: pass tokenizer=... to multispec.load.")
        return []

    def decode(self, prompt: Prompt, tokens: Sequence[int], strings: Sequence[str]) -> None:
        """Nothing."""

    def stream(self, prompt: Prompt, strings: Sequence[str]) -> StreamDecoder:
        """Nothing."""
        return self

    def push(self, token: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class _Batch:
    rows: list[Row]
    strings: list[tuple[str, ...]]
    single: bool


def _per_row(value: Any, count: int, name: str, listed: bool) -> list[Any]:
    """One value for all rows, or one each."""
    if not listed:
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name} must be one value or one per prompt: got {len(value)} for {count} prompts.")
    return list(value)


class Generator:
    """A target with a modality: ``generate`` and ``stream``.

    ``draft`` is the draft model that ``drafter="auto"`` and ``drafter="draft_model"`` use.
    """

    def __init__(self, target: Target, modality: Modality | None = None, draft: Any = None) -> None:
        self.target = target
        self.modality: Modality = IdsOnly() if modality is None else modality
        self._draft = draft
        self._draft_model: DraftModel | None = None

    def generate(
        self,
        prompt: Any,
        *,
        drafter: Any = "auto",
        verifier: Any = "coupled",
        policy: Any = "auto",
        sampling: Sampling | Sequence[Sampling] | None = None,
        max_new_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Any = None,
        streamer: Any = None,
        output_scores: bool = False,
        **words: Any,
    ) -> Any:
        """Generate from one prompt (a Generation) or a list of prompts (a list of them, made together).

        A list of ints is one prompt of ids; a list of strings or of lists is a batch; a list of messages
        (dicts) is one chat. ``sampling``, ``drafter``, ``policy``, ``max_new_tokens`` and ``stop`` may be given
        per prompt as lists. transformers' own words (``assistant_model``, ``num_assistant_tokens``,
        ``prompt_lookup_num_tokens``, ``stop_strings`` ...) are understood. Ctrl-C returns what was generated.

        Raises:
            UsageError: a setting that cannot be right, before anything is computed.
            GenerationError: something broke half-way; ``error.partial`` holds what was made.

        >>> result = load("text").generate("Once upon a time", max_new_tokens=20)   # doctest: +SKIP
        """
        batch = self._prepare(
            prompt, drafter, verifier, policy, sampling, max_new_tokens, stop, generation_config,
            logits_processor, stopping_criteria, output_scores, words,
        )
        _check_streamer(streamer, batch)
        clock = Clock()
        if streamer is not None:
            streamer.put(batch.rows[0].settings.prompt.ids[None])
        for steps in self._guarded(batch, clock):
            if streamer is not None:
                streamer.put(torch.tensor([step.token for step in steps]))
        if streamer is not None:
            streamer.end()
        results = self._results(batch, clock)
        return results[0] if batch.single else results

    def stream(self, prompt: Any, **settings: Any) -> Iterator[Step]:
        """Yield each symbol as it is committed, with what it adds to the output (``step.delta``).

        Takes the settings of ``generate`` but ``streamer``. The last step of a row may carry text that was held
        back. ``stream`` of several prompts interleaves their rows: see ``step.row``.
        """
        batch = self._prepare(prompt, *_stream_settings(settings))
        decoders = [
            self.modality.stream(row.settings.prompt, strings)
            for row, strings in zip(batch.rows, batch.strings, strict=True)
        ]
        for steps in self._guarded(batch, Clock()):
            for place, step in enumerate(steps):
                delta = decoders[step.row].push(step.token)
                row = batch.rows[step.row]
                last_of_row = all(other.row != step.row for other in steps[place + 1 :])
                if last_of_row and row.finish_reason is not None:
                    rest = decoders[step.row].finish()
                    delta = delta if rest is None else (rest if delta is None else delta + rest)
                yield _with_delta(step, delta)

    def _guarded(self, batch: _Batch, clock: Clock) -> Iterator[list[Step]]:
        """The loop; Ctrl-C ends it quietly, and any error carries what was made."""
        try:
            yield from rounds(self.target, batch.rows, clock)
        except KeyboardInterrupt:
            for row in batch.rows:
                row.finish_reason = row.finish_reason or "interrupted"
        except GenerationError as error:
            error.partial = self._results(batch, clock)
            raise
        except MultispecError:
            raise
        except Exception as error:
            wrapped = GenerationError(
                f"Generation broke after {max(r.history.position for r in batch.rows)} symbols: "
                f"{type(error).__name__}: {error}. What was made is in error.partial."
            )
            wrapped.partial = self._results(batch, clock)
            raise wrapped from error

    def _results(self, batch: _Batch, clock: Clock) -> list[Generation]:
        strings = {row.number: s for row, s in zip(batch.rows, batch.strings, strict=True)}

        def decode(row: Row) -> Any:
            return self.modality.decode(row.settings.prompt, row.history.generated, strings[row.number])

        return [row.result(clock, decode) for row in batch.rows]

    def _prepare(
        self, prompt: Any, drafter: Any, verifier: Any, policy: Any, sampling: Any, max_new_tokens: Any,
        stop: Any, generation_config: GenerationConfig | None, logits_processor: Any, stopping_criteria: Any,
        output_scores: bool, words: Mapping[str, Any],
    ) -> _Batch:
        check_words(words)
        drafter, policy, stop = _translate(words, drafter, policy, stop)
        prompts, single = self._prompts(prompt)
        count = len(prompts)
        drafters = [self._drafter(d) for d in _per_row(drafter, count, "drafter", isinstance(drafter, list))]
        policies = [self._policy(p) for p in _per_row(policy, count, "policy", isinstance(policy, list))]
        samplings = _per_row(sampling, count, "sampling", isinstance(sampling, (list, tuple)))
        lengths = _per_row(max_new_tokens, count, "max_new_tokens", isinstance(max_new_tokens, (list, tuple)))
        stops = _per_row_stops(stop, count)
        rule = self._verifier(verifier)
        rows, strings = [], []
        for number in range(count):
            config = None if generation_config is None else read_config(generation_config, samplings[number])
            texts = stops[number] + (config.stop if config else ())
            rows.append(self._row(
                number, prompts[number], config, samplings[number], lengths[number], texts, rule,
                drafters[number], policies[number], logits_processor, stopping_criteria, output_scores,
            ))
            strings.append(texts)
        return _Batch(rows, strings, single)

    def _row(
        self, number: int, prompt: Prompt, config: FromConfig | None, sampling: Sampling | None,
        length: int | None, texts: tuple[str, ...], verifier: Verifier, drafter: Drafter | None,
        policy: Policy, processors: Any, criteria: Any, keep_scores: bool,
    ) -> Row:
        spec = self.target.spec
        wanted = length if length is not None else (config.max_new_tokens if config else None)
        ends = spec.end_ids if config is None or config.end_ids is None else config.end_ids
        own = config.processors(len(prompt.ids)) if config else []
        chosen = sampling or (config.sampling if config else Sampling())
        _check_ids(chosen, spec.vocab_size)
        room, note = self._room(prompt, DEFAULT_NEW_TOKENS if wanted is None else wanted)
        row = Row(number, RowSettings(
            prompt=prompt, sampling=chosen, verifier=verifier, policy=policy, max_new_tokens=room,
            drafter=drafter, end_ids=ends, keep_scores=keep_scores,
            stops=(*self.modality.stops(prompt, texts), *criteria_stops(criteria)),
            processors=(*own, *(processors or ())),
        ), spec)
        if note:
            row.report.notes.append(note)
        return row

    def _room(self, prompt: Prompt, wanted: int) -> tuple[int, str]:
        if wanted < 1:
            raise UsageError(f"max_new_tokens must be >= 1: got {wanted}.")
        limit, length = self.target.context_length, len(prompt.ids)
        if limit is None or length + wanted <= limit:
            return wanted, ""
        if length >= limit:
            raise PromptError(
                f"The prompt has {length} symbols and the model's context is {limit}: nothing can follow. "
                "Shorten the prompt, or use a model with a longer context."
            )
        return limit - length, f"max_new_tokens cut from {wanted} to {limit - length}: the context is {limit}"

    def _prompts(self, prompt: Any) -> tuple[list[Prompt], bool]:
        if isinstance(prompt, Tensor):
            prompt = prompt.tolist()
        batch = isinstance(prompt, (list, tuple)) and bool(prompt) and not isinstance(prompt[0], (int, Mapping))
        listed = list(prompt) if batch else [prompt]
        return [self._prompt(one) for one in listed], not batch

    def _prompt(self, prompt: Any) -> Prompt:
        if isinstance(prompt, Prompt):
            found = prompt
        elif isinstance(prompt, (list, tuple, Tensor)) and all(isinstance(i, int) for i in list(prompt)):
            found = Prompt(ids=torch.tensor(list(prompt), dtype=torch.long))
        else:
            found = self.modality.encode(prompt)
        return _checked_prompt(found, self.target.spec.vocab_size)

    def parts(
        self, drafter: Any, verifier: Any, policy: Any, words: Mapping[str, Any]
    ) -> tuple[Drafter | None, Verifier, Policy]:
        """The methods that these names, objects and transformers' words stand for."""
        drafter, policy, _ = _translate(words, drafter, policy, None)
        return self._drafter(drafter), self._verifier(verifier), self._policy(policy)

    def _drafter(self, drafter: Any) -> Drafter | None:
        if drafter is None or drafter == "none":
            return None
        if drafter == "auto":
            return self._default_draft() or PromptLookup()
        if not isinstance(drafter, str):
            chosen: Drafter = drafter
            return chosen
        entry = find("drafter", drafter, extra=("auto", "none"))
        if entry.method is not DraftModel:
            made: Drafter = entry.method()
            return made
        default = self._default_draft()
        if default is None:
            raise UsageError(
                "drafter='draft_model' needs a draft model: pass assistant_model=..., or "
                "drafter=multispec.drafters.DraftModel(model)."
            )
        return default

    def _default_draft(self) -> DraftModel | None:
        if self._draft is not None and self._draft_model is None:
            self._draft_model = DraftModel(self._draft)
        return self._draft_model

    def _verifier(self, verifier: Any) -> Verifier:
        chosen: Verifier = find("verifier", verifier).method() if isinstance(verifier, str) else verifier
        return chosen

    def _policy(self, policy: Any) -> Policy:
        if policy is None or policy == "auto":
            return FixedLength()
        name = isinstance(policy, str)
        chosen: Policy = find("policy", policy, extra=("auto",)).method() if name else policy
        return chosen


def check_words(words: Mapping[str, Any]) -> None:
    """Refuse options that nobody reads.

    Raises:
        UnknownNameError: names the nearest option.
    """
    known = [*_WORDS, "drafter", "verifier", "policy", "sampling", "max_new_tokens", "stop", "streamer"]
    for word in words:
        if word not in _WORDS:
            raise UnknownNameError("option", word, known)


def _stream_settings(settings: dict[str, Any]) -> tuple[Any, ...]:
    names = {
        "drafter": "auto", "verifier": "coupled", "policy": "auto", "sampling": None, "max_new_tokens": None,
        "stop": None, "generation_config": None, "logits_processor": None, "stopping_criteria": None,
        "output_scores": False,
    }
    words = {name: value for name, value in settings.items() if name not in names}
    return (*(settings.get(name, default) for name, default in names.items()), words)


def _with_delta(step: Step, delta: Any) -> Step:
    return Step(
        token=step.token, from_draft=step.from_draft, delta=delta, row=step.row, position=step.position
    )


def _per_row_stops(stop: Any, count: int) -> list[tuple[str, ...]]:
    if stop is None:
        return [()] * count
    if isinstance(stop, str):
        return [(stop,)] * count
    nested = any(not isinstance(one, str) for one in stop)
    shared = _per_row(stop, count, "stop", True) if nested else [stop] * count
    found = [(one,) if isinstance(one, str) else tuple(one or ()) for one in shared]
    if any(not text for texts in found for text in texts):
        raise UsageError("A stop string must not be empty: an empty one would stop everywhere.")
    return found


def _translate(words: Mapping[str, Any], drafter: Any, policy: Any, stop: Any) -> tuple[Any, Any, Any]:
    """transformers' words for drafting, as our drafter, policy and stops."""
    count = words.get("num_assistant_tokens")
    if words.get("assistant_model") is not None:
        drafter = DraftModel(words["assistant_model"], num_draft_tokens=count or 5)
    if words.get("prompt_lookup_num_tokens") is not None:
        drafter = PromptLookup(
            max_ngram=words.get("max_matching_ngram_size") or 2,
            num_draft_tokens=words["prompt_lookup_num_tokens"],
        )
    if words.get("assistant_confidence_threshold"):
        policy = Confidence(threshold=words["assistant_confidence_threshold"], max_draft_tokens=count or 20)
    schedule = words.get("num_assistant_tokens_schedule")
    if schedule in ("heuristic", "heuristic_transient"):
        policy = Heuristic()
    elif schedule not in (None, "constant"):
        known = ["constant", "heuristic", "heuristic_transient"]
        raise UnknownNameError("num_assistant_tokens_schedule", schedule, known)
    if words.get("stop_strings") is not None:
        stop = words["stop_strings"]
    return drafter, policy, stop


def _check_streamer(streamer: Any, batch: _Batch) -> None:
    if streamer is not None and len(batch.rows) > 1:
        raise UsageError(
            f"A streamer follows one prompt: got {len(batch.rows)}. Use Generator.stream, which names the row."
        )


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


def _checked_prompt(prompt: Prompt, vocab_size: int) -> Prompt:
    ids = prompt.ids
    if ids.ndim != 1 or not len(ids):
        raise PromptError(
            f"A prompt needs at least one symbol: got shape {tuple(ids.shape)}. For an empty text, pass the "
            "tokenizer's bos id, as [tokenizer.bos_token_id]."
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise PromptError(
            f"Prompt ids must lie in [0, {vocab_size}): got {low if low < 0 else high}. "
            "Is this the tokenizer that belongs to the model?"
        )
    return prompt
