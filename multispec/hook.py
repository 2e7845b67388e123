"""One argument inside transformers: ``model.generate(**inputs, custom_generate=speculative(...))``."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
    MaxLengthCriteria,
    PrefixConstrainedLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from multispec.asking import Methods, automatic, check_words
from multispec.drafters import DraftModel
from multispec.errors import UnsupportedError, UsageError
from multispec.generator import guarded
from multispec.guidance import Guidance
from multispec.methods import Kind, find
from multispec.protocols import Target
from multispec.report import Clock, Report
from multispec.row import Row, RowSettings
from multispec.sampling import Sampling
from multispec.settings import Criterion
from multispec.stream import Generation, Prompt
from multispec.targets import target_for


class Speculative:
    """What ``speculative`` returns: call it through ``custom_generate``; ``reports`` has the last run's."""

    def __init__(self, drafter: Any, verifier: Any, policy: Any, seed: int | None, words: Any) -> None:
        self._parts = Methods().parts(drafter, verifier, policy, words)
        self._seed = seed
        self._targets: dict[int, Target] = {}
        self._assistant: DraftModel | None = None
        self.reports: list[Report] = []

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        synced_gpus: bool = False,
        streamer: Any = None,
        inputs_tensor: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """transformers' decoding-loop interface; input preparation has been done by ``generate``."""
        if model.config.is_encoder_decoder and inputs_tensor is not None:
            # What the encoder was given: a draft model has an encoder of its own.
            copies = len(input_ids) // len(inputs_tensor)
            model_kwargs[model.main_input_name] = inputs_tensor.repeat_interleave(copies, dim=0)
        _refuse(generation_config, synced_gpus)
        target = self._target(model)
        forgotten = _forgotten()
        streamer = _followed(streamer or forgotten["streamer"], len(input_ids))
        rows = self._rows(
            model,
            target,
            forgotten["assistant_model"],
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            model_kwargs,
        )
        clock = Clock()

        def made() -> list[Generation]:
            return [row.result(clock, lambda _: None) for row in rows]

        for steps in guarded(target, rows, clock, made):
            if streamer is not None:
                streamer.put(torch.tensor([step.token for step in steps]))
        if streamer is not None:
            streamer.end()
        results = made()
        self.reports = [result.report for result in results]
        return _output(model, input_ids, results, generation_config)

    def _target(self, model: Any) -> Target:
        # One model at a time: probing it again for every call would cost more than a short answer.
        if id(model) not in self._targets:
            self._targets = {id(model): target_for(model)}
        return self._targets[id(model)]

    def _assisted(self, assistant: Any) -> DraftModel:
        if self._assistant is None or self._assistant.model is not assistant:
            self._assistant = DraftModel(assistant)
        return self._assistant

    def _rows(
        self,
        model: Any,
        target: Target,
        assistant: Any,
        input_ids: Tensor,
        processors: Any,
        criteria: Any,
        config: Any,
        model_kwargs: dict[str, Any],
    ) -> list[Row]:
        drafter, verifier, policy = self._parts
        if assistant is not None:
            drafter = self._assisted(assistant)
        policy = automatic(drafter) if policy == "auto" else policy
        ends, stops, length = _split(criteria, target.spec.end_ids)
        seed = self._seed if self._seed is not None else int(torch.randint(2**62, ()))
        copies = config.num_return_sequences or 1
        prompts = _prompts(input_ids, model_kwargs, bool(model.config.is_encoder_decoder))
        prompts, processors = _guided(prompts, processors)
        rows = []
        for number, (prompt, padding) in enumerate(prompts):
            sampling = Sampling(
                temperature=1.0 if config.do_sample else 0.0, seed=seed, sample=number % copies
            )
            settings = RowSettings(
                prompt=prompt,
                sampling=sampling,
                verifier=verifier,
                policy=policy,
                drafter=drafter,
                max_new_tokens=length - input_ids.shape[1],
                end_ids=ends,
                stops=tuple(Criterion(one, padding) for one in stops),
                processors=tuple(_for_row(one, number) for one in processors or ()),
                padding=padding,
                keep_scores=bool(config.output_scores or config.output_logits),
            )
            rows.append(Row(number, settings, target.spec))
        return rows


