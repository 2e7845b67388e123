"""transformers beside us: the same folders, dtype, threads and prompts, in the ways that its users have.

Plain ``generate`` (padded where there are several prompts), assisted generation and prompt lookup (they take
one prompt), and ``generate_batch``, its continuous batching.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from multispec.bench.cases import Case, Request, Run
from multispec.bench.ours import Meter
from multispec.generator import Generator
from multispec.targets.causal import CausalTarget
from multispec.targets.loading import load_model

_PAD = 0
# Cache pages of generate_batch: as a share of memory they would take minutes to allocate.
_PAGE, _SPARE = 64, 4


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model of transformers, timed; without an end id, so that every system makes as many symbols."""

    model: Any
    meter: Meter
    calls: Meter
    encode: Callable[[str], list[int]]

    def rows(self, request: Request) -> list[list[int]]:
        """The ids of the prompts."""
        return [self.encode(prompt) for prompt in request.prompts]

    def timed(self, run: Callable[[], Sequence[Sequence[int]]]) -> Run:
        """Run, by the wall clock."""
        self.meter.seconds, self.calls.calls = 0.0, 0
        start = time.perf_counter()
        rows = run()
        seconds = time.perf_counter() - start
        tokens = tuple(tuple(row) for row in rows)
        return Run(seconds, tokens, self.meter.seconds, self.calls.calls, self.calls.calls)


def loaded(folder: str, encode: Callable[[str], list[int]], dtype: Any = None) -> Loaded:
    """The model of a folder, ready to be a peer."""
    meter, calls, model = Meter(), Meter(), _endless(load_model(folder, dtype=dtype))
    model.forward = calls.around(meter.around(model.forward))
    return Loaded(model, meter, calls, encode)


def _endless(model: Any) -> Any:
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    model.generation_config.pad_token_id = _PAD
    return model


def _law(request: Request) -> dict[str, Any]:
    """Its words for the temperature of a request; it has one seed for all prompts."""
    temperature, seed = request.sampling[0].temperature, request.sampling[0].seed
    torch.manual_seed(seed)
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True, eq=False)
class Generate:
    """``model.generate`` with some words more; several prompts are padded on the left."""

    name: str
    loaded: Loaded
    words: Mapping[str, Any] = field(default_factory=dict)
    # Assisted generation takes one prompt.
    single: bool = False

    def refuses(self, case: Case) -> str:
        """Why it takes no part."""
        return "transformers takes one prompt here" if self.single and case.batch > 1 else ""

    def run(self, request: Request) -> Run:
        """Generate, all prompts together."""
        rows = self.loaded.rows(request)
        width = max(map(len, rows))
        ids = torch.tensor([[_PAD] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])

        def run() -> Any:
            out = self.loaded.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=request.new_tokens,
                **_law(request),
                **self.words,
            )
            return out[:, width:].tolist()

        return self.loaded.timed(run)


@dataclass(frozen=True, eq=False)
class GenerateBatch:
    """``model.generate_batch``: continuous batching, with a cache that just holds the request."""

    name: str
    loaded: Loaded

    def refuses(self, case: Case) -> str:
        """Why it takes no part."""
        return "for several prompts" if case.batch == 1 else ""

    def run(self, request: Request) -> Run:
        """Generate; the time to allocate its cache counts, as it does for everybody."""
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        rows, new = self.loaded.rows(request), request.new_tokens or 1
        pages = sum(-(-(len(row) + new) // _PAGE) + _SPARE for row in rows)
        config = GenerationConfig(max_new_tokens=new, eos_token_id=-1, pad_token_id=_PAD, **_law(request))
        room = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=pages,
            max_batch_tokens=max(sum(map(len, rows)), len(rows)),
        )

        def run() -> Any:
            out = self.loaded.model.generate_batch(
                rows, generation_config=config, continuous_batching_config=room
            )
            ordered = sorted(out.items(), key=lambda one: int(one[0].rsplit("_", 1)[-1]))
            return [one.generated_tokens for _, one in ordered]

        return self.loaded.timed(run)


def transformers_systems(
    folder: str, draft: str | None, encode: Callable[[str], list[int]], dtype: Any, num_draft_tokens: int = 5
) -> list[Generate | GenerateBatch]:
    """All that transformers has for this model."""
    target = loaded(folder, encode, dtype)
    systems: list[Generate | GenerateBatch] = [
        Generate("transformers plain", target),
        Generate("transformers prompt lookup", target, {"prompt_lookup_num_tokens": 10}, single=True),
        GenerateBatch("transformers generate_batch", loaded(folder, encode, dtype)),
    ]
    if draft is not None:
        assistant = _endless(load_model(draft, dtype=dtype))
        assistant.forward = target.meter.around(assistant.forward)
        assistant.generation_config.num_assistant_tokens = num_draft_tokens
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = 0.0
        words = {"assistant_model": assistant}
        systems.append(Generate("transformers assisted", target, words, single=True))
    return systems


@dataclass(frozen=True, eq=False)
class Draw:
    """``model.generate`` over image codes, guided as transformers does it: a second pass for each symbol."""

    name: str
    loaded: Loaded
    generator: Generator

    def refuses(self, case: Case) -> str:
        """Captions of different length are padded, which its guidance does not see."""
        return "transformers guides one prompt" if case.batch > 1 else ""

    def run(self, request: Request) -> Run:
        """Draw one picture's codes."""
        modality = self.generator.modality
        prompt = modality.encode(request.prompts[0])
        other, scale = modality.unconditional(prompt, None), modality.guidance.scale
        spec = prompt.spec or self.generator.target.spec
        words = {"guidance_scale": scale, "negative_prompt_ids": other.ids[None]} if scale != 1 else {}
        ids = prompt.ids[None]

        def run() -> Any:
            out = self.loaded.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=spec.fixed_length or spec.usual_length,
                **_law(request),
                **words,
            )
            return out[:, ids.shape[1] :].tolist()

        return self.loaded.timed(run)


def image_systems(folder: str, generator: Generator, dtype: Any) -> list[Draw]:
    """transformers beside an image model that is a plain causal one; nothing for the others."""
    if not isinstance(generator.target, CausalTarget):
        return []
    return [Draw("transformers plain", loaded(folder, lambda _: [], dtype), generator)]
