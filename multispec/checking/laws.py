"""Distributions against the model's own joint law, by a G-test over many seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from multispec.checking.drafters import fresh_logits, worse
from multispec.checking.prompts import refuse_steps
from multispec.checking.results import Finding
from multispec.drafters import SJD, DraftModel, Jacobi, RowCopy, ScdMaximal, SjdPac
from multispec.generator import Generator
from multispec.history import History
from multispec.processing import Pipeline, Places
from multispec.protocols import Target, Verifier
from multispec.sampling import Sampling
from multispec.stream import DraftKind, Prompt, Slot, StreamSpec
from multispec.testing import FakeModel, TreeDrafter
from multispec.verifiers import Rejection

Tokens = tuple[int, ...]
MakeDrafter = Callable[[FakeModel], Any]
# Probability of calling a right rule wrong, over all distribution tests of one check.
ERROR_RATE = 1e-4
# The first token is never drafted; then come two drafted ones and what follows them.
NEW_TOKENS = 4
# What drafts from its own last pass: one round more, and few symbols, so that copies are kept at times.
WINDOWS = ("jacobi", "scd_mc", "sjd_pac", "sjd", "row_copy")
WINDOW_TOKENS = 5
CHOICES = 3
QUICK_SAMPLES = 300
# The kinds of siblings that each rule takes, those it is made for first; others take independent ones.
SIBLINGS: Mapping[str, tuple[DraftKind, ...]] = {
    "rejection": ("without_replacement", "sampled", "point"),
    "traversal": ("without_replacement", "sampled"),
    "spechub": ("without_replacement",),
    "block": (),
}
SAMPLES = 2000
# With many symbols each sample takes long.
LARGE_VOCABULARY = 32_768
LARGE_SAMPLES = 1000
_BATCH = 250


def law_drafters(target: Target, verifier: Verifier, quick: bool) -> dict[str, MakeDrafter]:
    """What a rule is tried with: a chain and siblings from a law that is not the target's, as it takes them.

    ``rejection`` is the natural rule of windows, which have laws of their own, and takes all siblings.
    """
    trees, kinds = target.capabilities.supports_tree, SIBLINGS.get(verifier.name, ("sampled",))
    found: dict[str, MakeDrafter] = {"draft_model (made worse)": lambda model: DraftModel(worse(model))}
    for kind in kinds[: 1 if quick else 3] if trees else ():
        found[f"siblings, {kind}"] = _siblings(kind)
    return found | _windows(trees, quick) if verifier.name == Rejection.name else found


def _windows(trees: bool, quick: bool) -> dict[str, MakeDrafter]:
    found: dict[str, MakeDrafter] = {
        "best guess": lambda model: TreeDrafter(worse(model), branching=(1, 1)),
        "jacobi": lambda _: Jacobi(),
        "scd_mc": lambda _: ScdMaximal(),
    }
    if trees or not quick:
        # A tree that fits in front of so few symbols.
        found["sjd_pac"] = lambda _: SjdPac(width=2 if trees else 1, depth=1)
    return found if quick else found | {"sjd": lambda _: SJD(), "row_copy": lambda _: RowCopy()}


def _siblings(kind: DraftKind) -> MakeDrafter:
    return lambda model: TreeDrafter(worse(model), branching=(2,), kind=kind)


@dataclass(frozen=True)
class Few:
    """Few symbols, so that every outcome is counted often: the best of each law, or ``only`` these.

    Guided laws are sharp: at this ``temperature`` the best ones do not have it all.
    """

    new_tokens: int = NEW_TOKENS
    only: Tokens | None = None
    temperature: float = 1.0

    def sampling(self, seed: int = 0) -> Sampling:
        """The settings of one row."""
        count = 0 if self.only else CHOICES
        return Sampling(temperature=self.temperature, top_k=count, allowed_ids=self.only, seed=seed)


def few_for(label: str, model: FakeModel, prompt: Prompt) -> Few:
    """What drafts of this kind are tried with behind this prompt."""
    law = law_after(model, prompt, (), Sampling())
    law[list(model.spec.end_ids)] = 0
    best = law.topk(min(CHOICES, len(law)))
    logs = best.values.log()[best.values > 0]
    # The third best is at least about a tenth as probable as the best.
    temperature = max(1.0, float(logs[0] - logs[-1]) / 2.3)
    # Slots with ids of their own have no symbols in common.
    if label not in WINDOWS or len((prompt.spec or model.spec).slots) > 1:
        return Few(temperature=temperature)
    return Few(WINDOW_TOKENS, tuple(best.indices.tolist()), temperature)


def joint_law_holds(
    replays: Replays,
    prompts: Sequence[Prompt],
    verifier: Verifier,
    label: str,
    make: MakeDrafter,
    limit: float,
    quick: bool,
) -> Finding:
    """The first tokens of many seeds against the law computed from the model's logits.

    A rule sees nothing but logits, so the model runs once per prefix and a table answers after that.
    """
    found = Finding()
    refuse_steps(replays.target, prompts)
    large = replays.target.spec.vocab_size >= LARGE_VOCABULARY
    samples = QUICK_SAMPLES if quick else LARGE_SAMPLES if large else SAMPLES
    for place, prompt in enumerate(prompts[: 1 if quick else 2]):
        replay = replays.of(prompt)
        few = few_for(label, replay, prompt)
        expected = joint_law(replay, prompt, few)
        counts, failure = _sampled(replay, prompt, verifier, make(replay), samples, few)
        p_value = g_test(counts, expected, samples)
        found.cases += samples
        said = f"prompt {place}: p = {p_value:.2g} over {len(expected)} outcomes"
        (found.notes if p_value >= limit else found.wrong).append(said)
        found.wrong.extend(failure)
    return found


@dataclass(frozen=True)
class Replays:
    """The model as a table of its logits behind each prompt, guided where the prompt is; one per prompt."""

    target: Target
    _made: dict[int, FakeModel] = field(default_factory=dict)

    def of(self, prompt: Prompt) -> FakeModel:
        """The table behind this prompt."""
        if id(prompt) not in self._made:
            # The memory keeps the prompt, so that no other one gets its id.
            memory = _Memory(self.target, prompt)
            self._made[id(prompt)] = FakeModel(memory.after, _in_line(prompt.spec or self.target.spec))
        return self._made[id(prompt)]


def _in_line(spec: StreamSpec) -> StreamSpec:
    """The same stream without frames, so that outputs may end within one; its grammar stays."""
    return spec if spec.step > 1 else replace(spec, slots=(Slot(size=spec.vocab_size),))


class _Memory:
    """The model's logits after each prefix of one prompt, run once each."""

    def __init__(self, target: Target, prompt: Prompt) -> None:
        self._target, self._prompt = target, prompt
        self._known: dict[Tokens, Tensor] = {}

    def after(self, prefix: Sequence[int], prompt_length: int) -> Tensor:
        """The logits ``[V]`` after a prefix."""
        key = tuple(prefix[len(self._prompt.ids) :])
        if key not in self._known:
            fresh = fresh_logits(self._target, key, self._prompt)
            self._known[key] = fresh.to("cpu", torch.float64)
        return self._known[key]