def speculative(
    drafter: Any = "auto",
    *,
    verifier: Any = "coupled",
    policy: Any = "auto",
    seed: int | None = None,
    **words: Any,
) -> Speculative:
    """A decoding loop for transformers' own ``generate``; batches, processors, criteria and
    streamers included.

    ``seed=None`` takes one from torch's global generator, so ``torch.manual_seed`` decides as it
    does for transformers. ``assistant_model``, ``num_assistant_tokens``,
    ``prompt_lookup_num_tokens`` and ``max_matching_ngram_size`` are understood. After a call,
    ``.reports`` holds one report per row.

    Raises:
        UnknownNameError: no such method or option.
        UsageError: stop strings, which generate takes as criteria.

    >>> model.generate(**inputs, custom_generate=speculative(drafter="prompt_lookup"))     #
    doctest: +SKIP
    """
    check_words(words)
    if words.get("stop_strings") is not None:
        raise UsageError(
            "stop_strings of a generate call need its tokenizer, which transformers does not hand on. Pass "
            "stopping_criteria=[StopStringCriteria(tokenizer, stop_strings)] to generate."
        )
    named: list[tuple[Kind, Any]] = [("drafter", drafter), ("verifier", verifier), ("policy", policy)]
    for kind, name in named:
        if isinstance(name, str) and name not in ("auto", "none"):
            find(kind, name, extra=("auto",))
    return Speculative(drafter, verifier, policy, seed, words)


def _refuse(config: Any, synced_gpus: bool) -> None:
    reasons = {
        "num_beams > 1": (config.num_beams or 1) > 1,
        "synced_gpus": synced_gpus,
        "output_attentions": bool(config.output_attentions),
        "output_hidden_states": bool(config.output_hidden_states),
        "use_cache=False": config.use_cache is False,
    }
    asked = [name for name, is_asked in reasons.items() if is_asked]
    if asked:
        raise UnsupportedError(
            f"Speculative decoding here cannot do {', '.join(asked)}: drafted symbols that are rejected "
            "have no place in them. Leave it out, or call generate without custom_generate."
        )


def _split(criteria: Any, default_ends: tuple[int, ...]) -> tuple[tuple[int, ...], list[Any], int]:
    """End ids and length, which the loop handles itself, and the criteria that are asked per symbol."""
    ends: tuple[int, ...] = ()
    others, length = [], None
    for one in criteria or ():
        if type(one) is EosTokenCriteria:
            ends += tuple(one.eos_token_id.tolist())
        elif type(one) is MaxLengthCriteria:
            length = one.max_length if length is None else min(length, one.max_length)
        else:
            others.append(one)
    if length is None:
        raise UnsupportedError(
            "A bound is needed to allocate the cache once. Pass max_new_tokens or max_length."
        )
    return ends or default_ends, others, length


_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__  # pyright: ignore[reportAttributeAccessIssue]
_OWN = frozenset(
    "attention_mask position_ids past_key_values cache_params use_cache logits_to_keep cache_position "
    "encoder_outputs decoder_attention_mask output_attentions output_hidden_states return_dict "
    "mm_encoder_outputs".split()
)


def _prompts(
    input_ids: Tensor, given: dict[str, Any], encoder_decoder: bool
) -> list[tuple[Prompt, tuple[int, ...]]]:
    """Each row without its left padding, which processors and criteria are still shown."""
    if given.get("inputs_embeds") is not None:
        raise UnsupportedError("inputs_embeds have no ids to draft from. Pass input_ids.")
    mask = None if encoder_decoder else given.get("attention_mask")
    found = []
    for row, ids in enumerate(input_ids):
        start = 0 if mask is None else int(mask[row].argmax())
        conditioning = {
            name: _of_row(name, value, row, len(input_ids))
            for name, value in given.items()
            if name not in _OWN and isinstance(value, Tensor)
        }
        encoded = None
        if encoder_decoder:
            encoded = given["encoder_outputs"][0][row : row + 1]
            if isinstance(given.get("attention_mask"), Tensor):
                conditioning["attention_mask"] = given["attention_mask"][row : row + 1]
        prompt = Prompt(ids=ids[start:].cpu(), conditioning=conditioning, encoded=encoded)
        found.append((prompt, tuple(ids[:start].tolist())))
    return found


