"""Tokens against tokens: drafted against plain, batches against single rows, us against generate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from multispec.checking.prompts import draws, encodes, family_of, model_of
from multispec.checking.results import Finding
from multispec.errors import UnsupportedError
from multispec.generator import Generator
from multispec.methods import catalog
from multispec.protocols import Drafter, Target, Verifier
from multispec.sampling import CounterNoise, Sampling
from multispec.stream import Generation, Prompt
from multispec.targets.causal import tolerance

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "top_k 8": {"top_k": 8},
    "top_p 0.9": {"top_p": 0.9},
    "min_p 0.1": {"min_p": 0.1},
    "repetition_penalty 1.3": {"temperature": 0.8, "repetition_penalty": 1.3},
}
# What short checks try: without and with noise, and a rule that looks back.
_QUICK = ("greedy", "temperature 0.8", "repetition_penalty 1.3")
# Rows of a batch of pictures, each of which may have two branches.
_PICTURES = 4
# Longer rows of codes are not finished in a check, in a short one nor longer pictures.
_LONGEST_ROW = 64
_SHORT = 16
# Models whose own generate draws, without captions, guidance or a grammar.
_OWN_PICTURES = ("imagegpt",)
# A margin costs a run of its own; a model that fails so often needs no more of them.
_EXPLAINED = 3


@dataclass(frozen=True)
class Case:
    """One prompt with one setting, and what plain decoding makes of it."""

    label: str
    prompt: Prompt
    sampling: Sampling
    plain: tuple[int, ...]


def noise_of(target: Target, prompt: Prompt) -> float:
    """How far two computations of the same logits may differ, in standard deviations of them.

    Guidance adds up the noise of both branches.
    """
    guidance = prompt.guidance
    if not prompt.guided or guidance is None:
        return tolerance(_dtype(target, prompt))
    weight = guidance.scale + (guidance.convention not in ("linear", "log_softmax"))
    return tolerance(_dtype(target, prompt)) * (weight + abs(weight - 1))


@torch.inference_mode()
def _dtype(target: Target, prompt: Prompt) -> torch.dtype:
    """That of the parameters, or of the logits where the model is not to be seen."""
    parameters = getattr(model_of(target), "parameters", None)
    first = next(iter(parameters()), None) if parameters is not None else None
    if first is not None:
        dtype: torch.dtype = first.dtype
        return dtype
    plain = replace(prompt, guidance=None, unconditional=None)
    return target.begin([plain], [len(plain.ids) + 1], 1).prefill().logits[0].dtype


class Equality:
    """Every prompt with every setting; plain decoding runs once, when it is first needed."""

    def __init__(self, generator: Generator, prompts: Sequence[Prompt], quick: bool) -> None:
        self.generator = generator
        self.target = generator.target
        self.prompts = prompts
        self.quick = quick
        self.draws = draws(prompts)
        # Pictures are compared by their symbols: nobody looks at the pixels.
        self._making = Generator(generator.target) if self.draws else generator
        self.new_tokens = _length(generator.target, prompts, quick) if self.draws else 10 if quick else 32
        self._cases: list[Case] = []

    @property
    def cases(self) -> list[Case]:
        """One per prompt and setting, each with a seed of its own."""
        if not self._cases:
            names = _QUICK if self.quick else tuple(SETTINGS)
            pairs = [(name, place) for name in names for place in range(len(self.prompts))]
            self._cases = [self._case(*pair, seed) for seed, pair in enumerate(pairs)]
        return self._cases

    @property
    def left_out(self) -> list[str]:
        """The settings that a short check does not try."""
        return [name for name in SETTINGS if self.quick and name not in _QUICK]

    def _case(self, name: str, place: int, seed: int) -> Case:
        sampling = Sampling(seed=seed, **SETTINGS[name])
        plain = self._generate(self.prompts[place], sampling)
        label = f"prompt {place}, {name}, seed {seed}"
        return Case(label, self.prompts[place], sampling, tuple(plain.tokens.flatten().tolist()))

    def _generate(self, prompt: Prompt, sampling: Sampling, **settings: Any) -> Generation:
        asked: dict[str, Any] = {"drafter": None, "max_new_tokens": self.new_tokens} | settings
        made: Generation = self._making.generate(prompt, sampling=sampling, **asked)
        return made

    def of_batches(self) -> Finding:
        """Plain rows of one batch against plain rows alone."""
        found = Finding()
        for case, made in zip(self.cases, self._mixed(self.cases, "coupled", None), strict=True):
            self._compare(case, made, "in a batch", found)
        return found

    def of_rule(self, verifier: Verifier, drafter: Drafter) -> Finding:
        """Drafted rows, alone and in a mixed batch, against plain rows alone.

        A rule that promises the law alone is held to equality where the law is one token: greedily.
        """
        found, runs = Finding(), _Runs()
        everything = verifier.exactness == "seed"
        cases = [case for case in self.cases if everything or case.sampling.greedy]
        # With a step that is no multiple of four, every prompt has its turn.
        for case in cases[:: (5 if self.draws else 4) if self.quick else 1]:
            made = self._generate(case.prompt, case.sampling, drafter=drafter, verifier=verifier)
            self._compare(case, made, "alone", found)
            runs.add(made)
        for case, made in zip(cases, self._mixed(cases, verifier, drafter), strict=True):
            self._compare(case, made, "in a batch", found)
            runs.add(made)
        runs.judge(found, self.target)
        return found

    def _mixed(self, cases: Sequence[Case], rule: Any, drafter: Drafter | None) -> list[Generation]:
        """Cases in batches with different policies and lengths; every fifth does not draft."""
        size = _PICTURES if self.draws else len(cases)
        count = range(len(cases))
        batches = [count[first : first + size] for first in range(0, len(cases), max(size, 1))]
        return [made for batch in batches for made in self._batch(cases, batch, rule, drafter)]

    def _batch(
        self, cases: Sequence[Case], batch: Sequence[int], rule: Any, drafter: Drafter | None
    ) -> list[Generation]:
        policies = [entry.name for entry in catalog() if entry.kind == "policy"]
        made: list[Generation] = self._making.generate(
            [cases[n].prompt for n in batch],
            verifier=rule,
            drafter=[None if n % 5 == 4 else drafter for n in batch],
            policy=[policies[n % len(policies)] for n in batch],
            sampling=[cases[n].sampling for n in batch],
            max_new_tokens=[self.new_tokens - n % 3 for n in batch],
        )
        return made

    def of_generate(self) -> Finding:
        """The model's own greedy generate against plain greedy rows."""
        model, found = model_of(self.target), Finding()
        if self.draws:
            model = _own_pictures(self.generator)
        if not isinstance(model, GenerationMixin):
            raise UnsupportedError(f"{type(model).__name__} has no generate of its own.")
        for case in [case for case in self.cases if case.sampling.greedy]:
            length = len(case.plain) if self.draws else self.new_tokens
            with _neutral(model, self.target.spec.end_ids, length):
                tokens = _generated(model, case.prompt)
            self._compare_tokens(case, tokens, case.plain, "its own generate", found)
        return found

    def _compare(self, case: Case, made: Generation, where: str, found: Finding) -> None:
        got = made.tokens.flatten().tolist()
        cut = made.finish_reason == "length"
        expected = case.plain[: len(got)] if cut else case.plain
        self._compare_tokens(case, got, expected, where, found)

    def _compare_tokens(
        self, case: Case, got: Sequence[int], expected: Sequence[int], where: str, found: Finding
    ) -> None:
        found.cases += 1
        at = first_difference(got, expected)
        if at is None:
            return
        if at >= min(len(got), len(expected)):
            many = f"{len(got)} tokens where plain decoding has {len(expected)}"
            found.wrong.append(f"{case.label}, {where}: {many}")
            return
        if len(found.wrong) >= _EXPLAINED:
            found.wrong.append(f"{case.label}, {where}: token {at}")
            return
        margin, limit = self._margin(case, at, got[at])
        if margin <= limit:
            found.near_ties += 1
            return
        found.wrong.append(
            f"{case.label}, {where}: token {at} is {got[at]}, plain {expected[at]} "
            f"(margin {margin:.2g}, noise {limit:.2g})"
        )

    def _margin(self, case: Case, at: int, other: int) -> tuple[float, float]:
        """How far the logits are from giving ``other`` there, and how far they may be."""
        made = self._generate(case.prompt, case.sampling, output_scores=True)
        if made.logits is None or made.scores is None:
            return float("inf"), 0.0
        raw, scores = made.logits[at].double(), made.scores[at].double()
        gap = cut_gap(raw, scores, case.plain[at], other)
        if bool(torch.isfinite(scores[other])):
            noisy = self._perturbed(scores, case.sampling, at)
            scale = case.sampling.temperature or 1.0
            gap = min(gap, float((noisy.max() - noisy[other]) * scale))
        return gap, noise_of(self.target, case.prompt) * float(raw[raw.isfinite()].std())

    def _perturbed(self, scores: Tensor, sampling: Sampling, at: int) -> Tensor:
        if sampling.greedy:
            return scores
        noise = CounterNoise(sampling.seed, slots=len(self.target.spec.slots))
        return scores + noise.gumbel([at], len(scores), scores.device)[0]