def law_after(model: FakeModel, prompt: Prompt, generated: Tokens, sampling: Sampling) -> Tensor:
    """p ``[V]`` behind the prompt and these symbols, all rules applied."""
    start, spec = prompt.ids.tolist(), model.spec
    own = spec.drawn(sampling)
    pipeline = Pipeline(own.sampling, spec.vocab_size, grammar=spec.grammar, processors=own.processors)
    history = History(start, foreign_prompt=spec.prompt_size is not None)
    logits = model.after([*start, *generated], len(start))[None]
    return pipeline.law(logits, Places(history, (generated,))).probs[0]


def joint_law(model: FakeModel, prompt: Prompt, few: Few = Few()) -> dict[Tokens, float]:
    """The probability of every sequence of the first tokens; a sequence ends at an end id."""
    law: dict[Tokens, float] = {}
    frontier: list[tuple[Tokens, float]] = [((), 1.0)]
    while frontier:
        path, weight = frontier.pop()
        if len(path) == few.new_tokens or (path and path[-1] in model.spec.end_ids):
            law[path] = weight
            continue
        probs = law_after(model, prompt, path, few.sampling())
        likely = probs.nonzero()[:, 0].tolist()
        frontier += [((*path, token), weight * float(probs[token])) for token in likely]
    return law


def _sampled(
    model: FakeModel, prompt: Prompt, verifier: Verifier, drafter: Any, samples: int, few: Few
) -> tuple[Counter[Tokens], list[str]]:
    """How often each sequence came, and what a drafter that was set aside said."""
    counts: Counter[Tokens] = Counter()
    failures: list[str] = []
    for first in range(0, samples, _BATCH):
        seeds = range(first, min(first + _BATCH, samples))
        made = Generator(model).generate(
            [Prompt(ids=prompt.ids)] * len(seeds),
            drafter=drafter,
            verifier=verifier,
            sampling=[few.sampling(seed) for seed in seeds],
            max_new_tokens=few.new_tokens,
        )
        counts.update(tuple(one.tokens.flatten().tolist()) for one in made)
        failures += [one.report.notes[-1] for one in made if one.report.drafter_failures]
    return counts, failures


def g_test(counts: Mapping[Tokens, int], law: Mapping[Tokens, float], samples: int) -> float:
    """The probability of counts as unlikely as these under ``law``; 0 where one is impossible.

    Outcomes that are expected fewer than five times are counted together.

    >>> g_test({(0,): 500, (1,): 500}, {(0,): 0.5, (1,): 0.5}, 1000)
    1.0
    >>> g_test({(0,): 600, (1,): 400}, {(0,): 0.5, (1,): 0.5}, 1000) < 1e-9
    True
    """
    if any(law.get(outcome, 0.0) <= 0 for outcome in counts):
        return 0.0
    cells = _cells(counts, law, samples)
    if len(cells) < 2:
        return 1.0
    seen, expected = torch.tensor(cells, dtype=torch.float64).unbind(1)
    statistic = 2 * torch.xlogy(seen, seen / expected).sum().clamp(min=0)
    freedom = torch.tensor(len(cells) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def _cells(
    counts: Mapping[Tokens, int], law: Mapping[Tokens, float], samples: int
) -> list[tuple[float, float]]:
    """(seen, expected) per cell; rare outcomes share one."""
    cells: list[tuple[float, float]] = []
    seen, expected = 0.0, 0.0
    for outcome, chance in sorted(law.items(), key=lambda item: item[1]):
        seen, expected = seen + counts.get(outcome, 0), expected + chance * samples
        if expected >= 5:
            cells.append((seen, expected))
            seen, expected = 0.0, 0.0
    if expected and cells:
        cells[-1] = (cells[-1][0] + seen, cells[-1][1] + expected)
    return cells