def _guided(
    prompts: list[tuple[Prompt, tuple[int, ...]]], processors: Any
) -> tuple[list[tuple[Prompt, tuple[int, ...]]], list[Any]]:
    """transformers' guidance, which runs a cache of its own, as a second branch of each row."""
    others = [
        one for one in processors or () if type(one) is not UnbatchedClassifierFreeGuidanceLogitsProcessor
    ]
    found = [one for one in processors or () if type(one) is UnbatchedClassifierFreeGuidanceLogitsProcessor]
    if not found:
        return prompts, others
    guidance = Guidance(scale=found[0].guidance_scale, convention="log_softmax")
    context: dict[str, Any] = found[0].unconditional_context
    ids, mask = context["input_ids"], context["attention_mask"]
    guided = []
    for row, (prompt, padding) in enumerate(prompts):
        start = 0 if mask is None else int(mask[row].argmax())
        other = prompt.ids[-1:] if ids is None else ids[row, start:].cpu()
        branch = replace(prompt, ids=other)
        guided.append((replace(prompt, guidance=guidance, unconditional=branch), padding))
    return guided, others


def _of_row(name: str, value: Tensor, row: int, count: int) -> Tensor:
    if count == 1:
        return value
    if value.ndim and len(value) == count:
        return value[row : row + 1]
    raise UnsupportedError(
        f"{name} of shape {tuple(value.shape)} cannot be split over {count} rows. Generate them one by one."
    )


def _for_row(processor: Any, row: int) -> Any:
    """The processor as row ``row`` of its batch would see it."""
    if type(processor) is PrefixConstrainedLogitsProcessor:
        allowed = processor._prefix_allowed_tokens_fn
        return PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)
    return processor


def _forgotten() -> dict[str, Any]:
    """Arguments of the running ``generate`` that transformers 5.23 does not hand to a callable.

    ``streamer`` and ``assistant_model`` would be ignored in silence; so look at the caller's own names.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not _GENERATE:
        frame = frame.f_back
    found = {} if frame is None else frame.f_locals
    return {name: found.get(name) for name in ("streamer", "assistant_model")}


def _followed(streamer: Any, rows: int) -> Any:
    """The streamer, where it can follow.

    Raises:
        UnsupportedError: more than one prompt.
    """
    if streamer is not None and rows > 1:
        raise UnsupportedError(
            f"A streamer follows one prompt: got {rows}. Generate them one by one, or leave it out."
        )
    return streamer


def _output(model: Any, input_ids: Tensor, results: list[Generation], config: Any) -> Any:
    pad = config._pad_token_tensor
    fill = int(pad) if pad is not None else 0
    length = max(len(result.tokens) for result in results)
    new = torch.full((len(results), length), fill, dtype=torch.long)
    for row, result in enumerate(results):
        new[row, : len(result.tokens)] = result.tokens
    sequences = torch.cat([input_ids, new.to(input_ids.device)], dim=-1)
    if not config.return_dict_in_generate:
        return sequences
    scores = _per_step([r.scores for r in results], length, fill) if config.output_scores else None
    logits = _per_step([r.logits for r in results], length, fill) if config.output_logits else None
    kind: Any = GenerateEncoderDecoderOutput if model.config.is_encoder_decoder else GenerateDecoderOnlyOutput
    return kind(sequences=sequences, scores=scores, logits=logits)


def _per_step(rows: list[Tensor | None], length: int, pad: int) -> tuple[Tensor, ...]:
    """``length`` tensors ``[B, V]``; a row that is done holds all its mass on the padding id."""
    known = [row for row in rows if row is not None]
    full = known[0].new_full((len(known), length, known[0].shape[-1]), -torch.inf)
    full[:, :, pad] = 0
    for number, row in enumerate(known):
        full[number, : len(row)] = row
    return tuple(full.unbind(1))