@dataclass
class _Runs:
    """What drafting did in the rows that were compared."""

    drafted: int = 0
    accepted: int = 0
    forced: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, made: Generation) -> None:
        self.drafted += made.report.drafted
        self.accepted += made.report.accepted
        self.forced += made.report.forced
        if made.report.drafter_failures:
            self.failures.extend(made.report.notes[-1:])

    def judge(self, found: Finding, target: Target) -> None:
        """Equal tokens prove nothing where the drafter was set aside."""
        chains_only = not target.capabilities.supports_tree
        if self.failures and chains_only and "chains only" in self.failures[0]:
            raise UnsupportedError(self.failures[0])
        found.wrong.extend(self.failures)
        forced = f", {self.forced} forced" if self.forced else ""
        found.notes.append(f"{self.accepted} of {self.drafted} drafted tokens accepted{forced}")


def first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    """The first place where they differ, the end of the shorter one included; None when equal.

    >>> first_difference([1, 2, 3], [1, 2]), first_difference([1], [1])
    (2, None)
    """
    for at, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return at
    return None if len(first) == len(second) else min(len(first), len(second))


def cut_gap(raw: Tensor, scores: Tensor, kept: int, other: int) -> float:
    """How far the logits are from another cut of top-k, top-p or min-p that decides between the two.

    Infinite where the cut does not matter: nothing is cut, or both tokens are well inside.
    """
    left = torch.isfinite(scores)
    if bool(left.all()):
        return float("inf")
    # The plain token itself may be the one that another cut leaves out.
    gaps = [float(raw[kept] - raw[left].min())]
    if not bool(left[other]):
        gaps.append(float(raw[~left].max() - raw[other]))
    return min(gaps)


def _length(target: Target, prompts: Sequence[Prompt], quick: bool) -> int:
    """New symbols: short, but past the end of a row of codes where that is near."""
    specs = [prompt.spec or target.spec for prompt in prompts]
    row = max(spec.row_length or 0 for spec in specs) + 2
    whole = max(spec.fixed_length or row for spec in specs)
    usual, longest = (10, _SHORT) if quick else (32, _LONGEST_ROW)
    step = max(spec.step for spec in specs)
    if step > 1:  # a few whole steps, behind those that a delay pattern forces
        return min(usual, 12) * step
    return max([usual, *(length for length in (row, whole) if length <= longest)])


def _own_pictures(generator: Generator) -> Any:
    """The model, where its own generate draws as we do.

    Raises:
        UnsupportedError: it does not.
    """
    model = getattr(family_of(generator), "model", None)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in _OWN_PICTURES:
        return model
    raise UnsupportedError(
        f"generate of this model draws by words, a grammar or guidance of its own: compared for "
        f"{', '.join(_OWN_PICTURES)} only."
    )


@contextmanager
def _neutral(model: Any, ends: Sequence[int], new_tokens: int) -> Iterator[None]:
    """Greedy decoding without the penalties and bans that a model's own configuration may hold."""
    own = model.generation_config
    names = ("bos_token_id", "pad_token_id", "decoder_start_token_id")
    known = {name: getattr(own, name, None) for name in names}
    if known["pad_token_id"] is None:
        known["pad_token_id"] = 0
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=list(ends) or None, **known
    )
    try:
        yield
    finally:
        model.generation_config = own


@torch.inference_mode()
def _generated(model: Any, prompt: Prompt) -> list[int]:
    """What ``generate`` adds to the prompt; a model's own override of it (Whisper's) is passed by."""
    given = {name: value.to(model.device) for name, value in prompt.conditioning.items()}
    name = "decoder_input_ids" if encodes(model) else "input_ids"
    given[name] = prompt.ids[None].to(model.device)
    if "input_ids" in given:
        given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    generate: Any = GenerationMixin.generate  # pyright: ignore[reportAttributeAccessIssue]
    added: list[int] = generate(model, **given)[0, len(prompt.ids) :].tolist()
    return added
